//! IPVS over generic netlink: the `Ipvs` trait, its real implementation and, with the feature `fake`,
//! an in-memory one. The table's model is `longshore_core::ruleset::ipvs`; which virtual servers there
//! should be is decided there, never here.

pub mod codec;
#[cfg(any(test, feature = "fake"))]
mod fake;

use std::collections::BTreeMap;

use async_trait::async_trait;
use longshore_core::ruleset::ipvs::{
    Connections, IpvsDump, IpvsOp, IpvsTimeouts, RealServer, RealServerKey, Scheduler, VirtualServerKey,
};
use nix::errno::Errno;

#[cfg(any(test, feature = "fake"))]
pub use fake::FakeIpvs;

use crate::netlink::{NetlinkError, NetlinkSocket, Refusal, RequestError, SharedSocket, generic};

/// Real servers of one virtual server, with the connections each carries.
pub type Reals = BTreeMap<RealServerKey, (RealServer, Connections)>;

/// What the kernel says about its IPVS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpvsInfo {
    /// Version, major, minor and patch.
    pub version: (u8, u8, u8),
    /// Buckets of the connection table.
    pub connection_table_size: u32,
    /// Connection time-outs.
    pub timeouts: IpvsTimeouts,
}

/// Why an IPVS operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpvsError {
    /// The kernel has no IPVS, or the caller may not use it.
    #[error("ipvs is not available (kernel module ip_vs)")]
    Unavailable(#[source] NetlinkError),
    /// The kernel said no to one operation.
    #[error("{op}")]
    Refused {
        /// The operation and its object.
        op: String,
        /// The kernel's answer.
        #[source]
        source: Refusal,
    },
    /// The scheduler's module is missing.
    #[error("{op}: the kernel has no scheduler {scheduler} (kernel module ip_vs_{scheduler})")]
    NoScheduler {
        /// The operation and its object.
        op: String,
        /// The scheduler.
        scheduler: Scheduler,
    },
    /// The operation got no answer; whether it happened is not known.
    #[error("{op}")]
    NoAnswer {
        /// The operation and its object.
        op: String,
        /// What broke.
        #[source]
        source: NetlinkError,
    },
}

impl IpvsError {
    /// Whether the same operation may well succeed a moment later. `Refused` ones whose cause is a
    /// difference between what we believe and what is there are not: they need a dump first.
    pub fn is_retryable(&self) -> bool {
        match self {
            IpvsError::Unavailable(source) | IpvsError::NoAnswer { source, .. } => source.is_retryable(),
            IpvsError::Refused { source, .. } => source.is_retryable(),
            IpvsError::NoScheduler { .. } => false,
        }
    }

    /// Whether the kernel's table is not what the operation took it to be.
    pub fn is_drift(&self) -> bool {
        matches!(self, IpvsError::Refused { source, .. }
            if matches!(source.errno, Errno::EEXIST | Errno::ENOENT | Errno::ESRCH))
    }

    fn of(op: &IpvsOp, err: RequestError) -> Self {
        match (op, err) {
            // For a new or changed service ENOENT can only mean the scheduler or the persistence engine.
            (
                IpvsOp::AddService { server, .. } | IpvsOp::SetService { server, .. },
                RequestError::Refused(Refusal { errno: Errno::ENOENT, .. }),
            ) if server.persistence_engine.is_none() => {
                IpvsError::NoScheduler { op: op.to_string(), scheduler: server.scheduler }
            }
            (_, RequestError::Refused(source)) => IpvsError::Refused { op: op.to_string(), source },
            (_, RequestError::Conversation(source)) => IpvsError::NoAnswer { op: op.to_string(), source },
        }
    }
}

/// The kernel's IPVS table of one network namespace.
#[async_trait]
pub trait Ipvs: Send + Sync {
    /// The whole table. A large one takes a message per virtual server.
    async fn dump(&self) -> Result<IpvsDump, IpvsError>;

    /// The real servers of one virtual server, for watching connections drain.
    async fn reals(&self, key: VirtualServerKey) -> Result<Reals, IpvsError>;

    /// Apply operations in order, each with an outcome of its own; a failed one stops nothing. The
    /// result is as long as `ops`.
    async fn apply(&self, ops: &[IpvsOp]) -> Vec<Result<(), IpvsError>>;

    /// Set connection time-outs; zeroes stay as they are.
    async fn set_timeouts(&self, timeouts: IpvsTimeouts) -> Result<(), IpvsError>;

    /// Version, table size and time-outs.
    async fn info(&self) -> Result<IpvsInfo, IpvsError>;
}

/// IPVS of the network namespace it was opened in.
#[derive(Debug, Clone)]
pub struct RealIpvs {
    socket: SharedSocket,
    family: u16,
}

impl RealIpvs {
    /// Open IPVS of the calling thread's network namespace. Fails with [`IpvsError::Unavailable`] where
    /// the kernel has none.
    pub fn open() -> Result<Self, IpvsError> {
        let mut socket = NetlinkSocket::open(generic::NETLINK_GENERIC).map_err(IpvsError::Unavailable)?;
        let family =
            generic::resolve_family(&mut socket, codec::FAMILY_NAME).map_err(IpvsError::Unavailable)?;
        Ok(RealIpvs { socket: SharedSocket::new(socket), family })
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: String,
        conversation: impl FnOnce(&mut NetlinkSocket, u16) -> Result<T, NetlinkError> + Send + 'static,
    ) -> Result<T, IpvsError> {
        let family = self.family;
        let outcome = self.socket.run(move |socket| conversation(socket, family)).await;
        outcome.and_then(|result| result).map_err(|err| match err {
            NetlinkError::Refused(source) => IpvsError::Refused { op: what, source },
            source => IpvsError::NoAnswer { op: what, source },
        })
    }
}

#[async_trait]
impl Ipvs for RealIpvs {
    async fn dump(&self) -> Result<IpvsDump, IpvsError> {
        self.ask("ipvs: dump".to_owned(), codec::dump).await
    }

    async fn reals(&self, key: VirtualServerKey) -> Result<Reals, IpvsError> {
        self.ask(format!("ipvs {key}: list destinations"), move |socket, family| {
            codec::dump_reals(socket, family, &key)
        })
        .await
    }

    async fn apply(&self, ops: &[IpvsOp]) -> Vec<Result<(), IpvsError>> {
        let family = self.family;
        let owned = ops.to_vec();
        let outcome = self
            .socket
            .run(move |socket| {
                socket.request_each(owned.len(), |builder, index, seq| {
                    codec::encode_op(builder, family, seq, &owned[index]);
                })
            })
            .await;
        match outcome {
            Ok(outcomes) => ops
                .iter()
                .zip(outcomes)
                .map(|(op, outcome)| outcome.map_err(|err| IpvsError::of(op, err)))
                .collect(),
            Err(err) => {
                ops.iter().map(|op| Err(IpvsError::of(op, RequestError::Conversation(err.clone())))).collect()
            }
        }
    }

    async fn set_timeouts(&self, timeouts: IpvsTimeouts) -> Result<(), IpvsError> {
        self.ask("ipvs: set connection time-outs".to_owned(), move |socket, family| {
            socket.request(|builder, seq| codec::encode_timeouts(builder, family, seq, &timeouts), |_| Ok(()))
        })
        .await
    }

    async fn info(&self) -> Result<IpvsInfo, IpvsError> {
        self.ask("ipvs: read version".to_owned(), codec::info).await
    }
}
