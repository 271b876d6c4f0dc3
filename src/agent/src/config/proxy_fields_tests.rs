//! Every field of KubeProxyConfiguration v1alpha1, one row each: what a value of it does here. The fields
//! are those of staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go of Kubernetes 1.36.

use std::collections::BTreeSet;

use super::tests::{PROXY, load_with};
use super::*;

/// What a value does.
enum Does {
    /// It is in force: how that is read from the settings, and what is read.
    Sets(fn(&Settings) -> String, &'static str),
    /// It has no effect, and a warning says so.
    Warns,
    /// It has no effect, and nobody could miss one: it is about Windows, Go, or is unused upstream too.
    Nothing,
}
use Does::{Nothing, Sets, Warns};

/// The field, what stands beside it, a value, what it does, and a value that is refused with a word of the
/// reason; the value is empty where any value of its type is taken.
type Row = (&'static str, &'static str, &'static str, Does, &'static str, &'static str);

fn tuning(settings: &Settings, of: impl Fn(&ModeTuning) -> String) -> String {
    let all = &settings.dataplane.tuning;
    [("nftables", &all.nftables), ("ipvs", &all.ipvs), ("iptables", &all.iptables)]
        .map(|(mode, tuning)| format!("{mode} {}", of(tuning)))
        .join(", ")
}

fn bits(settings: &Settings) -> String {
    tuning(settings, |tuning| tuning.masquerade_bit.to_string())
}

fn all(settings: &Settings) -> String {
    tuning(settings, |tuning| tuning.masquerade_all.to_string())
}

fn syncs(settings: &Settings) -> String {
    tuning(settings, |tuning| format!("{:?}", tuning.sync_period))
}

fn pauses(settings: &Settings) -> String {
    tuning(settings, |tuning| format!("{:?}", tuning.min_sync_period.unwrap_or_default()))
}

fn networks(all: &[Cidr]) -> String {
    all.iter().map(|cidr| format!("{}/{}", cidr.address, cidr.prefix)).collect::<Vec<_>>().join(" ")
}

fn detected(settings: &Settings) -> String {
    match &settings.dataplane.detect_local {
        DetectLocal::ClusterCidr(all) => format!("cluster {}", networks(all)),
        DetectLocal::NodeCidr(all) => format!("node {}", networks(all)),
        DetectLocal::Bridge(name) => format!("bridge {name}"),
        DetectLocal::InterfacePrefix(prefix) => format!("prefix {prefix}"),
    }
}

fn node_ports(settings: &Settings) -> String {
    match &settings.dataplane.node_ports {
        NodePortAddresses::Default => "default".to_owned(),
        NodePortAddresses::Primary => "primary".to_owned(),
        NodePortAddresses::Within(all) => networks(all),
    }
}

fn address(addr: Option<std::net::SocketAddr>) -> String {
    addr.map_or_else(|| "off".to_owned(), |addr| addr.to_string())
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("featureGates", "", "{NFTablesProxyMode: true}", Nothing, "[a]", "invalid type"),
    ("clientConnection.kubeconfig", "", "/other.conf", Sets(|s| format!("{:?}", s.join.as_ref().and_then(|join| join.services_kubeconfig.clone())), "Some(\"/other.conf\")"), "", ""),
    ("clientConnection.acceptContentTypes", "", "application/json", Warns, "", ""),
    ("clientConnection.contentType", "", "application/json", Warns, "", ""),
    ("clientConnection.qps", "", "50", Warns, "many", "invalid type"),
    ("clientConnection.burst", "", "100", Warns, "many", "invalid type"),
    ("logging.format", "", "json", Sets(|s| format!("{:?}", s.logging.format), "Json"), "xml", "must be one of"),
    ("logging.flushFrequency", "", "10s", Nothing, "", ""),
    ("logging.verbosity", "", "4", Sets(|s| s.logging.verbosity.to_string(), "4"), "-1", "invalid value"),
    ("logging.vmodule", "", "[{filePattern: proxier, verbosity: 5}]", Warns, "{}", "invalid type"),
    ("logging.options", "", "{json: {infoBufferSize: \"0\"}}", Nothing, "[a]", "invalid type"),
    ("hostnameOverride", "", "Other", Sets(|s| s.node.name.clone().unwrap_or_default(), "other"), "[a]", "invalid type"),
    ("bindAddress", "", "192.0.2.7", Sets(|s| format!("{:?}", s.dataplane.bind_address), "Some(192.0.2.7)"), "here", "must be an IP address"),
    ("healthzBindAddress", "", "127.0.0.1:9", Sets(|s| address(s.servers.healthz), "127.0.0.1:9"), "'10256'", "write an address and port"),
    ("metricsBindAddress", "", "0.0.0.0:9", Sets(|s| address(s.servers.metrics), "0.0.0.0:9"), "a:9", "write an address and port"),
    ("bindAddressHardFail", "", "true", Sets(|s| s.servers.hard_fail.to_string(), "true"), "maybe", "invalid type"),
    ("enableProfiling", "", "true", Nothing, "maybe", "invalid type"),
    ("showHiddenMetricsForVersion", "", "'1.35'", Nothing, "[a]", "invalid type"),
    ("mode", "", "ipvs", Sets(|s| format!("{:?}", s.dataplane.mode), "Ipvs"), "userspace", "must be one of"),
    ("iptables.masqueradeBit", "", "5", Sets(bits, "nftables 14, ipvs 5, iptables 5"), "32", "between 0 and 31"),
    ("iptables.masqueradeAll", "", "true", Sets(all, "nftables false, ipvs true, iptables true"), "maybe", "invalid type"),
    ("iptables.localhostNodePorts", "", "false", Sets(|s| s.dataplane.localhost_node_ports.to_string(), "false"), "maybe", "invalid type"),
    ("iptables.syncPeriod", "", "40s", Sets(syncs, "nftables 30s, ipvs 30s, iptables 40s"), "-1s", "longer than 0s"),
    ("iptables.minSyncPeriod", "", "2s", Sets(pauses, "nftables 0ns, ipvs 0ns, iptables 2s"), "31s", "is longer than iptables.syncPeriod"),
    ("ipvs.syncPeriod", "", "40s", Sets(syncs, "nftables 30s, ipvs 40s, iptables 30s"), "-1s", "longer than 0s"),
    ("ipvs.minSyncPeriod", "", "2s", Sets(pauses, "nftables 0ns, ipvs 2s, iptables 0ns"), "-1s", "must not be negative"),
    ("ipvs.scheduler", "", "wlc", Sets(|s| s.dataplane.ipvs.scheduler.clone(), "wlc"), "best", "must be one of"),
    ("ipvs.excludeCIDRs", "", "[10.1.0.0/16]", Sets(|s| networks(&s.dataplane.ipvs.exclude), "10.1.0.0/16"), "[10.1.0.0]", "is not a network"),
    ("ipvs.strictARP", "", "true", Sets(|s| s.dataplane.ipvs.strict_arp.to_string(), "true"), "maybe", "invalid type"),
    ("ipvs.tcpTimeout", "", "15m", Sets(|s| format!("{:?}", s.dataplane.ipvs.tcp_timeout), "900s"), "-1s", "must not be negative"),
    ("ipvs.tcpFinTimeout", "", "2m", Sets(|s| format!("{:?}", s.dataplane.ipvs.tcp_fin_timeout), "120s"), "-1s", "must not be negative"),
    ("ipvs.udpTimeout", "", "5m", Sets(|s| format!("{:?}", s.dataplane.ipvs.udp_timeout), "300s"), "-1s", "must not be negative"),
    ("nftables.masqueradeBit", "", "5", Sets(bits, "nftables 5, ipvs 14, iptables 14"), "-1", "between 0 and 31"),
    ("nftables.masqueradeAll", "", "true", Sets(all, "nftables true, ipvs false, iptables false"), "maybe", "invalid type"),
    ("nftables.syncPeriod", "", "40s", Sets(syncs, "nftables 40s, ipvs 30s, iptables 30s"), "-1s", "longer than 0s"),
    ("nftables.minSyncPeriod", "", "2s", Sets(pauses, "nftables 2s, ipvs 0ns, iptables 0ns"), "31s", "is longer than nftables.syncPeriod"),
    ("winkernel.networkName", "", "a", Nothing, "", ""),
    ("winkernel.sourceVip", "", "192.0.2.1", Nothing, "", ""),
    ("winkernel.enableDSR", "", "true", Nothing, "", ""),
    ("winkernel.rootHnsEndpointName", "", "a", Nothing, "", ""),
    ("winkernel.forwardHealthCheckVip", "", "true", Nothing, "", ""),
    ("detectLocalMode", "", "NodeCIDR", Sets(detected, "node "), "Somehow", "must be one of"),
    ("detectLocal.bridgeInterface", "detectLocalMode: BridgeInterface\n", "cni0", Sets(detected, "bridge cni0"), "''", "1 to 15 characters"),
    ("detectLocal.interfaceNamePrefix", "detectLocalMode: InterfaceNamePrefix\n", "veth", Sets(detected, "prefix veth"), "''", "1 to 15 characters"),
    ("clusterCIDR", "", "10.244.0.0/16,fd00::/48", Sets(detected, "cluster 10.244.0.0/16 fd00::/48"), "10.0.0.0/33", "is not a network"),
    ("nodePortAddresses", "", "[192.168.0.0/16, 'fd00::/8']", Sets(node_ports, "192.168.0.0/16 fd00::/8"), "[primary, 10.0.0.0/8]", "must stand alone"),
    ("oomScoreAdj", "", "-500", Sets(|s| s.node.oom_score_adj.to_string(), "-500"), "-1001", "between -1000 and 1000"),
    ("conntrack.maxPerCore", "", "1", Sets(|s| s.dataplane.conntrack.max_per_core.to_string(), "1"), "-1", "must be between"),
    ("conntrack.min", "", "2", Sets(|s| s.dataplane.conntrack.min.to_string(), "2"), "-1", "must be between"),
    ("conntrack.tcpEstablishedTimeout", "", "1h", Sets(|s| s.dataplane.conntrack.tcp_established_seconds.to_string(), "3600"), "-1s", "must not be negative"),
    ("conntrack.tcpCloseWaitTimeout", "", "1m", Sets(|s| s.dataplane.conntrack.tcp_close_wait_seconds.to_string(), "60"), "-1s", "must not be negative"),
    ("conntrack.tcpBeLiberal", "", "true", Sets(|s| s.dataplane.conntrack.tcp_be_liberal.to_string(), "true"), "maybe", "invalid type"),
    ("conntrack.udpTimeout", "", "30s", Sets(|s| s.dataplane.conntrack.udp_seconds.to_string(), "30"), "-1s", "must not be negative"),
    ("conntrack.udpStreamTimeout", "", "3m", Sets(|s| s.dataplane.conntrack.udp_stream_seconds.to_string(), "180"), "-1s", "must not be negative"),
    ("configSyncPeriod", "", "1m", Nothing, "soon", "is not a duration"),
    ("portRange", "", "1-2", Nothing, "[a]", "invalid type"),
    ("windowsRunAsService", "", "true", Nothing, "maybe", "invalid type"),
];

/// A proxy alone with this file.
fn with(body: &str) -> Result<Settings, String> {
    let file = format!("{PROXY}{body}");
    load_with(&[("p.yaml", &file)], "--roles proxy --kubeconfig /k --proxy-config %/p.yaml")
}

fn body(field: &str, beside: &str, value: &str) -> String {
    let line = match field.split_once('.') {
        Some((section, field)) => format!("{section}: {{{field}: {value}}}"),
        None => format!("{field}: {value}"),
    };
    format!("{beside}{line}\n")
}

/// The settings without warnings and what shows the file as it was given.
fn in_force(mut settings: Settings) -> String {
    settings.servers.configz = serde_json::Value::Null;
    settings.warnings.clear();
    format!("{settings:#?}")
}

#[test]
fn each_field_does_what_its_row_says() {
    let defaults = with("").expect("defaults");
    for (field, beside, value, does, bad, reason) in ROWS {
        let text = body(field, beside, value);
        let settings = with(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let warned = settings.warnings.iter().any(|warning| warning.contains(field));
        assert_eq!(warned, matches!(does, Warns), "{text}: {:?}", settings.warnings);
        match does {
            Sets(read, expected) => {
                assert_eq!(read(&settings), *expected, "{text}");
                assert_ne!(read(&defaults), *expected, "{field}: the default would pass too");
            }
            Warns | Nothing => assert_eq!(in_force(settings), in_force(defaults.clone()), "{text}"),
        }
        if !bad.is_empty() {
            let text = body(field, beside, bad);
            let error = with(&text).expect_err(&text);
            assert!(error.contains(reason), "{text} gave {error:?}, not {reason:?}");
        }
    }
}

#[test]
fn the_rows_are_all_fields_there_are() {
    let default = serde_json::to_value(proxy::KubeProxyConfiguration::default()).expect("json");
    let mut fields = BTreeSet::new();
    for (name, value) in default.as_object().expect("a mapping") {
        match value.as_object().filter(|fields| !fields.is_empty()) {
            Some(section) => fields.extend(section.keys().map(|field| format!("{name}.{field}"))),
            None => drop(fields.insert(name.clone())),
        }
    }
    // Read as it comes: the fields are upstream's, and none of them is used.
    fields.remove("winkernel");
    let rows: BTreeSet<String> =
        ROWS.iter().map(|row| row.0.to_owned()).filter(|field| !field.starts_with("winkernel.")).collect();
    assert_eq!(rows, fields);
    assert_eq!(ROWS.len(), 57, "Kubernetes 1.36 has 57 fields that are no sections");
}

/// What `kubeadm init` writes into the ConfigMap `kube-proxy`: every field, most of them empty, zero or null.
#[test]
fn the_file_of_kubeadm_means_the_defaults() {
    let file = "apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: \"\", burst: 0, contentType: \"\", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: \"\", interfaceNamePrefix: \"\"}
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: \"\", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
kind: KubeProxyConfiguration
logging: {flushFrequency: 0, options: {json: {infoBufferSize: \"0\"}, text: {infoBufferSize: \"0\"}}, verbosity: 0}
metricsBindAddress: \"\"
mode: \"\"
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: \"\", rootHnsEndpointName: \"\", sourceVip: \"\"}
";
    let line = "--roles proxy --proxy-config %/p.yaml --hostname-override=node";
    let settings = load_with(&[("p.yaml", file)], line).expect("as kubeadm starts kube-proxy");
    assert_eq!(settings.warnings, [] as [&str; 0]);
    let few = "clusterCIDR: 10.244.0.0/16\nclientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}\n\
               hostnameOverride: node\n";
    assert_eq!(in_force(settings), in_force(with_own(few)));
}

/// A proxy with the credentials of its file.
fn with_own(body: &str) -> Settings {
    load_with(&[("p.yaml", &format!("{PROXY}{body}"))], "--roles proxy --proxy-config %/p.yaml").expect(body)
}
