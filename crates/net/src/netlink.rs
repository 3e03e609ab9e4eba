//! One blocking netlink socket: send a batch, collect the answers, name the request that failed.
//!
//! Flow: [`Netlink::transact`] writes all requests into one datagram. The kernel works them off inside `send` (it calls
//! the subsystem's handler in the sender's context), so when `send` returns every acknowledgement is already queued; they
//! are read without ever blocking. [`Netlink::dump`] asks for a table and reads until the end mark.
//!
//! Guarantees: a socket belongs for ever to the network namespace of the thread that opened it, wherever it is used later.
//! Errors carry the text of the request, the errno, and the kernel's own explanation when it gives one
//! (`NETLINK_EXT_ACK`, `man 7 netlink`).
//!
//! Deliberately absent: notifications (multicast groups) and async; see the crate's documentation.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NlasIterator};
use netlink_sys::Socket;
use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBufForce, SndBufForce},
};

/// The largest batch, in bytes: about 200,000 service endpoints.
const BATCH_BYTES_MAX: usize = 32 << 20;
/// Room for acknowledgements and errors waiting to be read, in bytes.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// The kernel sends dumps in pieces of at most 32 KiB (`NLMSG_GOODSIZE`, `netlink_dump`).
const PIECE_BYTES: usize = 64 << 10;
/// `struct nlmsghdr`, `man 7 netlink`.
const HEADER_BYTES: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation as text, `linux/netlink.h`.
const ERROR_ATTRIBUTE_MESSAGE: u16 = 1;

