//! The daemon beside the real kubelet and kube-proxy, one after the other on the node of one real control plane, same
//! runtime, same files: pods created in the API until they are Ready there, and what that costs each of them.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::daemon::{self, Process};
use super::figure::{Figure, Goal, Report};
use super::node::{PATIENCE, Spent, settle};
use super::peers::Peer;
use crate::cluster::watch::{Event, Watch};
use crate::cluster::{APPLIED, Cluster, NODE, Options, kubectl};
use crate::node::{Kind, Node, Service, put};
use crate::process::wait_until;
use crate::scenario::suite;
use crate::vm::CgroupDriver;

/// Pods at once, and how often on each side.
const COUNTS: &[(usize, usize)] = &[(1, 3), (10, 2), (50, 1), (110, 1)];
/// Of the kubelet's median with 110 pods.
const READY_SHARE: f64 = 0.6;
/// Of the kubelet's processor time.
const CPU_SHARE: f64 = 0.2;
/// MiB at 110 pods.
const RESIDENT: f64 = 45.0;
/// Seconds between two renewals of the lease: a node is taken for dead after 40.
const LEASE: f64 = 15.0;
const PODS: &str = "/api/v1/namespaces/default/pods?watch=1";
/// Ticks of the clock in /proc/PID/stat, on every Linux there is.
const TICKS: f64 = 100.0;

/// Who serves the node.
#[derive(Debug, Clone, Copy)]
enum Side {
    Longshore,
    Kubernetes,
}

impl Side {
    const BOTH: [Side; 2] = [Side::Longshore, Side::Kubernetes];

    /// The first serves pods; what the second does is part of the first of the other side.
    fn programs(self) -> &'static [Service] {
        match self {
            Side::Longshore => &[Service::Agent],
            Side::Kubernetes => &[Service::Kubelet, Service::KubeProxy],
        }
    }
}

/// What was seen on one side.
#[derive(Debug, Default)]
struct Seen {
    /// Seconds from created to Ready, both as the API shows them to who watches.
    ready: Vec<f64>,
    /// Seconds from the start of a container's process to its pod Ready in the API.
    visible: Vec<f64>,
    /// Seconds per pod, of the program that serves pods.
    start_cpu: Vec<f64>,
    stop_cpu: Vec<f64>,
    /// MiB, of every program.
    resident: Vec<Vec<f64>>,
    /// Seconds between renewals of the lease, the longest of each round.
    renewed: Vec<f64>,
}

pub fn run(report: &mut Report) -> Result<()> {
    let mut cluster = Cluster::start(&Options {
        name: "bench-peer".to_owned(),
        binary: report.binary().to_owned(),
        config: suite::config(Kind::Cluster, CgroupDriver::Cgroupfs, "maxPods: 200\n"),
    })?;
    for &(pods, rounds) in COUNTS {
        if !report.wants(pods) {
            continue;
        }
        let mut both = [Seen::default(), Seen::default()];
        for _ in 0..rounds {
            for (side, seen) in Side::BOTH.into_iter().zip(&mut both) {
                round(&mut cluster, side, pods, seen).with_context(|| format!("{side:?}, {pods} pods"))?;
            }
        }
        tell(report, pods, both)?;
    }
    Ok(())
}

