//! Why a packet to an address ends where it does: the Service behind it, every endpoint with the reason
//! for its part, what the programmed rules do, and what to do next. A value for `svc explain`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ruleset::Protocol;
use crate::ruleset::chains;
use crate::ruleset::desired::{BackEnd, Desired};
use crate::ruleset::diff;
use crate::ruleset::ipvs::{RealServerKey, VirtualServerKey};
use crate::ruleset::model::{ServicePortState, Target};
use crate::ruleset::object::{Claim, ObjectKey, ObjectValue};
use crate::ruleset::render_ipvs;
use crate::ruleset::trace::{self, Delivery, Fate, Origin, Packet, Rules};
use crate::service::cidr::Cidr;
use crate::service::eligibility::{self, Standing};
use crate::service::frontends::FrontendKind;
use crate::service::table::ServiceTable;
use crate::service::types::TrafficPolicy;

/// The question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    pub dst: SocketAddr,
    pub protocol: Protocol,
    pub origin: Origin,
    /// The client's address.
    pub src: IpAddr,
}

/// What the answer is made from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub table: &'a ServiceTable,
    pub desired: &'a Desired,
    /// The rules in force; `None` where the kernel cannot serve Services.
    pub rules: Option<Rules<'a>>,
    /// Why it cannot, with the command that mends it.
    pub unavailable: &'a str,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub dst: SocketAddr,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    pub from: Origin,
    pub src: IpAddr,
    /// The Service port that is reached there.
    pub matched: Option<Matched>,
    pub candidates: Vec<Candidate>,
    /// What the rules in force do; without rules, what they would do.
    pub fate: Fate,
    /// Kernel changes for this frontend that are still due, as operations in words.
    pub pending: Vec<String>,
    pub sentence: String,
    pub next_step: Option<String>,
}

/// The Service port behind an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matched {
    /// `namespace/name`.
    pub service: String,
    pub port: String,
    pub kind: FrontendKind,
    pub policy: TrafficPolicy,
    pub affinity_seconds: Option<u32>,
}

/// An endpoint and its part in this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub endpoint: SocketAddr,
    /// `namespace/name`.
    pub pod: Option<String>,
    pub node: Option<String>,
    pub used: bool,
    pub standing: Standing,
    pub reason: String,
    /// Its weight in the kernel: 0 drains, `None` is not there.
    pub kernel_weight: Option<u32>,
}

impl Explanation {
    /// Nobody can answer, and why.
    pub fn unknown(query: &Query, why: &str) -> Explanation {
        Explanation {
            dst: query.dst,
            protocol: query.protocol.to_string(),
            from: query.origin,
            src: query.src,
            matched: None,
            candidates: Vec::new(),
            fate: Fate::Forwarded,
            pending: Vec::new(),
            sentence: format!("{}/{}: not known, {why}", query.dst, query.protocol),
            next_step: None,
        }
    }
}

/// Answer the question.
pub fn explain(facts: Facts<'_>, query: &Query) -> Explanation {
    let found = find(facts, query);
    let candidates =
        found.as_ref().map(|(state, kind)| candidates(facts, query, state, *kind)).unwrap_or_default();
    let fate = fate(facts, query, found.as_ref());
    let pending = pending(facts, query);
    let matched = found.as_ref().map(|(state, kind)| Matched {
        service: state.spec.id.name.service.to_string(),
        port: state.spec.id.name.port.to_string(),
        kind: *kind,
        policy: state.policy(*kind),
        affinity_seconds: state.spec.affinity,
    });
    let mut answer = Explanation {
        dst: query.dst,
        protocol: query.protocol.to_string(),
        from: query.origin,
        src: query.src,
        matched,
        candidates,
        fate,
        pending,
        sentence: String::new(),
        next_step: None,
    };
    answer.sentence = sentence(facts, &answer);
    answer.next_step = next_step(facts, &answer);
    answer
}

fn find<'a>(facts: Facts<'a>, query: &Query) -> Option<(&'a Arc<ServicePortState>, FrontendKind)> {
    let (addr, port) = (query.dst.ip(), query.dst.port());
    if let Some(state) = on_loopback(facts, query) {
        return Some((state, FrontendKind::NodePort));
    }
    let state = facts.desired.holder(&Claim::Frontend { addr, port, protocol: query.protocol })?;
    let mut all = render_ipvs::frontends(state, facts.desired.node());
    all.find(|(_, at, number)| *at == addr && *number == port).map(|(kind, ..)| (state, kind))
}

