//! A real control plane with a native node joined to it: etcd, kube-apiserver, controller-manager and scheduler in
//! the network namespace outside the node, kubectl inside it. Needs root and, once, Go.

pub mod assets;
mod certificates;
mod peers;
mod release;
pub mod watch;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::native::{self, NativeNode, OUTSIDE};
use crate::node::{Kind, MANIFESTS, Node, Service, sh};
use crate::process::{Output, Owned, wait_until};
use crate::scenario::state;
use certificates::{Authority, Party};
use watch::Watch;

/// Where the node's own credentials are in the node.
pub const KUBECONFIG: &str = "/etc/longshore/kubeconfig";
/// Whose client certificates the node believes.
pub const AUTHORITY: &str = "/etc/longshore/ca.crt";
/// The node's name: its host's.
pub const NODE: &str = "node";
/// Where manifests of scenarios are in the node before they are applied.
pub const APPLIED: &str = "/tmp/applied";
/// What kubectl is told so that nodes may watch EndpointSlices.
pub const LET_NODES_READ_SERVICES: &str =
    "create clusterrolebinding longshore-services --clusterrole=system:node-proxier --group=system:nodes";
const API_PORT: u16 = 6443;
/// Of both families, so that a Service can ask for two addresses; those that ask for nothing get one of IPv4.
const CLUSTER_IPS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// What the CNI of the native node gives its pods from.
const POD_IPS: &str = "10.244.0.0/16";
/// The same of IPv6, for the scenario whose node has both families.
const POD_IPS_V6: &str = "fd00:10:244::/56";

/// A control plane and its node. Dropping it ends every process.
#[derive(Debug)]
pub struct Cluster {
    node: NativeNode,
    programs: Vec<(Service, Owned)>,
    assets: PathBuf,
    dir: TempDir,
}

/// What a new cluster gets.
#[derive(Debug, Clone)]
pub struct Options {
    /// The test's name: the log folder is named after it.
    pub name: String,
    /// The daemon's binary on this machine.
    pub binary: PathBuf,
    /// The daemon's configuration file.
    pub config: String,
}

/// The daemon's flags where the node's own credentials are there.
pub fn flags() -> String {
    format!("--kubeconfig {KUBECONFIG}")
}

impl Cluster {
    /// Starts a control plane and a node beside it; the daemon is not started.
    ///
    /// # Errors
    /// Where a part does not come up.
    pub fn start(options: &Options) -> Result<Self> {
        let assets = assets::folder()?;
        let dir = tempfile::Builder::new().prefix("longshore-cluster-").tempdir()?;
        write_credentials(dir.path())?;
        let credentials = |name: &str, inside: &str| (dir.path().join(name), PathBuf::from(inside));
        let mut binds = vec![
            (assets.join("kubectl"), PathBuf::from("/usr/local/bin/kubectl")),
            credentials("node.kubeconfig", KUBECONFIG),
            credentials("ca.crt", AUTHORITY),
            credentials("admin.kubeconfig", "/root/.kube/config"),
        ];
        if assets::peers_obstacle().is_none() {
            binds.extend(peers::binds(&assets));
        }
        let node = NativeNode::start(&native::Options {
            name: options.name.clone(),
            binary: Some(options.binary.clone()),
            config: options.config.clone(),
            images: true,
            agent: flags(),
            binds,
        })?;
        let mut cluster = Self { node, programs: Vec::new(), assets, dir };
        for service in [Service::Etcd, Service::Apiserver, Service::ControllerManager, Service::Scheduler] {
            cluster.start(service)?;
        }
        cluster.settle()?;
        Ok(cluster)
    }

    /// What a cluster's operator does once: the node may also watch EndpointSlices, as kube-proxy does.
    fn settle(&self) -> Result<()> {
        kubectl(&self.node, LET_NODES_READ_SERVICES)?;
        // Pods are refused until their namespace has its service account.
        wait_until(Duration::from_secs(30), Duration::from_millis(100), || {
            kubectl(&self.node, "get serviceaccount default").map(drop)
        })
    }

