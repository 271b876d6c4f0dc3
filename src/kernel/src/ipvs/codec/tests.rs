use longshore_core::ruleset::ipvs::Scheduler;
use proptest::prelude::*;

use super::*;
use crate::netlink::wire::{HEADER_LEN, Messages};

const FAMILY: u16 = 0x23;

fn encoded(op: &IpvsOp) -> Vec<u8> {
    let mut builder = Builder::new();
    encode_op(&mut builder, FAMILY, 7, op);
    builder.as_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(4)
        .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + " ")
        .collect()
}

fn dns() -> VirtualServerKey {
    VirtualServerKey::new(IpAddr::from([10, 96, 0, 10]), 53, Protocol::Udp)
}

/// The bytes as the kernel's policy tables want them, little endian; put together by hand from
/// `linux/ip_vs.h`.
#[test]
#[cfg(target_endian = "little")]
fn an_added_service_has_these_bytes() {
    let server = VirtualServer::new(&dns(), Scheduler::Rr).with_affinity(10_800);
    let bytes = encoded(&IpvsOp::AddService { key: dns(), server });
    assert_eq!(
        hex(&bytes),
        "68000000 23000500 07000000 00000000 01010000 \
         54000180 06000100 02000000 06000200 11000000 \
         14000300 0a60000a 00000000 00000000 00000000 06000400 00350000 \
         07000600 72720000 0c000700 01000000 ffffffff \
         08000800 302a0000 08000900 ffffffff "
    );
}

#[test]
#[cfg(target_endian = "little")]
fn a_deleted_destination_has_only_its_identity() {
    let real = RealServerKey::new("fd00::2".parse().unwrap(), 8080);
    let key = VirtualServerKey::new("fd00::1".parse().unwrap(), 80, Protocol::Tcp);
    assert_eq!(
        hex(&encoded(&IpvsOp::DelDest { key, real })),
        "6c000000 23000500 07000000 00000000 07010000 \
         30000180 06000100 0a000000 06000200 06000000 \
         14000300 fd000000 00000000 00000000 00000001 06000400 00500000 \
         28000280 06000b00 0a000000 14000100 fd000000 00000000 00000000 00000002 06000200 1f900000 "
    );
}

fn address(ipv6: bool) -> BoxedStrategy<IpAddr> {
    if ipv6 {
        any::<[u8; 16]>().prop_map(IpAddr::from).boxed()
    } else {
        any::<[u8; 4]>().prop_map(IpAddr::from).boxed()
    }
}

fn key() -> impl Strategy<Value = VirtualServerKey> {
    any::<bool>().prop_flat_map(|ipv6| {
        prop_oneof![
            (address(ipv6), any::<u16>(), 0usize..3).prop_map(
                |(addr, port, protocol)| VirtualServerKey::new(addr, port, Protocol::ALL[protocol])
            ),
            (1u32..).prop_map(move |mark| VirtualServerKey::FwMark { mark, ipv6 }),
        ]
    })
}

fn server(key: VirtualServerKey) -> impl Strategy<Value = VirtualServer> {
    let engine = proptest::option::of(Just("sip".to_owned()));
    (0usize..Scheduler::ALL.len(), any::<u32>(), any::<u32>(), 1..=key.host_prefix(), engine).prop_map(
        |(scheduler, bits, timeout, prefix, persistence_engine)| VirtualServer {
            scheduler: Scheduler::ALL[scheduler],
            flags: ServiceFlags::from_bits(bits),
            timeout,
            prefix,
            persistence_engine,
        },
    )
}

fn payload_of(message: &[u8]) -> &[u8] {
    let all: Vec<_> = Messages::new(message).collect::<Result<_, _>>().unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(message.len(), HEADER_LEN + all[0].payload.len());
    all[0].payload
}

