//! The table of Service cases as packet traces through the rendered rules of every mode: what is
//! programmed means what the case says, whatever order the objects come in, and nothing stays behind.

#![allow(clippy::unwrap_used)]

#[path = "services/case.rs"]
mod case;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use case::{Case, Change, Expected, Mode, PacketLine};
use longshore_core::explain::Query;
use longshore_core::ruleset::desired::BackEnd;
use longshore_core::ruleset::ipvs::{Scheduler, VirtualServerKey};
use longshore_core::ruleset::node::HostAddress;
use longshore_core::ruleset::object::{ObjectKey, ObjectValue};
use longshore_core::ruleset::offline::{Offline, OfflineNode};
use longshore_core::ruleset::trace::{Fate, Packet};
use longshore_core::service::eligibility::MAX_USED;
use serde_json::json;

const MODES: [Mode; 2] = [Mode::Nftables, Mode::Ipvs];

fn back_end(mode: Mode) -> BackEnd {
    match mode {
        Mode::Nftables => BackEnd::Nftables,
        Mode::Ipvs => BackEnd::Ipvs { scheduler: Scheduler::Rr },
        Mode::IpvsByIptables => BackEnd::IpvsByIptables { scheduler: Scheduler::Rr },
        Mode::Iptables => BackEnd::Iptables,
    }
}

fn world(case: &Case, mode: Mode) -> Offline {
    let host = |addr, loopback| HostAddress { addr, loopback, ours: false, link_local: false };
    let mut addresses: Vec<HostAddress> =
        case::node_addresses().into_iter().map(|addr| host(addr, false)).collect();
    addresses.extend(["127.0.0.1", "::1"].map(|addr| host(addr.parse().unwrap(), true)));
    let node = OfflineNode {
        name: case::NODE.into(),
        zone: case.node.zone.as_deref().map(Into::into),
        addresses,
        primary: case::primary_addresses(),
        node_ports: case.node_ports(mode),
        pod_interface: case::POD_INTERFACE.to_owned(),
    };
    Offline::new(&node, back_end(mode), &case.chains())
}

fn take(world: &mut Offline, change: &Change) {
    match change {
        Change::Service(service) => world.service(service),
        Change::Slice(slice) => world.slice(slice),
        Change::ServiceGone(key) => world.remove_service(key),
        Change::SliceGone(key) => world.remove_slice(key),
    }
}

/// Everything that is wrong with a case in a mode, each ready to be printed.
fn findings(case: &Case, mode: Mode) -> Vec<String> {
    let mut found = Vec::new();
    let mut world = world(case, mode);
    let mut told: Vec<&Change> = Vec::new();
    for step in &case.steps {
        for change in &step.changes {
            take(&mut world, change);
        }
        told.extend(&step.changes);
        world.settle();
        if told.len() == step.changes.len() {
            found.extend(wrong_views(case, &world));
        }
        for line in &step.packets {
            found.extend(wrong_packet(&world, mode, line));
        }
    }
    found.extend(wrong_order(case, mode, &world, &told));
    let services: Vec<_> = world.table().services().keys().cloned().collect();
    services.iter().for_each(|key| world.remove_service(key));
    world.settle();
    let mut empty = self::world(case, mode);
    empty.settle();
    if world.applied() != empty.applied() {
        found.push(format!("left behind by deleted Services: {:?}", world.applied()));
    }
    found.into_iter().map(|text| format!("{} [{mode}] {}\n    {text}", case.name, case.title)).collect()
}

/// What `svc list` and the health checks say.
fn wrong_views(case: &Case, world: &Offline) -> Vec<String> {
    let mut found = Vec::new();
    for row in world.rows() {
        let key = format!("{}/{}", row.namespace, row.name);
        let expected = case.problems.get(&key).cloned().unwrap_or_default();
        if row.problems != expected {
            found.push(format!(
                "svc list of {key}\n    expected {expected:#?}\n    got      {:#?}",
                row.problems
            ));
        }
    }
    if let Some(expected) = &case.health {
        let checks = world.table().health_checks();
        let got =
            checks.iter().map(|c| (c.service.to_string(), format!("{}: {}", c.port, c.local_endpoints)));
        let got = got.collect();
        if *expected != got {
            found.push(format!("health checks\n    expected {expected:?}\n    got      {got:?}"));
        }
    }
    found
}

