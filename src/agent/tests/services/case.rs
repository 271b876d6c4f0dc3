//! The table of Service cases in `integration/services`: one file a case, with manifests as users write
//! them and, for each packet, what becomes of it. Here they are read and translated to IPv6; who runs
//! them is beside this file.
//!
//! A packet's line is `FROM -> IP:PORT[/udp] = EXPECTED`, with `; MODE: EXPECTED` where a mode differs.
//! FROM is `pod`, `far-pod`, `node`, `outside` or an address. EXPECTED is the endpoints, a star where
//! the source is rewritten, and `sticky SECONDS` with affinity; or `reject`, `drop`, `host` (the node's
//! own processes may answer) or `pass` (routed on, no Service is involved).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use longshore_core::ids::ObjectKey;
use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::chains::{ChainConfig, PodInterface};
use longshore_core::ruleset::node::NodePortAddresses;
use longshore_core::ruleset::trace::{Fate, Origin};
use longshore_core::service::cidr::Cidr;
use longshore_core::service::types::{EndpointSlice, Service};
use serde::Deserialize;
use serde_json::Value;

/// What the node of every case is called, its zone, and its interface towards pods.
pub const NODE: &str = "n1";
pub const ZONE: &str = "a";
pub const POD_INTERFACE: &str = "cni0";
/// Clients by their names in packet lines; IPv6 has the same, translated.
const CLIENTS: [(&str, &str); 4] =
    [("pod", "10.244.1.9"), ("far-pod", "10.244.2.99"), ("node", "192.168.0.1"), ("outside", "203.0.113.7")];
/// The node's addresses, its primary one first.
const NODE_ADDRESSES: [&str; 2] = ["192.168.0.1", "192.168.1.1"];
const NODE_PODS: &str = "10.244.1.0/24";
const ALL_PODS: &str = "10.244.0.0/16";

/// A way Services are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(dead_code, reason = "each test file runs the modes its tier can have")]
pub enum Mode {
    Nftables,
    Ipvs,
    /// The same on a kernel without nf_tables.
    IpvsByIptables,
    Iptables,
}

impl Mode {
    pub fn is_ipvs(self) -> bool {
        matches!(self, Mode::Ipvs | Mode::IpvsByIptables)
    }

    /// The mode as people name it; who stands around virtual servers is no part of it.
    pub fn named(self) -> Mode {
        if self.is_ipvs() { Mode::Ipvs } else { self }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Nftables => "nftables",
            Mode::Ipvs => "ipvs",
            Mode::IpvsByIptables => "ipvs by iptables",
            Mode::Iptables => "iptables",
        })
    }
}

/// A case file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    /// Run again with every address translated to IPv6.
    #[serde(default = "yes")]
    translate: bool,
    #[serde(default)]
    config: Config,
    #[serde(default)]
    node: Node,
    objects: Vec<Value>,
    #[serde(default)]
    packets: String,
    /// Every problem `svc list` shows, by Service; those that are not named have none.
    #[serde(default)]
    problems: BTreeMap<String, Vec<String>>,
    /// `PORT: COUNT` of every health check port, by Service.
    health: Option<BTreeMap<String, String>>,
    #[serde(default)]
    then: Vec<StepFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepFile {
    #[serde(default)]
    objects: Vec<Value>,
    #[serde(default)]
    gone: Vec<String>,
    packets: String,
}

/// Fields of KubeProxyConfiguration that change what a packet meets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    #[serde(rename = "masqueradeAll")]
    pub masquerade_all: bool,
    pub detect_local_mode: DetectLocalMode,
    pub detect_local: DetectLocal,
    /// Absent is the pods' network; empty is none.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: Option<String>,
    pub node_port_addresses: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum DetectLocalMode {
    #[default]
    ClusterCIDR,
    NodeCIDR,
    BridgeInterface,
    InterfaceNamePrefix,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    pub zone: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// What the cluster's ServiceCIDRs say; none is known by default.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Vec<Cidr>,
}

impl Default for Node {
    fn default() -> Self {
        Node { zone: Some(ZONE.to_owned()), pod_cidrs: Vec::new(), service_cidrs: Vec::new() }
    }
}

/// A case in one family, ready to be run.
#[derive(Debug)]
pub struct Case {
    /// The file's name; translated ones end in `(IPv6)`.
    pub name: String,
    pub title: String,
    pub config: Config,
    pub node: Node,
    /// At least one.
    pub steps: Vec<Step>,
    pub problems: BTreeMap<String, Vec<String>>,
    pub health: Option<BTreeMap<String, String>>,
}

