//! Assignment kept in step with one change at a time. After each change it is what `assign` would give for
//! all Services and the assignment before, but only Services that the change touches are looked at: the
//! changed one, those that name what it names, and those that lack what it leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Assignment, Conflict, Given, Pool, Pools, Resource, Taken};
use super::{named_addresses, named_node_ports, take_derived, take_named, take_previous};
use crate::ids::ObjectKey;
use crate::service::types::Service;

/// What every Service was given, for Services that come, change and go.
#[derive(Debug)]
pub struct Allocator {
    pools: Pools,
    /// As the manifests have them.
    services: BTreeMap<ObjectKey, Arc<Service>>,
    given: BTreeMap<ObjectKey, Given>,
    /// By who went without; only those who did.
    conflicts: BTreeMap<ObjectKey, Vec<Conflict>>,
    taken: Taken,
    /// Who names what; the first by name has it.
    claims: BTreeMap<Resource, BTreeSet<ObjectKey>>,
    /// Who got nothing from a pool.
    lacking: BTreeMap<Pool, BTreeSet<ObjectKey>>,
    looks: u64,
}

impl Allocator {
    pub fn new(pools: Pools) -> Self {
        Allocator {
            pools,
            services: BTreeMap::new(),
            given: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            taken: Taken::new(),
            claims: BTreeMap::new(),
            lacking: BTreeMap::new(),
            looks: 0,
        }
    }

    /// Takes a Service as its manifest has it now, and tells whose addresses and ports may differ.
    pub fn upsert(&mut self, service: Arc<Service>) -> BTreeSet<ObjectKey> {
        let key = service.key();
        if self.services.get(&key) == Some(&service) {
            return BTreeSet::new();
        }
        self.change(&key, Some(service))
    }

    /// The same for a Service that is gone; what it held may now be another's.
    pub fn remove(&mut self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        if !self.services.contains_key(key) {
            return BTreeSet::new();
        }
        self.change(key, None)
    }

    /// As the manifest has it.
    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key).map(Arc::as_ref)
    }

    pub fn given(&self, key: &ObjectKey) -> Option<&Given> {
        self.given.get(key)
    }

    /// What one Service went without.
    pub fn conflicts_of(&self, service: &ObjectKey) -> impl Iterator<Item = &Conflict> {
        self.conflicts.get(service).into_iter().flatten()
    }

    /// Everything at once, as `assign` returns it.
    pub fn assignment(&self) -> Assignment {
        // In the order `assign` has them: what is named twice, then what is used up.
        let named = self.conflicts.values().flatten().filter(|conflict| conflict.holder.is_some());
        let used_up = self.conflicts.values().flatten().filter(|conflict| conflict.holder.is_none());
        Assignment { services: self.given.clone(), conflicts: named.chain(used_up).cloned().collect() }
    }

    /// How many Services were looked at so far, for tests of growth.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    fn change(&mut self, key: &ObjectKey, service: Option<Arc<Service>>) -> BTreeSet<ObjectKey> {
        let before = match service {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(key),
        };
        let mut resources = before.as_deref().map(named).unwrap_or_default();
        for resource in &resources {
            self.withdraw(*resource, key);
        }
        for resource in self.service(key).map(named).unwrap_or_default() {
            self.claims.entry(resource).or_default().insert(key.clone());
            resources.insert(resource);
        }
        let mut touched = BTreeSet::from([key.clone()]);
        for resource in resources {
            let claims = self.claims.get(&resource);
            let (holder, first) = (self.taken.get(&resource), claims.and_then(BTreeSet::first));
            if holder != first {
                touched.extend(holder.cloned());
                touched.extend(claims.into_iter().flatten().cloned());
            }
        }
        self.settle(touched)
    }

    fn withdraw(&mut self, resource: Resource, key: &ObjectKey) {
        if let Some(claims) = self.claims.get_mut(&resource) {
            claims.remove(key);
            if claims.is_empty() {
                self.claims.remove(&resource);
            }
        }
    }

    /// The steps of `assign` for these Services; all others keep what they have.
    fn settle(&mut self, mut touched: BTreeSet<ObjectKey>) -> BTreeSet<ObjectKey> {
        let mut released = BTreeSet::new();
        let mut before = BTreeMap::new();
        for key in &touched {
            before.insert(key.clone(), self.release(key, &mut released));
        }
        for key in &touched {
            let Some(service) = self.services.get(key) else { continue };
            let mut given = Given::nothing(service);
            let mut conflicts = Vec::new();
            take_named(key, service, &mut given, &mut self.taken, &mut conflicts);
            self.given.insert(key.clone(), given);
            if !conflicts.is_empty() {
                self.conflicts.insert(key.clone(), conflicts);
            }
        }
        for (key, before) in &before {
            if let (Some(service), Some(given)) = (self.services.get(key), self.given.get_mut(key)) {
                take_previous(key, service, &self.pools, (before, given), &mut self.taken);
            }
        }
        released.retain(|resource| !self.taken.contains_key(resource));
        for pool in released.iter().map(|resource| resource.pool()).collect::<BTreeSet<_>>() {
            touched.extend(self.lacking.get(&pool).into_iter().flatten().cloned());
        }
        self.derive(&touched);
        self.looks += touched.len() as u64;
        touched
    }

    /// Gives back all a Service has, and returns what that was.
    fn release(&mut self, key: &ObjectKey, released: &mut BTreeSet<Resource>) -> Given {
        self.conflicts.remove(key);
        self.forget_lacks(key);
        let given = self.given.remove(key).unwrap_or_default();
        let addresses = given.cluster_ips.iter().map(|addr| Resource::Address(*addr));
        for resource in addresses.chain(given.held_node_ports()) {
            self.taken.remove(&resource);
            released.insert(resource);
        }
        given
    }

    fn derive(&mut self, services: &BTreeSet<ObjectKey>) {
        let mut empty = BTreeSet::new();
        for key in services {
            let (Some(service), Some(given)) = (self.services.get(key), self.given.get_mut(key)) else {
                continue;
            };
            let lacks = take_derived(key, service, &self.pools, given, (&mut self.taken, &mut empty));
            self.forget_lacks(key);
            for pool in lacks {
                self.lacking.entry(pool).or_default().insert(key.clone());
                self.conflicts.entry(key.clone()).or_default().push(Conflict::lack(key, pool));
            }
        }
    }

    fn forget_lacks(&mut self, key: &ObjectKey) {
        self.lacking.retain(|_, services| {
            services.remove(key);
            !services.is_empty()
        });
        if let Some(conflicts) = self.conflicts.get_mut(key) {
            conflicts.retain(|conflict| conflict.holder.is_some());
            if conflicts.is_empty() {
                self.conflicts.remove(key);
            }
        }
    }
}

