//! How many starts run at once. Starting everything at the same time makes every pod late; this gate
//! lets as many steps run as the runtime sustains and finishes begun pods before it begins others,
//! so that pods become Ready one after the other. Stops never pass through here.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_core::pod::step::StepKind;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Lower goes first: what brings a pod that was begun closer to running, then older pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    stage: Reverse<u8>,
    pod: u64,
    ticket: u64,
}

#[derive(Debug)]
struct Waiter {
    turn: Turn,
    kind: StepKind,
    go: oneshot::Sender<Slot>,
}

impl PartialEq for Waiter {
    fn eq(&self, other: &Self) -> bool {
        self.turn == other.turn
    }
}
impl Eq for Waiter {}
impl PartialOrd for Waiter {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiter {
    /// The heap's greatest is the one whose turn is first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.turn.cmp(&self.turn)
    }
}

#[derive(Debug)]
struct State {
    limit: Limit,
    running: usize,
    tickets: u64,
    waiting: BinaryHeap<Waiter>,
}

/// Shared by all step executors. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StartGate {
    state: Arc<Mutex<State>>,
}

/// The right to run one step. Give it back with [`Slot::done`] to teach the gate how long it took;
/// a dropped one (cancelled, failed) is given back without a lesson.
#[derive(Debug)]
pub struct Slot {
    gate: StartGate,
    kind: StepKind,
    since: Instant,
    taken: bool,
}