/// What changes, and what packets then meet.
#[derive(Debug)]
pub struct Step {
    pub changes: Vec<Change>,
    pub packets: Vec<PacketLine>,
}

#[derive(Clone, Debug)]
pub enum Change {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    ServiceGone(ObjectKey),
    SliceGone(ObjectKey),
}

/// One line of `packets`.
#[derive(Clone, Debug)]
pub struct PacketLine {
    pub text: String,
    pub origin: Origin,
    pub src: IpAddr,
    pub dst: SocketAddr,
    pub protocol: Protocol,
    expected: String,
    differing: Vec<(String, String)>,
}

impl PacketLine {
    pub fn expected(&self, mode: Mode) -> Expected {
        let own = self.differing.iter().find(|(name, _)| *name == mode.named().to_string());
        own.map_or(&self.expected, |(_, text)| text).parse().unwrap_or_else(|e| panic!("{}: {e}", self.text))
    }
}

/// What a packet meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Endpoints {
        /// The endpoint, and whether the source is rewritten.
        to: BTreeSet<(SocketAddr, bool)>,
        affinity: Option<u32>,
    },
    Reject,
    Drop,
    Host,
    Pass,
}

impl Expected {
    /// The same in the words of a trace; affinity is no part of it.
    pub fn of(fate: &Fate) -> Expected {
        match fate {
            Fate::Endpoints(all) => Expected::Endpoints {
                to: all.iter().map(|one| (one.to, one.masqueraded)).collect(),
                affinity: None,
            },
            Fate::Rejected => Expected::Reject,
            Fate::Dropped => Expected::Drop,
            Fate::Host => Expected::Host,
            Fate::Forwarded => Expected::Pass,
        }
    }

    pub fn affinity(&self) -> Option<u32> {
        match self {
            Expected::Endpoints { affinity, .. } => *affinity,
            _ => None,
        }
    }

    pub fn without_affinity(self) -> Expected {
        match self {
            Expected::Endpoints { to, .. } => Expected::Endpoints { to, affinity: None },
            other => other,
        }
    }
}

impl FromStr for Expected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "reject" => return Ok(Expected::Reject),
            "drop" => return Ok(Expected::Drop),
            "host" => return Ok(Expected::Host),
            "pass" => return Ok(Expected::Pass),
            _ => {}
        }
        let (list, affinity) = match text.split_once(" sticky ") {
            Some((list, seconds)) => (list, Some(seconds.parse().map_err(|e| format!("sticky: {e}"))?)),
            None => (text, None),
        };
        let mut to = BTreeSet::new();
        for word in list.split_whitespace() {
            let bare = word.trim_end_matches('*');
            let addr = bare.parse().map_err(|_| format!("{bare:?} is neither an endpoint nor a fate"))?;
            to.insert((addr, bare != word));
        }
        if to.is_empty() {
            Err("nothing is expected".to_owned())
        } else {
            Ok(Expected::Endpoints { to, affinity })
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Reject => f.write_str("reject"),
            Expected::Drop => f.write_str("drop"),
            Expected::Host => f.write_str("host"),
            Expected::Pass => f.write_str("pass"),
            Expected::Endpoints { to, affinity } => {
                let words: Vec<String> =
                    to.iter().map(|(to, star)| format!("{to}{}", if *star { "*" } else { "" })).collect();
                f.write_str(&words.join(" "))?;
                affinity.map_or(Ok(()), |seconds| write!(f, " sticky {seconds}"))
            }
        }
    }
}

fn yes() -> bool {
    true
}

/// The folder of the cases; in a guest they lie elsewhere.
pub fn folder() -> PathBuf {
    let here = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../integration/services"));
    std::env::var_os("LONGSHORE_SERVICE_CASES").map_or_else(here, PathBuf::from)
}

/// Every case, in both families where it can be.
pub fn all() -> Vec<Case> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder())
        .expect("the folder of cases")
        .map(|entry| entry.expect("an entry of the folder of cases").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 120, "only {} cases in {}", paths.len(), folder().display());
    let only = std::env::var("LONGSHORE_CASE").unwrap_or_default();
    let mut cases = Vec::new();
    for path in paths {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.contains(&only) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a case file can be read");
        let value: Value =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
        // Reading YAML takes the emulated guest a minute; it is read once.
        let json = value.to_string();
        let file = parse(&name, &json);
        let translate = file.translate;
        cases.push(case(name.clone(), file));
        if translate {
            let name = format!("{name} (IPv6)");
            let file = parse(&name, &to_ipv6(&json));
            cases.push(case(name, file));
        }
    }
    assert!(!cases.is_empty(), "LONGSHORE_CASE={only} names no case");
    cases
}

