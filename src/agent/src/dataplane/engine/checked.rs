//! Which Services have a health check port, kept so that a change of any other costs nothing here, and
//! the figures of Services with policy Local. What is answered is decided in `core::service::health`.

use std::collections::BTreeSet;

use longshore_core::ids::ObjectKey;
use longshore_core::ruleset::desired::BackEnd;
use longshore_core::ruleset::model::ServicePortState;
use longshore_core::ruleset::node::NodePortAddresses;
use longshore_core::service::Family;
use longshore_core::service::table::ServiceTable;
use longshore_core::service::types::TrafficPolicy;

use super::Engine;
use crate::dataplane::metrics::{TableRules, count_rules};
use crate::dataplane::{Figures, HealthChecks};

/// Services with a health check port.
#[derive(Debug, Default)]
pub(super) struct CheckedServices {
    services: BTreeSet<ObjectKey>,
    /// Something that they depend on changed.
    changed: bool,
}

impl CheckedServices {
    /// A Service changed or went.
    pub(super) fn service(&mut self, key: &ObjectKey, table: &ServiceTable) {
        let checked = table.health_check_of(key).is_some();
        self.changed |= if checked {
            self.services.insert(key.clone());
            true
        } else {
            self.services.remove(key)
        };
    }

    /// Endpoints of a Service changed; of an unknown one where a slice is gone.
    pub(super) fn slice(&mut self, service: Option<&ObjectKey>) {
        self.changed |= match service {
            Some(service) => self.services.contains(service),
            None => !self.services.is_empty(),
        };
    }

    /// The node's addresses changed.
    pub(super) fn addresses(&mut self) {
        self.changed |= !self.services.is_empty();
    }
}

impl Engine {
    /// The health check ports as they should be now, where that may have changed.
    pub fn take_health_checks(&mut self) -> Option<HealthChecks> {
        if !self.sources_synced || !std::mem::take(&mut self.checks.changed) {
            return None;
        }
        let of = |service: &ObjectKey| self.table.health_check_of(service);
        let checks = self.checks.services.iter().filter_map(of).collect();
        let everywhere = *self.node_port_addresses() == NodePortAddresses::All;
        let addresses = self.desired.node().node_port_addresses.clone();
        Some(HealthChecks { checks, addresses: (!everywhere).then_some(addresses) })
    }

    /// Figures that are only counted when somebody asks.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures::default();
        for state in self.table.ports().filter(|state| state.has_any && state.local.is_empty()) {
            let family = usize::from(state.spec.id.family == Family::V6);
            figures.no_local_internal[family] +=
                u32::from(state.spec.policies.internal == TrafficPolicy::Local);
            figures.no_local_external[family] += u32::from(is_local_outside(state));
        }
        if self.in_force == BackEnd::Iptables {
            let mut rules = TableRules::default();
            for (key, value) in self.applied.other_than_elements() {
                count_rules(&mut rules, key, value);
            }
            figures.iptables = Some(rules);
        }
        figures
    }
}

fn is_local_outside(state: &ServicePortState) -> bool {
    state.spec.policies.external == TrafficPolicy::Local && state.spec.policies.externally_accessible
}
