//! A timer to the microsecond: the runtime's own knows only milliseconds, and at 20,000 requests a second a millisecond is
//! twenty requests.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One `timerfd` (`timerfd_create(2)`), armed anew for each wait.
pub struct Timer(AsyncFd<Descriptor>);

struct Descriptor(TimerFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// A timer of the current runtime.
    ///
    /// # Errors
    /// When there are no more descriptors to be had.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        // Deprecated for descriptors that may be closed while registered; this one is owned by what is registered. The
        // successor is `unsafe`, which this crate does without.
        #[expect(deprecated)]
        let registered = AsyncFd::with_interest(Descriptor(timer), Interest::READABLE)?;
        Ok(Self(registered))
    }

    /// Waits; a wait of nothing returns at once.
    ///
    /// # Errors
    /// When the kernel refuses the timer.
    pub async fn sleep(&self, wait: Duration) -> io::Result<()> {
        if wait.is_zero() {
            return Ok(());
        }
        let once = Expiration::OneShot(TimeSpec::from_duration(wait));
        self.0.get_ref().0.set(once, TimerSetTimeFlags::empty())?;
        loop {
            let mut ready = self.0.readable().await?;
            // Reading takes the expiration back; without one the readiness was stale.
            match ready.try_io(|descriptor| descriptor.get_ref().0.wait().map_err(Into::into)) {
                Ok(done) => return done,
                Err(_would_block) => {}
            }
        }
    }
}
