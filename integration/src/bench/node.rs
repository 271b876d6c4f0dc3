//! The release daemon on a native node of its own (real containerd, crun and CNI), for benches.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use super::daemon::{self, Process, Started, Watched};
use crate::fake::{Cost, Order};
use crate::native::{NativeNode, Options};
use crate::node::{Kind, MANIFESTS, Node, Service};
use crate::process::wait_until;
use crate::scenario::form::Span;
use crate::scenario::suite;
use crate::vm::CgroupDriver;

/// How long so many pods may take to come or go before a bench gives up.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// After a change, until nothing of it is under way any more.
pub const SETTLE: Duration = Duration::from_secs(5);

/// Pods that were written at one instant and became Ready.
#[derive(Debug)]
pub struct Start {
    pub written: Timestamp,
    pub pods: Vec<Started>,
}

impl Start {
    /// Seconds until each was Ready.
    pub fn seconds(&self) -> Vec<f64> {
        self.pods.iter().map(|pod| daemon::seconds(self.written, pod.ready_at)).collect()
    }
}

/// A native node with the daemon running.
#[derive(Debug)]
pub struct BenchNode {
    pub node: NativeNode,
    pub daemon: Watched,
}

impl BenchNode {
    /// Up on real containerd, with no pod.
    ///
    /// # Errors
    /// Where the node or the daemon does not come up.
    pub fn start(name: &str, binary: &Path) -> Result<Self> {
        Self::with_daemon(NativeNode::start(&options(name, binary, Kind::Native, ""))?)
    }

    /// Up on the fake runtime's program, where every call of a name takes so many milliseconds; with no pod.
    ///
    /// # Errors
    /// Where the node or the daemon does not come up.
    pub fn start_fake(name: &str, binary: &Path, runtime: &Path, costs: &[(&str, u64)]) -> Result<Self> {
        let node = NativeNode::start_fake(&options(name, binary, Kind::Fake, ""), runtime)?;
        node.order(&Order::Image(daemon::IMAGE.to_owned()))?;
        for &(call, millis) in costs {
            let takes = Span(Duration::from_millis(millis));
            node.order(&Order::Cost(Cost { operation: Some(call.to_owned()), takes }))?;
        }
        Self::with_daemon(node)
    }

    /// The same with calls that cost nothing, and with this in the daemon's configuration.
    ///
    /// # Errors
    /// Where the node or the daemon does not come up.
    pub fn start_fake_with(name: &str, binary: &Path, runtime: &Path, config: &str) -> Result<Self> {
        let node = NativeNode::start_fake(&options(name, binary, Kind::Fake, config), runtime)?;
        node.order(&Order::Image(daemon::IMAGE.to_owned()))?;
        Self::with_daemon(node)
    }

    fn with_daemon(mut node: NativeNode) -> Result<Self> {
        node.start(Service::Agent)?;
        let daemon = watched(&node)?;
        Ok(Self { node, daemon })
    }

    /// The runtime's own process.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn runtime(&self) -> Result<Process> {
        let pid = self.node.process(Service::Containerd).context("the runtime has no process")?;
        Ok(Process(pid))
    }

    /// Starts the daemon again, after it was stopped.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.node.start(Service::Agent)?;
        self.daemon = watched(&self.node)?;
        Ok(())
    }

    /// Writes so many pods at once, all in one file, and waits until all are Ready. `more` is added to their container.
    ///
    /// # Errors
    /// Where they do not become Ready.
    pub fn start_pods(&self, pods: usize, more: &str) -> Result<Start> {
        let (part, file) = (self.manifest("pods.part"), self.manifest("pods.yaml"));
        fs::write(&part, daemon::manifests(pods, more))?;
        let written = Timestamp::now();
        fs::rename(part, file)?;
        let pods = self.daemon.started(&daemon::names(pods), PATIENCE)?;
        Ok(Start { written, pods })
    }

    /// Removes the file; gives the seconds until nothing was left on the node's disk, for each pod.
    ///
    /// # Errors
    /// Where something stays.
    pub fn stop_pods(&self) -> Result<Vec<f64>> {
        let folder = self.node.path("/var/lib/kubelet/pods");
        let mut left = fs::read_dir(&folder)?.count();
        let mut gone = Vec::new();
        let removed = Timestamp::now();
        fs::remove_file(self.manifest("pods.yaml"))?;
        wait_until(PATIENCE, Duration::from_millis(1), || {
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

    fn manifest(&self, name: &str) -> PathBuf {
        self.node.path(&format!("{MANIFESTS}/{name}"))
    }
}

/// What its work costs a program: its processor time without what it uses when nothing happens, which is
/// measured first.
#[derive(Debug)]
pub struct Spent {
    process: Process,
    /// Processor seconds per second in which nothing happens.
    idle: f64,
    cpu: f64,
    since: Instant,
}

impl Spent {
    /// Of the daemon: waits until all is quiet, and looks at that for as long again.
    ///
    /// # Errors
    /// Where the daemon is gone.
    pub fn since_now(node: &BenchNode) -> Result<Self> {
        settle();
        let mut spent = Self::of(node.daemon.process)?;
        settle();
        spent.begin()?;
        Ok(spent)
    }

    /// Of a program that is quiet now, until [`Self::begin`] or the first [`Self::lap`] is asked.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn of(process: Process) -> Result<Self> {
        Ok(Self { process, idle: 0.0, cpu: process.cpu()?, since: Instant::now() })
    }

    /// What was used so far is what the program uses when nothing happens.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn begin(&mut self) -> Result<()> {
        let took = self.since.elapsed().as_secs_f64();
        self.idle = self.lap()? / took;
        Ok(())
    }

    /// Processor seconds since the last time this was asked.
    ///
    /// # Errors
    /// Where the program is gone.
    pub fn lap(&mut self) -> Result<f64> {
        let (cpu, now) = (self.process.cpu()?, Instant::now());
        let took = now.duration_since(self.since).as_secs_f64();
        let spent = (cpu - self.cpu - self.idle * took).max(0.0);
        (self.cpu, self.since) = (cpu, now);
        Ok(spent)
    }
}

fn options(name: &str, binary: &Path, kind: Kind, more: &str) -> Options {
    let config = suite::config(kind, CgroupDriver::Cgroupfs, &format!("maxPods: 200\n{more}"));
    Options::alone(&format!("bench-{name}"), Some(binary.to_owned()), config)
}

fn watched(node: &NativeNode) -> Result<Watched> {
    let pid = node.process(Service::Agent).context("the daemon has no process")?;
    Ok(Watched { process: Process(pid), socket: node.path("/run/longshore/longshore.sock") })
}

/// Waits until what was just done has settled.
pub fn settle() {
    thread::sleep(SETTLE);
}
