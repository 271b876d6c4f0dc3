//! The conntrack netlink protocol (`linux/netfilter/nfnetlink_conntrack.h`): what is needed to list
//! flows and delete one by its original tuple. `parse_flow` takes arbitrary bytes and never panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use longshore_core::ruleset::Protocol;

use super::{Flow, Tuple, socket_addr};
use crate::netlink::wire::{Attributes, Builder, Malformed, NLM_F_ACK, NLM_F_DUMP};

/// `NETLINK_NETFILTER`.
pub const NETLINK_NETFILTER: isize = 12;
const HEADER_LEN: usize = 4;
const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;

/// `CTA_*`.
mod attr {
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const TIMEOUT: u16 = 7;
    pub(super) const MARK: u16 = 8;
    pub(super) const ZONE: u16 = 18;
    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTO: u16 = 2;
    pub(super) const IP_V4_SRC: u16 = 1;
    pub(super) const IP_V4_DST: u16 = 2;
    pub(super) const IP_V6_SRC: u16 = 3;
    pub(super) const IP_V6_DST: u16 = 4;
    pub(super) const PROTO_NUM: u16 = 1;
    pub(super) const PROTO_SRC_PORT: u16 = 2;
    pub(super) const PROTO_DST_PORT: u16 = 3;
}

pub(super) const fn family(ipv6: bool) -> u8 {
    if ipv6 { 10 } else { 2 }
}

pub(super) fn encode_dump(builder: &mut Builder, family: u8, seq: u32) {
    builder.begin(SUBSYSTEM << 8 | GET, NLM_F_DUMP, seq, &[family, 0, 0, 0]);
    builder.end();
}

pub(super) fn encode_delete(builder: &mut Builder, seq: u32, flow: &Flow) {
    let family = family(flow.original.source.is_ipv6());
    builder.begin(SUBSYSTEM << 8 | DELETE, NLM_F_ACK, seq, &[family, 0, 0, 0]);
    encode_tuple(builder, attr::TUPLE_ORIG, flow.protocol, &flow.original);
    // Without a zone the kernel looks in zone 0 only.
    if flow.zone != 0 {
        builder.be16(attr::ZONE, flow.zone);
    }
    builder.end();
}

fn encode_tuple(builder: &mut Builder, kind: u16, protocol: Protocol, tuple: &Tuple) {
    builder.nest(kind, |builder| {
        builder.nest(attr::TUPLE_IP, |builder| {
            for (addr, v4, v6) in [
                (tuple.source.ip(), attr::IP_V4_SRC, attr::IP_V6_SRC),
                (tuple.destination.ip(), attr::IP_V4_DST, attr::IP_V6_DST),
            ] {
                match addr {
                    IpAddr::V4(addr) => builder.bytes(v4, &addr.octets()),
                    IpAddr::V6(addr) => builder.bytes(v6, &addr.octets()),
                }
            }
        });
        builder.nest(attr::TUPLE_PROTO, |builder| {
            builder.bytes(attr::PROTO_NUM, &[protocol.number()]);
            builder.be16(attr::PROTO_SRC_PORT, tuple.source.port());
            builder.be16(attr::PROTO_DST_PORT, tuple.destination.port());
        });
    });
}

/// Read a flow from a message's payload; `None` for a protocol without ports.
pub fn parse_flow(payload: &[u8]) -> Result<Option<Flow>, Malformed> {
    let attributes = Attributes::behind(payload, HEADER_LEN)?;
    let tuple = |kind| {
        let tuple = attributes.find(kind)?.ok_or(Malformed("flow without its tuples"))?;
        parse_tuple(tuple.nested())
    };
    let (Some((protocol, original)), Some((_, reply))) =
        (tuple(attr::TUPLE_ORIG)?, tuple(attr::TUPLE_REPLY)?)
    else {
        return Ok(None);
    };
    let mut flow = Flow { protocol, original, reply, status: 0, mark: 0, zone: 0, timeout: 0 };
    for attribute in attributes.clone() {
        let attribute = attribute?;
        match attribute.kind {
            attr::STATUS => flow.status = attribute.be32()?,
            attr::MARK => flow.mark = attribute.be32()?,
            attr::TIMEOUT => flow.timeout = attribute.be32()?,
            attr::ZONE => flow.zone = attribute.be16()?,
            _ => {}
        }
    }
    Ok(Some(flow))
}

