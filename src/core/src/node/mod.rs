//! The Node object as its node writes it (kubelet-surface B6): what is created, what is set right at an
//! object that is there, and what its status says. Values in, values out.

pub mod conditions;
pub mod report;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeRuntimeHandler, NodeSpec, NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

/// Names of one image that are shown, and no more.
const MAX_IMAGE_NAMES: usize = 5;
/// The control plane's attach-detach controller works for this node.
const ATTACH_DETACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// Labels a node may give itself in the name spaces of Kubernetes (NodeRestriction, KEP-279).
const OWN_LABELS: [&str; 9] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
];

/// What a node knows of itself; most of it never changes while the daemon runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub name: String,
    pub hostname: String,
    /// Primary address first.
    pub ips: Vec<IpAddr>,
    /// Beside those every node has.
    pub labels: BTreeMap<String, String>,
    /// Only for a node that is created.
    pub taints: Vec<Taint>,
    pub provider_id: Option<String>,
    pub room: Room,
    pub system: NodeSystemInfo,
    /// Port of the node's API; `None` while it is not served.
    pub port: Option<u16>,
}

/// Resources: all there are, and what is kept from pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub cpu_millis: u64,
    pub reserved_cpu_millis: u64,
    pub memory_bytes: u64,
    pub reserved_memory_bytes: u64,
    /// Of the file system with the pods' folders.
    pub storage_bytes: u64,
    pub reserved_storage_bytes: u64,
    pub pods: u64,
    /// Page size in bytes -> bytes set aside.
    pub hugepages: BTreeMap<u64, u64>,
}

impl Room {
    /// `capacity`: all there is.
    pub fn capacity(&self) -> BTreeMap<String, Quantity> {
        self.resources(0, 0, 0)
    }

    /// `allocatable`: what pods may have. Pages set aside are no memory for others.
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let set_aside: u64 = self.hugepages.values().sum();
        self.resources(
            self.reserved_cpu_millis,
            self.reserved_memory_bytes.saturating_add(set_aside),
            self.reserved_storage_bytes,
        )
    }

    fn resources(&self, cpu_millis: u64, memory: u64, storage: u64) -> BTreeMap<String, Quantity> {
        let millis = self.cpu_millis.saturating_sub(cpu_millis);
        let cpu =
            if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") };
        let kibi = |bytes: u64| Quantity(format!("{}Ki", bytes / 1024));
        let mut all = BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu)),
            ("memory".to_owned(), kibi(self.memory_bytes.saturating_sub(memory))),
            // As the kubelet writes them: the whole in Ki, the part that pods get in bytes.
            ("pods".to_owned(), Quantity(self.pods.to_string())),
        ]);
        if self.storage_bytes > 0 {
            all.insert("ephemeral-storage".to_owned(), kibi(self.storage_bytes.saturating_sub(storage)));
        }
        for (size, bytes) in &self.hugepages {
            let amount = if *bytes == 0 { Quantity("0".to_owned()) } else { kibi(*bytes) };
            all.insert(format!("hugepages-{}", page_size(*size)), amount);
        }
        all
    }
}

/// `2Mi`, `1Gi`: the largest binary unit that divides.
fn page_size(bytes: u64) -> String {
    for (shift, unit) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Labels of `--node-labels` that the API server would refuse, with the mend.
pub fn label_problems(labels: &BTreeMap<String, String>) -> Vec<String> {
    let is_kubernetes = |group: &str| {
        ["kubernetes.io", "k8s.io"].iter().any(|own| group == *own || group.ends_with(&format!(".{own}")))
    };
    let is_nodes = |group: &str| {
        ["kubelet.kubernetes.io", "node.kubernetes.io"]
            .iter()
            .any(|own| group == *own || group.ends_with(&format!(".{own}")))
    };
    let refused = labels.keys().filter(|label| {
        let group = label.split_once('/').map_or("", |(group, _)| group);
        is_kubernetes(group) && !is_nodes(group) && !OWN_LABELS.contains(&label.as_str())
    });
    refused
        .map(|label| {
            format!(
                "{label:?} is not for a node to give itself; use node.kubernetes.io/..., or label the Node \
                 by kubectl"
            )
        })
        .collect()
}

/// The labels every node has, and those it was given.
pub fn labels(facts: &NodeFacts) -> BTreeMap<String, String> {
    let mut labels = facts.labels.clone();
    let (os, arch) = ("linux", facts.system.architecture.as_str());
    for (label, value) in [
        ("kubernetes.io/hostname", facts.hostname.as_str()),
        ("kubernetes.io/os", os),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", os),
        ("beta.kubernetes.io/arch", arch),
    ] {
        labels.insert(label.to_owned(), value.to_owned());
    }
    labels
}

/// The object to create.
pub fn new_node(facts: &NodeFacts, status: NodeStatus) -> Node {
    let annotations = BTreeMap::from([(ATTACH_DETACH.to_owned(), "true".to_owned())]);
    Node {
        metadata: ObjectMeta {
            name: Some(facts.name.clone()),
            labels: Some(labels(facts)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            provider_id: facts.provider_id.clone(),
            taints: Some(facts.taints.clone()).filter(|taints| !taints.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

/// What is set right at an object that was there before: labels, the annotation, a provider id that is
/// missing. Taints and everything a person may have set since stay. A strategic merge patch.
pub fn reconcile(facts: &NodeFacts, there: &Node) -> Option<Value> {
    let missing = |wanted: BTreeMap<String, String>, has: Option<&BTreeMap<String, String>>| {
        let differs = |(key, value): &(String, String)| has.and_then(|has| has.get(key)) != Some(value);
        wanted.into_iter().filter(differs).collect::<BTreeMap<_, _>>()
    };
    let labels = missing(labels(facts), there.metadata.labels.as_ref());
    let annotation = BTreeMap::from([(ATTACH_DETACH.to_owned(), "true".to_owned())]);
    let annotations = missing(annotation, there.metadata.annotations.as_ref());
    let has_id = there.spec.as_ref().and_then(|spec| spec.provider_id.as_ref()).is_some();
    let provider = facts.provider_id.as_ref().filter(|_| !has_id);
    if labels.is_empty() && annotations.is_empty() && provider.is_none() {
        return None;
    }
    let mut patch = json!({"metadata": {"labels": labels, "annotations": annotations}});
    if let Some(id) = provider {
        patch["spec"] = json!({"providerID": id});
    }
    Some(patch)
}

/// The status of now. `images` come largest first and bounded by the caller's setting.
pub fn node_status(
    facts: &NodeFacts,
    conditions: Vec<NodeCondition>,
    images: Vec<ContainerImage>,
    handlers: Vec<NodeRuntimeHandler>,
) -> NodeStatus {
    let mut addresses: Vec<NodeAddress> = facts
        .ips
        .iter()
        .map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.to_string() })
        .collect();
    addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: facts.hostname.clone() });
    NodeStatus {
        addresses: Some(addresses),
        allocatable: Some(facts.room.allocatable()),
        capacity: Some(facts.room.capacity()),
        conditions: Some(conditions),
        daemon_endpoints: facts.port.map(|port| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(port) }),
        }),
        images: Some(images).filter(|images| !images.is_empty()),
        node_info: Some(facts.system.clone()),
        runtime_handlers: Some(handlers).filter(|handlers| !handlers.is_empty()),
        ..NodeStatus::default()
    }
}

