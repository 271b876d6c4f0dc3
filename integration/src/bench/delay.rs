//! What the daemon itself adds to a pod's start and stop: the fake runtime's calls take a fixed time, so everything
//! beyond them is the daemon's.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::fake::FakeNode;
use super::figure::{Figure, Goal, Report};
use super::{build, peers};

/// Pods at once, and how often.
const COUNTS: &[(usize, usize)] = &[(1, 20), (10, 5), (110, 3)];
/// Milliseconds over the runtime's own time.
const GOAL: f64 = 20.0;
/// A fifth of the least of the kubelet's, seconds.
const START_CPU_GOAL: f64 = 0.03 / 5.0;
const STOP_CPU_GOAL: f64 = 0.02 / 5.0;

pub fn run(report: &mut Report) -> Result<()> {
    build(&["-p", "longshore-cri", "--features", "fake", "--example", "fake_runtime"])?;
    let mut own = Own::default();
    for &(pods, rounds) in COUNTS {
        at_once(pods, rounds, &mut own, report).with_context(|| format!("{pods} pods"))?;
    }
    Ok(())
}

/// Seconds in which the runtime works for one pod that is alone: its own time, without any waiting.
#[derive(Debug, Default)]
struct Own {
    start: f64,
    stop: f64,
}

fn at_once(pods: usize, rounds: usize, own: &mut Own, report: &mut Report) -> Result<()> {
    let mut node = FakeNode::start(&format!("delay-{pods}"), report.binary())?;
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    let (mut start_cpu, mut stop_cpu, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    let per_pod = |spent: f64| spent / pods as f64;
    let busy = |from: u64, to: u64| Duration::from_nanos(to - from).as_secs_f64();
    for _ in 0..rounds {
        quiet();
        let (cpu, before) = (node.daemon.cpu()?, node.calls()?);
        let ready = node.start_pods(pods)?;
        let started = node.calls()?;
        quiet();
        let between = node.daemon.cpu()?;
        let stopping = node.calls()?;
        let gone = node.stop_pods()?;
        let stopped = node.calls()?;
        quiet();
        if pods == 1 {
            *own = Own {
                start: busy(before.busy_ns, started.busy_ns),
                stop: busy(stopping.busy_ns, stopped.busy_ns),
            };
        }
        starts.extend(ready.iter().map(|took| (took - own.start) * 1000.0));
        stops.extend(gone.iter().map(|took| (took - own.stop) * 1000.0));
        calls.push(per_pod((started.calls - before.calls) as f64));
        start_cpu.push(per_pod(between - cpu));
        stop_cpu.push(per_pod(node.daemon.cpu()? - between));
    }
    let of_runtime =
        |took: f64| format!("the runtime's own time for a pod that is alone: {:.1} ms", took * 1000.0);
    report.tell(
        &Figure::new("manifest written to Ready, over the runtime's own time", pods, "ms", starts)?
            .goal(Goal::median(GOAL))
            .note(of_runtime(own.start)),
    )?;
    report.tell(
        &Figure::new("manifest removed to gone, over the runtime's own time", pods, "ms", stops)?
            .note(of_runtime(own.stop)),
    )?;
    report.tell(&Figure::new("calls of the runtime per pod started", pods, "", calls)?)?;
    let with_wait = "two idle seconds after it included; the peer's on real containerd";
    report.tell(
        &Figure::new("daemon's CPU per pod started", pods, "s", start_cpu)?
            .goal(Goal::median(START_CPU_GOAL))
            .peer(Some(peers::START_CPU))
            .note(with_wait),
    )?;
    report.tell(
        &Figure::new("daemon's CPU per pod stopped", pods, "s", stop_cpu)?
            .goal(Goal::median(STOP_CPU_GOAL))
            .peer(Some(peers::STOP_CPU))
            .note(with_wait),
    )
}

/// Until nothing of the last change is under way any more.
fn quiet() {
    thread::sleep(Duration::from_secs(2));
}
