//! The rules of kube-proxy's configuration kind, and the step from its fields to the settings of the
//! dataplane and its servers. Pure; broken rules are collected with their places.
//! Facts: pkg/proxy/apis/config/validation and cmd/kube-proxy/app of Kubernetes 1.36.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use longshore_core::ruleset::node::ConntrackWish;

use super::proxy::{API_VERSION, ClientConnection, ConntrackSection, KIND, KubeProxyConfiguration};
use super::rules::Rules;
use super::settings::*;
use super::units::GoDuration;

/// Schedulers of the Linux kernel (`net/netfilter/ipvs/ip_vs_*.c`).
const IPVS_SCHEDULERS: &[&str] =
    &["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "mh", "fo", "ovf", "twos"];
/// Where metrics are served unless the file says otherwise, and by IPv6 where `bindAddress` is IPv6.
const METRICS_PORT: u16 = 10249;
const HEALTH_PORT: u16 = 10256;
/// The default of `healthzBindAddress`, which means IPv6 where `bindAddress` does.
const EVERYWHERE: &str = "0.0.0.0:10256";
/// How a server that is off is shown.
const OFF: &str = ":0";

/// The daemon's own OOM score where it is kube-proxy alone.
pub(super) fn oom_score(config: &KubeProxyConfiguration, rules: &mut Rules<'_>) -> i32 {
    let score = config.oom_score_adj.unwrap_or(-999);
    rules.range("oomScoreAdj", i64::from(score), -1000..=1000);
    score
}

/// `pod_cidr` is the kubelet's `podCIDR`, a standalone node's own pod network.
pub(super) fn dataplane(
    config: &KubeProxyConfiguration,
    pod_cidr: &str,
    rules: &mut Rules<'_>,
) -> DataplaneSettings {
    rules.one_of("mode", &config.mode, &["", "auto", "ipvs", "nftables", "iptables"]);
    let mode = match config.mode.as_str() {
        "ipvs" => DataplaneMode::Ipvs,
        "nftables" => DataplaneMode::Nftables,
        "iptables" => DataplaneMode::Iptables,
        _ => DataplaneMode::Auto,
    };
    DataplaneSettings {
        mode,
        ipvs: ipvs(config, rules),
        tuning: tuning(config, rules),
        localhost_node_ports: config.iptables.localhost_node_ports.unwrap_or(true),
        detect_local: detect_local(config, pod_cidr, rules),
        node_ports: node_ports(config, rules),
        bind_address: bind_address(config, rules),
        conntrack: conntrack(&config.conntrack, rules),
    }
}

/// Where the two servers listen, and what `/configz` shows.
pub(super) fn servers(config: &KubeProxyConfiguration, rules: &mut Rules<'_>) -> ProxyServers {
    let ipv6 = config.bind_address.parse::<IpAddr>().is_ok_and(|addr| addr.is_ipv6());
    let (local, all): (IpAddr, IpAddr) = if ipv6 {
        (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into())
    } else {
        (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into())
    };
    let healthz = match config.healthz_bind_address.as_str() {
        // Written out it means the same as left out: IPv6 where `bindAddress` does.
        EVERYWHERE => Some(SocketAddr::new(all, HEALTH_PORT)),
        given => address("healthzBindAddress", given, SocketAddr::new(all, HEALTH_PORT), rules),
    };
    let metrics = config.metrics_bind_address.as_str();
    let metrics = address("metricsBindAddress", metrics, SocketAddr::new(local, METRICS_PORT), rules);
    let mut shown = serde_json::to_value(config).unwrap_or_default();
    if let Some(fields) = shown.as_object_mut() {
        fields.insert("kind".to_owned(), KIND.into());
        fields.insert("apiVersion".to_owned(), API_VERSION.into());
        for (name, addr) in [("healthzBindAddress", healthz), ("metricsBindAddress", metrics)] {
            let text = addr.map_or_else(|| OFF.to_owned(), |addr| addr.to_string());
            fields.insert(name.to_owned(), text.into());
        }
    }
    ProxyServers { healthz, metrics, hard_fail: config.bind_address_hard_fail, configz: shown }
}

/// `0.0.0.0:10256`, `[::]:10256`, `:10256`, or an address alone, which has the default's port. Port 0 is off.
/// An empty text is the default, as kubeadm writes it; as a flag it is off.
fn address(path: &str, text: &str, default: SocketAddr, rules: &mut Rules<'_>) -> Option<SocketAddr> {
    if text.is_empty() {
        return (!rules.is_flag(path)).then_some(default);
    }
    let parsed = match text.strip_prefix(':') {
        Some(port) => port.parse().ok().map(|port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)),
        None => {
            let alone = text.parse().ok().map(|addr| SocketAddr::new(addr, default.port()));
            alone.or_else(|| text.parse().ok())
        }
    };
    let message = || format!("is {text:?}; write an address and port like 0.0.0.0:10256");
    rules.parsed(path, parsed.ok_or_else(message)).filter(|addr| addr.port() != 0)
}

