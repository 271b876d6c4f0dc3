//! Manifests written to Ready on the native node, all at once, and what a start and a stop cost the daemon.

use anyhow::{Context, Result};

use super::figure::{Figure, Goal, Report};
use super::node::{BenchNode, Spent, settle};
use super::peers;

/// Pods at once, and how often.
const COUNTS: &[(usize, usize)] = &[(1, 3), (10, 2), (50, 1), (110, 1)];
/// At 110 pods: 60 % of the kubelet's median, and no later than its last.
const GOAL: (f64, f64) = (0.6 * 17.2, 18.0);

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
    let mut ready = Vec::new();
    let (mut gone, mut start_cpu, mut stop_cpu) = (Vec::new(), Vec::new(), Vec::new());
    let per_pod = |spent: f64| spent / pods as f64;
    let mut spent = Spent::since_now(&node)?;
    for _ in 0..rounds {
        settle();
        spent.lap()?;
        let times = node.start_pods(pods, "")?.seconds();
        settle();
        start_cpu.push(per_pod(spent.lap()?));
        ready.extend(times);
        gone.extend(node.stop_pods()?);
        settle();
        stop_cpu.push(per_pod(spent.lap()?));
    }
    let mut figure = Figure::new("manifest written to Ready", pods, "s", ready)?.peer(peers::ready(pods));
    if pods == 110 {
        figure = figure.goal(Goal::median_and_last(GOAL.0, GOAL.1));
    }
    report.tell(&figure)?;
    report.tell(&Figure::new("manifest removed to gone", pods, "s", gone)?)?;
    report.tell_cpu(pods, start_cpu, stop_cpu, "what it uses in as many idle seconds taken off")
}
