//! What others hear of the proxy's health: a load balancer on `healthCheckNodePort`, whether this node
//! has endpoints of its own; anybody on `/healthz` and `/livez`, whether the rules keep up with what is
//! wanted. The listeners live in the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Family;

use super::backends::Endpoint;
use crate::ids::ObjectKey;

/// One health check port and the count behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    pub service: ObjectKey,
    pub port: u16,
    /// Ready endpoints on this node. Terminating ones still get packets but no longer count, so that
    /// the load balancer turns away before they are gone.
    pub local_endpoints: usize,
}

impl HealthCheck {
    /// The HTTP status: 200 with local endpoints on a healthy proxy, else 503.
    pub fn status(&self, proxy_healthy: bool) -> u16 {
        if self.local_endpoints > 0 && proxy_healthy { 200 } else { 503 }
    }

    /// The body load balancers and people read; the weight goes to the header
    /// `X-Load-Balancing-Endpoint-Weight`.
    pub fn body(&self, proxy_healthy: bool) -> serde_json::Value {
        serde_json::json!({
            "service": {"namespace": &*self.service.namespace, "name": &*self.service.name},
            "localEndpoints": self.local_endpoints,
            "serviceProxyHealthy": proxy_healthy,
        })
    }
}

/// What to do about the listeners of health check ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerStep {
    Close(ObjectKey),
    Open(HealthCheck),
    /// The listener stays; its count is another.
    Count(ObjectKey, usize),
}

/// From the listeners there are to those there should be. A port that goes from one Service to another
/// is closed before it is opened.
pub fn listener_steps(open: &BTreeMap<ObjectKey, HealthCheck>, wanted: &[HealthCheck]) -> Vec<ListenerStep> {
    let stays =
        |key: &ObjectKey, port: u16| wanted.iter().any(|check| check.service == *key && check.port == port);
    let gone = open.values().filter(|check| !stays(&check.service, check.port));
    let mut steps: Vec<ListenerStep> = gone.map(|check| ListenerStep::Close(check.service.clone())).collect();
    for check in wanted {
        match open.get(&check.service).filter(|old| old.port == check.port) {
            None => steps.push(ListenerStep::Open(check.clone())),
            Some(old) if old.local_endpoints != check.local_endpoints => {
                steps.push(ListenerStep::Count(check.service.clone(), check.local_endpoints));
            }
            Some(_) => {}
        }
    }
    steps
}

/// Whether the kernel's rules keep up: a change that waits longer than the time-out says no
/// (kube-proxy's `pkg/proxy/healthcheck/proxy_health.go`). Without a change there is nothing to be late
/// with, so that a quiet proxy is healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncHealth {
    /// When the oldest change came that no round has taken yet.
    queued: Option<Timestamp>,
    /// The same of those the round under way, or one that failed, has taken.
    taken: Option<Timestamp>,
    /// When a round last brought everything into the kernel.
    updated: Option<Timestamp>,
}

impl SyncHealth {
    /// Something changed that must reach the kernel.
    pub fn queue(&mut self, now: Timestamp) {
        self.queued.get_or_insert(now);
    }

    /// A round takes what waits.
    pub fn take(&mut self) {
        let queued = self.queued.take();
        self.taken = self.taken.or(queued);
    }

    /// The round brought it into the kernel.
    pub fn update(&mut self, now: Timestamp) {
        self.taken = None;
        self.updated = Some(now);
    }

    pub fn is_healthy(&self, now: Timestamp, timeout: Duration) -> bool {
        let waits = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or_default();
        self.taken.or(self.queued).is_none_or(|since| waits(since) < timeout)
    }

    /// The body of `/healthz` and, without `node_eligible`, of `/livez`, and whether all is well.
    pub fn report(
        &self,
        (now, timeout): (Timestamp, Duration),
        families: &[Family],
        node_eligible: Option<bool>,
    ) -> (bool, serde_json::Value) {
        let healthy = self.is_healthy(now, timeout);
        let well = healthy && node_eligible.unwrap_or(true);
        // As Go shows a time that was never set.
        let shown = |at: Option<Timestamp>| at.map_or("0001-01-01T00:00:00Z".to_owned(), |at| at.to_string());
        let family = |family: &Family| {
            let status = serde_json::json!({"lastUpdated": shown(self.updated), "healthy": healthy});
            (family.to_string(), status)
        };
        let mut body = serde_json::json!({
            // Dashboards of older versions take an old time here for a stuck proxy.
            "lastUpdated": if well { now.to_string() } else { shown(self.updated) },
            "currentTime": now.to_string(),
            "healthy": healthy,
            "status": families.iter().map(family).collect::<serde_json::Map<_, _>>(),
        });
        if let Some(eligible) = node_eligible {
            body["nodeEligible"] = eligible.into();
        }
        (well, body)
    }
}

