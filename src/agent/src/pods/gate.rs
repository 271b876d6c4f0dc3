//! Who may go when not all can. Starting everything at the same time makes every pod late; a gate lets as many
//! steps run as the runtime sustains and finishes begun pods before it begins others, so that pods become Ready
//! one after the other. A second gate does the same for what follows the grace period of a pod's end. Stops of
//! containers pass no gate: their time belongs to the pod.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_core::pod::step::StepKind;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::limit::{Limit, Seen, Stalls};

/// Between two looks at the node while steps wait and nothing is known of the runtime: long enough for what was
/// begun last to show. A start is not at work all the time, and a millisecond's pause in it says nothing.
const LOOK: Duration = Duration::from_millis(5);
/// So many looks in a row that see a crowd are the last ones: a runtime that fills the node pauses now and then,
/// and must not be given more at each pause.
const CROWDED: u32 = 2;

/// Lower goes first: what brings a pod that was begun closer to its goal, then older pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    stage: Reverse<u8>,
    pod: u64,
    ticket: u64,
}

#[derive(Debug)]
struct Waiter {
    turn: Turn,
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
    /// Somebody looks at the node for those who wait.
    looking: bool,
    /// Looks in a row that saw a crowd; counted anew once nothing runs or waits.
    crowded: u32,
}

impl State {
    fn may_look(&self) -> bool {
        self.limit.is_unknown() && self.crowded < CROWDED
    }
}

/// Shared by all step executors. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate {
    state: Arc<Mutex<State>>,
    stalls: Arc<dyn Stalls>,
}

/// The right to run one step. Give it back with [`Slot::done`] to teach the gate how long it took;
/// a dropped one (cancelled, failed) is given back without a lesson.
#[derive(Debug)]
pub struct Slot {
    gate: Gate,
    stage: u8,
    since: Instant,
    taken: bool,
}

impl Gate {
    /// `initial` steps at once until something was measured; never fewer than `floor` nor more than
    /// `ceiling`.
    pub fn new(floor: usize, initial: usize, ceiling: usize, stalls: Arc<dyn Stalls>) -> Self {
        let limit = Limit::new(floor.max(1), initial, ceiling);
        let state =
            State { limit, running: 0, tickets: 0, waiting: BinaryHeap::new(), looking: false, crowded: 0 };
        Self { state: Arc::new(Mutex::new(state)), stalls }
    }

