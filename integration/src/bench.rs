//! `make bench`: figures of the daemon on the native node, one JSON line each in `target/bench/`, with the peer's
//! figure where it was measured in the same place. Figures are reported, never asserted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::native::{NativeNode, Options};
use crate::node::{self, Kind, MANIFESTS, Node, Service, sh};
use crate::process::wait_until;
use crate::scenario::{state, suite};
use crate::tiers::workspace_root;
use crate::vm::CgroupDriver;

/// Pods at once.
const COUNTS: &[usize] = &[1, 10, 50, 110];

/// A figure of the kubelet 1.36.3 on the same kind of node.
struct Peer {
    pods: usize,
    /// Seconds until Ready.
    p50: f64,
    max: Option<f64>,
    /// MiB resident.
    resident: f64,
}

const KUBELET: &[Peer] = &[
    Peer { pods: 1, p50: 0.65, max: Some(0.65), resident: 81.0 },
    Peer { pods: 10, p50: 1.7, max: None, resident: 86.0 },
    Peer { pods: 50, p50: 6.4, max: None, resident: 96.0 },
    Peer { pods: 110, p50: 17.2, max: Some(18.0), resident: 110.0 },
];

/// Percent of a core the kubelet takes with 10 idle pods.
const KUBELET_IDLE: f64 = 2.5;

/// Runs all benches.
///
/// # Errors
/// Where the daemon does not do what is measured.
pub fn run() -> Result<()> {
    let root = workspace_root();
    let status = Command::new("cargo")
        .args(["build", "--release", "--locked", "-p", "longshore"])
        .current_dir(&root)
        .status()?;
    if !status.success() {
        bail!("longshore does not compile");
    }
    let mut lines = Lines::create(root.join("target/bench"))?;
    for &count in COUNTS {
        pods(count, &root.join("target/release/longshore"), &mut lines)
            .with_context(|| format!("bench of {count} pods"))?;
    }
    println!("\nwritten to {}", lines.path.display());
    Ok(())
}

/// The file the figures go to.
struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        let path = dir.join("native-node.jsonl");
        Ok(Self { file: File::create(&path)?, path })
    }

    fn figure(
        &mut self,
        name: &str,
        pods: usize,
        unit: &str,
        value: f64,
        kubelet: Option<f64>,
    ) -> Result<()> {
        let value = (value * 1000.0).round() / 1000.0;
        let mut line = json!({"bench": name, "pods": pods, "unit": unit, "value": value});
        if let Some(peer) = kubelet {
            line["kubelet"] = Value::from(peer);
        }
        println!("{line}");
        writeln!(self.file, "{line}")?;
        Ok(())
    }
}

/// One node: empty, with the pods, idle, and with the daemon restarted over them.
fn pods(count: usize, binary: &std::path::Path, lines: &mut Lines) -> Result<()> {
    let options = Options {
        name: format!("bench-{count}"),
        binary: Some(binary.to_owned()),
        config: suite::config(Kind::Native, CgroupDriver::Cgroupfs, "maxPods: 200\n"),
        images: true,
    };
    let peer = KUBELET.iter().find(|peer| peer.pods == count);
    let mut node = NativeNode::start(&options)?;
    node.start(Service::Agent)?;
    if count == COUNTS[0] {
        thread::sleep(Duration::from_secs(2));
        lines.figure("resident memory", 0, "MiB", resident(&node)?, None)?;
    }
    let before = cpu(&node)?;
    let ready = start_pods(&node, count)?;
    let spent = cpu(&node)? - before;
    let of = |share: f64| ready[(((ready.len() - 1) as f64) * share).round() as usize];
    lines.figure("manifests written to Ready, p50", count, "s", of(0.5), peer.map(|p| p.p50))?;
    lines.figure("manifests written to Ready, max", count, "s", of(1.0), peer.and_then(|p| p.max))?;
    lines.figure("agent's CPU per pod started", count, "s", spent / count as f64, None)?;
    thread::sleep(Duration::from_secs(5));
    lines.figure("resident memory", count, "MiB", resident(&node)?, peer.map(|p| p.resident))?;
    let (idle_start, span) = (cpu(&node)?, Duration::from_secs(20));
    thread::sleep(span);
    let idle = (cpu(&node)? - idle_start) / span.as_secs_f64() * 100.0;
    lines.figure("idle CPU", count, "% of a core", idle, (count == 10).then_some(KUBELET_IDLE))?;
    node.stop(Service::Agent, "KILL")?;
    let start = Instant::now();
    node.start(Service::Agent)?;
    wait_until(Duration::from_secs(60), Duration::from_millis(20), || all_ready(&node, count))?;
    lines.figure("daemon started to all pods served", count, "s", start.elapsed().as_secs_f64(), None)
}

/// Writes all manifests at once; gives the sorted seconds until each pod was seen Ready.
fn start_pods(node: &NativeNode, count: usize) -> Result<Vec<f64>> {
    let manifest = |n: usize| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web-{n}, labels: {{app: web}}}}\nspec:\n  \
             terminationGracePeriodSeconds: 1\n  containers: [{{name: web, image: 'longshore.test/web:1'}}]\n"
        )
    };
    let text: String = (0..count).map(manifest).collect();
    let start = Instant::now();
    node::put(node, &format!("{MANIFESTS}/pods.yaml"), text.as_bytes())?;
    let mut seen: BTreeMap<String, f64> = BTreeMap::new();
    wait_until(Duration::from_secs(180), Duration::from_millis(50), || {
        for pod in state::pods(node)?.iter().filter(|p| p.ready == "1/1") {
            seen.entry(pod.name.clone()).or_insert_with(|| start.elapsed().as_secs_f64());
        }
        if seen.len() < count {
            bail!("{} of {count} pods are Ready", seen.len());
        }
        Ok(())
    })?;
    let mut times: Vec<f64> = seen.into_values().collect();
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn all_ready(node: &NativeNode, count: usize) -> Result<()> {
    let ready = state::pods(node)?.iter().filter(|p| p.ready == "1/1").count();
    if ready < count {
        bail!("{ready} of {count} pods are Ready");
    }
    Ok(())
}

/// MiB of the daemon.
fn resident(node: &NativeNode) -> Result<f64> {
    let text = sh(node, "grep VmRSS /proc/$(cat /run/longshore.harness-pid)/status")?;
    let kib: f64 = text.split_whitespace().nth(1).context("no VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}

/// Seconds of processor time the daemon has used (proc_pid_stat(5): utime and stime in hundredths).
fn cpu(node: &NativeNode) -> Result<f64> {
    let text = sh(node, "cat /proc/$(cat /run/longshore.harness-pid)/stat")?;
    let (_, rest) = text.rsplit_once(')').context("no stat line")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks =
        |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).context("no times in the stat line");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
