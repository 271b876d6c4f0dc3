//! What the daemon is started with, as plain values grouped by the part that uses them. Made from
//! defaults, files and flags by [`super::load`]; nothing else in the daemon reads configuration.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use longshore_cluster::events::EventRate;
use longshore_core::image::gc::GcPolicy;
use longshore_core::image::provider::TokenAttributes;
use longshore_core::pod::snapshot::CgroupSettings;
use longshore_core::ruleset::node::ConntrackWish;

use crate::logs::LogSettings;

/// All settings of one daemon.
#[derive(Clone, Debug)]
pub struct Settings {
    pub roles: Roles,
    pub sources: SourceSettings,
    /// The control plane this node joins; `None` while it runs alone.
    pub join: Option<JoinSettings>,
    pub runtime: RuntimeSettings,
    pub cgroups: CgroupSettings,
    pub dns: DnsFiles,
    pub probes: ProbeSettings,
    pub pods: PodSettings,
    pub images: ImageSettings,
    pub logs: LogSettings,
    pub node: NodeSettings,
    pub dataplane: DataplaneSettings,
    pub servers: ProxyServers,
    /// The kubelet's own API.
    pub server: KubeletServer,
    pub admin: AdminSettings,
    pub logging: LoggingSettings,
    /// What a person should know about the configuration: unknown fields, settings without effect.
    pub warnings: Vec<String>,
}

/// Which halves of a node this daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Run pods.
    pub node: bool,
    /// Serve Services.
    pub proxy: bool,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSettings {
    /// No control plane.
    pub standalone: bool,
    /// Folder of manifests, absolute where the flag was.
    pub manifests: Option<PathBuf>,
    /// Re-list of that folder beside inotify.
    pub audit_period: Duration,
}

/// How the node joins a control plane.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinSettings {
    pub kubeconfig: PathBuf,
    pub certificates: CertificateSettings,
    /// Credentials for Services and slices where the proxy half has its own (clientConnection.kubeconfig).
    pub services_kubeconfig: Option<PathBuf>,
    /// Create the Node object.
    pub register: bool,
    /// Only for a Node object that is created.
    pub taints: Vec<Taint>,
    pub provider_id: Option<String>,
    pub lease_seconds: u32,
    /// How often the status is computed, and how often an unchanged one is written.
    pub update_every: Duration,
    pub report_every: Duration,
    /// Images in the status; `None`: all.
    pub max_images: Option<usize>,
    pub event_rate: EventRate,
}

/// How the node comes by its certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSettings {
    /// Credentials to get the first certificate with, and another after one has expired.
    pub bootstrap: Option<PathBuf>,
    /// Where certificates and keys are kept.
    pub folder: PathBuf,
    /// Ask for the next client certificate before this one ends.
    pub rotate: bool,
    /// The serving certificate is asked for too.
    pub serving: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeSettings {
    /// Absolute path of the CRI socket, without `unix://`.
    pub endpoint: PathBuf,
    /// The same for images; equal to `endpoint` unless set.
    pub image_endpoint: PathBuf,
    /// Deadline of unary calls but pulls and exec.
    pub request_timeout: Duration,
}

/// DNS of pods before the node's resolver file is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsFiles {
    pub cluster_dns: Vec<IpAddr>,
    /// Without a final dot; empty where not set.
    pub cluster_domain: String,
    /// The node's resolver file; `None` gives pods an empty one.
    pub resolv_conf: Option<PathBuf>,
}

/// Bounds of the probe engine; not settable, values in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSettings {
    /// Tries under way at once over the network (HTTP, TCP, gRPC).
    pub max_network_tries: usize,
    /// Tries under way at once through the runtime; each costs a process in the container.
    pub max_exec_tries: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSettings {
    /// `--root-dir`, default `/var/lib/kubelet`.
    pub root_dir: PathBuf,
    pub pod_logs_dir: PathBuf,
    /// Longest time between two looks at a pod without an event.
    pub sync_frequency: Duration,
    pub max_pods: u32,
    /// Longest wait of the crash back-off, 1 s to 300 s.
    pub max_restart_backoff: Duration,
    pub seccomp_default: bool,
    /// Names, or prefixes ending in `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSettings {
    /// Pulls at a time; 1 is serialized, `None` unbounded.
    pub max_parallel_pulls: Option<usize>,
    /// Pulls per second, `None` for no limit, and the burst above it.
    pub pull_rate: Option<(u32, u32)>,
    /// When unused images are removed.
    pub gc: GcPolicy,
    /// Plugins in the order they are asked.
    pub credential_providers: Vec<CredentialProvider>,
}

/// One image credential provider plugin.
#[derive(Clone, PartialEq, Eq)]
pub struct CredentialProvider {
    pub name: String,
    /// A file in the folder of plugins.
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Added to the daemon's own environment.
    pub env: Vec<(String, String)>,
    /// Places whose images it is asked for: hosts with patterns, ports, beginnings of paths.
    pub match_images: Vec<String>,
    /// How long an answer counts that does not say so; zero is not at all.
    pub keep: Duration,
    /// The version of the protocol it is asked in.
    pub api_version: String,
    /// How it is given tokens of pods' ServiceAccounts; `None` is not.
    pub tokens: Option<TokenAttributes>,
}

