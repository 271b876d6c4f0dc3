//! Runs scenario files: on the native tier each on a node of its own, two at a time; in the VM one after the other on
//! one boot. Prints a line per scenario, and a block with everything a person needs where it failed or was asked for by
//! name.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::form::{Scenario, parse};
use super::play::Player;
use super::state;
use crate::cluster::{self, AUTHORITY, Cluster};
use crate::fake;
use crate::native::{self, NativeNode};
use crate::node::{self, CONFIG, Kind, MANIFESTS, Node, Service, sh};
use crate::process::{Run, wait_until};
use crate::report::{LibtestOutput, Tally};
use crate::root;
use crate::tiers::{build_program, build_tests, workspace_root};
use crate::vm::{CgroupDriver, NodeVm, Options};

/// Native nodes at a time, and nodes with the fake runtime, which mostly wait.
const AT_ONCE: usize = 2;
const FAKES_AT_ONCE: usize = 4;

/// A scenario and the file it came from.
#[derive(Debug, Clone)]
pub struct Named {
    /// The file's name without its ending.
    pub file: String,
    pub scenario: Scenario,
}

/// Scenarios of `integration/scenarios` for this kind of node; with `only`, those whose file name contains it.
///
/// # Errors
/// Where a file cannot be read as a scenario.
pub fn load(kind: Kind, only: Option<&str>) -> Result<Vec<Named>> {
    let dir = workspace_root().join("integration/scenarios");
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let scenario = parse(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        if scenario.nodes.contains(&kind) && only.is_none_or(|only| file.contains(only)) {
            found.push(Named { file, scenario });
        }
    }
    if found.is_empty() {
        bail!(
            "no scenario for {kind} nodes{}",
            only.map_or(String::new(), |o| format!(" has `{o}` in its name"))
        );
    }
    Ok(found)
}

/// The daemon's configuration for a kind of node.
pub fn config(kind: Kind, driver: CgroupDriver, more: &str) -> String {
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n\
                clusterDNS: [10.96.0.10]\nclusterDomain: cluster.local\n";
    let cgroups = match (kind, driver) {
        (Kind::Native | Kind::Fake | Kind::Cluster, _) => {
            "cgroupsPerQOS: false\nenforceNodeAllocatable: []\nfailCgroupV1: false\n"
        }
        (Kind::Vm, CgroupDriver::Systemd) => "cgroupDriver: systemd\n",
        (Kind::Vm, CgroupDriver::Cgroupfs) => "cgroupDriver: cgroupfs\n",
    };
    let callers = match kind {
        Kind::Cluster => format!("authentication: {{x509: {{clientCAFile: {AUTHORITY}}}}}\n"),
        _ => String::new(),
    };
    format!("{head}{cgroups}{callers}{more}")
}

/// Builds the daemon and gives its binary.
///
/// # Errors
/// Where it does not compile.
pub fn binary() -> Result<PathBuf> {
    build_program("longshore")
}

/// Runs the native scenarios.
///
/// # Errors
/// Where they cannot be read or the daemon does not compile; failures of scenarios are in the tally.
pub fn run_native(only: Option<&str>) -> Result<Tally> {
    let scenarios = load(Kind::Native, only)?;
    let binary = binary()?;
    // Built once here, not by the threads.
    native::image_store()?;
    let telling = Telling::of(only);
    Ok(side_by_side(Kind::Native, scenarios, (AT_ONCE, telling), |named| {
        let options = options(Kind::Native, named, &binary);
        on_own_node(Kind::Native, named, telling, || NativeNode::start(&options))
    }))
}

/// Runs the scenarios on the fake runtime.
///
/// # Errors
/// As `run_native`.
pub fn run_fake(only: Option<&str>) -> Result<Tally> {
    let scenarios = load(Kind::Fake, only)?;
    let binary = binary()?;
    let runtime = fake::binary()?;
    root::folder()?;
    let telling = Telling::of(only);
    Ok(side_by_side(Kind::Fake, scenarios, (FAKES_AT_ONCE, telling), |named| {
        let options = options(Kind::Fake, named, &binary);
        on_own_node(Kind::Fake, named, telling, || {
            let node = NativeNode::start_fake(&options, &runtime)?;
            named.scenario.fake.iter().try_for_each(|order| node.order(order).map(drop))?;
            Ok(node)
        })
    }))
}

