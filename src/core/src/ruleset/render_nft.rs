//! A service port as nf_tables elements alone: the two-map layout, where a frontend is one element that
//! leads to the chain for its number of endpoints, and an endpoint is one element found by its index.
//! Everything before the choice of an endpoint is shared with IPVS mode.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Protocol;
use super::chains;
use super::model::{Backend, ServicePortState, Target};
use super::nft::{Element, ElementKey, Value, Verdict};
use super::object::{Claim, ObjectKey, ObjectValue, Objects, SetId, Spread};
use super::render_ipvs::{self, NodeNetwork};
use crate::service::frontends::FrontendKind;
use crate::service::types::TrafficPolicy;

/// How a frontend's packets are spread.
#[derive(Clone, Copy, Debug)]
struct Spreading<'a> {
    /// The map that leads to the chain.
    map: SetId,
    spread: Spread,
    backends: &'a [Backend],
}

/// Every claim a service port makes: those of IPVS mode, and the chains it is spread by.
pub fn claims(state: &ServicePortState, node: &NodeNetwork) -> BTreeSet<Claim> {
    let mut all = render_ipvs::claims(state, node);
    for (kind, ..) in render_ipvs::frontends(state, node) {
        all.extend(spreadings(state, kind).into_iter().map(|spreading| Claim::Spread(spreading.spread)));
    }
    all
}

/// The objects of a claim, given the state that won it.
pub fn objects(claim: &Claim, state: &ServicePortState, node: &NodeNetwork) -> Objects {
    let mut objects = render_ipvs::shared_objects(claim, state, node);
    match claim {
        Claim::Spread(spread) => {
            objects.insert(ObjectKey::Spread(*spread), ObjectValue::Spread(chains::spread_rules(spread)));
        }
        Claim::Frontend { addr, port, protocol } => {
            let found =
                render_ipvs::frontends(state, node).find(|(_, at, number)| at == addr && number == port);
            if let Some((kind, ..)) = found {
                for spreading in spreadings(state, kind) {
                    add_spreading(&mut objects, (*addr, *port, *protocol), spreading);
                }
            }
        }
        Claim::Address(_) | Claim::Hairpin(_) => {}
    }
    objects
}

/// With external policy Local clients from outside get the endpoints of this node and all others get
/// every endpoint; rules can tell them apart, where a virtual server cannot.
fn spreadings(state: &ServicePortState, kind: FrontendKind) -> Vec<Spreading<'_>> {
    let mut found = Vec::new();
    let mut add = |map: SetId, local: bool, target: Target<'_>| {
        let Target::Endpoints(_) = target else { return };
        let backends = if local { &state.local } else { &state.cluster };
        let spread = Spread {
            ipv6: state.spec.cluster_ip.is_ipv6(),
            local,
            sticky: state.spec.affinity.is_some(),
            count: u32::try_from(backends.len()).unwrap_or(u32::MAX),
        };
        found.push(Spreading { map, spread, backends });
    };
    let local = state.policy(kind) == TrafficPolicy::Local;
    if kind.is_external() {
        add(SetId::Services, false, state.target(kind, true));
        if local {
            add(SetId::OutsideServices, true, state.target(kind, false));
        }
    } else {
        add(SetId::Services, local, state.target(kind, false));
    }
    found
}

fn add_spreading(objects: &mut Objects, at: (IpAddr, u16, Protocol), spreading: Spreading<'_>) {
    let ipv6 = spreading.spread.ipv6;
    let frontend = [Value::Addr(at.0), Value::Proto(at.2.number()), Value::Port(at.1)];
    let mut add = |set: SetId, element: Element| {
        let key = ObjectKey::Element { set, ipv6, key: element.key };
        objects.insert(key, ObjectValue::Element(element.value));
    };
    let verdict = Verdict::Goto(spreading.spread.chain());
    add(spreading.map, Element::verdict(ElementKey::of(&frontend), verdict));
    let set = if spreading.spread.local { SetId::LocalEndpoints } else { SetId::Endpoints };
    for (index, backend) in (0..spreading.spread.count).zip(spreading.backends) {
        let key = ElementKey::of(&[frontend[0], frontend[1], frontend[2], Value::Index(index)]);
        let to = [Value::Addr(backend.addr.ip()), Value::Port(backend.addr.port())];
        add(set, Element::fields(key, &to));
    }
}