impl std::fmt::Debug for CredentialProvider {
    /// Arguments and variables may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialProvider").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct NodeSettings {
    /// Lower case; `None`: the host's name.
    pub name: Option<String>,
    /// `--node-ip`: none, one, or one per family.
    pub ips: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    /// The daemon's own OOM score, -1000..=1000.
    pub oom_score_adj: i32,
    /// The daemon's own limit of open files.
    pub max_open_files: u64,
    pub fail_swap_on: bool,
    /// Resource -> quantity as written, kept from pods: sum of systemReserved and kubeReserved, in
    /// thousandths of the resource's unit.
    pub reserved_millis: BTreeMap<String, i128>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataplaneMode {
    /// nftables where the kernel has it, else IPVS, else iptables.
    Auto,
    Nftables,
    Ipvs,
    Iptables,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DataplaneSettings {
    pub mode: DataplaneMode,
    pub ipvs: IpvsSettings,
    /// Of these the one of the mode in force counts.
    pub tuning: PerMode<ModeTuning>,
    /// iptables mode serves node ports on 127.0.0.1 too.
    pub localhost_node_ports: bool,
    pub detect_local: DetectLocal,
    pub node_ports: NodePortAddresses,
    /// The node's own address where it is not the detected one.
    pub bind_address: Option<IpAddr>,
    pub conntrack: ConntrackWish,
}

/// One value for each way to serve Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerMode<T> {
    pub nftables: T,
    pub ipvs: T,
    pub iptables: T,
}

/// What the three sections of the file have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeTuning {
    /// Bit of the packet mark that asks for masquerade, 0..=31.
    pub masquerade_bit: u8,
    pub masquerade_all: bool,
    /// Audit of the kernel's state against the wanted one; a sync later than twice this is overdue.
    pub sync_period: Duration,
    /// Shortest time from one round to the next; `None`: what the last round took decides.
    pub min_sync_period: Option<Duration>,
}

impl Default for ModeTuning {
    fn default() -> Self {
        ModeTuning {
            masquerade_bit: 14,
            masquerade_all: false,
            sync_period: Duration::from_secs(30),
            min_sync_period: None,
        }
    }
}

/// The health and metrics servers of the proxy half.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyServers {
    /// `/healthz` and `/livez`; `None` is off.
    pub healthz: Option<SocketAddr>,
    /// `/metrics`, `/proxyMode` and `/configz`; `None` is off.
    pub metrics: Option<SocketAddr>,
    /// End the daemon where one of the two cannot listen.
    pub hard_fail: bool,
    /// The configuration as `/configz` shows it.
    pub configz: serde_json::Value,
}

/// The kubelet's own API.
#[derive(Clone, Debug, PartialEq)]
pub struct KubeletServer {
    /// With TLS; `None` is off.
    pub https: Option<SocketAddr>,
    /// Without authentication, for reading; `None` is off.
    pub read_only: Option<SocketAddr>,
    /// `/healthz` only; `None` is off.
    pub healthz: Option<SocketAddr>,
    pub tls: ServerTls,
    pub callers: CallerRules,
    pub rights: RightsRules,
    /// exec, attach, logs and the like.
    pub debugging: bool,
    /// `/debug/pprof/`.
    pub profiling: bool,
    /// `/logs/`.
    pub node_logs: bool,
    /// Queries there.
    pub node_log_queries: bool,
    /// The configuration as `/configz` shows it.
    pub configz: serde_json::Value,
    /// The flags that were given, one a line.
    pub flags: String,
}

/// How the API speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// Certificate with its chain, and its key; `None`: one of our own in `folder`.
    pub files: Option<(PathBuf, PathBuf)>,
    /// `--cert-dir`.
    pub folder: PathBuf,
    /// Of TLS 1.2, by their standard names; empty: only TLS 1.3 is spoken.
    pub cipher_suites: Vec<&'static str>,
    pub only_tls13: bool,
}

/// How callers show who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerRules {
    /// Whose client certificates count.
    pub client_ca: Option<PathBuf>,
    /// How long a token's review counts; `None`: tokens do not count.
    pub token_ttl: Option<Duration>,
    /// Callers that show nothing are `system:anonymous`.
    pub anonymous: bool,
}

/// Who decides what callers may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RightsRules {
    AlwaysAllow,
    /// The API server; its word counts for so long.
    Webhook {
        allowed_ttl: Duration,
        denied_ttl: Duration,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsSettings {
    /// A scheduler of the kernel: `rr`, `wrr`, `lc`, `wlc`, `lblc`, `lblcr`, `dh`, `sh`, `sed`, `nq`, `mh`.
    pub scheduler: String,
    /// Virtual services in these networks belong to others.
    pub exclude: Vec<Cidr>,
    pub strict_arp: bool,
    /// Connection timeouts of the kernel; zero leaves them.
    pub tcp_timeout: Duration,
    pub tcp_fin_timeout: Duration,
    pub udp_timeout: Duration,
}

/// How traffic of this node's pods is told from other traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// Source in one of these; empty: no detection.
    ClusterCidr(Vec<Cidr>),
    /// Source in the node's own pod networks: these, until the Node object names its own.
    NodeCidr(Vec<Cidr>),
    /// Came in by this bridge.
    Bridge(String),
    /// Came in by an interface of this prefix.
    InterfacePrefix(String),
}

/// Which of the node's addresses serve NodePorts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Not set: the mode's own default.
    Default,
    Primary,
    Within(Vec<Cidr>),
}

/// An address and a prefix length valid for its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// # Errors
    /// Says what is expected instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a network; write it like 10.244.0.0/16");
        let (address, prefix) = text.trim().split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest { Err(wrong()) } else { Ok(Self { address, prefix }) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSettings {
    /// Root-only unix socket of the command line.
    pub socket: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingSettings {
    pub format: LogFormat,
    /// The kubelet's `-v`: 0-1 info, 2-4 debug, 5 and above trace.
    pub verbosity: u32,
}
