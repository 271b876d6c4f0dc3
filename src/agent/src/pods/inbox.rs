//! What waits for one pod's worker. Latest wins for each kind of news, so a busy worker never has
//! more than one of each to look at and nobody who brings news ever waits.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use longshore_core::ids::ContainerId;
use longshore_core::pod::desired::{Deletion, DesiredPod};
use longshore_core::pod::local::ProbeResult;
use longshore_core::pod::observed::{ObservedContainer, ObservedPod, ObservedSandbox};
use longshore_core::pod::snapshot::ProbeKind;
use tokio::sync::Notify;

/// News for one worker, taken as a whole.
#[derive(Debug, Default)]
pub(super) struct Mail {
    pub desired: Option<DesiredPod>,
    /// The node itself wants the pod to end.
    pub end: Option<Deletion>,
    pub reading: Option<Reading>,
    /// In the order they happened.
    pub parts: Vec<Part>,
    pub verdicts: BTreeMap<(ContainerId, ProbeKind), ProbeResult>,
    /// The life of this pod before this one left nothing behind.
    pub unblocked: bool,
}

/// Everything the runtime has of the pod.
#[derive(Debug)]
pub(super) struct Reading {
    pub pod: ObservedPod,
    /// From the audit: news in it is something an event should have brought.
    pub audit: bool,
}

/// What an event of the runtime tells: one sandbox with its containers, or that something is gone.
#[derive(Clone, Debug)]
pub struct Part {
    pub at: Timestamp,
    pub sandbox: Option<ObservedSandbox>,
    pub containers: Vec<ObservedContainer>,
    /// Id of the container or sandbox that was removed.
    pub removed: Option<String>,
}

/// More events than this for one pod between two turns of its worker are not kept: the newest tell
/// the state, and the audit finds the rest.
const MOST_PARTS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Inbox {
    mail: Mutex<Mail>,
    wake: Notify,
}

impl Inbox {
    pub fn desire(&self, desired: DesiredPod) {
        self.lock().desired = Some(desired);
        self.wake.notify_one();
    }

    pub fn end(&self, deletion: Deletion) {
        self.lock().end = Some(deletion);
        self.wake.notify_one();
    }

    pub fn read(&self, reading: Reading) {
        {
            let mut mail = self.lock();
            if mail.reading.as_ref().is_some_and(|old| old.pod.observed_at > reading.pod.observed_at) {
                return;
            }
            mail.reading = Some(reading);
        }
        self.wake.notify_one();
    }

    pub fn part(&self, part: Part) {
        {
            let parts = &mut self.lock().parts;
            if parts.len() >= MOST_PARTS {
                parts.remove(0);
            }
            parts.push(part);
        }
        self.wake.notify_one();
    }

    pub fn verdict(&self, id: ContainerId, kind: ProbeKind, result: ProbeResult) {
        self.lock().verdicts.insert((id, kind), result);
        self.wake.notify_one();
    }

    pub fn unblock(&self) {
        self.lock().unblocked = true;
        self.wake.notify_one();
    }

    /// Takes all there is, which may be nothing.
    pub fn take(&self) -> Mail {
        std::mem::take(&mut *self.lock())
    }

    /// Resolves once something came in since the last time it did.
    pub async fn arrived(&self) {
        self.wake.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
