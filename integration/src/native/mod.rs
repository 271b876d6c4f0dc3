//! The native node: containerd, crun and CNI of the trixie root, in mount, process, network and host name namespaces
//! of this machine. Up in about a second; gone with its first process. Needs root.

pub mod init;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use longshore_test_programs::http;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tempfile::TempDir;

use crate::fake::{self, Order};
use crate::node::{self, CONFIG, Kind, MANIFESTS, Node, Service, sh};
use crate::process::{Output, Owned, Run, wait_until};
use crate::{cache, images, root};

/// The node's address.
pub const ADDRESS: &str = "10.88.0.2";
/// The other end of the cable.
pub const OUTSIDE: &str = "10.88.0.1";

/// Where the daemon's binary is bound to.
const BINARY: &str = "/usr/local/bin/longshore";

/// How the daemon is started, with flags that say where its objects come from.
pub fn agent_line(flags: &str) -> String {
    format!("{BINARY} agent {flags} --config {CONFIG}")
}

/// Where the fake runtime's program is bound to, and its control socket.
const FAKE: &str = "/usr/local/bin/fake-runtime";
const CONTROL: &str = "/run/fake-runtime.sock";
/// The runtime's socket, as the daemon's configuration names it.
const RUNTIME_SOCKET: &str = "/run/containerd/containerd.sock";

/// What a new native node gets.
#[derive(Debug, Clone)]
pub struct Options {
    /// The test's name: the log folder is named after it.
    pub name: String,
    /// The daemon's binary on this machine, where one is to be run.
    pub binary: Option<PathBuf>,
    /// The daemon's configuration file.
    pub config: String,
    /// Whether the test images are to be there.
    pub images: bool,
    /// What the daemon is told of where its objects come from.
    pub agent: String,
    /// (on this machine, in the node) more files bound into the node.
    pub binds: Vec<(PathBuf, PathBuf)>,
}

impl Options {
    /// A node that runs alone, from its folder of manifests.
    pub fn alone(name: &str, binary: Option<PathBuf>, config: String) -> Self {
        Self {
            name: name.to_owned(),
            binary,
            config,
            images: true,
            agent: format!("--standalone --manifests {MANIFESTS}"),
            binds: Vec::new(),
        }
    }
}

/// A running native node. Dropping it ends every process in it and removes its mounts.
#[derive(Debug)]
pub struct NativeNode {
    init: Owned,
    /// The first process as this machine counts.
    pid: u32,
    outside: i32,
    logs: PathBuf,
    services: Vec<(Service, Owned)>,
    /// Whether its runtime is the fake one.
    fake: bool,
    agent: String,
    /// Bound into the node: the daemon says there that it is ready, as it does to systemd.
    notify: TempDir,
    // Removed last, when nothing is mounted on it any more.
    _scratch: TempDir,
}

impl NativeNode {
    /// Builds the namespaces, mounts and network, and starts containerd with the images; the daemon is not started.
    ///
    /// # Errors
    /// Where this machine does not allow it, or containerd does not come up.
    pub fn start(options: &Options) -> Result<Self> {
        Self::build(options, None)
    }

