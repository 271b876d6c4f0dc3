//! What other programs do to a table, as the kernel tells it (`NFNLGRP_NFTABLES`). Our own commits are
//! filtered out before they reach us, so that a large sync costs no wake-up. What to do is not decided here.

use std::io;
use std::mem::size_of_val;
use std::os::fd::AsRawFd;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::unix::AsyncFd;

use super::wire::{self, attr, kind, msg};
use crate::netlink::NetlinkError;
use crate::netlink::wire::{Attributes, Messages, NLMSG_OVERRUN, RawMessage};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Where `struct nlmsghdr` holds the port of who made the change.
const PORT_OFFSET: u32 = 12;
/// A datagram of notifications is at most a page by the kernel's doing; dumps' size is ample.
const BUFFER: usize = 64 * 1024;

/// Another program's commit changed the table, or may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// The program, where the kernel told it.
    pub by: Option<String>,
}

/// A socket that hears of commits.
#[derive(Debug)]
pub(super) struct Watch {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
    /// The commit that is being told touched the table.
    touched: bool,
    /// Something was committed before this began to listen.
    missed: bool,
}

impl Watch {
    /// Hear of every commit in the calling thread's network namespace but those of socket `own_port`.
    pub(super) fn open(own_port: u32) -> Result<Self, NetlinkError> {
        let protocol = wire::NETLINK_NETFILTER;
        let errno = |err: io::Error| NetlinkError::Open {
            protocol,
            source: Errno::from_raw(err.raw_os_error().unwrap_or(0)),
        };
        let mut socket = Socket::new(protocol).map_err(errno)?;
        leave_out(&socket, own_port).map_err(|source| NetlinkError::Open { protocol, source })?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(errno)?;
        socket.add_membership(GROUP).map_err(errno)?;
        socket.set_non_blocking(true).map_err(errno)?;
        let socket = register(socket).map_err(errno)?;
        Ok(Watch { socket, buffer: vec![0; BUFFER], touched: false, missed: false })
    }

    /// Something was committed by others before this began to listen; the next answer says so.
    pub(super) fn missed_something(&mut self) {
        self.missed = true;
    }

    /// The next commit that touched a table of this name, of any family. May be dropped at any time
    /// without losing one.
    pub(super) async fn next(&mut self, table: &str) -> Result<Touched, NetlinkError> {
        if std::mem::take(&mut self.missed) {
            return Ok(Touched { by: None });
        }
        // What waits is taken before the reactor has heard of it: who asks once, without waiting, is told.
        let (socket, buffer) = (&self.socket, &mut self.buffer);
        if let Some(touched) = waiting(socket.get_ref(), buffer, table, &mut self.touched)? {
            return Ok(touched);
        }
        loop {
            let mut ready =
                socket.readable().await.map_err(|_| NetlinkError::Receive { source: Errno::EIO })?;
            if let Some(touched) = waiting(socket.get_ref(), buffer, table, &mut self.touched)? {
                return Ok(touched);
            }
            ready.clear_ready();
        }
    }
}

/// Take what waits in the socket up to the end of a commit that touched the table; `None` when nothing is
/// left of it.
fn waiting(
    socket: &Socket,
    buffer: &mut [u8],
    table: &str,
    touched: &mut bool,
) -> Result<Option<Touched>, NetlinkError> {
    loop {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(len) => {
                let told = read(buffer.get(..len).unwrap_or_default(), table, touched)?;
                if told.is_some() {
                    return Ok(told);
                }
            }
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            // Something was told and lost: it may have been about the table.
            Err(Errno::ENOBUFS) => return Ok(Some(Touched { by: None })),
            Err(source) => return Err(NetlinkError::Receive { source }),
        }
    }
}

/// The end of a commit that touched the table; `touched` carries over to the datagram with its end.
fn read(datagram: &[u8], table: &str, touched: &mut bool) -> Result<Option<Touched>, NetlinkError> {
    for message in Messages::new(datagram) {
        let message = message?;
        if message.kind == NLMSG_OVERRUN {
            return Ok(Some(Touched { by: None }));
        }
        if message.kind == kind(msg::NEWGEN) {
            if std::mem::take(touched) {
                return Ok(Some(Touched { by: process(&message) }));
            }
        } else if is_about(&message, table) {
            *touched = true;
        }
    }
    Ok(None)
}

/// The first attribute of every object is its table.
fn is_about(message: &RawMessage<'_>, table: &str) -> bool {
    let attributes = Attributes::behind(message.payload, wire::HEADER_LEN);
    let name = attributes.and_then(|attributes| attributes.find(attr::TABLE_NAME));
    matches!(name, Ok(Some(name)) if name.str().is_ok_and(|name| name == table))
}

fn process(message: &RawMessage<'_>) -> Option<String> {
    let attributes = Attributes::behind(message.payload, wire::HEADER_LEN).ok()?;
    attributes.find(attr::GEN_PROC_NAME).ok()??.str().ok().map(str::to_owned)
}

#[allow(unsafe_code)] // Its safe forerunner is deprecated.
fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor and always gives the same one; it is closed only when it is
    // dropped, which is after `AsyncFd`, its owner, has taken it out of the reactor.
    unsafe { AsyncFd::register(socket) }.map_err(Into::into)
}

/// Drop messages about this port's changes in the kernel (`bpf(4)`, classic form).
#[allow(unsafe_code)] // The one way to attach a filter; neither nix nor netlink-sys has it.
fn leave_out(socket: &Socket, port: u32) -> Result<(), Errno> {
    // A filter reads words in network order.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, PORT_OFFSET),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, port),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: `program` and the steps it points to outlive the call, which copies both; the length
    // given is that of `program`.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    Errno::result(outcome).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::wire::Builder;

    fn commit(tables: &[&str], by: &str) -> Vec<u8> {
        let mut builder = Builder::new();
        for table in tables {
            builder.begin(kind(msg::DELTABLE), 0, 1, &wire::header(2));
            builder.str(attr::TABLE_NAME, table);
            builder.end();
        }
        builder.begin(kind(msg::NEWGEN), 0, 1, &wire::header(0));
        builder.be32(attr::GEN_ID, 7);
        builder.str(attr::GEN_PROC_NAME, by);
        builder.end();
        builder.as_bytes().to_vec()
    }

    #[test]
    fn a_commit_counts_when_it_touched_our_table_and_says_by_whom() {
        let mut touched = false;
        assert_eq!(read(&commit(&["filter"], "nft"), "longshore", &mut touched), Ok(None));
        let ours = commit(&["filter", "longshore"], "nft");
        let by_nft = Ok(Some(Touched { by: Some("nft".to_owned()) }));
        assert_eq!(read(&ours, "longshore", &mut touched), by_nft);
        assert!(!touched, "the next commit is another");
        // Objects and the commit's end in two datagrams.
        let end = ours.len() - commit(&[], "nft").len();
        assert_eq!(read(&ours[..end], "longshore", &mut touched), Ok(None));
        assert_eq!(read(&ours[end..], "longshore", &mut touched), by_nft);
    }

    #[test]
    fn malformed_notifications_are_refused_or_passed_over() {
        let ours = commit(&["longshore"], "nft");
        for len in 0..ours.len() {
            let _ = read(&ours[..len], "longshore", &mut false);
        }
        assert!(read(&ours[..10], "longshore", &mut false).is_err());
    }
}
