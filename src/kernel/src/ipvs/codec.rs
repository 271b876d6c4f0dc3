//! The IPVS generic netlink protocol (`linux/ip_vs.h`): operations to messages, messages to the model.
//! `parse_service` and `parse_real` take arbitrary bytes and never panic.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::ipvs::{
    Connections, Forward, IpvsDump, IpvsOp, IpvsService, IpvsTimeouts, RealServer, RealServerKey,
    ServiceFlags, TrafficStats, VirtualServer, VirtualServerKey,
};

use super::{IpvsInfo, Reals};
use crate::netlink::wire::{Attribute, Attributes, Builder, Malformed, NLM_F_ACK, NLM_F_DUMP};
use crate::netlink::{NetlinkError, NetlinkSocket, generic};

/// The family's name; its number is given out at run time.
pub const FAMILY_NAME: &str = "IPVS";
const VERSION: u8 = 1;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `IPVS_CMD_*`.
mod cmd {
    pub(super) const NEW_SERVICE: u8 = 1;
    pub(super) const SET_SERVICE: u8 = 2;
    pub(super) const DEL_SERVICE: u8 = 3;
    pub(super) const GET_SERVICE: u8 = 4;
    pub(super) const NEW_DEST: u8 = 5;
    pub(super) const SET_DEST: u8 = 6;
    pub(super) const DEL_DEST: u8 = 7;
    pub(super) const GET_DEST: u8 = 8;
    pub(super) const SET_CONFIG: u8 = 12;
    pub(super) const GET_CONFIG: u8 = 13;
    pub(super) const GET_INFO: u8 = 15;
}

/// `IPVS_CMD_ATTR_*` and `IPVS_INFO_ATTR_*`.
mod attr {
    pub(super) const SERVICE: u16 = 1;
    pub(super) const DEST: u16 = 2;
    pub(super) const TIMEOUT_TCP: u16 = 4;
    pub(super) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(super) const TIMEOUT_UDP: u16 = 6;
    pub(super) const INFO_VERSION: u16 = 1;
    pub(super) const INFO_TABLE_SIZE: u16 = 2;
}

/// `IPVS_SVC_ATTR_*`.
mod svc {
    pub(super) const AF: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const ADDR: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const FWMARK: u16 = 5;
    pub(super) const SCHED_NAME: u16 = 6;
    pub(super) const FLAGS: u16 = 7;
    pub(super) const TIMEOUT: u16 = 8;
    pub(super) const NETMASK: u16 = 9;
    pub(super) const PE_NAME: u16 = 11;
    pub(super) const STATS64: u16 = 12;
}

/// `IPVS_DEST_ATTR_*`.
mod dest {
    pub(super) const ADDR: u16 = 1;
    pub(super) const PORT: u16 = 2;
    pub(super) const FWD_METHOD: u16 = 3;
    pub(super) const WEIGHT: u16 = 4;
    pub(super) const U_THRESH: u16 = 5;
    pub(super) const L_THRESH: u16 = 6;
    pub(super) const ACTIVE_CONNS: u16 = 7;
    pub(super) const INACT_CONNS: u16 = 8;
    pub(super) const PERSIST_CONNS: u16 = 9;
    pub(super) const ADDR_FAMILY: u16 = 11;
}

/// `IPVS_STATS_ATTR_*`, 64-bit in `STATS64`.
mod stats {
    pub(super) const CONNS: u16 = 1;
    pub(super) const INPKTS: u16 = 2;
    pub(super) const OUTPKTS: u16 = 3;
    pub(super) const INBYTES: u16 = 4;
    pub(super) const OUTBYTES: u16 = 5;
}

