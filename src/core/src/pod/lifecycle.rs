//! The life of one pod uid as one enum with data, stepped by a pure function; a uid never goes back
//! (behaviours 1). Every question "is it terminating?" is derived from here and nowhere else.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ids::PodUid;
use crate::pod::desired::{EndCause, PodSource};
use crate::pod::facts::Facts;
use crate::pod::restart::after_seconds;
use crate::pod::step::StepKind;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifecycle {
    /// Another life of the same namespace/name has not ended yet; this one waits (behaviours 2).
    Queued { behind: PodUid },
    /// Being set up or kept running.
    Syncing,
    /// Containers are being stopped; `deadline` is when all of them get SIGKILL.
    Terminating { cause: EndCause, since: Timestamp, deadline: Timestamp },
    /// The runtime confirmed that nothing runs; volumes, cgroup and folders are being released.
    Terminated { cause: EndCause, at: Timestamp },
    /// Nothing is left but the record. The worker ends; a finished pod keeps its last status.
    Released { cause: EndCause, at: Timestamp },
}

impl Lifecycle {
    /// Why the pod ends, once it does.
    pub fn cause(&self) -> Option<&EndCause> {
        match self {
            Self::Queued { .. } | Self::Syncing => None,
            Self::Terminating { cause, .. }
            | Self::Terminated { cause, .. }
            | Self::Released { cause, .. } => Some(cause),
        }
    }
}

/// The lifecycle from `snapshot.now` on: the only place where one state follows another.
pub fn step(facts: &Facts<'_>) -> Lifecycle {
    let snapshot = facts.snapshot;
    match snapshot.lifecycle {
        Lifecycle::Queued { .. } if snapshot.desired.deletion.is_none() => snapshot.lifecycle.clone(),
        Lifecycle::Queued { .. } | Lifecycle::Syncing => match end(facts) {
            Some((cause, deadline)) => Lifecycle::Terminating { cause, since: snapshot.now, deadline },
            None => snapshot.lifecycle.clone(),
        },
        Lifecycle::Terminating { cause, since, deadline } => {
            if facts.nothing_runs() {
                return Lifecycle::Terminated { cause: cause.clone(), at: snapshot.now };
            }
            let deadline = deletion_deadline(facts).map_or(*deadline, |newer| newer.min(*deadline));
            Lifecycle::Terminating { cause: cause.clone(), since: *since, deadline }
        }
        Lifecycle::Terminated { cause, .. } if is_released(facts) => {
            Lifecycle::Released { cause: cause.clone(), at: snapshot.now }
        }
        Lifecycle::Terminated { .. } | Lifecycle::Released { .. } => snapshot.lifecycle.clone(),
    }
}

/// Why the pod is to end now and when its time is up, if it is.
fn end(facts: &Facts<'_>) -> Option<(EndCause, Timestamp)> {
    let snapshot = facts.snapshot;
    if let Some(deletion) = &snapshot.desired.deletion {
        return Some((deletion.cause.clone(), deletion_deadline(facts)?));
    }
    if snapshot.desired.source == PodSource::Runtime {
        let noted = snapshot.observed.containers.iter().map(|instance| facts.grace(Some(instance))).max();
        let grace = noted.unwrap_or_else(|| facts.grace(None));
        return Some((EndCause::Orphaned, plus(snapshot.now, grace)));
    }
    if facts.active_deadline().is_some_and(|deadline| deadline <= snapshot.now) {
        return Some((EndCause::DeadlineExceeded, plus(snapshot.now, facts.grace(None))));
    }
    if facts.is_finished() {
        return Some((EndCause::Finished, plus(snapshot.now, facts.grace(None))));
    }
    None
}

fn deletion_deadline(facts: &Facts<'_>) -> Option<Timestamp> {
    let deletion = facts.snapshot.desired.deletion.as_ref()?;
    Some(after_seconds(deletion.requested_at, i64::from(deletion.grace_seconds)))
}

fn plus(at: Timestamp, grace: Duration) -> Timestamp {
    let grace = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
    at.saturating_add(grace).unwrap_or(Timestamp::MAX)
}

/// The folders went last; after a deletion the runtime's records are gone as well.
fn is_released(facts: &Facts<'_>) -> bool {
    let folders_gone = facts.snapshot.local.done.iter().any(|key| key.kind == StepKind::RemovePodDirs);
    let observed = facts.snapshot.observed;
    folders_gone
        && (!forgets_runtime(facts) || (observed.containers.is_empty() && observed.sandboxes.is_empty()))
}

/// A pod that is gone from its source leaves nothing in the runtime; one that ended by itself keeps
/// its containers for their logs until then.
pub fn forgets_runtime(facts: &Facts<'_>) -> bool {
    let cause = facts.snapshot.lifecycle.cause();
    let gone = matches!(cause, Some(EndCause::Deleted | EndCause::Replaced | EndCause::Orphaned));
    let deletion = facts.snapshot.desired.deletion.as_ref().map(|deletion| &deletion.cause);
    gone || matches!(deletion, Some(EndCause::Deleted | EndCause::Replaced | EndCause::Orphaned))
}
