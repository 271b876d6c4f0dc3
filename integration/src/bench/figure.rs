//! How a figure is told: its values, the goal, the peer's figure, and the facts without which it means nothing.
//! One JSON line per figure goes to `target/bench/BENCH.jsonl`, one line for people to standard output.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::Choice;
use super::peers::{self, Peer};
use crate::tiers::workspace_root;

/// Seconds: a fifth of the least of the kubelet's.
const START_CPU_GOAL: f64 = 0.03 / 5.0;
const STOP_CPU_GOAL: f64 = 0.02 / 5.0;

/// One figure, measured.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    figure: &'static str,
    pods: usize,
    unit: &'static str,
    /// Values measured.
    n: usize,
    p50: f64,
    p99: f64,
    max: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<Goal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<Peer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// What the figure should be at most.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Goal {
    #[serde(skip_serializing_if = "Option::is_none")]
    p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
}

impl Goal {
    /// The median at most this.
    pub fn median(value: f64) -> Self {
        Self { p50: Some(value), max: None }
    }

    /// The median and the largest at most these.
    pub fn median_and_last(median: f64, last: f64) -> Self {
        Self { p50: Some(median), max: Some(last) }
    }
}

impl Figure {
    /// Of one or more values.
    ///
    /// # Errors
    /// Where there is none.
    pub fn new(figure: &'static str, pods: usize, unit: &'static str, mut values: Vec<f64>) -> Result<Self> {
        values.sort_by(f64::total_cmp);
        let max = *values.last().with_context(|| format!("nothing was measured of: {figure}"))?;
        let (p50, p99) = (quantile(&values, 0.5), quantile(&values, 0.99));
        Ok(Self { figure, pods, unit, n: values.len(), p50, p99, max, goal: None, peer: None, note: None })
    }

    /// Of one value.
    pub fn one(figure: &'static str, pods: usize, unit: &'static str, value: f64) -> Self {
        Self {
            figure,
            pods,
            unit,
            n: 1,
            p50: value,
            p99: value,
            max: value,
            goal: None,
            peer: None,
            note: None,
        }
    }

    /// The goal, where there is one.
    pub fn goal(self, goal: impl Into<Option<Goal>>) -> Self {
        Self { goal: goal.into(), ..self }
    }

    /// The median and the largest value.
    pub fn values(&self) -> (f64, f64) {
        (self.p50, self.max)
    }

    pub fn peer(mut self, peer: Option<Peer>) -> Self {
        self.peer = peer;
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Whether the goal is met; `None` where there is none.
    fn met(&self) -> Option<bool> {
        let within = |value: f64, goal: Option<f64>| goal.is_none_or(|goal| value <= goal);
        self.goal.map(|goal| within(self.p50, goal.p50) && within(self.max, goal.max))
    }

    /// For people.
    fn line(&self) -> String {
        let unit = self.unit;
        let mut line = match self.n {
            1 => format!("{:>4} pods  {}: {:.3} {unit}", self.pods, self.figure, self.p50),
            n => format!(
                "{:>4} pods  {}: p50 {:.3}, p99 {:.3}, max {:.3} {unit} (n={n})",
                self.pods, self.figure, self.p50, self.p99, self.max
            ),
        };
        if let Some(met) = self.met() {
            line.push_str(if met { "  [goal met]" } else { "  [GOAL MISSED]" });
        }
        line
    }
}

/// The value below which this share of the sorted values lies, by the nearest rank.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Where figures were measured. No name of a machine.
#[derive(Debug, Clone, Serialize)]
struct Machine {
    cores: usize,
    cpu: String,
    memory_gib: u64,
    kernel: String,
}

impl Machine {
    fn read() -> Result<Self> {
        let field = |file: &str, name: &str| -> Result<String> {
            let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned());
            Ok(value.unwrap_or_default())
        };
        let memory = field("/proc/meminfo", "MemTotal")?;
        let kib: u64 = memory.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        // The part behind the dash is a name that somebody gave to a build.
        let kernel = kernel.trim().split('-').next().unwrap_or_default().to_owned();
        Ok(Self {
            cores: thread::available_parallelism()?.get(),
            cpu: field("/proc/cpuinfo", "model name")?,
            memory_gib: kib.div_ceil(1 << 20),
            kernel,
        })
    }
}

