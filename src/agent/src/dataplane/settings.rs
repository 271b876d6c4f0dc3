//! The kernel settings that Services need: written where they differ, and what could not be written
//! said. Which they are is decided in `longshore_core::ruleset::node`.

use std::net::{IpAddr, Ipv4Addr};

use longshore_core::ruleset::node::{self, NodePortAddresses, Setting};
use longshore_core::service::Family;
use longshore_kernel::sysctl::Sysctls;

use super::kernel::in_full;
use super::{DataplaneConfig, ModeRequest};

/// How many connections the kernel tracks at most.
const TRACKED: &str = "net/netfilter/nf_conntrack_max";
/// Buckets of the tracker's table: four entries in each at most keep look-ups short.
const BUCKETS: &str = "net/netfilter/nf_conntrack_buckets";

/// Those of the mode that was asked for; one sentence for each that could not be made.
pub fn make_settings(config: &DataplaneConfig, sysctls: &dyn Sysctls) -> Vec<String> {
    make(config, config.mode, sysctls)
}

pub(super) fn make(config: &DataplaneConfig, mode: ModeRequest, sysctls: &dyn Sysctls) -> Vec<String> {
    let mut families = vec![Family::V4];
    if config.node_ips.iter().any(IpAddr::is_ipv6) {
        families.push(Family::V6);
    }
    let mut settings = match mode {
        ModeRequest::Ipvs => node::ipvs_settings(config.kernel_version, config.strict_arp, &families),
        ModeRequest::Auto | ModeRequest::Nftables | ModeRequest::Iptables => {
            node::forwarding_settings(&families)
        }
    };
    if mode == ModeRequest::Iptables && serves_localhost(config) {
        settings.push(Setting {
            path: "net/ipv4/conf/all/route_localnet",
            value: "1".into(),
            reason: "node ports do not answer on 127.0.0.1",
        });
    }
    // A tracker that cannot be read is left alone.
    let tracked = number(sysctls, TRACKED).unwrap_or(u32::MAX);
    settings.extend(config.conntrack.settings(config.cpus, tracked));
    let mut problems = Vec::new();
    for setting in settings {
        match sysctls.ensure(setting.path, &setting.value) {
            Ok(true) => {
                tracing::info!(setting = setting.path, value = &*setting.value, "kernel setting made");
                if setting.path == TRACKED {
                    problems.extend(widen(sysctls, &setting.value));
                }
            }
            Ok(false) => {}
            Err(error) => problems.push(format!("{}: {}", in_full(&error), setting.reason)),
        }
    }
    problems
}

/// Only where somebody can reach a node port there: the setting lets packets from 127.0.0.0/8 leave
/// loopback.
fn serves_localhost(config: &DataplaneConfig) -> bool {
    let within = match &config.node_port_addresses {
        None | Some(NodePortAddresses::All) => true,
        Some(NodePortAddresses::Primary) => false,
        Some(NodePortAddresses::Within(cidrs)) => {
            cidrs.iter().any(|cidr| cidr.first().is_loopback() || cidr.contains(Ipv4Addr::LOCALHOST.into()))
        }
    };
    config.localhost_node_ports && within
}

/// A larger table with as many buckets as before would be a list.
fn widen(sysctls: &dyn Sysctls, entries: &str) -> Option<String> {
    let wanted = entries.parse::<u32>().ok()? / 4;
    let have = number(sysctls, BUCKETS)?;
    if have >= wanted {
        return None;
    }
    let error = sysctls.ensure(BUCKETS, &wanted.to_string()).err()?;
    Some(format!("{}: look-ups in the connection tracker are slow", in_full(&error)))
}

fn number(sysctls: &dyn Sysctls, name: &str) -> Option<u32> {
    sysctls.read(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use longshore_core::ruleset::node::ConntrackWish;
    use longshore_kernel::sysctl::FakeSysctls;

    use super::*;

    #[test]
    fn the_tracker_grows_with_its_buckets_and_what_is_missing_is_said() {
        let config = DataplaneConfig {
            conntrack: ConntrackWish {
                max_per_core: 1000,
                min: 8000,
                udp_seconds: 30,
                ..ConntrackWish::default()
            },
            cpus: 2,
            ..DataplaneConfig::new(ModeRequest::Nftables, "n1", vec![IpAddr::from([192, 168, 0, 1])])
        };
        let sysctls = FakeSysctls::new(&[("net/ipv4/ip_forward", "0"), (TRACKED, "4096"), (BUCKETS, "1024")]);
        let problems = make_settings(&config, &sysctls);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("nf_conntrack_udp_timeout"), "{problems:?}");
        let values = ["net/ipv4/ip_forward", TRACKED, BUCKETS].map(|name| sysctls.read(name).unwrap());
        assert_eq!(values, ["1", "8000", "2000"]);
        let unread = FakeSysctls::new(&[("net/ipv4/ip_forward", "1")]);
        let problems = make_settings(&config, &unread);
        assert!(problems.iter().all(|problem| !problem.contains("nf_conntrack_max")), "{problems:?}");
    }
}