fn parse_tuple(attributes: Attributes<'_>) -> Result<Option<(Protocol, Tuple)>, Malformed> {
    let mut ends: [Option<IpAddr>; 2] = [None; 2];
    for attribute in attributes.find(attr::TUPLE_IP)?.ok_or(Malformed("tuple without addresses"))?.nested() {
        let attribute = attribute?;
        match attribute.kind {
            attr::IP_V4_SRC => ends[0] = Some(Ipv4Addr::from(attribute.array::<4>()?).into()),
            attr::IP_V4_DST => ends[1] = Some(Ipv4Addr::from(attribute.array::<4>()?).into()),
            attr::IP_V6_SRC => ends[0] = Some(Ipv6Addr::from(attribute.array::<16>()?).into()),
            attr::IP_V6_DST => ends[1] = Some(Ipv6Addr::from(attribute.array::<16>()?).into()),
            _ => {}
        }
    }
    let [Some(source), Some(destination)] = ends else {
        return Err(Malformed("tuple without both addresses"));
    };
    let proto = attributes.find(attr::TUPLE_PROTO)?.ok_or(Malformed("tuple without a protocol"))?.nested();
    let number = proto.find(attr::PROTO_NUM)?.ok_or(Malformed("tuple without a protocol"))?.u8()?;
    let Some(protocol) = Protocol::from_number(number) else { return Ok(None) };
    let port = |kind| proto.find(kind)?.ok_or(Malformed("tuple without its ports"))?.be16();
    let source = socket_addr(source, port(attr::PROTO_SRC_PORT)?);
    let destination = socket_addr(destination, port(attr::PROTO_DST_PORT)?);
    Ok(Some((protocol, Tuple { source, destination })))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::wire::{HEADER_LEN as NLMSG_HEADER_LEN, Messages};

    fn flow(ipv6: bool) -> Flow {
        let addr = |last: u8| -> IpAddr {
            if ipv6 {
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into()
            } else {
                [10, 0, 0, last].into()
            }
        };
        let tuple =
            |a, b| Tuple { source: socket_addr(addr(a), 40_000), destination: socket_addr(addr(b), 53) };
        Flow {
            protocol: Protocol::Udp,
            original: tuple(1, 2),
            reply: tuple(3, 1),
            status: 1 << 5,
            mark: 7,
            zone: 9,
            timeout: 30,
        }
    }

    fn encoded(flow: &Flow) -> Vec<u8> {
        let mut builder = Builder::new();
        builder.begin(SUBSYSTEM << 8, 0, 1, &[2, 0, 0, 0]);
        encode_tuple(&mut builder, attr::TUPLE_ORIG, flow.protocol, &flow.original);
        encode_tuple(&mut builder, attr::TUPLE_REPLY, flow.protocol, &flow.reply);
        builder.be32(attr::STATUS, flow.status);
        builder.be32(attr::MARK, flow.mark);
        builder.be32(attr::TIMEOUT, flow.timeout);
        builder.be16(attr::ZONE, flow.zone);
        builder.end();
        builder.as_bytes().to_vec()
    }

    #[test]
    fn flows_round_trip() {
        for ipv6 in [false, true] {
            let bytes = encoded(&flow(ipv6));
            let message = Messages::new(&bytes).next().unwrap().unwrap();
            assert_eq!(parse_flow(message.payload), Ok(Some(flow(ipv6))));
        }
        assert_eq!(flow(false).to_string(), "conntrack udp 10.0.0.1:40000 -> 10.0.0.2:53 (10.0.0.3:40000)");
    }

    #[test]
    fn a_protocol_without_ports_is_skipped() {
        let mut bytes = encoded(&flow(false));
        for at in 0..bytes.len() - 4 {
            if bytes[at..at + 5] == [5, 0, 1, 0, 17] {
                bytes[at + 4] = 1;
            }
        }
        assert_eq!(parse_flow(&bytes[NLMSG_HEADER_LEN..]), Ok(None));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_flow(&bytes);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0usize..500, value: u8) {
            let mut bytes = encoded(&flow(true));
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = parse_flow(&bytes[NLMSG_HEADER_LEN..]);
        }
    }
}
