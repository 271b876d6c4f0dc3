//! KubeProxyConfiguration v1alpha1 as Kubernetes 1.36 has it: every field, its type and its default.
//! Facts: staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go and pkg/proxy/apis/config/v1alpha1/defaults.go.
//! No rules and no use of the values here.

use std::collections::BTreeMap;
use std::num::FpCategory;

use serde::{Deserialize, Serialize};

use super::fields::{FillZero, config_fields};
use super::kubelet::Logging;
use super::units::GoDuration;

pub const KIND: &str = "KubeProxyConfiguration";
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

const fn secs(seconds: u32) -> GoDuration {
    GoDuration::from_secs(seconds)
}

fn text(value: &str) -> String {
    value.to_owned()
}

config_fields! {
    /// kube-proxy's configuration file.
    KubeProxyConfiguration, PROXY_FIELDS {
        "featureGates" feature_gates: BTreeMap<String, bool> = BTreeMap::new(), keep, Never, "gates by name; behaviour is that of the 1.36 defaults, and a gate that says otherwise is named in a warning";
        "clientConnection" client_connection: ClientConnection = ClientConnection::default(), keep, Now, "kubeconfig for Services and slices, where it is not the agent's own; the rest of it is not used";
        "logging" logging: Logging = Logging::default(), keep, Now, "format and verbosity, where the daemon is the proxy alone; else the kubelet's file has it";
        "hostnameOverride" hostname_override: String = String::new(), keep, Now, "the node's name, where neither flag nor kubelet file gives one";
        "bindAddress" bind_address: String = text("0.0.0.0"), fill, Now, "the node's own address, where it is not the detected one";
        "healthzBindAddress" healthz_bind_address: String = text("0.0.0.0:10256"), keep, Now, "address of /healthz and /livez, an IP or an IP with a port; empty is the default; port 0, or the flag with an empty text, is off";
        "metricsBindAddress" metrics_bind_address: String = String::new(), keep, Now, "address of /metrics, /proxyMode and /configz; empty is 127.0.0.1:10249, or [::1]:10249 where bindAddress is IPv6; port 0, or the flag with an empty text, is off. kube-proxy's names, without its two nfacct counters (`kubeproxy_iptables_ct_state_invalid_dropped_packets_total`, `kubeproxy_iptables_localhost_nodeports_accepted_packets_total`)";
        "bindAddressHardFail" bind_address_hard_fail: bool = false, keep, Now, "end the daemon where one of the two cannot listen; else it is tried again";
        "enableProfiling" enable_profiling: bool = false, keep, Never, "profiler of the Go runtime";
        "showHiddenMetricsForVersion" show_hidden_metrics_for_version: String = String::new(), keep, Never, "no metric is hidden";
        "mode" mode: String = String::new(), keep, Now, "nftables, ipvs, iptables; empty or auto takes the first of them that the kernel has";
        "iptables" iptables: IptablesSection = IptablesSection::default(), keep, Now, "masqueradeBit and masqueradeAll of iptables and ipvs mode; localhostNodePorts, syncPeriod, minSyncPeriod of iptables mode";
        "ipvs" ipvs: IpvsSection = IpvsSection::default(), keep, Now, "syncPeriod, minSyncPeriod, scheduler, excludeCIDRs, strictARP, tcpTimeout, tcpFinTimeout, udpTimeout";
        "nftables" nftables: NftablesSection = NftablesSection::default(), keep, Now, "masqueradeBit, masqueradeAll, syncPeriod, minSyncPeriod of nftables mode";
        "winkernel" winkernel: serde_json::Map<String, serde_json::Value> = serde_json::Map::new(), keep, Never, "Windows";
        "detectLocalMode" detect_local_mode: String = String::new(), keep, Now, "ClusterCIDR (default), NodeCIDR, BridgeInterface, InterfaceNamePrefix";
        "detectLocal" detect_local: DetectLocalSection = DetectLocalSection::default(), keep, Now, "bridgeInterface, interfaceNamePrefix";
        "clusterCIDR" cluster_cidr: String = String::new(), keep, Now, "pod addresses of the cluster, one per family";
        "nodePortAddresses" node_port_addresses: Vec<String> = Vec::new(), keep, Now, "CIDRs whose node addresses serve NodePorts, or `primary`";
        "oomScoreAdj" oom_score_adj: Option<i32> = Some(-999), keep, Now, "the daemon's OOM score, where it is the proxy alone; else the kubelet's file has it";
        "conntrack" conntrack: ConntrackSection = ConntrackSection::default(), keep, Now, "maxPerCore, min (the table is only ever enlarged), tcpEstablishedTimeout, tcpCloseWaitTimeout, tcpBeLiberal, udpTimeout, udpStreamTimeout";
        "configSyncPeriod" config_sync_period: GoDuration = secs(900), fill, Never, "watches need no resync";
        "portRange" port_range: String = String::new(), keep, Never, "without effect upstream too";
        "windowsRunAsService" windows_run_as_service: bool = false, keep, Never, "Windows";
    }
}