fn parse(name: &str, text: &str) -> File {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"))
}

fn case(name: String, file: File) -> Case {
    let lines = |text: &str| -> Vec<PacketLine> {
        text.lines().filter(|line| !line.trim().is_empty()).map(|line| packet_line(&name, line)).collect()
    };
    let objects = |list: &[Value]| -> Vec<Change> { list.iter().map(|value| object(&name, value)).collect() };
    let mut steps = vec![Step { changes: objects(&file.objects), packets: lines(&file.packets) }];
    for step in &file.then {
        let mut changes: Vec<Change> = step.gone.iter().map(|text| gone(&name, text)).collect();
        changes.extend(objects(&step.objects));
        steps.push(Step { changes, packets: lines(&step.packets) });
    }
    let File { title, config, node, problems, health, .. } = file;
    Case { name, title, config, node, steps, problems, health }
}

fn object(name: &str, value: &Value) -> Change {
    let read = |error: serde_json::Error| -> Change { panic!("{name}: {error}: {value}") };
    match value["kind"].as_str() {
        Some("Service") => serde_json::from_value(value.clone()).map_or_else(read, Change::Service),
        Some("EndpointSlice") => serde_json::from_value(value.clone()).map_or_else(read, Change::Slice),
        other => panic!("{name}: kind {other:?} is neither Service nor EndpointSlice"),
    }
}

fn gone(name: &str, text: &str) -> Change {
    let parts = text.split_once(' ').and_then(|(kind, key)| Some((kind, key.split_once('/')?)));
    match parts {
        Some(("Service", (namespace, object))) => Change::ServiceGone(ObjectKey::new(namespace, object)),
        Some(("EndpointSlice", (namespace, object))) => Change::SliceGone(ObjectKey::new(namespace, object)),
        _ => panic!("{name}: {text:?} is no `KIND NAMESPACE/NAME`"),
    }
}

fn packet_line(name: &str, line: &str) -> PacketLine {
    let bad = |what: &str| -> ! { panic!("{name}: {line:?}: {what}") };
    let Some((packet, outcome)) = line.trim().split_once(" = ") else { bad("no ` = `") };
    let Some((from, to)) = packet.split_once(" -> ") else { bad("no ` -> `") };
    let (addr, protocol) = to.trim().rsplit_once('/').unwrap_or((to.trim(), "tcp"));
    let Ok(dst) = addr.parse::<SocketAddr>() else { bad("no destination") };
    let Some(protocol) = Protocol::ALL.into_iter().find(|one| one.to_string() == protocol) else {
        bad("no such protocol")
    };
    let src = client(from.trim(), dst).unwrap_or_else(|| bad("no such client"));
    let mut parts = outcome.split(" ; ");
    let expected = parts.next().unwrap_or_default().trim().to_owned();
    let differing = parts.map(|part| match part.split_once(": ") {
        Some((mode, text)) => (mode.trim().to_owned(), text.trim().to_owned()),
        None => bad("no `MODE: EXPECTED` after `;`"),
    });
    PacketLine {
        text: packet.trim().to_owned(),
        origin: origin(src),
        src,
        dst,
        protocol,
        expected,
        differing: differing.collect(),
    }
}

fn client(from: &str, dst: SocketAddr) -> Option<IpAddr> {
    if from == "node" && dst.ip().is_loopback() {
        return Some(dst.ip());
    }
    let known = CLIENTS.iter().find(|(name, _)| *name == from).map(|(_, addr)| *addr);
    known.map_or_else(|| from.parse().ok(), |addr| Some(in_family(addr, dst.is_ipv6())))
}

/// Where a source sits in the world of the cases.
pub fn origin(src: IpAddr) -> Origin {
    let pods: [Cidr; 2] = [false, true].map(|ipv6| cidr(NODE_PODS, ipv6));
    if pods.iter().any(|pods| pods.contains(src)) {
        Origin::Pod
    } else if src.is_loopback() || node_addresses().contains(&src) {
        Origin::Node
    } else {
        Origin::Outside
    }
}

/// The node's addresses, loopback left out.
pub fn node_addresses() -> Vec<IpAddr> {
    let of = |ipv6| NODE_ADDRESSES.iter().map(move |addr| in_family(addr, ipv6));
    of(false).chain(of(true)).collect()
}