/// The Service whose node port the node asks for on its own loopback: iptables mode alone serves that, by
/// IPv4 alone.
fn on_loopback<'a>(facts: Facts<'a>, query: &Query) -> Option<&'a Arc<ServicePortState>> {
    let (addr, port) = (query.dst.ip(), query.dst.port());
    let served = query.origin == Origin::Node
        && matches!(facts.desired.back_end(), BackEnd::Iptables)
        && facts.desired.iptables().serves_loopback(addr);
    let claim = Claim::NodePort { ipv6: false, protocol: query.protocol, port };
    facts.desired.holder(&claim).filter(|_| served)
}

/// The policy as this client meets it: with external policy Local the node and its pods get all
/// endpoints. A virtual server cannot tell clients apart, so in IPVS mode only where this node has none.
fn effective_policy(
    facts: Facts<'_>,
    state: &ServicePortState,
    kind: FrontendKind,
    query: &Query,
) -> TrafficPolicy {
    let inside = kind.is_external() && query.origin != Origin::Outside;
    let one_list = facts.desired.back_end().is_ipvs();
    match state.policy(kind) {
        TrafficPolicy::Local if inside && (!one_list || state.local.is_empty()) => TrafficPolicy::Cluster,
        policy => policy,
    }
}

fn candidates(
    facts: Facts<'_>,
    query: &Query,
    state: &ServicePortState,
    kind: FrontendKind,
) -> Vec<Candidate> {
    let policy = effective_policy(facts, state, kind, query);
    let (endpoints, decision) = facts.table.candidates(&state.spec);
    let server = VirtualServerKey::new(query.dst.ip(), query.dst.port(), query.protocol);
    let weight = |addr: SocketAddr| {
        let real = ObjectKey::Real(server, RealServerKey::new(addr.ip(), addr.port()));
        match &*facts.rules?.applied.get(&real)? {
            ObjectValue::Real(settings) => Some(settings.weight),
            _ => None,
        }
    };
    let candidate = |(index, endpoint): (usize, &crate::service::backends::Endpoint<'_>)| {
        let standing = eligibility::standing(index, &endpoints, &decision, policy);
        Candidate {
            endpoint: endpoint.addr,
            pod: endpoint.pod.map(str::to_owned),
            node: endpoint.node.as_deref().map(str::to_owned),
            used: standing.is_used(),
            standing,
            reason: standing.reason().to_owned(),
            kernel_weight: weight(endpoint.addr),
        }
    };
    endpoints.iter().enumerate().map(candidate).collect()
}

fn fate(facts: Facts<'_>, query: &Query, found: Option<&(&Arc<ServicePortState>, FrontendKind)>) -> Fate {
    let packet = Packet { origin: query.origin, src: query.src, dst: query.dst, protocol: query.protocol };
    let traced = facts.rules.map(|rules| trace::packet(facts.desired.back_end(), rules, &packet));
    if let Some(Ok(fate)) = traced {
        return fate;
    }
    // Without rules: what the decision alone says.
    let Some((state, kind)) = found else { return Fate::Forwarded };
    match state.target(*kind, query.origin != Origin::Outside) {
        Target::Reject => Fate::Rejected,
        Target::Drop => Fate::Dropped,
        Target::Endpoints(all) => {
            Fate::Endpoints(all.iter().map(|to| Delivery { to: to.addr, masqueraded: false }).collect())
        }
    }
}

fn pending(facts: Facts<'_>, query: &Query) -> Vec<String> {
    let Some(rules) = facts.rules else { return Vec::new() };
    let addr = query.dst.ip();
    let claims =
        [Claim::Frontend { addr, port: query.dst.port(), protocol: query.protocol }, Claim::Address(addr)];
    let ops = diff::plan(facts.desired, rules.applied, claims, &|_, _| false);
    ops.iter().map(ToString::to_string).collect()
}

fn from_words(from: Origin) -> &'static str {
    match from {
        Origin::Pod => "a pod",
        Origin::Node => "this node",
        Origin::Outside => "outside the cluster",
    }
}

