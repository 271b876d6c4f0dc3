//! `RealConntrack` against the kernel: real UDP packets through a real translation, in a network
//! namespace of the test's own.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::{SocketAddr, UdpSocket};

use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::nft::{
    BaseChain, ChainType, Expr, Family, HeaderField, Hook, NatFlags, NatKind, NftBatch, NftOp, Policy, Reg,
    Rule, TableKey, Value,
};
use longshore_kernel::conntrack::{Conntrack, FlowFilter, RealConntrack};
use longshore_kernel::nft::{Nft, RealNft};
use longshore_kernel::route::{IpFamily, RealRoutes, Routes};

/// Packets to port 53 go to port 5353.
fn translate_dns() -> NftBatch {
    let base = BaseChain { kind: ChainType::Nat, hook: Hook::Output, priority: -100, policy: Policy::Accept };
    let exprs = [
        &Expr::match_protocol(Protocol::Udp, Reg(0))[..],
        &[
            Expr::load(HeaderField::Dport, Reg(0)),
            Expr::eq(Reg(0), Value::Port(53)),
            Expr::immediate(Reg(0), Value::Addr([127, 0, 0, 1].into())),
            Expr::immediate(Reg(1), Value::Port(5353)),
            Expr::Nat {
                kind: NatKind::Dnat,
                ipv6: false,
                addr: Some(Reg(0)),
                port: Some(Reg(1)),
                flags: NatFlags::default(),
            },
        ],
    ]
    .concat();
    let chain = || "output".to_owned();
    NftBatch {
        table: TableKey::new(Family::Ip, "dns"),
        ops: vec![
            NftOp::AddTable,
            NftOp::AddChain { chain: chain(), base: Some(base) },
            NftOp::AddRule { chain: chain(), rule: Rule::new(exprs) },
        ],
    }
}

#[test]
fn a_translated_flow_is_found_and_deleted() {
    common::in_new_netns(|| async {
        let routes = RealRoutes::open().unwrap();
        let lo = routes.link("lo").await.unwrap().unwrap();
        routes.set_up(&lo, true).await.unwrap();
        routes.set_up(&lo, true).await.unwrap();
        assert!(routes.link("lo").await.unwrap().is_some_and(|lo| lo.up));
        RealNft::open().unwrap().apply(&translate_dns(), None).await.unwrap();

        let server = UdpSocket::bind("127.0.0.1:5353").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"?", "127.0.0.1:53").unwrap();
        plain.send_to(b"?", "127.0.0.1:5353").unwrap();
        let mut buffer = [0; 8];
        server.recv_from(&mut buffer).unwrap();

        let conntrack = RealConntrack::open().unwrap();
        let filter = FlowFilter::translated_udp(IpFamily::V4);
        let flows = conntrack.dump(filter).await.unwrap();
        assert_eq!(flows.len(), 1, "{flows:?}");
        let flow = flows[0];
        assert_eq!(flow.original.source, client.local_addr().unwrap());
        assert_eq!(flow.service(), SocketAddr::from(([127, 0, 0, 1], 53)));
        assert_eq!(flow.endpoint(), SocketAddr::from(([127, 0, 0, 1], 5353)));
        assert!(flow.is_dnat() && flow.timeout > 0);
        let all = conntrack.dump(FlowFilter { dnat_only: false, ..filter }).await.unwrap();
        assert_eq!(all.len(), 2, "{all:?}");

        assert_eq!(conntrack.delete(&[flow, flow]).await, [Ok(true), Ok(false)]);
        assert_eq!(conntrack.dump(filter).await.unwrap(), []);
        let tcp = FlowFilter { protocol: Protocol::Tcp, ..filter };
        assert_eq!(conntrack.dump(tcp).await.unwrap(), []);
        assert_eq!(conntrack.dump(FlowFilter::translated_udp(IpFamily::V6)).await.unwrap(), []);
    });
}
