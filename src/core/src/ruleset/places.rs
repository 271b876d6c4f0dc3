//! Where endpoints stand in the maps they are drawn from by a number. Each keeps the place it has, and
//! the last one fills a gap, so that a Service of a thousand endpoints loses one by two writes and not
//! by a thousand. Pure; which endpoints there are is not decided here.

use std::collections::BTreeMap;

use super::nft::{ElementKey, ElementValue, Packed};
use super::object::{ObjectKey, ObjectValue, Objects, SetId};

/// The wanted objects of a service port's endpoints, numbered so that as many as possible stand where
/// `have` has them.
pub fn keep(want: Objects, have: &Objects) -> Objects {
    if have.is_empty() || want == *have {
        return want;
    }
    let mut kept = Vec::with_capacity(want.len());
    let mut numbered: BTreeMap<(SetId, bool), Vec<(Packed, ElementValue)>> = BTreeMap::new();
    for (key, value) in want {
        match (key, value) {
            (
                ObjectKey::Element { set: set @ (SetId::Endpoints | SetId::LocalEndpoints), ipv6, key },
                ObjectValue::Element(value),
            ) => numbered.entry((set, ipv6)).or_default().push((key.start, value)),
            other => kept.push(other),
        }
    }
    for ((set, ipv6), wanted) in numbered {
        let have = places(have, set);
        for (key, value) in arrange(wanted, have) {
            let key = ElementKey { start: key, end: None };
            kept.push((ObjectKey::Element { set, ipv6, key }, ObjectValue::Element(value)));
        }
    }
    kept.into_iter().collect()
}

/// The same objects with every map's endpoints numbered by address.
pub fn in_order(objects: &Objects) -> Objects {
    let mut kept = Vec::with_capacity(objects.len());
    let mut places: BTreeMap<SetId, (Vec<ObjectKey>, Vec<ObjectValue>)> = BTreeMap::new();
    for (key, value) in objects.iter() {
        match key {
            ObjectKey::Element { set: set @ (SetId::Endpoints | SetId::LocalEndpoints), .. } => {
                let (keys, values) = places.entry(*set).or_default();
                keys.push(key.clone());
                values.push(value.clone());
            }
            _ => kept.push((key.clone(), value.clone())),
        }
    }
    for (keys, mut values) in places.into_values() {
        values.sort_by_key(|value| match value {
            ObjectValue::Element(value) => Some(value.clone()),
            _ => None,
        });
        kept.extend(keys.into_iter().zip(values));
    }
    kept.into_iter().collect()
}

/// What stands at each key of a map.
fn places(have: &Objects, map: SetId) -> BTreeMap<Packed, &ElementValue> {
    have.iter()
        .filter_map(|(key, value)| match (key, value) {
            (ObjectKey::Element { set, key, .. }, ObjectValue::Element(value)) if *set == map => {
                Some((key.start, value))
            }
            _ => None,
        })
        .collect()
}

/// The same keys with the values where they are already, and the rest in the gaps.
fn arrange(
    wanted: Vec<(Packed, ElementValue)>,
    have: BTreeMap<Packed, &ElementValue>,
) -> Vec<(Packed, ElementValue)> {
    let (keys, values): (Vec<Packed>, Vec<ElementValue>) = wanted.into_iter().unzip();
    let mut left: BTreeMap<ElementValue, usize> = BTreeMap::new();
    for value in values {
        *left.entry(value).or_default() += 1;
    }
    let mut placed: Vec<Option<ElementValue>> = vec![None; keys.len()];
    for (place, key) in placed.iter_mut().zip(&keys) {
        let Some(there) = have.get(key) else { continue };
        if let Some(count) = left.get_mut(*there).filter(|count| **count > 0) {
            *count -= 1;
            *place = Some((*there).clone());
        }
    }
    let mut rest = left.into_iter().flat_map(|(value, count)| std::iter::repeat_n(value, count));
    keys.into_iter()
        .zip(placed)
        .filter_map(|(key, place)| Some((key, place.or_else(|| rest.next())?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::chains::ChainConfig;
    use super::super::world::{World, chain_config};

    fn world(config: ChainConfig, count: u32) -> World {
        let mut world = World::nftables(config);
        world.service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]}), &[]);
        let all: Vec<String> = (0..count).map(|n| format!("10.244.2.{n} n2")).collect();
        let list: Vec<&str> = all.iter().map(String::as_str).collect();
        world.endpoints("web", &list).settle(true);
        world
    }

    #[test]
    fn an_endpoint_more_or_less_costs_the_same_whatever_their_number() {
        for count in [3, 10, 200] {
            let mut world = world(chain_config(), count);
            let all: Vec<String> = (1..count).map(|n| format!("10.244.2.{n} n2")).collect();
            let mut list: Vec<&str> = all.iter().map(String::as_str).collect();
            // The first goes and the last takes its place; the chain for the new number comes, the old goes.
            let last = count - 1;
            assert_eq!(
                world.endpoints("web", &list).settle(true),
                [
                    format!("add chain n{last}"),
                    format!("add element #{last} #0 of spreads"),
                    "change element 10.96.0.1 tcp 80 of services".to_owned(),
                    "change element 10.96.0.1 tcp 80 #0 of endpoints".to_owned(),
                    format!("remove element 10.96.0.1 tcp 80 #{last} of endpoints"),
                    format!("remove element #{count} #0 of spreads"),
                    format!("remove chain n{count}"),
                ]
            );
            // Another comes, first by its address, and is put last.
            list.insert(0, "10.244.1.1 n2");
            let done = world.endpoints("web", &list).settle(true);
            assert_eq!(done.len(), 6, "{done:?}");
            assert!(done.contains(&format!("add element 10.96.0.1 tcp 80 #{last} of endpoints")), "{done:?}");
            assert_eq!(world.plan(true), [], "what was arranged stays so");
        }
    }
}
