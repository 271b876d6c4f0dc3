//! Tells that a table was deleted, by whom ever (`nft delete table`, `nft flush ruleset`), as the kernel
//! tells it on its nf_tables multicast group. Smaller changes are found by audits: the group names every
//! element of every program, and looking at each would cost more than it finds.

use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::errno::Errno;

use super::wire::NETLINK_NETFILTER;
use crate::netlink::NetlinkError;
use crate::netlink::wire::{Attributes, Messages, RawMessage};

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE`.
const TABLE_DELETED: u16 = 10 << 8 | 2;
const TABLE_NAME: u16 = 1;
/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// Deletions of tables in the network namespace it was opened in.
pub struct TableDeletions {
    socket: TokioSocket,
}

impl std::fmt::Debug for TableDeletions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableDeletions").finish_non_exhaustive()
    }
}

impl TableDeletions {
    /// Listen in the calling thread's network namespace. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// Where there is no nf_tables, or this process may not listen.
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |err: std::io::Error| NetlinkError::Open {
            protocol: NETLINK_NETFILTER,
            source: Errno::from_raw(err.raw_os_error().unwrap_or(0)),
        };
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(failed)?;
        socket.socket_mut().bind_auto().map_err(failed)?;
        socket.socket_mut().add_membership(GROUP).map_err(failed)?;
        Ok(TableDeletions { socket })
    }

    /// Returns when a table of this name was deleted, or when that may have been missed; false where
    /// the socket is broken and has to be opened anew.
    pub async fn deleted(&mut self, name: &str) -> bool {
        loop {
            match self.socket.recv_from_full().await {
                Ok((bytes, _)) if names_deleted(&bytes, name) => return true,
                Ok(_) => {}
                // More was told than the buffer holds; the deletion may be among it.
                Err(err) if err.raw_os_error() == Some(Errno::ENOBUFS as i32) => return true,
                Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

fn names_deleted(datagram: &[u8], name: &str) -> bool {
    Messages::new(datagram).map_while(Result::ok).any(|message| is_deletion(&message, name))
}

fn is_deletion(message: &RawMessage<'_>, name: &str) -> bool {
    let Some(attributes) = message.payload.get(HEADER..).filter(|_| message.kind == TABLE_DELETED) else {
        return false;
    };
    let found = Attributes::new(attributes).find(TABLE_NAME).ok().flatten();
    found.is_some_and(|found| found.str().is_ok_and(|found| found == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::wire::Builder;

    #[test]
    fn only_the_deletion_of_that_table_counts() {
        let message = |kind: u16, name: &str| {
            let mut builder = Builder::new();
            builder.begin(kind, 0, 1, &[2, 0, 0, 0]);
            builder.str(TABLE_NAME, name);
            builder.end();
            builder.as_bytes().to_vec()
        };
        let table = [
            (message(TABLE_DELETED, "longshore"), true),
            (message(TABLE_DELETED, "longshore-probe"), false),
            (message(TABLE_DELETED - 2, "longshore"), false),
            ([message(TABLE_DELETED, "other"), message(TABLE_DELETED, "longshore")].concat(), true),
            (vec![1, 2, 3], false),
            (Vec::new(), false),
        ];
        for (bytes, want) in table {
            assert_eq!(names_deleted(&bytes, "longshore"), want, "{bytes:?}");
        }
    }
}
