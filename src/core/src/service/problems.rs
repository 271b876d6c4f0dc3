//! What is wrong with Services and EndpointSlices, kept so that each problem is told once, however often
//! its object comes: in the log, and as an event where a control plane has the object. Nothing is written
//! here, and what `svc list` shows is in `view`.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::table::ServiceTable;
use super::types::EndpointSlice;
use super::view;
use crate::event::{About, Event};
use crate::ids::{ObjectKey, ObjectUid};
use crate::pod::events::Severity;

/// Kinds of objects that have problems.
pub const SERVICE: &str = "Service";
pub const SLICE: &str = "EndpointSlice";

/// Reason of an event: parts of the Service are not served, or all of it.
pub const INVALID_SERVICE: &str = "InvalidService";
/// Reason of an event: more endpoints than one port may have.
pub const TOO_MANY_ENDPOINTS: &str = "TooManyEndpoints";
/// Reason of an event: endpoints or ports of the slice are left out.
pub const INVALID_SLICE: &str = "InvalidEndpointSlice";

/// Bytes of a message, as newer events of the API are bounded.
const MAX_MESSAGE: usize = 1024;

/// A problem of an object, new since the last one told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectProblem {
    pub about: About,
    /// The event's reason.
    pub reason: &'static str,
    /// Sentences, one behind the other.
    pub message: String,
}

impl ObjectProblem {
    /// About an object of this kind; the uid may be unknown.
    pub fn new(
        kind: &'static str,
        (key, uid): (&ObjectKey, Option<ObjectUid>),
        reason: &'static str,
        sentences: &[String],
    ) -> Self {
        let about = About {
            kind,
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            uid: uid.as_ref().map(ToString::to_string).unwrap_or_default(),
            field_path: String::new(),
        };
        let mut message = sentences.join("; ");
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        ObjectProblem { about, reason, message }
    }
}

impl From<(ObjectProblem, Timestamp)> for Event {
    fn from((problem, at): (ObjectProblem, Timestamp)) -> Event {
        let ObjectProblem { about, reason, message } = problem;
        Event { about, severity: Severity::Warning, reason: reason.to_owned(), message, at }
    }
}

/// The problems objects have now.
#[derive(Debug, Default)]
pub struct Problems {
    known: BTreeMap<(&'static str, ObjectKey), Known>,
    news: Vec<ObjectProblem>,
}

#[derive(Debug, PartialEq, Eq)]
struct Known {
    uid: Option<ObjectUid>,
    sentences: BTreeMap<&'static str, Vec<String>>,
}

impl Problems {
    /// Look at a Service of the table as it is now.
    pub fn service(&mut self, table: &ServiceTable, key: &ObjectKey) {
        let Some(entry) = table.services().get(key) else {
            self.known.remove(&(SERVICE, key.clone()));
            return;
        };
        let invalid = entry.skipped.iter().filter(|skipped| !skipped.by_design).map(ToString::to_string);
        let capped = table.capped(key).map(|(port, _)| view::capped(port));
        let invalid = invalid.chain(table.lacking(key).iter().cloned());
        let now = [(INVALID_SERVICE, invalid.collect()), (TOO_MANY_ENDPOINTS, capped.collect())];
        self.set(SERVICE, (key, entry.uid), now);
    }

    /// Look at a slice that has just been taken, with what was left out of it.
    pub fn slice(&mut self, table: &ServiceTable, slice: &EndpointSlice, skipped: Vec<String>) {
        self.set(SLICE, (&slice.key(), slice.metadata.uid), [(INVALID_SLICE, skipped)]);
        if let Some(service) = slice.service() {
            self.service(table, &service);
        }
    }

    /// A slice is gone.
    pub fn slice_gone(&mut self, key: &ObjectKey) {
        self.known.remove(&(SLICE, key.clone()));
    }

    /// All there are now, one sentence each.
    pub fn sentences(&self) -> impl Iterator<Item = String> {
        self.known.iter().flat_map(|((kind, key), known)| {
            known.sentences.values().flatten().map(move |sentence| match *kind {
                SERVICE => format!("Service {key}: {sentence}"),
                // These name their slice, since the row of a Service shows them too.
                _ => sentence.clone(),
            })
        })
    }

    /// What is new since this was last asked.
    pub fn take_news(&mut self) -> Vec<ObjectProblem> {
        std::mem::take(&mut self.news)
    }