/// The node's own address of each family.
pub fn primary_addresses() -> Vec<IpAddr> {
    vec![in_family(NODE_ADDRESSES[0], false), in_family(NODE_ADDRESSES[0], true)]
}

impl Case {
    /// How sources are told and rewritten.
    pub fn chains(&self) -> ChainConfig {
        let both = |text: &str| vec![cidr(text, false), cidr(text, true)];
        let (mut cluster_cidrs, mut pod_interface) = (Vec::new(), None);
        match self.config.detect_local_mode {
            DetectLocalMode::ClusterCIDR => {
                cluster_cidrs = match self.config.cluster_cidr.as_deref() {
                    None => both(ALL_PODS),
                    Some("") => Vec::new(),
                    Some(text) => vec![text.parse().expect("clusterCIDR")],
                };
            }
            DetectLocalMode::NodeCIDR => {
                cluster_cidrs =
                    self.node.pod_cidrs.iter().map(|text| text.parse().expect("podCIDRs")).collect();
            }
            DetectLocalMode::BridgeInterface => {
                pod_interface = Some(PodInterface::Named(self.config.detect_local.bridge_interface.clone()));
            }
            DetectLocalMode::InterfaceNamePrefix => {
                let prefix = self.config.detect_local.interface_name_prefix.clone();
                pod_interface = Some(PodInterface::Prefixed(prefix));
            }
        }
        ChainConfig {
            masquerade_mark: 0x4000,
            masquerade_all: self.config.masquerade_all,
            cluster_cidrs,
            pod_interface,
            service_ranges: self.node.service_cidrs.clone(),
        }
    }

    /// Where node ports are served. Without a word nftables takes the primary address only.
    pub fn node_ports(&self, mode: Mode) -> NodePortAddresses {
        let asked: Vec<&str> = self.config.node_port_addresses.iter().map(String::as_str).collect();
        match asked.as_slice() {
            [] if mode == Mode::Nftables => NodePortAddresses::Primary,
            [] => NodePortAddresses::All,
            ["primary"] => NodePortAddresses::Primary,
            list => NodePortAddresses::Within(
                list.iter().map(|text| text.parse().expect("nodePortAddresses")).collect(),
            ),
        }
    }
}

/// An IPv4 prefix of the world, or its translation.
pub fn cidr(text: &str, ipv6: bool) -> Cidr {
    let text = if ipv6 { to_ipv6(text) } else { text.to_owned() };
    text.parse().expect("a prefix of the world")
}

/// An IPv4 address of the world, or its translation.
pub fn in_family(text: &str, ipv6: bool) -> IpAddr {
    let v4: Ipv4Addr = text.parse().expect("an address of the world");
    if ipv6 { IpAddr::V6(translated(v4)) } else { IpAddr::V4(v4) }
}

/// `a.b.c.d` becomes `fd00:a:b:c::d`, its numbers read as they are written.
fn translated(v4: Ipv4Addr) -> Ipv6Addr {
    if v4.is_loopback() {
        return Ipv6Addr::LOCALHOST;
    }
    if v4.is_unspecified() {
        return Ipv6Addr::UNSPECIFIED;
    }
    let [a, b, c, d] = v4.octets();
    format!("fd00:{a}:{b}:{c}::{d}").parse().expect("four numbers below 256 are groups of an address")
}

/// Every IPv4 address, prefix, socket address and family name of a text in IPv6.
pub fn to_ipv6(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, at) = rest.split_at(start);
        out.push_str(before);
        let end = at.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(at.len());
        let (word, after) = at.split_at(end);
        let Ok(v4) = word.parse::<Ipv4Addr>() else {
            out.push_str(word);
            rest = after;
            continue;
        };
        let v6 = translated(v4);
        let follows = |mark: char| {
            after.strip_prefix(mark).is_some_and(|next| next.starts_with(|c: char| c.is_ascii_digit()))
        };
        rest = after;
        if follows(':') {
            out.push_str(&format!("[{v6}]"));
        } else if follows('/') {
            let end = after[1..].find(|c: char| !c.is_ascii_digit()).map_or(after.len(), |end| end + 1);
            let prefix: u8 = after[1..end].parse().expect("a prefix length");
            let prefix = match prefix {
                0 => 0,
                32 => 128,
                octets if octets % 8 == 0 => 16 + octets * 2,
                odd => panic!("/{odd} has no translation: set translate: false"),
            };
            out.push_str(&format!("{v6}/{prefix}"));
            rest = &after[end..];
        } else {
            out.push_str(&v6.to_string());
        }
    }
    out.push_str(rest);
    out.replace("IPv4", "IPv6")
}
