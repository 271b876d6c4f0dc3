//! Packet traces: what a client sees for every kind of Service, policy and origin.

use proptest::prelude::*;
use serde_json::json;

use super::super::chains::{ChainConfig, PodInterface};
use super::super::ipvs::Scheduler;
use super::super::model::{ServicePortState, Target};
use super::super::render_ipvs;
use super::super::world::{NODE_IP, World, addr, chain_config, shown};
use super::*;
use crate::service::frontends::FrontendKind;
use crate::service::types::TrafficPolicy;

const POD: (Origin, &str) = (Origin::Pod, "10.244.1.9");
const NODE: (Origin, &str) = (Origin::Node, NODE_IP);
const OUTSIDE: (Origin, &str) = (Origin::Outside, "203.0.113.7");

/// One packet a line: who, to where, what happens.
fn check(world: &World, cases: &[((Origin, &str), &str, &str)]) {
    for ((origin, src), dst, want) in cases {
        let got = shown(&world.fate(*origin, src, dst, Protocol::Tcp));
        assert_eq!(got, *want, "{origin:?} {src} -> {dst}");
    }
}

#[test]
fn a_cluster_address_is_shared_out_and_only_pods_keep_their_source() {
    let mut world = World::new();
    world.service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]}), &[]);
    world
        .endpoints("web", &["10.244.1.1 n1", "10.244.2.1 n2", "10.244.2.2 n2 s", "10.244.2.3 n2 st"])
        .settle(true);
    check(
        &world,
        &[
            (POD, "10.96.0.1:80", "10.244.1.1:8080 10.244.2.1:8080"),
            (NODE, "10.96.0.1:80", "10.244.1.1:8080* 10.244.2.1:8080*"),
            ((Origin::Node, "10.96.0.1"), "10.96.0.1:80", "10.244.1.1:8080* 10.244.2.1:8080*"),
            (OUTSIDE, "10.96.0.1:80", "10.244.1.1:8080* 10.244.2.1:8080*"),
            // An endpoint of this node that is its own client.
            ((Origin::Pod, "10.244.1.1"), "10.96.0.1:80", "10.244.1.1:8080* 10.244.2.1:8080"),
        ],
    );
    assert_eq!(shown(&world.fate(POD.0, POD.1, "10.96.0.1:80", Protocol::Udp)), "rejected");
}

#[test]
fn no_port_of_the_host_answers_on_a_service_address() {
    let mut world = World::new();
    let ports = json!([{"name": "p", "port": 80, "nodePort": 30080}]);
    world.service("web", json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": ports, "externalIPs": ["198.51.100.1"]}), &[]);
    world.endpoints("web", &["10.244.1.1"]).settle(true);
    check(
        &world,
        &[
            (POD, "10.96.0.1:22", "rejected"),
            (NODE, "10.96.0.1:22", "rejected"),
            (OUTSIDE, "198.51.100.1:10250", "rejected"),
            (OUTSIDE, "192.168.0.1:22", "host"),
            (OUTSIDE, "192.168.0.1:80", "host"),
            (OUTSIDE, "10.96.0.2:80", "forwarded"),
        ],
    );
}

#[test]
fn without_endpoints_the_client_is_told_and_silence_means_elsewhere() {
    let mut world = World::new();
    let ports = json!([{"name": "p", "port": 80, "nodePort": 30080}]);
    world.service("none", json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": ports}), &[]);
    let local = json!({"type": "NodePort", "clusterIP": "10.96.0.2", "internalTrafficPolicy": "Local",
        "externalTrafficPolicy": "Local", "ports": [{"name": "p", "port": 80, "nodePort": 30081}]});
    world.service("far", local, &[]).endpoints("far", &["10.244.2.1 n2"]);
    world.settle(true);
    check(
        &world,
        &[
            (POD, "10.96.0.1:80", "rejected"),
            (OUTSIDE, "192.168.0.1:30080", "rejected"),
            (POD, "10.96.0.2:80", "dropped"),
            (NODE, "10.96.0.2:80", "dropped"),
            (OUTSIDE, "192.168.0.1:30081", "dropped"),
            // The node and its pods reach an external frontend wherever its endpoints are.
            (POD, "192.168.0.1:30081", "10.244.2.1:8080"),
            (NODE, "192.168.0.1:30081", "10.244.2.1:8080*"),
        ],
    );
}

#[test]
fn external_policies_decide_about_the_source() {
    let mut world = World::new();
    let spec = |policy: &str, ip: &str, port: u16| {
        json!({"type": "LoadBalancer", "clusterIP": ip, "externalTrafficPolicy": policy,
               "ports": [{"name": "p", "port": 80, "nodePort": port}]})
    };
    world.service("all", spec("Cluster", "10.96.0.1", 30080), &["198.51.100.1"]);
    world.service("here", spec("Local", "10.96.0.2", 30081), &["198.51.100.2"]);
    world.endpoints("all", &["10.244.1.1 n1", "10.244.2.1 n2"]);
    world.endpoints("here", &["10.244.1.1 n1", "10.244.2.1 n2"]).settle(true);
    check(
        &world,
        &[
            (OUTSIDE, "192.168.0.1:30080", "10.244.1.1:8080* 10.244.2.1:8080*"),
            (OUTSIDE, "198.51.100.1:80", "10.244.1.1:8080* 10.244.2.1:8080*"),
            (OUTSIDE, "192.168.0.1:30081", "10.244.1.1:8080"),
            (OUTSIDE, "198.51.100.2:80", "10.244.1.1:8080"),
            (NODE, "198.51.100.2:80", "10.244.1.1:8080*"),
            (POD, "10.96.0.2:80", "10.244.1.1:8080 10.244.2.1:8080"),
        ],
    );
}

#[test]
fn source_ranges_guard_the_load_balancer_address_only() {
    let mut world = World::new();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80, "nodePort": 30080}],
        "loadBalancerSourceRanges": ["203.0.113.0/24", "203.0.113.0/28", "192.168.0.0/24"]});
    world.service("web", spec, &["198.51.100.1"]).endpoints("web", &["10.244.1.1"]).settle(true);
    check(
        &world,
        &[
            (OUTSIDE, "198.51.100.1:80", "10.244.1.1:8080*"),
            ((Origin::Outside, "203.0.112.255"), "198.51.100.1:80", "dropped"),
            ((Origin::Outside, "203.0.114.0"), "198.51.100.1:80", "dropped"),
            (POD, "198.51.100.1:80", "dropped"),
            (NODE, "198.51.100.1:80", "10.244.1.1:8080*"),
            // The node's address is admitted, so the balancer's own address is: that is what the node uses.
            ((Origin::Node, "198.51.100.1"), "198.51.100.1:80", "10.244.1.1:8080*"),
            (POD, "192.168.0.1:30080", "10.244.1.1:8080*"),
            (POD, "10.96.0.1:80", "10.244.1.1:8080"),
        ],
    );
}

