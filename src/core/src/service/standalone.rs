//! What a control plane would do for Services, for a node without one: give addresses and node ports,
//! and keep the slices of Services with selectors in step with the node's pods. A value that takes one
//! change and returns what the dataplane should hear; it never acts.

use std::collections::{BTreeMap, BTreeSet};

use super::allocate::{self, Assignment, Conflict, Pools};
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
}

#[derive(Debug)]
pub struct Standalone {
    pools: Pools,
    /// As the manifests have them.
    services: BTreeMap<ObjectKey, Service>,
    pods: BTreeMap<PodKey, BackendPod>,
    assignment: Assignment,
    /// As given to the dataplane.
    served: BTreeMap<ObjectKey, Service>,
    selected: BTreeMap<ObjectKey, BTreeMap<ObjectKey, EndpointSlice>>,
    notes: BTreeMap<ObjectKey, Vec<String>>,
}

impl Standalone {
    pub fn new(pools: Pools) -> Self {
        Standalone {
            pools,
            services: BTreeMap::new(),
            pods: BTreeMap::new(),
            assignment: Assignment::default(),
            served: BTreeMap::new(),
            selected: BTreeMap::new(),
            notes: BTreeMap::new(),
        }
    }

    /// Take a Service of a manifest as it is now.
    pub fn upsert_service(&mut self, service: Service) -> Vec<Output> {
        let key = service.key();
        self.services.insert(key.clone(), service);
        self.reassign(&key)
    }

    pub fn remove_service(&mut self, key: &ObjectKey) -> Vec<Output> {
        if self.services.remove(key).is_none() {
            return Vec::new();
        }
        self.served.remove(key);
        self.notes.remove(key);
        let slices = self.selected.remove(key).unwrap_or_default();
        let mut out: Vec<Output> = slices.into_keys().map(Output::SliceGone).collect();
        out.push(Output::ServiceGone(key.clone()));
        // What it held may now go to a Service that wanted it.
        out.extend(self.reassign(key));
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
        }
        self.reselect(touched)
    }

    pub fn remove_pod(&mut self, key: &PodKey) -> Vec<Output> {
        let Some(pod) = self.pods.remove(key) else { return Vec::new() };
        let touched = self.selecting(&pod);
        self.reselect(touched)
    }

    /// The Services with their addresses, for the environment of pods and for `svc list`.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.served.values()
    }

    /// Addresses and ports two Services wanted.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.assignment.conflicts
    }

    /// Target ports that pods do not have, one sentence each.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        self.notes.values().flatten().map(String::as_str)
    }

    fn selecting(&self, pod: &BackendPod) -> BTreeSet<ObjectKey> {
        let namespace = &pod.key.namespace;
        let matches = |service: &Service| {
            let selector = &service.spec.selector;
            !selector.is_empty() && selector.iter().all(|(label, value)| pod.labels.get(label) == Some(value))
        };
        let all =
            self.services.iter().filter(|(key, service)| key.namespace == *namespace && matches(service));
        all.map(|(key, _)| key.clone()).collect()
    }

    fn reassign(&mut self, changed: &ObjectKey) -> Vec<Output> {
        self.assignment = allocate::assign(&self.services, &self.pools, &self.assignment);
        let mut out = Vec::new();
        let mut touched = BTreeSet::from([changed.clone()]);
        for (key, service) in &self.services {
            let mut filled = service.clone();
            if let Some(given) =
                self.assignment.services.get(key).filter(|_| allocate::wants_address(service))
            {
                given.fill(&mut filled);
            }
            if self.served.get(key) != Some(&filled) {
                self.served.insert(key.clone(), filled.clone());
                out.push(Output::Service(Box::new(filled)));
                touched.insert(key.clone());
            }
        }
        out.extend(self.reselect(touched));
        out
    }

    fn reselect(&mut self, services: BTreeSet<ObjectKey>) -> Vec<Output> {
        let mut out = Vec::new();
        for key in services {
            let Some(service) = self.served.get(&key) else { continue };
            let selection = select_endpoints(service, self.pods.values());
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
            self.notes.insert(key, selection.notes);
        }
        out
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
        assert!(node.selected.is_empty() && node.notes.is_empty());
    }

    #[test]
    fn a_clash_is_kept_until_one_of_them_goes() {
        let mut node = standalone();
        let spec = json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]});
        node.upsert_service(service("a", spec.clone()));
        node.upsert_service(service("b", spec));
        assert_eq!(node.conflicts().len(), 1);
        let out = node.remove_service(&ObjectKey::new("ns", "a"));
        assert_eq!(shown(&out), ["service a gone", "service b"]);
        assert!(node.conflicts().is_empty());
        assert_eq!(node.services().next().unwrap().spec.cluster_ip, "10.96.0.10");
    }
}