fn options(kind: Kind, named: &Named, binary: &Path) -> native::Options {
    let config = config(kind, CgroupDriver::Cgroupfs, &named.scenario.config);
    native::Options::alone(&format!("{kind}-{}", named.file), Some(binary.to_owned()), config)
}

/// Runs the scenarios of a joined node, one after the other on one control plane.
///
/// # Errors
/// Where the control plane does not come up, or cannot be used any more; failures of scenarios are in the tally.
pub fn run_cluster(only: Option<&str>) -> Result<Tally> {
    let scenarios = load(Kind::Cluster, only)?;
    let binary = binary()?;
    native::image_store()?;
    let mut tally = Tally::default();
    let mut cluster: Option<Cluster> = None;
    let telling = Telling::of(only);
    let peers_obstacle = cluster::assets::peers_obstacle();
    for named in scenarios {
        let name = format!("{} {}", Kind::Cluster, named.file);
        if let Some(reason) = peers_obstacle.as_ref().filter(|_| named.scenario.needs_peers()) {
            println!("{name}: skipped: {reason}");
            tally.excused.push((name, reason.clone()));
            continue;
        }
        let tries = telling.tries(|| {
            let played = on_cluster(&mut cluster, &named, telling, &binary);
            if played.result.is_err() {
                // Whatever it was, the next one starts on a new control plane and node.
                cluster = None;
            }
            played
        });
        tries.into_tally(&name, &mut tally);
        // The next one starts on a clean cluster: the same where it can be cleaned, else a new one.
        if let Some(used) = &mut cluster
            && let Err(error) = used.clear()
        {
            println!("  a new control plane is started: {error:#}");
            cluster = None;
        }
    }
    Ok(tally)
}

fn on_cluster(cluster: &mut Option<Cluster>, named: &Named, telling: Telling, binary: &Path) -> Played {
    let start = Instant::now();
    let mut lines = Vec::new();
    let config = config(Kind::Cluster, CgroupDriver::Cgroupfs, &named.scenario.config);
    let result = joined(cluster, binary, &config).and_then(|cluster| {
        if named.scenario.daemon {
            cluster.start(Service::Agent)?;
        }
        play(cluster, &named.scenario, 1, &mut lines)
    });
    telling.played(Kind::Cluster, named, start, result, &lines)
}

/// The cluster in use, or a new one; the daemon has its configuration and does not run.
fn joined<'a>(cluster: &'a mut Option<Cluster>, binary: &Path, config: &str) -> Result<&'a mut Cluster> {
    if cluster.is_none() {
        let options =
            cluster::Options { name: "cluster".into(), binary: binary.to_owned(), config: config.to_owned() };
        let start = Instant::now();
        let new = cluster.insert(Cluster::start(&options)?);
        let version = new.version()?;
        println!("---- the control plane {version} is up after {:.1} s", start.elapsed().as_secs_f32());
        return Ok(new);
    }
    let used = cluster.as_mut().context("it was just seen")?;
    node::put(used, CONFIG, config.as_bytes())?;
    Ok(used)
}

/// Plays the scenarios, so many at a time; prints each when it has ended.
fn side_by_side(
    kind: Kind,
    mut scenarios: Vec<Named>,
    (at_once, telling): (usize, Telling),
    one: impl Fn(&Named) -> Played + Sync,
) -> Tally {
    // Those that let much time pass first, beside the others.
    scenarios.sort_by_key(|named| std::cmp::Reverse(named.scenario.waits()));
    let queue = Mutex::new(VecDeque::from(scenarios));
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(named) = { queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() } {
                    let tries = telling.tries(|| one(&named));
                    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                    tries.into_tally(&format!("{kind} {}", named.file), &mut tally);
                }
            });
        }
    });
    tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn on_own_node(
    kind: Kind,
    named: &Named,
    telling: Telling,
    node: impl FnOnce() -> Result<NativeNode>,
) -> Played {
    let start = Instant::now();
    let mut lines = Vec::new();
    let result = node().and_then(|mut node| {
        if named.scenario.daemon {
            node.start(Service::Agent)?;
        }
        play(&mut node, &named.scenario, 1, &mut lines)
    });
    telling.played(kind, named, start, result, &lines)
}

