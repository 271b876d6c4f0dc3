//! What Services need of the node itself: which of its addresses serve node ports, and which kernel
//! settings IPVS needs. Pure; the agent reads addresses and writes settings.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::render_ipvs::NodeNetwork;
use crate::service::Family;
use crate::service::cidr::Cidr;

/// An address of the host as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    pub addr: IpAddr,
    /// On a loopback device.
    pub loopback: bool,
    /// On our own dummy device.
    pub ours: bool,
    /// Valid on its link only.
    pub link_local: bool,
}

/// Where node ports are served (`nodePortAddresses`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every address of the node.
    #[default]
    All,
    /// The node's primary address of each family.
    Primary,
    /// Addresses within these.
    Within(Vec<Cidr>),
}

/// Sort the host's addresses. `primary` are the node's own, one for each family it has.
pub fn network(all: &[HostAddress], which: &NodePortAddresses, primary: &[IpAddr]) -> NodeNetwork {
    let host: BTreeSet<IpAddr> = all.iter().filter(|host| !host.ours).map(|host| host.addr).collect();
    // Loopback cannot be served by IPVS: its packets never pass the hooks with another source.
    let usable = all.iter().filter(|host| !host.ours && !host.loopback && !host.link_local);
    let usable = usable.map(|host| host.addr).filter(|addr| !addr.is_loopback());
    let admitted = |addr: &IpAddr| match which {
        NodePortAddresses::All => true,
        NodePortAddresses::Primary => primary.contains(addr),
        NodePortAddresses::Within(cidrs) => cidrs.iter().any(|cidr| cidr.contains(*addr)),
    };
    NodeNetwork {
        node_port_addresses: usable.filter(admitted).collect(),
        host_addresses: host,
        pod_interface: String::new(),
    }
}

/// A kernel setting below `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `net/ipv4/vs/conntrack`.
    pub path: &'static str,
    pub value: Cow<'static, str>,
    /// What is lost without it.
    pub reason: &'static str,
}

/// What every mode needs: the host forwards packets to pods.
pub fn forwarding_settings(families: &[Family]) -> Vec<Setting> {
    let setting = |family: &Family| match family {
        Family::V4 => Setting {
            path: "net/ipv4/ip_forward",
            value: Cow::Borrowed("1"),
            reason: "packets to pods are not forwarded",
        },
        Family::V6 => Setting {
            path: "net/ipv6/conf/all/forwarding",
            value: Cow::Borrowed("1"),
            reason: "IPv6 packets to pods are not forwarded",
        },
    };
    families.iter().map(setting).collect()
}

/// The settings IPVS mode needs on a kernel of this version (`net/ipv4/ip_vs` sysctl documentation).
pub fn ipvs_settings(kernel: (u32, u32), strict_arp: bool, families: &[Family]) -> Vec<Setting> {
    let mut settings = vec![
        Setting {
            path: "net/ipv4/vs/conntrack",
            value: Cow::Borrowed("1"),
            reason: "sources of Service connections are not rewritten without it",
        },
        Setting {
            path: "net/ipv4/vs/expire_nodest_conn",
            value: Cow::Borrowed("1"),
            reason: "connections to a removed endpoint hang instead of ending",
        },
        Setting {
            path: "net/ipv4/vs/expire_quiescent_template",
            value: Cow::Borrowed("1"),
            reason: "clients with affinity stay on an endpoint that is going away",
        },
    ];
    settings.extend(forwarding_settings(families));
    // Between 4.1 and 5.9 a reused source port waited a second or met a removed endpoint.
    if ((4, 1)..(5, 9)).contains(&kernel) {
        let reason = "connections from a reused port wait a second";
        settings.push(Setting { path: "net/ipv4/vs/conn_reuse_mode", value: Cow::Borrowed("0"), reason });
    }
    if strict_arp {
        let reason = "the node answers ARP for addresses of Services";
        settings.push(Setting { path: "net/ipv4/conf/all/arp_ignore", value: Cow::Borrowed("1"), reason });
        settings.push(Setting { path: "net/ipv4/conf/all/arp_announce", value: Cow::Borrowed("2"), reason });
    }
    settings
}

/// What is wanted of the connection tracker (`conntrack` of kube-proxy's file); a zero leaves a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConntrackWish {
    /// Entries for each processor.
    pub max_per_core: u32,
    /// Entries at least, where `max_per_core` is given.
    pub min: u32,
    pub tcp_established_seconds: u32,
    pub tcp_close_wait_seconds: u32,
    /// Take packets outside the window for valid.
    pub tcp_be_liberal: bool,
    pub udp_seconds: u32,
    pub udp_stream_seconds: u32,
}

/// More entries than this are never asked for: each costs memory whether used or not.
const MAX_TRACKED: u32 = 1 << 20;

impl ConntrackWish {
    /// How many connections should be tracked at most; `None` leaves the kernel's figure.
    pub fn table_size(&self, cpus: u32) -> Option<u32> {
        let wanted = self.max_per_core.saturating_mul(cpus.max(1)).max(self.min);
        (self.max_per_core > 0).then_some(wanted.min(MAX_TRACKED))
    }

