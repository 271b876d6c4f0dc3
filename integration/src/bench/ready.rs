//! Manifests written to Ready on the native node, all at once, and what a start and a stop cost the daemon.

use anyhow::{Context, Result};

use super::figure::{Figure, Goal, Report};
use super::node::{BenchNode, settle};
use super::peers;

/// Pods at once, and how often.
const COUNTS: &[(usize, usize)] = &[(1, 3), (10, 2), (50, 1), (110, 1)];
/// At 110 pods: 60 % of the kubelet's median, and no later than its last.
const GOAL: (f64, f64) = (0.6 * 17.2, 18.0);
/// A fifth of the least of the kubelet's.
const START_CPU_GOAL: f64 = 0.03 / 5.0;
const STOP_CPU_GOAL: f64 = 0.02 / 5.0;

pub fn run(report: &mut Report) -> Result<()> {
    for &(pods, rounds) in COUNTS {
        if report.wants(pods) {
            at_once(pods, rounds, report).with_context(|| format!("{pods} pods"))?;
        }
    }
    Ok(())
}

fn at_once(pods: usize, rounds: usize, report: &mut Report) -> Result<()> {
    let node = BenchNode::start(&format!("ready-{pods}"), report.binary())?;
    let (mut ready, mut last) = (Vec::new(), Vec::new());
    let (mut gone, mut start_cpu, mut stop_cpu) = (Vec::new(), Vec::new(), Vec::new());
    let per_pod = |spent: f64| spent / pods as f64;
    for _ in 0..rounds {
        settle();
        let before = node.daemon.cpu()?;
        let times = node.start_pods(pods, "")?.seconds();
        settle();
        let started = node.daemon.cpu()?;
        last.push(times.iter().copied().fold(0.0, f64::max));
        ready.extend(times);
        gone.extend(node.stop_pods()?);
        settle();
        start_cpu.push(per_pod(started - before));
        stop_cpu.push(per_pod(node.daemon.cpu()? - started));
    }
    let mut figure = Figure::new("manifest written to Ready", pods, "s", ready)?.peer(peers::ready(pods));
    if pods == 110 {
        figure = figure.goal(Goal::median_and_last(GOAL.0, GOAL.1));
    }
    report.tell(&figure)?;
    report.tell(&Figure::new("manifest removed to gone", pods, "s", gone)?)?;
    let with_wait = "five idle seconds after it included";
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