/// Starts one side, so many pods on it, ends them and the side.
fn round(cluster: &mut Cluster, side: Side, pods: usize, seen: &mut Seen) -> Result<()> {
    for program in side.programs() {
        cluster.start(*program)?;
    }
    kubectl(cluster, &format!("wait --for=create node/{NODE} --timeout=30s"))?;
    kubectl(cluster, &format!("wait --for=condition=Ready node/{NODE} --timeout=50s"))?;
    let processes: Vec<Process> =
        side.programs().iter().map(|program| process(cluster, *program)).collect::<Result<_>>()?;
    settle();
    let mut spent = Spent::of(processes[0])?;
    settle();
    spent.begin()?;

    let watch = cluster.watch(PODS)?;
    let leases = cluster.watch(&lease_path())?;
    put(cluster, &format!("{APPLIED}/pods.yaml"), daemon::manifests_bound(pods, NODE).as_bytes())?;
    kubectl(cluster, &format!("create -f {APPLIED}/pods.yaml"))?;
    let times = wait_until(PATIENCE, Duration::from_millis(100), || all_ready(&watch, pods))?;
    settle();
    seen.start_cpu.push(spent.lap()? / pods as f64);
    seen.resident
        .push(processes.iter().map(|process| Ok(process.memory()?.resident)).collect::<Result<Vec<f64>>>()?);
    seen.ready.extend(times.values().map(|(created, ready)| daemon::seconds(*created, *ready)));
    let began = began(cluster)?;
    for (pod, (_, ready)) in &times {
        let began = began.get(pod).with_context(|| format!("pod {pod} has no process"))?;
        seen.visible.push(daemon::seconds(*began, *ready));
    }

    kubectl(cluster, "delete pods --all --wait=false")?;
    wait_until(PATIENCE, Duration::from_millis(100), || all_gone(&watch, pods))?;
    settle();
    seen.stop_cpu.push(spent.lap()? / pods as f64);
    seen.renewed.extend(longest_pause(&leases.events()));
    for program in side.programs() {
        cluster.stop(*program, "TERM")?;
    }
    Ok(())
}

fn process(cluster: &Cluster, program: Service) -> Result<Process> {
    let pid = cluster.node().process(program);
    pid.map(Process).with_context(|| format!("{} has no process", program.name()))
}

fn lease_path() -> String {
    format!(
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases?watch=1&fieldSelector=metadata.name%3D{NODE}"
    )
}