fn sentence(facts: Facts<'_>, answer: &Explanation) -> String {
    let at = format!("{}/{}", answer.dst, answer.protocol);
    let Some(matched) = &answer.matched else { return unmatched_sentence(facts, answer, &at) };
    let port = if matched.port.is_empty() { String::new() } else { format!("port {} of ", matched.port) };
    let head =
        format!("{at} is {port}Service {} ({}, policy {:?})", matched.service, matched.kind, matched.policy);
    let from = from_words(answer.from);
    let used = answer.candidates.iter().filter(|candidate| candidate.used).count();
    let known = answer.candidates.len();
    match &answer.fate {
        _ if facts.rules.is_none() => format!("{head}, but nothing serves it: {}", facts.unavailable),
        Fate::Endpoints(to) => {
            let rewritten = to.iter().filter(|delivery| delivery.masqueraded).count();
            let source = match (rewritten, rewritten == to.len()) {
                (0, _) => "keeping the client's address",
                (_, true) => "with the source rewritten to the node's",
                (_, false) => "with the source rewritten only towards the client itself",
            };
            let endpoints = if to.len() == 1 { "endpoint" } else { "endpoints" };
            format!("{head}: a connection from {from} goes to one of {} {endpoints}, {source}", to.len())
        }
        Fate::Rejected if known == 0 => format!("{head}: refused, it has no endpoints at all"),
        Fate::Rejected if used > 0 => {
            format!("{head}: refused, its {used} usable endpoints are not in the kernel yet")
        }
        Fate::Rejected => format!("{head}: refused, none of its {known} endpoints is usable"),
        Fate::Dropped
            if used > 0
                && let Some((endpoint, range)) = endpoint_in_range(facts, answer) =>
        {
            format!("{head}: dropped, its endpoint {endpoint} is in {range}, a range of Services' addresses")
        }
        Fate::Dropped if used > 0 => {
            format!("{head}: dropped, {} is not in loadBalancerSourceRanges", answer.src)
        }
        Fate::Dropped => format!("{head}: dropped, the policy is Local and this node has no usable endpoint"),
        Fate::Host => format!("{head}, but no rule for it is in the kernel: the host itself answers"),
        Fate::Forwarded => format!("{head}, but its address is not on this node: the packet is routed on"),
    }
}

fn unmatched_sentence(facts: Facts<'_>, answer: &Explanation, at: &str) -> String {
    let addr = answer.dst.ip();
    let owners = facts.table.ports().filter(|state| state.spec.addresses().any(|(_, own)| own == addr));
    let ports: Vec<String> =
        owners.map(|state| format!("{} ({})", state.spec.port, state.spec.id.name)).collect();
    if !ports.is_empty() {
        let what = match answer.fate {
            Fate::Rejected => "refused",
            Fate::Dropped => "dropped",
            Fate::Host => "left to the host's own processes",
            Fate::Forwarded | Fate::Endpoints(_) => "routed on",
        };
        return format!("{at} is {what}: no Service port is there; {addr} serves {}", ports.join(", "));
    }
    if facts.desired.node().host_addresses.contains(&addr) {
        return format!(
            "{at} is this host's own: no Service has that node port, a process of the host may answer"
        );
    }
    if answer.fate == Fate::Dropped
        && let Some(range) = service_range(facts, addr)
    {
        return format!(
            "{at} is dropped: no Service has {addr}, which is in {range}, a range of Services' addresses"
        );
    }
    format!("{at} belongs to no Service this node knows: the packet is routed like any other")
}

/// The range of Services' addresses in force that holds this one.
fn service_range(facts: Facts<'_>, addr: IpAddr) -> Option<Cidr> {
    let ranges = chains::service_ranges(facts.rules?.table, addr.is_ipv6());
    ranges.into_iter().find(|range| range.contains(addr))
}

/// A used endpoint that has an address only a Service should have.
fn endpoint_in_range(facts: Facts<'_>, answer: &Explanation) -> Option<(SocketAddr, Cidr)> {
    let used = answer.candidates.iter().filter(|candidate| candidate.used);
    used.map(|candidate| candidate.endpoint)
        .find_map(|endpoint| Some((endpoint, service_range(facts, endpoint.ip())?)))
}

