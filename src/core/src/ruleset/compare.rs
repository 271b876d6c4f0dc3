//! What is wanted against what a look into the kernel showed, object by object and in words: the answer
//! of `svc diff`. What is believed of the kernel plays no part, so that a wrong belief shows too.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::desired::Desired;
use super::diff::Applied;
use super::nft::NftTable;
use super::object::{Claim, ObjectKey, ObjectValue, SetId, Spread, TABLE};
use super::places;

/// How an object differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deviation {
    /// Wanted, and not there.
    Missing,
    /// There with other settings.
    Different,
    /// There, and nobody wants it.
    Extra,
    /// A real server without new connections that waits for its last ones: no fault.
    Draining,
}

impl Deviation {
    pub fn as_str(self) -> &'static str {
        match self {
            Deviation::Missing => "missing",
            Deviation::Different => "different",
            Deviation::Extra => "extra",
            Deviation::Draining => "draining",
        }
    }

    /// Whether a repair would change it.
    pub fn is_fault(self) -> bool {
        self != Deviation::Draining
    }
}

/// One object that is not as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    pub deviation: Deviation,
    /// `element 10.96.0.1 tcp 80 of frontends`, `virtual server ...`, `chain services`.
    pub object: String,
    /// Its settings as they should be; empty where there are none.
    pub wanted: String,
    /// Its settings in the kernel; empty where there are none.
    pub found: String,
    /// The service port it is for, as far as one still wants it.
    pub service: Option<String>,
}

/// Everything that differs, by claim.
pub fn differences(desired: &Desired, seen: &Applied) -> Vec<Difference> {
    let claims: BTreeSet<Claim> = desired.claims().copied().chain(seen.claims().copied()).collect();
    let mut found = Vec::new();
    for claim in claims {
        let have = seen.objects(&claim).unwrap_or_default();
        // Endpoints may stand in any order: only those that are not there at all are missing.
        let wanted = places::keep(desired.objects(&claim), &have);
        let service = desired.holder(&claim).map(|state| state.spec.id.name.to_string());
        for (key, want) in wanted.iter() {
            let deviation = match have.get(key) {
                Some(value) if value == want => continue,
                Some(_) => Deviation::Different,
                None => Deviation::Missing,
            };
            found.push(difference(deviation, key, Some(want), have.get(key), service.as_ref()));
        }
        for (key, value) in have.iter().filter(|(key, _)| !wanted.contains_key(key)) {
            let draining = matches!(value, ObjectValue::Real(real) if real.weight == 0);
            let deviation = if draining { Deviation::Draining } else { Deviation::Extra };
            found.push(difference(deviation, key, None, Some(value), service.as_ref()));
        }
    }
    found
}

/// The chains of one of our tables that do not depend on Services; those that do are compared as
/// objects. The sets are the objects' frames and compared by their properties.
pub fn table_differences(wanted: &NftTable, found: Option<&NftTable>, ipv6: bool) -> Vec<Difference> {
    let family = if ipv6 { "ip6" } else { "ip" };
    let frame = |deviation, object: String| Difference {
        deviation,
        object,
        wanted: String::new(),
        found: String::new(),
        service: None,
    };
    let Some(found) = found else {
        return vec![frame(Deviation::Missing, format!("table {family} {TABLE}"))];
    };
    let mut all = Vec::new();
    for (name, chain) in &wanted.chains {
        let deviation = match found.chains.get(name) {
            Some(have) if have == chain => continue,
            Some(_) => Deviation::Different,
            None => Deviation::Missing,
        };
        all.push(frame(deviation, format!("chain {name} of table {family} {TABLE}")));
    }
    for (name, set) in &wanted.sets {
        let counts = SetId::from_name(name).is_some_and(SetId::is_fixed);
        let deviation = match found.sets.get(name) {
            Some(have) if have.spec == set.spec && (!counts || have.elements == set.elements) => continue,
            Some(_) => Deviation::Different,
            None => Deviation::Missing,
        };
        all.push(frame(deviation, format!("set {name} of table {family} {TABLE}")));
    }
    let unknown =
        |name: &&String| !wanted.chains.contains_key(*name) && Spread::from_chain(name, ipv6).is_none();
    for name in found.chains.keys().filter(unknown) {
        all.push(frame(Deviation::Extra, format!("chain {name} of table {family} {TABLE}")));
    }
    for name in found.sets.keys().filter(|name| !wanted.sets.contains_key(*name)) {
        all.push(frame(Deviation::Extra, format!("set {name} of table {family} {TABLE}")));
    }
    all
}