/// Ready endpoints on this node, counted by address: two ports of one pod are one endpoint.
pub fn local_ready<'a>(endpoints: impl Iterator<Item = &'a Endpoint<'a>>) -> BTreeSet<IpAddr> {
    endpoints.filter(|ep| ep.local && ep.ready && !ep.terminating).map(|ep| ep.addr.ip()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_needs_local_endpoints_and_a_healthy_proxy() {
        let check = |local_endpoints| HealthCheck {
            service: ObjectKey::new("ns", "web"),
            port: 32000,
            local_endpoints,
        };
        let table = [(2, true, 200), (0, true, 503), (2, false, 503)];
        for (count, healthy, want) in table {
            assert_eq!(check(count).status(healthy), want, "{count} {healthy}");
        }
        let want =
            r#"{"localEndpoints":2,"service":{"name":"web","namespace":"ns"},"serviceProxyHealthy":true}"#;
        assert_eq!(check(2).body(true).to_string(), want);
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn health_turns_when_a_change_waits_too_long() {
        let timeout = Duration::from_secs(60);
        type Deed = fn(&mut SyncHealth);
        // (what happened, when it is asked, healthy)
        let queue: Deed = |health| health.queue(at(0));
        let queue_again: Deed = |health| health.queue(at(50));
        let take: Deed = |health| health.take();
        let update: Deed = |health| health.update(at(1));
        let table: &[(&str, &[Deed], i64, bool)] = &[
            ("nothing ever changed", &[], 10_000, true),
            ("a change waits a little", &[queue], 59, true),
            ("a change waits too long", &[queue], 60, false),
            ("the oldest counts", &[queue, queue_again], 60, false),
            ("it was done", &[queue, take, update], 10_000, true),
            ("a round hangs or failed", &[queue, take], 60, false),
            ("news during a round that ended", &[queue, take, queue_again, update], 109, true),
            ("news during a round that ended, later", &[queue, take, queue_again, update], 110, false),
            (
                "a failed round and then one that worked",
                &[queue, take, queue_again, take, update],
                10_000,
                true,
            ),
        ];
        for (what, deeds, second, want) in table {
            let mut health = SyncHealth::default();
            deeds.iter().for_each(|deed| deed(&mut health));
            assert_eq!(health.is_healthy(at(*second), timeout), *want, "{what}");
        }
    }

    #[test]
    fn a_node_that_is_being_deleted_is_alive_but_not_healthy() {
        let health = SyncHealth::default();
        let times = (at(0), Duration::from_secs(60));
        let (well, body) = health.report(times, &[Family::V4], Some(false));
        assert!(!well);
        let want = r#"{"currentTime":"2027-01-15T08:00:00Z","healthy":true,"lastUpdated":"0001-01-01T00:00:00Z","nodeEligible":false,"status":{"IPv4":{"healthy":true,"lastUpdated":"0001-01-01T00:00:00Z"}}}"#;
        assert_eq!(body.to_string(), want);
        let (well, body) = health.report(times, &Family::ALL, None);
        assert!(well && body.get("nodeEligible").is_none(), "{body}");
        assert_eq!(body["status"].as_object().unwrap().len(), 2);
        assert_eq!(body["lastUpdated"], body["currentTime"]);
    }

    #[test]
    fn listeners_follow_the_services() {
        let check = |name: &str, port: u16, local_endpoints: usize| HealthCheck {
            service: ObjectKey::new("ns", name),
            port,
            local_endpoints,
        };
        let open = BTreeMap::from_iter([check("a", 1, 2), check("b", 2, 0), check("c", 3, 1)].map(|check| {
            let key = check.service.clone();
            (key, check)
        }));
        let wanted = [check("a", 1, 3), check("c", 2, 1), check("d", 4, 0)];
        let key = |name: &str| ObjectKey::new("ns", name);
        assert_eq!(
            listener_steps(&open, &wanted),
            [
                ListenerStep::Close(key("b")),
                ListenerStep::Close(key("c")),
                ListenerStep::Count(key("a"), 3),
                ListenerStep::Open(check("c", 2, 1)),
                ListenerStep::Open(check("d", 4, 0)),
            ]
        );
        let all: Vec<HealthCheck> = open.values().cloned().collect();
        assert_eq!(listener_steps(&open, &all), []);
    }
}
