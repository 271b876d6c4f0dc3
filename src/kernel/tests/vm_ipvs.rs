//! `RealIpvs` against a kernel with IPVS: the kernel guest. Each test has a network namespace of its own.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::ipvs::{
    Forward, IpvsOp, IpvsService, IpvsState, IpvsTimeouts, RealServer, RealServerKey, Scheduler,
    ServiceFlags, VirtualServer, VirtualServerKey, diff,
};
use longshore_kernel::ipvs::{Ipvs, IpvsError, RealIpvs};
use longshore_kernel::route::{AddressOp, RealRoutes, Routes};

fn key(low: u8, protocol: Protocol) -> VirtualServerKey {
    VirtualServerKey::new(IpAddr::from([10, 96, 0, low]), 53, protocol)
}

fn reals(hosts: std::ops::Range<u8>) -> BTreeMap<RealServerKey, RealServer> {
    hosts
        .map(|host| (RealServerKey::new(IpAddr::from([10, 1, 2, host]), 5353), RealServer::default()))
        .collect()
}

fn state(services: impl IntoIterator<Item = (VirtualServerKey, VirtualServer, u8)>) -> IpvsState {
    let services = services
        .into_iter()
        .map(|(key, server, count)| (key, IpvsService { server, reals: reals(1..count + 1) }))
        .collect();
    IpvsState { services }
}

/// IPVS of this namespace. A namespace without any address has no local routing table, where the kernel
/// takes every IPv4 address for a broadcast one and refuses it as a real server.
async fn open() -> RealIpvs {
    let routes = RealRoutes::open().unwrap();
    let link = routes.ensure_dummy("kube-ipvs0").await.unwrap();
    let node = AddressOp::Ensure(IpAddr::from([192, 0, 2, 7]));
    routes.change_addresses(&link, &[node]).await.pop().unwrap().unwrap();
    RealIpvs::open().unwrap()
}

async fn converge(ipvs: &RealIpvs, wanted: &IpvsState) {
    let applied = ipvs.dump().await.unwrap().state;
    let ops = diff(&applied, wanted);
    for (op, outcome) in ops.iter().zip(ipvs.apply(&ops).await) {
        assert!(outcome.is_ok(), "{op}: {outcome:?}");
    }
    assert_eq!(&ipvs.dump().await.unwrap().state, wanted);
}

#[test]
fn a_table_converges_and_reads_back_as_wanted() {
    if !common::in_vm() {
        return;
    }
    common::in_new_netns(|| async {
        let ipvs = open().await;
        let plain = |key| (key, VirtualServer::new(&key, Scheduler::Rr), 3);
        let affine = key(11, Protocol::Tcp);
        let v6 = VirtualServerKey::new("fd00:96::a".parse().unwrap(), 80, Protocol::Tcp);
        let mark = VirtualServerKey::FwMark { mark: 7, ipv6: false };
        let mut wanted = state([
            plain(key(10, Protocol::Udp)),
            plain(key(10, Protocol::Tcp)),
            plain(key(10, Protocol::Sctp)),
            plain(mark),
            (affine, VirtualServer::new(&affine, Scheduler::Wlc).with_affinity(10_800), 2),
        ]);
        let v6_real = RealServerKey::new("fd00:1::3".parse().unwrap(), 8080);
        let settings =
            RealServer { weight: 5, upper_threshold: 10, lower_threshold: 3, forward: Forward::Masquerade };
        let v6_service = IpvsService {
            server: VirtualServer::new(&v6, Scheduler::Mh),
            reals: BTreeMap::from([(v6_real, settings)]),
        };
        wanted.services.insert(v6, v6_service);
        converge(&ipvs, &wanted).await;

        // Change everything that can change in place, remove some, add some.
        let service = wanted.services.get_mut(&affine).unwrap();
        service.server.timeout = 60;
        service.server.prefix = 24;
        service.server.scheduler = Scheduler::Sh;
        service.server.flags.sched2 = true;
        wanted.services.get_mut(&v6).unwrap().reals.insert(v6_real, settings.drained());
        wanted.services.get_mut(&mark).unwrap().reals = reals(2..6);
        wanted.services.remove(&key(10, Protocol::Tcp));
        converge(&ipvs, &wanted).await;
        let v6_service = wanted.services.get_mut(&v6).unwrap();
        v6_service.server.prefix = 64;
        v6_service.server.flags = ServiceFlags { persistent: true, ..ServiceFlags::default() };
        converge(&ipvs, &wanted).await;
        converge(&ipvs, &IpvsState::default()).await;
    });
}

