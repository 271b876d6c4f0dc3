//! ServiceCIDRs of the cluster (KEP-1880), to the dataplane: the ranges Services get their addresses from.
//! A server without them, or one that does not show them, holds nothing up.

use std::collections::BTreeMap;

use longshore_cluster::{ApiClient, ApiError, News, Selector, Watch, path::Path};
use longshore_core::ids::ObjectKey;
use longshore_core::service::cidr::Cidr;
use serde::Deserialize;

use crate::dataplane::{Change, DataplaneHandle};

/// The one field of a ServiceCIDR that a proxy needs. One that is about to go still counts: it stays while
/// Services have addresses of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct ServiceCidr {
    spec: Spec,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Spec {
    cidrs: Vec<Cidr>,
}

/// Runs until the daemon ends.
pub(super) async fn follow(client: ApiClient, dataplane: DataplaneHandle) {
    let (mut ranges, mut denials) = (Ranges::default(), Denials::default());
    let told = dataplane.clone();
    Watch::new(client, Selector::all(Path::service_cidrs()))
        .on_denied(move |error| denials.hear(error, &told))
        .run(move |news| {
            ranges.take(news);
            dataplane.tell(Change::ServiceRanges(ranges.all()));
        })
        .await;
}

/// Every object with its ranges.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<ObjectKey, Vec<Cidr>>);

impl Ranges {
    fn take(&mut self, news: News<ServiceCidr>) {
        match news {
            News::All(all) => self.0 = all.into_iter().map(|(key, cidr)| (key, cidr.spec.cidrs)).collect(),
            News::Set(key, cidr) => drop(self.0.insert(key, cidr.spec.cidrs)),
            News::Gone(key, _) => drop(self.0.remove(&key)),
            News::Unreadable(key, problem) => {
                tracing::error!(name = %key.name, problem, "a ServiceCIDR cannot be read and is left out");
                self.0.remove(&key);
            }
        }
    }

    fn all(&self) -> Vec<Cidr> {
        self.0.values().flatten().copied().collect()
    }
}

/// Answers of a server that has no ServiceCIDRs for us; the first is told.
#[derive(Debug, Default)]
struct Denials {
    told: bool,
}

impl Denials {
    fn hear(&mut self, error: &ApiError, dataplane: &DataplaneHandle) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        // A server older than 1.33, or one with the API off, says 404.
        let mend = match error.code() {
            Some(403) => "; bind the ClusterRole system:node-proxier to who asks",
            _ => "",
        };
        tracing::warn!(
            "ServiceCIDRs are not known: packets to Service addresses that no Service has are not dropped: {}{mend}",
            error.one_line()
        );
        dataplane.tell(Change::ServiceRanges(Vec::new()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ranges_are_those_of_all_objects_that_can_be_read() {
        let key = |name: &str| ObjectKey::new("", name);
        let read = |cidrs: &[&str]| serde_json::from_value(json!({"spec": {"cidrs": cidrs}})).unwrap();
        let mut ranges = Ranges::default();
        let shown = |ranges: &Ranges| ranges.all().iter().map(Cidr::to_string).collect::<Vec<_>>().join(" ");
        ranges.take(News::All(vec![(key("kubernetes"), read(&["10.96.0.0/16", "fd00:96::/108"]))]));
        ranges.take(News::Set(key("more"), read(&["10.97.0.0/16"])));
        assert_eq!(shown(&ranges), "10.96.0.0/16 fd00:96::/108 10.97.0.0/16");
        // Two objects may have the same range.
        ranges.take(News::Set(key("same"), read(&["10.97.0.0/16"])));
        ranges.take(News::Gone(key("more"), read(&["10.97.0.0/16"])));
        assert_eq!(shown(&ranges), "10.96.0.0/16 fd00:96::/108 10.97.0.0/16");
        ranges.take(News::Unreadable(key("same"), "its cidrs are none".to_owned()));
        assert_eq!(shown(&ranges), "10.96.0.0/16 fd00:96::/108");
    }
}
