//! The release daemon on a fake container runtime with fixed call costs, in a folder of its own: what the daemon
//! itself adds. No container is started and nothing outside the folder is changed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::Deserialize;
use tempfile::TempDir;

use super::daemon::{self, Watched};
use super::release;
use crate::process::{Owned, wait_until};

/// Milliseconds each call takes: about what containerd takes for it on an idle node.
pub const COSTS: &[(&str, u32)] = &[
    ("run_podsandbox", 100),
    ("create_container", 30),
    ("start_container", 50),
    ("stop_container", 20),
    ("stop_podsandbox", 50),
    ("remove_container", 20),
    ("remove_podsandbox", 20),
];

const PATIENCE: Duration = Duration::from_secs(60);

/// What the fake runtime says of its calls so far.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Calls {
    /// Nanoseconds in which at least one call was under way.
    pub busy_ns: u64,
    pub calls: u64,
}

/// The daemon, its runtime, its folder.
#[derive(Debug)]
pub struct FakeNode {
    pub daemon: Watched,
    // In the order they are ended and removed.
    _longshore: Owned,
    runtime: FakeRuntime,
    folder: TempDir,
}

#[derive(Debug)]
struct FakeRuntime {
    _process: Owned,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl FakeNode {
    /// Up, with no pod.
    ///
    /// # Errors
    /// Where one of the two programs does not come up.
    pub fn start(name: &str, binary: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("longshore-bench-").tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let runtime = FakeRuntime::start(&at("cri.sock"))?;
        fs::create_dir(at("manifests"))?;
        let config = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
             containerRuntimeEndpoint: unix://{}\ncgroupsPerQOS: false\nenforceNodeAllocatable: []\n\
             failCgroupV1: false\nmaxPods: 200\npodLogsDir: {}\n",
            at("cri.sock").display(),
            at("logs").display()
        );
        fs::write(at("config.yaml"), config)?;
        let logs = crate::node::log_folder(&format!("bench-{name}"))?;
        let log = fs::File::create(logs.join("longshore.log"))?;
        let child = Command::new(binary)
            .args(["agent", "--standalone", "--roles", "node"])
            .args(["--manifests".as_ref(), at("manifests").as_os_str()])
            .args(["--root-dir".as_ref(), at("root").as_os_str()])
            .args(["--socket".as_ref(), at("longshore.sock").as_os_str()])
            .args(["--config".as_ref(), at("config.yaml").as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start longshore")?;
        let daemon = Watched { pid: child.id(), socket: at("longshore.sock") };
        let longshore = Owned::new("longshore", child);
        daemon.serves().with_context(|| crate::node::tail(&logs.join("longshore.log"), 15))?;
        Ok(Self { daemon, _longshore: longshore, runtime, folder })
    }

    /// Calls of the runtime so far.
    ///
    /// # Errors
    /// Where the runtime's program has ended.
    pub fn calls(&mut self) -> Result<Calls> {
        self.runtime.calls()
    }

    /// Writes so many pods at once; gives the seconds until each was Ready.
    ///
    /// # Errors
    /// Where they do not become Ready.
    pub fn start_pods(&self, pods: usize) -> Result<Vec<f64>> {
        let part = self.folder.path().join("pods.part");
        fs::write(&part, daemon::manifests(pods, ""))?;
        let written = Timestamp::now();
        fs::rename(part, self.manifest())?;
        let ready = self.daemon.ready_at(&daemon::names(pods), PATIENCE)?;
        Ok(ready.into_iter().map(|at| daemon::seconds(written, at)).collect())
    }

    /// Removes them; gives the seconds until the folder of each was gone.
    ///
    /// # Errors
    /// Where one stays.
    pub fn stop_pods(&self) -> Result<Vec<f64>> {
        let folder = self.folder.path().join("root/pods");
        let mut left = fs::read_dir(&folder)?.count();
        let mut gone = Vec::new();
        let removed = Timestamp::now();
        fs::remove_file(self.manifest())?;
        wait_until(PATIENCE, Duration::from_micros(500), || {
            let now = fs::read_dir(&folder)?.count();
            let took = daemon::seconds(removed, Timestamp::now());
            gone.extend(std::iter::repeat_n(took, left.saturating_sub(now)));
            left = now;
            if now > 0 {
                bail!("{now} pods are left");
            }
            Ok(())
        })?;
        Ok(gone)
    }

    fn manifest(&self) -> PathBuf {
        self.folder.path().join("manifests/pods.yaml")
    }
}

impl FakeRuntime {
    fn start(socket: &Path) -> Result<Self> {
        let costs = COSTS.iter().map(|(call, millis)| format!("{call}={millis}"));
        let mut child = Command::new(release("examples/fake_runtime"))
            .arg(socket)
            .arg("longshore.test/web:1")
            .args(costs)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the fake runtime")?;
        let ask = child.stdin.take().context("standard input was asked for")?;
        let answers = BufReader::new(child.stdout.take().context("standard output was asked for")?);
        let mut runtime = Self { _process: Owned::new("the fake runtime", child), ask, answers };
        runtime.calls()?;
        Ok(runtime)
    }

    fn calls(&mut self) -> Result<Calls> {
        self.ask.write_all(b"\n")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the fake runtime said {line:?}"))
    }
}
