//! The daemon killed and started again over 110 pods on the native node: how long until it serves with all of them
//! adopted, and whether anybody could see it in a Ready condition.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::figure::{Figure, Goal, Report};
use super::node::{BenchNode, settle};
use crate::node::{Node, Service};
use crate::process::wait_until;

const PODS: usize = 110;
const ROUNDS: usize = 5;
/// Seconds from start to serving.
const GOAL: f64 = 1.0;

pub fn run(report: &mut Report) -> Result<()> {
    let mut node = BenchNode::start("restart", report.binary())?;
    node.start_pods(PODS, "")?;
    settle();
    let before = node.daemon.ready_conditions()?;
    let (mut times, mut cpu, mut transitions) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        node.node.stop(Service::Agent, "KILL")?;
        let start = Instant::now();
        // First it says READY=1 (sd_notify(3)); it serves when it is asked for the pods and names all of them.
        node.start_daemon()?;
        let adopted = wait_until(Duration::from_secs(20), Duration::from_millis(2), || {
            let adopted = node.daemon.ready_conditions()?;
            ensure!(adopted.len() == PODS, "{} of {PODS} pods are served", adopted.len());
            Ok(adopted)
        })?;
        times.push(start.elapsed().as_secs_f64());
        cpu.push(node.daemon.process.cpu()?);
        transitions += differences(&before, &adopted);
        settle();
        transitions += differences(&before, &node.daemon.ready_conditions()?);
    }
    report.tell(
        &Figure::new("daemon started to serving, all pods adopted", PODS, "s", times)?
            .goal(Goal::median_and_last(GOAL, GOAL))
            .note("from before its start by nsenter and sh until it names all pods when asked"),
    )?;
    report.tell(&Figure::new("daemon's CPU from start to serving", PODS, "s", cpu)?)?;
    report.tell(
        &Figure::one("Ready conditions changed by restarts", PODS, "", transitions as f64)
            .goal(Goal::median_and_last(0.0, 0.0))
            .note(format!("{ROUNDS} restarts, looked at when serving and five seconds later")),
    )
}

/// Pods whose Ready condition, since when included, is another one or missing.
fn differences(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> usize {
    before.iter().filter(|(name, condition)| after.get(*name) != Some(condition)).count()
}
