//! What `doctor` looks at, read once: small files of /proc and /sys, capabilities, the runtime, the
//! socket. Everything is optional: a fact that cannot be read is a finding, not an error.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use longshore_cri::RuntimeInfo;

use super::certificates::{self, CertificateFact};
use crate::client::ClientError;
use crate::pods::Node;

/// Modules that services, bridges and images need.
pub const MODULES: &[&str] =
    &["ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_sh", "nf_conntrack", "br_netfilter", "overlay"];

/// Kernel parameters that are judged.
pub const SYSCTLS: &[&str] = &[
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.bridge.bridge-nf-call-iptables",
    "net.ipv4.vs.conntrack",
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
];

/// Free space of a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    pub path: PathBuf,
    pub bytes_free: u64,
    pub bytes: u64,
    pub inodes_free: u64,
    pub inodes: u64,
}

/// What the runtime says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeFacts {
    pub version: String,
    /// Type, met or not, message.
    pub conditions: Vec<(String, bool, String)>,
}

/// Whether the agent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentFact {
    Answers,
    Down,
    Denied,
    Broken(String),
}

#[derive(Clone, Debug)]
pub struct Facts {
    pub root: bool,
    pub kernel: String,
    /// Capabilities missing from the effective set: those it needs, those it wishes for.
    pub missing_capabilities: Result<(Vec<String>, Vec<String>), String>,
    /// Controllers of the cgroup v2 root; None where cgroup v2 is not mounted.
    pub controllers: Option<BTreeSet<String>>,
    /// Modules loaded or built in.
    pub modules: BTreeSet<String>,
    pub file_systems: BTreeSet<String>,
    pub sysctls: BTreeMap<String, String>,
    pub swaps: Vec<String>,
    pub spaces: Vec<Space>,
    pub runtime_endpoint: String,
    pub runtime: Result<RuntimeFacts, String>,
    pub socket: PathBuf,
    pub agent: AgentFact,
    /// Names of other node agents that run.
    pub rivals: BTreeSet<String>,
    pub certificates: Vec<CertificateFact>,
    pub now: jiff::Timestamp,
}

/// Capabilities the daemon cannot do without.
const NEEDED: &[caps::Capability] = &[
    caps::Capability::CAP_SYS_ADMIN,
    caps::Capability::CAP_NET_ADMIN,
    caps::Capability::CAP_DAC_OVERRIDE,
    caps::Capability::CAP_CHOWN,
    caps::Capability::CAP_FOWNER,
    caps::Capability::CAP_KILL,
];

/// Capabilities without which a part of it does nothing: its own limits and OOM score.
const WISHED: &[caps::Capability] = &[caps::Capability::CAP_SYS_RESOURCE];

/// Reads all facts of this node, given the folders of pods' volumes and of certificates.
pub async fn gather(node: &Node, (root_dir, cert_dir): (&Path, &Path)) -> Facts {
    Facts {
        root: nix::unistd::Uid::effective().is_root(),
        kernel: word("/proc/sys/kernel/osrelease").unwrap_or_default(),
        missing_capabilities: missing_capabilities(),
        controllers: word("/sys/fs/cgroup/cgroup.controllers")
            .map(|text| text.split_whitespace().map(str::to_string).collect()),
        modules: modules(),
        file_systems: lines("/proc/filesystems").iter().filter_map(|line| last_word(line)).collect(),
        sysctls: SYSCTLS.iter().filter_map(|name| Some(((*name).to_string(), sysctl(name)?))).collect(),
        swaps: lines("/proc/swaps").iter().skip(1).filter_map(|line| first_word(line)).collect(),
        spaces: spaces(root_dir),
        runtime_endpoint: node.runtime.clone(),
        runtime: runtime(node).await,
        socket: node.daemon.socket().to_path_buf(),
        agent: agent(node).await,
        rivals: rivals(),
        certificates: certificates::read(cert_dir),
        now: jiff::Timestamp::now(),
    }
}

fn word(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_string())
}

