//! The proxy's health as the task and its inbox keep it and the servers read it: a lock around the
//! decision in `longshore_core::service::health`, so that a task that hangs is told by those who ask.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_core::service::Family;
use longshore_core::service::health::SyncHealth;

use crate::pods::Clock;

/// Whether the rules keep up; cheap to clone.
#[derive(Clone, Debug)]
pub struct ProxyHealth {
    shared: Arc<Mutex<Shared>>,
    clock: Clock,
    families: Arc<[Family]>,
}

#[derive(Debug)]
struct Shared {
    sync: SyncHealth,
    /// A change that waits this long makes the proxy unhealthy.
    timeout: Duration,
    /// No deletion of the Node object is under way.
    node_eligible: bool,
}

impl ProxyHealth {
    pub(super) fn new(clock: Clock, families: &[Family], timeout: Duration) -> Self {
        let shared = Shared { sync: SyncHealth::default(), timeout, node_eligible: true };
        ProxyHealth { shared: Arc::new(Mutex::new(shared)), clock, families: families.into() }
    }

    pub(super) fn queue(&self) {
        let now = self.clock.now();
        self.lock().sync.queue(now);
    }

    pub(super) fn take(&self) {
        self.lock().sync.take();
    }

    pub(super) fn update(&self) {
        let now = self.clock.now();
        self.lock().sync.update(now);
    }

    /// The mode that serves has its own period.
    pub(super) fn set_timeout(&self, timeout: Duration) {
        self.lock().timeout = timeout;
    }

    /// False while the Node object is being deleted, or an autoscaler has marked it for that.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.lock().node_eligible = eligible;
    }

    /// What `serviceProxyHealthy` says.
    pub fn is_healthy(&self) -> bool {
        let now = self.clock.now();
        let shared = self.lock();
        shared.sync.is_healthy(now, shared.timeout)
    }

    /// Whether `/healthz` is well, and its body.
    pub fn healthz(&self) -> (bool, serde_json::Value) {
        let now = self.clock.now();
        let shared = self.lock();
        shared.sync.report((now, shared.timeout), &self.families, Some(shared.node_eligible))
    }

    /// Whether `/livez` is well, and its body: a node that is being deleted still lives.
    pub fn livez(&self) -> (bool, serde_json::Value) {
        let now = self.clock.now();
        let shared = self.lock();
        shared.sync.report((now, shared.timeout), &self.families, None)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
