use proptest::prelude::*;

use super::*;

fn key() -> impl Strategy<Value = VirtualServerKey> {
    prop_oneof![
        (0u8..4, 1u16..4, 0usize..3).prop_map(|(addr, port, protocol)| {
            VirtualServerKey::new(IpAddr::from([10, 96, 0, addr]), port, Protocol::ALL[protocol])
        }),
        (1u32..3).prop_map(|mark| VirtualServerKey::FwMark { mark, ipv6: false }),
    ]
}

fn server() -> impl Strategy<Value = VirtualServer> {
    (0usize..Scheduler::ALL.len(), any::<u32>(), 0u32..20_000, 0u8..=32).prop_map(
        |(scheduler, bits, timeout, prefix)| VirtualServer {
            scheduler: Scheduler::ALL[scheduler],
            flags: ServiceFlags::from_bits(bits),
            timeout,
            prefix,
            persistence_engine: None,
        },
    )
}

fn reals() -> impl Strategy<Value = BTreeMap<RealServerKey, RealServer>> {
    proptest::collection::btree_map(
        (0u8..5).prop_map(|host| RealServerKey::new(IpAddr::from([10, 1, 0, host]), 80)),
        (0u32..3).prop_map(|weight| RealServer { weight, ..RealServer::default() }),
        0..5,
    )
}

fn state() -> impl Strategy<Value = IpvsState> {
    let service = (server(), reals()).prop_map(|(server, reals)| IpvsService { server, reals });
    proptest::collection::btree_map(key(), service, 0..8).prop_map(|services| IpvsState { services })
}

proptest! {
    #[test]
    fn diff_applied_to_a_gives_b(a in state(), b in state()) {
        let mut table = a.clone();
        for op in diff(&a, &b) {
            prop_assert!(table.apply(&op).is_ok(), "{op} was refused");
        }
        prop_assert_eq!(table, b);
    }

    #[test]
    fn diff_of_a_table_with_itself_is_empty(a in state()) {
        prop_assert_eq!(diff(&a, &a), vec![]);
    }

    #[test]
    fn a_refused_operation_changes_nothing(a in state(), b in state()) {
        let mut table = b.clone();
        for op in diff(&a, &b) {
            let before = table.clone();
            if table.apply(&op).is_err() {
                prop_assert_eq!(&before, &table);
            }
        }
    }
}

fn dns() -> VirtualServerKey {
    VirtualServerKey::new(IpAddr::from([10, 96, 0, 10]), 53, Protocol::Udp)
}

fn endpoint(host: u8) -> RealServerKey {
    RealServerKey::new(IpAddr::from([10, 1, 2, host]), 53)
}

fn table(hosts: &[u8]) -> IpvsState {
    let server = VirtualServer::new(&dns(), Scheduler::Rr);
    let reals = hosts.iter().map(|host| (endpoint(*host), RealServer::default())).collect();
    IpvsState { services: BTreeMap::from([(dns(), IpvsService { server, reals })]) }
}

#[test]
fn an_exchanged_endpoint_is_added_before_the_old_one_goes() {
    let ops: Vec<String> = diff(&table(&[3]), &table(&[4])).iter().map(ToString::to_string).collect();
    assert_eq!(
        ops,
        [
            "ipvs 10.96.0.10:53/udp: add destination 10.1.2.4:53",
            "ipvs 10.96.0.10:53/udp: delete destination 10.1.2.3:53",
        ]
    );
}

#[test]
fn what_the_kernel_refuses_is_refused() {
    let key = dns();
    let server = VirtualServer::new(&key, Scheduler::Rr);
    let v6 = RealServerKey::new("fd00::1".parse().unwrap(), 53);
    let settings = RealServer::default();
    let other = VirtualServerKey::new(IpAddr::from([10, 96, 0, 11]), 53, Protocol::Udp);
    let every_port = VirtualServerKey::new(IpAddr::from([10, 96, 0, 11]), 0, Protocol::Udp);
    let cases = [
        (IpvsOp::AddService { key, server: server.clone() }, IpvsRefusal::Exists),
        (IpvsOp::SetService { key: other, server: server.clone() }, IpvsRefusal::NoService),
        (IpvsOp::DelService { key: other }, IpvsRefusal::NoService),
        (IpvsOp::AddService { key: every_port, server: server.clone() }, IpvsRefusal::Invalid),
        (IpvsOp::SetService { key, server: VirtualServer { prefix: 33, ..server } }, IpvsRefusal::Invalid),
        (IpvsOp::AddDest { key: other, real: endpoint(3), settings }, IpvsRefusal::NoService),
        (IpvsOp::AddDest { key, real: endpoint(3), settings }, IpvsRefusal::Exists),
        (IpvsOp::AddDest { key, real: v6, settings }, IpvsRefusal::Invalid),
        (IpvsOp::SetDest { key, real: endpoint(9), settings }, IpvsRefusal::NoDest),
        (IpvsOp::DelDest { key, real: endpoint(9) }, IpvsRefusal::NoDest),
        (
            IpvsOp::SetDest {
                key,
                real: endpoint(3),
                settings: RealServer { lower_threshold: 1, ..settings },
            },
            IpvsRefusal::Range,
        ),
    ];
    for (op, refusal) in cases {
        assert_eq!(table(&[3]).apply(&op), Err(refusal), "{op}");
    }
}

#[test]
fn names_round_trip() {
    for scheduler in Scheduler::ALL {
        assert_eq!(scheduler.name().parse(), Ok(*scheduler));
    }
    let err = "fastest".parse::<Scheduler>().unwrap_err();
    assert!(err.to_string().contains("\"fastest\""), "{err}");
    for bits in 0..0x40u32 {
        assert_eq!(ServiceFlags::from_bits(bits).bits(), bits & !0x2, "the kernel's own flag is masked");
    }
    for number in 0..=u8::MAX {
        if let Some(protocol) = Protocol::from_number(number) {
            assert_eq!(protocol.number(), number);
        }
    }
    assert_eq!(dns().to_string(), "10.96.0.10:53/udp");
    let v6 = VirtualServerKey::new("fd00::a".parse().unwrap(), 80, Protocol::Tcp);
    assert_eq!(v6.to_string(), "[fd00::a]:80/tcp");
}