/// Why a netlink exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be opened or prepared.
    #[error("cannot open a netlink socket (root, or CAP_NET_ADMIN in this namespace, is needed)")]
    Open(#[source] io::Error),
    /// The batch is larger than this crate sends.
    #[error("netlink batch of {bytes} bytes is over the limit of {BATCH_BYTES_MAX}")]
    TooLarge {
        /// Size of the batch.
        bytes: usize,
    },
    /// The batch could not be sent.
    #[error("cannot send {what:?} to the kernel")]
    Send {
        /// The first request of the batch.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The answers could not be read.
    #[error("cannot read the kernel's answer to {what:?}")]
    Receive {
        /// The first request of the batch.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The kernel refused one request.
    #[error("the kernel refused to {what}{detail}: {source}")]
    Refused {
        /// The request.
        what: String,
        /// The kernel's explanation in brackets, or nothing.
        detail: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A request was neither acknowledged nor refused.
    #[error("the kernel did not answer the request to {what}")]
    NoAnswer {
        /// The request.
        what: String,
    },
}

impl NetlinkError {
    /// The errno with which the kernel refused a request, if that is what happened.
    pub fn refused_errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// One request of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The message type of the netlink family.
    pub kind: u16,
    /// `NLM_F_*` besides `NLM_F_REQUEST`. With `NLM_F_ACK` an answer is required.
    pub flags: u16,
    /// The payload behind the netlink header.
    pub body: Vec<u8>,
    /// What it does, as words that follow "refused to".
    pub what: String,
    /// Errnos that mean the wish is already fulfilled.
    pub tolerate: &'static [i32],
}

/// One message of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

/// A netlink socket in the namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    send_buffer_bytes: usize,
}

impl Netlink {
    /// Opens a socket for links, addresses, routes and neighbours (`NETLINK_ROUTE`).
    pub fn open_route() -> Result<Self, NetlinkError> {
        Self::open(netlink_sys::protocols::NETLINK_ROUTE)
    }

    /// Opens a socket for nf_tables (`NETLINK_NETFILTER`).
    pub fn open_netfilter() -> Result<Self, NetlinkError> {
        Self::open(netlink_sys::protocols::NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let prepare = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            // Errors without the echoed request, but with the kernel's explanation.
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
            Ok(socket)
        };
        prepare().map(|socket| Self { socket, sequence: 0, send_buffer_bytes: 0 }).map_err(NetlinkError::Open)
    }

    /// Sends all requests as one datagram and checks every answer.
    ///
    /// The first refusal that its request does not tolerate is the error. For `NETLINK_ROUTE` the requests before and
    /// after a refused one still take effect; an nf_tables batch takes effect whole or not at all.
    pub fn transact(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        let Some(first) = requests.first() else { return Ok(()) };
        let base = self.send(requests)?;
        let mut acknowledged = vec![false; requests.len()];
        let mut refusal = None;
        let receive_error = |source| NetlinkError::Receive { what: first.what.clone(), source };
        while let Some(piece) = self.receive(false).map_err(receive_error)? {
            for message in messages(&piece) {
                let index = message.sequence.wrapping_sub(base) as usize;
                // An answer to an earlier, abandoned batch has no place here.
                let Some(request) = requests.get(index) else { continue };
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                acknowledged[index] = true;
                let (errno, detail) = error_of(message.body, message.flags);
                if errno != 0 && !request.tolerate.contains(&errno) && refusal.is_none() {
                    let source = io::Error::from_raw_os_error(errno);
                    refusal = Some(NetlinkError::Refused { what: request.what.clone(), detail, source });
                }
            }
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let unanswered = requests.iter().zip(&acknowledged).find(|(r, done)| r.flags & NLM_F_ACK != 0 && !**done);
        unanswered.map_or(Ok(()), |(request, _)| Err(NetlinkError::NoAnswer { what: request.what.clone() }))
    }

    /// Asks for a whole table, or with flags other than `NLM_F_DUMP` for one object.
    pub(crate) fn dump(&mut self, mut request: Request) -> Result<Vec<Reply>, NetlinkError> {
        request.flags |= if request.flags & NLM_F_DUMP == 0 { NLM_F_ACK } else { 0 };
        let request = [request];
        let base = self.send(&request)?;
        let what = &request[0].what;
        let receive_error = |source| NetlinkError::Receive { what: what.clone(), source };
        let mut replies = Vec::new();
        while let Some(piece) = self.receive(true).map_err(receive_error)? {
            for message in messages(&piece).filter(|message| message.sequence == base) {
                match message.kind {
                    NLMSG_DONE => return Ok(replies),
                    NLMSG_ERROR => {
                        let (errno, detail) = error_of(message.body, message.flags);
                        if errno == 0 || request[0].tolerate.contains(&errno) {
                            return Ok(replies);
                        }
                        let source = io::Error::from_raw_os_error(errno);
                        return Err(NetlinkError::Refused { what: what.clone(), detail, source });
                    }
                    kind => replies.push(Reply { kind, body: message.body.to_vec() }),
                }
            }
        }
        Err(NetlinkError::NoAnswer { what: what.clone() })
    }

    /// Sends the requests as one datagram; returns the sequence number of the first.
    fn send(&mut self, requests: &[Request]) -> Result<u32, NetlinkError> {
        let base = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            put_message(&mut datagram, request, self.sequence);
        }
        let what = requests.first().map_or_else(String::new, |request| request.what.clone());
        if datagram.len() > BATCH_BYTES_MAX {
            return Err(NetlinkError::TooLarge { bytes: datagram.len() });
        }
        // A datagram must fit the send buffer with its bookkeeping (`netlink_sendmsg`: EMSGSIZE).
        let wanted = datagram.len() * 2 + 4096;
        if wanted > self.send_buffer_bytes.max(128 << 10) {
            setsockopt(&self.socket, SndBufForce, &wanted)
                .map_err(|errno| NetlinkError::Send { what: what.clone(), source: errno.into() })?;
            self.send_buffer_bytes = wanted;
        }
        loop {
            match self.socket.send(&datagram, 0) {
                Ok(_) => return Ok(base),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NetlinkError::Send { what, source }),
            }
        }
    }

    /// Reads one piece; `None` when nothing is queued and `wait` is false.
    fn receive(&self, wait: bool) -> io::Result<Option<Vec<u8>>> {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        loop {
            match self.socket.recv(&mut piece, if wait { 0 } else { libc::MSG_DONTWAIT }) {
                Ok(_) => return Ok(Some(piece)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // More errors than the receive buffer holds: what was queued before is still there, and tells enough.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

fn put_message(datagram: &mut Vec<u8>, request: &Request, sequence: u32) {
    let length = HEADER_BYTES + request.body.len();
    datagram.extend_from_slice(&(length as u32).to_ne_bytes());
    datagram.extend_from_slice(&request.kind.to_ne_bytes());
    datagram.extend_from_slice(&(request.flags | NLM_F_REQUEST).to_ne_bytes());
    datagram.extend_from_slice(&sequence.to_ne_bytes());
    datagram.extend_from_slice(&0_u32.to_ne_bytes());
    datagram.extend_from_slice(&request.body);
    datagram.resize(datagram.len().next_multiple_of(4), 0);
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of one received piece; stops at the first that is cut off.
fn messages(mut piece: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = number(piece, 0)? as usize;
        let body = piece.get(HEADER_BYTES..length)?;
        let kind_and_flags = number(piece, 4)?.to_ne_bytes();
        let message = Message {
            kind: u16::from_ne_bytes([kind_and_flags[0], kind_and_flags[1]]),
            flags: u16::from_ne_bytes([kind_and_flags[2], kind_and_flags[3]]),
            sequence: number(piece, 8)?,
            body,
        };
        piece = piece.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The native-endian 32-bit number at `offset`, if it is there.
pub(crate) fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// The value of the first attribute of `kind` behind a fixed header of `header_bytes`.
pub(crate) fn attribute(body: &[u8], header_bytes: usize, kind: u16) -> Option<Vec<u8>> {
    NlasIterator::new(body.get(header_bytes..)?)
        .flatten()
        .find(|attribute| attribute.kind() == kind)
        .map(|attribute| attribute.value().to_vec())
}

/// Errno (0: acknowledged) and explanation of an `NLMSG_ERROR`: `int error; struct nlmsghdr` and, capped, attributes.
fn error_of(body: &[u8], flags: u16) -> (i32, String) {
    let errno = number(body, 0).map_or(libc::EBADMSG, |value| value.cast_signed().wrapping_neg());
    let detail = (flags & netlink_packet_core::NLM_F_ACK_TLVS != 0)
        .then(|| attribute(body, 4 + HEADER_BYTES, ERROR_ATTRIBUTE_MESSAGE))
        .flatten()
        .map(|text| format!(" ({})", String::from_utf8_lossy(&text).trim_end_matches('\0')))
        .unwrap_or_default();
    (errno, detail)
}
