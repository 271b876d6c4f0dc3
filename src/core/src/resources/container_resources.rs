//! Resources of one container as CRI takes them (behaviours 44-46,
//! pkg/kubelet/kuberuntime/kuberuntime_container_linux.go).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod::containers::{Role, containers, is_sidecar};
use crate::pod::snapshot::NodeContext;
use crate::pod::spec::LinuxResources;
use crate::resources::cgroup_values::{cpu_quota_us, cpu_shares};
use crate::resources::pod_sums::{Side, container_amount, hugepage_kernel_size, overhead, own_amount};
use crate::resources::qos::{QosClass, qos_class};
use crate::resources::quantity::Amount;

/// Pods at or above this priority are critical to the node (system-node-critical).
const NODE_CRITICAL_PRIORITY: i32 = 2_000_001_000;
/// Pods at or above this one are critical to the cluster (system-cluster-critical).
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;
const OOM_GUARANTEED: i64 = -997;
const OOM_BEST_EFFORT: i64 = 1000;

pub fn container_resources(pod: &Pod, container: &Container, node: &NodeContext) -> LinuxResources {
    let request = container_amount(container, Side::Requests, "cpu").unsigned_millis();
    let limit = container_amount(container, Side::Limits, "cpu").unsigned_millis();
    let period = node.cgroups.cpu_cfs_period_us;
    let quota = if node.cgroups.cpu_cfs_quota { cpu_quota_us(limit, period) } else { None };
    let memory = container_amount(container, Side::Limits, "memory").value();
    LinuxResources {
        cpu_shares: Some(cpu_shares(request)),
        cpu_quota_us: quota.and_then(|quota| i64::try_from(quota).ok()),
        cpu_period_us: quota.map(|_| period),
        memory_limit_bytes: (memory > 0).then_some(memory),
        memory_swap_limit_bytes: None,
        oom_score_adj: Some(oom_score_adj(pod, container, node.capacity_memory_bytes)),
        cpuset_cpus: String::new(),
        cpuset_mems: String::new(),
        hugepage_limits: hugepage_limits(container, &node.hugepage_sizes),
        unified: unified(pod, container, node),
    }
}

/// The pod's sum without its overhead, for runtimes that size a virtual machine by it.
pub fn sandbox_resources(pod: &Pod, node: &NodeContext) -> LinuxResources {
    let amount = |side, name| own_amount(pod, side, name);
    of_sandbox(
        amount(Side::Requests, "cpu"),
        amount(Side::Limits, "cpu"),
        amount(Side::Limits, "memory"),
        node,
    )
}

/// The pod's overhead, told apart from the sum; `None` where it has none.
pub fn overhead_resources(pod: &Pod, node: &NodeContext) -> Option<LinuxResources> {
    let stated = pod.spec.as_ref()?.overhead.as_ref()?;
    let cpu = overhead(pod, "cpu");
    (!stated.is_empty()).then(|| of_sandbox(cpu, cpu, overhead(pod, "memory"), node))
}

fn of_sandbox(request: Amount, limit: Amount, memory: Amount, node: &NodeContext) -> LinuxResources {
    let quota = cpu_quota_us(limit.unsigned_millis(), node.cgroups.cpu_cfs_period_us);
    let memory = memory.value();
    LinuxResources {
        cpu_shares: Some(cpu_shares(request.unsigned_millis())),
        cpu_quota_us: quota.and_then(|quota| i64::try_from(quota).ok()),
        cpu_period_us: quota.map(|_| node.cgroups.cpu_cfs_period_us),
        memory_limit_bytes: (memory > 0).then_some(memory),
        ..LinuxResources::default()
    }
}

/// Without a managed tree the node may have no cgroup controllers at all: then no raw files.
/// The whole container is killed with its first out-of-memory process.
fn unified(pod: &Pod, container: &Container, node: &NodeContext) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    if node.cgroups.per_qos {
        files.insert("memory.swap.max".to_owned(), swap_limit(pod, container, node).to_string());
        if !node.cgroups.single_process_oom_kill {
            files.insert("memory.oom.group".to_owned(), "1".to_owned());
        }
    }
    files
}

/// Bytes a container may swap (behaviours 45, KEP-2400): with LimitedSwap, containers of Burstable pods
/// that are not critical get the share of the node's swap that their request is of its memory. One whose
/// request is its limit asked for memory that is there; all others swap nothing.
fn swap_limit(pod: &Pod, container: &Container, node: &NodeContext) -> u64 {
    let request = container_amount(container, Side::Requests, "memory").unsigned_value();
    let limit = container_amount(container, Side::Limits, "memory").unsigned_value();
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    let may_swap = node.cgroups.limited_swap
        && qos_class(pod) == QosClass::Burstable
        && priority < CRITICAL_PRIORITY
        && request > 0
        && request != limit;
    if !may_swap {
        return 0;
    }
    let share =
        u128::from(node.swap_bytes) * u128::from(request) / u128::from(node.capacity_memory_bytes.max(1));
    u64::try_from(share).unwrap_or(node.swap_bytes).min(node.swap_bytes)
}

