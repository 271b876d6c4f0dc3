//! Which probe is tried when. A value stepped by calls that carry the time; it starts nothing itself.
//! One heap holds all probes, so the cost of a try does not grow with the number of probes.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::ids::{ContainerId, ContainerName, PodKey, PodUid};
use longshore_core::pod::snapshot::{ProbeAction, ProbeKind, ProbeTarget};
use longshore_core::pod::step::Hook;
use longshore_core::probe::machine::{ProbeMachine, RawResult};
use tokio::time::Instant;

use super::Verdict;
use super::attempt::Outcome;
use crate::config::ProbeSettings;

/// A probe as long as it is wanted; never used again.
type ProbeId = u64;

/// One try to make now.
#[derive(Clone, Debug)]
pub(super) struct Due {
    id: ProbeId,
    pub target: ProbeTarget,
    started: Instant,
}

/// Counts of one probe.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeStats {
    pub pod: PodUid,
    pub key: PodKey,
    pub container: ContainerName,
    pub kind: ProbeKind,
    pub tries: u64,
    pub failures: u64,
    /// How long the last try took; zero before the first.
    pub last_took: Duration,
    /// Its answer in words.
    pub last_message: String,
}

/// Counts over all probes since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeTotals {
    pub probes: usize,
    pub tries: u64,
    pub failures: u64,
    /// Tries whose answer says nothing about the container: the runtime did not answer, say.
    pub errors: u64,
    pub in_flight: usize,
    /// Tries that were due and wait for one of the bounded places.
    pub waiting: usize,
}

struct Probe {
    stats: ProbeStats,
    target: ProbeTarget,
    /// Decides what the answers mean.
    machine: ProbeMachine,
    /// Where in its period the probe runs once it is healthy; spreads probes that began together.
    phase: Duration,
    due: Instant,
}

/// Probes that compete for the same bounded places.
#[derive(Debug, Default)]
struct Lane {
    limit: usize,
    in_flight: usize,
    waiting: VecDeque<ProbeId>,
}

pub(super) struct Schedule {
    /// Phases count from here.
    origin: Instant,
    /// Containers from before are adopted: their verdicts outlive the daemon.
    started: Timestamp,
    next_id: ProbeId,
    probes: HashMap<ProbeId, Probe>,
    by_pod: HashMap<PodUid, Vec<ProbeId>>,
    heap: BinaryHeap<Reverse<(Instant, ProbeId)>>,
    network: Lane,
    exec: Lane,
    totals: ProbeTotals,
}

impl Schedule {
    pub fn new(settings: ProbeSettings, origin: Instant, started: Timestamp) -> Self {
        let lane = |limit: usize| Lane { limit: limit.max(1), ..Lane::default() };
        Self {
            origin,
            started,
            next_id: 0,
            probes: HashMap::new(),
            by_pod: HashMap::new(),
            heap: BinaryHeap::new(),
            network: lane(settings.max_network_tries),
            exec: lane(settings.max_exec_tries),
            totals: ProbeTotals::default(),
        }
    }

    /// Replaces the probes of a pod. `true` where something is due sooner or gone.
    pub fn want(
        &mut self,
        uid: &PodUid,
        key: &PodKey,
        targets: Vec<ProbeTarget>,
        now: Instant,
        wall: Timestamp,
    ) -> bool {
        let before = self.by_pod.remove(uid).unwrap_or_default();
        let mut known: HashMap<(ContainerId, ProbeKind), ProbeId> = HashMap::new();
        for id in before {
            if let Some(probe) = self.probes.get(&id) {
                known.insert((probe.target.id.clone(), probe.target.kind), id);
            }
        }
        let mut changed = false;
        let mut ids = Vec::with_capacity(targets.len());
        for target in targets {
            match known.remove(&(target.id.clone(), target.kind)) {
                Some(id) => {
                    if let Some(probe) = self.probes.get_mut(&id) {
                        probe.target = target;
                    }
                    ids.push(id);
                }
                None => {
                    ids.push(self.add(uid, key, target, now, wall));
                    changed = true;
                }
            }
        }
        for id in known.into_values() {
            self.probes.remove(&id);
            changed = true;
        }
        if !ids.is_empty() {
            self.by_pod.insert(uid.clone(), ids);
        }
        changed
    }

    fn add(
        &mut self,
        uid: &PodUid,
        key: &PodKey,
        target: ProbeTarget,
        now: Instant,
        wall: Timestamp,
    ) -> ProbeId {
        let id = self.next_id;
        self.next_id += 1;
        let period = period(&target);
        let phase = phase(uid, &target, period);
        let running =
            Duration::try_from(wall.duration_since(target.container_started_at)).unwrap_or_default();
        let due = match target.initial_delay.checked_sub(running) {
            Some(left) if left > Duration::ZERO => now + left,
            // It ran before this daemon did: the first tries after a restart must not come all at once.
            _ if running > target.initial_delay + period => next_in_phase(self.origin, phase, period, now),
            _ => now,
        };
        // The worker keeps the verdict from before a restart, so silence until a threshold is right.
        let machine = ProbeMachine::new(&target, None, target.container_started_at < self.started);
        let stats = ProbeStats {
            pod: uid.clone(),
            key: key.clone(),
            container: target.container.clone(),
            kind: target.kind,
            tries: 0,
            failures: 0,
            last_took: Duration::ZERO,
            last_message: String::new(),
        };
        let probe = Probe { stats, target, machine, phase, due };
        self.probes.insert(id, probe);
        self.heap.push(Reverse((due, id)));
        id
    }