    /// The node itself.
    pub fn node(&self) -> &NativeNode {
        &self.node
    }

    /// The release the API server says it is.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn version(&self) -> Result<String> {
        let told: Value = serde_json::from_str(&kubectl(&self.node, "get --raw /version")?)?;
        Ok(told["gitVersion"].as_str().context("it has no gitVersion")?.to_owned())
    }

    /// Watches a path of the API, as the cluster's administrator.
    ///
    /// # Errors
    /// Where the program that does it cannot be started.
    pub fn watch(&self, path: &str) -> Result<Watch> {
        let kubeconfig = self.dir.path().join("admin.kubeconfig");
        Watch::begin(&self.assets.join("kubectl"), &kubeconfig, &self.node.outside(), path)
    }

    /// Leaves the cluster as it was: no objects of scenarios, no pods, the daemon stopped, all else running.
    ///
    /// # Errors
    /// Where that cannot be reached within a minute.
    pub fn clear(&mut self) -> Result<()> {
        self.end_daemons_of_scenarios()?;
        for peer in [Service::Kubelet, Service::KubeProxy] {
            if self.runs(peer) {
                self.stop(peer, "TERM")?;
            }
        }
        let wanted = [
            Service::Containerd,
            Service::Etcd,
            Service::Apiserver,
            Service::ControllerManager,
            Service::Scheduler,
            Service::Agent,
        ];
        for service in wanted {
            if !self.runs(service) {
                self.start(service)?;
            }
        }
        sh(self, &format!("mkdir -p {MANIFESTS} {APPLIED}; rm -rf {MANIFESTS}/* {APPLIED}/*"))?;
        let mine = "--all --wait=false --ignore-not-found";
        kubectl(
            self,
            &format!("delete deployments,statefulsets,replicasets,daemonsets,jobs,pdb,pods {mine}"),
        )?;
        kubectl(self, "get services -o name | grep -v '/kubernetes$' | xargs -r kubectl delete")?;
        kubectl(
            self,
            "get configmaps,secrets -o name | grep -v kube-root-ca | xargs -r kubectl delete --ignore-not-found",
        )?;
        wait_until(Duration::from_secs(60), Duration::from_millis(200), || {
            let left = kubectl(self, "get pods -o name")?;
            if !left.trim().is_empty() {
                bail!("pods are left: {left}");
            }
            let left = state::tasks(self)?;
            if !left.is_empty() {
                bail!("{} containers still run", left.len());
            }
            Ok(())
        })?;
        self.node.stop(Service::Agent, "TERM")?;
        sh(self, peers::FORGET)?;
        kubectl(self, &format!("delete node {NODE} --ignore-not-found")).map(drop)
    }

    /// A scenario that failed may have left a daemon it started by itself; it holds the socket the next one needs.
    fn end_daemons_of_scenarios(&self) -> Result<()> {
        sh(
            self,
            "mine=$(cat /run/longshore.harness-pid 2>/dev/null || true)
             for exe in /proc/[0-9]*/exe; do
                 pid=${exe#/proc/}; pid=${pid%/exe}
                 test \"$(readlink $exe)\" = /usr/local/bin/longshore || continue
                 test \"$pid\" = \"$mine\" || kill -KILL $pid || true
             done",
        )
        .map(drop)
    }

    fn line(&self, service: Service) -> Vec<String> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let data = path("etcd");
        let mut args = match service {
            Service::Etcd => vec![
                format!("--data-dir={data}"),
                "--unsafe-no-fsync".to_owned(),
                "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
                "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
                "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
                "--log-level=warn".to_owned(),
            ],
            Service::Apiserver => apiserver(&path),
            Service::ControllerManager => vec![
                format!("--kubeconfig={}", path("controller-manager.kubeconfig")),
                "--use-service-account-credentials".to_owned(),
                format!("--service-account-private-key-file={}", path("accounts.key")),
                format!("--root-ca-file={}", path("ca.crt")),
                format!("--cluster-signing-cert-file={}", path("ca.crt")),
                format!("--cluster-signing-key-file={}", path("ca.key")),
                "--controllers=*,bootstrapsigner,tokencleaner".to_owned(),
                // Nodes that ask for certificates renew them within the scenario.
                "--cluster-signing-duration=60s".to_owned(),
                format!("--cluster-cidr={POD_IPS},{POD_IPS_V6}"),
                "--allocate-node-cidrs".to_owned(),
                "--leader-elect=false".to_owned(),
            ],
            Service::Scheduler => vec![
                format!("--kubeconfig={}", path("scheduler.kubeconfig")),
                "--leader-elect=false".to_owned(),
            ],
            Service::Containerd | Service::Agent | Service::Kubelet | Service::KubeProxy => Vec::new(),
        };
        args.insert(0, self.assets.join(service.name()).display().to_string());
        args
    }

    fn spawn(&mut self, service: Service) -> Result<()> {
        let log = self.node.logs().join(format!("{}.log", service.name()));
        let log = File::options().create(true).append(true).open(log)?;
        // It ends with the harness, however that ends.
        let mut line: Vec<String> = ["setpriv", "--pdeathsig", "KILL", "nsenter"].map(str::to_owned).into();
        line.push(format!("--net={}", self.node.outside().display()));
        line.push("--".to_owned());
        line.extend(self.line(service));
        let child = Command::new(&line[0])
            .args(&line[1..])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start setpriv")?;
        self.programs.retain(|(known, _)| *known != service);
        self.programs.push((service, Owned::new(service.name(), child)));
        Ok(())
    }

    fn wait_for(&mut self, service: Service) -> Result<()> {
        let result = wait_until(Duration::from_secs(60), Duration::from_millis(50), || {
            let program = self.programs.iter_mut().find(|(known, _)| *known == service);
            if let Some(code) = program.and_then(|(_, child)| child.ended()) {
                return Ok(Err(anyhow::anyhow!("{} ended with {code}", service.name())));
            }
            match service {
                Service::Apiserver => kubectl(&self.node, "get --raw /readyz").map(|_| Ok(())),
                // The API server waits for etcd; the others are seen by what they do.
                _ => Ok(Ok(())),
            }
        });
        result.and_then(|ended| ended).with_context(|| {
            format!("{} does not come up; its log:\n{}", service.name(), self.log(service, 20))
        })
    }
}

