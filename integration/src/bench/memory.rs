//! Resident memory of the whole daemon on the native node, after the pods became Ready and all is quiet.

use anyhow::Result;

use super::figure::{Figure, Goal, Report};
use super::node::{BenchNode, settle};
use super::peers;

/// Pods, and MiB at most.
const COUNTS: &[(usize, f64)] = &[(0, 25.0), (10, 30.0), (110, 45.0)];

pub fn run(report: &mut Report) -> Result<()> {
    for &(pods, goal) in COUNTS {
        if !report.wants(pods) {
            continue;
        }
        let node = BenchNode::start(&format!("memory-{pods}"), report.binary())?;
        if pods > 0 {
            node.start_pods(pods, "")?;
        }
        settle();
        let memory = node.daemon.process.memory()?;
        let note = format!("{:.1} MiB anonymous; peak {:.1} MiB", memory.anonymous, memory.peak);
        report.tell(
            &Figure::one("resident memory", pods, "MiB", memory.resident)
                .goal(Goal::median(goal))
                .peer(peers::resident(pods))
                .note(note),
        )?;
    }
    Ok(())
}