#[derive(Serialize)]
struct Line<'a> {
    bench: &'static str,
    #[serde(flatten)]
    figure: &'a Figure,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal_met: Option<bool>,
    command: &'a str,
    at: Timestamp,
    machine: &'a Machine,
}

/// The file the figures of one bench go to.
#[derive(Debug)]
pub struct Report {
    bench: &'static str,
    command: String,
    path: PathBuf,
    binary: PathBuf,
    builds: bool,
    pods: Option<usize>,
    file: File,
    machine: Machine,
}

impl Report {
    /// An empty one, in place of that of an earlier run.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn create(bench: &'static str, binary: &Path, choice: &Choice) -> Result<Self> {
        let dir = workspace_root().join("target/bench");
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{bench}.jsonl"));
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let command = format!("make bench ONLY={bench}");
        Ok(Self {
            bench,
            command,
            path,
            binary: binary.to_owned(),
            builds: choice.binary.is_none(),
            pods: choice.pods,
            file,
            machine: Machine::read()?,
        })
    }

    /// Whether the programs that are measured are built first.
    pub fn builds(&self) -> bool {
        self.builds
    }

    /// Whether figures of so many pods are wanted.
    pub fn wants(&self, pods: usize) -> bool {
        self.pods.is_none_or(|only| only == pods)
    }

    /// The daemon that is measured.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Prints the figure and writes its line.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn tell(&mut self, figure: &Figure) -> Result<()> {
        let line = Line {
            bench: self.bench,
            figure,
            goal_met: figure.met(),
            command: &self.command,
            at: Timestamp::now(),
            machine: &self.machine,
        };
        println!("{}", figure.line());
        writeln!(self.file, "{}", serde_json::to_string(&line)?)?;
        Ok(())
    }

    /// What pods cost the daemon, in seconds of CPU each, beside a fifth of the least the kubelet takes.
    ///
    /// # Errors
    /// Without a value, and where the file cannot be written.
    pub fn tell_cpu(&mut self, pods: usize, start: Vec<f64>, stop: Vec<f64>, note: &str) -> Result<()> {
        let both = [
            ("daemon's CPU per pod started", start, START_CPU_GOAL, peers::START_CPU),
            ("daemon's CPU per pod stopped", stop, STOP_CPU_GOAL, peers::STOP_CPU),
        ];
        for (name, values, goal, peer) in both {
            let figure = Figure::new(name, pods, "s", values)?;
            self.tell(&figure.goal(Goal::median(goal)).peer(Some(peer)).note(note))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        for (values, share, expected) in [
            (&[7.0][..], 0.5, 7.0),
            (&[1.0, 2.0][..], 0.5, 1.0),
            (&[1.0, 2.0, 3.0][..], 0.5, 2.0),
            (&[1.0, 2.0, 3.0][..], 0.99, 3.0),
            (&hundred, 0.5, 50.0),
            (&hundred, 0.99, 99.0),
        ] {
            assert_eq!(quantile(values, share), expected, "{} values, {share}", values.len());
        }
    }

    #[test]
    fn a_goal_is_met_up_to_its_value_and_a_line_carries_what_it_needs() {
        let figure = |goal| Figure::new("x", 2, "s", vec![3.0, 1.0, 2.0]).unwrap().goal(goal);
        for (goal, met) in [
            (Goal::median(2.0), true),
            (Goal::median(1.9), false),
            (Goal::median_and_last(2.0, 3.0), true),
            (Goal::median_and_last(2.0, 2.9), false),
        ] {
            assert_eq!(figure(goal).met(), Some(met), "{goal:?}");
        }
        assert!(Figure::new("x", 1, "s", Vec::new()).is_err(), "no figure without a measurement");
        let json = serde_json::to_value(figure(Goal::median(2.0))).unwrap();
        let expected = serde_json::json!({"figure": "x", "pods": 2, "unit": "s", "n": 3, "p50": 2.0, "p99": 3.0,
            "max": 3.0, "goal": {"p50": 2.0}});
        assert_eq!(json, expected);
    }
}
