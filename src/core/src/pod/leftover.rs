//! What pods left on the node that nothing knows any more: a daemon that was killed between a pod's
//! first folder, cgroup or mount and its first record. Pure; looking and removing is the agent's.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{PodKey, PodUid};

/// Namespace of a pod of which only a folder tells.
const UNKNOWN_NAMESPACE: &str = "unknown";

/// What was noted of a pod before its first folder or cgroup was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    pub key: PodKey,
    /// Path of its cgroup below the cgroup root; `None` where it had none.
    pub cgroup: Option<String>,
}

/// A pod that nothing but its remains tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub uid: PodUid,
    pub key: PodKey,
    pub cgroup: Option<String>,
}

/// What is left of pods that are not `known`: no source wants them, the runtime has nothing of them and
/// no record mentions them. `folders` are the names in the folder of all pods; one that is no pod's uid
/// is somebody else's and stays.
pub fn leftovers(
    noted: &BTreeMap<PodUid, Noted>,
    folders: &[String],
    known: &BTreeSet<PodUid>,
) -> Vec<Leftover> {
    let on_disk = folders.iter().filter(|name| is_uid(name)).map(|name| PodUid::from(name.as_str()));
    let all: BTreeSet<PodUid> = noted.keys().cloned().chain(on_disk).collect();
    let unknown = all.into_iter().filter(|uid| !known.contains(uid));
    unknown
        .map(|uid| match noted.get(&uid) {
            Some(noted) => Leftover { key: noted.key.clone(), cgroup: noted.cgroup.clone(), uid },
            None => Leftover { key: PodKey::new(UNKNOWN_NAMESPACE, uid.as_str()), cgroup: None, uid },
        })
        .collect()
}

/// Uids of the API are UUIDs, those of a kubelet's static pods 32 hexadecimal digits.
fn is_uid(name: &str) -> bool {
    let digits = name.chars().filter(char::is_ascii_hexdigit).count();
    digits == 32 && name.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaa-2222-8333-8444-555555555555";
    const B: &str = "bbbbbbbb-2222-8333-8444-555555555555";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn what_nobody_knows_is_left_over_and_what_is_no_pod_stays() {
        let noted =
            |name: &str, cgroup: &str| Noted { key: PodKey::new("shop", name), cgroup: Some(cgroup.into()) };
        let journal =
            BTreeMap::from([(PodUid::from(A), noted("a", "/k/a")), (PodUid::from(B), noted("b", "/k/b"))]);
        let folders: Vec<String> = [A, STATIC, "lost+found", "backup", ""].map(str::to_owned).to_vec();
        let cases: [(&[&str], &[(&str, &str, Option<&str>)]); 3] = [
            (&[A, B, STATIC], &[]),
            (
                &[B],
                &[(STATIC, "unknown/0123456789abcdef0123456789abcdef", None), (A, "shop/a", Some("/k/a"))],
            ),
            (&[A, STATIC], &[(B, "shop/b", Some("/k/b"))]),
        ];
        for (known, expected) in cases {
            let known: BTreeSet<PodUid> = known.iter().map(|uid| PodUid::from(*uid)).collect();
            let found = leftovers(&journal, &folders, &known);
            let found: Vec<_> = found
                .iter()
                .map(|left| (left.uid.as_str(), left.key.to_string(), left.cgroup.as_deref()))
                .collect();
            let expected: Vec<_> =
                expected.iter().map(|(uid, key, cgroup)| (*uid, (*key).to_owned(), *cgroup)).collect();
            assert_eq!(found, expected, "known: {known:?}");
        }
    }
}