/// When each pod was created and Ready.
fn all_ready(watch: &Watch, pods: usize) -> Result<BTreeMap<String, (Timestamp, Timestamp)>> {
    let mut created = BTreeMap::new();
    let mut ready = BTreeMap::new();
    for event in watch.events() {
        let name = event.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if is_ready(&event.object) {
            let created = *created.entry(name.clone()).or_insert(event.at);
            ready.entry(name).or_insert((created, event.at));
        } else {
            created.entry(name).or_insert(event.at);
        }
    }
    if ready.len() < pods {
        bail!("{} of {pods} pods are Ready", ready.len());
    }
    Ok(ready)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

fn all_gone(watch: &Watch, pods: usize) -> Result<()> {
    let gone = watch.events().iter().filter(|event| event.kind == "DELETED").count();
    if gone < pods {
        bail!("{gone} of {pods} pods are gone");
    }
    Ok(())
}

/// When the process of each pod's container began, by the kernel's clock: pods' host names are their names.
fn began(cluster: &Cluster) -> Result<BTreeMap<String, Timestamp>> {
    let mut found = BTreeMap::new();
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime: f64 = uptime.split(' ').next().context("an uptime")?.parse()?;
    let booted = Timestamp::now() - SignedDuration::from_secs_f64(uptime);
    for entry in fs::read_dir(cluster.node().path("/proc"))?.flatten() {
        // Processes end while others are looked at; folders that are no process have no such files.
        let Ok(comm) = fs::read_to_string(entry.path().join("comm")) else { continue };
        if comm.trim() != "web" {
            continue;
        }
        let read =
            |name: &str| fs::read(entry.path().join(name)).map(|b| String::from_utf8_lossy(&b).into_owned());
        let (Ok(environment), Ok(stat)) = (read("environ"), read("stat")) else { continue };
        let host = environment.split('\0').find_map(|variable| variable.strip_prefix("HOSTNAME="));
        let ticks = started_ticks(&stat).with_context(|| format!("/proc/PID/stat is {stat}"))?;
        if let Some(host) = host {
            found.insert(host.to_owned(), booted + SignedDuration::from_secs_f64(ticks / TICKS));
        }
    }
    Ok(found)
}

/// proc_pid_stat(5): the 22nd field, counted behind the name in brackets, which may hold anything.
fn started_ticks(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// The longest time between two renewals that were seen, in seconds, by the holder's own stamps.
fn longest_pause(events: &[Event]) -> Option<f64> {
    let renewed = events.iter().filter_map(|event| event.object["spec"]["renewTime"].as_str()?.parse().ok());
    let renewed: Vec<Timestamp> = renewed.collect();
    let pauses = renewed.windows(2).map(|pair| daemon::seconds(pair[0], pair[1]));
    pauses.max_by(f64::total_cmp)
}

fn tell(report: &mut Report, pods: usize, [ours, theirs]: [Seen; 2]) -> Result<()> {
    let is_full = pods == 110;
    let pair = |name, unit, ours, theirs| -> Result<(Figure, Peer)> {
        let peer = Peer::beside(&Figure::new(name, pods, unit, theirs)?);
        Ok((Figure::new(name, pods, unit, ours)?.peer(Some(peer)), peer))
    };
    let (figure, peer) = pair("created in the API to Ready there", "s", ours.ready, theirs.ready)?;
    let goal = peer.p50.filter(|_| is_full).map(|median| Goal::median(median * READY_SHARE));
    report.tell(&figure.goal(goal))?;
    let (figure, _) =
        pair("container's process begun to Ready in the API", "s", ours.visible, theirs.visible)?;
    report.tell(&figure)?;
    for (name, ours, theirs) in [
        ("CPU per pod started", ours.start_cpu, theirs.start_cpu),
        ("CPU per pod stopped", ours.stop_cpu, theirs.stop_cpu),
    ] {
        let (figure, peer) = pair(name, "s", ours, theirs)?;
        let goal = peer.p50.map(|median| Goal::median(median * CPU_SHARE));
        report.tell(&figure.goal(goal).note("the kubelet without kube-proxy beside the whole daemon"))?;
    }
    let first = |seen: &[Vec<f64>]| seen.iter().filter_map(|programs| programs.first().copied()).collect();
    let (figure, _) = pair("resident memory", "MiB", first(&ours.resident), first(&theirs.resident))?;
    let proxy: Vec<f64> = theirs.resident.iter().filter_map(|programs| programs.get(1).copied()).collect();
    let beside = format!("kube-proxy beside the kubelet: {proxy:.1?} MiB");
    report.tell(&figure.goal(is_full.then(|| Goal::median(RESIDENT))).note(beside))?;
    // A round of few pods ends before the lease is renewed twice.
    if !ours.renewed.is_empty() && !theirs.renewed.is_empty() {
        let (figure, _) =
            pair("longest time between renewals of the lease", "s", ours.renewed, theirs.renewed)?;
        report.tell(&figure.goal(Goal::median_and_last(LEASE, LEASE)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_when_it_began_whatever_its_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 4711 1000";
        assert_eq!(started_ticks(stat), Some(4711.0));
        assert_eq!(started_ticks("7 (web"), None);
    }

    #[test]
    fn the_longest_pause_is_between_two_renewals() {
        let renewed = |second: &str| Event {
            at: Timestamp::UNIX_EPOCH,
            kind: "MODIFIED".to_owned(),
            object: serde_json::json!({"spec": {"renewTime": format!("2026-11-22T00:00:{second}Z")}}),
        };
        let events = [renewed("00.000000"), renewed("10.500000"), renewed("20.000000")];
        assert_eq!(longest_pause(&events), Some(10.5));
        assert_eq!(longest_pause(&events[..1]), None);
    }

    #[test]
    fn a_pod_is_ready_by_its_condition() {
        let pod = |status: &str| serde_json::json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        assert!(is_ready(&pod("True")));
        assert!(!is_ready(&pod("False")) && !is_ready(&serde_json::json!({})));
    }
}
