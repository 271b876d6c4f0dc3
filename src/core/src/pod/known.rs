//! What is known of a pod's sandboxes and containers, folded from readings of the runtime and from
//! its replies to our own calls. Readings may arrive late and out of order; a container never goes
//! back from exited to running because of one.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::ids::{PodKey, PodUid};
use crate::pod::observed::{
    ContainerState, OOM_KILLED, ObservedContainer, ObservedPod, ObservedSandbox, SandboxState,
};
use crate::pod::step::StepResult;

/// The pod as far as it is known, and what is known to be removed. Readers share it, and a change copies it only
/// where somebody still looks at the old one.
#[derive(Clone, Debug)]
pub struct KnownPod {
    pod: Arc<ObservedPod>,
    /// Runtime ids whose removal was confirmed, until a reading from after that lacks them.
    removed: BTreeMap<String, Timestamp>,
}

impl KnownPod {
    /// Nothing known yet.
    pub fn new(key: PodKey, uid: PodUid, now: Timestamp) -> Self {
        let pod = ObservedPod { uid, key, sandboxes: Vec::new(), containers: Vec::new(), observed_at: now };
        Self { pod: Arc::new(pod), removed: BTreeMap::new() }
    }

    /// What the runtime has, as far as known.
    pub fn pod(&self) -> &ObservedPod {
        &self.pod
    }

    /// The same, to be kept while more is learned.
    pub fn shared(&self) -> Arc<ObservedPod> {
        self.pod.clone()
    }

    /// Folds in everything the runtime has under this uid, read at `reading.observed_at` or a
    /// little later. Answers whether anything was news.
    pub fn absorb(&mut self, reading: ObservedPod) -> bool {
        let at = reading.observed_at;
        let before = self.pod.clone();
        let mut sandboxes: Vec<_> =
            reading.sandboxes.into_iter().filter(|s| !self.removed_by(s.id.as_str(), at)).collect();
        let mut containers: Vec<_> =
            reading.containers.into_iter().filter(|c| !self.removed_by(c.id.as_str(), at)).collect();
        self.removed.retain(|_, removed_at| *removed_at >= at);
        for known in &before.sandboxes {
            match sandboxes.iter_mut().find(|s| s.id == known.id) {
                Some(read) => keep_later_sandbox(read, known),
                None if known.created_at >= at => sandboxes.push(known.clone()),
                None => {}
            }
        }
        for known in &before.containers {
            match containers.iter_mut().find(|c| c.id == known.id) {
                Some(read) if rank(&read.state) < rank(&known.state) => *read = known.clone(),
                Some(read) => keep_findings(read, known),
                None if known.created_at >= at => containers.push(known.clone()),
                None => {}
            }
        }
        let pod = Arc::make_mut(&mut self.pod);
        pod.sandboxes = sandboxes;
        pod.containers = containers;
        pod.observed_at = pod.observed_at.max(at);
        sort(pod);
        self.pod.sandboxes != before.sandboxes || self.pod.containers != before.containers
    }

    /// Folds in what an event tells of one sandbox: a part of the pod, so that what it lacks says
    /// nothing. Answers whether anything was news.
    pub fn absorb_part(
        &mut self,
        sandbox: Option<ObservedSandbox>,
        containers: Vec<ObservedContainer>,
        at: Timestamp,
    ) -> bool {
        let mut news = false;
        if let Some(sandbox) = sandbox.filter(|s| !self.removed_by(s.id.as_str(), at)) {
            news |= self.put_sandbox(sandbox);
        }
        for container in containers {
            if !self.removed_by(container.id.as_str(), at) {
                news |= self.put_container(container);
            }
        }
        if news {
            sort(Arc::make_mut(&mut self.pod));
        }
        news
    }

