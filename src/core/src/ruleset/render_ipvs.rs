//! A service port as IPVS objects: virtual and real servers, addresses of the dummy device, and the
//! elements of our tables. A pure function of the state and the node; what may be reached by whom was
//! decided before.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Protocol;
use super::chains::Class;
use super::ipvs::{RealServer, RealServerKey, Scheduler, ServiceFlags, VirtualServer, VirtualServerKey};
use super::model::{Backend, ServicePortState, Target};
use super::nft::{Element, ElementKey, ElementValue, Value};
use super::object::{Claim, ObjectKey, ObjectValue, Objects, SetId};
use crate::service::cidr::{self, Cidr};
use crate::service::frontends::FrontendKind;
use crate::service::types::TrafficPolicy;

/// What the node contributes to the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNetwork {
    /// Where node ports are served; neither loopback nor Service addresses.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Every address of the host that is not on our dummy device. A Service address among them is
    /// served but not taken from its device.
    pub host_addresses: BTreeSet<IpAddr>,
    /// What the interface of pods is called, where they are told by it; only traces look at it.
    pub pod_interface: String,
}

/// Every claim a service port makes in a family.
pub fn claims(state: &ServicePortState, node: &NodeNetwork) -> BTreeSet<Claim> {
    let protocol = state.spec.id.name.protocol;
    let mut all = BTreeSet::new();
    for (_, addr, port) in frontends(state, node) {
        all.insert(Claim::Frontend { addr, port, protocol });
    }
    let owned = state.spec.addresses().map(|(_, addr)| addr);
    all.extend(owned.filter(|addr| !node.host_addresses.contains(addr)).map(Claim::Address));
    let local = state.cluster.iter().chain(&state.local).filter(|backend| backend.local);
    all.extend(local.map(|backend| Claim::Hairpin(backend.addr.ip())));
    all
}

/// Every address and port a service port is reached at on this node.
pub fn frontends<'a>(
    state: &'a ServicePortState,
    node: &'a NodeNetwork,
) -> impl Iterator<Item = (FrontendKind, IpAddr, u16)> + 'a {
    let ipv6 = state.spec.cluster_ip.is_ipv6();
    let own = state.spec.addresses().map(|(kind, addr)| (kind, addr, state.spec.port));
    let nodes = state.spec.node_port.into_iter().flat_map(move |port| {
        let addrs = node.node_port_addresses.iter().filter(move |addr| addr.is_ipv6() == ipv6);
        addrs.map(move |addr| (FrontendKind::NodePort, *addr, port))
    });
    own.chain(nodes)
}

/// The objects of a claim, given the state that won it.
pub fn objects(claim: &Claim, state: &ServicePortState, node: &NodeNetwork, scheduler: Scheduler) -> Objects {
    let mut objects = shared_objects(claim, state, node);
    objects.extend(server_objects(claim, state, node, scheduler));
    if let Claim::Frontend { addr, port, protocol } = claim {
        let found = frontends(state, node).find(|(_, at, number)| at == addr && number == port);
        if let Some((kind, ..)) = found {
            add_class(&mut objects, (*addr, *port, *protocol), class(state, kind));
        }
    }
    objects
}

/// Of a claim's objects, virtual and real servers and the device's address.
pub(super) fn server_objects(
    claim: &Claim,
    state: &ServicePortState,
    node: &NodeNetwork,
    scheduler: Scheduler,
) -> Objects {
    let mut objects = Objects::new();
    match claim {
        Claim::Address(addr) => {
            objects.insert(ObjectKey::Address(*addr), ObjectValue::Address);
        }
        Claim::Frontend { addr, port, protocol } => {
            let found = frontends(state, node).find(|(_, at, number)| at == addr && number == port);
            if let Some((kind, ..)) = found {
                let key = VirtualServerKey::new(*addr, *port, *protocol);
                add_frontend(&mut objects, (key, kind), state, scheduler);
            }
        }
        _ => {}
    }
    objects
}

/// The elements that IPVS and nftables mode have in common: who may come, and who meets itself.
pub(super) fn shared_objects(claim: &Claim, state: &ServicePortState, node: &NodeNetwork) -> Objects {
    let mut objects = Objects::new();
    match claim {
        Claim::Address(addr) => {
            add_key(&mut objects, SetId::ServiceIps, *addr, ElementKey::of(&[Value::Addr(*addr)]));
        }
        Claim::Hairpin(addr) => {
            let key = ElementKey::of(&[Value::Addr(*addr), Value::Addr(*addr)]);
            add_key(&mut objects, SetId::Hairpin, *addr, key);
        }
        Claim::Frontend { addr, port, protocol } => {
            let found = frontends(state, node).find(|(_, at, number)| at == addr && number == port);
            let balancer = found.is_some_and(|(kind, ..)| kind == FrontendKind::LoadBalancer);
            if balancer && !state.spec.source_ranges.is_empty() {
                add_source_ranges(&mut objects, (*addr, *port, *protocol), state, node);
            }
        }
        _ => {}
    }
    objects
}

