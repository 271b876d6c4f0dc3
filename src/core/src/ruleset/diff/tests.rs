//! Order of operations, graceful ends, convergence, and what a change costs.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::super::ipvs::Scheduler;
use super::super::world::{World, chain_config};
use super::*;

fn web(ip: &str) -> Json {
    json!({"clusterIP": ip, "ports": [{"name": "p", "port": 80}]})
}

#[test]
fn a_service_appears_from_the_inside_out_and_goes_the_other_way() {
    let mut world = World::new();
    world.service("web", web("10.96.0.1"), &[]).endpoints("web", &["10.244.1.1 n1"]);
    assert_eq!(
        world.settle(true),
        [
            "add element 10.96.0.1 of service-ips",
            "add element 10.244.1.1 10.244.1.1 of hairpin",
            "add virtual server 10.96.0.1:80/tcp",
            "add real server 10.244.1.1:8080 of 10.96.0.1:80/tcp",
            "add element 10.96.0.1 tcp 80 of frontends",
            "add address 10.96.0.1 on kube-ipvs0",
        ]
    );
    world.remove_service("web");
    assert_eq!(
        world.settle(true),
        [
            "remove address 10.96.0.1 on kube-ipvs0",
            "remove virtual server 10.96.0.1:80/tcp",
            "remove element 10.96.0.1 tcp 80 of frontends",
            "remove element 10.96.0.1 of service-ips",
            "remove element 10.244.1.1 10.244.1.1 of hairpin",
        ]
    );
    assert!(world.applied.is_empty());
}

#[test]
fn a_node_port_has_its_sources_rewritten_before_it_has_a_server() {
    let mut world = World::new();
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80, "nodePort": 30080}]});
    let done = world.service("web", spec, &[]).settle(true);
    let place = |text: &str| done.iter().position(|op| op == text).unwrap();
    let element = place("add element 192.168.0.1 tcp 30080 of frontends");
    assert!(element < place("add virtual server 192.168.0.1:30080/tcp"), "{done:?}");
}

#[test]
fn the_api_and_dns_come_before_the_rest() {
    let mut world = World::new();
    world.service("a-first-by-name", web("10.96.0.1"), &[]);
    world.service(
        "zdns",
        json!({"clusterIP": "10.96.0.10", "ports": [{"name": "u", "port": 53, "protocol": "UDP"}]}),
        &[],
    );
    let api = json!({"metadata": {"name": "kubernetes", "namespace": "default"},
                     "spec": {"clusterIP": "10.96.0.2", "ports": [{"name": "https", "port": 443}]}});
    let change = world.table.upsert_service(&serde_json::from_value(api).unwrap());
    world.take(change);
    let order: Vec<String> = world.settle(true).into_iter().filter(|op| op.contains("kube-ipvs0")).collect();
    let addresses = ["10.96.0.2", "10.96.0.10", "10.96.0.1"];
    assert_eq!(order, addresses.map(|addr| format!("add address {addr} on kube-ipvs0")));
}

#[test]
fn tcp_endpoints_leave_when_their_last_connection_is_over_and_udp_at_once() {
    let mut world = World::new();
    let both = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}, {"name": "u", "port": 53, "protocol": "UDP"}]});
    world.service("web", both, &[]).endpoints("web", &["10.244.2.1 n2", "10.244.2.2 n2"]).settle(false);
    world.endpoints("web", &["10.244.2.2 n2"]);
    assert_eq!(
        world.settle(false),
        [
            "remove real server 10.244.2.1:8053 of 10.96.0.1:53/udp",
            "drain real server 10.244.2.1:8080 of 10.96.0.1:80/tcp"
        ]
    );
    assert_eq!(world.applied.draining().len(), 1);
    world.dirty.extend(world.desired.claims().copied().collect::<Vec<_>>());
    assert_eq!(world.plan(false), [], "connections are left");
    // The endpoint comes back: it takes connections again.
    world.endpoints("web", &["10.244.2.1 n2", "10.244.2.2 n2"]);
    assert_eq!(
        world.settle(false),
        [
            "add real server 10.244.2.1:8053 of 10.96.0.1:53/udp",
            "change real server 10.244.2.1:8080 of 10.96.0.1:80/tcp"
        ]
    );
    assert!(world.applied.draining().is_empty());
    world.endpoints("web", &["10.244.2.2 n2"]).settle(false);
    world.dirty.extend(world.desired.claims().copied().collect::<Vec<_>>());
    assert_eq!(world.settle(true), ["remove real server 10.244.2.1:8080 of 10.96.0.1:80/tcp"]);
    assert!(world.applied.draining().is_empty());
}

