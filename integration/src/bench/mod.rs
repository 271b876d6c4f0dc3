//! `make bench`: figures of the release build, one JSON line each in `target/bench/`, with the goal and the peer's
//! figure where it was measured in the same place. Figures are reported, never asserted.
//! One file per bench; what they share is `figure` (how a figure is told), `peers` (the kubelet's), `daemon` (a process
//! that is looked at) and `node` (the daemon on a native node, with containerd or with the fake runtime). Services are
//! measured by a program of their own, `benches/services`, which can be run in part.

mod daemon;
mod delay;
mod figure;
mod idle;
mod logs;
mod memory;
mod node;
mod peer;
mod peers;
mod ready;
mod restart;
mod services;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tiers::workspace_root;
use figure::Report;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bench {
    /// Own delay and CPU per pod start and stop, on the fake runtime with fixed call costs; 1, 10, 110 pods
    Delay,
    /// Manifests written to Ready, CPU per pod started and stopped, on the native node; 1, 10, 50, 110 pods
    Ready,
    /// Resident memory with 0, 10 and 110 pods, on the native node
    Memory,
    /// Idle CPU with 10 and 110 pods, and with 50 pods that have a probe each second, on the native node
    Idle,
    /// The daemon killed and started over 110 pods, on the native node: start to serving, Ready transitions
    Restart,
    /// Logs over the kubelet's API: a file of 100 MB beside reading it, and what a follower costs that does not read
    Logs,
    /// Beside the real kubelet and kube-proxy, on the node of a real control plane: pods created to Ready; 1, 10, 50,
    /// 110 pods
    Peer,
    /// Services by nftables and iptables in network namespaces, by IPVS in an emulated guest: full syncs, one change,
    /// growth, connections, memory of the daemon
    Services,
}

impl Bench {
    const ALL: &'static [Bench] = &[
        Bench::Delay,
        Bench::Ready,
        Bench::Memory,
        Bench::Idle,
        Bench::Restart,
        Bench::Logs,
        Bench::Peer,
        Bench::Services,
    ];

    fn name(self) -> &'static str {
        match self {
            Bench::Delay => "delay",
            Bench::Ready => "ready",
            Bench::Memory => "memory",
            Bench::Idle => "idle",
            Bench::Restart => "restart",
            Bench::Logs => "logs",
            Bench::Peer => "peer",
            Bench::Services => "services",
        }
    }

    fn run(self, binary: &Path, choice: &Choice) -> Result<()> {
        let measure = match self {
            Bench::Delay => delay::run,
            Bench::Ready => ready::run,
            Bench::Memory => memory::run,
            Bench::Idle => idle::run,
            Bench::Restart => restart::run,
            Bench::Logs => logs::run,
            Bench::Peer => peer::run,
            Bench::Services => return services::run(binary),
        };
        let mut report = Report::create(self.name(), binary, choice)?;
        measure(&mut report)?;
        println!("written to {}", report.path().display());
        Ok(())
    }
}

/// What to run, and on what.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// Those to run; all where none is named.
    only: Vec<Bench>,
    /// Measure this daemon, and build nothing.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Only the figures of so many pods.
    #[arg(long, value_name = "N")]
    pods: Option<usize>,
}

/// Runs what was chosen.
///
/// # Errors
/// Where the daemon does not do what is measured.
pub fn run(choice: &Choice) -> Result<()> {
    let binary = match &choice.binary {
        Some(binary) => fs::canonicalize(binary).with_context(|| binary.display().to_string())?,
        None => {
            build(&["-p", "longshore"])?;
            release("longshore")
        }
    };
    let benches = if choice.only.is_empty() { Bench::ALL } else { &choice.only };
    for bench in benches {
        println!("\n==== bench {}", bench.name());
        bench.run(&binary, choice).with_context(|| format!("bench {}", bench.name()))?;
    }
    Ok(())
}

/// Where a program of the release build is.
fn release(name: &str) -> PathBuf {
    workspace_root().join("target/release").join(name)
}

/// Builds what is measured.
fn build(what: &[&str]) -> Result<()> {
    cargo(&[&["build", "-q", "--release", "--locked"], what].concat())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let command = Command::new("cargo").args(arguments).current_dir(workspace_root()).status();
    if !command.context("cannot start cargo")?.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