#[test]
fn ipv6_is_served_by_its_own_table() {
    let mut world = World::new();
    world.service(
        "web",
        json!({"type": "NodePort", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
                                "ports": [{"name": "p", "port": 80, "nodePort": 30080}]}),
        &[],
    );
    world.endpoints("web", &["fd00:244::1 n1", "fd00:244::2 n2"]).settle(true);
    check(
        &world,
        &[
            ((Origin::Pod, "fd00:244::9"), "[fd00:96::1]:80", "[fd00:244::1]:8080 [fd00:244::2]:8080"),
            ((Origin::Pod, "fd00:244::1"), "[fd00:96::1]:80", "[fd00:244::1]:8080* [fd00:244::2]:8080"),
            (
                (Origin::Outside, "2001:db8::1"),
                "[fd00:168::1]:30080",
                "[fd00:244::1]:8080* [fd00:244::2]:8080*",
            ),
            ((Origin::Pod, "fd00:244::9"), "[fd00:96::1]:22", "rejected"),
            (POD, "10.96.0.1:80", "rejected"),
        ],
    );
}

#[test]
fn masquerade_settings_change_who_keeps_the_source() {
    let service = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]});
    let by_interface = |pods: PodInterface| ChainConfig {
        cluster_cidrs: vec![],
        pod_interface: Some(pods),
        ..chain_config()
    };
    let cases = [
        (ChainConfig { masquerade_all: true, ..chain_config() }, POD, "10.244.2.1:8080*"),
        (ChainConfig { cluster_cidrs: vec![], ..chain_config() }, OUTSIDE, "10.244.2.1:8080"),
        (ChainConfig { cluster_cidrs: vec![], ..chain_config() }, NODE, "10.244.2.1:8080*"),
        (by_interface(PodInterface::Named("cni0".to_owned())), POD, "10.244.2.1:8080"),
        (by_interface(PodInterface::Prefixed("cni".to_owned())), POD, "10.244.2.1:8080"),
        (by_interface(PodInterface::Named("cni".to_owned())), POD, "10.244.2.1:8080*"),
        (by_interface(PodInterface::Prefixed("cni".to_owned())), OUTSIDE, "10.244.2.1:8080*"),
    ];
    for (config, client, want) in cases {
        let mut world = World::with(config.clone(), Scheduler::Rr);
        world.service("web", service.clone(), &[]).endpoints("web", &["10.244.2.1 n2"]).settle(true);
        assert_eq!(shown(&world.fate(client.0, client.1, "10.96.0.1:80", Protocol::Tcp)), want, "{config:?}");
    }
}

