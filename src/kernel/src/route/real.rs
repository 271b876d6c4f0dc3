//! `Routes` on rtnetlink. One connection per value, driven by a task that ends with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroI32;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use nix::errno::Errno;
use rtnetlink::{Handle, LinkDummy, LinkUnspec, LinkVeth};

use super::{AddressOp, IpFamily, Link, LinkAddress, RouteError, Routes};
use crate::netlink::Refusal;

/// Requests in flight at once when addresses change: enough to hide the task switches, few enough for
/// the socket's receive buffer.
const IN_FLIGHT: usize = 32;

/// Documentation addresses (RFC 5737, RFC 3849): certainly not on this host's own networks. Only a
/// route is looked up; no packet is sent.
const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Links and addresses of the network namespace it was opened in.
#[derive(Debug, Clone)]
pub struct RealRoutes {
    handle: Handle,
    veth_instead_of_dummy: bool,
    _connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RealRoutes {
    /// Open rtnetlink in the calling thread's network namespace. Needs a tokio runtime with I/O.
    pub fn open() -> Result<Self, RouteError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|err| RouteError::Unavailable(Errno::from_raw(err.raw_os_error().unwrap_or(0))))?;
        let connection = Arc::new(Connection(tokio::spawn(connection)));
        Ok(RealRoutes { handle, veth_instead_of_dummy: false, _connection: connection })
    }

    /// Where the kernel has no dummy device, make one end of a veth pair in its place. For test
    /// machines; an address on it behaves the same.
    pub fn with_veth_fallback(mut self) -> Self {
        self.veth_instead_of_dummy = true;
        self
    }

    async fn add_device(&self, name: &str) -> Result<(), RouteError> {
        let op = || format!("device {name}: add dummy");
        let outcome = self.handle.link().add(LinkDummy::new(name).build()).execute().await;
        match outcome.map_err(|err| failure(op(), err)) {
            Err(RouteError::Refused { source, .. })
                if source.errno == Errno::EOPNOTSUPP && self.veth_instead_of_dummy =>
            {
                let peer: String = format!("p-{name}").chars().take(15).collect();
                let outcome = self.handle.link().add(LinkVeth::new(name, &peer).build()).execute().await;
                outcome.map_err(|err| failure(format!("device {name}: add veth"), err))
            }
            outcome => outcome,
        }
    }

    async fn change_address(&self, link: &Link, change: AddressOp) -> Result<(), RouteError> {
        let addresses = self.handle.address();
        let (outcome, done_already) = match change {
            AddressOp::Ensure(addr) => {
                let message = address_message(link.index, addr);
                let mut request = addresses.add(link.index, addr, message.header.prefix_len);
                *request.message_mut() = message;
                (request.execute().await, Errno::EEXIST)
            }
            AddressOp::Remove(addr) => {
                let mut message = address_message(link.index, addr);
                message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Flags(_)));
                (addresses.del(message).execute().await, Errno::EADDRNOTAVAIL)
            }
        };
        match outcome.map_err(|err| failure(change.describe(link), err)) {
            Err(RouteError::Refused { source, .. }) if source.errno == done_already => Ok(()),
            outcome => outcome,
        }
    }
}

