//! Tracked connections over netlink: the `Conntrack` trait, its real implementation and, with the
//! feature `fake`, one in memory. For Services: finding UDP flows that still point to an endpoint that
//! is gone, and deleting them. Which flows are stale is decided in `longshore_core`.

pub mod codec;
#[cfg(any(test, feature = "fake"))]
mod fake;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use longshore_core::ruleset::Protocol;
use nix::errno::Errno;

#[cfg(any(test, feature = "fake"))]
pub use fake::FakeConntrack;

use crate::netlink::{NetlinkError, NetlinkSocket, Refusal, RequestError, SharedSocket};
use crate::route::IpFamily;

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Where packets come from.
    pub source: SocketAddr,
    /// Where they go.
    pub destination: SocketAddr,
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.source, self.destination)
    }
}

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Its transport protocol.
    pub protocol: Protocol,
    /// As the client sent it: the destination is the Service's address.
    pub original: Tuple,
    /// As answers come: the source is the endpoint's address.
    pub reply: Tuple,
    /// `IPS_*` bits.
    pub status: u32,
    /// The connection mark.
    pub mark: u32,
    /// Its zone; 0 for most.
    pub zone: u16,
    /// Seconds until it is forgotten.
    pub timeout: u32,
}

impl Flow {
    /// Whether the destination was translated (`IPS_DST_NAT`).
    pub fn is_dnat(&self) -> bool {
        self.status & 1 << 5 != 0
    }

    /// Where the client believes it talks to.
    pub fn service(&self) -> SocketAddr {
        self.original.destination
    }

    /// Who answers.
    pub fn endpoint(&self) -> SocketAddr {
        self.reply.source
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conntrack {} {} ({})", self.protocol, self.original, self.endpoint())
    }
}

/// Which flows a dump shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowFilter {
    /// Only of this family.
    pub family: IpFamily,
    /// Only of this protocol.
    pub protocol: Protocol,
    /// Only those whose destination was translated.
    pub dnat_only: bool,
}

impl FlowFilter {
    /// UDP flows that a Service may have translated.
    pub fn translated_udp(family: IpFamily) -> Self {
        FlowFilter { family, protocol: Protocol::Udp, dnat_only: true }
    }

    fn takes(&self, flow: &Flow) -> bool {
        flow.protocol == self.protocol
            && flow.original.source.is_ipv6() == (self.family == IpFamily::V6)
            && (!self.dnat_only || flow.is_dnat())
    }
}

/// Why flows could not be read or deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConntrackError {
    /// The kernel has no connection tracking over netlink, or the caller may not use it.
    #[error("conntrack is not available (kernel module nf_conntrack_netlink)")]
    Unavailable(#[source] NetlinkError),
    /// Reading failed.
    #[error("conntrack: list flows")]
    Dump(#[source] NetlinkError),
    /// One flow could not be deleted.
    #[error("{flow}: delete")]
    Delete {
        /// The flow.
        flow: Box<Flow>,
        /// What broke.
        #[source]
        source: RequestError,
    },
}

impl ConntrackError {
    /// Whether the same call may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        match self {
            ConntrackError::Unavailable(source) | ConntrackError::Dump(source) => source.is_retryable(),
            ConntrackError::Delete { source, .. } => source.is_retryable(),
        }
    }
}

/// The tracked connections of one network namespace.
#[async_trait]
pub trait Conntrack: Send + Sync {
    /// The flows a filter takes. The kernel lists all; what the filter refuses is never kept.
    async fn dump(&self, filter: FlowFilter) -> Result<Vec<Flow>, ConntrackError>;

    /// Delete flows by their original tuple; each outcome says whether the flow was still there. The
    /// result is as long as `flows`.
    async fn delete(&self, flows: &[Flow]) -> Vec<Result<bool, ConntrackError>>;
}

/// Connection tracking of the network namespace it was opened in.
#[derive(Debug, Clone)]
pub struct RealConntrack {
    socket: SharedSocket,
}

impl RealConntrack {
    /// Open connection tracking of the calling thread's network namespace.
    pub fn open() -> Result<Self, ConntrackError> {
        let socket = NetlinkSocket::open(codec::NETLINK_NETFILTER).map_err(ConntrackError::Unavailable)?;
        Ok(RealConntrack { socket: SharedSocket::new(socket) })
    }
}

fn deleted(flow: &Flow, outcome: Result<(), RequestError>) -> Result<bool, ConntrackError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(RequestError::Refused(Refusal { errno: Errno::ENOENT, .. })) => Ok(false),
        Err(source) => Err(ConntrackError::Delete { flow: Box::new(*flow), source }),
    }
}

#[async_trait]
impl Conntrack for RealConntrack {
    async fn dump(&self, filter: FlowFilter) -> Result<Vec<Flow>, ConntrackError> {
        let family = codec::family(filter.family == IpFamily::V6);
        let dump = move |socket: &mut NetlinkSocket| {
            socket.dump(
                |builder, seq| codec::encode_dump(builder, family, seq),
                Vec::new,
                |flows: &mut Vec<Flow>, message| {
                    flows.extend(codec::parse_flow(message.payload)?.filter(|flow| filter.takes(flow)));
                    Ok(())
                },
            )
        };
        self.socket.run(dump).await.and_then(|result| result).map_err(ConntrackError::Dump)
    }

    async fn delete(&self, flows: &[Flow]) -> Vec<Result<bool, ConntrackError>> {
        let owned = flows.to_vec();
        let outcome = self
            .socket
            .run(move |socket| {
                socket.request_each(owned.len(), |builder, index, seq| {
                    codec::encode_delete(builder, seq, &owned[index]);
                })
            })
            .await;
        match outcome {
            Ok(outcomes) => {
                flows.iter().zip(outcomes).map(|(flow, outcome)| deleted(flow, outcome)).collect()
            }
            Err(err) => {
                let failed = |flow| deleted(flow, Err(RequestError::Conversation(err.clone())));
                flows.iter().map(failed).collect()
            }
        }
    }
}

/// A socket address of an address and a port.
fn socket_addr(addr: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(addr, port)
}
