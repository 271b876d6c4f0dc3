//! What changes about addresses and default routes, told by the kernel as it happens (rtnetlink
//! multicast groups). Only that something changed: what there is now is read by `Routes`.

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::SocketAddr;

use super::RouteError;

/// Something that may concern the node's own addresses. Every pod's device brings an IPv6 address that only its own
/// link can use: those are nobody's to reach the node by and not told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressEvent {
    /// An address came or went on this device; without a name where the device is gone.
    Device(Option<String>),
    /// A default route came or went.
    DefaultRoute,
}

/// Tells of changes until the socket breaks.
#[async_trait]
pub trait AddressEvents: Send {
    /// The next event; `None` when some may have been lost: read everything, then open anew.
    async fn next(&mut self) -> Option<AddressEvent>;
}

/// The events of the network namespace it was opened in.
pub struct RealAddressEvents {
    messages: BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    connection: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for RealAddressEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RealAddressEvents").finish_non_exhaustive()
    }
}

impl Drop for RealAddressEvents {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl RealAddressEvents {
    /// Listen in the calling thread's network namespace. Needs a tokio runtime with I/O.
    pub fn open() -> Result<Self, RouteError> {
        let groups = [
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|err| RouteError::Unavailable(Errno::from_raw(err.raw_os_error().unwrap_or(0))))?;
        Ok(RealAddressEvents { messages: messages.boxed(), connection: tokio::spawn(connection) })
    }
}

fn event(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<AddressEvent> {
    let NetlinkPayload::InnerMessage(message) = &message.payload else { return None };
    match message {
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            if super::real::read_address(address)
                .is_some_and(|found| found.link_local && found.addr.is_ipv6())
            {
                return None;
            }
            let name = if_indextoname(address.header.index).ok();
            Some(AddressEvent::Device(name.and_then(|name| name.into_string().ok())))
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            (route.header.destination_prefix_length == 0).then_some(AddressEvent::DefaultRoute)
        }
        _ => None,
    }
}

#[async_trait]
impl AddressEvents for RealAddressEvents {
    async fn next(&mut self) -> Option<AddressEvent> {
        loop {
            // An overrun or any other error ends the stream.
            let (message, _) = self.messages.next().await?;
            if let Some(event) = event(&message) {
                return Some(event);
            }
        }
    }
}
