//! Whether a pod may be on this node at all: node selectors, required node affinity and taints, as the node checks
//! them once more when a pod comes to it (behaviours 34; KEP-166, component-helpers/scheduling/corev1).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};

use super::admission::Refusal;

/// What of the Node object decides which pods it takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
}

/// Static pods came from the node itself: no taint keeps them away.
pub fn check(pod: &Pod, is_static: bool, node: &Placement) -> Result<(), Refusal> {
    selected(pod, node)?;
    let Some(taint) = node.taints.iter().find(|taint| !is_static && keeps_away(pod, taint)) else {
        return Ok(());
    };
    let value = taint.value.as_deref().unwrap_or_default();
    Err(Refusal::Taint { taint: format!("{}={value}:{}", taint.key, taint.effect) })
}

/// Whether the pod's selector and required affinity choose this node.
pub fn selected(pod: &Pod, node: &Placement) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    for (key, value) in spec.node_selector.iter().flatten() {
        if node.labels.get(key) != Some(value) {
            return Err(Refusal::NodeAffinity { wanted: format!("nodeSelector {key}={value}") });
        }
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    match required {
        Some(required) if !required.node_selector_terms.iter().any(|term| meets(term, node)) => {
            Err(Refusal::NodeAffinity { wanted: "one of its required node affinity terms".to_owned() })
        }
        _ => Ok(()),
    }
}

/// All requirements of a term; one without any chooses nothing.
fn meets(term: &NodeSelectorTerm, node: &Placement) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field = |one: &NodeSelectorRequirement| (one.key == "metadata.name").then_some(node.name.as_str());
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|one| holds(one, node.labels.get(&one.key).map(String::as_str)))
        && fields.iter().all(|one| field(one).is_some_and(|name| holds(one, Some(name))))
}

/// An operator of the API over a label's value, `None` where the node has no such label.
fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|one| one == value));
    let compared = || -> Option<std::cmp::Ordering> {
        let [bound] = values else { return None };
        Some(value?.parse::<i64>().ok()?.cmp(&bound.parse::<i64>().ok()?))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => compared().is_some_and(std::cmp::Ordering::is_lt),
        _ => false,
    }
}

/// A node itself only minds taints that end what runs; the others are the scheduler's.
fn keeps_away(pod: &Pod, taint: &Taint) -> bool {
    let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    taint.effect == "NoExecute" && !tolerations.into_iter().any(|one| tolerates(one, taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (given(&toleration.effect), given(&toleration.key));
    let exists = toleration.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() && exists || key == taint.key)
        && (exists
            || matches!(toleration.operator.as_deref(), None | Some("" | "Equal"))
                && given(&toleration.value) == given(&taint.value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(taints: Value) -> Placement {
        Placement {
            name: "n1".to_owned(),
            labels: [("disk", "ssd"), ("cores", "8"), ("empty", "")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            taints: serde_json::from_value(taints).unwrap(),
        }
    }

    fn made(spec: Value, is_static: bool, node: &Placement) -> Option<String> {
        let mut whole = json!({"containers": []});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": whole})).unwrap();
        check(&pod, is_static, node).err().map(|refusal| format!("{}: {refusal}", refusal.reason()))
    }

    #[test]
    fn selectors_and_affinity_choose_the_node() {
        let terms = |terms: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": terms}}}})
        };
        let expression = |key: &str, operator: &str, values: Value| {
            terms(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
        };
        for (spec, fits) in [
            (json!({}), true),
            (json!({"nodeSelector": {"disk": "ssd", "empty": ""}}), true),
            (json!({"nodeSelector": {"disk": "hdd"}}), false),
            (json!({"nodeSelector": {"zone": ""}}), false),
            (expression("disk", "In", json!(["hdd", "ssd"])), true),
            (expression("disk", "In", json!(["hdd"])), false),
            (expression("zone", "In", json!([""])), false),
            (expression("disk", "NotIn", json!(["hdd"])), true),
            (expression("zone", "NotIn", json!(["a"])), true),
            (expression("disk", "NotIn", json!(["ssd"])), false),
            (expression("empty", "Exists", json!([])), true),
            (expression("zone", "Exists", json!([])), false),
            (expression("zone", "DoesNotExist", json!([])), true),
            (expression("disk", "DoesNotExist", json!([])), false),
            (expression("cores", "Gt", json!(["7"])), true),
            (expression("cores", "Gt", json!(["8"])), false),
            (expression("cores", "Lt", json!(["9"])), true),
            (expression("disk", "Lt", json!(["9"])), false),
            (expression("cores", "Gt", json!(["many"])), false),
            (expression("cores", "Near", json!(["8"])), false),
            (terms(json!([])), false),
            (terms(json!([{}])), false),
            (terms(json!([{}, {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}])), true),
            (
                terms(
                    json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]),
                ),
                true,
            ),
            (
                terms(
                    json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]),
                ),
                false,
            ),
            (terms(json!([{"matchFields": [{"key": "spec.x", "operator": "DoesNotExist"}]}])), false),
        ] {
            let said = made(spec.clone(), true, &node(json!([])));
            assert_eq!(said.is_none(), fits, "{spec}: {said:?}");
            assert!(said.is_none_or(|said| said.starts_with("NodeAffinity: ")));
        }
    }

    #[test]
    fn only_taints_that_end_pods_keep_them_away() {
        let taint = |effect: &str| json!([{"key": "k", "value": "v", "effect": effect}]);
        let tolerating = |toleration: Value| json!({"tolerations": [toleration]});
        for (spec, effect, fits) in [
            (json!({}), "NoSchedule", true),
            (json!({}), "NoExecute", false),
            (tolerating(json!({"operator": "Exists"})), "NoExecute", true),
            (tolerating(json!({"operator": "Exists", "effect": "NoSchedule"})), "NoExecute", false),
            (tolerating(json!({"key": "k", "operator": "Exists"})), "NoExecute", true),
            (tolerating(json!({"key": "k", "value": "v"})), "NoExecute", true),
            (tolerating(json!({"key": "k", "value": "w"})), "NoExecute", false),
            (
                tolerating(json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute"})),
                "NoExecute",
                true,
            ),
            (tolerating(json!({"key": "other", "operator": "Exists"})), "NoExecute", false),
            (tolerating(json!({"value": "v"})), "NoExecute", false),
        ] {
            let node = node(taint(effect));
            let said = made(spec.clone(), false, &node);
            assert_eq!(said.is_none(), fits, "{spec} {effect}: {said:?}");
            assert!(
                said.is_none_or(
                    |said| said.starts_with("TaintToleration: ") && said.contains("k=v:NoExecute")
                )
            );
            assert_eq!(made(spec, true, &node), None, "static pods stay");
        }
    }
}