/// Whether it is a program of the node, not of the control plane beside it.
fn is_in_node(service: Service) -> bool {
    matches!(service, Service::Containerd | Service::Agent) || service.is_peer()
}

fn apiserver(path: &impl Fn(&str) -> String) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", path(name));
    vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--secure-port={API_PORT}"),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--advertise-address={OUTSIDE}"),
        file("tls-cert-file", "apiserver.crt"),
        file("tls-private-key-file", "apiserver.key"),
        file("client-ca-file", "ca.crt"),
        file("kubelet-client-certificate", "apiserver-kubelet-client.crt"),
        file("kubelet-client-key", "apiserver-kubelet-client.key"),
        // As kubeadm has it: nobody here resolves the node's name.
        "--kubelet-preferred-address-types=InternalIP,Hostname".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        file("service-account-key-file", "accounts.pub"),
        file("service-account-signing-key-file", "accounts.key"),
        format!("--service-cluster-ip-range={CLUSTER_IPS}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--enable-bootstrap-token-auth".to_owned(),
        "--allow-privileged".to_owned(),
    ]
}

/// Certificates and kubeconfigs of everyone.
fn write_credentials(dir: &Path) -> Result<()> {
    let authority = Authority::new("longshore test cluster")?;
    fs::write(dir.join("ca.crt"), authority.certificate())?;
    fs::write(dir.join("ca.key"), authority.key())?;
    let accounts = certificates::key_pair()?;
    fs::write(dir.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(dir.join("accounts.pub"), accounts.public_key_pem())?;
    let server = Party::server(
        "kube-apiserver",
        &[OUTSIDE, "127.0.0.1", "10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"],
    );
    for (file, party) in [
        ("apiserver", server),
        ("apiserver-kubelet-client", Party::client("kube-apiserver-kubelet-client", "system:masters")),
        ("admin", Party::client("admin", "system:masters")),
        ("controller-manager", Party::client("system:kube-controller-manager", "")),
        ("scheduler", Party::client("system:kube-scheduler", "")),
        ("node", Party::client(&format!("system:node:{NODE}"), "system:nodes")),
    ] {
        let (certificate, key) = authority.issue(&party)?;
        fs::write(dir.join(format!("{file}.kubeconfig")), kubeconfig(&authority, &certificate, &key))?;
        fs::write(dir.join(format!("{file}.crt")), certificate)?;
        fs::write(dir.join(format!("{file}.key")), key)?;
    }
    Ok(())
}

fn kubeconfig(authority: &Authority, certificate: &str, key: &str) -> String {
    let packed = certificates::base64;
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         contexts:\n- name: test\n  context: {{cluster: test, user: own}}\n\
         clusters:\n- name: test\n  cluster:\n    server: https://{OUTSIDE}:{API_PORT}\n    certificate-authority-data: {}\n\
         users:\n- name: own\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        packed(authority.certificate()),
        packed(certificate),
        packed(key)
    )
}

