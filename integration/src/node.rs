//! What a scenario needs of a node, however it is made: run a program in it, put a file, start and stop the daemon
//! and the runtime, look at it from outside. The native node and the VM implement it; tests see only this.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::fake::Order;
use crate::process::Output;

/// Where the daemon looks for manifests in every node.
pub const MANIFESTS: &str = "/etc/longshore/manifests";
/// Where the daemon's configuration is in every node.
pub const CONFIG: &str = "/etc/longshore/config.yaml";
/// The proxy half's configuration, where the node is started by its unit.
pub const PROXY_CONFIG: &str = "/etc/longshore/proxy.yaml";

/// The kinds of node, least powerful first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The real daemon on the fake runtime, in the namespaces of a native node: faults on order, no containers.
    Fake,
    /// Real containerd and crun in private namespaces of this machine: no cgroup limits, no systemd, no IPVS.
    Native,
    /// A native node joined to a real control plane; manifests are applied through its API.
    Cluster,
    /// A QEMU guest with everything.
    Vm,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Fake => "fake",
            Kind::Native => "native",
            Kind::Cluster => "cluster",
            Kind::Vm => "vm",
        })
    }
}

/// The long-running programs of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    Containerd,
    Agent,
    /// The real kubelet and kube-proxy in the daemon's place, on the node of a cluster.
    Kubelet,
    KubeProxy,
    /// Of the control plane beside the node, where there is one.
    Etcd,
    Apiserver,
    ControllerManager,
    Scheduler,
}

impl Service {
    /// Whether it is one of the programs whose place the daemon takes.
    pub fn is_peer(self) -> bool {
        matches!(self, Service::Kubelet | Service::KubeProxy)
    }

    /// The unit's name in the VM; the log's and pid file's name in the native node.
    pub fn name(self) -> &'static str {
        match self {
            Service::Containerd => "containerd",
            Service::Agent => "longshore",
            Service::Kubelet => "kubelet",
            Service::KubeProxy => "kube-proxy",
            Service::Etcd => "etcd",
            Service::Apiserver => "kube-apiserver",
            Service::ControllerManager => "kube-controller-manager",
            Service::Scheduler => "kube-scheduler",
        }
    }
}

/// A node that tests can use.
pub trait Node {
    fn kind(&self) -> Kind;

    /// Its own address, where NodePorts answer.
    fn address(&self) -> &'static str;

    /// The folder on this machine with the node's logs.
    fn logs(&self) -> &Path;

    /// Runs a shell script as root in the node.
    ///
    /// # Errors
    /// Where the node is gone or the script outlives the deadline; not where the script fails.
    fn run(&self, script: &str, stdin: &[u8], deadline: Duration) -> Result<Output>;

    /// Starts a service; done when it answers.
    ///
    /// # Errors
    /// Where it does not come up.
    fn start(&mut self, service: Service) -> Result<()>;

    /// Starts the daemon with other flags than the node's own: where its objects and configuration come from.
    ///
    /// # Errors
    /// Where it does not come up, or the node's daemon has no other flags than its unit's.
    fn start_agent_with(&mut self, flags: &str) -> Result<()> {
        bail!("{} nodes start the daemon with their own flags only, not {flags}", self.kind())
    }

    /// Ends a service by a signal (`TERM`, `KILL`) and waits until it has gone. It is not started again by itself.
    ///
    /// # Errors
    /// Where it does not run or stays.
    fn stop(&mut self, service: Service, signal: &str) -> Result<()>;

    /// `http://NODE:PORT/PATH` asked from another machine's point of view: status and body.
    ///
    /// # Errors
    /// Where nothing answers.
    fn get_from_outside(&self, port: u16, path: &str) -> Result<(u16, String)>;

    /// The last lines of a service's log.
    fn log(&self, service: Service, lines: usize) -> String;

    /// Whether the service's process lives.
    fn runs(&self, service: Service) -> bool;

    /// Gives an order to the fake runtime, where the node has one.
    ///
    /// # Errors
    /// Where it has none, or the order is refused.
    fn order(&self, order: &Order) -> Result<Value> {
        bail!("{} nodes have no fake runtime for {order:?}", self.kind())
    }
}

/// Runs a script that must succeed within a minute; gives its standard output.
///
/// # Errors
/// Where it fails; the message has what it printed.
pub fn sh(node: &dyn Node, script: &str) -> Result<String> {
    let output = node.run(script, &[], Duration::from_secs(60))?;
    if !output.success() {
        bail!("`{}` ended with {} in the node: {}", first_line(script), output.code, output.text());
    }
    Ok(output.stdout)
}

/// Writes a file in the node as editors and `kubectl` users do: beside it and renamed.
///
/// # Errors
/// Where the node cannot write there.
pub fn put(node: &dyn Node, path: &str, bytes: &[u8]) -> Result<()> {
    let script =
        format!("mkdir -p \"$(dirname '{path}')\"; cat > '{path}.part~'; mv '{path}.part~' '{path}'");
    let output = node.run(&script, bytes, Duration::from_secs(60))?;
    if !output.success() {
        bail!("cannot write {path} in the node: {}", output.text());
    }
    Ok(())
}

/// The folder for the logs of one run of one test, emptied.
///
/// # Errors
/// Where it cannot be made.
pub fn log_folder(name: &str) -> Result<PathBuf> {
    let dir = crate::tiers::workspace_root().join("target/integration").join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// The last lines of a file; empty where there is none.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn first_line(script: &str) -> &str {
    script.trim().lines().next().unwrap_or_default()
}
