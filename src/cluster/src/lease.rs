//! The node's Lease: the sign of life the control plane goes by (KEP-589). Renewed four times per
//! duration, on a connection of its own, so that no amount of other traffic can hold it up.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::client::{ApiClient, PatchKind};
use crate::error::ApiError;
use crate::path::Path;

const NAMESPACE: &str = "kube-node-lease";
/// Tries per renewal, and the pause between two.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(400);

/// One node's lease.
#[derive(Clone, Debug)]
pub struct Lease {
    pub node: String,
    pub duration_seconds: u32,
}

impl Lease {
    /// Renews for ever; `owner` is the Node's uid once it is known, which makes the Lease go with it.
    pub async fn keep(self, client: ApiClient, owner: watch::Receiver<Option<String>>) {
        let every = Duration::from_secs(u64::from(self.duration_seconds.max(4))) / 4;
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            ticks.tick().await;
            let owner = owner.borrow().clone();
            match self.renew(&client, owner.as_deref(), every).await {
                Ok(()) if failing => {
                    tracing::info!(node = self.node, "the node's lease is renewed again");
                    failing = false;
                }
                Ok(()) => {}
                Err(error) if failing => {
                    tracing::debug!(node = self.node, "lease: {}", error.one_line());
                }
                Err(error) => {
                    tracing::warn!(
                        node = self.node,
                        "the node's lease cannot be renewed: {}",
                        error.one_line()
                    );
                    failing = true;
                }
            }
        }
    }

    async fn renew(&self, client: &ApiClient, owner: Option<&str>, within: Duration) -> Result<(), ApiError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let once = tokio::time::timeout(within, self.renew_once(client, owner)).await;
            let call = || format!("PATCH {}", Path::lease(NAMESPACE, &self.node));
            match once.unwrap_or_else(|_| Err(ApiError::Timeout { call: call(), after: within })) {
                Ok(()) => return Ok(()),
                Err(error) if tries >= TRIES || !error.is_retryable() => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// One patch per renewal; only a Lease that is missing costs a second call.
    async fn renew_once(&self, client: &ApiClient, owner: Option<&str>) -> Result<(), ApiError> {
        let lease = self.object(owner, Timestamp::now());
        let renewed: Result<Value, _> =
            client.patch(&Path::lease(NAMESPACE, &self.node), PatchKind::Merge, &lease).await;
        match renewed {
            Err(error) if error.is_not_found() => {
                let made: Result<Value, _> = client.create(&Path::leases(NAMESPACE), &lease).await;
                match made {
                    Err(error) if error.is_already_exists() => Ok(()),
                    made => made.map(drop),
                }
            }
            renewed => renewed.map(drop),
        }
    }

    fn object(&self, owner: Option<&str>, now: Timestamp) -> Value {
        let mut metadata = json!({"name": self.node, "namespace": NAMESPACE});
        if let Some(uid) = owner {
            metadata["ownerReferences"] =
                json!([{"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid}]);
        }
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.node,
                "leaseDurationSeconds": self.duration_seconds,
                // MicroTime has exactly six digits.
                "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_spelled_as_the_api_wants_it() {
        let lease = Lease { node: "n1".into(), duration_seconds: 40 };
        let at = Timestamp::from_microsecond(1_700_000_000_000_050).unwrap();
        let object = lease.object(Some("u"), at);
        assert_eq!(object["spec"]["renewTime"], "2023-11-14T22:13:20.000050Z");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u");
        assert!(lease.object(None, at)["metadata"].get("ownerReferences").is_none());
    }
}