    /// As `start`, with the fake runtime's program in containerd's place, at the same socket.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_fake(options: &Options, runtime: &Path) -> Result<Self> {
        Self::build(&Options { images: false, ..options.clone() }, Some(runtime))
    }

    fn build(options: &Options, fake: Option<&Path>) -> Result<Self> {
        let root = root::folder()?;
        let store = if options.images { Some(image_store()?) } else { None };
        let logs = node::log_folder(&options.name)?;
        let scratch = tempfile::Builder::new().prefix("longshore-node-").tempdir()?;
        let notify = tempfile::Builder::new().prefix("longshore-notify-").tempdir()?;
        let mut binds = vec![
            (logs.clone(), PathBuf::from("/var/log/harness")),
            (notify.path().to_owned(), PathBuf::from("/run/harness")),
        ];
        binds.extend(options.binary.clone().map(|binary| (binary, PathBuf::from(BINARY))));
        binds.extend(options.binds.clone());
        binds.extend(fake.map(|program| (program.to_owned(), PathBuf::from(FAKE))));
        let plan = init::Plan { root, scratch: scratch.path().to_owned(), binds };
        let (init, pid, outside) = first_process(&plan, &logs)?;
        let mut node = Self {
            init,
            pid,
            outside,
            logs,
            services: Vec::new(),
            fake: fake.is_some(),
            agent: options.agent.clone(),
            notify,
            _scratch: scratch,
        };
        if let Some(store) = store {
            let from = store.display();
            let to = node.path("/var/lib/containerd");
            Run::shell(&format!("cp -a {from}/. {}/", to.display()))
                .check()
                .context("cannot lay out the images")?;
        }
        sh(&node, &format!("mkdir -p {MANIFESTS}"))?;
        node::put(&node, CONFIG, options.config.as_bytes())?;
        node.start(Service::Containerd)?;
        Ok(node)
    }

    /// The network namespace outside the node, as this machine sees it.
    pub fn outside(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", self.pid, self.outside))
    }

    /// A path of the node as this machine sees it.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid))
    }

    /// The service's process as this machine counts, while it runs.
    pub fn process(&self, service: Service) -> Option<u32> {
        // The program itself is the only child of the nsenter that was started here.
        let (_, nsenter) = self.services.iter().find(|(s, _)| *s == service)?;
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", nsenter.id())).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    fn enter(&self) -> Run {
        Run::new("nsenter").args(self.enter_args())
    }

    fn enter_args(&self) -> Vec<String> {
        let target = format!("--target={}", self.pid);
        let spaces = ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--"].map(str::to_owned);
        let environment = [
            "env",
            "-i",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "TERM=dumb",
        ];
        std::iter::once(target).chain(spaces).chain(environment.map(str::to_owned)).collect()
    }

    /// Starts a program that stays; its output goes to `NAME.log`, its id in the node to `/run/NAME.harness-pid`.
    fn spawn(&mut self, service: Service, line: &str) -> Result<()> {
        let name = service.name();
        let log = File::options().create(true).append(true).open(self.logs.join(format!("{name}.log")))?;
        let child = Command::new("nsenter")
            .args(self.enter_args())
            .args(["sh", "-c", &format!("echo $$ > /run/{name}.harness-pid; exec {line}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start nsenter")?;
        self.services.retain(|(s, _)| *s != service);
        self.services.push((service, Owned::new(name, child)));
        Ok(())
    }

    fn ended(&mut self, service: Service) -> Option<i32> {
        self.services.iter_mut().find(|(s, _)| *s == service).and_then(|(_, child)| child.ended())
    }

    /// Waits until `is_ready`, or until the service has ended: its code is the answer then.
    fn wait_for(&mut self, service: Service, mut is_ready: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        let result =
            wait_until(Duration::from_secs(30), Duration::from_millis(20), || match self.ended(service) {
                Some(code) => Ok(Err(anyhow!("{} ended with {code}", service.name()))),
                None => is_ready(self).map(Ok),
            });
        let log =
            |node: &Self| format!("{} does not come up; its log:\n{}", service.name(), node.log(service, 15));
        result.and_then(|ended| ended).with_context(|| log(self))
    }

    fn start_containerd(&mut self) -> Result<()> {
        if self.fake {
            let line = format!("{FAKE} --socket {RUNTIME_SOCKET} --control {CONTROL}");
            sh(self, &format!("mkdir -p \"$(dirname {RUNTIME_SOCKET})\""))?;
            self.spawn(Service::Containerd, &line)?;
            return self.wait_for(Service::Containerd, |node| node.order(&Order::Counts).map(drop));
        }
        self.spawn(Service::Containerd, "containerd --config /etc/containerd/native.toml")?;
        self.wait_for(Service::Containerd, |node| sh(node, "ctr --connect-timeout 1s version").map(drop))
    }

    /// Stops or starts serving CRI; the fake's containers live in its process, which stays.
    fn signal_fake(&self, signal: &str, serves: bool) -> Result<()> {
        sh(self, &format!("kill -{signal} $(cat /run/{}.harness-pid)", Service::Containerd.name()))?;
        wait_until(Duration::from_secs(10), Duration::from_millis(10), || {
            if self.path(RUNTIME_SOCKET).exists() != serves {
                bail!("its socket has not {}", if serves { "come" } else { "gone" });
            }
            Ok(())
        })
    }

    /// Starts a program that is not the harness's own; done when the shell line `is_ready` succeeds.
    ///
    /// # Errors
    /// Where it ends, or is not ready in time; the message has the end of its log.
    pub fn start_program(&mut self, service: Service, line: &str, is_ready: &str) -> Result<()> {
        self.spawn(service, line)?;
        self.wait_for(service, |node| sh(node, is_ready).map(drop))
    }

    /// The daemon is ready when it says so (sd_notify(3)).
    fn start_agent(&mut self, line: &str) -> Result<()> {
        let socket = self.notify.path().join("notify");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let socket = UnixDatagram::bind(&socket)?;
        // Waits for a word as long as it takes to look whether the daemon still lives.
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let line = format!("env NOTIFY_SOCKET=/run/harness/notify {line}");
        self.spawn(Service::Agent, &line)?;
        self.wait_for(Service::Agent, |_| {
            let mut said = [0; 4096];
            while let Ok(n) = socket.recv(&mut said) {
                if String::from_utf8_lossy(&said[..n]).lines().any(|line| line == "READY=1") {
                    return Ok(());
                }
            }
            bail!("it has not said READY=1")
        })
    }
}

/// Starts the namespaces' first process and waits for its word; gives it, its id on this machine, and the number
/// of its descriptor of the outside network.
fn first_process(plan: &init::Plan, logs: &Path) -> Result<(Owned, u32, i32)> {
    let file = logs.join("plan.json");
    fs::write(&file, serde_json::to_vec_pretty(plan)?)?;
    let mut child = Command::new("unshare")
        .args(["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child", "--"])
        // Not by its path: a build during the run replaces the file there.
        .arg(format!("/proc/{}/exe", std::process::id()))
        .arg("node-init")
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(logs.join("init.log"))?)
        .spawn()
        .context("cannot start unshare")?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("standard output was asked for")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let mut init = Owned::new("the native node", child);
    let Ok(ready) = serde_json::from_str::<init::Ready>(&line) else {
        thread::sleep(Duration::from_millis(50));
        let code = init.ended();
        bail!(
            "the native node was not built (exit code {code:?}): {}",
            node::tail(&logs.join("init.log"), 10)
        );
    };
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", init.id()))?;
    let pid = children.trim().parse().with_context(|| format!("unshare has these children: {children:?}"))?;
    Ok((init, pid, ready.outside))
}

