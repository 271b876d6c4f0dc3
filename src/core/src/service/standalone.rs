//! What a control plane would do for Services, for a node without one: give addresses and node ports,
//! and keep the slices of Services with selectors in step with the node's pods. A value that takes one
//! change and returns what the dataplane should hear; it never acts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::allocate::{self, Allocator, Pools};
use super::label_index::LabelIndex;
use super::select::{BackendPod, select_endpoints};
use super::types::{EndpointSlice, Service};
use crate::ids::{ObjectKey, PodKey};

/// What the dataplane should hear.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Service(Box<Service>),
    ServiceGone(ObjectKey),
    Slice(Box<EndpointSlice>),
    SliceGone(ObjectKey),
    /// What a Service asked for and did not get, one sentence each: addresses and ports that are another's,
    /// target ports that pods do not have.
    Lacking(ObjectKey, Vec<String>),
}

#[derive(Debug)]
pub struct Standalone {
    /// Services as the manifests have them, and what each was given.
    allocator: Allocator,
    /// By the first label of their selector: a pod without it is not selected.
    selectors: LabelIndex<ObjectKey>,
    pods: BTreeMap<PodKey, BackendPod>,
    labels: LabelIndex<PodKey>,
    /// As given to the dataplane.
    served: BTreeMap<ObjectKey, Service>,
    selected: BTreeMap<ObjectKey, BTreeMap<ObjectKey, EndpointSlice>>,
    /// Of those that have some, as told.
    lacking: BTreeMap<ObjectKey, Vec<String>>,
    looks: u64,
}

impl Standalone {
    pub fn new(pools: Pools) -> Self {
        Standalone {
            allocator: Allocator::new(pools),
            selectors: LabelIndex::default(),
            pods: BTreeMap::new(),
            labels: LabelIndex::default(),
            served: BTreeMap::new(),
            selected: BTreeMap::new(),
            lacking: BTreeMap::new(),
            looks: 0,
        }
    }

    /// Take a Service of a manifest as it is now.
    pub fn upsert_service(&mut self, service: impl Into<Arc<Service>>) -> Vec<Output> {
        let service = service.into();
        let key = service.key();
        self.forget_selector(&key);
        self.selectors.insert(&key.namespace, service.spec.selector.iter().take(1), &key);
        let touched = self.allocator.upsert(service);
        self.fill(touched)
    }

    pub fn remove_service(&mut self, key: &ObjectKey) -> Vec<Output> {
        if self.allocator.service(key).is_none() {
            return Vec::new();
        }
        self.forget_selector(key);
        self.served.remove(key);
        self.lacking.remove(key);
        let slices = self.selected.remove(key).unwrap_or_default();
        let mut out: Vec<Output> = slices.into_keys().map(Output::SliceGone).collect();
        out.push(Output::ServiceGone(key.clone()));
        // What it held may now go to a Service that wanted it.
        let touched = self.allocator.remove(key);
        out.extend(self.fill(touched));
        out
    }

    /// Take a pod as it is now.
    pub fn upsert_pod(&mut self, pod: BackendPod) -> Vec<Output> {
        let key = pod.key.clone();
        let before = self.pods.insert(key.clone(), pod.clone());
        if before.as_ref() == Some(&pod) {
            return Vec::new();
        }
        let mut touched = self.selecting(&pod);
        if let Some(before) = before {
            touched.extend(self.selecting(&before));
            self.labels.remove(&key.namespace, &before.labels, &key);
        }
        self.labels.insert(&key.namespace, &pod.labels, &key);
        self.reselect(touched)
    }

    pub fn remove_pod(&mut self, key: &PodKey) -> Vec<Output> {
        let Some(pod) = self.pods.remove(key) else { return Vec::new() };
        self.labels.remove(&key.namespace, &pod.labels, key);
        let touched = self.selecting(&pod);
        self.reselect(touched)
    }