fn lines(path: &str) -> Vec<String> {
    std::fs::read_to_string(path).map(|text| text.lines().map(str::to_string).collect()).unwrap_or_default()
}

fn first_word(line: &str) -> Option<String> {
    line.split_whitespace().next().map(str::to_string)
}

fn last_word(line: &str) -> Option<String> {
    line.split_whitespace().last().map(str::to_string)
}

fn sysctl(name: &str) -> Option<String> {
    word(&format!("/proc/sys/{}", name.replace('.', "/")))
}

fn missing_capabilities() -> Result<(Vec<String>, Vec<String>), String> {
    let effective = caps::read(None, caps::CapSet::Effective).map_err(|error| error.to_string())?;
    let missing = |wanted: &[caps::Capability]| -> Vec<String> {
        wanted.iter().filter(|capability| !effective.contains(capability)).map(ToString::to_string).collect()
    };
    Ok((missing(NEEDED), missing(WISHED)))
}

fn modules() -> BTreeSet<String> {
    let built_in: BTreeSet<String> = word("/proc/sys/kernel/osrelease")
        .map(|release| lines(&format!("/lib/modules/{release}/modules.builtin")))
        .unwrap_or_default()
        .iter()
        .filter_map(|line| {
            Some(Path::new(line).file_name()?.to_str()?.strip_suffix(".ko")?.replace('-', "_"))
        })
        .collect();
    let present =
        |name: &str| Path::new("/sys/module").join(name).exists() || built_in.contains(name) || shows(name);
    MODULES.iter().filter(|name| present(name)).map(|name| (*name).to_string()).collect()
}

/// Built into a kernel whose module list is not installed: seen by what it provides.
fn shows(module: &str) -> bool {
    let path = match module {
        "ip_vs" => "/proc/net/ip_vs",
        "nf_conntrack" => "/proc/sys/net/netfilter/nf_conntrack_max",
        "br_netfilter" => "/proc/sys/net/bridge/bridge-nf-call-iptables",
        _ => return false,
    };
    Path::new(path).exists()
}

fn spaces(root_dir: &Path) -> Vec<Space> {
    let folders = [root_dir, Path::new("/var/log/pods"), Path::new("/var/lib/containerd")];
    // Folders of one file system say the same.
    let mut seen = BTreeSet::new();
    let mut spaces = Vec::new();
    for folder in folders {
        let Ok(metadata) = std::fs::metadata(folder) else { continue };
        let Ok(found) = nix::sys::statvfs::statvfs(folder) else { continue };
        if !seen.insert(metadata.dev()) {
            continue;
        }
        let unit = found.fragment_size();
        spaces.push(Space {
            path: folder.to_path_buf(),
            bytes_free: found.blocks_available() * unit,
            bytes: found.blocks() * unit,
            inodes_free: found.files_available(),
            inodes: found.files(),
        });
    }
    spaces
}

async fn runtime(node: &Node) -> Result<RuntimeFacts, String> {
    let cri = node.cri().map_err(|error| error.message)?;
    let version = cri.version().await.map_err(|error| error.one_line())?;
    let status = cri.status().await.map_err(|error| error.one_line())?;
    Ok(RuntimeFacts {
        version: format!("{} {} (CRI {})", version.name, version.version, version.api_version),
        conditions: status
            .conditions
            .into_iter()
            .map(|condition| (condition.kind, condition.status, condition.message))
            .collect(),
    })
}

async fn agent(node: &Node) -> AgentFact {
    match node.daemon.get::<serde_json::Value>("/v1/node").await {
        Ok(_) => AgentFact::Answers,
        Err(ClientError::Down { .. }) => AgentFact::Down,
        Err(ClientError::Denied { .. }) => AgentFact::Denied,
        Err(error) => AgentFact::Broken(error.to_string()),
    }
}

fn rivals() -> BTreeSet<String> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    processes
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()))
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok())
        .map(|comm| comm.trim().to_string())
        .filter(|comm| comm == "kubelet" || comm == "kube-proxy")
        .collect()
}