fn wrong_packet(world: &Offline, mode: Mode, line: &PacketLine) -> Option<String> {
    let PacketLine { origin, src, dst, protocol, .. } = *line;
    let expected = line.expected(mode);
    let fate = match world.trace(&Packet { origin, src, dst, protocol }) {
        Ok(fate) => fate,
        Err(error) => return Some(format!("{}: {error}", line.text)),
    };
    let answer = world.explain(&Query { dst, protocol, origin, src });
    let affinity = answer.matched.as_ref().and_then(|matched| matched.affinity_seconds);
    let got = Expected::of(&fate);
    let mut wrong = String::new();
    if got != expected.clone().without_affinity() {
        let _ = write!(wrong, "\n    expected {expected}\n    got      {got}");
    }
    if matches!(fate, Fate::Endpoints(_)) && affinity != expected.affinity() {
        let _ = write!(wrong, "\n    expected affinity {:?}, got {affinity:?}", expected.affinity());
    }
    if mode.is_ipvs() && matches!(fate, Fate::Endpoints(_)) {
        let key = VirtualServerKey::new(dst.ip(), dst.port(), protocol);
        if let Some(ObjectValue::Server(server)) = world.applied().get(&ObjectKey::Server(key)).as_deref() {
            let kept = server.flags.persistent.then_some(server.timeout);
            if kept != expected.affinity() {
                let _ = write!(wrong, "\n    the virtual server keeps clients for {kept:?}");
            }
        }
    }
    if let Fate::Endpoints(all) = &fate {
        let sent: BTreeSet<SocketAddr> = all.iter().map(|one| one.to).collect();
        let used = answer.candidates.iter().filter(|one| one.used).map(|one| one.endpoint);
        let used: BTreeSet<SocketAddr> = used.collect();
        if used != sent {
            let _ = write!(wrong, "\n    svc explain calls {used:?} used");
        }
    }
    if wrong.is_empty() {
        return None;
    }
    let _ = write!(wrong, "\n    {}", answer.sentence);
    for one in &answer.candidates {
        let _ =
            write!(wrong, "\n      {} {}: {}", one.endpoint, if one.used { "in" } else { "out" }, one.reason);
    }
    for (claim, objects) in world.applied().by_claim() {
        if claim.to_string() == format!("{dst}/{protocol}") {
            for (key, value) in objects.iter() {
                let _ = write!(wrong, "\n      {key} {value:?}");
            }
        }
    }
    Some(format!("{}{wrong}", line.text))
}

/// The same objects told backwards, all at once, end in the same rules; and a second look has nothing
/// to do.
fn wrong_order(case: &Case, mode: Mode, world: &Offline, told: &[&Change]) -> Option<String> {
    if case.steps.len() > 1 {
        // Histories have an order; what they end in is compared with their last state told afresh.
        return wrong_history(case, mode, world, told);
    }
    let mut backwards = self::world(case, mode);
    told.iter().rev().for_each(|change| take(&mut backwards, change));
    backwards.settle();
    (backwards.applied().in_order() != world.applied().in_order())
        .then(|| "told backwards, the rules are others".to_owned())
}

fn wrong_history(case: &Case, mode: Mode, world: &Offline, told: &[&Change]) -> Option<String> {
    let mut last: Vec<&Change> = Vec::new();
    for change in told {
        last.retain(|before| !is_same_object(before, change));
        if matches!(change, Change::Service(_) | Change::Slice(_)) {
            last.push(change);
        }
    }
    let mut fresh = self::world(case, mode);
    last.iter().for_each(|change| take(&mut fresh, change));
    fresh.settle();
    (fresh.applied().in_order() != world.applied().in_order()).then(|| {
        format!(
            "the history ends in other rules than a fresh start\n{:?}\n{:?}",
            world.applied(),
            fresh.applied()
        )
    })
}