    /// Folds in the runtime's reply to a call of ours (invariant 4).
    pub fn apply(&mut self, result: &StepResult, now: Timestamp) {
        match result {
            StepResult::Sandbox(sandbox) => drop(self.put_sandbox(sandbox.clone())),
            StepResult::Container(container) if self.is_told_of(container) => {}
            StepResult::Container(container) => drop(self.put_container(container.clone())),
            StepResult::Removed(id) => {
                let pod = Arc::make_mut(&mut self.pod);
                pod.sandboxes.retain(|s| s.id.as_str() != id);
                pod.containers.retain(|c| c.id.as_str() != id);
                self.removed.insert(id.clone(), now);
            }
            StepResult::Done | StepResult::Image(_) | StepResult::Volume { .. } => return,
        }
        let pod = Arc::make_mut(&mut self.pod);
        pod.observed_at = pod.observed_at.max(now);
        sort(pod);
    }

    /// A container that was made or started is told of by an event, often before the call's answer, with the times
    /// the runtime has; the answer's own are a guess.
    fn is_told_of(&self, container: &ObservedContainer) -> bool {
        let known = self.pod.containers.iter().find(|c| c.id == container.id);
        known.is_some_and(|known| container.may_run() && rank(&known.state) == rank(&container.state))
    }

    fn removed_by(&self, id: &str, at: Timestamp) -> bool {
        self.removed.get(id).is_some_and(|removed_at| *removed_at >= at)
    }

    /// Answers whether it was news.
    fn put_sandbox(&mut self, mut sandbox: ObservedSandbox) -> bool {
        let place = self.pod.sandboxes.iter().position(|s| s.id == sandbox.id);
        if let Some(place) = place {
            keep_later_sandbox(&mut sandbox, &self.pod.sandboxes[place]);
            if self.pod.sandboxes[place] == sandbox {
                return false;
            }
        }
        let sandboxes = &mut Arc::make_mut(&mut self.pod).sandboxes;
        match place {
            Some(place) => sandboxes[place] = sandbox,
            None => sandboxes.push(sandbox),
        }
        true
    }

    /// Answers whether it was news.
    fn put_container(&mut self, mut container: ObservedContainer) -> bool {
        let place = self.pod.containers.iter().position(|c| c.id == container.id);
        if let Some(place) = place {
            let known = &self.pod.containers[place];
            if rank(&container.state) < rank(&known.state) {
                return false;
            }
            keep_findings(&mut container, known);
            if *known == container {
                return false;
            }
        }
        let containers = &mut Arc::make_mut(&mut self.pod).containers;
        match place {
            Some(place) => containers[place] = container,
            None => containers.push(container),
        }
        true
    }
}

/// Newest first, as [`ObservedPod`] promises.
fn sort(pod: &mut ObservedPod) {
    pod.sandboxes.sort_by_key(|s| Reverse((s.attempt, s.created_at)));
    pod.containers.sort_by_key(|c| Reverse((c.created_at, c.attempt)));
}

/// A sandbox that stopped stays stopped, and one that is up does not lose the addresses it got.
fn keep_later_sandbox(read: &mut ObservedSandbox, known: &ObservedSandbox) {
    if known.state == SandboxState::NotReady {
        read.state = SandboxState::NotReady;
    }
    if read.ips.is_empty() {
        read.ips.clone_from(&known.ips);
    }
}

/// What was found out about a container's end beside the runtime: what it said, from a file that goes with the
/// pod's folder, and that the kernel killed it for memory.
fn keep_findings(read: &mut ObservedContainer, known: &ObservedContainer) {
    if let (
        ContainerState::Exited { message, reason, .. },
        ContainerState::Exited { message: said, reason: found, .. },
    ) = (&mut read.state, &known.state)
    {
        if message.is_empty() {
            message.clone_from(said);
        }
        if found == OOM_KILLED {
            reason.clone_from(found);
        }
    }
}

