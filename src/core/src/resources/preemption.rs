//! Room for critical pods: which others end so that one more fits (behaviours 35; pkg/kubelet/preemption). Least
//! harm first: of what suffices, as few and as small pods as there are, BestEffort before Burstable before
//! Guaranteed.

use k8s_openapi::api::core::v1::Pod;

use super::admission::{NodeRoom, Refusal, admit, host_ports_free};
use super::container_resources::CRITICAL_PRIORITY;
use super::pod_sums::{Side, pod_amount};
use super::qos::{QosClass, qos_class};
use crate::ids::{PodKey, PodUid};

/// A pod that takes its place on the node.
#[derive(Clone, Copy, Debug)]
pub struct Other<'a> {
    pub key: &'a PodKey,
    /// `None` where it cannot be ended now: it ends already, or no source has said whether it is wanted.
    pub uid: Option<&'a PodUid>,
    pub pod: &'a Pod,
    /// From the node's own folder, not from the control plane.
    pub is_static: bool,
}

/// What becomes of a pod that comes to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fits,
    /// It fits once these have ended.
    MakesRoom(Vec<PodUid>),
    Refused(Refusal),
}

/// Whether `pod` fits beside `others`, or may make them fit. Adopted pods are never asked (invariant 6).
pub fn decide(pod: &Pod, is_static: bool, others: &[Other<'_>], room: &NodeRoom) -> Verdict {
    let pairs = || others.iter().map(|other| (other.key, other.pod));
    let Err(refusal) = admit(pod, pairs(), room) else { return Verdict::Fits };
    // A port or anything else that is not an amount is not made by ending pods.
    let amounts_only = refusal.is_amount() && host_ports_free(pod, &pairs().collect::<Vec<_>>()).is_ok();
    if !amounts_only || !is_critical(pod, is_static) {
        return Verdict::Refused(refusal);
    }
    let candidates: Vec<(&PodUid, &Pod)> = others
        .iter()
        .filter(|other| yields(other.pod, other.is_static, pod, is_static))
        .filter_map(|other| Some((other.uid?, other.pod)))
        .collect();
    let others: Vec<&Pod> = others.iter().map(|other| other.pod).collect();
    match victims(&candidates, Amounts::missing(pod, &others, room)) {
        Some(victims) => Verdict::MakesRoom(victims),
        None => Verdict::Refused(refusal),
    }
}

fn priority(pod: &Pod) -> Option<i32> {
    pod.spec.as_ref().and_then(|spec| spec.priority)
}

/// Critical to the cluster or to this node.
fn is_critical(pod: &Pod, is_static: bool) -> bool {
    is_static || priority(pod).is_some_and(|priority| priority >= CRITICAL_PRIORITY)
}

/// Whether `pod` ends for the sake of `comer`.
fn yields(pod: &Pod, is_static: bool, comer: &Pod, comer_is_static: bool) -> bool {
    let critical_first = is_critical(comer, comer_is_static) && !is_critical(pod, is_static);
    critical_first || priority(comer).zip(priority(pod)).is_some_and(|(comer, pod)| comer > pod)
}

/// What is missing, or what one pod would give back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amounts {
    places: u64,
    cpu_millis: u64,
    memory_bytes: u64,
}

impl Amounts {
    fn of(pod: &Pod) -> Self {
        Self {
            places: 1,
            cpu_millis: pod_amount(pod, Side::Requests, "cpu").unsigned_millis(),
            memory_bytes: pod_amount(pod, Side::Requests, "memory").unsigned_value(),
        }
    }

    fn missing(pod: &Pod, others: &[&Pod], room: &NodeRoom) -> Self {
        let all = others.iter().fold(Self::of(pod), |sum, other| sum.with(Self::of(other)));
        let wanted = Self::of(pod);
        let places = u64::try_from(room.pods).unwrap_or(u64::MAX);
        Self {
            places: all.places.saturating_sub(places),
            // Who asks for nothing lacks nothing, however full the node is.
            cpu_millis: all.cpu_millis.saturating_sub(room.cpu_millis).min(wanted.cpu_millis),
            memory_bytes: all.memory_bytes.saturating_sub(room.memory_bytes).min(wanted.memory_bytes),
        }
    }

