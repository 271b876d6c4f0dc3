//! Changes that wait for the dataplane task: the newest of each object, so that a burst costs one look
//! at each and the queue is as long as there are objects.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use longshore_core::ids::ObjectKey;
use longshore_core::service::cidr::Cidr;
use longshore_core::service::types::{EndpointSlice, Service};
use tokio::sync::Notify;

use super::{Change, ProxyHealth, ProxyMetrics};
use crate::pods::Clock;

#[derive(Debug)]
pub(super) struct Inbox {
    pending: Mutex<Pending>,
    arrived: Notify,
    clock: Clock,
    health: ProxyHealth,
    metrics: ProxyMetrics,
    /// Before the sources are complete nothing is programmed, and nothing is late.
    complete: AtomicBool,
}

#[derive(Debug, Default)]
struct Pending {
    slices: BTreeMap<ObjectKey, Option<Box<EndpointSlice>>>,
    services: BTreeMap<ObjectKey, Option<Box<Service>>>,
    lacking: BTreeMap<ObjectKey, Vec<String>>,
    zone: Option<Option<String>>,
    pod_networks: Option<Vec<Cidr>>,
    service_ranges: Option<Vec<Cidr>>,
    host_addresses: bool,
    sources_synced: bool,
}

impl Inbox {
    pub(super) fn new(clock: Clock, health: ProxyHealth, metrics: ProxyMetrics) -> Self {
        Inbox {
            pending: Mutex::default(),
            arrived: Notify::new(),
            clock,
            health,
            metrics,
            complete: AtomicBool::new(false),
        }
    }

    pub(super) fn put(&self, change: Change) {
        match &change {
            Change::Service(_) | Change::ServiceGone(_) => self.metrics.service_queued(self.clock.now()),
            Change::Slice(_) | Change::SliceGone(_) => self.metrics.endpoints_queued(self.clock.now()),
            Change::SourcesSynced => self.complete.store(true, Ordering::Relaxed),
            Change::Lacking(..)
            | Change::Zone(_)
            | Change::PodNetworks(_)
            | Change::ServiceRanges(_)
            | Change::HostAddresses => {}
        }
        if self.complete.load(Ordering::Relaxed) {
            self.health.queue();
        }
        {
            let mut pending = self.lock();
            match change {
                Change::Service(service) => drop(pending.services.insert(service.key(), Some(service))),
                Change::ServiceGone(key) => drop(pending.services.insert(key, None)),
                Change::Slice(slice) => drop(pending.slices.insert(slice.key(), Some(slice))),
                Change::SliceGone(key) => drop(pending.slices.insert(key, None)),
                Change::Lacking(key, lacking) => drop(pending.lacking.insert(key, lacking)),
                Change::Zone(zone) => pending.zone = Some(zone),
                Change::PodNetworks(networks) => pending.pod_networks = Some(networks),
                Change::ServiceRanges(ranges) => pending.service_ranges = Some(ranges),
                Change::HostAddresses => pending.host_addresses = true,
                Change::SourcesSynced => pending.sources_synced = true,
            }
        }
        self.arrived.notify_one();
    }

    /// Returns once something has arrived since the last `take`.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Everything that waits: endpoints before Services, so that a Service that is new is seen with its
    /// endpoints at once, and last that the sources are complete.
    pub(super) fn take(&self) -> Vec<Change> {
        let pending = std::mem::take(&mut *self.lock());
        let mut changes =
            Vec::with_capacity(pending.slices.len() + pending.services.len() + pending.lacking.len() + 5);
        changes.extend(pending.zone.map(Change::Zone));
        changes.extend(pending.pod_networks.map(Change::PodNetworks));
        changes.extend(pending.service_ranges.map(Change::ServiceRanges));
        for (key, slice) in pending.slices {
            changes.push(slice.map_or(Change::SliceGone(key), Change::Slice));
        }
        for (key, service) in pending.services {
            changes.push(service.map_or(Change::ServiceGone(key), Change::Service));
        }
        changes.extend(pending.lacking.into_iter().map(|(key, lacking)| Change::Lacking(key, lacking)));
        changes.extend(pending.host_addresses.then_some(Change::HostAddresses));
        changes.extend(pending.sources_synced.then_some(Change::SourcesSynced));
        changes
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