/// A container's life only goes this way. `Unknown` says nothing new about one that ran or exited.
fn rank(state: &ContainerState) -> u8 {
    match state {
        ContainerState::Unknown => 0,
        ContainerState::Created => 1,
        ContainerState::Running { .. } => 2,
        ContainerState::Exited { .. } => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ContainerId, ContainerName, SandboxId};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn container(id: &str, created: i64, state: ContainerState) -> ObservedContainer {
        ObservedContainer {
            id: ContainerId::from(id),
            sandbox: SandboxId::from("s"),
            name: ContainerName::from("c"),
            attempt: 0,
            state,
            created_at: at(created),
            image: String::new(),
            image_ref: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            log_path: String::new(),
        }
    }

    fn exited() -> ContainerState {
        ContainerState::Exited {
            started_at: Some(at(1)),
            finished_at: at(2),
            exit_code: 0,
            reason: "Completed".into(),
            message: String::new(),
        }
    }

    fn running() -> ContainerState {
        ContainerState::Running { started_at: at(1) }
    }

    fn known() -> KnownPod {
        KnownPod::new(PodKey::new("default", "p"), PodUid::from("u"), at(0))
    }

    fn reading(second: i64, containers: Vec<ObservedContainer>) -> ObservedPod {
        ObservedPod { containers, observed_at: at(second), ..known().pod().clone() }
    }

    #[test]
    fn late_readings_never_turn_a_life_back() {
        let mut pod = known();
        pod.apply(&StepResult::Container(container("a", 1, running())), at(2));
        assert!(!pod.absorb(reading(1, vec![container("a", 1, ContainerState::Created)])));
        assert!(pod.absorb(reading(3, vec![container("a", 1, exited())])));
        assert!(!pod.absorb(reading(4, vec![container("a", 1, running())])));
        assert_eq!(pod.pod().containers[0].state, exited());
        assert!(!pod.absorb(reading(5, vec![container("a", 1, ContainerState::Unknown)])));
    }

    #[test]
    fn what_a_reading_could_not_know_yet_stays_and_what_it_lacks_goes() {
        let mut pod = known();
        pod.apply(&StepResult::Container(container("a", 5, running())), at(5));
        assert!(!pod.absorb(reading(4, vec![])), "read before the container was made");
        assert!(pod.absorb(reading(6, vec![])), "vanished");
        assert!(pod.pod().containers.is_empty());
    }

    #[test]
    fn a_removed_container_does_not_come_back_in_a_late_reading() {
        let mut pod = known();
        pod.apply(&StepResult::Container(container("a", 1, exited())), at(2));
        pod.apply(&StepResult::Removed("a".into()), at(5));
        assert!(!pod.absorb(reading(4, vec![container("a", 1, exited())])));
        assert!(pod.pod().containers.is_empty());
        // Someone made a container of that id again after the removal: that is news.
        assert!(pod.absorb(reading(6, vec![container("a", 6, running())])));
    }

    #[test]
    fn the_runtimes_own_words_of_a_start_stay_when_the_calls_answer_comes_later() {
        let mut pod = known();
        let told = container("a", 1, running());
        assert!(pod.absorb_part(None, vec![told.clone()], at(1)));
        let guess = ContainerState::Running { started_at: at(9) };
        pod.apply(&StepResult::Container(container("a", 9, guess)), at(9));
        assert_eq!(pod.pod().containers, std::slice::from_ref(&told));
        assert!(!pod.absorb_part(None, vec![told], at(10)), "the same event again");
        let read_after_stop = container("a", 1, exited());
        pod.apply(&StepResult::Container(read_after_stop.clone()), at(11));
        assert_eq!(pod.pod().containers, [read_after_stop]);
    }

    #[test]
    fn newest_instance_first() {
        let mut pod = known();
        pod.absorb(reading(9, vec![container("old", 1, exited()), container("new", 8, running())]));
        let ids: Vec<_> = pod.pod().containers.iter().map(|c| c.id.as_str()).collect();
        assert_eq!(ids, ["new", "old"]);
    }
}