    fn with(self, more: Self) -> Self {
        Self {
            places: self.places.saturating_add(more.places),
            cpu_millis: self.cpu_millis.saturating_add(more.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(more.memory_bytes),
        }
    }

    fn without(self, given: Self) -> Self {
        Self {
            places: self.places.saturating_sub(given.places),
            cpu_millis: self.cpu_millis.saturating_sub(given.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(given.memory_bytes),
        }
    }

    fn is_nothing(self) -> bool {
        self == Self::default()
    }

    /// How much of what is missing would still be, 0 to 3: the part of each amount, squared.
    fn distance(self, given: Self) -> f64 {
        let left = self.without(given);
        let part = |left: u64, of: u64| if of == 0 { 0.0 } else { (left as f64 / of as f64).powi(2) };
        part(left.places, self.places)
            + part(left.cpu_millis, self.cpu_millis)
            + part(left.memory_bytes, self.memory_bytes)
    }
}

/// `None` where ending all of them would not do.
fn victims(candidates: &[(&PodUid, &Pod)], missing: Amounts) -> Option<Vec<PodUid>> {
    let of = |class: QosClass| -> Vec<(&PodUid, &Pod)> {
        candidates.iter().filter(|(_, pod)| qos_class(pod) == class).copied().collect()
    };
    let (best_effort, burstable, guaranteed) =
        (of(QosClass::BestEffort), of(QosClass::Burstable), of(QosClass::Guaranteed));
    let pods =
        |list: &[(&PodUid, &Pod)]| -> Vec<Amounts> { list.iter().map(|(_, pod)| Amounts::of(pod)).collect() };
    let after = |lists: [&[(&PodUid, &Pod)]; 2]| {
        lists.iter().flat_map(|list| pods(list)).fold(missing, Amounts::without)
    };
    // Of the dearer classes only what all of the cheaper ones cannot give.
    let dear = nearest(guaranteed, after([&best_effort, &burstable]))?;
    let middle = nearest(burstable, after([&best_effort, &dear]))?;
    let cheap = nearest(best_effort, after([&middle, &dear]))?;
    Some([cheap, middle, dear].concat().into_iter().map(|(uid, _)| uid.clone()).collect())
}

/// One after the other the pod that comes nearest to what is missing, the smaller of two that come as near.
fn nearest<'a>(
    mut pods: Vec<(&'a PodUid, &'a Pod)>,
    mut missing: Amounts,
) -> Option<Vec<(&'a PodUid, &'a Pod)>> {
    let mut chosen = Vec::new();
    while !missing.is_nothing() {
        let rank = |pod: &Pod| {
            let given = Amounts::of(pod);
            (missing.distance(given), given.memory_bytes, given.cpu_millis)
        };
        let ranked = pods.iter().enumerate().map(|(index, (_, pod))| (rank(pod), index));
        let (_, best) =
            ranked.min_by(|(a, _), (b, _)| a.0.total_cmp(&b.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))))?;
        let taken = pods.remove(best);
        missing = missing.without(Amounts::of(taken.1));
        chosen.push(taken);
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A pod by `[priority, cpu, memory]` requests; guaranteed where `limits` are the same.
    fn pod(priority: Option<i32>, cpu: &str, memory: &str, guaranteed: bool) -> Pod {
        let requests = json!({"cpu": cpu, "memory": memory});
        let resources = match (cpu, memory) {
            ("", "") => json!({}),
            _ if guaranteed => json!({"requests": requests, "limits": requests}),
            _ => json!({"requests": requests}),
        };
        let port: Value = json!([{"containerPort": 80, "hostPort": 80}]);
        let ports = if cpu == "port" { port } else { json!([]) };
        let resources = if cpu == "port" { json!({}) } else { resources };
        serde_json::from_value(json!({"metadata": {}, "spec": {"priority": priority,
            "containers": [{"name": "a", "image": "i", "resources": resources, "ports": ports}]}}))
        .unwrap()
    }

    const CRITICAL: Option<i32> = Some(CRITICAL_PRIORITY);