/// `kubectl LINE` in the node, as the cluster's administrator.
///
/// # Errors
/// Where it fails; the message has what it printed.
pub fn kubectl(node: &dyn Node, line: &str) -> Result<String> {
    sh(node, &format!("kubectl {line}"))
}

impl Node for Cluster {
    fn kind(&self) -> Kind {
        Kind::Cluster
    }

    fn address(&self) -> &'static str {
        self.node.address()
    }

    fn logs(&self) -> &Path {
        self.node.logs()
    }

    fn run(&self, script: &str, stdin: &[u8], deadline: Duration) -> Result<Output> {
        self.node.run(script, stdin, deadline)
    }

    fn start(&mut self, service: Service) -> Result<()> {
        if service.is_peer() {
            return peers::start(&mut self.node, service);
        }
        if is_in_node(service) {
            return self.node.start(service);
        }
        self.spawn(service)?;
        self.wait_for(service)
    }

    fn start_agent_with(&mut self, flags: &str) -> Result<()> {
        self.node.start_agent_with(flags)
    }

    fn stop(&mut self, service: Service, signal: &str) -> Result<()> {
        if is_in_node(service) {
            return self.node.stop(service, signal);
        }
        let place = self.programs.iter().position(|(known, _)| *known == service);
        let place = place.with_context(|| format!("{} was not started", service.name()))?;
        let (_, mut child) = self.programs.remove(place);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        let signal = match signal {
            "TERM" => nix::sys::signal::Signal::SIGTERM,
            "KILL" => nix::sys::signal::Signal::SIGKILL,
            other => bail!("SIG{other} is not sent to {}", service.name()),
        };
        nix::sys::signal::kill(pid, signal)?;
        wait_until(Duration::from_secs(20), Duration::from_millis(10), || {
            child.ended().map(drop).with_context(|| format!("{} did not end", service.name()))
        })
    }

    fn get_from_outside(&self, port: u16, path: &str) -> Result<(u16, String)> {
        self.node.get_from_outside(port, path)
    }

    fn log(&self, service: Service, lines: usize) -> String {
        self.node.log(service, lines)
    }

    fn runs(&self, service: Service) -> bool {
        if is_in_node(service) {
            return self.node.runs(service);
        }
        self.programs.iter().any(|(known, _)| *known == service)
    }
}