#[test]
fn an_external_address_of_the_host_is_served_but_stays_the_host_s() {
    let mut world = World::new();
    world.service(
        "web",
        json!({"clusterIP": "10.96.0.1", "externalIPs": [NODE_IP], "ports": [{"name": "p", "port": 80}]}),
        &[],
    );
    world.endpoints("web", &["10.244.1.1"]).settle(true);
    check(&world, &[(OUTSIDE, "192.168.0.1:80", "10.244.1.1:8080*"), (OUTSIDE, "192.168.0.1:22", "host")]);
    assert!(world.applied.get(&ObjectKey::Address(addr(NODE_IP))).is_none());
}

#[test]
fn nftables_mode_tells_clients_apart_where_ipvs_cannot() {
    let mut world = World::nftables(chain_config());
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP", "ports": [{"name": "p", "port": 80, "nodePort": 30080}]});
    world.service("web", spec, &[]).endpoints("web", &["10.244.1.1 n1", "10.244.2.1 n2"]).settle(true);
    check(
        &world,
        &[
            (OUTSIDE, "192.168.0.1:30080", "10.244.1.1:8080"),
            (NODE, "192.168.0.1:30080", "10.244.1.1:8080* 10.244.2.1:8080*"),
            (POD, "192.168.0.1:30080", "10.244.1.1:8080 10.244.2.1:8080"),
            (POD, "10.96.0.1:80", "10.244.1.1:8080"),
            ((Origin::Pod, "10.244.1.1"), "10.96.0.1:80", "10.244.1.1:8080*"),
            (POD, "10.96.0.1:22", "rejected"),
            (OUTSIDE, "192.168.0.1:22", "host"),
        ],
    );
    let held = world.applied.len();
    assert_eq!(world.remove_service("web").settle(true).len(), held);
    assert!(world.applied.is_empty(), "{:?}", world.applied);
}

#[test]
fn nftables_mode_takes_no_more_than_the_port_of_an_address_that_is_not_the_cluster_s() {
    let mut world = World::nftables(chain_config());
    // An external address may be another node's: what else it serves must stay in reach.
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalIPs": ["192.168.0.2"], "ports": [{"name": "p", "port": 80}]});
    world.service("web", spec, &["198.51.100.1"]).endpoints("web", &["10.244.1.1 n1"]).settle(true);
    check(
        &world,
        &[
            (POD, "192.168.0.2:80", "10.244.1.1:8080*"),
            (POD, "192.168.0.2:22", "forwarded"),
            (OUTSIDE, "198.51.100.1:443", "forwarded"),
            (POD, "10.96.0.1:22", "rejected"),
        ],
    );
}

#[test]
fn who_has_lost_its_cluster_address_to_another_does_not_lead_to_the_other_s_endpoints() {
    let mut world = World::nftables(chain_config());
    let spec = |port: u16| json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80, "nodePort": port}]});
    world.service("a", spec(30080), &[]).endpoints("a", &["10.244.1.1 n1"]);
    world.service("b", spec(30081), &[]).endpoints("b", &["10.244.1.2 n1"]).settle(true);
    check(
        &world,
        &[(OUTSIDE, "192.168.0.1:30080", "10.244.1.1:8080*"), (OUTSIDE, "192.168.0.1:30081", "rejected")],
    );
    world.remove_service("a").settle(true);
    check(
        &world,
        &[(POD, "10.96.0.1:80", "10.244.1.2:8080"), (OUTSIDE, "192.168.0.1:30081", "10.244.1.2:8080*")],
    );
    world.service("a", spec(30080), &[]).settle(true);
    check(&world, &[(POD, "10.96.0.1:80", "10.244.1.1:8080"), (OUTSIDE, "192.168.0.1:30081", "rejected")]);
}

/// What eligibility says for a frontend, in the words of a trace.
fn expected(state: &ServicePortState, kind: FrontendKind, packet: &Packet, mode: BackEnd) -> Fate {
    let pods = "10.244.0.0/16".parse::<crate::service::cidr::Cidr>().unwrap();
    let from_pod = pods.contains(packet.src);
    let node = packet.origin == Origin::Node;
    if kind == FrontendKind::LoadBalancer
        && !state.spec.source_ranges.is_empty()
        && !state.spec.source_ranges.iter().any(|range| range.contains(packet.src))
    {
        return Fate::Dropped;
    }
    let policy = state.policy(kind);
    let inside = kind.is_external() && (node || from_pod);
    let target = match (mode, state.target(kind, false)) {
        // IPVS has one list for all clients: with local endpoints everyone gets those.
        (ipvs, Target::Drop) if inside && ipvs.is_ipvs() => state.target(kind, true),
        (BackEnd::Nftables | BackEnd::Iptables, _) if inside => state.target(kind, true),
        (_, target) => target,
    };
    let rewritten = match (kind, policy) {
        (FrontendKind::ClusterIp, _) => node || !from_pod,
        (_, TrafficPolicy::Cluster) => true,
        (_, TrafficPolicy::Local) => node,
    };
    match target {
        Target::Reject => Fate::Rejected,
        Target::Drop => Fate::Dropped,
        Target::Endpoints(all) => Fate::Endpoints(
            all.iter()
                .map(|backend| Delivery {
                    to: backend.addr,
                    masqueraded: rewritten || (backend.local && backend.addr.ip() == packet.src),
                })
                .collect(),
        ),
    }
}