    /// The Services with their addresses, for the environment of pods.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.served.values()
    }

    /// How many Services and pods were looked at so far, for tests of growth.
    pub fn looks(&self) -> u64 {
        self.looks + self.allocator.looks()
    }

    fn forget_selector(&mut self, key: &ObjectKey) {
        if let Some(service) = self.allocator.service(key) {
            self.selectors.remove(&key.namespace, service.spec.selector.iter().take(1), key);
        }
    }

    fn selecting(&mut self, pod: &BackendPod) -> BTreeSet<ObjectKey> {
        let mut found = BTreeSet::new();
        for key in self.selectors.of(&pod.key.namespace, &pod.labels) {
            self.looks += 1;
            let selector = self.allocator.service(key).map(|service| &service.spec.selector);
            let mut labels = selector.into_iter().flatten();
            if labels.all(|(label, value)| pod.labels.get(label) == Some(value)) {
                found.insert(key.clone());
            }
        }
        found
    }

    /// Writes what was given into these Services, and tells those that differ.
    fn fill(&mut self, touched: BTreeSet<ObjectKey>) -> Vec<Output> {
        let mut out = Vec::new();
        for key in &touched {
            let Some(service) = self.allocator.service(key) else { continue };
            let mut filled = service.clone();
            if let Some(given) = self.allocator.given(key).filter(|_| allocate::wants_address(service)) {
                given.fill(&mut filled);
            }
            if self.served.get(key) != Some(&filled) {
                self.served.insert(key.clone(), filled.clone());
                out.push(Output::Service(Box::new(filled)));
            }
        }
        out.extend(self.reselect(touched));
        out
    }

    fn reselect(&mut self, services: BTreeSet<ObjectKey>) -> Vec<Output> {
        let mut out = Vec::new();
        for key in services {
            let Some(service) = self.served.get(&key) else { continue };
            let labels = service.spec.selector.iter().take(1);
            let pods: Vec<&BackendPod> =
                self.labels.of(&key.namespace, labels).filter_map(|pod| self.pods.get(pod)).collect();
            self.looks += pods.len() as u64;
            let selection = select_endpoints(service, pods.into_iter());
            let before = self.selected.remove(&key).unwrap_or_default();
            let after: BTreeMap<ObjectKey, EndpointSlice> =
                selection.slices.into_iter().map(|slice| (slice.key(), slice)).collect();
            for (name, slice) in &after {
                if before.get(name) != Some(slice) {
                    out.push(Output::Slice(Box::new(slice.clone())));
                }
            }
            let gone = before.into_keys().filter(|name| !after.contains_key(name));
            out.extend(gone.map(Output::SliceGone));
            self.selected.insert(key.clone(), after);
            out.extend(self.newly_lacking(key, selection.notes));
        }
        out
    }

    fn newly_lacking(&mut self, key: ObjectKey, selection: Vec<String>) -> Option<Output> {
        let mut now: Vec<String> = self.allocator.conflicts_of(&key).map(ToString::to_string).collect();
        now.extend(selection);
        let told = match now.is_empty() {
            true => self.lacking.remove(&key),
            false => self.lacking.insert(key.clone(), now.clone()),
        };
        (told.unwrap_or_default() != now).then_some(Output::Lacking(key, now))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::types::ProtocolName;
    use super::*;

    fn service(name: &str, spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})).unwrap()
    }

    fn pod(name: &str, app: &str, ready: bool) -> BackendPod {
        BackendPod {
            key: PodKey::new("ns", name),
            labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            ips: vec!["10.1.0.1".parse().unwrap()],
            node: "n1".to_owned(),
            ready,
            terminating: false,
            ports: vec![super::super::select::NamedPort {
                name: "http".to_owned(),
                protocol: ProtocolName::Tcp,
                number: 8080,
            }],
        }
    }

    fn shown(out: &[Output]) -> Vec<String> {
        out.iter()
            .map(|output| match output {
                Output::Service(service) => format!("service {}", service.metadata.name),
                Output::ServiceGone(key) => format!("service {} gone", key.name),
                Output::Slice(slice) => format!("slice {} {}", slice.metadata.name, slice.endpoints.len()),
                Output::SliceGone(key) => format!("slice {} gone", key.name),
                Output::Lacking(key, lacking) => format!("{}: {}", key.name, lacking.join("; ")),
            })
            .collect()
    }

    fn standalone() -> Standalone {
        Standalone::new(Pools {
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            node_ports: 30000..=32767,
        })
    }

    #[test]
    fn services_and_pods_in_any_order_end_in_slices() {
        let mut node = standalone();
        let web = service(
            "web",
            json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}),
        );
        assert_eq!(shown(&node.upsert_pod(pod("a", "web", true))), [] as [&str; 0]);
        assert_eq!(shown(&node.upsert_service(web.clone())), ["service web", "slice web-selected-ipv4-0 1"]);
        assert_eq!(shown(&node.upsert_service(web)), [] as [&str; 0]);
        assert_eq!(shown(&node.upsert_pod(pod("b", "web", false))), ["slice web-selected-ipv4-0 2"]);
        assert_eq!(shown(&node.upsert_pod(pod("b", "web", false))), [] as [&str; 0]);
        assert_eq!(
            shown(&node.upsert_pod(pod("b", "api", false))),
            ["slice web-selected-ipv4-0 1"],
            "relabelled"
        );
        assert_eq!(shown(&node.remove_pod(&PodKey::new("ns", "a"))), ["slice web-selected-ipv4-0 gone"]);
        assert_eq!(shown(&node.upsert_pod(pod("a", "web", true))), ["slice web-selected-ipv4-0 1"]);
        assert_eq!(
            shown(&node.remove_service(&ObjectKey::new("ns", "web"))),
            ["slice web-selected-ipv4-0 gone", "service web gone"]
        );
        assert!(node.selected.is_empty() && node.lacking.is_empty());
        node.remove_pod(&PodKey::new("ns", "a"));
        node.remove_pod(&PodKey::new("ns", "b"));
        assert!(node.selectors.is_empty() && node.labels.is_empty());
    }

    #[test]
    fn a_change_looks_at_what_it_touches_however_many_there_are() {
        let looks = |count: usize| {
            let mut node = standalone();
            let web = |number: usize, port: u16| {
                let selector = json!({"app": format!("web-{number}")});
                service(&format!("s{number}"), json!({"selector": selector, "ports": [{"port": port}]}))
            };
            for number in 0..count {
                node.upsert_service(web(number, 80));
                node.upsert_pod(pod(&format!("p{number}"), &format!("web-{number}"), true));
            }
            let before = node.looks();
            node.upsert_service(web(7, 81));
            node.upsert_pod(pod("p7", "web-7", false));
            node.remove_pod(&PodKey::new("ns", "p8"));
            node.remove_service(&ObjectKey::new("ns", "s9"));
            node.looks() - before
        };
        assert_eq!(looks(10), looks(2000));
    }

    #[test]
    fn a_clash_is_told_until_one_of_them_goes() {
        let mut node = standalone();
        let spec = json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]});
        node.upsert_service(service("a", spec.clone()));
        let taken =
            "b: clusterIP 10.96.0.10 is taken by Service ns/a; give one of them another or leave it empty";
        assert_eq!(shown(&node.upsert_service(service("b", spec.clone()))), ["service b", taken]);
        assert_eq!(shown(&node.upsert_service(service("b", spec))), [] as [&str; 0], "told already");
        let out = node.remove_service(&ObjectKey::new("ns", "a"));
        assert_eq!(shown(&out), ["service a gone", "service b", "b: "]);
        assert_eq!(node.services().next().unwrap().spec.cluster_ip, "10.96.0.10");
    }

    #[test]
    fn a_target_port_that_a_pod_lacks_is_told_while_it_is_there() {
        let mut node = standalone();
        let ports = json!([{"name": "web", "port": 80, "targetPort": "https"}]);
        node.upsert_service(service("web", json!({"selector": {"app": "web"}, "ports": ports})));
        let lacks = "web: pod ns/a has no tcp port named \"https\", which port 80 is to lead to";
        assert_eq!(shown(&node.upsert_pod(pod("a", "web", true))), [lacks]);
        assert_eq!(shown(&node.remove_pod(&PodKey::new("ns", "a"))), ["web: "]);
    }
}
