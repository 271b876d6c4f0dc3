//! The planner: one snapshot in, the steps that should be running now out. It keeps no memory: the
//! agent starts what is not in flight, folds the outcomes in and asks again, so that the order of
//! things follows from what is there, not from a script.
//!
//! The rules live in one file per stage of a pod's life; this one only picks the stage.

mod containers;
mod draft;
mod release;
mod sandbox;
mod sync;
mod terminate;
mod volumes;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use crate::pod::facts::Facts;
use crate::pod::lifecycle::{self, Lifecycle};
use crate::pod::snapshot::{Plan, PodSnapshot};
use crate::probe;
use draft::Draft;

/// What to do for the pod now. A step in flight may be missing from the plan (its answer decides
/// what follows); only `cancel` stops one.
pub fn plan(snapshot: &PodSnapshot<'_>) -> Plan {
    let facts = Facts::new(snapshot);
    let lifecycle = lifecycle::step(&facts);
    let mut draft = Draft::new(&facts);
    match &lifecycle {
        Lifecycle::Queued { behind } => draft.wait(
            "Queued",
            None,
            format!("waits until the pod's former life ({behind}) has ended"),
            None,
        ),
        Lifecycle::Syncing => {
            sync::sync(&mut draft);
            draft.probes(probe::targets(&facts, false));
        }
        Lifecycle::Terminating { cause, deadline, .. } => {
            terminate::terminate(&mut draft, cause, *deadline);
            draft.probes(probe::targets(&facts, true));
        }
        Lifecycle::Terminated { .. } => release::release(&mut draft),
        Lifecycle::Released { .. } => {
            release::forget(&mut draft);
        }
    }
    draft.finish(lifecycle)
}