/// Images as the status shows them: largest first, at most `max` (`None`: all), few names each.
pub fn images(mut all: Vec<(Vec<String>, u64)>, max: Option<usize>) -> Vec<ContainerImage> {
    all.retain(|(names, _)| !names.is_empty());
    all.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
    all.truncate(max.unwrap_or(usize::MAX));
    let image = |(mut names, bytes): (Vec<String>, u64)| {
        names.truncate(MAX_IMAGE_NAMES);
        ContainerImage { names: Some(names), size_bytes: i64::try_from(bytes).ok() }
    };
    all.into_iter().map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn facts() -> NodeFacts {
        NodeFacts {
            name: "n1".into(),
            hostname: "n1.example".into(),
            ips: vec!["10.0.0.1".parse().unwrap()],
            labels: BTreeMap::from([("node.kubernetes.io/pool".into(), "a".into())]),
            room: Room {
                cpu_millis: 2000,
                reserved_cpu_millis: 150,
                memory_bytes: 4 << 30,
                reserved_memory_bytes: 100 << 20,
                storage_bytes: 1 << 30,
                reserved_storage_bytes: 1 << 20,
                pods: 110,
                hugepages: BTreeMap::from([(2 << 20, 64 << 20)]),
            },
            system: NodeSystemInfo { architecture: "amd64".into(), ..NodeSystemInfo::default() },
            ..NodeFacts::default()
        }
    }

    #[test]
    fn resources_are_spelled_as_the_kubelet_spells_them() {
        let room = facts().room;
        let text = |all: BTreeMap<String, Quantity>| {
            all.into_iter().map(|(name, amount)| format!("{name}={}", amount.0)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            text(room.capacity()),
            "cpu=2 ephemeral-storage=1048576Ki hugepages-2Mi=65536Ki memory=4194304Ki pods=110"
        );
        assert_eq!(
            text(room.allocatable()),
            "cpu=1850m ephemeral-storage=1047552Ki hugepages-2Mi=65536Ki memory=4026368Ki pods=110"
        );
    }

    #[test]
    fn an_object_that_is_there_keeps_what_others_set() {
        let facts = facts();
        let mut there = new_node(&facts, NodeStatus::default());
        assert_eq!(reconcile(&facts, &there), None);
        let labels = there.metadata.labels.as_mut().unwrap();
        labels.insert("team".into(), "x".into());
        labels.insert("kubernetes.io/arch".into(), "wrong".into());
        let patch = reconcile(&facts, &there).unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"labels": {"kubernetes.io/arch": "amd64"}, "annotations": {}}})
        );
        there.spec = None;
        let given = NodeFacts { provider_id: Some("x://1".into()), ..facts };
        assert_eq!(reconcile(&given, &there).unwrap()["spec"], json!({"providerID": "x://1"}));
    }

    #[test]
    fn labels_a_node_may_not_give_itself_are_named() {
        let labels = [
            "topology.kubernetes.io/zone",
            "node.kubernetes.io/x",
            "my.node.kubernetes.io/y",
            "team",
            "a.b/c",
        ];
        let refused = ["node-role.kubernetes.io/control-plane", "kubernetes.io/x", "x.k8s.io/y"];
        let map = |labels: &[&str]| labels.iter().map(|label| ((*label).to_owned(), String::new())).collect();
        assert_eq!(label_problems(&map(&labels)), Vec::<String>::new());
        assert_eq!(label_problems(&map(&refused)).len(), refused.len());
    }

    #[test]
    fn images_are_largest_first_and_bounded() {
        let name = |name: &str| vec![name.to_owned()];
        let all = vec![(name("a"), 1), (name("b"), 3), (name("c"), 2), (vec![], 9)];
        let shown = images(all, Some(2));
        let names: Vec<_> = shown.iter().filter_map(|image| image.names.as_ref()?.first().cloned()).collect();
        assert_eq!(names, ["b", "c"]);
    }
}