/// Every size the kernel has is limited: to zero where it was not asked for.
fn hugepage_limits(container: &Container, sizes: &[String]) -> BTreeMap<String, u64> {
    let mut limits: BTreeMap<String, u64> = sizes.iter().map(|size| (size.clone(), 0)).collect();
    let given = container.resources.iter().filter_map(|resources| resources.limits.as_ref()).flatten();
    for (resource, _) in given {
        if let Some(size) = hugepage_kernel_size(resource) {
            limits.insert(size, container_amount(container, Side::Limits, resource).unsigned_value());
        }
    }
    limits
}

/// Behaviours 44 (pkg/kubelet/qos/policy.go): the less of what it asked for a container uses up,
/// the later it is killed.
pub fn oom_score_adj(pod: &Pod, container: &Container, capacity_bytes: u64) -> i64 {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    if priority >= NODE_CRITICAL_PRIORITY {
        return OOM_GUARANTEED;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => OOM_GUARANTEED,
        QosClass::BestEffort => OOM_BEST_EFFORT,
        QosClass::Burstable => {
            let own = burstable_score(container, capacity_bytes);
            if is_sidecar(container) { own.min(lowest_main_score(pod, capacity_bytes)) } else { own }
        }
    }
}

/// A sidecar is not killed before the containers it serves.
fn lowest_main_score(pod: &Pod, capacity_bytes: u64) -> i64 {
    let all = containers(pod);
    let main = all.iter().filter(|container| container.role == Role::Main);
    main.map(|container| burstable_score(&container.spec, capacity_bytes)).min().unwrap_or(OOM_BEST_EFFORT)
}

fn burstable_score(container: &Container, capacity_bytes: u64) -> i64 {
    let request: Amount = container_amount(container, Side::Requests, "memory");
    let share = i128::from(request.unsigned_value()) * 1000 / i128::from(capacity_bytes.max(1));
    i64::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::{node, pod};
    use serde_json::json;

    fn made(resources: serde_json::Value) -> LinuxResources {
        let pod = pod(json!({"spec": {"containers": [{"name": "a", "image": "i", "resources": resources}]}}));
        container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], &node())
    }

    #[test]
    fn values_follow_requests_and_limits() {
        let none = made(json!({}));
        assert_eq!((none.cpu_shares, none.cpu_quota_us, none.memory_limit_bytes), (Some(2), None, None));
        assert_eq!(none.oom_score_adj, Some(1000));
        assert_eq!(none.unified.get("memory.oom.group").map(String::as_str), Some("1"));
        assert_eq!(none.hugepage_limits, BTreeMap::from([("1GB".to_owned(), 0), ("2MB".to_owned(), 0)]));
        let full = made(json!({"limits": {"cpu": "500m", "memory": "64Mi", "hugepages-2Mi": "2Mi"}}));
        assert_eq!(
            (full.cpu_shares, full.cpu_quota_us, full.cpu_period_us),
            (Some(512), Some(50_000), Some(100_000))
        );
        assert_eq!((full.memory_limit_bytes, full.oom_score_adj), (Some(64 << 20), Some(-997)));
        assert_eq!(full.hugepage_limits.get("2MB"), Some(&(2 << 20)));
    }

    #[test]
    fn oom_scores() {
        let requests = |memory: &str| json!({"requests": {"memory": memory}});
        let cases = [("2Gi", 750), ("8Gi", 3), ("1", 999), ("80Gi", 3)];
        for (memory, score) in cases {
            assert_eq!(made(requests(memory)).oom_score_adj, Some(score), "{memory}");
        }
        let given = pod(json!({"spec": {
            "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "image": "i", "resources": requests("4Gi")}]}}));
        let sidecar = &given.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[0];
        assert_eq!(oom_score_adj(&given, sidecar, 8 << 30), 500);
        let critical = pod(
            json!({"spec": {"priority": NODE_CRITICAL_PRIORITY, "containers": [{"name": "a", "image": "i"}]}}),
        );
        assert_eq!(oom_score_adj(&critical, &critical.spec.as_ref().unwrap().containers[0], 8 << 30), -997);
    }

    #[test]
    fn no_raw_files_without_a_tree() {
        let mut node = node();
        node.cgroups.per_qos = false;
        assert!(unified(&Pod::default(), &Container::default(), &node).is_empty());
    }

    #[test]
    fn swap_is_shared_out_by_request() {
        // 8 GiB of memory, 4 GiB of swap.
        let both = |request: &str, limit: &str| json!({"requests": {"memory": request}, "limits": {"memory": limit}});
        let cases = [
            (true, 0, json!({"requests": {"memory": "2Gi"}}), 1_u64 << 30),
            (true, 0, both("1Gi", "2Gi"), 1 << 29),
            (true, 0, both("80Gi", "90Gi"), 4 << 30),
            (true, 0, json!({}), 0),
            (true, 0, json!({"requests": {"cpu": "1"}}), 0),
            (true, 0, both("1Gi", "1Gi"), 0),
            (true, CRITICAL_PRIORITY, both("1Gi", "2Gi"), 0),
            (false, 0, both("1Gi", "2Gi"), 0),
        ];
        for (limited, priority, resources, expected) in cases {
            let given = pod(json!({"spec": {"priority": priority,
                "containers": [{"name": "a", "image": "i", "resources": resources}]}}));
            let mut node = node();
            node.cgroups.limited_swap = limited;
            let files = unified(&given, &given.spec.as_ref().unwrap().containers[0], &node);
            assert_eq!(files["memory.swap.max"], expected.to_string(), "{limited} {priority} {resources}");
        }
    }
}