impl Node for NativeNode {
    fn kind(&self) -> Kind {
        if self.fake { Kind::Fake } else { Kind::Native }
    }

    fn address(&self) -> &'static str {
        ADDRESS
    }

    fn logs(&self) -> &Path {
        &self.logs
    }

    fn run(&self, script: &str, stdin: &[u8], deadline: Duration) -> Result<Output> {
        self.enter().args(["sh", "-ec", script]).stdin(stdin).deadline(deadline).output()
    }

    fn start(&mut self, service: Service) -> Result<()> {
        match service {
            Service::Containerd if self.fake && self.runs(service) => self.signal_fake("USR2", true),
            Service::Containerd => self.start_containerd(),
            Service::Agent => self.start_agent(&agent_line(&self.agent)),
            other => bail!("a node runs no {}", other.name()),
        }
    }

    fn start_agent_with(&mut self, flags: &str) -> Result<()> {
        self.start_agent(&format!("{BINARY} agent {flags}"))
    }

    fn stop(&mut self, service: Service, signal: &str) -> Result<()> {
        let name = service.name();
        if self.fake && service == Service::Containerd {
            return self.signal_fake("USR1", false);
        }
        sh(self, &format!("kill -{signal} $(cat /run/{name}.harness-pid)"))?;
        let place = self.services.iter().position(|(s, _)| *s == service);
        let (_, mut child) = self.services.remove(place.with_context(|| format!("{name} was not started"))?);
        wait_until(Duration::from_secs(20), Duration::from_millis(10), || {
            child.ended().map(drop).with_context(|| format!("{name} did not end on SIG{signal}"))
        })
    }

    fn get_from_outside(&self, port: u16, path: &str) -> Result<(u16, String)> {
        let outside = File::open(self.outside())?;
        let url = format!("http://{ADDRESS}:{port}{path}");
        // A thread of its own: entering a namespace is for the thread's whole life.
        let asked = thread::spawn(move || -> Result<(u16, String)> {
            setns(outside, CloneFlags::CLONE_NEWNET)?;
            Ok(http::get(&url, Duration::from_secs(3))?)
        });
        asked.join().map_err(|_| anyhow!("the asking thread panicked"))?
    }

    fn log(&self, service: Service, lines: usize) -> String {
        node::tail(&self.logs.join(format!("{}.log", service.name())), lines)
    }

    fn runs(&self, service: Service) -> bool {
        self.services.iter().any(|(s, _)| *s == service)
            && sh(self, &format!("kill -0 $(cat /run/{}.harness-pid)", service.name())).is_ok()
    }

    fn order(&self, order: &Order) -> Result<Value> {
        if !self.fake {
            bail!("native nodes have no fake runtime for {order:?}");
        }
        fake::order(&self.path(CONTROL), order)
    }
}

impl Drop for NativeNode {
    fn drop(&mut self) {
        // The first process first: what it holds ends with it, then the nsenter children end by themselves.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.pid as i32),
            nix::sys::signal::Signal::SIGKILL,
        );
        drop(self.init.child().wait());
        self.services.clear();
    }
}

/// containerd's state with the test images unpacked, as a folder in the cache: what the VM's disk and every native
/// node start from.
///
/// # Errors
/// Where the images cannot be built or imported.
pub fn image_store() -> Result<PathBuf> {
    let archives = images::archives()?;
    let root = root::folder()?;
    let key = cache::key([archives.to_string_lossy().as_bytes(), root.to_string_lossy().as_bytes()]);
    cache::entry("store", &key, |store| {
        println!("unpacking the test images");
        let options = Options { images: false, ..Options::alone("image-import", None, String::new()) };
        let mut node = NativeNode::start(&options)?;
        let mut names: Vec<PathBuf> = fs::read_dir(&archives)?.flatten().map(|e| e.path()).collect();
        names.sort();
        for archive in names {
            let import = "ctr -n k8s.io images import --no-unpack=false - ";
            let output = node.run(import, &fs::read(&archive)?, Duration::from_secs(120))?;
            if !output.success() {
                bail!("containerd refused {}: {}", archive.display(), output.text());
            }
        }
        node.stop(Service::Containerd, "TERM")?;
        let from = node.path("/var/lib/containerd");
        Run::new("cp")
            .args([std::ffi::OsStr::new("-a"), from.as_os_str(), store.as_os_str()])
            .check()
            .map(drop)
    })
}
