//! A service port as nf_tables elements alone: a frontend is one element that says to which service port
//! it leads and how, an endpoint is one element found by its index, whatever the number of frontends.
//! Everything before the choice of an endpoint is shared with IPVS mode.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Protocol;
use super::chains;
use super::model::{Backend, ServicePortState, Target};
use super::nft::{Element, ElementKey, ElementValue, Value, Verdict};
use super::object::{Claim, ObjectKey, ObjectValue, Objects, SetId, Spread};
use super::render_ipvs::{self, NodeNetwork, frontend_key};
use crate::service::frontends::FrontendKind;
use crate::service::types::TrafficPolicy;

/// How the clients of a frontend are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spreading {
    /// The node and its pods; everybody where `outside` is none.
    inside: Option<Spread>,
    /// Clients from elsewhere.
    outside: Option<Spread>,
}

/// The claim to the endpoints of a service port.
pub fn backends_claim(state: &ServicePortState) -> Claim {
    let spec = &state.spec;
    Claim::Backends { cluster_ip: spec.cluster_ip, port: spec.port, protocol: spec.id.name.protocol }
}

/// Every claim a service port makes: its frontends, its endpoints, and the chains they are spread by.
/// An address that is not the cluster's own may be a host's: only frontends are claimed there.
pub fn claims(state: &ServicePortState, node: &NodeNetwork) -> BTreeSet<Claim> {
    let mut all = render_ipvs::claims(state, node);
    all.retain(|claim| !matches!(claim, Claim::Address(addr) if *addr != state.spec.cluster_ip));
    all.insert(backends_claim(state));
    for (kind, ..) in render_ipvs::frontends(state, node) {
        let Spreading { inside, outside } = spreading(state, kind);
        all.extend([inside, outside].into_iter().flatten().map(Claim::Spread));
    }
    all
}

/// The objects of a claim, given the state that won it.
pub fn objects(claim: &Claim, state: &ServicePortState, node: &NodeNetwork) -> Objects {
    let mut objects = render_ipvs::shared_objects(claim, state, node);
    match claim {
        Claim::Frontend { addr, port, protocol } => {
            let found =
                render_ipvs::frontends(state, node).find(|(_, at, number)| at == addr && number == port);
            if let Some((kind, ..)) = found {
                add_frontend(&mut objects, (*addr, *port, *protocol), state, kind);
            }
        }
        Claim::Backends { .. } => {
            add_backends(&mut objects, state, &state.cluster, [SetId::Endpoints, SetId::Members]);
            add_backends(&mut objects, state, &state.local, [SetId::LocalEndpoints, SetId::LocalMembers]);
        }
        _ => {}
    }
    objects
}

/// With external policy Local clients from outside get the endpoints of this node and all others get
/// every endpoint; rules can tell them apart, where a virtual server cannot.
fn spreading(state: &ServicePortState, kind: FrontendKind) -> Spreading {
    let over = |local: bool, target: Target<'_>| match target {
        Target::Endpoints(backends) => Some(Spread {
            ipv6: state.spec.cluster_ip.is_ipv6(),
            local,
            sticky: state.spec.affinity,
            count: u32::try_from(backends.len()).unwrap_or(u32::MAX),
        }),
        Target::Reject | Target::Drop => None,
    };
    let local = state.policy(kind) == TrafficPolicy::Local;
    if !kind.is_external() {
        return Spreading { inside: over(local, state.target(kind, false)), outside: None };
    }
    let outside = if local { over(true, state.target(kind, false)) } else { None };
    Spreading { inside: over(false, state.target(kind, true)), outside }
}

/// The objects of a chain that spreads.
pub fn spread_objects(spread: &Spread) -> Objects {
    let mut objects = Objects::new();
    objects.insert(ObjectKey::Spread(*spread), ObjectValue::Spread(chains::spread_rules(spread)));
    let element = Element::verdict(ElementKey::of(&spread.key()), Verdict::Goto(spread.chain()));
    add(&mut objects, SetId::Spreads, spread.ipv6, element);
    objects
}

fn add_frontend(
    objects: &mut Objects,
    at: (IpAddr, u16, Protocol),
    state: &ServicePortState,
    kind: FrontendKind,
) {
    let Spreading { inside, outside } = spreading(state, kind);
    let class = render_ipvs::class(state, kind).number();
    let [inside, outside] =
        [inside, outside].map(|spread| spread.map_or(Spread::NONE, |spread| spread.key()));
    let data = [service_port(state).as_slice(), &[class], &inside, &outside].concat();
    add(objects, SetId::Services, at.0.is_ipv6(), Element::fields(ElementKey::of(&frontend_key(at)), &data));
}

/// How a service port is named in the maps.
fn service_port(state: &ServicePortState) -> [Value; 3] {
    frontend_key((state.spec.cluster_ip, state.spec.port, state.spec.id.name.protocol))
}

fn add_backends(objects: &mut Objects, state: &ServicePortState, backends: &[Backend], sets: [SetId; 2]) {
    let [endpoints, members] = sets;
    let ipv6 = state.spec.cluster_ip.is_ipv6();
    let port = service_port(state);
    for (index, backend) in (0..u32::MAX).zip(backends) {
        let to = [Value::Addr(backend.addr.ip()), Value::Port(backend.addr.port())];
        let key = ElementKey::of(&[port[0], port[1], port[2], Value::Index(index)]);
        add(objects, endpoints, ipv6, Element::fields(key, &to));
        if state.spec.affinity.is_some() {
            let key = ElementKey::of(&[port[0], port[1], port[2], to[0], to[1]]);
            add(objects, members, ipv6, Element { key, value: ElementValue::default() });
        }
    }
}

fn add(objects: &mut Objects, set: SetId, ipv6: bool, element: Element) {
    let key = ObjectKey::Element { set, ipv6, key: element.key };
    objects.insert(key, ObjectValue::Element(element.value));
}
