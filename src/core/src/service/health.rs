//! What a load balancer hears on `healthCheckNodePort`: whether this node has endpoints of its own
//! for a Service with external policy Local. The listeners live in the agent.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

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

/// Ready endpoints on this node, counted by address: two ports of one pod are one endpoint.
pub fn local_ready<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> BTreeSet<IpAddr> {
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
}
