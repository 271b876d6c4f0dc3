//! A runtime and an agent as one small pure model, for the planner's property tests: steps take time
//! and fail at random, containers exit by script, the agent may be killed at any moment. The model
//! refuses what a real runtime refuses, and checks at each effect that the planner broke no rule.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::plan;
use crate::ids::{ContainerName, SandboxId};
use crate::pod::containers::{Role, containers};
use crate::pod::facts::Facts;
use crate::pod::fixture::{Fixture, at};
use crate::pod::known::KnownPod;
use crate::pod::lifecycle::Lifecycle;
use crate::pod::local::LocalState;
use crate::pod::observed::{ContainerState, ObservedContainer, ObservedPod, ObservedSandbox, SandboxState};
use crate::pod::restart::{after_seconds, finished_at};
use crate::pod::snapshot::Plan;
use crate::pod::step::{ImagePresent, ImageUser, Step, StepError, StepOutcome, StepResult};
use crate::volume::content_hash;

/// What an instance does once it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Stays,
    Exits { after: i64, code: i32 },
}

pub(super) struct Model {
    pub fixture: Fixture,
    known: KnownPod,
    sandboxes: Vec<ObservedSandbox>,
    containers: Vec<ObservedContainer>,
    /// What the n-th instance of a container does; the last entry holds for all further ones.
    pub scripts: BTreeMap<String, Vec<Act>>,
    exits: Vec<(Timestamp, String, i32)>,
    pending: Vec<(Timestamp, Step)>,
    /// Percent of steps that fail.
    pub fail_percent: u64,
    /// Longest a step takes, in seconds.
    pub slowest: i64,
    random: u64,
    made: u32,
    /// Every step carried out, as it prints.
    pub log: Vec<String>,
    pub last: Option<Plan>,
}