impl KubeProxyConfiguration {
    /// Puts defaults where kubeadm writes a zero or an empty text for what is not set, within the sections.
    pub fn fill_sections(&mut self) {
        let default = Self::default();
        for (period, default) in [
            (&mut self.iptables.sync_period, default.iptables.sync_period),
            (&mut self.ipvs.sync_period, default.ipvs.sync_period),
            (&mut self.nftables.sync_period, default.nftables.sync_period),
        ] {
            if period.is_unset() {
                *period = default;
            }
        }
        let (client, default) = (&mut self.client_connection, default.client_connection);
        if client.content_type.is_unset() {
            client.content_type = default.content_type;
        }
        if client.qps.classify() == FpCategory::Zero {
            client.qps = default.qps;
        }
        if client.burst.is_unset() {
            client.burst = default.burst;
        }
    }
}

/// `clientConnection`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    pub qps: f64,
    pub burst: i32,
}

impl Default for ClientConnection {
    fn default() -> Self {
        Self {
            kubeconfig: String::new(),
            accept_content_types: String::new(),
            content_type: text("application/vnd.kubernetes.protobuf"),
            qps: 5.0,
            burst: 10,
        }
    }
}

/// `iptables`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IptablesSection {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: GoDuration,
    /// Without it, or at 0, a round waits as long as the last one took, at most a second.
    pub min_sync_period: GoDuration,
}

impl Default for IptablesSection {
    fn default() -> Self {
        Self {
            masquerade_bit: Some(14),
            masquerade_all: false,
            localhost_node_ports: Some(true),
            sync_period: secs(30),
            min_sync_period: secs(0),
        }
    }
}

/// `ipvs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IpvsSection {
    pub sync_period: GoDuration,
    /// Without it, or at 0, a round waits as long as the last one took, at most a second.
    pub min_sync_period: GoDuration,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: GoDuration,
    pub tcp_fin_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

impl Default for IpvsSection {
    fn default() -> Self {
        Self {
            sync_period: secs(30),
            min_sync_period: secs(0),
            scheduler: String::new(),
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            tcp_timeout: secs(0),
            tcp_fin_timeout: secs(0),
            udp_timeout: secs(0),
        }
    }
}

/// `nftables`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NftablesSection {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub sync_period: GoDuration,
    /// Without it, or at 0, a round waits as long as the last one took, at most a second.
    pub min_sync_period: GoDuration,
}

impl Default for NftablesSection {
    fn default() -> Self {
        Self {
            masquerade_bit: Some(14),
            masquerade_all: false,
            sync_period: secs(30),
            min_sync_period: secs(0),
        }
    }
}

/// `detectLocal`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DetectLocalSection {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

/// `conntrack`. `None` and 0 leave the kernel's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConntrackSection {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: GoDuration,
    pub udp_stream_timeout: GoDuration,
}

impl Default for ConntrackSection {
    fn default() -> Self {
        Self {
            max_per_core: Some(32768),
            min: Some(131_072),
            tcp_established_timeout: Some(secs(24 * 3600)),
            tcp_close_wait_timeout: Some(secs(3600)),
            tcp_be_liberal: false,
            udp_timeout: secs(0),
            udp_stream_timeout: secs(0),
        }
    }
}
