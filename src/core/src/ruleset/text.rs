//! Rules as text, as the tools that load them would take them: `ipvsadm -R`'s lines, and nft's tables.
//! For `svc render`; the daemon itself speaks netlink.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::Protocol;
use super::diff::Applied;
use super::ipvs::{RealServerKey, VirtualServer, VirtualServerKey};
use super::nft::{Family, TableKey};
use super::object::{DEVICE, ObjectKey, ObjectValue, TABLE};
use super::offline::Offline;

/// The virtual and real servers as `ipvsadm -R` reads them: one command line each.
pub fn ipvsadm(applied: &Applied) -> String {
    let mut text = String::new();
    for (key, value) in applied.other_than_elements() {
        let line = match (key, value) {
            (ObjectKey::Server(server), ObjectValue::Server(settings)) => server_line(server, settings),
            (ObjectKey::Real(server, real), ObjectValue::Real(settings)) => {
                real_line(server, real, settings.weight)
            }
            _ => None,
        };
        if let Some(line) = line {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// The addresses of the dummy device, as `ip -batch` reads them.
pub fn addresses(applied: &Applied) -> String {
    let mut text = String::new();
    for (key, _) in applied.other_than_elements() {
        if let ObjectKey::Address(addr) = key {
            let _ =
                writeln!(text, "address add {addr}/{} dev {DEVICE}", if addr.is_ipv6() { 128 } else { 32 });
        }
    }
    text
}

/// The table of a family in nft's form; empty where nothing of the family is served.
pub fn nft(world: &Offline, ipv6: bool) -> String {
    if !world.table().ports().any(|state| state.spec.cluster_ip.is_ipv6() == ipv6) {
        return String::new();
    }
    let family = if ipv6 { Family::Ip6 } else { Family::Ip };
    world.nft_table(ipv6).text(&TableKey::new(family, TABLE))
}

fn server_line(key: &VirtualServerKey, settings: &VirtualServer) -> Option<String> {
    let mut line = format!("-A {} -s {}", at(key)?, settings.scheduler);
    if settings.flags.persistent {
        let _ = write!(line, " -p {}", settings.timeout);
    }
    if settings.flags.one_packet {
        line.push_str(" -o");
    }
    let flags = [
        (settings.flags.sched1, "flag-1"),
        (settings.flags.sched2, "flag-2"),
        (settings.flags.sched3, "flag-3"),
    ];
    let flags: Vec<&str> = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    if !flags.is_empty() {
        let _ = write!(line, " -b {}", flags.join(","));
    }
    Some(line)
}

fn real_line(key: &VirtualServerKey, real: &RealServerKey, weight: u32) -> Option<String> {
    Some(format!("-a {} -r {} -m -w {weight}", at(key)?, SocketAddr::new(real.addr, real.port)))
}

/// `-t 10.96.0.1:80`: ipvsadm's letters for protocols.
fn at(key: &VirtualServerKey) -> Option<String> {
    let VirtualServerKey::Address { addr, port, protocol } = key else { return None };
    let letter = match protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp => "-u",
        Protocol::Sctp => "--sctp-service",
    };
    Some(format!("{letter} {}", SocketAddr::new(*addr, *port)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ruleset::world::World;

    #[test]
    fn virtual_servers_are_written_as_ipvsadm_reads_them() {
        let mut world = World::new();
        let ports = json!([{"name": "p", "port": 80}, {"name": "u", "port": 53, "protocol": "UDP"}]);
        world.service(
            "web",
            json!({"clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP", "ports": ports}),
            &[],
        );
        world.service("six", json!({"clusterIP": "fd00:96::1", "ports": [{"name": "p", "port": 80}]}), &[]);
        world.endpoints("web", &["10.244.1.1"]).endpoints("six", &["fd00:244::1"]).settle(true);
        assert_eq!(
            ipvsadm(&world.applied),
            "-A -u 10.96.0.1:53 -s rr -p 10800\n\
             -a -u 10.96.0.1:53 -r 10.244.1.1:8053 -m -w 1\n\
             -A -t 10.96.0.1:80 -s rr -p 10800\n\
             -a -t 10.96.0.1:80 -r 10.244.1.1:8080 -m -w 1\n\
             -A -t [fd00:96::1]:80 -s rr\n\
             -a -t [fd00:96::1]:80 -r [fd00:244::1]:8080 -m -w 1\n"
        );
        assert_eq!(
            addresses(&world.applied),
            "address add 10.96.0.1/32 dev kube-ipvs0\naddress add fd00:96::1/128 dev kube-ipvs0\n"
        );
    }
}
