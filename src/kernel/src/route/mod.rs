//! Links, addresses and the default route over rtnetlink: the `Routes` trait, its real implementation
//! and, with the feature `fake`, an in-memory one. Which addresses a device should have is decided by
//! the caller.

#[cfg(any(test, feature = "fake"))]
mod fake;
pub mod monitor;
mod real;

use std::net::IpAddr;

use async_trait::async_trait;

#[cfg(any(test, feature = "fake"))]
pub use fake::FakeRoutes;
pub use real::RealRoutes;

use crate::netlink::Refusal;

/// Index of the loopback device of every network namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
pub const LOOPBACK: u32 = 1;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind as the kernel names it (`dummy`, `veth`, `bridge`), empty for hardware.
    pub kind: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkAddress {
    /// The interface's index.
    pub link: u32,
    /// The address.
    pub addr: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Whether only this link can use it (`fe80::/10`, scope link).
    pub link_local: bool,
}

/// An address to be put on or taken off a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressOp {
    /// Make sure it is there, as /32 or /128.
    Ensure(IpAddr),
    /// Make sure it is not there.
    Remove(IpAddr),
}

impl AddressOp {
    /// The address.
    pub fn addr(self) -> IpAddr {
        match self {
            AddressOp::Ensure(addr) | AddressOp::Remove(addr) => addr,
        }
    }

    fn describe(self, link: &Link) -> String {
        match self {
            AddressOp::Ensure(addr) => format!("device {}: add address {addr}", link.name),
            AddressOp::Remove(addr) => format!("device {}: remove address {addr}", link.name),
        }
    }
}

/// Address family of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why an operation on links or addresses failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No rtnetlink socket.
    #[error("open rtnetlink")]
    Unavailable(#[source] nix::errno::Errno),
    /// The kernel said no.
    #[error("{op}")]
    Refused {
        /// The operation and its object.
        op: String,
        /// The kernel's answer.
        #[source]
        source: Refusal,
    },
    /// A device of this name is there and is of another kind.
    #[error(
        "device {name} exists and is of kind {found:?}, not {wanted:?}: remove it or configure another name"
    )]
    Conflict {
        /// Its name.
        name: String,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// There was no usable answer.
    #[error("{op}: {detail}")]
    NoAnswer {
        /// The operation and its object.
        op: String,
        /// What broke.
        detail: String,
    },
}

impl RouteError {
    /// Whether the same operation may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        match self {
            RouteError::Refused { source, .. } => source.is_retryable(),
            RouteError::NoAnswer { .. } => true,
            RouteError::Unavailable(_) | RouteError::Conflict { .. } => false,
        }
    }
}

/// Links and addresses of one network namespace.
#[async_trait]
pub trait Routes: Send + Sync {
    /// The interface of this name. There is no reading of all: a node has one per pod.
    async fn link(&self, name: &str) -> Result<Option<Link>, RouteError>;

    /// Every address of every interface.
    async fn addresses(&self) -> Result<Vec<LinkAddress>, RouteError>;

    /// Make sure that a dummy device of this name exists. It is left down: addresses of a device that
    /// is down are still the host's own, and it answers no ARP of its own.
    async fn ensure_dummy(&self, name: &str) -> Result<Link, RouteError>;

    /// Make sure that no device of this name exists; its addresses go with it.
    async fn remove_device(&self, name: &str) -> Result<(), RouteError>;

    /// Bring a device up or down; a success when it is so already.
    async fn set_up(&self, link: &Link, up: bool) -> Result<(), RouteError>;

    /// Change a device's addresses; each operation has its own outcome and is a success when there is
    /// nothing to do. The result is as long as `ops`.
    async fn change_addresses(&self, link: &Link, ops: &[AddressOp]) -> Vec<Result<(), RouteError>>;

    /// The address the kernel would use towards the outside of a family; `None` without a route.
    async fn default_source(&self, family: IpFamily) -> Result<Option<IpAddr>, RouteError>;
}