    /// The tries to start now. What finds no free place waits its turn in the order it became due.
    pub fn due(&mut self, now: Instant) -> Vec<Due> {
        while let Some(Reverse((at, id))) = self.heap.peek().copied() {
            if at > now {
                break;
            }
            self.heap.pop();
            if let Some(probe) = self.probes.get(&id) {
                let lane = if is_exec(&probe.target) { &mut self.exec } else { &mut self.network };
                lane.waiting.push_back(id);
            }
        }
        let mut tries = Vec::new();
        for lane in [&mut self.network, &mut self.exec] {
            while lane.in_flight < lane.limit {
                let Some(id) = lane.waiting.pop_front() else { break };
                // Not wanted any more since it began to wait.
                let Some(probe) = self.probes.get(&id) else { continue };
                lane.in_flight += 1;
                tries.push(Due { id, target: probe.target.clone(), started: now });
            }
        }
        tries
    }

    /// When `due` should be asked again although nothing happens.
    pub fn next_due(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the answer of a try and plans the next one.
    pub fn finished(
        &mut self,
        due: &Due,
        outcome: Outcome,
        now: Instant,
        wall: Timestamp,
    ) -> Option<Verdict> {
        let lane = if is_exec(&due.target) { &mut self.exec } else { &mut self.network };
        lane.in_flight = lane.in_flight.saturating_sub(1);
        self.totals.tries += 1;
        let (answer, message) = match outcome {
            Outcome::Success(message) => (Some(true), message),
            Outcome::Failure(message) => (Some(false), message),
            Outcome::Error(message) => (None, message),
        };
        self.totals.failures += u64::from(answer == Some(false));
        self.totals.errors += u64::from(answer.is_none());
        let probe = self.probes.get_mut(&due.id)?;
        probe.stats.tries += 1;
        probe.stats.failures += u64::from(answer == Some(false));
        probe.stats.last_took = now.saturating_duration_since(due.started);
        probe.stats.last_message.clone_from(&message);
        let verdict = answer.and_then(|success| probe.machine.fold(RawResult { success, message }, wall));
        if !is_final(probe) {
            probe.due = next_try(probe, answer == Some(true), self.origin, now);
            self.heap.push(Reverse((probe.due, due.id)));
        }
        verdict.map(|result| Verdict {
            pod: probe.stats.pod.clone(),
            key: probe.stats.key.clone(),
            container: probe.target.id.clone(),
            kind: probe.target.kind,
            result,
        })
    }

    pub fn stats(&self) -> Vec<ProbeStats> {
        let mut stats: Vec<ProbeStats> = self.probes.values().map(|probe| probe.stats.clone()).collect();
        stats.sort_by(|a, b| (&a.key, &a.container, a.kind).cmp(&(&b.key, &b.container, b.kind)));
        stats
    }

    pub fn totals(&self) -> ProbeTotals {
        ProbeTotals {
            probes: self.probes.len(),
            in_flight: self.network.in_flight + self.exec.in_flight,
            waiting: self.network.waiting.len() + self.exec.waiting.len(),
            ..self.totals
        }
    }
}

/// Nothing this instance answers can matter any more: it is about to be killed for its liveness or
/// startup failure, or its startup succeeded.
fn is_final(probe: &Probe) -> bool {
    let verdict = probe.machine.verdict().map(|verdict| verdict.healthy);
    match probe.target.kind {
        ProbeKind::Startup => verdict.is_some(),
        ProbeKind::Liveness => verdict == Some(false),
        ProbeKind::Readiness => false,
    }
}

fn is_exec(target: &ProbeTarget) -> bool {
    matches!(target.action, ProbeAction::Hook(Hook::Exec { .. }))
}

fn period(target: &ProbeTarget) -> Duration {
    target.period.max(Duration::from_secs(1))
}

/// The same for the same probe in every run of the daemon.
fn phase(uid: &PodUid, target: &ProbeTarget, period: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    (uid, &target.container, target.kind).hash(&mut hasher);
    let nanos = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX).max(1);
    Duration::from_nanos(hasher.finish() % nanos)
}

/// The first instant after `now` at `phase` of the period.
fn next_in_phase(origin: Instant, phase: Duration, period: Duration, now: Instant) -> Instant {
    let since = now.saturating_duration_since(origin).as_nanos();
    let (phase, period) = (phase.as_nanos(), period.as_nanos().max(1));
    let rounds = (since + period - phase) / period;
    origin + Duration::from_nanos(u64::try_from(phase + rounds * period).unwrap_or(u64::MAX))
}

/// One period after the last due time, whatever the try took; late ones at once. A success moves the
/// probe into its own phase, which comes within a period; failures keep exactly to the period, so that
/// `failureThreshold` tries take as long as the author reckoned.
fn next_try(probe: &Probe, healthy: bool, origin: Instant, now: Instant) -> Instant {
    let period = period(&probe.target);
    match healthy {
        true => next_in_phase(origin, probe.phase, period, probe.due.max(now)),
        false => (probe.due + period).max(now),
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
