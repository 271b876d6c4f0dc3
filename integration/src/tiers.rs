//! Runs the test tiers of the design, counts every test and names what was skipped and why.
//! A test binary belongs to a tier by its file name: `tests/netns_*.rs`, `tests/node_*.rs`,
//! `tests/vm_*.rs`; the rest is tier unit.

use std::env;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::native::{self, NativeNode};
use crate::report::{LibtestOutput, Tally};
use crate::scenario::suite;
use crate::{cluster, guest, images, qemu};

/// One way of running tests, least powerful first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Tier {
    /// Pure decisions, and the daemon on fakes.
    Unit,
    /// Real kernel interfaces in private network namespaces.
    Netns,
    /// Scenarios on real containerd and crun in private namespaces.
    Node,
    /// Scenarios on a native node joined to a real control plane.
    Cluster,
    /// The kernel-only guest and the node VM.
    Vm,
}

impl Tier {
    pub const ALL: &'static [Tier] = &[Tier::Unit, Tier::Netns, Tier::Node, Tier::Cluster, Tier::Vm];

    fn name(self) -> &'static str {
        match self {
            Tier::Unit => "unit",
            Tier::Netns => "netns",
            Tier::Node => "node",
            Tier::Cluster => "cluster",
            Tier::Vm => "vm",
        }
    }

    /// Why this machine cannot run the tier, if so.
    pub fn obstacle(self) -> Option<String> {
        match self {
            Tier::Unit => None,
            Tier::Netns => missing(&["ip", "nft", "unshare"]),
            Tier::Node => not_root().or_else(|| missing(&["mmdebstrap", "unshare", "nsenter"])),
            Tier::Cluster => not_root()
                .or_else(|| missing(&["mmdebstrap", "unshare", "nsenter", "setpriv"]))
                .or_else(cluster::assets::obstacle),
            Tier::Vm => not_root()
                .or_else(|| missing(&["mmdebstrap", "ssh", "cpio", "mke2fs", "setpriv"]))
                .or_else(qemu::obstacle),
        }
    }

    fn run(self) -> Result<Tally> {
        match self {
            Tier::Unit => unit(),
            Tier::Netns => netns(),
            Tier::Node => node(),
            Tier::Cluster => suite::run_cluster(None),
            Tier::Vm => vm(),
        }
    }
}

/// Lines of the table of slow tests.
const SLOWEST: usize = 20;

/// Whether a skipped tier counts as a failure: `LONGSHORE_TIERS=all`.
pub fn strict() -> bool {
    env::var("LONGSHORE_TIERS").is_ok_and(|v| v == "all")
}

/// Runs the tiers in order and prints one summary; `asked` tiers must be able to run.
///
/// # Errors
/// Where a test failed, or was skipped though it was asked for.
pub fn run(asked: &[Tier]) -> Result<()> {
    let strict = strict() || !asked.is_empty();
    let tiers = if asked.is_empty() { Tier::ALL } else { asked };
    let start = Instant::now();
    let mut total = Tally::default();
    let mut lines = Vec::new();
    for round in rounds(tiers) {
        for played in side_by_side(&round) {
            lines.push(played.to_string());
            total.add(played.tally);
        }
    }
    println!("\n==== the slowest {SLOWEST}\n{}", total.slowest(SLOWEST));
    println!("==== summary ({:.1} s)\n{}", start.elapsed().as_secs_f32(), lines.join("\n"));
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed.len(), total.not_run());
    if !total.good(strict) {
        bail!("not all tests passed");
    }
    Ok(())
}

/// Tiers in their order; those of one round run side by side. An emulated machine keeps one core busy, and a joined
/// node waits more than it works.
fn rounds(tiers: &[Tier]) -> Vec<Vec<Tier>> {
    let mut rounds: Vec<Vec<Tier>> = Vec::new();
    for &tier in tiers {
        match rounds.last_mut() {
            Some(round) if *round == [Tier::Cluster] && tier == Tier::Vm => round.push(tier),
            _ => rounds.push(vec![tier]),
        }
    }
    rounds
}