    fn decided(comer: &Pod, is_static: bool, others: &[(&str, Pod)], room: NodeRoom) -> String {
        let keys: Vec<(PodKey, PodUid)> =
            others.iter().map(|(name, _)| (PodKey::new("d", *name), PodUid::from(*name))).collect();
        let others: Vec<Other<'_>> = others
            .iter()
            .zip(&keys)
            .map(|((name, pod), (key, uid))| Other {
                key,
                uid: (!name.starts_with("bound")).then_some(uid),
                pod,
                is_static: name.starts_with("static"),
            })
            .collect();
        match decide(comer, is_static, &others, &room) {
            Verdict::Fits => "fits".to_owned(),
            Verdict::Refused(refusal) => refusal.reason().to_owned(),
            Verdict::MakesRoom(mut uids) => {
                uids.sort();
                uids.iter().map(PodUid::as_str).collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn critical_pods_make_the_least_room_that_does() {
        let room = NodeRoom { cpu_millis: 4000, memory_bytes: 4 << 30, pods: 10 };
        let small = || ("small", pod(Some(0), "500m", "512Mi", false));
        let large = || ("large", pod(Some(0), "2", "1Gi", false));
        let sure = || ("sure", pod(Some(0), "1500m", "1Gi", true));
        let idle = || ("idle", pod(Some(0), "", "", false));
        let full = || vec![small(), large(), sure(), idle()];
        let comer = |cpu| pod(CRITICAL, cpu, "1Mi", false);
        for (comer, others, wanted) in [
            (pod(Some(0), "1", "1Mi", false), full(), "OutOfcpu"),
            (pod(Some(CRITICAL_PRIORITY - 1), "1", "1Mi", false), full(), "OutOfcpu"),
            (comer("500m"), full(), "small"),
            (comer("1"), full(), "large"),
            (comer("2500m"), full(), "large small"),
            (comer("3"), full(), "large sure"),
            (comer("5"), full(), "OutOfcpu"),
            (comer("1"), vec![("sure", pod(None, "4", "1Gi", true))], "sure"),
            (comer("1"), vec![("static", pod(None, "4", "1Gi", true))], "OutOfcpu"),
            (comer("1"), vec![("equal", pod(CRITICAL, "4", "1Gi", true))], "OutOfcpu"),
            (comer("1"), vec![("bound", pod(None, "4", "1Gi", true))], "OutOfcpu"),
            (
                pod(Some(CRITICAL_PRIORITY + 1), "1", "1Mi", false),
                vec![("static", pod(CRITICAL, "4", "1Gi", true))],
                "static",
            ),
        ] {
            assert_eq!(decided(&comer, false, &others, room), wanted, "{:?}", comer.spec);
        }
        let plain = pod(None, "1", "1Mi", false);
        assert_eq!(decided(&plain, true, &full(), room), "large", "static pods are critical");
    }

    #[test]
    fn places_are_made_by_who_asks_for_least() {
        let room = NodeRoom { cpu_millis: 4000, memory_bytes: 4 << 30, pods: 3 };
        let others = || {
            vec![
                ("small", pod(None, "100m", "1Mi", false)),
                ("idle", pod(None, "", "", false)),
                ("sure", pod(None, "1", "1Gi", true)),
            ]
        };
        assert_eq!(decided(&pod(CRITICAL, "", "", false), false, &others(), room), "idle");
        assert_eq!(decided(&pod(CRITICAL, "3500m", "", false), false, &others(), room), "sure");
        let mut with_port = others();
        with_port.push(("port", pod(None, "port", "", false)));
        assert_eq!(decided(&pod(CRITICAL, "port", "", false), false, &with_port, room), "OutOfpods");
    }

    #[test]
    fn whatever_is_chosen_suffices() {
        let room = NodeRoom { cpu_millis: 4000, memory_bytes: 8 << 30, pods: 12 };
        for seed in 0_u64..200 {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut draw = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let pods: Vec<Pod> = (0..12)
                .map(|_| {
                    let (cpu, memory) = (draw(8) * 100, draw(10) * 100);
                    pod(None, &format!("{cpu}m"), &format!("{memory}Mi"), draw(2) == 0)
                })
                .collect();
            let uids: Vec<PodUid> = (0..12).map(|n| PodUid::from(n.to_string())).collect();
            let comer = pod(CRITICAL, &format!("{}m", 500 + draw(3000)), "2Gi", false);
            let candidates: Vec<(&PodUid, &Pod)> = uids.iter().zip(&pods).collect();
            let all: Vec<&Pod> = pods.iter().collect();
            let missing = Amounts::missing(&comer, &all, &room);
            let chosen = victims(&candidates, missing).unwrap();
            let of = |uid: &PodUid| candidates.iter().find(|(known, _)| *known == uid).unwrap().1;
            let left = chosen.iter().map(of).fold(missing, |left, pod| left.without(Amounts::of(pod)));
            assert!(left.is_nothing(), "seed {seed}");
        }
    }
}