/// Write one operation as one message that asks for an acknowledgement.
pub fn encode_op(builder: &mut Builder, family: u16, seq: u32, op: &IpvsOp) {
    let command = match op {
        IpvsOp::AddService { .. } => cmd::NEW_SERVICE,
        IpvsOp::SetService { .. } => cmd::SET_SERVICE,
        IpvsOp::DelService { .. } => cmd::DEL_SERVICE,
        IpvsOp::AddDest { .. } => cmd::NEW_DEST,
        IpvsOp::SetDest { .. } => cmd::SET_DEST,
        IpvsOp::DelDest { .. } => cmd::DEL_DEST,
    };
    builder.begin(family, NLM_F_ACK, seq, &generic::header(command, VERSION));
    builder.nest(attr::SERVICE, |builder| {
        encode_key(builder, op.key());
        if let IpvsOp::AddService { key, server } | IpvsOp::SetService { key, server } = op {
            encode_server(builder, key, server);
        }
    });
    match op {
        IpvsOp::AddDest { real, settings, .. } | IpvsOp::SetDest { real, settings, .. } => {
            encode_real(builder, real, Some(settings));
        }
        IpvsOp::DelDest { real, .. } => encode_real(builder, real, None),
        IpvsOp::AddService { .. } | IpvsOp::SetService { .. } | IpvsOp::DelService { .. } => {}
    }
    builder.end();
}

fn encode_key(builder: &mut Builder, key: &VirtualServerKey) {
    builder.u16(svc::AF, if key.is_ipv6() { AF_INET6 } else { AF_INET });
    match key {
        VirtualServerKey::Address { addr, port, protocol } => {
            builder.u16(svc::PROTOCOL, u16::from(protocol.number()));
            builder.bytes(svc::ADDR, &address_bytes(*addr));
            builder.be16(svc::PORT, *port);
        }
        VirtualServerKey::FwMark { mark, .. } => builder.u32(svc::FWMARK, *mark),
    }
}