/// How a tier ended.
struct Played {
    tier: Tier,
    took: Duration,
    tally: Tally,
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tier {:<8} {:>6.1} s  {}", self.tier.name(), self.took.as_secs_f32(), self.tally)
    }
}

/// The tiers of a round, in their order.
fn side_by_side(round: &[Tier]) -> Vec<Played> {
    let names: Vec<_> = round.iter().map(|tier| tier.name()).collect();
    println!("\n==== tier {}", names.join(" beside tier "));
    thread::scope(|scope| {
        let running: Vec<_> = round.iter().map(|&tier| (tier, scope.spawn(move || play(tier)))).collect();
        let end = |(tier, thread): (Tier, thread::ScopedJoinHandle<'_, Played>)| {
            let panicked = |_| broken_off(tier, Duration::ZERO, "it panicked");
            thread.join().unwrap_or_else(panicked)
        };
        running.into_iter().map(end).collect()
    })
}

fn play(tier: Tier) -> Played {
    let begun = Instant::now();
    let tally = match tier.obstacle() {
        Some(reason) => {
            let skipped = vec![(format!("tier {}", tier.name()), reason)];
            match tier {
                // A toolchain of another language is not asked of anybody.
                Tier::Cluster if !cluster::assets::has_go() => Tally { excused: skipped, ..Tally::default() },
                _ => Tally { skipped, ..Tally::default() },
            }
        }
        None => match tier.run() {
            Ok(tally) => tally,
            Err(error) => return broken_off(tier, begun.elapsed(), &format!("{error:#}")),
        },
    };
    Played { tier, took: begun.elapsed(), tally }
}

fn broken_off(tier: Tier, took: Duration, why: &str) -> Played {
    println!("tier {} broke off: {why}", tier.name());
    let tally = Tally { failed: vec![format!("tier {}: {why}", tier.name())], ..Tally::default() };
    Played { tier, took, tally }
}

fn unit() -> Result<Tally> {
    let mut args: Vec<String> =
        ["test", "--workspace", "--no-fail-fast", "--lib", "--bins"].map(str::to_owned).into();
    for name in test_files()?.into_iter().filter(|name| tier_prefix(name).is_none()) {
        args.extend(["--test".to_owned(), name]);
    }
    // One stream, so that cargo's announcement of a program comes before that program's lines.
    let mut command = Command::new("sh");
    command.args(["-c", "exec cargo \"$@\" 2>&1", "sh"]).args(&args);
    counted(command, "cargo test", Pace::Together)
}

fn not_root() -> Option<String> {
    (!nix::unistd::geteuid().is_root()).then(|| "it needs root".to_owned())
}

fn missing(programs: &[&str]) -> Option<String> {
    programs.iter().find(|p| !on_path(p)).map(|p| format!("{p} is not installed (scripts/install-deps)"))
}

/// First the tests that only need the runtime of a native node: their failures explain those of the scenarios.
fn node() -> Result<Tally> {
    let mut tally = Tally::default();
    let options = native::Options::alone("node-tests", None, String::new());
    let node = NativeNode::start(&options)?;
    let runtime = format!("unix://{}", node.path("/run/containerd/containerd.sock").display());
    for binary in build_tests("node")? {
        let mut command = Command::new(&binary.path);
        // Ignored in a plain `cargo test`, which has no runtime.
        command.args(["--ignored", "--test-threads", "1", "--show-output"]);
        command.env("LONGSHORE_TEST_RUNTIME", &runtime).env("LONGSHORE_TEST_IMAGE", images::BUSYBOX);
        tally.add(counted(command, &binary.name, Pace::OneByOne)?);
    }
    drop(node);
    tally.add(suite::run_fake(None)?);
    tally.add(suite::run_native(None)?);
    Ok(tally)
}

/// The kernel-only guest first: it takes seconds and its failures explain those of the node VM.
fn vm() -> Result<Tally> {
    let mut tally = guest::run_tests()?;
    tally.add(suite::run_vm(None)?);
    Ok(tally)
}

fn netns() -> Result<Tally> {
    let mut tally = Tally::default();
    for binary in build_tests("netns")? {
        tally.add(counted(in_own_namespaces(&binary.path), &binary.name, Pace::OneByOne)?);
    }
    Ok(tally)
}