fn difference(
    deviation: Deviation,
    key: &ObjectKey,
    wanted: Option<&ObjectValue>,
    found: Option<&ObjectValue>,
    service: Option<&String>,
) -> Difference {
    let text = |value: Option<&ObjectValue>| value.map(|value| settings(key, value)).unwrap_or_default();
    Difference {
        deviation,
        object: key.to_string(),
        wanted: text(wanted),
        found: text(found),
        service: service.cloned(),
    }
}

/// An object's settings in a few words; empty where being there is all.
fn settings(key: &ObjectKey, value: &ObjectValue) -> String {
    match (key, value) {
        (ObjectKey::Element { set, ipv6, .. }, ObjectValue::Element(value)) => value.text(&set.spec(*ipv6)),
        (_, ObjectValue::Server(server)) if server.flags.persistent => {
            format!("{}, clients stay {} s", server.scheduler, server.timeout)
        }
        (_, ObjectValue::Server(server)) => server.scheduler.to_string(),
        (_, ObjectValue::Real(real)) => format!("weight {}", real.weight),
        (_, ObjectValue::Spread(rules)) => format!("{} rules", rules.len()),
        (_, ObjectValue::Rules(rules)) => format!("{} rules", rules.len()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::object::Objects;
    use serde_json::json;

    use super::*;
    use crate::ruleset::world::World;

    fn lines(found: &[Difference]) -> Vec<String> {
        let line = |one: &Difference| {
            format!("{} {} [{}] [{}]", one.deviation.as_str(), one.object, one.wanted, one.found)
        };
        found.iter().map(line).collect()
    }

    #[test]
    fn what_the_kernel_lost_changed_or_has_too_much_is_named() {
        let mut world = World::new();
        let spec = |ip: &str| json!({"clusterIP": ip, "ports": [{"name": "p", "port": 80}]});
        world.service("web", spec("10.96.0.1"), &[]).endpoints("web", &["10.244.1.1", "10.244.2.1 n2"]);
        world.service("old", spec("10.96.0.2"), &[]).settle(true);
        assert!(differences(&world.desired, &world.applied).is_empty());
        // The kernel as it is now: a real server lost, another drained by hand, a Service nobody wants.
        let seen = world.applied.clone();
        let all = seen.by_claim().flat_map(|(_, objects)| objects.into_owned());
        let left = all.filter(|(key, _)| !key.to_string().starts_with("real server 10.244.1.1"));
        let turned = |(key, mut value): (ObjectKey, ObjectValue)| {
            if let ObjectValue::Real(real) = &mut value {
                real.weight = 7;
            }
            (key, value)
        };
        let objects: Objects = left.map(turned).collect();
        world.remove_service("old");
        let found = differences(&world.desired, &Applied::adopt(objects));
        assert_eq!(
            lines(&found),
            [
                "missing real server 10.244.1.1:8080 of 10.96.0.1:80/tcp [weight 1] []",
                "different real server 10.244.2.1:8080 of 10.96.0.1:80/tcp [weight 1] [weight 7]",
                "extra element 10.96.0.2 tcp 80 of frontends [] [4]",
                "extra virtual server 10.96.0.2:80/tcp [] [rr]",
                "extra element 10.96.0.2 of service-ips [] []",
                "extra address 10.96.0.2 on kube-ipvs0 [] []",
            ]
        );
        assert_eq!(found[0].service.as_deref(), Some("ns/web:p/tcp"));
    }

    #[test]
    fn chains_changed_by_hand_are_named() {
        let world = World::new();
        let wanted = &world.chains[0];
        assert!(table_differences(wanted, Some(wanted), false).is_empty());
        assert_eq!(lines(&table_differences(wanted, None, true)), ["missing table ip6 longshore [] []"]);
        let mut found = wanted.clone();
        found.chains.remove("reject");
        found.chains.entry("mark".to_owned()).and_modify(|chain| chain.rules.clear());
        let stranger = wanted.chains["drop"].clone();
        found.chains.insert("stranger".to_owned(), stranger.clone());
        found.chains.insert("n3".to_owned(), stranger);
        assert_eq!(
            lines(&table_differences(wanted, Some(&found), false)),
            [
                "different chain mark of table ip longshore [] []",
                "missing chain reject of table ip longshore [] []",
                "extra chain stranger of table ip longshore [] []",
            ]
        );
    }
}
