//! Requests and limits of a whole pod (component-helpers/resource): what runs at the same time is
//! added, init phases count by their largest, the pod's own statement and overhead come on top.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::containers::{Role, containers};
use crate::resources::quantity::{Amount, amount_or_zero};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Requests,
    Limits,
}

/// One side of a container's resources; a request that is absent is its limit.
pub fn container_amount(container: &Container, side: Side, name: &str) -> Amount {
    let Some(resources) = &container.resources else { return Amount::ZERO };
    let of =
        |list: &Option<BTreeMap<String, Quantity>>| list.as_ref().and_then(|list| list.get(name)).cloned();
    match side {
        Side::Limits => amount_or_zero(of(&resources.limits).as_ref()),
        Side::Requests => amount_or_zero(of(&resources.requests).or_else(|| of(&resources.limits)).as_ref()),
    }
}

/// The sum of one resource over the pod, with its overhead. Zero where nothing is stated.
pub fn pod_amount(pod: &Pod, side: Side, name: &str) -> Amount {
    let sum = own_amount(pod, side, name);
    // A limit of zero means no limit; overhead does not make one.
    if side == Side::Limits && sum.is_zero() { sum } else { sum.saturating_add(overhead(pod, name)) }
}

/// What the pod's sandbox itself takes beside its containers (RuntimeClass).
pub fn overhead(pod: &Pod, name: &str) -> Amount {
    let stated = pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref());
    amount_or_zero(stated.and_then(|list| list.get(name)))
}

/// The same sum without overhead.
pub fn own_amount(pod: &Pod, side: Side, name: &str) -> Amount {
    let spec = pod.spec.as_ref();
    let stated = spec.and_then(|spec| spec.resources.as_ref()).and_then(|own| match side {
        Side::Requests => own.requests.as_ref().and_then(|list| list.get(name)),
        Side::Limits => own.limits.as_ref().and_then(|list| list.get(name)),
    });
    match stated {
        Some(stated) => amount_or_zero(Some(stated)),
        None => containers_amount(pod, side, name),
    }
}

fn containers_amount(pod: &Pod, side: Side, name: &str) -> Amount {
    let (mut running, mut sidecars, mut init_peak) = (Amount::ZERO, Amount::ZERO, Amount::ZERO);
    for container in containers(pod) {
        let own = container_amount(&container.spec, side, name);
        match container.role {
            Role::Main => running = running.saturating_add(own),
            Role::Sidecar => {
                sidecars = sidecars.saturating_add(own);
                init_peak = init_peak.max(sidecars);
            }
            Role::Init => init_peak = init_peak.max(own.saturating_add(sidecars)),
            Role::Ephemeral => {}
        }
    }
    running.saturating_add(sidecars).max(init_peak)
}

/// Whether every container, or the pod itself, limits this resource: only then has the pod a limit.
pub fn is_limited(pod: &Pod, name: &str) -> bool {
    let own = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()).and_then(|own| own.limits.as_ref());
    if own.is_some_and(|limits| limits.contains_key(name)) {
        return true;
    }
    let all = containers(pod);
    let mut counted = all.iter().filter(|container| container.role != Role::Ephemeral).peekable();
    counted.peek().is_some()
        && counted.all(|container| !container_amount(&container.spec, Side::Limits, name).is_zero())
}

/// Names of the huge page resources the pod limits: `hugepages-2Mi`.
pub fn hugepage_resources(pod: &Pod) -> BTreeSet<String> {
    let all = containers(pod);
    let of_containers = all.iter().filter_map(|container| container.spec.resources.as_ref());
    let of_pod = pod.spec.iter().filter_map(|spec| spec.resources.as_ref());
    let limits = of_containers.chain(of_pod).filter_map(|resources| resources.limits.as_ref());
    limits.flat_map(|limits| limits.keys()).filter(|name| name.starts_with("hugepages-")).cloned().collect()
}

/// `hugepages-2Mi` -> `2MB`, the spelling of the kernel's hugetlb files; `None` for an odd size.
pub fn hugepage_kernel_size(resource: &str) -> Option<String> {
    let size = Amount::parse(resource.strip_prefix("hugepages-")?).ok()?.unsigned_value();
    for (shift, unit) in [(30, "GB"), (20, "MB"), (10, "KB")] {
        if size >= 1 << shift && size % (1 << shift) == 0 {
            return Some(format!("{}{unit}", size >> shift));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::pod;
    use serde_json::json;

    #[test]
    fn adds_what_runs_together() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let given = pod(json!({"spec": {
            "overhead": {"cpu": "10m"},
            "initContainers": [
                {"name": "i1", "image": "i", "resources": cpu("300m")},
                {"name": "s1", "image": "i", "restartPolicy": "Always", "resources": cpu("100m")},
                {"name": "i2", "image": "i", "resources": cpu("450m")}],
            "containers": [{"name": "a", "image": "i", "resources": cpu("200m")},
                {"name": "b", "image": "i", "resources": cpu("200m")}]}}));
        assert_eq!(
            pod_amount(&given, Side::Requests, "cpu").milli_value(),
            560,
            "i2 beside s1, and overhead"
        );
        assert_eq!(pod_amount(&given, Side::Limits, "cpu"), Amount::ZERO);
        assert!(!is_limited(&given, "cpu"));
    }

    #[test]
    fn huge_page_sizes_are_the_kernels() {
        let cases = [
            ("hugepages-2Mi", Some("2MB")),
            ("hugepages-1Gi", Some("1GB")),
            ("hugepages-64Ki", Some("64KB")),
            ("hugepages-x", None),
            ("cpu", None),
        ];
        for (resource, size) in cases {
            assert_eq!(hugepage_kernel_size(resource).as_deref(), size, "{resource}");
        }
    }
}