proptest! {
    #[test]
    fn services_round_trip((key, server) in key().prop_flat_map(|key| (Just(key), server(key)))) {
        let bytes = encoded(&IpvsOp::AddService { key, server: server.clone() });
        let service = parse_service(payload_of(&bytes)).unwrap().unwrap();
        prop_assert_eq!((service.key, service.server), (key, server));
    }

    #[test]
    fn destinations_round_trip(
        key in key(), addr in any::<bool>().prop_flat_map(address), port: u16, weight: u32,
        forward in 0u32..5, thresholds: (u32, u32),
    ) {
        let settings = RealServer {
            weight,
            forward: Forward::from_bits(forward).unwrap(),
            upper_threshold: thresholds.0,
            lower_threshold: thresholds.1,
        };
        let real = RealServerKey::new(addr, port);
        let bytes = encoded(&IpvsOp::AddDest { key, real, settings });
        let parsed = parse_real(payload_of(&bytes), !addr.is_ipv6()).unwrap().unwrap();
        prop_assert_eq!(parsed, (real, settings, Connections::default()));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_service(&bytes);
        let _ = parse_real(&bytes, false);
    }

    #[test]
    fn a_flipped_byte_never_panics(at in 0usize..400, value: u8) {
        let server = VirtualServer::new(&dns(), Scheduler::Mh).with_affinity(1);
        let mut bytes = encoded(&IpvsOp::AddService { key: dns(), server });
        let index = HEADER_LEN + at % (bytes.len() - HEADER_LEN);
        bytes[index] = value;
        let _ = parse_service(&bytes[HEADER_LEN..]);
        let _ = parse_real(&bytes[HEADER_LEN..], true);
    }
}

#[test]
fn what_this_program_does_not_model_is_skipped_not_refused() {
    let server = VirtualServer::new(&dns(), Scheduler::Rr);
    let bytes = encoded(&IpvsOp::AddService { key: dns(), server });
    let payload = payload_of(&bytes).to_vec();
    let replaced = |from: &[u8], to: &[u8]| {
        let at = payload.windows(from.len()).position(|window| window == from).unwrap();
        let mut changed = payload.clone();
        changed[at..at + to.len()].copy_from_slice(to);
        changed
    };
    assert_eq!(parse_service(&replaced(b"rr\0", b"zz\0")), Ok(None), "a scheduler from outside the kernel");
    let protocol = [6u16.to_ne_bytes(), 2u16.to_ne_bytes(), 17u16.to_ne_bytes()].concat();
    let other = [6u16.to_ne_bytes(), 2u16.to_ne_bytes(), 50u16.to_ne_bytes()].concat();
    assert_eq!(parse_service(&replaced(&protocol, &other)), Ok(None), "ESP");
    assert_eq!(
        parse_service(&payload[..4]).unwrap_err().to_string(),
        "malformed netlink message: service message without a service"
    );
}

#[test]
fn counters_and_connections_are_read() {
    let mut builder = Builder::new();
    builder.begin(FAMILY, 0, 1, &generic::header(cmd::NEW_SERVICE, VERSION));
    builder.nest(attr::SERVICE, |builder| {
        encode_key(builder, &dns());
        encode_server(builder, &dns(), &VirtualServer::new(&dns(), Scheduler::Wlc));
        builder.nest(svc::STATS64, |builder| {
            for (kind, value) in [(stats::CONNS, 5u64), (stats::INBYTES, 1 << 40), (stats::OUTPKTS, 9)] {
                builder.bytes(kind, &value.to_ne_bytes());
            }
        });
    });
    builder.end();
    let service = parse_service(payload_of(builder.as_bytes())).unwrap().unwrap();
    let expected =
        TrafficStats { connections: 5, bytes_in: 1 << 40, packets_out: 9, ..TrafficStats::default() };
    assert_eq!(service.stats, expected);

    builder.clear();
    builder.begin(FAMILY, 0, 1, &generic::header(cmd::NEW_DEST, VERSION));
    builder.nest(attr::DEST, |builder| {
        builder.bytes(dest::ADDR, &address_bytes(IpAddr::from([10, 1, 2, 3])));
        builder.be16(dest::PORT, 53);
        builder.u32(dest::ACTIVE_CONNS, 3);
        builder.u32(dest::INACT_CONNS, 4);
        builder.u32(dest::PERSIST_CONNS, 5);
    });
    builder.end();
    let (real, _, connections) = parse_real(payload_of(builder.as_bytes()), false).unwrap().unwrap();
    assert_eq!(real.to_string(), "10.1.2.3:53");
    assert_eq!(connections, Connections { active: 3, inactive: 4, persistent: 5 });
}

#[test]
fn prefixes_are_masks_in_ipv4() {
    for (prefix, mask) in [(0, 0), (1, 0x8000_0000), (24, 0xffff_ff00), (32, u32::MAX)] {
        assert_eq!(prefix_to_mask(prefix), mask);
    }
}