#[test]
fn an_exchange_of_endpoints_adds_before_it_takes_away() {
    let mut world = World::new();
    world.service("web", web("10.96.0.1"), &[]).endpoints("web", &["10.244.2.1 n2"]).settle(false);
    world.endpoints("web", &["10.244.2.2 n2"]);
    assert_eq!(
        world.settle(false),
        [
            "add real server 10.244.2.2:8080 of 10.96.0.1:80/tcp",
            "drain real server 10.244.2.1:8080 of 10.96.0.1:80/tcp"
        ]
    );
    // The last one goes: the class turns to reject before the endpoint is drained.
    world.endpoints("web", &[]);
    assert_eq!(
        world.settle(false),
        [
            "change element 10.96.0.1 tcp 80 of frontends",
            "drain real server 10.244.2.2:8080 of 10.96.0.1:80/tcp"
        ]
    );
}

#[test]
fn adopting_what_is_there_leaves_nothing_to_do() {
    let mut world = World::new();
    world.service(
        "web",
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP",
        "ports": [{"name": "p", "port": 80, "nodePort": 30080}]}),
        &[],
    );
    world.endpoints("web", &["10.244.1.1", "10.244.2.1 n2"]).settle(false);
    let dump: Objects = world.applied.by_claim().flat_map(|(_, objects)| objects.into_owned()).collect();
    let adopted = Applied::adopt(dump);
    assert_eq!(adopted, world.applied);
    let all: Vec<Claim> = world.desired.claims().copied().collect();
    assert_eq!(plan(&world.desired, &adopted, all, &|_, _| false), []);
}

#[test]
fn two_services_that_want_one_address_are_named_and_the_first_by_name_has_it() {
    let mut world = World::new();
    let spec = |ip: &str| json!({"clusterIP": ip, "externalIPs": ["198.51.100.1"], "ports": [{"name": "p", "port": 80}]});
    world.service("b", spec("10.96.0.2"), &[]).endpoints("b", &["10.244.2.2 n2"]);
    world.service("a", spec("10.96.0.1"), &[]).endpoints("a", &["10.244.2.1 n2"]).settle(true);
    let clashes: Vec<String> = world
        .desired
        .clashes()
        .iter()
        .map(|clash| format!("{}: {} keeps it from {}", clash.claim, clash.holder.name, clash.loser.name))
        .collect();
    assert_eq!(clashes, ["198.51.100.1:80/tcp: ns/a:p/tcp keeps it from ns/b:p/tcp"]);
    world.remove_service("a");
    let ops = world.settle(true);
    assert!(ops.contains(&"add real server 10.244.2.2:8080 of 198.51.100.1:80/tcp".to_owned()), "{ops:?}");
    assert!(!ops.iter().any(|op| op.contains("remove address 198.51.100.1")), "{ops:?}");
}

#[test]
fn every_scheduler_and_affinity_reach_the_virtual_server() {
    for scheduler in Scheduler::ALL {
        let mut world = World::with(chain_config(), *scheduler);
        let affine = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 77}}});
        world.service("web", affine, &[]).settle(true);
        let servers: Vec<_> = world.applied.other_than_elements().map(|(_, value)| value).collect();
        let server = servers.iter().find_map(|value| match value {
            ObjectValue::Server(server) => Some(server),
            _ => None,
        });
        let server = server.unwrap();
        let mh = *scheduler == Scheduler::Mh;
        let flags = (server.flags.persistent, server.flags.sched1, server.flags.sched2);
        assert_eq!(
            (server.scheduler, server.timeout, server.prefix, flags),
            (*scheduler, 77, 32, (true, mh, mh))
        );
    }
}