fn is_same_object(a: &Change, b: &Change) -> bool {
    let key = |change: &Change| match change {
        Change::Service(service) => (true, service.key()),
        Change::ServiceGone(key) => (true, key.clone()),
        Change::Slice(slice) => (false, slice.key()),
        Change::SliceGone(key) => (false, key.clone()),
    };
    key(a) == key(b)
}

#[test]
fn every_packet_meets_what_its_case_says_in_every_mode() {
    trace(&MODES);
}

#[test]
fn every_packet_meets_what_its_case_says_in_iptables_mode() {
    trace(&[Mode::Iptables]);
}

#[test]
fn every_packet_meets_what_its_case_says_in_ipvs_mode_without_nf_tables() {
    trace(&[Mode::IpvsByIptables]);
}

fn trace(modes: &[Mode]) {
    let cases = case::all();
    let mut wrong = Vec::new();
    let mut packets = 0;
    for case in &cases {
        for mode in modes.iter().copied() {
            wrong.extend(findings(case, mode));
            packets += case.steps.iter().map(|step| step.packets.len()).sum::<usize>();
        }
    }
    println!("{} cases, {packets} packets traced", cases.len());
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn case_names_and_titles_are_told_apart() {
    let mut titles = BTreeSet::new();
    for case in case::all().iter().filter(|case| !case.name.ends_with("(IPv6)")) {
        assert!(titles.insert(case.title.clone()), "{}: another case has this title", case.name);
        assert!(
            !case.title.ends_with('.') && case.title.len() < 120,
            "{}: one line, no full stop",
            case.name
        );
    }
}

fn plain(mode: Mode) -> Offline {
    let case = Case {
        name: String::new(),
        title: String::new(),
        config: case::Config::default(),
        node: case::Node::default(),
        steps: Vec::new(),
        problems: std::collections::BTreeMap::new(),
        health: None,
    };
    world(&case, mode)
}

fn many(slice: usize, each: usize) -> Change {
    let endpoint = |index: usize| {
        let number = slice * each + index;
        let addr = format!("10.{}.{}.{}", 100 + number / 65_536, number / 256 % 256, number % 256);
        json!({"addresses": [addr], "nodeName": "n2"})
    };
    let endpoints: Vec<_> = (0..each).map(endpoint).collect();
    let slice = json!({"metadata": {"name": format!("big-{slice}"), "labels": {"kubernetes.io/service-name": "big"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints});
    Change::Slice(Box::new(serde_json::from_value(slice).unwrap()))
}

fn big() -> Change {
    let service = json!({"metadata": {"name": "big"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]}});
    Change::Service(Box::new(serde_json::from_value(service).unwrap()))
}

/// How many endpoints a pod's packet may reach.
fn reached(world: &Offline) -> usize {
    let packet = Packet {
        origin: longshore_core::ruleset::trace::Origin::Pod,
        src: "10.244.1.9".parse().unwrap(),
        dst: "10.96.0.1:80".parse().unwrap(),
        protocol: longshore_core::ruleset::Protocol::Tcp,
    };
    match world.trace(&packet).unwrap() {
        Fate::Endpoints(all) => all.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slice_of_a_thousand_endpoints_is_served_whole() {
    for mode in MODES {
        let mut world = plain(mode);
        take(&mut world, &big());
        take(&mut world, &many(0, 1000));
        world.settle();
        assert_eq!((reached(&world), world.rows()[0].problems.len()), (1000, 0), "{mode}");
    }
}

#[test]
fn a_service_of_a_hundred_thousand_endpoints_is_capped_and_says_so() {
    for mode in MODES {
        let mut world = plain(mode);
        take(&mut world, &big());
        (0..100).for_each(|slice| take(&mut world, &many(slice, 1000)));
        world.settle();
        assert_eq!(reached(&world), MAX_USED, "{mode}");
        let said = format!(
            "default/big:http/tcp (IPv4): only the first {MAX_USED} usable endpoints by address get packets, {} more do not",
            100_000 - MAX_USED
        );
        assert_eq!(world.rows()[0].problems, [said], "{mode}");
        take(&mut world, &Change::ServiceGone(longshore_core::ids::ObjectKey::new("default", "big")));
        world.settle();
        let mut empty = plain(mode);
        empty.settle();
        assert_eq!(world.applied(), empty.applied(), "{mode}");
    }
}