/// The class of a frontend.
pub fn class(state: &ServicePortState, kind: FrontendKind) -> Class {
    let local_policy = state.policy(kind) == TrafficPolicy::Local;
    match (kind, state.target(kind, false)) {
        (_, Target::Reject) => Class::Reject,
        (FrontendKind::ClusterIp, Target::Endpoints(_)) => Class::ClusterIp,
        (FrontendKind::ClusterIp, Target::Drop) => Class::Drop,
        (_, Target::Endpoints(_)) if local_policy => Class::ExternalLocal,
        (_, Target::Endpoints(_)) => Class::External,
        (_, Target::Drop) => Class::ExternalRemote,
    }
}

/// The real servers of a frontend. A virtual server cannot tell clients apart, so with external policy
/// Local everyone gets the endpoints of this node where it has some; where it has none, the chains let
/// only the node and its pods through, to all endpoints.
fn reals(state: &ServicePortState, kind: FrontendKind) -> &[Backend] {
    match state.target(kind, false) {
        Target::Endpoints(chosen) => chosen,
        Target::Reject | Target::Drop => match state.target(kind, true) {
            Target::Endpoints(chosen) => chosen,
            Target::Reject | Target::Drop => &[],
        },
    }
}

fn add_frontend(
    objects: &mut Objects,
    (key, kind): (VirtualServerKey, FrontendKind),
    state: &ServicePortState,
    scheduler: Scheduler,
) {
    let mut server = VirtualServer::new(&key, scheduler);
    if scheduler == Scheduler::Mh {
        // Maglev as kube-proxy sets it: hash the port too, and go on when the chosen server is away.
        server.flags = ServiceFlags { sched1: true, sched2: true, ..ServiceFlags::default() };
    }
    if let Some(seconds) = state.spec.affinity {
        server = server.with_affinity(seconds);
    }
    objects.insert(ObjectKey::Server(key), ObjectValue::Server(server));
    for backend in reals(state, kind) {
        let real = RealServerKey::new(backend.addr.ip(), backend.addr.port());
        objects.insert(ObjectKey::Real(key, real), ObjectValue::Real(RealServer::default()));
    }
}

pub(super) fn frontend_key((addr, port, protocol): (IpAddr, u16, Protocol)) -> [Value; 3] {
    [Value::Addr(addr), Value::Proto(protocol.number()), Value::Port(port)]
}

fn add_class(objects: &mut Objects, at: (IpAddr, u16, Protocol), class: Class) {
    let element = Element::fields(ElementKey::of(&frontend_key(at)), &[class.number()]);
    let key = ObjectKey::Element { set: SetId::Frontends, ipv6: at.0.is_ipv6(), key: element.key };
    objects.insert(key, ObjectValue::Element(element.value));
}

/// The admitted ranges, none within another (the kernel refuses overlaps), and the address itself where
/// a node that is admitted could come back to it from itself.
fn add_source_ranges(
    objects: &mut Objects,
    at: (IpAddr, u16, Protocol),
    state: &ServicePortState,
    node: &NodeNetwork,
) {
    let frontend = frontend_key(at);
    add_key(objects, SetId::Restricted, at.0, ElementKey::of(&frontend));
    let mut ranges: Vec<Cidr> = state.spec.source_ranges.clone();
    if node.node_port_addresses.iter().any(|addr| ranges.iter().any(|range| range.contains(*addr))) {
        ranges.push(Cidr::host(at.0));
    }
    for range in cidr::outermost(ranges) {
        let ends =
            [range.first(), range.last()].map(|end| [frontend.as_slice(), &[Value::Addr(end)]].concat());
        add_key(objects, SetId::Allowed, at.0, ElementKey::range(&ends[0], &ends[1]));
    }
}

fn add_key(objects: &mut Objects, set: SetId, addr: IpAddr, key: ElementKey) {
    let key = ObjectKey::Element { set, ipv6: addr.is_ipv6(), key };
    objects.insert(key, ObjectValue::Element(ElementValue::default()));
}
