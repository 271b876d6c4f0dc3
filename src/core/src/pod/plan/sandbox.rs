//! The sandbox of a pod that is to run: made, kept, or replaced after everything in the old one has
//! ended (behaviours 14).

use crate::pod::containers::is_host_network;
use crate::pod::observed::{ObservedSandbox, SandboxState};
use crate::pod::render::sandbox_spec;
use crate::pod::runtime_class;
use crate::pod::step::Step;

use super::containers::stop_for_new_sandbox;
use super::draft::Draft;

/// The sandbox to run containers in; where there is none, what leads to one. `ready` says that
/// folders and cgroup are there.
pub(super) fn sandbox<'a>(draft: &mut Draft<'_, 'a>, ready: bool) -> Option<&'a ObservedSandbox> {
    let facts = draft.facts;
    if let Some(usable) = facts.sandbox() {
        return Some(usable);
    }
    let observed = facts.snapshot.observed;
    if facts.sandbox_in_use() {
        stop_for_new_sandbox(draft);
        return None;
    }
    let up: Vec<_> =
        observed.sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready).collect();
    for sandbox in &up {
        draft.want(Step::StopSandbox { id: sandbox.id.clone() });
    }
    if up.is_empty() && ready {
        create(draft);
    }
    None
}

fn create(draft: &mut Draft<'_, '_>) {
    let facts = draft.facts;
    let snapshot = facts.snapshot;
    if let Err(problem) = &snapshot.node.network
        && !is_host_network(facts.pod())
    {
        let message = format!("the node's network is not ready: {problem}; install or mend the CNI plugin");
        draft.wait("NetworkNotReady", None, message, None);
        return;
    }
    if let Err(error) = runtime_class::handler(facts.pod(), &snapshot.node.runtime_classes) {
        draft.wait("FailedCreatePodSandBox", None, error.to_string(), None);
        return;
    }
    let attempt = snapshot.observed.sandboxes.iter().map(|sandbox| sandbox.attempt + 1).max().unwrap_or(0);
    match sandbox_spec(snapshot, attempt) {
        Ok(spec) => {
            draft.want(Step::CreateSandbox(Box::new(spec)));
        }
        Err(error) => draft.wait("FailedCreatePodSandBox", None, error.to_string(), None),
    }
}

/// Sandboxes of before that hold nothing any more.
pub(super) fn remove_old(draft: &mut Draft<'_, '_>) {
    let observed = draft.facts.snapshot.observed;
    for old in observed.sandboxes.iter().skip(1).filter(|sandbox| sandbox.state == SandboxState::NotReady) {
        if !observed.containers.iter().any(|container| container.sandbox == old.id) {
            draft.want(Step::RemoveSandbox { id: old.id.clone() });
        }
    }
}
