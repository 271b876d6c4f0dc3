//! Who carries a label, by namespace: finds the pods of a selector and the Services that may select a pod
//! without a look at all of them. Plain storage; whether a selector matches is decided where it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Keys by one label of theirs, or by each.
#[derive(Debug)]
pub struct LabelIndex<K> {
    keys: BTreeMap<Label, BTreeSet<K>>,
}

/// Namespace, name and value.
type Label = (Arc<str>, String, String);

fn each<'a>(
    namespace: &Arc<str>,
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> impl Iterator<Item = Label> {
    let namespace = namespace.clone();
    labels.into_iter().map(move |(name, value)| (namespace.clone(), name.clone(), value.clone()))
}

impl<K> Default for LabelIndex<K> {
    fn default() -> Self {
        LabelIndex { keys: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> LabelIndex<K> {
    pub fn insert<'a>(
        &mut self,
        namespace: &Arc<str>,
        labels: impl IntoIterator<Item = (&'a String, &'a String)>,
        key: &K,
    ) {
        for label in each(namespace, labels) {
            self.keys.entry(label).or_default().insert(key.clone());
        }
    }

    pub fn remove<'a>(
        &mut self,
        namespace: &Arc<str>,
        labels: impl IntoIterator<Item = (&'a String, &'a String)>,
        key: &K,
    ) {
        for label in each(namespace, labels) {
            if let Some(keys) = self.keys.get_mut(&label) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&label);
                }
            }
        }
    }

    /// Those under any of these labels, each once for each label it is under.
    pub fn of<'a>(
        &'a self,
        namespace: &Arc<str>,
        labels: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> impl Iterator<Item = &'a K> {
        each(namespace, labels).flat_map(|label| self.keys.get(&label).into_iter().flatten())
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_namespace_name_and_value_and_leave_nothing() {
        let (ns, other): (Arc<str>, Arc<str>) = ("ns".into(), "other".into());
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let (web, api) = (labels(&[("app", "web"), ("tier", "front")]), labels(&[("app", "api")]));
        let mut index = LabelIndex::default();
        index.insert(&ns, &web, &1);
        index.insert(&ns, &api, &2);
        index.insert(&other, &web, &3);
        let found = |index: &LabelIndex<i32>, labels: &BTreeMap<String, String>| -> Vec<i32> {
            index.of(&ns, labels).copied().collect()
        };
        assert_eq!(found(&index, &labels(&[("app", "web")])), [1]);
        assert_eq!(found(&index, &labels(&[("app", "api"), ("tier", "front")])), [2, 1]);
        assert_eq!(found(&index, &labels(&[("app", "none")])), Vec::<i32>::new());
        index.remove(&ns, &web, &1);
        assert_eq!(found(&index, &web), Vec::<i32>::new());
        index.remove(&ns, &api, &2);
        index.remove(&other, &web, &3);
        assert!(index.is_empty());
    }
}