/// Plays on a node and adds what a person would look at where it fails.
fn play(node: &mut dyn Node, scenario: &Scenario, patience: u32, lines: &mut Vec<String>) -> Result<()> {
    let result = Player::new(node, patience, &mut |line| lines.push(format!("  {line}"))).play(scenario);
    if result.is_err() {
        lines.push(state::dump(node));
    }
    result
}

/// How much is printed of a scenario that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Telling {
    Line,
    Everything,
}

impl Telling {
    /// Who asks for scenarios by name wants to see them.
    fn of(only: Option<&str>) -> Self {
        if only.is_some() { Self::Everything } else { Self::Line }
    }

    fn played(
        self,
        kind: Kind,
        named: &Named,
        start: Instant,
        result: Result<()>,
        lines: &[String],
    ) -> Played {
        let took = start.elapsed();
        let seconds = took.as_secs_f32();
        let head = match (&result, self) {
            (Ok(()), Self::Line) => {
                let text = format!("{kind} {}: passed in {seconds:.1} s", named.file);
                return Played { result, took, text };
            }
            (Ok(()), Self::Everything) => {
                format!("---- {kind} {}: {} ({seconds:.1} s)", named.file, named.scenario.name)
            }
            (Err(error), _) => {
                let name = &named.scenario.name;
                format!("---- {kind} {}: {name}: FAILED: {error:#} ({seconds:.1} s)", named.file)
            }
        };
        let text = std::iter::once(head).chain(lines.iter().cloned()).collect::<Vec<_>>().join("\n");
        Played { result, took, text }
    }

    /// Plays once, and once more where that failed and nobody asked for this scenario by name.
    fn tries(self, mut play: impl FnMut() -> Played) -> Tries {
        let first = play();
        let second = (first.result.is_err() && self == Self::Line).then(play);
        Tries { first, second }
    }
}

/// A scenario that was played.
struct Played {
    result: Result<()>,
    took: Duration,
    /// What is printed of it.
    text: String,
}

struct Tries {
    first: Played,
    second: Option<Played>,
}

impl Tries {
    /// Prints and counts them.
    fn into_tally(self, name: &str, tally: &mut Tally) {
        println!("{}", self.first.text);
        let Some(second) = self.second else { return tally.record(name, self.first.took, self.first.result) };
        println!("{}", second.text);
        match (self.first.result, second.result) {
            (Err(first), Ok(())) => tally.record_flaked(name, second.took, &first),
            (_, second_result) => tally.record(name, second.took, second_result),
        }
    }
}

/// Runs the VM scenarios on one boot, each with the daemon started anew on an empty folder.
///
/// # Errors
/// Where the VM does not boot; failures of scenarios are in the tally.
pub fn run_vm(only: Option<&str>) -> Result<Tally> {
    let mut scenarios = load(Kind::Vm, only)?;
    let binary = binary()?;
    // Those of one driver together, as changing it restarts the runtime.
    scenarios.sort_by_key(|named| named.scenario.cgroup_driver != CgroupDriver::Systemd);
    let mut driver = scenarios[0].scenario.cgroup_driver;
    let options = Options {
        name: "vm".into(),
        binary: Some(binary.clone()),
        config: config(Kind::Vm, driver, ""),
        cgroup_driver: driver,
    };
    let start = Instant::now();
    let mut vm = NodeVm::start(&options)?;
    println!("---- the node VM is up after {:.1} s", start.elapsed().as_secs_f32());
    let mut tally = Tally::default();
    if only.is_none() {
        tally.add(systemd_tests(&vm)?);
    }
    let telling = Telling::of(only);
    for named in scenarios {
        if named.scenario.cgroup_driver != driver {
            driver = named.scenario.cgroup_driver;
            vm.use_cgroup_driver(driver)?;
        }
        let mut cleared = Ok(());
        let tries = telling.tries(|| {
            let played = in_vm(&mut vm, &named, telling, &binary);
            if named.scenario.daemon {
                cleared = clear(&mut vm);
            }
            played
        });
        tries.into_tally(&format!("{} {}", Kind::Vm, named.file), &mut tally);
        if let Err(error) = cleared {
            println!("the VM cannot be used any more after {}", named.file);
            tally.record("vm, the rest of it", Duration::ZERO, Err(error));
            break;
        }
    }
    Ok(tally)
}

