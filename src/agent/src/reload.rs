//! Reads the configuration again on SIGHUP and when one of its files changes: what may change is in
//! force for what begins from then on, the rest is named. A configuration that is broken changes
//! nothing. Pods are not touched either way.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use longshore_core::image::gc::GcPolicy;
use longshore_core::image::rate::PullRate;
use tokio::sync::{Notify, watch};

use crate::config::{self, AgentArgs, Difference, Settings};
use crate::logs::LogSettings;
use crate::node::{self, Facts, Node};
use crate::text::error_chain;

/// Between two looks at the files' times.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

/// What of a running daemon follows the configuration.
#[derive(Clone, Debug)]
pub struct Live {
    pub logs: watch::Sender<LogSettings>,
    pub image_gc: watch::Sender<GcPolicy>,
    pub pull_rate: Arc<Mutex<Option<PullRate>>>,
    pub node: Node,
    pub facts: Facts,
}

impl Live {
    pub fn new(settings: &Settings, node: Node, facts: Facts) -> Self {
        Self {
            logs: watch::Sender::new(settings.logs),
            image_gc: watch::Sender::new(settings.images.gc),
            pull_rate: Arc::new(Mutex::new(pull_rate(settings))),
            node,
            facts,
        }
    }

    /// Brings newer settings into force.
    pub fn apply(&self, settings: &Settings) {
        self.logs.send_replace(settings.logs);
        self.image_gc.send_replace(settings.images.gc);
        *self.pull_rate.lock().unwrap_or_else(PoisonError::into_inner) = pull_rate(settings);
        let started = self.node.now().agent_started_at;
        self.node.reconfigure(node::context(settings, &self.facts, None, started));
    }
}

fn pull_rate(settings: &Settings) -> Option<PullRate> {
    settings.images.pull_rate.map(|(per_second, burst)| PullRate::new(per_second, burst))
}

/// Follows the configuration of one daemon.
#[derive(Debug)]
pub struct Reload {
    pub args: AgentArgs,
    /// What is in force.
    pub settings: Settings,
    pub live: Live,
    /// Somebody asked for it.
    pub asked: Arc<Notify>,
}

impl Reload {
    /// Reads again whenever asked or when a file changed, for as long as it is polled.
    pub async fn follow(mut self) {
        let mut seen = self.files();
        loop {
            let asked = tokio::select! {
                () = self.asked.notified() => true,
                () = tokio::time::sleep(LOOK_PERIOD) => false,
            };
            let files = self.files();
            if asked || files != seen {
                seen = files;
                self.reload();
            }
        }
    }

    fn reload(&mut self) {
        match config::load(&self.args) {
            Err(error) => {
                let error = error_chain(&error);
                tracing::error!(error, "the configuration is broken; what is in force stays");
            }
            Ok(newer) => {
                for warning in newer.warnings.iter().filter(|text| !self.settings.warnings.contains(text)) {
                    tracing::warn!("{warning}");
                }
                let Difference { now, restart } = config::difference(&self.settings, &newer);
                tracing::info!(changed = now.join(", "), "configuration read again");
                if !restart.is_empty() {
                    let fields = restart.join(", ");
                    tracing::warn!(fields, "these take a restart of the agent, which touches no pod");
                }
                self.live.apply(&newer);
                self.settings = newer;
            }
        }
    }

    /// The configuration's files with what tells one content from another.
    fn files(&self) -> Vec<(PathBuf, Option<(SystemTime, u64)>)> {
        let signature = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        config::files(&self.args).into_iter().map(|path| (path.clone(), signature(&path))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn facts() -> Facts {
        Facts {
            hostname: "node".into(),
            ips: Vec::new(),
            cpus: 4,
            memory_bytes: 8 << 30,
            swap_bytes: 0,
            dns: Default::default(),
            hugepage_sizes: Vec::new(),
            kernel_version: (6, 12),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_in_force_and_a_broken_one_changes_nothing() {
        let disk = tempfile::tempdir().unwrap();
        let file = disk.path().join("kubelet.yaml");
        let write = |fields: &str| {
            let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
            std::fs::write(&file, format!("{head}{fields}")).unwrap();
        };
        write("maxPods: 5\n");
        let path = file.display().to_string();
        let words = ["agent", "--standalone", "--manifests", "/m", "--config", &path];
        let args = Cli::parse_from(words).args;
        let settings = config::load(&args).unwrap();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let node = Node::new(node::context(&settings, &facts(), None, now));
        let live = Live::new(&settings, node.clone(), facts());
        let asked = Arc::new(Notify::new());
        let reload = Reload { args, settings, live: live.clone(), asked: asked.clone() };
        tokio::spawn(reload.follow());
        let settle = || tokio::time::sleep(Duration::from_secs(6));
        settle().await;
        assert_eq!((node.now().max_pods, live.logs.borrow().limits.max_files), (5, 5));
        write("maxPods: 70\ncontainerLogMaxFiles: 9\nsystemReserved: {cpu: \"1\"}\ncgroupRoot: /other\n");
        settle().await;
        assert_eq!((node.now().max_pods, live.logs.borrow().limits.max_files), (70, 9));
        assert_eq!(node.now().allocatable_cpu_millis, 3000);
        assert_eq!(node.now().cgroups.root, "", "takes a restart");
        write("maxPods: many\n");
        asked.notify_one();
        settle().await;
        assert_eq!(node.now().max_pods, 70);
        write("");
        asked.notify_one();
        settle().await;
        assert_eq!((node.now().max_pods, live.logs.borrow().limits.max_files), (110, 5));
    }
}