fn named(service: &Service) -> BTreeSet<Resource> {
    let ports = named_node_ports(service).map(|(_, number, protocol)| Resource::NodePort(number, protocol));
    named_addresses(service).map(Resource::Address).chain(ports).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::assign;
    use super::*;

    /// Few of everything, so that Services meet.
    fn pools() -> Pools {
        Pools {
            service_cidrs: vec!["10.0.0.0/29".parse().unwrap(), "fd00::/126".parse().unwrap()],
            node_ports: 30000..=30002,
        }
    }

    fn spec() -> impl Strategy<Value = serde_json::Value> {
        let address = prop_oneof![
            4 => Just(json!("")), 3 => (1u8..5).prop_map(|n| json!(format!("10.0.0.{n}"))),
            1 => Just(json!("fd00::1")), 1 => Just(json!("None")), 1 => Just(json!("192.0.2.1"))];
        let kind =
            prop_oneof![Just("ClusterIP"), Just("NodePort"), Just("LoadBalancer"), Just("ExternalName")];
        let policy = prop_oneof![Just("SingleStack"), Just("PreferDualStack")];
        let port = (prop_oneof![Just(0), 30000..30004], prop_oneof![Just("TCP"), Just("UDP")]);
        (address, kind, policy, proptest::collection::vec(port, 0..3)).prop_map(
            |(address, kind, policy, ports)| {
                let ports: Vec<_> = ports
                    .into_iter()
                    .map(|(node, protocol)| json!({"port": 80, "nodePort": node, "protocol": protocol}))
                    .collect();
                json!({"clusterIP": address, "type": kind, "ipFamilyPolicy": policy, "ports": ports})
            },
        )
    }

    fn service(name: &str, spec: &serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn change_by_change_is_what_all_at_once_gives(
            steps in proptest::collection::vec((0usize..9, proptest::option::weighted(0.8, spec())), 1..40)
        ) {
            let mut allocator = Allocator::new(pools());
            let mut services = BTreeMap::new();
            let mut all = Assignment::default();
            for (number, spec) in steps {
                let key = ObjectKey::new("ns", format!("s{number}"));
                let touched = match spec {
                    Some(spec) => {
                        let service = service(&key.name, &spec);
                        services.insert(key, service.clone());
                        allocator.upsert(Arc::new(service))
                    }
                    None => {
                        services.remove(&key);
                        allocator.remove(&key)
                    }
                };
                let next = assign(&services, &pools(), &all);
                for key in next.services.keys() {
                    let same = next.services.get(key) == all.services.get(key);
                    prop_assert!(same || touched.contains(key), "{} changed and was not told", key);
                }
                all = next;
                prop_assert_eq!(&allocator.assignment(), &all);
            }
        }
    }

    #[test]
    fn a_change_looks_at_what_it_touches_however_many_there_are() {
        let looks = |count: usize| {
            let pools =
                Pools { service_cidrs: vec!["10.96.0.0/12".parse().unwrap()], node_ports: 30000..=32767 };
            let mut allocator = Allocator::new(pools);
            let plain = json!({"type": "NodePort", "ports": [{"port": 80}]});
            for number in 0..count {
                allocator.upsert(Arc::new(service(&format!("s{number}"), &plain)));
            }
            let before = allocator.looks();
            allocator
                .upsert(Arc::new(service("s7", &json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}))));
            allocator
                .upsert(Arc::new(service("a", &json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}))));
            allocator.remove(&ObjectKey::new("ns", "a"));
            allocator.upsert(Arc::new(service("s8", &plain)));
            allocator.looks() - before
        };
        // One alone, two that name the same, the one that gets it back with it, and nothing new.
        assert_eq!(looks(10), 1 + 2 + 2);
        assert_eq!(looks(10), looks(2000));
    }
}