    /// The kernel settings, given how many connections may be tracked now. The table is only ever
    /// enlarged: who gave a node more knew why.
    pub fn settings(&self, cpus: u32, tracked_now: u32) -> Vec<Setting> {
        let table = self.table_size(cpus).filter(|wanted| *wanted > tracked_now);
        let seconds = |seconds: u32| (seconds > 0).then(|| seconds.to_string());
        let all = [
            (
                "net/netfilter/nf_conntrack_max",
                table.map(|entries| entries.to_string()),
                "connections are refused while the tracker is full",
            ),
            (
                "net/netfilter/nf_conntrack_tcp_timeout_established",
                seconds(self.tcp_established_seconds),
                "idle connections are tracked for another time than the configuration says",
            ),
            (
                "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
                seconds(self.tcp_close_wait_seconds),
                "half-closed connections are tracked for another time than the configuration says",
            ),
            (
                "net/netfilter/nf_conntrack_tcp_be_liberal",
                self.tcp_be_liberal.then(|| "1".to_owned()),
                "packets outside the TCP window are invalid",
            ),
            (
                "net/netfilter/nf_conntrack_udp_timeout",
                seconds(self.udp_seconds),
                "UDP flows are tracked for another time than the configuration says",
            ),
            (
                "net/netfilter/nf_conntrack_udp_timeout_stream",
                seconds(self.udp_stream_seconds),
                "UDP streams are tracked for another time than the configuration says",
            ),
        ];
        let setting = |(path, value, reason): (&'static str, Option<String>, &'static str)| {
            value.map(|value| Setting { path, value: Cow::Owned(value), reason })
        };
        all.into_iter().filter_map(setting).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(addr: &str, flags: &str) -> HostAddress {
        HostAddress {
            addr: addr.parse().unwrap(),
            loopback: flags.contains('l'),
            ours: flags.contains('o'),
            link_local: flags.contains('s'),
        }
    }

    #[test]
    fn node_ports_are_served_on_real_addresses_only() {
        let all = [
            host("127.0.0.1", "l"),
            host("192.168.0.1", ""),
            host("10.0.0.1", ""),
            host("10.96.0.1", "o"),
            host("fe80::1", "s"),
            host("fd00::1", ""),
            host("172.16.0.1", "l"),
        ];
        let primary = ["192.168.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let within =
            NodePortAddresses::Within(vec!["10.0.0.0/8".parse().unwrap(), "127.0.0.0/8".parse().unwrap()]);
        let cases = [
            (NodePortAddresses::All, "10.0.0.1 192.168.0.1 fd00::1"),
            (NodePortAddresses::Primary, "192.168.0.1 fd00::1"),
            (within, "10.0.0.1"),
        ];
        for (which, want) in cases {
            let found = network(&all, &which, &primary);
            let texts: Vec<String> = found.node_port_addresses.iter().map(IpAddr::to_string).collect();
            assert_eq!(texts.join(" "), want, "{which:?}");
            assert_eq!(found.host_addresses.len(), 6, "all but the Service's");
        }
    }

    #[test]
    fn settings_follow_the_kernel_and_strict_arp() {
        let paths = |kernel, strict| -> Vec<&str> {
            ipvs_settings(kernel, strict, &[Family::V4]).iter().map(|setting| setting.path).collect()
        };
        assert_eq!(paths((6, 12), false).len(), 4);
        for (kernel, want) in [((4, 0), false), ((4, 1), true), ((5, 8), true), ((5, 9), false)] {
            assert_eq!(paths(kernel, false).contains(&"net/ipv4/vs/conn_reuse_mode"), want, "{kernel:?}");
        }
        assert!(paths((6, 12), true).contains(&"net/ipv4/conf/all/arp_ignore"));
    }

    #[test]
    fn the_connection_tracker_grows_with_the_processors_and_times_out_as_told() {
        let wish = ConntrackWish { max_per_core: 32_768, min: 131_072, ..ConntrackWish::default() };
        // (max per core, min, processors, tracked now) -> what is set.
        let cases = [
            ((32_768, 131_072), 2, 65_536, Some(131_072)),
            ((32_768, 131_072), 8, 65_536, Some(262_144)),
            ((32_768, 131_072), 8, 262_144, None),
            ((32_768, 131_072), 2, 524_288, None),
            ((32_768, 131_072), 1000, 65_536, Some(1 << 20)),
            ((0, 131_072), 8, 65_536, None),
            ((u32::MAX, 0), 8, 65_536, Some(1 << 20)),
        ];
        for ((max_per_core, min), cpus, now, want) in cases {
            let settings = ConntrackWish { max_per_core, min, ..wish }.settings(cpus, now);
            let found = settings.iter().find(|setting| setting.path.ends_with("_max"));
            let value = found.map(|setting| setting.value.parse::<u32>().unwrap());
            assert_eq!(value, want, "{max_per_core} {min} {cpus} {now}");
        }
        let all = ConntrackWish {
            max_per_core: 0,
            min: 0,
            tcp_established_seconds: 86_400,
            tcp_close_wait_seconds: 3600,
            tcp_be_liberal: true,
            udp_seconds: 30,
            udp_stream_seconds: 180,
        };
        let values: Vec<_> = all.settings(4, 0).into_iter().map(|setting| setting.value).collect();
        assert_eq!(values, ["86400", "3600", "1", "30", "180"]);
        assert_eq!(ConntrackWish::default().settings(4, 0), [], "nothing asked for, nothing set");
    }
}