#[test]
fn every_scheduler_is_known_by_its_name() {
    if !common::in_vm() {
        return;
    }
    common::in_new_netns(|| async {
        let ipvs = open().await;
        for scheduler in Scheduler::ALL {
            let key = key(20, Protocol::Tcp);
            converge(&ipvs, &state([(key, VirtualServer::new(&key, *scheduler), 2)])).await;
        }
    });
}

#[test]
fn refusals_are_per_operation_and_as_the_fake_has_them() {
    if !common::in_vm() {
        return;
    }
    common::in_new_netns(|| async {
        let ipvs = open().await;
        let fake = longshore_kernel::ipvs::FakeIpvs::new();
        let (key, other) = (key(10, Protocol::Udp), key(99, Protocol::Udp));
        let server = VirtualServer::new(&key, Scheduler::Rr);
        let real = RealServerKey::new(IpAddr::from([10, 1, 2, 3]), 53);
        let v6_real = RealServerKey::new("fd00::3".parse().unwrap(), 53);
        let settings = RealServer::default();
        let ops = [
            IpvsOp::SetService { key, server: server.clone() },
            IpvsOp::AddDest { key, real, settings },
            IpvsOp::AddService { key, server: server.clone() },
            IpvsOp::AddService { key, server: server.clone() },
            IpvsOp::SetDest { key, real, settings },
            IpvsOp::AddDest { key, real, settings },
            IpvsOp::AddDest { key, real, settings },
            IpvsOp::AddDest { key, real: v6_real, settings },
            IpvsOp::SetDest { key, real, settings: RealServer { lower_threshold: 4, ..settings } },
            IpvsOp::DelDest { key: other, real },
            IpvsOp::DelDest { key, real },
            IpvsOp::DelDest { key, real },
            IpvsOp::DelService { key },
            IpvsOp::DelService { key },
        ];
        let strip = |outcome: &Result<(), IpvsError>| match outcome {
            Err(IpvsError::Refused { source, .. }) => Some(source.errno),
            Err(other) => panic!("{other:?}"),
            Ok(()) => None,
        };
        let (real_outcomes, fake_outcomes) = (ipvs.apply(&ops).await, fake.apply(&ops).await);
        for ((op, real), fake) in ops.iter().zip(&real_outcomes).zip(&fake_outcomes) {
            assert_eq!(strip(real), strip(fake), "{op}");
        }
        assert!(ipvs.dump().await.unwrap().state.services.is_empty());
    });
}

#[test]
fn a_thousand_services_are_one_apply() {
    if !common::in_vm() {
        return;
    }
    common::in_new_netns(|| async {
        let ipvs = open().await;
        let services = (0..1000u16).map(|index| {
            let [high, low] = index.to_be_bytes();
            let key = VirtualServerKey::new(IpAddr::from([10, 96, high, low]), 80, Protocol::Tcp);
            (key, VirtualServer::new(&key, Scheduler::Rr), 10)
        });
        let wanted = state(services);
        let start = std::time::Instant::now();
        converge(&ipvs, &wanted).await;
        println!("1000 services x 10 real servers added and read back in {:?}", start.elapsed());
        converge(&ipvs, &IpvsState::default()).await;
    });
}

#[test]
fn timeouts_and_version_are_read_and_set() {
    if !common::in_vm() {
        return;
    }
    common::in_new_netns(|| async {
        let ipvs = open().await;
        let before = ipvs.info().await.unwrap();
        assert!(before.version >= (1, 2, 0) && before.connection_table_size > 0, "{before:?}");
        ipvs.set_timeouts(IpvsTimeouts { tcp: 800, tcp_fin: 0, udp: 200 }).await.unwrap();
        let after = ipvs.info().await.unwrap().timeouts;
        assert_eq!(after, IpvsTimeouts { tcp: 800, udp: 200, ..before.timeouts });
    });
}