fn next_step(facts: Facts<'_>, answer: &Explanation) -> Option<String> {
    if facts.rules.is_none() {
        return Some(facts.unavailable.to_owned());
    }
    let Some(matched) = &answer.matched else {
        return Some("longshore svc list shows every Service with its addresses and ports".to_owned());
    };
    if !answer.pending.is_empty() {
        return Some(format!(
            "{} kernel changes are due here; longshore svc list shows what the kernel refuses",
            answer.pending.len()
        ));
    }
    match answer.fate {
        Fate::Endpoints(_) => None,
        _ if answer.candidates.is_empty() => Some(format!(
            "no pod matches the selector of Service {}, or its EndpointSlices are missing: longshore ps shows the pods",
            matched.service
        )),
        _ => {
            let blamed = answer.candidates.iter().find(|candidate| !candidate.used)?;
            let pod = blamed.pod.as_deref().map(|pod| pod.rsplit('/').next().unwrap_or(pod));
            match (blamed.standing, pod) {
                (Standing::NotReady | Standing::Terminating, Some(pod)) => {
                    Some(format!("longshore why pod/{pod}"))
                }
                (Standing::NotLocal, _) => Some(format!(
                    "ask a node that runs a pod of Service {}, or set the traffic policy to Cluster",
                    matched.service
                )),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ruleset::chains::ChainConfig;
    use crate::ruleset::world::{self, NODE_IP, World, addr};

    const POD: (Origin, &str) = (Origin::Pod, "10.244.1.9");
    const OUTSIDE: (Origin, &str) = (Origin::Outside, "203.0.113.7");

    fn ask(world: &World, (origin, src): (Origin, &str), dst: &str) -> Explanation {
        let query = Query { dst: dst.parse().unwrap(), protocol: Protocol::Tcp, origin, src: addr(src) };
        let facts = Facts {
            table: &world.table,
            desired: &world.desired,
            rules: Some(world.rules(false)),
            unavailable: "",
        };
        explain(facts, &query)
    }

    fn world() -> World {
        let mut world = World::new();
        world.service(
            "web",
            json!({"type": "NodePort", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
                                    "ports": [{"name": "p", "port": 80, "nodePort": 30080}]}),
            &[],
        );
        world.endpoints("web", &["10.244.1.1 n1", "10.244.2.1 n2", "10.244.1.2 n1 -"]);
        world.service("none", json!({"clusterIP": "10.96.0.2", "ports": [{"name": "p", "port": 80}]}), &[]);
        world.service(
            "unready",
            json!({"clusterIP": "10.96.0.3", "ports": [{"name": "p", "port": 80}]}),
            &[],
        );
        world.endpoints("unready", &["10.244.1.3 n1 -"]);
        world.settle(true);
        world
    }

    #[test]
    fn every_answer_is_one_sentence_and_a_next_step_where_something_is_wrong() {
        let world = world();
        let cases = [
            (
                POD,
                "10.96.0.1:80",
                "10.96.0.1:80/tcp is port p of Service ns/web (ClusterIP, policy Cluster): a connection from a pod goes to one of 2 endpoints, keeping the client's address",
                None,
            ),
            (
                OUTSIDE,
                "192.168.0.1:30080",
                "192.168.0.1:30080/tcp is port p of Service ns/web (NodePort, policy Local): a connection from outside the cluster goes to one of 1 endpoint, keeping the client's address",
                None,
            ),
            (
                POD,
                "10.96.0.2:80",
                "10.96.0.2:80/tcp is port p of Service ns/none (ClusterIP, policy Cluster): refused, it has no endpoints at all",
                Some("no pod matches the selector"),
            ),
            (
                POD,
                "10.96.0.3:80",
                "10.96.0.3:80/tcp is port p of Service ns/unready (ClusterIP, policy Cluster): refused, none of its 1 endpoints is usable",
                None,
            ),
            (
                POD,
                "10.96.0.1:22",
                "10.96.0.1:22/tcp is refused: no Service port is there; 10.96.0.1 serves 80 (ns/web:p/tcp)",
                Some("longshore svc list"),
            ),
            (
                OUTSIDE,
                "192.168.0.1:22",
                "192.168.0.1:22/tcp is this host's own: no Service has that node port, a process of the host may answer",
                Some("longshore svc list"),
            ),
            (
                POD,
                "8.8.8.8:53",
                "8.8.8.8:53/tcp belongs to no Service this node knows: the packet is routed like any other",
                Some("longshore svc list"),
            ),
        ];
        for (client, dst, sentence, next) in cases {
            let answer = ask(&world, client, dst);
            assert_eq!(answer.sentence, sentence);
            let step = answer.next_step.unwrap_or_default();
            assert!(
                step.contains(next.unwrap_or("")) && (next.is_some() || step.is_empty()),
                "{dst}: {step:?}"
            );
        }
    }

    #[test]
    fn an_address_of_the_range_that_nobody_has_is_dropped_and_the_reason_said() {
        let ranges = ["10.96.0.0/16", "10.245.0.0/16"].map(|text| text.parse().unwrap());
        let mut world =
            World::nftables(ChainConfig { service_ranges: ranges.to_vec(), ..world::chain_config() });
        for (name, at, endpoint) in [("web", "10.96.0.1", "10.244.1.1"), ("odd", "10.96.0.2", "10.245.1.1")] {
            world.service(name, json!({"clusterIP": at, "ports": [{"name": "p", "port": 80}]}), &[]);
            world.endpoints(name, &[endpoint]);
        }
        world.settle(true);
        let table = [
            (
                "10.96.0.77:80",
                "10.96.0.77:80/tcp is dropped: no Service has 10.96.0.77, which is in 10.96.0.0/16, a range of Services' addresses",
            ),
            (
                "10.97.0.77:80",
                "10.97.0.77:80/tcp belongs to no Service this node knows: the packet is routed like any other",
            ),
            (
                "10.96.0.1:22",
                "10.96.0.1:22/tcp is refused: no Service port is there; 10.96.0.1 serves 80 (ns/web:p/tcp)",
            ),
            (
                "10.96.0.1:80",
                "10.96.0.1:80/tcp is port p of Service ns/web (ClusterIP, policy Cluster): a connection from a pod goes to one of 1 endpoint, keeping the client's address",
            ),
            (
                "10.96.0.2:80",
                "10.96.0.2:80/tcp is port p of Service ns/odd (ClusterIP, policy Cluster): dropped, its endpoint 10.245.1.1:8080 is in 10.245.0.0/16, a range of Services' addresses",
            ),
        ];
        for (dst, sentence) in table {
            assert_eq!(ask(&world, POD, dst).sentence, sentence);
        }
    }

    #[test]
    fn every_candidate_has_its_reason_and_its_weight_in_the_kernel() {
        let answer = ask(&world(), OUTSIDE, &format!("{NODE_IP}:30080"));
        let lines: Vec<String> = answer
            .candidates
            .iter()
            .map(|candidate| {
                format!(
                    "{} {} {:?} {:?}",
                    candidate.endpoint, candidate.used, candidate.standing, candidate.kernel_weight
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                "10.244.1.1:8080 true Used Some(1)",
                "10.244.1.2:8080 false NotReady None",
                "10.244.2.1:8080 false NotLocal None"
            ]
        );
    }

    #[test]
    fn what_the_kernel_lacks_is_said() {
        let mut world = world();
        world.service("new", json!({"clusterIP": "10.96.0.9", "ports": [{"name": "p", "port": 80}]}), &[]);
        world.endpoints("new", &["10.244.1.1"]);
        let answer = ask(&world, POD, "10.96.0.9:80");
        assert_eq!(answer.fate, Fate::Forwarded);
        assert_eq!(answer.pending.len(), 5, "{:?}", answer.pending);
        assert!(answer.next_step.unwrap().contains("5 kernel changes are due"));
        let query = Query {
            dst: "10.96.0.1:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            origin: Origin::Node,
            src: addr(NODE_IP),
        };
        let facts = Facts {
            table: &world.table,
            desired: &world.desired,
            rules: None,
            unavailable: "no IPVS: modprobe ip_vs",
        };
        let answer = explain(facts, &query);
        assert!(
            answer.sentence.ends_with("but nothing serves it: no IPVS: modprobe ip_vs"),
            "{}",
            answer.sentence
        );
        assert_eq!(answer.candidates.iter().filter(|candidate| candidate.used).count(), 2);
    }
}