/// A built test binary of a tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestBinary {
    pub name: String,
    pub path: PathBuf,
}

/// Builds the test binaries of a tier and gives their paths, by what cargo says it built. All packages are named
/// in every call of cargo, so that their dependencies are compiled once and not once per set of features.
///
/// # Errors
/// Where they do not compile.
pub fn build_tests(tier: &str) -> Result<Vec<TestBinary>> {
    let names: Vec<String> =
        test_files()?.into_iter().filter(|name| tier_prefix(name) == Some(tier)).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = Command::new("cargo");
    command.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    for name in &names {
        command.args(["--test", name]);
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the {tier} tests do not compile");
    }
    let mut binaries = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let name = message["target"]["name"].as_str().unwrap_or_default();
        if let Some(path) = message["executable"].as_str().filter(|_| names.iter().any(|n| n == name)) {
            binaries.push(TestBinary { name: name.to_owned(), path: PathBuf::from(path) });
        }
    }
    binaries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(binaries)
}

/// Builds a program of the workspace and gives its path. As for the tests, all packages are named.
///
/// # Errors
/// Where it does not compile.
pub fn build_program(name: &str) -> Result<PathBuf> {
    let root = workspace_root();
    let status = Command::new("cargo")
        .args(["build", "-q", "--locked", "--workspace", "--bin", name])
        .current_dir(&root)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("{name} does not compile");
    }
    Ok(root.join("target/debug").join(name))
}

/// Names of the test files outside the sources.
fn test_files() -> Result<Vec<String>> {
    let root = workspace_root();
    let mut members = vec![root.join("integration")];
    members.extend(fs::read_dir(root.join("src"))?.flatten().map(|e| e.path()));
    let mut found = Vec::new();
    for member in members {
        let Ok(tests) = fs::read_dir(member.join("tests")) else { continue };
        let files = tests.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "rs"));
        found.extend(files.filter_map(|f| Some(f.file_stem()?.to_string_lossy().into_owned())));
    }
    found.sort();
    Ok(found)
}

fn tier_prefix(test: &str) -> Option<&'static str> {
    ["netns", "node", "vm"].into_iter().find(|tier| test.split('_').next() == Some(tier))
}

/// The test binary in mount, network and process namespaces of its own, which end with it. Without root a user
/// namespace gives the same.
fn in_own_namespaces(binary: &Path) -> Command {
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(binary)
        .args(["--test-threads", "1", "--show-output"])
        .env("LONGSHORE_TIER", "netns")
        .env("LONGSHORE_REQUIRE", "netns");
    command
}

/// How the tests of a program run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    OneByOne,
    Together,
}

/// Runs a libtest program, showing what matters of its output and counting its results.
pub fn counted(mut command: Command, name: &str, pace: Pace) -> Result<Tally> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {name}"))?;
    let mut output = LibtestOutput::new(name, pace == Pace::OneByOne, Instant::now());
    let stdout = child.stdout.take().context("standard output was asked for")?;
    for line in BufReader::new(stdout).lines() {
        if let Some(shown) = output.line(&line?, Instant::now()) {
            println!("{shown}");
        }
    }
    let mut tally = output.tally;
    let status = child.wait()?;
    if !status.success() && tally.failed.is_empty() {
        tally.failed.push(format!("{name} ended with {status}"));
    }
    Ok(tally)
}

/// Whether a program can be found; the system's folders count too, as ordinary users lack them in PATH.
pub fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).any(|dir| dir.join(program).exists())
}

/// The clone this was built from.
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_runs_beside_the_joined_node_and_nothing_else_beside_another() {
        let (first, last) = (vec![Tier::Unit], vec![Tier::Cluster, Tier::Vm]);
        assert_eq!(rounds(Tier::ALL), [first, vec![Tier::Netns], vec![Tier::Node], last]);
        assert_eq!(
            rounds(&[Tier::Vm, Tier::Cluster]),
            [[Tier::Vm], [Tier::Cluster]],
            "as they were asked for"
        );
        assert_eq!(rounds(&[Tier::Unit, Tier::Vm]), [[Tier::Unit], [Tier::Vm]]);
    }
}
