//! Netlink for the families this program encodes itself (IPVS, nf_tables, conntrack): attributes and
//! framing in `wire`, sockets with acknowledgement matching in `socket`, generic netlink families in
//! `generic`. Routes go through rtnetlink instead. No knowledge of any one subsystem lives here.

pub mod generic;
pub mod shared;
pub mod socket;
pub mod wire;

use std::fmt;

use nix::errno::Errno;

pub use shared::SharedSocket;
pub use socket::{NetlinkSocket, RequestError};

/// Why the kernel said no: an errno, and its own words where it gave some (extended ACK).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The errno.
    pub errno: Errno,
    /// The kernel's explanation.
    pub message: Option<String>,
}

impl Refusal {
    /// A refusal without an explanation.
    pub fn new(errno: Errno) -> Self {
        Refusal { errno, message: None }
    }

    /// Whether the same request may well be granted a moment later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.errno,
            Errno::EAGAIN | Errno::EBUSY | Errno::EINTR | Errno::ENOMEM | Errno::ENOBUFS | Errno::ETIMEDOUT
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.errno.desc();
        // An abbreviation such as "RFS specific error" keeps its capitals.
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(first), Some(second)) if second.is_lowercase() => {
                write!(f, "{}{}", first.to_lowercase(), &text[first.len_utf8()..])?;
            }
            _ => f.write_str(text)?,
        }
        match &self.message {
            Some(message) => write!(f, " ({message})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

/// A conversation with the kernel failed as a whole. Cheap to clone, since it is reported once for
/// every operation of a batch that was left without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("open netlink socket of protocol {protocol}")]
    Open {
        /// `NETLINK_*` number.
        protocol: isize,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// The message could not be sent.
    #[error("send {bytes} bytes over netlink")]
    Send {
        /// Its length.
        bytes: usize,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// Nothing could be received.
    #[error("receive from netlink")]
    Receive {
        /// The cause.
        #[source]
        source: Errno,
    },
    /// The kernel dropped answers because the receive buffer was full: what it did is not known.
    #[error("netlink answers were lost because the receive buffer was full")]
    Overrun,
    /// The kernel did not answer within the deadline.
    #[error("no netlink answer within {0:?}")]
    TimedOut(std::time::Duration),
    /// An answer is not what the protocol says.
    #[error("malformed netlink message: {0}")]
    Malformed(&'static str),
    /// The table changed during every attempt to dump it.
    #[error("netlink dump was interrupted by changes {0} times")]
    Interrupted(u32),
    /// The kernel has no such generic netlink family: its module is missing.
    #[error("the kernel has no generic netlink family {0}")]
    NoFamily(&'static str),
    /// The request as a whole was refused.
    #[error("netlink request refused")]
    Refused(#[source] Refusal),
    /// The thread that talked to the kernel ended.
    #[error("netlink thread ended before it answered")]
    ThreadEnded,
}

impl NetlinkError {
    /// Whether the same request may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        match self {
            NetlinkError::Open { source, .. } => {
                matches!(source, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
            }
            NetlinkError::Send { .. }
            | NetlinkError::Receive { .. }
            | NetlinkError::Overrun
            | NetlinkError::TimedOut(_)
            | NetlinkError::Interrupted(_)
            | NetlinkError::ThreadEnded => true,
            NetlinkError::Refused(refusal) => refusal.is_retryable(),
            NetlinkError::Malformed(_) | NetlinkError::NoFamily(_) => false,
        }
    }
}

impl From<wire::Malformed> for NetlinkError {
    fn from(malformed: wire::Malformed) -> Self {
        NetlinkError::Malformed(malformed.0)
    }
}