impl Model {
    pub fn new(manifest: serde_json::Value, seed: u64) -> Self {
        let fixture = Fixture::new(manifest);
        let known = KnownPod::new(fixture.desired.key.clone(), fixture.desired.uid.clone(), fixture.now);
        Self {
            fixture,
            known,
            sandboxes: Vec::new(),
            containers: Vec::new(),
            scripts: BTreeMap::new(),
            exits: Vec::new(),
            pending: Vec::new(),
            fail_percent: 0,
            slowest: 0,
            random: seed | 1,
            made: 0,
            log: Vec::new(),
            last: None,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below.max(1)
    }

    pub fn pod(&self) -> &Pod {
        &self.fixture.desired.pod
    }

    pub fn container(&self, name: &str) -> Option<&ObservedContainer> {
        self.containers.iter().rev().find(|container| container.name.as_str() == name)
    }

    /// Ends the running instance of a container from outside.
    pub fn crash(&mut self, name: &str, code: i32) {
        let now = self.fixture.now;
        self.exits.push((now, self.container(name).expect("it runs").id.to_string(), code));
        self.pass_exits();
    }

    pub fn lose_sandbox(&mut self) {
        let now = self.fixture.now;
        for sandbox in &mut self.sandboxes {
            sandbox.state = SandboxState::NotReady;
        }
        let running: Vec<String> =
            self.containers.iter().filter(|c| c.is_running()).map(|c| c.id.to_string()).collect();
        self.exits.extend(running.into_iter().map(|id| (now, id, 137)));
        self.pass_exits();
    }

    /// The agent is killed and starts again: what it had in memory is gone, calls under way have
    /// happened or not.
    pub fn restart_agent(&mut self, keep_calls: bool) {
        for (_, step) in std::mem::take(&mut self.pending) {
            if keep_calls {
                self.effect(&step);
            }
        }
        self.fixture.local = LocalState::default();
        self.fixture.prior = None;
        self.fixture.node.agent_started_at = self.fixture.now;
        self.known =
            KnownPod::new(self.fixture.desired.key.clone(), self.fixture.desired.uid.clone(), at(-1));
    }

    pub fn delete(&mut self, grace_seconds: u32) {
        self.fixture.desired.deletion = Some(crate::pod::desired::Deletion {
            requested_at: self.fixture.now,
            grace_seconds,
            cause: crate::pod::desired::EndCause::Deleted,
        });
    }

    /// One turn of the worker: observe, plan, cancel, start.
    pub fn turn(&mut self) -> Plan {
        let reading = ObservedPod {
            sandboxes: self.sandboxes.clone(),
            containers: self.containers.clone(),
            observed_at: self.fixture.now,
            ..self.known.pod().clone()
        };
        self.known.absorb(reading);
        self.fixture.observed = self.known.pod().clone();
        let max = self.fixture.node.max_restart_backoff;
        self.fixture.local.observe(&self.fixture.desired, &self.fixture.observed, max);
        let made = plan(&self.fixture.snapshot());
        self.check_lifecycle(&made.lifecycle);
        self.fixture.lifecycle = made.lifecycle.clone();
        for key in &made.cancel {
            let position = self.pending.iter().position(|(_, step)| step.key() == *key);
            let (_, step) = self.pending.remove(position.expect("only what is in flight is cancelled"));
            self.fixture.local.record(&step, &StepOutcome::Cancelled, self.fixture.now);
        }
        for step in &made.steps {
            if !self.fixture.local.in_flight.contains_key(&step.key()) {
                self.fixture.local.begin(step, self.fixture.now);
                let takes = self.random(self.slowest as u64 + 1) as i64;
                self.pending.push((after_seconds(self.fixture.now, takes), step.clone()));
            }
        }
        self.last = Some(made.clone());
        made
    }

    fn check_lifecycle(&self, next: &Lifecycle) {
        let rank = |lifecycle: &Lifecycle| match lifecycle {
            Lifecycle::Queued { .. } => 0,
            Lifecycle::Syncing => 1,
            Lifecycle::Terminating { .. } => 2,
            Lifecycle::Terminated { .. } => 3,
            Lifecycle::Released { .. } => 4,
        };
        assert!(rank(next) >= rank(&self.fixture.lifecycle), "a life went back: {next:?}");
        if rank(next) >= 3 && rank(&self.fixture.lifecycle) < 3 {
            assert!(
                self.containers.iter().all(|container| !container.is_running()),
                "ended while something runs"
            );
        }
    }

    /// Turns until nothing is left to do or `turns` are over; answers whether it came to rest.
    pub fn settle(&mut self, turns: usize) -> bool {
        for _ in 0..turns {
            let before = self.fixture.lifecycle.clone();
            let plan = self.turn();
            let moved = plan.lifecycle != before;
            // Outcomes are looked at before time goes on.
            if self.finish_due() {
                continue;
            }
            let next = self.pending.iter().map(|(due, _)| *due).chain(plan.wake_at);
            let next = next.chain(self.exits.iter().map(|(due, ..)| *due)).min();
            match next {
                Some(next) => {
                    self.fixture.now = next.max(self.fixture.now);
                    self.pass_exits();
                    self.finish_due();
                }
                None if !moved && plan.steps.is_empty() => return true,
                None => {}
            }
        }
        false
    }

    fn pass_exits(&mut self) {
        let now = self.fixture.now;
        let (due, later): (Vec<_>, Vec<_>) = self.exits.drain(..).partition(|(at, ..)| *at <= now);
        self.exits = later;
        for (at, id, code) in due {
            self.end(&id, at, code);
        }
    }

    fn end(&mut self, id: &str, finished_at: Timestamp, exit_code: i32) {
        let Some(container) = self.containers.iter_mut().find(|c| c.id.as_str() == id) else { return };
        if let ContainerState::Running { started_at } = container.state {
            container.state = ContainerState::Exited {
                started_at: Some(started_at),
                finished_at,
                exit_code,
                reason: String::new(),
                message: String::new(),
            };
        }
    }

    fn finish_due(&mut self) -> bool {
        let now = self.fixture.now;
        let (due, later): (Vec<_>, Vec<_>) = self.pending.drain(..).partition(|(at, _)| *at <= now);
        self.pending = later;
        let any = !due.is_empty();
        for (_, step) in due {
            // A hook that fails rightly ends its container; the tables show that.
            let may_fail = !matches!(step, Step::PostStart { .. });
            let outcome = if self.random(100) < self.fail_percent && may_fail {
                StepOutcome::Failed(StepError {
                    reason: "Fault".into(),
                    message: "by chance".into(),
                    retryable: true,
                })
            } else {
                StepOutcome::Done(self.effect(&step))
            };
            if let StepOutcome::Done(result) = &outcome {
                self.known.apply(result, now);
            }
            self.fixture.local.record(&step, &outcome, now);
        }
        any
    }

    /// What the step does to the runtime, with the checks of a runtime.
    fn effect(&mut self, step: &Step) -> StepResult {
        self.log.push(step.key().to_string());
        let now = self.fixture.now;
        match step {
            Step::CreateSandbox(spec) => {
                assert!(
                    self.containers.iter().all(|c| !c.is_running()),
                    "a sandbox is replaced under running containers"
                );
                let made = ObservedSandbox {
                    id: SandboxId::from(format!("s{}", spec.attempt)),
                    attempt: spec.attempt,
                    created_at: now,
                    ..crate::pod::fixture::sandbox()
                };
                assert!(self.sandboxes.iter().all(|s| s.attempt < spec.attempt), "an attempt is used twice");
                self.sandboxes.insert(0, made.clone());
                StepResult::Sandbox(made)
            }
            Step::CreateContainer(create) => StepResult::Container(self.create(create)),
            Step::StartContainer { id, .. } => {
                let container =
                    self.containers.iter_mut().find(|c| c.id == *id).expect("started before it was made");
                assert_eq!(container.state, ContainerState::Created, "{} is started twice", container.name);
                container.state = ContainerState::Running { started_at: now };
                let started = container.clone();
                self.schedule(&started);
                StepResult::Container(started)
            }
            Step::StopContainer(stop) => {
                self.check_stop(&stop.container);
                self.end(stop.id.as_str(), now, 137);
                StepResult::Container(
                    self.containers.iter().find(|c| c.id == stop.id).expect("known").clone(),
                )
            }
            Step::StopSandbox { id } => {
                let sandbox = self.sandboxes.iter_mut().find(|s| s.id == *id).expect("known sandbox");
                sandbox.state = SandboxState::NotReady;
                let stopped = sandbox.clone();
                assert!(
                    self.containers.iter().all(|c| c.sandbox != *id || !c.is_running()),
                    "a sandbox in use is stopped"
                );
                StepResult::Sandbox(stopped)
            }
            Step::RemoveContainer { id, .. } => {
                let running = self.containers.iter().any(|c| c.id == *id && c.is_running());
                assert!(!running, "a running container is removed");
                self.containers.retain(|c| c.id != *id);
                StepResult::Removed(id.to_string())
            }
            Step::RemoveSandbox { id } => {
                assert!(self.sandboxes.iter().any(|s| s.id == *id && s.state == SandboxState::NotReady));
                self.sandboxes.retain(|s| s.id != *id);
                StepResult::Removed(id.to_string())
            }
            Step::PullImage { .. } => StepResult::Image(ImagePresent {
                image_ref: "sha256:1".into(),
                size_bytes: 1,
                user: ImageUser::Unset,
            }),
            Step::PrepareVolume(action) | Step::UpdateVolume(action) => {
                StepResult::Volume { content_hash: content_hash(action) }
            }
            Step::PreparePodDirs { .. }
            | Step::EnsureCgroup(_)
            | Step::PostStart { .. }
            | Step::ReleaseVolume { .. }
            | Step::RemoveCgroup { .. }
            | Step::RemovePodDirs => StepResult::Done,
        }
    }

    fn create(&mut self, create: &crate::pod::step::CreateContainer) -> ObservedContainer {
        let name = &create.spec.name;
        let others = self.containers.iter().filter(|c| c.name == *name);
        assert!(
            others.clone().all(|c| finished_at(c).is_some()),
            "{name} is made while another instance is there"
        );
        assert!(others.clone().all(|c| c.attempt < create.spec.attempt), "{name}: an attempt is used twice");
        let sandbox = self.sandboxes.iter().find(|s| s.id == create.sandbox).expect("known sandbox");
        assert_eq!(sandbox.state, SandboxState::Ready, "made in a dead sandbox");
        self.check_order(name, &create.sandbox);
        self.made += 1;
        let made = ObservedContainer {
            id: format!("c{}", self.made).into(),
            sandbox: create.sandbox.clone(),
            created_at: self.fixture.now,
            annotations: create.spec.annotations.clone(),
            ..crate::pod::fixture::instance("", name.as_str(), create.spec.attempt, ContainerState::Created)
        };
        self.containers.push(made.clone());
        made
    }

    /// A container begins only after what comes before it in the spec.
    fn check_order(&self, name: &ContainerName, sandbox: &SandboxId) {
        let all = containers(self.pod());
        let own = all.iter().position(|c| c.name == *name).expect("in the spec");
        for earlier in &all[..own] {
            let here = || self.containers.iter().filter(|c| c.name == earlier.name && c.sandbox == *sandbox);
            match earlier.role {
                Role::Init => assert!(
                    here().any(|c| matches!(c.state, ContainerState::Exited { exit_code: 0, .. })),
                    "{name} begins before {} succeeded",
                    earlier.name
                ),
                Role::Sidecar => assert!(here().next().is_some(), "{name} begins before {}", earlier.name),
                Role::Main | Role::Ephemeral => {}
            }
        }
    }

    /// Without probes and edits nothing that runs is stopped but at the pod's end or with its
    /// sandbox; and sidecars outlive what they serve unless time is up.
    fn check_stop(&self, name: &ContainerName) {
        match &self.fixture.lifecycle {
            Lifecycle::Terminating { deadline, .. } => {
                let snapshot = self.fixture.snapshot();
                let facts = Facts::new(&snapshot);
                let is_sidecar = facts.of_role(Role::Sidecar).any(|c| c.name == *name);
                let main_runs = facts
                    .of_role(Role::Main)
                    .any(|c| self.container(c.name.as_str()).is_some_and(|i| i.is_running()));
                let late = self.fixture.now >= *deadline;
                assert!(!is_sidecar || !main_runs || late, "sidecar {name} ends before the main containers");
            }
            Lifecycle::Syncing => {
                let ready = self.sandboxes.iter().filter(|s| s.state == SandboxState::Ready).count();
                assert_ne!(ready, 1, "{name} is stopped although its pod is fine");
            }
            other => panic!("{name} is stopped in {other:?}"),
        }
    }

    fn schedule(&mut self, container: &ObservedContainer) {
        let script = self.scripts.get(container.name.as_str());
        let act = script.and_then(|acts| acts.get(container.attempt as usize).or(acts.last())).copied();
        if let Some(Act::Exits { after, code }) = act {
            self.exits.push((after_seconds(self.fixture.now, after), container.id.to_string(), code));
        }
    }
}