#[test]
fn what_a_change_writes_does_not_grow_with_the_number_of_services() {
    let writes = |count: u8| -> usize {
        let mut world = World::new();
        for n in 0..count {
            world.service(&format!("s{n}"), web(&format!("10.96.1.{n}")), &[]);
            world.endpoints(&format!("s{n}"), &["10.244.2.1 n2"]);
        }
        world.settle(true);
        world.endpoints("s3", &["10.244.2.1 n2", "10.244.2.2 n2"]);
        world.settle(true).len()
    };
    assert_eq!((writes(5), writes(250)), (1, 1));
}

#[test]
fn nftables_mode_changes_a_few_elements_and_leads_nobody_into_a_gap() {
    let mut world = World::nftables(chain_config());
    world.service("web", web("10.96.0.1"), &[]).endpoints("web", &["10.244.2.1 n2", "10.244.2.2 n2"]);
    assert_eq!(
        world.settle(true),
        [
            "add chain n2",
            "add element 10.96.0.1 of service-ips",
            "add element 10.96.0.1 tcp 80 #0 of endpoints",
            "add element 10.96.0.1 tcp 80 #1 of endpoints",
            "add element #2 #0 of spreads",
            "add element 10.96.0.1 tcp 80 of services",
        ]
    );
    world.endpoints("web", &["10.244.2.1 n2", "10.244.2.2 n2", "10.244.2.3 n2"]);
    assert_eq!(
        world.settle(true),
        [
            "add chain n3",
            "add element 10.96.0.1 tcp 80 #2 of endpoints",
            "add element #3 #0 of spreads",
            "change element 10.96.0.1 tcp 80 of services",
            "remove element #2 #0 of spreads",
            "remove chain n2",
        ]
    );
    world.endpoints("web", &["10.244.2.2 n2", "10.244.2.3 n2"]);
    assert_eq!(
        world.settle(true),
        [
            "add chain n2",
            "add element #2 #0 of spreads",
            "change element 10.96.0.1 tcp 80 of services",
            "change element 10.96.0.1 tcp 80 #0 of endpoints",
            "remove element 10.96.0.1 tcp 80 #2 of endpoints",
            "remove element #3 #0 of spreads",
            "remove chain n3",
        ]
    );
}

/// What nftables mode holds for Services, by the number of frontends and endpoints: a frontend is one
/// element, an endpoint one (two where clients are remembered), a cluster address one, and there is a
/// chain with its element for each number of endpoints there is, however many Services have it.
#[test]
fn objects_grow_with_frontends_plus_endpoints_and_chains_do_not() {
    let held = |services: u32, endpoints: u32, spec: &Json| -> (usize, usize) {
        let mut world = World::nftables(chain_config());
        let list: Vec<String> = (0..endpoints).map(|n| format!("10.244.2.{n} n2")).collect();
        let list: Vec<&str> = list.iter().map(String::as_str).collect();
        for n in 0..services {
            let mut spec = spec.clone();
            spec["clusterIP"] = json!(format!("10.96.1.{n}"));
            if spec["type"] == "LoadBalancer" {
                spec["ports"][0]["nodePort"] = json!(30000 + n);
            }
            let balancer = format!("198.51.100.{n}");
            world.service(&format!("s{n}"), spec, &[&balancer]).endpoints(&format!("s{n}"), &list);
        }
        world.settle(true);
        let chains = world.applied.claims().filter(|claim| matches!(claim, Claim::Spread(_))).count();
        (world.applied.len() - 2 * chains, chains)
    };
    let plain = web("");
    assert_eq!(held(1, 1, &plain), (3, 1));
    assert_eq!(held(10, 1, &plain), (30, 1));
    assert_eq!(held(10, 20, &plain), (220, 1));
    // A node port on one address of the family, and a load balancer's: two frontends more, not two more
    // lists of endpoints.
    let balanced = json!({"type": "LoadBalancer", "ports": [{"name": "p", "port": 80}]});
    assert_eq!(held(10, 20, &balanced), (240, 1));
    let affine = json!({"sessionAffinity": "ClientIP", "ports": [{"name": "p", "port": 80}]});
    assert_eq!(held(10, 20, &affine), (420, 1));
    // Whose external policy is Local has no endpoint here: its clients inside have all of them.
    let near = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"name": "p", "port": 80}]});
    assert_eq!(held(10, 20, &near), (240, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Service(u8, u8),
    Remove(u8),
    Endpoints(u8, Vec<(u8, u8)>),
    Settle(bool),
    /// The kernel refuses this many operations from the front.
    Refused(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8, 0..6u8).prop_map(|(name, shape)| Step::Service(name, shape)),
        (0..4u8).prop_map(Step::Remove),
        (0..4u8, proptest::collection::vec((1..3u8, 1..4u8), 0..4))
            .prop_map(|(name, list)| Step::Endpoints(name, list)),
        any::<bool>().prop_map(Step::Settle),
        (0..6usize).prop_map(Step::Refused),
    ]
}