fn in_vm(vm: &mut NodeVm, named: &Named, telling: Telling, binary: &Path) -> Played {
    let start = Instant::now();
    let patience = vm.patience();
    let mut lines = Vec::new();
    let result = bring_package(vm, named, binary)
        .and_then(|()| begin(vm, &named.scenario))
        .and_then(|()| play(vm, &named.scenario, patience, &mut lines));
    telling.played(Kind::Vm, named, start, result, &lines)
}

/// The scenario that installs the package.
const PACKAGE: &str = "62-package";
/// Where it finds it in the VM.
const PACKAGE_PLACE: &str = "/root/longshore.deb";

/// Makes the Debian package of the binary under test and brings it into the VM, for the scenario that wants it.
fn bring_package(vm: &NodeVm, named: &Named, binary: &Path) -> Result<()> {
    if named.file != PACKAGE {
        return Ok(());
    }
    let root = workspace_root();
    let made = Run::new(root.join("scripts/make-deb")).arg_path(binary).deadline(MAKE_DEB).check()?;
    let package = fs::read(root.join(made.trim()))?;
    let deadline = Duration::from_secs(30) * vm.patience();
    let output = vm.run(&format!("cat > {PACKAGE_PLACE}"), &package, deadline)?;
    if !output.success() {
        bail!("the package does not reach the VM: {}", output.text());
    }
    Ok(())
}

/// The first time it installs its tool.
const MAKE_DEB: Duration = Duration::from_secs(600);

/// The test program whose `the_systemd_*` tests need systemd.
const SYSTEMD_TESTS: &str = "vm_cgroup";

/// The kernel crate's tests of what only systemd can do, in the VM, where it runs.
fn systemd_tests(vm: &NodeVm) -> Result<Tally> {
    let start = Instant::now();
    let mut tally = Tally::default();
    let cgroup_tests = build_tests("vm")?.into_iter().filter(|binary| binary.name == SYSTEMD_TESTS);
    for binary in cgroup_tests {
        let stripped = tempfile::NamedTempFile::new()?;
        let to = stripped.path().display().to_string();
        Run::new("strip").args(["-o", &to, &binary.path.display().to_string()]).check()?;
        let script = "cat > /root/test; chmod 755 /root/test; export LONGSHORE_TIER=vm LONGSHORE_REQUIRE=all
            /root/test --test-threads 1 --show-output the_systemd_ 2>&1";
        let output = vm.run(script, &fs::read(stripped.path())?, Duration::from_secs(60) * vm.patience())?;
        let mut results = LibtestOutput::new(&binary.name, false, Instant::now());
        for line in output.stdout.lines() {
            results.line(line, Instant::now());
        }
        if !output.success() || results.tally.passed == 0 {
            println!("{}", output.text());
            if results.tally.failed.is_empty() {
                let failed = format!("{} in the node VM ended with {}", binary.name, output.code);
                results.tally.failed.push(failed);
            }
        }
        tally.add(results.tally);
    }
    println!(
        "---- tests of the systemd driver in the node VM: {tally} ({:.1} s)",
        start.elapsed().as_secs_f32()
    );
    Ok(tally)
}

fn begin(node: &mut dyn Node, scenario: &Scenario) -> Result<()> {
    if !scenario.daemon {
        return Ok(());
    }
    let config = config(Kind::Vm, scenario.cgroup_driver, &scenario.config);
    node::put(node, CONFIG, config.as_bytes())?;
    node.start(Service::Agent)
}

/// Leaves the node as it was: no manifests, no pods, the daemon stopped, the runtime running.
fn clear(node: &mut NodeVm) -> Result<()> {
    if !node.runs(Service::Containerd) {
        node.start(Service::Containerd)?;
    }
    if !node.runs(Service::Agent) {
        node.start(Service::Agent)?;
    }
    sh(node, &format!("mkdir -p {MANIFESTS}; rm -rf {MANIFESTS:?}/*"))?;
    wait_until(Duration::from_secs(60) * node.patience(), Duration::from_millis(500), || {
        let left = state::tasks(node)?;
        if !left.is_empty() {
            bail!("{} containers still run", left.len());
        }
        Ok(())
    })?;
    node.stop(Service::Agent, "TERM")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_file_is_read() {
        for kind in [Kind::Fake, Kind::Native, Kind::Vm, Kind::Cluster] {
            assert!(load(kind, None).unwrap().len() > 2, "{kind}");
        }
        assert!(load(Kind::Native, Some("no such scenario")).is_err());
    }
}