    fn set<const N: usize>(
        &mut self,
        kind: &'static str,
        (key, uid): (&ObjectKey, Option<ObjectUid>),
        now: [(&'static str, Vec<String>); N],
    ) {
        let sentences: BTreeMap<&'static str, Vec<String>> =
            now.into_iter().filter(|(_, sentences)| !sentences.is_empty()).collect();
        let place = (kind, key.clone());
        // One made anew under the same name is another: its problems were not told.
        let before = self.known.remove(&place).filter(|known| known.uid == uid);
        for (reason, now) in &sentences {
            let told = before.as_ref().and_then(|known| known.sentences.get(reason));
            let is_new = |sentence: &&String| told.is_none_or(|told| !told.contains(sentence));
            let new: Vec<String> = now.iter().filter(is_new).cloned().collect();
            if !new.is_empty() {
                self.news.push(ObjectProblem::new(kind, (key, uid), reason, &new));
            }
        }
        if !sentences.is_empty() {
            self.known.insert(place, Known { uid, sentences });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::topology::NodeTopology;
    use super::super::types::Service;
    use super::*;

    const UIDS: [&str; 2] = ["0a1b2c3d-0000-4fff-8abc-000000000001", "0a1b2c3d-0000-4fff-8abc-000000000002"];

    /// A table and its problems, fed as the dataplane feeds them.
    struct Fed(ServiceTable, Problems);

    impl Fed {
        fn new() -> Self {
            Fed(ServiceTable::new(NodeTopology { name: "n1".into(), zone: None }), Problems::default())
        }

        fn service(&mut self, uid: &str, spec: Value) -> Vec<String> {
            let metadata = json!({"name": "web", "namespace": "ns", "uid": uid});
            let service: Service =
                serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
            self.0.upsert_service(&service);
            self.1.service(&self.0, &service.key());
            self.told()
        }

        fn slice(&mut self, name: &str, addresses: &[String]) -> Vec<String> {
            let endpoints: Vec<Value> = addresses.iter().map(|addr| json!({"addresses": [addr]})).collect();
            let labels = json!({"kubernetes.io/service-name": "web"});
            let metadata = json!({"name": name, "namespace": "ns", "uid": UIDS[1], "labels": labels});
            let slice: EndpointSlice = serde_json::from_value(json!({"metadata": metadata,
                "addressType": "IPv4", "ports": [{"name": "p", "port": 80}], "endpoints": endpoints}))
            .unwrap();
            let skipped = self.0.upsert_slice(&slice).skipped;
            self.1.slice(&self.0, &slice, skipped);
            self.told()
        }

        fn told(&mut self) -> Vec<String> {
            let shown = |problem: ObjectProblem| {
                let last = problem.about.uid.chars().last().unwrap_or('-');
                format!("{} {last} {}: {}", problem.about.kind, problem.reason, problem.message)
            };
            self.1.take_news().into_iter().map(shown).collect()
        }
    }

    #[test]
    fn a_problem_is_told_once_until_it_is_another_or_its_object_is() {
        let mut fed = Fed::new();
        let bad = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}, {"name": "b", "port": 0}]});
        let invalid = ["Service 1 InvalidService: spec.ports[1].port: 0 is outside 1..=65535"];
        assert_eq!(fed.service(UIDS[0], bad.clone()), invalid);
        assert_eq!(fed.service(UIDS[0], bad.clone()), [] as [&str; 0], "told already");
        let mut worse = bad.clone();
        worse["externalIPs"] = json!(["239.1.2.3"]);
        assert_eq!(
            fed.service(UIDS[0], worse),
            ["Service 1 InvalidService: spec.externalIPs: 239.1.2.3 cannot be a Service's address"]
        );
        let good = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        assert_eq!(fed.service(UIDS[0], good), [] as [&str; 0]);
        assert_eq!(fed.1.sentences().count(), 0);
        assert_eq!(fed.service(UIDS[0], bad.clone()), invalid, "wrong again");
        assert_eq!(fed.service(UIDS[1], bad), [invalid[0].replace(" 1 ", " 2 ")], "made anew");
        assert_eq!(fed.service("", json!({"clusterIP": "None"})), [] as [&str; 0], "headless is no mistake");
        fed.0.remove_service(&ObjectKey::new("ns", "web"));
        fed.1.service(&fed.0, &ObjectKey::new("ns", "web"));
        assert!(fed.1.known.is_empty());
    }

    #[test]
    fn endpoints_left_out_are_the_slices_and_too_many_the_services() {
        let mut fed = Fed::new();
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]});
        fed.service(UIDS[0], spec);
        let bad = ["239.0.0.1".to_owned()];
        let left_out = "EndpointSlice ns/a: 239.0.0.1 is a multicast address, which no endpoint can have";
        let event = format!("EndpointSlice 2 InvalidEndpointSlice: {left_out}");
        assert_eq!(fed.slice("a", &bad), [event.as_str()]);
        assert_eq!(fed.slice("a", &bad), [] as [&str; 0]);
        assert_eq!(fed.1.sentences().collect::<Vec<_>>(), [left_out]);
        fed.1.slice_gone(&ObjectKey::new("ns", "a"));
        assert_eq!(fed.1.sentences().count(), 0);
        let mut told = Vec::new();
        for n in 0..12u32 {
            let of = |m: u32| std::net::Ipv4Addr::from(0x0a00_0000 + n * 1000 + m).to_string();
            told.extend(fed.slice(&format!("s{n}"), &(0..1000).map(of).collect::<Vec<_>>()));
        }
        let capped = "ns/web:p/tcp (IPv4): only the first 10000 usable endpoints by address get packets";
        assert_eq!(told, [format!("Service 1 TooManyEndpoints: {capped}")]);
    }

    #[test]
    fn a_message_is_bounded() {
        let sentences = vec!["ö".repeat(600); 3];
        let problem =
            ObjectProblem::new(SERVICE, (&ObjectKey::new("ns", "a"), None), INVALID_SERVICE, &sentences);
        assert!((1000..=MAX_MESSAGE).contains(&problem.message.len()), "{}", problem.message.len());
    }
}
