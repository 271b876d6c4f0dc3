//! The release daemon on a native node of its own (real containerd, crun and CNI), for benches.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use super::daemon::{self, Watched};
use crate::native::{NativeNode, Options};
use crate::node::{Kind, MANIFESTS, Node, Service};
use crate::process::wait_until;
use crate::scenario::suite;
use crate::vm::CgroupDriver;

/// How long so many pods may take to come or go before a bench gives up.
const PATIENCE: Duration = Duration::from_secs(180);
/// After a change, until nothing of it is under way any more.
pub const SETTLE: Duration = Duration::from_secs(5);

/// A native node with the daemon running.
#[derive(Debug)]
pub struct BenchNode {
    pub node: NativeNode,
    pub daemon: Watched,
}

impl BenchNode {
    /// Up, with no pod.
    ///
    /// # Errors
    /// Where the node or the daemon does not come up.
    pub fn start(name: &str, binary: &Path) -> Result<Self> {
        let options = Options {
            name: format!("bench-{name}"),
            binary: Some(binary.to_owned()),
            config: suite::config(Kind::Native, CgroupDriver::Cgroupfs, "maxPods: 200\n"),
            images: true,
        };
        let mut node = NativeNode::start(&options)?;
        node.start(Service::Agent)?;
        let daemon = watched(&node)?;
        Ok(Self { node, daemon })
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

    /// Writes so many pods at once, all in one file; gives the seconds until each was Ready. `more` is added to
    /// their container.
    ///
    /// # Errors
    /// Where they do not become Ready.
    pub fn start_pods(&self, pods: usize, more: &str) -> Result<Vec<f64>> {
        let (part, file) = (self.manifest("pods.part"), self.manifest("pods.yaml"));
        fs::write(&part, daemon::manifests(pods, more))?;
        let written = Timestamp::now();
        fs::rename(part, file)?;
        let ready = self.daemon.ready_at(&daemon::names(pods), PATIENCE)?;
        Ok(ready.into_iter().map(|at| daemon::seconds(written, at)).collect())
    }

    /// Removes the file; gives the seconds until nothing of any pod was left on the node's disk.
    ///
    /// # Errors
    /// Where something stays.
    pub fn stop_pods(&self) -> Result<f64> {
        let folder = self.node.path("/var/lib/kubelet/pods");
        let removed = Timestamp::now();
        fs::remove_file(self.manifest("pods.yaml"))?;
        wait_until(PATIENCE, Duration::from_millis(10), || {
            let left = fs::read_dir(&folder)?.count();
            if left > 0 {
                bail!("{left} pods are left");
            }
            Ok(())
        })?;
        Ok(daemon::seconds(removed, Timestamp::now()))
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.node.path(&format!("{MANIFESTS}/{name}"))
    }
}

fn watched(node: &NativeNode) -> Result<Watched> {
    let pid = node.process(Service::Agent).context("the daemon has no process")?;
    Ok(Watched { pid, socket: node.path("/run/longshore/longshore.sock") })
}

/// Waits until what was just done has settled.
pub fn settle() {
    thread::sleep(SETTLE);
}