/// Of its connection to the API server a proxy only takes the credentials.
pub(super) fn client_connection(config: &KubeProxyConfiguration, rules: &mut Rules<'_>) {
    let (given, default) = (&config.client_connection, ClientConnection::default());
    let changed = [
        ("acceptContentTypes", given.accept_content_types != default.accept_content_types),
        ("contentType", given.content_type != default.content_type),
        ("qps", given.qps.total_cmp(&default.qps).is_ne()),
        ("burst", given.burst != default.burst),
    ];
    for (name, _) in changed.into_iter().filter(|(_, changed)| *changed) {
        let path = format!("clientConnection.{name}");
        rules.warn(&path, "has no effect: watches are JSON, and what is written has eventRecordQPS");
    }
}

/// `None` where it is unspecified: the node's address is then the detected one.
fn bind_address(config: &KubeProxyConfiguration, rules: &mut Rules<'_>) -> Option<IpAddr> {
    let wrong = |_| format!("is {:?}; it must be an IP address", config.bind_address);
    let parsed = config.bind_address.parse::<IpAddr>().map_err(wrong);
    rules.parsed("bindAddress", parsed).filter(|addr| !addr.is_unspecified())
}

/// IPVS mode takes masquerade from the iptables section, as kube-proxy does.
fn tuning(config: &KubeProxyConfiguration, rules: &mut Rules<'_>) -> PerMode<ModeTuning> {
    let mut bit = |path: &str, bit: Option<i32>| {
        let bit = bit.unwrap_or(14);
        rules.range(path, i64::from(bit), 0..=31);
        u8::try_from(bit).unwrap_or(14)
    };
    let nftables_bit = bit("nftables.masqueradeBit", config.nftables.masquerade_bit);
    let iptables_bit = bit("iptables.masqueradeBit", config.iptables.masquerade_bit);
    let mut make = |name: &str, (bit, all): (u8, bool), sync: GoDuration, min: GoDuration| {
        let sync_path = format!("{name}.syncPeriod");
        let min_path = format!("{name}.minSyncPeriod");
        let sync_period = rules.positive(&sync_path, sync);
        let min_sync_period = Some(rules.not_negative(&min_path, min)).filter(|min| !min.is_zero());
        let message = format!("is longer than {sync_path} ({sync})");
        rules.check(min_sync_period.is_none_or(|min| min <= sync_period), &min_path, message);
        ModeTuning { masquerade_bit: bit, masquerade_all: all, sync_period, min_sync_period }
    };
    let nftables = (nftables_bit, config.nftables.masquerade_all);
    let iptables = (iptables_bit, config.iptables.masquerade_all);
    PerMode {
        nftables: make("nftables", nftables, config.nftables.sync_period, config.nftables.min_sync_period),
        ipvs: make("ipvs", iptables, config.ipvs.sync_period, config.ipvs.min_sync_period),
        iptables: make("iptables", iptables, config.iptables.sync_period, config.iptables.min_sync_period),
    }
}

fn ipvs(config: &KubeProxyConfiguration, rules: &mut Rules<'_>) -> IpvsSettings {
    let section = &config.ipvs;
    let scheduler = if section.scheduler.is_empty() { "rr" } else { &section.scheduler };
    rules.one_of("ipvs.scheduler", scheduler, IPVS_SCHEDULERS);
    IpvsSettings {
        scheduler: scheduler.to_owned(),
        exclude: cidrs("ipvs.excludeCIDRs", section.exclude_cidrs.iter().map(String::as_str), rules),
        strict_arp: section.strict_arp,
        tcp_timeout: rules.not_negative("ipvs.tcpTimeout", section.tcp_timeout),
        tcp_fin_timeout: rules.not_negative("ipvs.tcpFinTimeout", section.tcp_fin_timeout),
        udp_timeout: rules.not_negative("ipvs.udpTimeout", section.udp_timeout),
    }
}