fn arbitrary_service() -> impl Strategy<Value = serde_json::Value> {
    let policy = prop_oneof![Just("Cluster"), Just("Local")];
    let kind = prop_oneof![Just("ClusterIP"), Just("NodePort"), Just("LoadBalancer")];
    let ranges = prop_oneof![
        Just(json!([])),
        Just(json!(["203.0.113.0/24"])),
        Just(json!(["192.168.0.0/16", "10.244.1.0/24"]))
    ];
    (kind, policy.clone(), policy, ranges, any::<bool>(), any::<bool>()).prop_map(
        |(kind, internal, external, ranges, affine, udp)| {
            let node_port = if kind == "ClusterIP" { 0 } else { 30080 };
            let mut ports = vec![json!({"name": "p", "port": 80, "nodePort": node_port})];
            if udp {
                ports.push(json!({"name": "u", "port": 80, "nodePort": node_port, "protocol": "UDP"}));
            }
            json!({"type": kind, "clusterIP": "10.96.0.1", "internalTrafficPolicy": internal, "ports": ports,
                "externalTrafficPolicy": external, "loadBalancerSourceRanges": ranges, "externalIPs": ["198.51.100.9"],
                "sessionAffinity": if affine { "ClientIP" } else { "None" }})
        },
    )
}

fn arbitrary_endpoints() -> impl Strategy<Value = Vec<String>> {
    let one = (1..4u8, 1..5u8, prop_oneof![Just("rs"), Just("-"), Just("st"), Just("t")]);
    proptest::collection::vec(one, 0..6).prop_map(|all| {
        all.into_iter().map(|(node, host, flags)| format!("10.244.{node}.{host} n{node} {flags}")).collect()
    })
}

/// What else the host has must not answer on a Service's address, whoever asks.
#[test]
fn no_port_of_the_host_answers_on_a_service_address_in_either_form_of_ipvs_mode() {
    for mut world in [World::new(), World::ipvs_by_iptables(chain_config())] {
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}],
            "externalIPs": ["198.51.100.9", "192.168.0.1"]});
        world.service("web", spec, &[]).endpoints("web", &["10.244.1.1"]).settle(true);
        for from in [POD, NODE, OUTSIDE] {
            check(
                &world,
                &[
                    (from, "10.96.0.1:22", "rejected"),
                    (from, "198.51.100.9:22", "rejected"),
                    (from, "192.168.0.1:22", "host"),
                    (from, "10.96.0.2:80", "forwarded"),
                ],
            );
        }
        world.remove_service("web").settle(true);
        check(&world, &[(POD, "10.96.0.1:22", "forwarded")]);
    }
}

/// Endpoints are IPVS's alone.
#[test]
fn endpoints_that_come_and_go_touch_no_chain_of_ipvs_mode() {
    let mut world = World::ipvs_by_iptables(chain_config());
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]});
    world.service("web", spec, &[]).endpoints("web", &["10.244.2.1 n2"]).settle(true);
    let done = world.endpoints("web", &["10.244.2.1 n2", "10.244.3.2 n3"]).settle(true);
    assert_eq!(done, ["add real server 10.244.3.2:8080 of 10.96.0.1:80/tcp"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_trace_of_the_rules_says_what_eligibility_said(spec in arbitrary_service(), endpoints in arbitrary_endpoints()) {
        let list: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let config = chain_config;
        for mut world in [World::new(), World::ipvs_by_iptables(config()), World::nftables(config()), World::iptables(config())] {
        let mode = world.desired.back_end();
        world.service("web", spec.clone(), &["198.51.100.1"]).endpoints("web", &list).settle(true);
        let clients = [POD, NODE, OUTSIDE, (Origin::Pod, "10.244.1.1"), (Origin::Outside, "198.18.0.1")];
        for state in world.table.ports() {
            for (kind, at, port) in render_ipvs::frontends(state, world.desired.node()) {
                for (origin, src) in clients {
                    let packet = Packet { origin, src: addr(src), dst: SocketAddr::new(at, port), protocol: state.spec.id.name.protocol };
                    let got = world.trace(&packet);
                    // `t` alone serves nobody; the same address twice counts once.
                    prop_assert_eq!(&got, &expected(state, kind, &packet, mode), "{:?} {} {:?} {:?}", mode, kind, packet, state);
                }
            }
        }
        }
    }
}
