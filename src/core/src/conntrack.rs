//! Which UDP flows the connection tracker must forget: a flow keeps its endpoint for as long as packets
//! come, so one whose endpoint is gone sends into the void until somebody deletes it. TCP notices by
//! itself. Decided against the wanted pairs of frontend and endpoints, also after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ruleset::Protocol;
use crate::ruleset::model::ServicePortState;
use crate::ruleset::render_ipvs::{self, NodeNetwork};

/// A tracked UDP flow, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The client.
    pub src: SocketAddr,
    /// Where it sends to.
    pub dst: SocketAddr,
    /// Who answers; equal to `dst` where nothing was translated.
    pub answers: SocketAddr,
}

impl Flow {
    fn is_translated(&self) -> bool {
        self.answers != self.dst
    }
}

/// Where UDP clients may be sent, by frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpFrontends {
    wanted: BTreeMap<SocketAddr, BTreeSet<SocketAddr>>,
    /// Were ours, and are nobody's now.
    retired: BTreeSet<SocketAddr>,
}

impl UdpFrontends {
    /// A UDP service port as it is now; others are ignored.
    pub fn serve(&mut self, state: &ServicePortState, node: &NodeNetwork) {
        if state.spec.id.name.protocol != Protocol::Udp {
            return;
        }
        let endpoints: BTreeSet<SocketAddr> =
            state.reachable().into_iter().map(|backend| backend.addr).collect();
        for (_, addr, port) in render_ipvs::frontends(state, node) {
            let frontend = SocketAddr::new(addr, port);
            self.retired.remove(&frontend);
            self.wanted.entry(frontend).or_default().extend(&endpoints);
        }
    }

    /// A UDP frontend that was served before; it counts as gone unless `serve` names it.
    pub fn was_served(&mut self, frontend: SocketAddr) {
        if !self.wanted.contains_key(&frontend) {
            self.retired.insert(frontend);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.retired.is_empty()
    }

    /// Whether the flow must be forgotten.
    ///
    /// - Its frontend has endpoints and none of them answers it. That includes flows of a time without
    ///   endpoints, which were never translated and would stay so.
    /// - Its frontend has no endpoint, or is gone, and the flow still goes to an old one.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        match self.wanted.get(&flow.dst) {
            Some(endpoints) if !endpoints.is_empty() => !endpoints.contains(&flow.answers),
            Some(_) => flow.is_translated(),
            None => self.retired.contains(&flow.dst) && flow.is_translated(),
        }
    }
}

/// How a tracked flow to a Service's address stands, whatever its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowStanding {
    /// It goes to an endpoint that may answer.
    Good,
    /// It goes to an endpoint that is gone.
    EndpointGone,
    /// It was never sent to an endpoint, and now there are some.
    NeverTranslated,
}

impl FlowStanding {
    /// How a flow to a frontend with these endpoints stands.
    pub fn of(flow: &Flow, endpoints: &[SocketAddr]) -> FlowStanding {
        match (flow.is_translated(), endpoints.contains(&flow.answers)) {
            (true, false) => FlowStanding::EndpointGone,
            (false, _) if !endpoints.is_empty() => FlowStanding::NeverTranslated,
            _ => FlowStanding::Good,
        }
    }

    pub fn is_stale(self) -> bool {
        self != FlowStanding::Good
    }

    /// In words, as `conntrack` prints it.
    pub fn reason(self) -> &'static str {
        match self {
            FlowStanding::Good => "good",
            FlowStanding::EndpointGone => "endpoint gone",
            FlowStanding::NeverTranslated => "untranslated",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ruleset::world::{World, network};

    fn flow(dst: &str, answers: &str) -> Flow {
        let addr = |text: &str| text.parse().unwrap();
        Flow { src: addr("10.244.9.9:4000"), dst: addr(dst), answers: addr(answers) }
    }

    /// UDP frontends of Service `dns` with these endpoints, after one at 10.96.0.99 was removed.
    fn frontends(endpoints: &[&str]) -> UdpFrontends {
        let mut world = World::new();
        let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [
            {"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30053}, {"name": "p", "port": 53, "nodePort": 30053}]});
        world.service("dns", spec, &[]).endpoints("dns", endpoints);
        let mut frontends = UdpFrontends::default();
        frontends.was_served("10.96.0.99:53".parse().unwrap());
        frontends.was_served("10.96.0.10:53".parse().unwrap());
        world.table.ports().for_each(|state| frontends.serve(state, &network()));
        frontends
    }

    #[test]
    fn a_flow_stands_by_who_answers_it() {
        let endpoints = ["10.244.1.1:8053".parse().unwrap()];
        let cases = [
            (flow("10.96.0.10:53", "10.244.1.1:8053"), &endpoints[..], FlowStanding::Good),
            (flow("10.96.0.10:53", "10.244.3.1:8053"), &endpoints, FlowStanding::EndpointGone),
            (flow("10.96.0.10:53", "10.244.3.1:8053"), &[], FlowStanding::EndpointGone),
            (flow("10.96.0.10:53", "10.96.0.10:53"), &endpoints, FlowStanding::NeverTranslated),
            (flow("10.96.0.10:53", "10.96.0.10:53"), &[], FlowStanding::Good),
        ];
        for (flow, endpoints, want) in cases {
            assert_eq!(FlowStanding::of(&flow, endpoints), want, "{flow:?} {endpoints:?}");
        }
    }

    #[test]
    fn a_flow_goes_when_its_endpoint_does() {
        let two = &["10.244.1.1", "10.244.2.1 n2"][..];
        let table: &[(&str, &[&str], Flow, bool)] = &[
            ("endpoint is there", two, flow("10.96.0.10:53", "10.244.1.1:8053"), false),
            ("N to M", two, flow("10.96.0.10:53", "10.244.3.1:8053"), true),
            ("other port of the same pod", two, flow("10.96.0.10:53", "10.244.1.1:8080"), true),
            ("0 to N: never translated", two, flow("10.96.0.10:53", "10.96.0.10:53"), true),
            ("N to 0", &[], flow("10.96.0.10:53", "10.244.1.1:8053"), true),
            ("0 endpoints, not translated", &[], flow("10.96.0.10:53", "10.96.0.10:53"), false),
            ("node port", two, flow("192.168.0.1:30053", "10.244.3.1:8053"), true),
            ("node port, endpoint is there", two, flow("192.168.0.1:30053", "10.244.2.1:8053"), false),
            ("deleted Service", two, flow("10.96.0.99:53", "10.244.1.1:8053"), true),
            ("deleted Service, not translated", two, flow("10.96.0.99:53", "10.96.0.99:53"), false),
            ("not ours", two, flow("8.8.8.8:53", "8.8.8.8:53"), false),
            ("somebody else's translation", two, flow("192.168.0.1:5353", "172.17.0.2:53"), false),
        ];
        for (what, endpoints, flow, want) in table {
            assert_eq!(frontends(endpoints).is_stale(flow), *want, "{what}");
        }
    }
}
