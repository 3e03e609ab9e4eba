//! Listening sockets: one for each core and address, held by the process so that a new one can take them over.
//!
//! # Guarantees
//! A socket is handed over with the connections that wait in it, so that none is refused while the old process drains.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// Connections that may wait to be accepted, per socket.
const BACKLOG: u32 = 4096;
/// Descriptors in one message.
const BATCH: usize = 64;
/// What a new process says first.
const HELLO: &[u8] = b"mainstay-gateway sockets 1\n";

/// The sockets of a process.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    open: Mutex<HashMap<(SocketAddr, usize), TcpListener>>,
    cores: usize,
}

impl Sockets {
    /// For so many cores.
    pub(crate) fn new(cores: usize) -> Self {
        Self { open: Mutex::default(), cores }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<(SocketAddr, usize), TcpListener>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens what is wanted and not open yet, and closes what is not wanted any more. Must be called within a runtime.
    ///
    /// # Errors
    /// Addresses that cannot be listened on, each with the reason; the others are open.
    pub(crate) fn set(&self, wanted: &[SocketAddr]) -> Vec<(SocketAddr, io::Error)> {
        let mut open = self.open();
        open.retain(|(address, _), _| wanted.contains(address));
        let mut failed = Vec::new();
        for address in wanted {
            for core in 0..self.cores {
                if open.contains_key(&(*address, core)) {
                    continue;
                }
                match listen(*address) {
                    Ok(socket) => drop(open.insert((*address, core), socket)),
                    Err(error) => {
                        failed.push((*address, error));
                        break;
                    }
                }
            }
        }
        failed
    }

    /// A core's sockets of an address, and its share of those of cores that are no more.
    pub(crate) fn of(&self, address: SocketAddr, core: usize) -> Vec<TcpListener> {
        let open = self.open();
        let ours = open.iter().filter(|((at, number), _)| *at == address && number % self.cores == core);
        ours.filter_map(|(_, socket)| socket.try_clone().ok()).collect()
    }

    /// Closes all.
    pub(crate) fn close(&self) {
        self.open().clear();
    }

    /// Sends all sockets to a process that asks for them.
    ///
    /// # Errors
    /// It does not ask as it should, or goes away.
    pub(crate) fn hand_over(&self, to: &UnixStream) -> io::Result<()> {
        let mut hello = [0; HELLO.len()];
        io::Read::read_exact(&mut &*to, &mut hello)?;
        if hello != HELLO {
            return Err(io::Error::other("this is no gateway that takes over"));
        }
        let open = self.open();
        let sockets: Vec<_> = open.iter().collect();
        let batches: Vec<_> = sockets.chunks(BATCH).collect();
        for batch in &batches {
            let names: Vec<String> = batch.iter().map(|((address, core), _)| format!("{address} {core}")).collect();
            let line = format!("{}\n", names.join(","));
            let descriptors: Vec<_> = batch.iter().map(|(_, socket)| socket.as_fd()).collect();
            let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut message = SendAncillaryBuffer::new(&mut space);
            message.push(SendAncillaryMessage::ScmRights(&descriptors));
            let length = (line.len() as u32).to_be_bytes();
            let parts = [IoSlice::new(&length), IoSlice::new(line.as_bytes())];
            rustix::net::sendmsg(to, &parts, &mut message, SendFlags::empty())?;
        }
        io::Write::write_all(&mut &*to, &0_u32.to_be_bytes())
    }

    /// Takes the sockets of the process that listens at a path.
    ///
    /// # Errors
    /// Nobody listens there, or what comes is not understood.
    pub(crate) fn take_over(&self, path: &Path) -> io::Result<(usize, UnixStream)> {
        let from = UnixStream::connect(path)?;
        io::Write::write_all(&mut &from, HELLO)?;
        let mut taken = 0;
        loop {
            let mut length = [0; 4];
            let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut message = RecvAncillaryBuffer::new(&mut space);
            let got = rustix::net::recvmsg(
                &from,
                &mut [IoSliceMut::new(&mut length)],
                &mut message,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            if got.bytes != 4 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut descriptors: Vec<OwnedFd> = Vec::new();
            for part in message.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = part {
                    descriptors.extend(received);
                }
            }
            let length = u32::from_be_bytes(length) as usize;
            if length == 0 {
                return Ok((taken, from));
            }
            if length > 1 << 20 {
                return Err(io::Error::other("the list of sockets is too long"));
            }
            let mut names = vec![0; length];
            io::Read::read_exact(&mut &from, &mut names)?;
            let names = String::from_utf8_lossy(&names).into_owned();
            for (name, descriptor) in names.trim_end().split(',').zip(descriptors) {
                let Some((address, core)) = name.split_once(' ') else { continue };
                if let (Ok(address), Ok(core)) = (address.parse(), core.parse()) {
                    self.open().insert((address, core), TcpListener::from(descriptor));
                    taken += 1;
                }
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // Each core has a queue of its own; the kernel spreads new connections over them.
    socket.set_reuseport(true)?;
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_connection_that_waits_is_taken_over() {
        let old = Sockets::new(2);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        assert!(old.set(&[address]).is_empty());
        let real = old.of(address, 0)[0].local_addr().unwrap();
        let _client = std::net::TcpStream::connect(real).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let handing = std::thread::spawn(move || {
            old.hand_over(&listener.accept().unwrap().0).unwrap();
            old.close();
        });
        let new = Sockets::new(1);
        let (taken, _connection) = new.take_over(&path).unwrap();
        handing.join().unwrap();
        assert_eq!(taken, 2);
        let sockets = new.of(address, 0);
        assert_eq!(sockets.len(), 2, "one core has both");
        let accepted = sockets.iter().find(|it| it.local_addr().unwrap() == real).unwrap();
        accepted.set_nonblocking(false).unwrap();
        accepted.accept().unwrap();
    }
}