fn conntrack(section: &ConntrackSection, rules: &mut Rules<'_>) -> ConntrackWish {
    let mut count = |path: &str, value: Option<i32>| {
        let value = value.unwrap_or(0);
        rules.range(path, i64::from(value), 0..=i64::from(i32::MAX));
        u32::try_from(value).unwrap_or(0)
    };
    let max_per_core = count("conntrack.maxPerCore", section.max_per_core);
    let min = count("conntrack.min", section.min);
    let mut seconds = |path: &str, value: GoDuration| {
        let time: Duration = rules.not_negative(path, value);
        u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
    };
    let zero = GoDuration::default();
    ConntrackWish {
        max_per_core,
        min,
        tcp_established_seconds: seconds(
            "conntrack.tcpEstablishedTimeout",
            section.tcp_established_timeout.unwrap_or(zero),
        ),
        tcp_close_wait_seconds: seconds(
            "conntrack.tcpCloseWaitTimeout",
            section.tcp_close_wait_timeout.unwrap_or(zero),
        ),
        tcp_be_liberal: section.tcp_be_liberal,
        udp_seconds: seconds("conntrack.udpTimeout", section.udp_timeout),
        udp_stream_seconds: seconds("conntrack.udpStreamTimeout", section.udp_stream_timeout),
    }
}

fn cidrs<'a>(path: &str, texts: impl Iterator<Item = &'a str>, rules: &mut Rules<'_>) -> Vec<Cidr> {
    texts.filter_map(|text| rules.parsed(path, Cidr::parse(text))).collect()
}

fn detect_local(config: &KubeProxyConfiguration, pod_cidr: &str, rules: &mut Rules<'_>) -> DetectLocal {
    let section = &config.detect_local;
    let modes = ["", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
    rules.one_of("detectLocalMode", &config.detect_local_mode, &modes);
    match config.detect_local_mode.as_str() {
        // The kubelet's own file is checked with the kubelet's rules: what is no network here is none.
        "NodeCIDR" => DetectLocal::NodeCidr(
            pod_cidr.split(',').filter_map(|text| Cidr::parse(text.trim()).ok()).collect(),
        ),
        "BridgeInterface" => {
            interface_name("detectLocal.bridgeInterface", &section.bridge_interface, rules);
            DetectLocal::Bridge(section.bridge_interface.clone())
        }
        "InterfaceNamePrefix" => {
            interface_name("detectLocal.interfaceNamePrefix", &section.interface_name_prefix, rules);
            DetectLocal::InterfacePrefix(section.interface_name_prefix.clone())
        }
        _ => {
            let texts = config.cluster_cidr.split(',').map(str::trim).filter(|text| !text.is_empty());
            let networks = cidrs("clusterCIDR", texts, rules);
            let dual = networks.len() == 2 && networks[0].address.is_ipv4() != networks[1].address.is_ipv4();
            rules.check(networks.len() < 2 || dual, "clusterCIDR", "give one network, or one per family");
            DetectLocal::ClusterCidr(networks)
        }
    }
}

/// Interface names are 1 to 15 bytes (`IFNAMSIZ` of `linux/if.h`).
fn interface_name(path: &str, name: &str, rules: &mut Rules<'_>) {
    let ok = (1..16).contains(&name.len());
    rules.check(
        ok,
        path,
        format!("is {name:?}; detectLocalMode needs an interface name of 1 to 15 characters"),
    );
}

fn node_ports(config: &KubeProxyConfiguration, rules: &mut Rules<'_>) -> NodePortAddresses {
    let given = &config.node_port_addresses;
    if given.iter().any(|text| text == "primary") {
        rules.check(given.len() == 1, "nodePortAddresses", "\"primary\" must stand alone");
        return NodePortAddresses::Primary;
    }
    match cidrs("nodePortAddresses", given.iter().map(String::as_str), rules) {
        networks if networks.is_empty() => NodePortAddresses::Default,
        networks => NodePortAddresses::Within(networks),
    }
}
