//! What the daemon itself adds to a pod's start and stop: the fake runtime's calls take a fixed time, so everything
//! beyond them is the daemon's.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::figure::{Figure, Goal, Report};
use super::node::{BenchNode, Spent};
use super::{build, release};
use crate::fake::Order;
use crate::node::Node;

/// Pods at once, and how often.
const COUNTS: &[(usize, usize)] = &[(1, 10), (10, 4), (110, 3)];
/// Milliseconds each call takes: about what containerd takes for it on an idle node.
const COSTS: &[(&str, u64)] = &[
    ("RunPodSandbox", 100),
    ("CreateContainer", 30),
    ("StartContainer", 50),
    ("StopContainer", 20),
    ("StopPodSandbox", 50),
    ("RemoveContainer", 20),
    ("RemovePodSandbox", 20),
];
/// Milliseconds over the runtime's own time.
const GOAL: f64 = 20.0;

pub fn run(report: &mut Report) -> Result<()> {
    if report.builds() {
        build(&["-p", "longshore-fake-runtime"])?;
    }
    let mut own = Own::default();
    for &(pods, rounds) in COUNTS {
        // One pod alone also tells the runtime's own time.
        let rounds = match report.wants(pods) {
            true => rounds,
            false if pods == 1 => 2,
            false => continue,
        };
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
    let name = format!("delay-{pods}");
    let node = BenchNode::start_fake(&name, report.binary(), &release("fake-runtime"), COSTS)?;
    let (mut starts, mut unhindered, mut stops) = (Vec::new(), Vec::new(), Vec::new());
    // The start gate knows nothing of the runtime in the first round.
    let mut first = Vec::new();
    let (mut start_cpu, mut stop_cpu, mut start_calls) = (Vec::new(), Vec::new(), Vec::new());
    let runtime = node.runtime()?;
    let mut runtime_cpu = Vec::new();
    let per_pod = |spent: f64| spent / pods as f64;
    let mut spent = Spent::since_now(&node)?;
    for _ in 0..rounds {
        quiet();
        spent.lap()?;
        let (before, runtime_before) = (calls(&node)?, runtime.cpu()?);
        let start = node.start_pods(pods, "")?;
        let started = calls(&node)?;
        runtime_cpu.push(per_pod((runtime.cpu()? - runtime_before) * 1000.0));
        quiet();
        start_cpu.push(per_pod(spent.lap()?));
        let stopping = calls(&node)?;
        let gone = node.stop_pods()?;
        let stopped = calls(&node)?;
        quiet();
        stop_cpu.push(per_pod(spent.lap()?));
        if pods == 1 {
            *own = Own {
                start: (started.busy - before.busy).as_secs_f64(),
                stop: (stopped.busy - stopping.busy).as_secs_f64(),
            };
        }
        let over: Vec<f64> = start.seconds().iter().map(|took| (took - own.start) * 1000.0).collect();
        if first.is_empty() {
            first.clone_from(&over);
        }
        unhindered.extend(over.iter().zip(&start.pods).map(|(over, pod)| over - pod.waited));
        starts.extend(over);
        stops.extend(gone.iter().map(|took| (took - own.stop) * 1000.0));
        start_calls.push(per_pod((started.calls - before.calls) as f64));
    }
    if !report.wants(pods) {
        return Ok(());
    }
    let of_runtime =
        |took: f64| format!("the runtime's own time for a pod that is alone: {:.1} ms", took * 1000.0);
    report.tell(
        &Figure::new("manifest written to Ready, over the runtime's own time", pods, "ms", starts)?
            .goal(Goal::median(GOAL))
            .note(of_runtime(own.start)),
    )?;
    report.tell(
        &Figure::new("the same without its waits at the start gate", pods, "ms", unhindered)?
            .goal(Goal::median(GOAL)),
    )?;
    report.tell(&Figure::new("the same in the first round after the daemon's start", pods, "ms", first)?)?;
    report.tell(
        &Figure::new("manifest removed to gone, over the runtime's own time", pods, "ms", stops)?
            .note(of_runtime(own.stop)),
    )?;
    report.tell(&Figure::new("calls of the runtime per pod started", pods, "", start_calls)?)?;
    report.tell(
        &Figure::new("the fake runtime's own processor time per pod started", pods, "ms", runtime_cpu)?
            .note("in its one thread: of many pods at once each waits for that of those before it"),
    )?;
    report.tell_cpu(
        pods,
        start_cpu,
        stop_cpu,
        "what it uses in as many idle seconds taken off; the peer's on real containerd",
    )
}

/// What the runtime was asked so far.
#[derive(Debug, Clone, Copy)]
struct Calls {
    calls: u64,
    /// How long at least one call was under way.
    busy: Duration,
}

fn calls(node: &BenchNode) -> Result<Calls> {
    let counts = node.node.order(&Order::Calls)?;
    let counts = counts.as_object().context("calls by operation")?;
    let busy = node.node.order(&Order::Busy)?.as_u64().context("nanoseconds")?;
    let calls = counts.values().filter_map(serde_json::Value::as_u64).sum();
    Ok(Calls { calls, busy: Duration::from_nanos(busy) })
}

/// Until nothing of the last change is under way any more.
fn quiet() {
    thread::sleep(Duration::from_secs(2));
}