impl StartGate {
    /// `initial` steps at once until something was measured; never fewer than `floor` nor more than
    /// `ceiling`.
    pub fn new(floor: usize, initial: usize, ceiling: usize) -> Self {
        let limit = Limit::new(floor.max(1), initial, ceiling);
        let state = State { limit, running: 0, tickets: 0, waiting: BinaryHeap::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Waits for a slot. `pod` orders pods among each other, smaller first.
    pub async fn enter(&self, kind: StepKind, pod: u64) -> Slot {
        loop {
            let go = {
                let mut state = self.lock();
                if state.running < state.limit.now() && state.waiting.is_empty() {
                    state.running += 1;
                    return self.slot(kind);
                }
                let (go, wait) = oneshot::channel();
                state.tickets += 1;
                let turn = Turn { stage: Reverse(stage(kind)), pod, ticket: state.tickets };
                state.waiting.push(Waiter { turn, kind, go });
                wait
            };
            // The sender only goes away with the gate itself; then nothing is left to protect.
            if let Ok(mut slot) = go.await {
                slot.since = Instant::now();
                return slot;
            }
        }
    }

    /// Steps allowed at once now, for metrics and tests.
    pub fn limit(&self) -> usize {
        self.lock().limit.now()
    }

    fn slot(&self, kind: StepKind) -> Slot {
        Slot { gate: self.clone(), kind, since: Instant::now(), taken: true }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        let mut state = self.lock();
        state.running -= 1;
        while state.running < state.limit.now() {
            let Some(waiter) = state.waiting.pop() else { break };
            // The slot itself is handed over: a waiter that is cancelled before or after this
            // moment drops it, and nothing is lost.
            match waiter.go.send(self.slot(waiter.kind)) {
                Ok(()) => state.running += 1,
                Err(mut slot) => slot.taken = false,
            }
        }
    }
}

impl Slot {
    /// The step ended as it should; how long it took is a measurement.
    pub fn done(self) {
        let took = self.since.elapsed();
        let mut state = self.gate.lock();
        let saturated = state.running >= state.limit.now();
        state.limit.measured(self.kind, took, saturated);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.taken {
            self.gate.leave();
        }
    }
}

/// Later stages of a pod's start come first.
fn stage(kind: StepKind) -> u8 {
    match kind {
        StepKind::StartContainer => 2,
        StepKind::CreateContainer => 1,
        _ => 0,
    }
}

/// The number of steps at once, learned from how much longer they take than the fastest lately
/// (the gradient of latency, as TCP Vegas does it): doubled per round until they are slower for the
/// first time, then up by one per round while they are hardly slower, down by a tenth when they are
/// much slower.
#[derive(Debug)]
struct Limit {
    floor: f64,
    ceiling: f64,
    now: f64,
    /// Fastest lately, by kind; drifts up so that an old record does not hold for ever.
    fastest: [Option<f64>; 3],
    /// Smoothed ratio of measured to fastest.
    strain: f64,
    /// Nothing was slower yet: what is sustained is far off, or not known.
    doubling: bool,
}

const HARDLY_SLOWER: f64 = 1.5;
const MUCH_SLOWER: f64 = 2.5;

impl Limit {
    fn new(floor: usize, initial: usize, ceiling: usize) -> Self {
        let (floor, ceiling) = (floor as f64, ceiling.max(floor) as f64);
        Self {
            floor,
            ceiling,
            now: (initial as f64).clamp(floor, ceiling),
            fastest: [None; 3],
            strain: 1.0,
            doubling: true,
        }
    }

    fn now(&self) -> usize {
        self.now as usize
    }

    fn measured(&mut self, kind: StepKind, took: Duration, saturated: bool) {
        // Below a millisecond the runtime is not what takes the time.
        let took = took.as_secs_f64().max(0.001);
        let slot = &mut self.fastest[usize::from(stage(kind))];
        let fastest = slot.map_or(took, |old| (old * 1.001).min(took));
        *slot = Some(fastest);
        self.strain = self.strain * 0.8 + (took / fastest) * 0.2;
        self.doubling &= self.strain < HARDLY_SLOWER;
        if self.strain > MUCH_SLOWER {
            self.now = (self.now * 0.9).max(self.floor);
            // Let the next steps show what the lower limit does before it is lowered again.
            self.strain = HARDLY_SLOWER;
        } else if self.strain < HARDLY_SLOWER && saturated {
            let more = if self.doubling { 1.0 } else { 1.0 / self.now };
            self.now = (self.now + more).min(self.ceiling);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A runtime that does `parallel` things at once without slowing down: `ceiling` pods are
    /// started in it; answers the limit at the end and the time each pod was done.
    async fn start_pods(pods: u64, parallel: f64) -> (usize, Vec<Duration>) {
        let gate = StartGate::new(2, 2, 64);
        let load = Arc::new(Mutex::new(0_u32));
        let begin = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for pod in 0..pods {
            let (gate, load) = (gate.clone(), load.clone());
            tasks.spawn(async move {
                for kind in [StepKind::CreateSandbox, StepKind::CreateContainer, StepKind::StartContainer] {
                    let slot = gate.enter(kind, pod).await;
                    let now = {
                        let mut load = load.lock().unwrap();
                        *load += 1;
                        f64::from(*load)
                    };
                    tokio::time::sleep(Duration::from_secs_f64(0.1 * (now / parallel).max(1.0))).await;
                    *load.lock().unwrap() -= 1;
                    slot.done();
                }
                begin.elapsed()
            });
        }
        let mut ready = tasks.join_all().await;
        ready.sort();
        (gate.limit(), ready)
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_machine_stays_small_and_a_big_one_is_used() {
        let (small, _) = start_pods(100, 2.0).await;
        assert!((2..=6).contains(&small), "{small} at once where two are sustained");
        let (big, _) = start_pods(400, 32.0).await;
        assert!(big >= 16, "{big} at once where 32 are sustained");
    }

    #[tokio::test(start_paused = true)]
    async fn pods_get_ready_one_after_the_other() {
        let (_, ready) = start_pods(100, 2.0).await;
        let (half, last) = (ready[50], ready[99]);
        assert!(ready[0] < Duration::from_secs(1), "first after {:?}", ready[0]);
        assert!(half.as_secs_f64() < last.as_secs_f64() * 0.6, "half after {half:?}, last after {last:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_takes_all_is_soon_given_all() {
        // Alone a pod takes 0.3 s; doubling from two at once, the hundredth waits for a few rounds of steps.
        let (limit, ready) = start_pods(110, 64.0).await;
        assert!(limit > 32, "{limit} at once where 64 are sustained");
        let (half, last) = (ready[55], ready[109]);
        assert!(
            half < Duration::from_millis(900) && last < Duration::from_millis(1300),
            "half after {half:?}, last after {last:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_gave_up_takes_no_slot() {
        let gate = StartGate::new(1, 1, 1);
        let first = gate.enter(StepKind::CreateSandbox, 1).await;
        let gave_up =
            tokio::time::timeout(Duration::from_secs(1), gate.enter(StepKind::CreateSandbox, 2)).await;
        assert!(gave_up.is_err());
        drop(first);
        tokio::time::timeout(Duration::from_secs(1), gate.enter(StepKind::CreateSandbox, 3)).await.unwrap();
    }
}