    /// Waits for a slot. `pod` orders pods among each other, smaller first.
    pub async fn enter(&self, kind: StepKind, pod: u64) -> Slot {
        let stage = stage(kind);
        loop {
            let go = {
                let mut state = self.lock();
                if state.running < state.limit.now() && state.waiting.is_empty() {
                    state.running += 1;
                    return self.slot(stage);
                }
                let (go, wait) = oneshot::channel();
                state.tickets += 1;
                let turn = Turn { stage: Reverse(stage), pod, ticket: state.tickets };
                state.waiting.push(Waiter { turn, go });
                if state.may_look() && !std::mem::replace(&mut state.looking, true) {
                    tokio::spawn(self.clone().look());
                }
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

    /// While steps wait and nothing of the runtime is known: a node that has room although all that may run
    /// do so takes more. Without this the first answer of the runtime would have to be waited for.
    async fn look(self) {
        let mut before = self.stalls.now();
        loop {
            let since = Instant::now();
            tokio::time::sleep(LOOK).await;
            let now = self.stalls.now();
            if !self.saw(Seen::between(before, now, since.elapsed())) {
                return;
            }
            before = now;
        }
    }

    /// `None` where nothing can be seen. Answers whether to look again.
    fn saw(&self, seen: Option<Seen>) -> bool {
        let mut state = self.lock();
        match seen {
            Some(Seen::Room) => {
                state.crowded = 0;
                state.limit.had_room();
                self.admit(&mut state);
            }
            Some(Seen::Crowd) => state.crowded += 1,
            Some(Seen::Unclear) | None => {}
        }
        state.looking = seen.is_some() && !state.waiting.is_empty() && state.may_look();
        state.looking
    }

    fn slot(&self, stage: u8) -> Slot {
        Slot { gate: self.clone(), stage, since: Instant::now(), taken: true }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        let mut state = self.lock();
        state.running -= 1;
        self.admit(&mut state);
        if state.running == 0 {
            state.crowded = 0;
        }
    }

    fn admit(&self, state: &mut State) {
        while state.running < state.limit.now() {
            let Some(waiter) = state.waiting.pop() else { break };
            // The slot itself is handed over: a waiter that is cancelled before or after this
            // moment drops it, and nothing is lost.
            match waiter.go.send(self.slot(waiter.turn.stage.0)) {
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
        state.limit.measured(self.stage, took, saturated);
    }

    /// The step hangs: it goes on without its slot, and the gate opens by one more, since what hangs comes in
    /// numbers (a mount that is gone, a plug-in that waits) and each would cost the others as long again.
    pub fn hangs(self) {
        self.gate.lock().limit.one_hangs();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.taken {
            self.gate.leave();
        }
    }
}

/// Later stages of a pod's start, and of its end, come first.
fn stage(kind: StepKind) -> u8 {
    match kind {
        StepKind::StartContainer | StepKind::RemoveSandbox => 2,
        StepKind::CreateContainer | StepKind::RemoveContainer => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::limit::Load;
    use super::*;

    /// A kernel that tells nothing, or that things wait all the time, or never.
    #[derive(Debug)]
    struct Told(Option<f64>, Instant);

    impl Told {
        fn of(part_of_time: Option<f64>) -> Arc<Self> {
            Arc::new(Self(part_of_time, Instant::now()))
        }
    }

    impl Stalls for Told {
        fn now(&self) -> Option<Load> {
            let stalled = self.0.map(|part| self.1.elapsed().mul_f64(part))?;
            Some(Load { stalled, own: Duration::ZERO })
        }
    }

    /// A runtime that does `parallel` things at once without slowing down: `ceiling` pods are
    /// started in it; answers the limit at the end and the time each pod was done.
    async fn start_pods(pods: u64, parallel: f64) -> (usize, Vec<Duration>) {
        let gate = Gate::new(2, 2, 64, Told::of(None));
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
    async fn a_node_with_room_is_given_more_before_the_runtime_has_answered() {
        for (part_of_time, at_least, at_most) in [(Some(0.0), 64, 64), (Some(0.5), 2, 2), (None, 2, 2)] {
            let gate = Gate::new(2, 2, 64, Told::of(part_of_time));
            let mut slots = tokio::task::JoinSet::new();
            for pod in 0..100 {
                let gate = gate.clone();
                slots.spawn(async move {
                    let _slot = gate.enter(StepKind::CreateSandbox, pod).await;
                    std::future::pending::<()>().await;
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = gate.limit();
            assert!((at_least..=at_most).contains(&now), "{now} at once where {part_of_time:?} is waited");
        }
    }

    /// What the kernel tells at one look after the other, as parts of the time between them.
    #[derive(Debug)]
    struct Looks(Mutex<(Load, std::vec::IntoIter<(f64, f64)>)>);

    impl Stalls for Looks {
        fn now(&self) -> Option<Load> {
            let (load, parts) = &mut *self.0.lock().unwrap();
            let (stalled, own) = parts.next()?;
            load.stalled += LOOK.mul_f64(stalled);
            load.own += LOOK.mul_f64(own);
            Some(*load)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_a_runtime_that_fills_the_node_is_no_room() {
        let (crowd, own_work, room) = ((0.8, 0.1), (0.9, 1.5), (0.0, 0.0));
        for (looks, wanted) in [
            (vec![room, crowd, crowd, room, room], 2),
            (vec![room, crowd, room, crowd, crowd, room], 4),
            (vec![room, own_work, own_work, own_work, room, room], 8),
        ] {
            let gate = Gate::new(2, 2, 64, Arc::new(Looks(Mutex::new((Load::default(), looks.into_iter())))));
            let mut slots = tokio::task::JoinSet::new();
            for pod in 0..100 {
                let gate = gate.clone();
                slots.spawn(async move {
                    let _slot = gate.enter(StepKind::CreateSandbox, pod).await;
                    std::future::pending::<()>().await;
                });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(gate.limit(), wanted);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_holds_nobody_back() {
        let gate = Gate::new(1, 1, 8, Told::of(None));
        gate.enter(StepKind::StopSandbox, 1).await.hangs();
        for pod in [2, 3] {
            let slot = tokio::time::timeout(Duration::from_secs(1), gate.enter(StepKind::StopSandbox, pod));
            slot.await.unwrap().done();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_gave_up_takes_no_slot() {
        let gate = Gate::new(1, 1, 1, Told::of(None));
        let first = gate.enter(StepKind::CreateSandbox, 1).await;
        let gave_up =
            tokio::time::timeout(Duration::from_secs(1), gate.enter(StepKind::CreateSandbox, 2)).await;
        assert!(gave_up.is_err());
        drop(first);
        tokio::time::timeout(Duration::from_secs(1), gate.enter(StepKind::CreateSandbox, 3)).await.unwrap();
    }
}
