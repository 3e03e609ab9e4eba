//! Panics: what one request does must not end the server, and what the server needs must not end unseen.
//!
//! Flow: [`contain_panics`] hooks into panicking once per process. A panic inside of [`guarded`] unwinds and becomes the
//! error of that future: the request that ran into it is answered with 500, the connection or the stream ends, and the
//! server goes on. A panic anywhere else ends the process at once, as everything else here does when it cannot go on: a
//! background task that is gone without anybody noticing would be worse than a start that takes a moment.
//!
//! Guarantees: the hook decides before anything is unwound, so that outside of guards no destructor runs and no lock is
//! poisoned. Deliberately absent: overflowing stacks and exhausted memory, which do not unwind; limits prevent them.

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};

use hyper::rt::Executor;

thread_local! {
    /// How many guards are around what this thread does now.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// From now on a panic outside of [`guarded`] ends the process, in every thread.
pub fn contain_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            report(panic);
            if DEPTH.get() == 0 {
                std::process::abort();
            }
        }));
    });
}

/// A panic that was caught: its message.
#[derive(Debug, thiserror::Error)]
#[error("a panic: {0}")]
pub(crate) struct Panicked(String);

impl Panicked {
    fn of(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        Self(text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".into()))
    }
}

/// A future whose panics are its errors. After one, nothing of it runs any more.
///
/// What it shares with others must be whole whenever it may panic: here that is what locks hold, and every lock is held
/// for single steps only.
pub(crate) async fn guarded<T>(future: impl Future<Output = T>) -> Result<T, Panicked> {
    Guarded(Some(Box::pin(future))).await
}

struct Guarded<F>(Option<Pin<Box<F>>>);

impl<F: Future> Future for Guarded<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = self.0.as_mut() else { return Poll::Pending };
        let polled = caught(|| future.as_mut().poll(context));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(panicked) => {
                let broken = self.0.take();
                // What is left of it is dropped under guard, too: destructors may stumble over the same thing.
                let _ = caught(|| drop(broken));
                Poll::Ready(Err(panicked))
            }
        }
    }
}

/// Runs one step; a panic in it is its error.
pub(crate) fn caught<T>(step: impl FnOnce() -> T) -> Result<T, Panicked> {
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(step));
    DEPTH.set(DEPTH.get() - 1);
    result.map_err(|payload| Panicked::of(&*payload))
}

/// Runs the tasks that hyper makes of a connection, such as the streams of HTTP/2, under guard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuardedTasks;

impl<F> Executor<F> for GuardedTasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        spawn(future);
    }
}

/// A task whose panic ends only itself.
pub(crate) fn spawn<F>(future: F) -> tokio::task::JoinHandle<()>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = guarded(future).await {
            tracing::error!(%error, "a task of a connection was ended");
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_panic_is_the_error_of_its_future() {
        let said = guarded(async { panic!("at {}", 7) }).await.map(|(): ()| ()).unwrap_err();
        assert_eq!(said.to_string(), "a panic: at 7");
        assert_eq!(guarded(async { tokio::task::yield_now().await }).await.ok(), Some(()));
        assert_eq!(DEPTH.get(), 0);
    }

    /// Run as a process of its own by the test below.
    #[tokio::test]
    #[ignore = "ends the process"]
    async fn child() {
        contain_panics();
        assert!(guarded(async { panic!("inside") }).await.map(|(): ()| ()).is_err());
        println!("went on");
        let _ = tokio::spawn(async { panic!("outside") }).await.map(|(): ()| ());
        println!("went on too far");
    }

    #[test]
    fn a_panic_outside_of_guards_ends_the_process() {
        let program = std::env::current_exe().unwrap();
        let args = ["--exact", "guard::tests::child", "--ignored", "--nocapture"];
        let output = std::process::Command::new(program).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("went on\n") && !text.contains("too far") && !output.status.success(), "{text}");
    }
}