fn encode_server(builder: &mut Builder, key: &VirtualServerKey, server: &VirtualServer) {
    builder.str(svc::SCHED_NAME, server.scheduler.name());
    if let Some(engine) = &server.persistence_engine {
        builder.str(svc::PE_NAME, engine);
    }
    // A full mask: flags that are not set are cleared by a SET_SERVICE.
    let flags = [server.flags.bits().to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
    builder.bytes(svc::FLAGS, &flags);
    builder.u32(svc::TIMEOUT, server.timeout);
    // IPv4 has a mask in network order here, IPv6 a prefix length in host order.
    if key.is_ipv6() {
        builder.u32(svc::NETMASK, u32::from(server.prefix));
    } else {
        builder.be32(svc::NETMASK, prefix_to_mask(server.prefix));
    }
}

fn encode_real(builder: &mut Builder, real: &RealServerKey, settings: Option<&RealServer>) {
    builder.nest(attr::DEST, |builder| {
        builder.u16(dest::ADDR_FAMILY, if real.addr.is_ipv6() { AF_INET6 } else { AF_INET });
        builder.bytes(dest::ADDR, &address_bytes(real.addr));
        builder.be16(dest::PORT, real.port);
        if let Some(settings) = settings {
            builder.u32(dest::FWD_METHOD, settings.forward.bits());
            builder.u32(dest::WEIGHT, settings.weight);
            builder.u32(dest::U_THRESH, settings.upper_threshold);
            builder.u32(dest::L_THRESH, settings.lower_threshold);
        }
    });
}

/// Write a change of the connection time-outs; a zero is sent as it is and leaves the value alone.
pub fn encode_timeouts(builder: &mut Builder, family: u16, seq: u32, timeouts: &IpvsTimeouts) {
    builder.begin(family, NLM_F_ACK, seq, &generic::header(cmd::SET_CONFIG, VERSION));
    builder.u32(attr::TIMEOUT_TCP, timeouts.tcp);
    builder.u32(attr::TIMEOUT_TCP_FIN, timeouts.tcp_fin);
    builder.u32(attr::TIMEOUT_UDP, timeouts.udp);
    builder.end();
}

/// Dump the whole table.
pub(super) fn dump(socket: &mut NetlinkSocket, family: u16) -> Result<IpvsDump, NetlinkError> {
    let services = socket.dump(
        |builder, seq| {
            builder.begin(family, NLM_F_DUMP, seq, &generic::header(cmd::GET_SERVICE, VERSION));
            builder.end();
        },
        Vec::new,
        |services, message| {
            services.push(parse_service(message.payload)?);
            Ok(())
        },
    )?;
    let mut dump = IpvsDump::default();
    for service in services.into_iter().flatten() {
        let mut reals = BTreeMap::new();
        for (real, (settings, connections)) in dump_reals(socket, family, &service.key)? {
            dump.connections.insert((service.key, real), connections);
            reals.insert(real, settings);
        }
        dump.stats.insert(service.key, service.stats);
        dump.state.services.insert(service.key, IpvsService { server: service.server, reals });
    }
    Ok(dump)
}

/// Dump one virtual server's real servers; empty when it is not there.
pub(super) fn dump_reals(
    socket: &mut NetlinkSocket,
    family: u16,
    key: &VirtualServerKey,
) -> Result<Reals, NetlinkError> {
    socket.dump(
        |builder, seq| {
            builder.begin(family, NLM_F_DUMP, seq, &generic::header(cmd::GET_DEST, VERSION));
            builder.nest(attr::SERVICE, |builder| encode_key(builder, key));
            builder.end();
        },
        Reals::new,
        |reals, message| {
            if let Some((real, settings, connections)) = parse_real(message.payload, key.is_ipv6())? {
                reals.insert(real, (settings, connections));
            }
            Ok(())
        },
    )
}

/// Version, table size, time-outs.
pub(super) fn info(socket: &mut NetlinkSocket, family: u16) -> Result<IpvsInfo, NetlinkError> {
    let mut info =
        IpvsInfo { version: (0, 0, 0), connection_table_size: 0, timeouts: IpvsTimeouts::default() };
    let ask = |socket: &mut NetlinkSocket,
               command,
               each: &mut dyn FnMut(Attribute<'_>) -> Result<(), Malformed>| {
        socket.request(
            |builder, seq| {
                builder.begin(family, NLM_F_ACK, seq, &generic::header(command, VERSION));
                builder.end();
            },
            |message| {
                for attribute in Attributes::behind(message.payload, generic::HEADER_LEN)? {
                    each(attribute?)?;
                }
                Ok(())
            },
        )
    };
    ask(socket, cmd::GET_INFO, &mut |attribute| {
        match attribute.kind {
            attr::INFO_VERSION => {
                let [_, major, minor, patch] = attribute.u32()?.to_be_bytes();
                info.version = (major, minor, patch);
            }
            attr::INFO_TABLE_SIZE => info.connection_table_size = attribute.u32()?,
            _ => {}
        }
        Ok(())
    })?;
    ask(socket, cmd::GET_CONFIG, &mut |attribute| {
        match attribute.kind {
            attr::TIMEOUT_TCP => info.timeouts.tcp = attribute.u32()?,
            attr::TIMEOUT_TCP_FIN => info.timeouts.tcp_fin = attribute.u32()?,
            attr::TIMEOUT_UDP => info.timeouts.udp = attribute.u32()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(info)
}

/// A virtual server as a dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceMessage {
    /// Its key.
    pub key: VirtualServerKey,
    /// Its settings.
    pub server: VirtualServer,
    /// Its counters.
    pub stats: TrafficStats,
}

/// Read a virtual server from a message's payload (family header first). `Ok(None)` is one this
/// program does not model: another protocol, or a scheduler from outside the kernel.
pub fn parse_service(payload: &[u8]) -> Result<Option<ServiceMessage>, Malformed> {
    let attributes = Attributes::behind(payload, generic::HEADER_LEN)?;
    let service =
        attributes.find(attr::SERVICE)?.ok_or(Malformed("service message without a service"))?.nested();
    let ipv6 = required(&service, svc::AF, "service without an address family")?.u16()? == AF_INET6;
    let Some(key) = parse_key(&service, ipv6)? else { return Ok(None) };
    let Some(scheduler) =
        required(&service, svc::SCHED_NAME, "service without a scheduler")?.str()?.parse().ok()
    else {
        return Ok(None);
    };
    let mut server = VirtualServer::new(&key, scheduler);
    for attribute in service.clone() {
        let attribute = attribute?;
        match attribute.kind {
            svc::FLAGS => server.flags = ServiceFlags::from_bits(attribute.u32()?),
            svc::TIMEOUT => server.timeout = attribute.u32()?,
            svc::NETMASK if ipv6 => server.prefix = u8::try_from(attribute.u32()?).unwrap_or(128).min(128),
            svc::NETMASK => server.prefix = attribute.be32()?.leading_ones() as u8,
            svc::PE_NAME => server.persistence_engine = Some(attribute.str()?.to_owned()),
            _ => {}
        }
    }
    let stats = match service.find(svc::STATS64)? {
        Some(stats) => parse_stats(stats.nested())?,
        None => TrafficStats::default(),
    };
    Ok(Some(ServiceMessage { key, server, stats }))
}

fn parse_key(service: &Attributes<'_>, ipv6: bool) -> Result<Option<VirtualServerKey>, Malformed> {
    if let Some(mark) = service.find(svc::FWMARK)? {
        return Ok(Some(VirtualServerKey::FwMark { mark: mark.u32()?, ipv6 }));
    }
    let number = required(service, svc::PROTOCOL, "service without a protocol")?.u16()?;
    let Some(protocol) = u8::try_from(number).ok().and_then(Protocol::from_number) else { return Ok(None) };
    let addr = parse_address(&required(service, svc::ADDR, "service without an address")?, ipv6)?;
    let port = required(service, svc::PORT, "service without a port")?.be16()?;
    Ok(Some(VirtualServerKey::Address { addr, port, protocol }))
}

/// Read a real server from a message's payload. `Ok(None)` is a forwarding method without a model.
/// `service_ipv6` is its family on kernels before 3.18, which do not say it.
pub fn parse_real(
    payload: &[u8],
    service_ipv6: bool,
) -> Result<Option<(RealServerKey, RealServer, Connections)>, Malformed> {
    let attributes = Attributes::behind(payload, generic::HEADER_LEN)?;
    let real =
        attributes.find(attr::DEST)?.ok_or(Malformed("destination message without a destination"))?.nested();
    let ipv6 = match real.find(dest::ADDR_FAMILY)? {
        Some(family) => family.u16()? == AF_INET6,
        None => service_ipv6,
    };
    let addr = parse_address(&required(&real, dest::ADDR, "destination without an address")?, ipv6)?;
    let port = required(&real, dest::PORT, "destination without a port")?.be16()?;
    let mut settings = RealServer::default();
    let mut connections = Connections::default();
    for attribute in real {
        let attribute = attribute?;
        match attribute.kind {
            dest::FWD_METHOD => match Forward::from_bits(attribute.u32()?) {
                Some(forward) => settings.forward = forward,
                None => return Ok(None),
            },
            dest::WEIGHT => settings.weight = attribute.u32()?,
            dest::U_THRESH => settings.upper_threshold = attribute.u32()?,
            dest::L_THRESH => settings.lower_threshold = attribute.u32()?,
            dest::ACTIVE_CONNS => connections.active = attribute.u32()?,
            dest::INACT_CONNS => connections.inactive = attribute.u32()?,
            dest::PERSIST_CONNS => connections.persistent = attribute.u32()?,
            _ => {}
        }
    }
    Ok(Some((RealServerKey { addr, port }, settings, connections)))
}

fn parse_stats(attributes: Attributes<'_>) -> Result<TrafficStats, Malformed> {
    let mut traffic = TrafficStats::default();
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            stats::CONNS => traffic.connections = attribute.u64()?,
            stats::INPKTS => traffic.packets_in = attribute.u64()?,
            stats::OUTPKTS => traffic.packets_out = attribute.u64()?,
            stats::INBYTES => traffic.bytes_in = attribute.u64()?,
            stats::OUTBYTES => traffic.bytes_out = attribute.u64()?,
            _ => {}
        }
    }
    Ok(traffic)
}

fn required<'a>(
    attributes: &Attributes<'a>,
    kind: u16,
    missing: &'static str,
) -> Result<Attribute<'a>, Malformed> {
    attributes.find(kind)?.ok_or(Malformed(missing))
}

/// `union nf_inet_addr`: always 16 bytes, IPv4 in the first four.
fn address_bytes(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V6(addr) => addr.octets(),
        IpAddr::V4(addr) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&addr.octets());
            bytes
        }
    }
}

fn parse_address(attribute: &Attribute<'_>, ipv6: bool) -> Result<IpAddr, Malformed> {
    Ok(if ipv6 {
        Ipv6Addr::from(attribute.array::<16>()?).into()
    } else {
        Ipv4Addr::from(attribute.array::<4>()?).into()
    })
}

fn prefix_to_mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

#[cfg(test)]
mod tests;