fn shape(name: u8, shape: u8) -> Json {
    let policy = if shape & 1 == 0 { "Cluster" } else { "Local" };
    let kind = if shape & 2 == 0 { "NodePort" } else { "LoadBalancer" };
    json!({"type": kind, "clusterIP": format!("10.96.0.{name}"), "externalTrafficPolicy": policy,
        "externalIPs": if shape & 4 == 0 { json!([]) } else { json!(["198.51.100.1"]) },
        "loadBalancerSourceRanges": ["203.0.113.0/24"],
        "ports": [{"name": "p", "port": 80, "nodePort": 30000 + u16::from(name)},
                  {"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30000 + u16::from(name)}]})
}

fn run(world: &mut World, step: &Step) {
    match step {
        Step::Service(name, number) => {
            world.service(&format!("s{name}"), shape(*name, *number), &["198.51.100.2"]);
        }
        Step::Remove(name) => {
            world.remove_service(&format!("s{name}"));
        }
        Step::Endpoints(name, list) => {
            let texts: Vec<String> =
                list.iter().map(|(node, host)| format!("10.244.{node}.{host} n{node}")).collect();
            let list: Vec<&str> = texts.iter().map(String::as_str).collect();
            world.endpoints(&format!("s{name}"), &list);
        }
        Step::Settle(drained) => {
            world.settle(*drained);
        }
        Step::Refused(count) => {
            // Refused objects stay dirty; what was acknowledged stays.
            let ops = world.plan(true);
            for op in ops.iter().skip(*count) {
                let server_missing = matches!(&op.key, ObjectKey::Real(key, _)
                    if world.applied.get(&ObjectKey::Server(*key)).is_none());
                if !server_missing {
                    world.applied.acknowledge(op);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_history_ends_where_a_fresh_sync_ends(steps in proptest::collection::vec(step(), 0..25)) {
        for mut world in [World::new(), World::ipvs_by_iptables(chain_config()), World::nftables(chain_config())] {
        steps.iter().for_each(|step| run(&mut world, step));
        // Twice: what drains goes with the second pass.
        world.settle(true);
        world.dirty.extend(world.applied.claims().copied().collect::<Vec<_>>());
        world.settle(true);
        let mut fresh = Applied::default();
        let all: Vec<Claim> = world.desired.claims().copied().collect();
        for op in plan(&world.desired, &fresh.clone(), all, &|_, _| true) {
            fresh.acknowledge(&op);
        }
        prop_assert_eq!(&world.applied.in_order(), &fresh.in_order());
        // And the kernel's own model takes every operation in the order given.
        let mut kernel = super::super::ipvs::IpvsState::default();
        let all: Vec<Claim> = world.desired.claims().copied().collect();
        for op in plan(&world.desired, &Applied::default(), all, &|_, _| true).iter().filter_map(Op::ipvs) {
            prop_assert_eq!(kernel.apply(&op), Ok(()), "{}", op);
        }
        }
    }
}
