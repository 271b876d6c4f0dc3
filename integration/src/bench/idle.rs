//! What the daemon takes of a core while nothing happens on the native node, and what probes add.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::figure::{Figure, Goal, Report};
use super::node::{BenchNode, settle};
use super::peers;

/// Two health checks each five seconds and one audit each minute are part of being idle.
const SPAN: Duration = Duration::from_secs(62);

/// A fifth of the kubelet's.
const GOAL_TEN: f64 = 2.5 / 5.0;

const PROBE: &str =
    ", args: [--port, '8080'], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}";

pub fn run(report: &mut Report) -> Result<()> {
    for (pods, goal) in [(10, Some(GOAL_TEN)), (110, None)] {
        if report.wants(pods) {
            let percent = percent(report.binary(), pods, "")?;
            let mut figure = Figure::one("idle CPU", pods, "% of a core", percent).peer(peers::idle(pods));
            if let Some(goal) = goal {
                figure = figure.goal(Goal::median(goal));
            }
            report.tell(&figure)?;
        }
    }
    if report.wants(50) {
        let percent = percent(report.binary(), 50, PROBE)?;
        let figure = "CPU with one HTTP readiness probe per pod and second";
        let each = format!("{:.3} ms per probe, idle included", percent / 100.0 / 50.0 * 1000.0);
        report.tell(&Figure::one(figure, 50, "% of a core", percent).note(each))?;
    }
    Ok(())
}

/// Percent of a core over the span.
fn percent(binary: &Path, pods: usize, more: &str) -> Result<f64> {
    let node = BenchNode::start(&format!("idle-{pods}"), binary)?;
    node.start_pods(pods, more)?;
    settle();
    let (begin, before) = (Instant::now(), node.daemon.process.cpu()?);
    thread::sleep(SPAN);
    Ok((node.daemon.process.cpu()? - before) / begin.elapsed().as_secs_f64() * 100.0)
}