#[async_trait]
impl Routes for RealRoutes {
    async fn link(&self, name: &str) -> Result<Option<Link>, RouteError> {
        let op = || format!("device {name}: look up");
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(message) => Ok(message.as_ref().map(read_link)),
            Err(err) => match failure(op(), err) {
                RouteError::Refused { source, .. } if source.errno == Errno::ENODEV => Ok(None),
                err => Err(err),
            },
        }
    }

    async fn addresses(&self) -> Result<Vec<LinkAddress>, RouteError> {
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|err| failure("list addresses".to_owned(), err))?;
        Ok(messages.iter().filter_map(read_address).collect())
    }

    async fn ensure_dummy(&self, name: &str) -> Result<Link, RouteError> {
        if let Some(link) = self.link(name).await? {
            let usable = link.kind == "dummy" || (self.veth_instead_of_dummy && link.kind == "veth");
            return if usable {
                Ok(link)
            } else {
                Err(RouteError::Conflict { name: name.to_owned(), found: link.kind, wanted: "dummy" })
            };
        }
        self.add_device(name).await?;
        self.link(name).await?.ok_or_else(|| RouteError::NoAnswer {
            op: format!("device {name}: add dummy"),
            detail: "it was gone again at once".to_owned(),
        })
    }

    async fn remove_device(&self, name: &str) -> Result<(), RouteError> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        let outcome = self.handle.link().del(link.index).execute().await;
        match outcome.map_err(|err| failure(format!("device {name}: remove"), err)) {
            Err(RouteError::Refused { source, .. }) if source.errno == Errno::ENODEV => Ok(()),
            outcome => outcome,
        }
    }

    async fn set_up(&self, link: &Link, up: bool) -> Result<(), RouteError> {
        let message = LinkUnspec::new_with_index(link.index);
        let message = if up { message.up() } else { message.down() };
        let outcome = self.handle.link().set(message.build()).execute().await;
        outcome.map_err(|err| {
            failure(format!("device {}: set {}", link.name, if up { "up" } else { "down" }), err)
        })
    }

    async fn change_addresses(&self, link: &Link, ops: &[AddressOp]) -> Vec<Result<(), RouteError>> {
        stream::iter(ops.iter().copied())
            .map(|op| self.change_address(link, op))
            .buffered(IN_FLIGHT)
            .collect()
            .await
    }

    async fn default_source(&self, family: IpFamily) -> Result<Option<IpAddr>, RouteError> {
        let op = || "look up the default route".to_owned();
        let mut message = RouteMessage::default();
        let (address_family, length, outside) = match family {
            IpFamily::V4 => (AddressFamily::Inet, 32, RouteAddress::Inet(OUTSIDE_V4)),
            IpFamily::V6 => (AddressFamily::Inet6, 128, RouteAddress::Inet6(OUTSIDE_V6)),
        };
        message.header.address_family = address_family;
        message.header.destination_prefix_length = length;
        message.attributes.push(RouteAttribute::Destination(outside));
        let mut routes = Box::pin(self.handle.route().get(message).execute());
        match routes.try_next().await {
            Ok(route) => Ok(route.and_then(|route| preferred_source(&route))),
            Err(err) => match failure(op(), err) {
                RouteError::Refused { source, .. }
                    if matches!(source.errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH) =>
                {
                    Ok(None)
                }
                err => Err(err),
            },
        }
    }
}

fn preferred_source(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(addr)) => Some(IpAddr::V4(*addr)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        _ => None,
    })
}

fn address_message(index: u32, addr: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    (message.header.family, message.header.prefix_len) = match addr {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.attributes.push(AddressAttribute::Local(addr));
    message.attributes.push(AddressAttribute::Address(addr));
    if addr.is_ipv6() {
        // A Service address is shared by all nodes: duplicate detection would make it unusable.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                if let Some(kind) = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                }) {
                    link.kind = kind;
                }
            }
            _ => {}
        }
    }
    link
}

pub(super) fn read_address(message: &AddressMessage) -> Option<LinkAddress> {
    let mut addr = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link `Address` is the other end's; `Local` is always ours.
            AddressAttribute::Local(local) => addr = Some(*local),
            AddressAttribute::Address(address) if addr.is_none() => addr = Some(*address),
            _ => {}
        }
    }
    addr.map(|addr| LinkAddress {
        link: message.header.index,
        addr,
        prefix: message.header.prefix_len,
        link_local: message.header.scope == AddressScope::Link,
    })
}

fn failure(op: String, err: rtnetlink::Error) -> RouteError {
    match err {
        rtnetlink::Error::NetlinkError(message) => {
            let errno = Errno::from_raw(message.code.map_or(0, NonZeroI32::get).wrapping_neg());
            RouteError::Refused { op, source: Refusal::new(errno) }
        }
        other => RouteError::NoAnswer { op, detail: other.to_string() },
    }
}
