//! Values of the cgroups above containers in the units of the cgroup v2 files (kubelet-surface B9,
//! pkg/kubelet/cm/helpers_linux.go): pod, QoS class, kubepods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::pod::snapshot::{CgroupSettings, NodeContext};
use crate::pod::step::CgroupLimits;
use crate::resources::pod_sums::{Side, hugepage_kernel_size, hugepage_resources, is_limited, pod_amount};
use crate::resources::qos::{QosClass, qos_class};

/// Range of cgroup v1 shares (kernel/sched: MIN_SHARES, MAX_SHARES).
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
/// The kernel refuses quotas below 1 ms.
const MIN_QUOTA_US: u64 = 1000;

/// Milli-CPU to cgroup v1 shares, 2..=262144.
pub fn cpu_shares(millis: u64) -> u64 {
    (millis.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// Shares to cgroup v2 weight, 1..=10000.
pub fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(MIN_SHARES, MAX_SHARES) - MIN_SHARES) * 9999 / 262_142
}

/// Microseconds of CPU per period for a limit; `None` without limit.
pub fn cpu_quota_us(limit_millis: u64, period_us: u64) -> Option<u64> {
    (limit_millis > 0).then(|| (limit_millis.saturating_mul(period_us) / 1000).max(MIN_QUOTA_US))
}

/// What is written to a pod's own cgroup.
pub fn pod_limits(pod: &Pod, settings: &CgroupSettings) -> CgroupLimits {
    let class = qos_class(pod);
    let request = match class {
        QosClass::BestEffort => 0,
        QosClass::Guaranteed | QosClass::Burstable => {
            pod_amount(pod, Side::Requests, "cpu").unsigned_millis()
        }
    };
    let cpu_limit = if settings.cpu_cfs_quota && is_limited(pod, "cpu") {
        pod_amount(pod, Side::Limits, "cpu").unsigned_millis()
    } else {
        0
    };
    let memory = is_limited(pod, "memory").then(|| pod_amount(pod, Side::Limits, "memory").unsigned_value());
    let huge_pages = hugepage_resources(pod).into_iter().filter_map(|resource| {
        let bytes = pod_amount(pod, Side::Limits, &resource).unsigned_value();
        hugepage_kernel_size(&resource).map(|size| (size, bytes))
    });
    CgroupLimits {
        cpu_weight: Some(cpu_weight(cpu_shares(request))),
        cpu_max: cpu_quota_us(cpu_limit, settings.cpu_cfs_period_us)
            .map(|quota| (quota, settings.cpu_cfs_period_us)),
        memory_max: memory.filter(|bytes| *bytes > 0),
        pids_max: settings.pod_pids_limit,
        hugetlb: huge_pages.collect(),
    }
}

/// What is written to the cgroup of a QoS class, given the pods that are to run on the node.
pub fn qos_limits<'a>(class: QosClass, pods: impl IntoIterator<Item = &'a Pod>) -> CgroupLimits {
    let burstable = pods.into_iter().filter(|pod| qos_class(pod) == QosClass::Burstable);
    let requests: u64 = match class {
        QosClass::Burstable => {
            burstable.map(|pod| pod_amount(pod, Side::Requests, "cpu").unsigned_millis()).sum()
        }
        QosClass::BestEffort | QosClass::Guaranteed => 0,
    };
    CgroupLimits { cpu_weight: Some(cpu_weight(cpu_shares(requests))), ..CgroupLimits::default() }
}

/// What is written to kubepods: the node's allocatable; memory may grow by the hard eviction
/// threshold, so that eviction acts before the kernel does.
pub fn kubepods_limits(
    node: &NodeContext,
    eviction_memory_bytes: u64,
    pids_max: Option<u64>,
) -> CgroupLimits {
    CgroupLimits {
        cpu_weight: Some(cpu_weight(cpu_shares(node.allocatable_cpu_millis))),
        cpu_max: None,
        memory_max: Some(node.allocatable_memory_bytes.saturating_add(eviction_memory_bytes)),
        pids_max,
        hugetlb: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::{node, pod};
    use serde_json::json;

    #[test]
    fn shares_weights_and_quotas() {
        for (millis, shares, weight) in [
            (0, 2, 1),
            (1, 2, 1),
            (100, 102, 4),
            (1000, 1024, 39),
            (4000, 4096, 157),
            (u64::MAX, 262_144, 10_000),
        ] {
            assert_eq!(cpu_shares(millis), shares, "{millis}m");
            assert_eq!(cpu_weight(shares), weight, "{millis}m");
        }
        let cases = [
            (0, 100_000, None),
            (5, 100_000, Some(1000)),
            (1500, 100_000, Some(150_000)),
            (100, 5000, Some(1000)),
        ];
        for (limit, period, quota) in cases {
            assert_eq!(cpu_quota_us(limit, period), quota, "{limit}m of {period} us");
        }
    }

    #[test]
    fn pod_values_by_class() {
        let settings = CgroupSettings { pod_pids_limit: Some(1000), ..node().cgroups };
        let container = |resources| json!({"name": "a", "image": "i", "resources": resources});
        let plain = CgroupLimits { cpu_weight: Some(1), pids_max: Some(1000), ..CgroupLimits::default() };
        let cases = [
            (json!([{"name": "a", "image": "i"}]), plain.clone()),
            (
                json!([container(json!({"limits": {"cpu": "1", "memory": "64Mi", "hugepages-2Mi": "4Mi"}}))]),
                CgroupLimits {
                    cpu_weight: Some(39),
                    cpu_max: Some((100_000, 100_000)),
                    memory_max: Some(64 << 20),
                    pids_max: Some(1000),
                    hugetlb: BTreeMap::from([("2MB".to_owned(), 4 << 20)]),
                },
            ),
            // One container without limit: the pod has none, though the other is limited.
            (
                json!([container(json!({"limits": {"cpu": "1", "memory": "64Mi"}})), {"name": "b", "image": "i"}]),
                CgroupLimits { cpu_weight: Some(39), ..plain.clone() },
            ),
            (
                json!([container(json!({"requests": {"cpu": "100m"}, "limits": {"memory": "1Mi"}}))]),
                CgroupLimits { cpu_weight: Some(4), memory_max: Some(1 << 20), ..plain },
            ),
        ];
        for (containers, expected) in cases {
            let given = pod(json!({"spec": {"containers": containers}}));
            assert_eq!(pod_limits(&given, &settings), expected, "{containers}");
        }
    }

    #[test]
    fn levels_above_pods() {
        let burstable = pod(json!({"spec": {"containers": [{"name": "a", "image": "i",
            "resources": {"requests": {"cpu": "500m"}}}]}}));
        let idle = pod(json!({"spec": {"containers": [{"name": "a", "image": "i"}]}}));
        let pods = [&burstable, &burstable, &idle];
        assert_eq!(qos_limits(QosClass::Burstable, pods).cpu_weight, Some(39));
        assert_eq!(qos_limits(QosClass::BestEffort, pods).cpu_weight, Some(1));
        let top = kubepods_limits(&node(), 100 << 20, None);
        assert_eq!((top.cpu_weight, top.memory_max), (Some(157), Some((4 << 30) + (100 << 20))));
    }
}
