//! What Services need of the node's own object in the API: its zone, its pod networks, and whether it is
//! about to go. One watch of one object; what follows from it is the dataplane's and the health server's.

use longshore_cluster::{ApiClient, News, Selector, Watch, path::Path};
use longshore_core::service::cidr::Cidr;
use serde::Deserialize;

use crate::dataplane::{Change, DataplaneHandle};

const ZONE: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler's mark on a node it is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// The few fields of a Node that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct OwnNode {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    labels: Option<std::collections::BTreeMap<String, String>>,
    deletion_timestamp: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<Taint>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Taint {
    key: String,
}

impl OwnNode {
    fn zone(&self) -> Option<String> {
        self.metadata.labels.as_ref()?.get(ZONE).cloned()
    }

    fn pod_networks(&self) -> Vec<Cidr> {
        self.spec.pod_cidrs.iter().flatten().filter_map(|text| text.parse().ok()).collect()
    }

    /// Load balancers may send new connections here.
    fn is_eligible(&self) -> bool {
        let marked = self.spec.taints.iter().flatten().any(|taint| taint.key == TO_BE_DELETED);
        self.metadata.deletion_timestamp.is_none() && !marked
    }
}

/// Runs until the daemon ends.
pub async fn watch(client: ApiClient, name: String, dataplane: DataplaneHandle) {
    let selector = Selector::all(Path::nodes()).fields(format!("metadata.name={name}"));
    let take = move |news: News<OwnNode>| match news {
        News::All(all) => match all.first() {
            Some((_, node)) => tell(&dataplane, node),
            None => tracing::warn!(node = name, "the API server has no such node yet"),
        },
        News::Set(_, node) => tell(&dataplane, &node),
        // Its rules stay: pods may still end their connections.
        News::Gone(..) => dataplane.health().set_node_eligible(false),
        News::Unreadable(key, problem) => {
            tracing::error!(object = %key, problem, "the node's own object cannot be read");
        }
    };
    Watch::new(client, selector).run(take).await;
}

fn tell(dataplane: &DataplaneHandle, node: &OwnNode) {
    dataplane.health().set_node_eligible(node.is_eligible());
    dataplane.tell(Change::Zone(node.zone()));
    dataplane.tell(Change::PodNetworks(node.pod_networks()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_its_zone_its_networks_and_whether_it_stays() {
        let read = |text: &str| serde_json::from_str::<OwnNode>(text).unwrap();
        let node = read(
            r#"{"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}},
                "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "bad", "fd00:1::/64"],
                         "taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}}"#,
        );
        assert_eq!(node.zone().as_deref(), Some("a"));
        assert_eq!(node.pod_networks(), ["10.244.1.0/24", "fd00:1::/64"].map(|text| text.parse().unwrap()));
        let table = [
            (r#"{"metadata": {}}"#, true),
            (r#"{"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}"#, false),
            (r#"{"metadata": {}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}}"#, false),
            (r#"{"metadata": {"labels": null}, "spec": {"taints": null}}"#, true),
        ];
        for (text, want) in table {
            assert_eq!(read(text).is_eligible(), want, "{text}");
        }
        assert!(node.is_eligible());
    }
}
