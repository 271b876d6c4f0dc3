//! `RealRoutes` against the kernel, in a network namespace of each test's own.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::IpAddr;

use longshore_kernel::route::{AddressOp, IpFamily, LOOPBACK, RealRoutes, Routes};

#[test]
fn a_device_and_its_addresses_come_and_go() {
    common::in_new_netns(|| async {
        let routes = RealRoutes::open().unwrap().with_veth_fallback();
        let link = routes.ensure_dummy("kube-ipvs0").await.unwrap();
        assert_eq!(routes.ensure_dummy("kube-ipvs0").await.unwrap(), link, "idempotent");
        assert!(!link.up);

        let v4: Vec<IpAddr> = (0..=255u8).map(|low| IpAddr::from([10, 96, 0, low])).collect();
        let v6: IpAddr = "fd00:96::a".parse().unwrap();
        let mut ops: Vec<AddressOp> = v4.iter().copied().map(AddressOp::Ensure).collect();
        ops.extend([AddressOp::Ensure(v6), AddressOp::Ensure(v6)]);
        for (op, outcome) in ops.iter().zip(routes.change_addresses(&link, &ops).await) {
            assert_eq!(outcome, Ok(()), "{op:?}");
        }
        let on_device = |addresses: Vec<longshore_kernel::route::LinkAddress>| -> Vec<(IpAddr, u8)> {
            let mut found: Vec<_> = addresses
                .iter()
                .filter(|address| address.link == link.index && !address.link_local)
                .map(|address| (address.addr, address.prefix))
                .collect();
            found.sort();
            found
        };
        let mut expected: Vec<(IpAddr, u8)> = v4.iter().map(|addr| (*addr, 32)).collect();
        expected.push((v6, 128));
        assert_eq!(on_device(routes.addresses().await.unwrap()), expected);

        let mut removals: Vec<AddressOp> = v4[1..].iter().copied().map(AddressOp::Remove).collect();
        removals.extend([AddressOp::Remove(v6), AddressOp::Remove(IpAddr::from([1, 2, 3, 4]))]);
        for (op, outcome) in removals.iter().zip(routes.change_addresses(&link, &removals).await) {
            assert_eq!(outcome, Ok(()), "{op:?}");
        }
        assert_eq!(on_device(routes.addresses().await.unwrap()), [(v4[0], 32)]);

        routes.remove_device("kube-ipvs0").await.unwrap();
        routes.remove_device("kube-ipvs0").await.unwrap();
        let gone = routes.change_addresses(&link, &[AddressOp::Ensure(v6)]).await;
        assert_eq!(gone[0].as_ref().unwrap_err().to_string(), "device kube-ipvs0: add address fd00:96::a");
    });
}

#[test]
fn a_device_of_another_kind_is_not_taken_over() {
    common::in_new_netns(|| async {
        let routes = RealRoutes::open().unwrap().with_veth_fallback();
        let lo = routes.link("lo").await.unwrap().unwrap();
        assert!(lo.loopback && lo.index == LOOPBACK, "{lo:?}");
        assert_eq!(routes.link("none").await.unwrap(), None);
        let err = routes.ensure_dummy("lo").await.unwrap_err();
        assert!(err.to_string().starts_with("device lo exists and is of kind"), "{err}");
    });
}

#[test]
fn without_a_route_there_is_no_default_source() {
    common::in_new_netns(|| async {
        let routes = RealRoutes::open().unwrap();
        assert_eq!(routes.default_source(IpFamily::V4).await, Ok(None));
        assert_eq!(routes.default_source(IpFamily::V6).await, Ok(None));
    });
}

#[test]
fn changes_of_the_nodes_addresses_are_told_with_their_device() {
    use longshore_kernel::route::monitor::{AddressEvent, AddressEvents, RealAddressEvents};
    common::in_new_netns(|| async {
        let routes = RealRoutes::open().unwrap().with_veth_fallback();
        let link = routes.ensure_dummy("eth9").await.unwrap();
        let mut events = RealAddressEvents::open().unwrap();
        // Every pod's device brings one; a node that took it for news would read all addresses for each pod.
        let of_the_link: IpAddr = "fe80::7".parse().unwrap();
        assert_eq!(routes.change_addresses(&link, &[AddressOp::Ensure(of_the_link)]).await, [Ok(())]);
        let addr = IpAddr::from([192, 0, 2, 7]);
        for op in [AddressOp::Ensure(addr), AddressOp::Remove(addr)] {
            assert_eq!(routes.change_addresses(&link, &[op]).await, [Ok(())]);
            let told = tokio::time::timeout(std::time::Duration::from_secs(5), events.next()).await;
            assert_eq!(told.unwrap(), Some(AddressEvent::Device(Some("eth9".to_owned()))), "{op:?}");
        }
    });
}
