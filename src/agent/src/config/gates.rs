//! Feature gates of a node, its pods and its Services: their defaults in Kubernetes 1.36, which is how
//! this agent behaves. A gate set otherwise, or one nobody knows, is named. Facts: pkg/features/kube_features.go.

use std::collections::BTreeMap;

use crate::document::Node;

/// On by default, or locked on.
const ON: &[&str] = &[
    "CPUCFSQuotaPeriod",
    "ComponentSLIs",
    "ContainerCheckpoint",
    "ContainerRestartRules",
    "ContextualLogging",
    "CustomCPUCFSQuotaPeriod",
    "DRAExtendedResource",
    "DisableCPUQuotaWithExclusiveCPUs",
    "DisableNodeKubeProxyVersion",
    "DynamicResourceAllocation",
    "EnvFiles",
    "ExtendWebSocketsToKubelet",
    "GracefulNodeShutdown",
    "GracefulNodeShutdownBasedOnPodPriority",
    "HostnameOverride",
    "ImageMaximumGCAge",
    "ImageVolume",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "KubeProxyDrainingTerminatingNodes",
    "KubeletCgroupDriverFromCRI",
    "KubeletCrashLoopBackOffMax",
    "KubeletEnsureSecretPulledImages",
    "KubeletFineGrainedAuthz",
    "KubeletPSI",
    "KubeletPodResourcesDynamicResources",
    "KubeletPodResourcesGet",
    "KubeletSeparateDiskGC",
    "KubeletServiceAccountTokenForCredentialProviders",
    "LoadBalancerIPMode",
    "LoggingBetaOptions",
    "MultiCIDRServiceAllocator",
    "NFTablesProxyMode",
    "NodeDeclaredFeatures",
    "NodeLogQuery",
    "NodeSwap",
    "PLEGOnDemandRelist",
    "PodLevelResources",
    "PodLifecycleSleepAction",
    "PodLifecycleSleepActionAllowZero",
    "PodObservedGenerationTracking",
    "PodReadyToStartContainersCondition",
    "PreferSameTrafficDistribution",
    "PreventStaticPodAPIReferences",
    "ProcMountType",
    "RecursiveReadOnlyMounts",
    "RelaxedDNSSearchValidation",
    "RelaxedEnvironmentVariableValidation",
    "ReloadKubeletClientCAFile",
    "ReloadKubeletServerCertificateFile",
    "ResourceHealthStatus",
    "RestartAllContainersOnContainerExits",
    "RotateKubeletServerCertificate",
    "SELinuxChangePolicy",
    "SELinuxMountReadWriteOncePod",
    "ServiceTrafficDistribution",
    "SidecarContainers",
    "SupplementalGroupsPolicy",
    "SystemdWatchdog",
    "TopologyAwareHints",
    "UserNamespacesSupport",
];

/// Off by default.
const OFF: &[&str] = &[
    "AllAlpha",
    "AllBeta",
    "ChangeContainerStatusOnKubeletRestart",
    "ClusterTrustBundleProjection",
    "ContainerStopSignals",
    "EventedPLEG",
    "KubeletInUserNamespace",
    "LoggingAlphaOptions",
    "MemoryQoS",
    "PodAndContainerStatsFromCRI",
    "PodCertificateRequest",
    "PodsAPI",
    "QOSReserved",
    "ReduceDefaultCrashLoopBackOffDecay",
    "SELinuxMount",
    "UserNamespacesHostNetworkSupport",
];

/// Known to every program of Kubernetes, and without a meaning here: how a Go client talks, pages about the
/// program itself, Windows.
const MEANINGLESS: &[&str] = &[
    "ClientsAllowCBOR",
    "ClientsPreferCBOR",
    "ComponentFlagz",
    "ComponentStatusz",
    "InOrderInformers",
    "InformerResourceVersion",
    "WatchListClient",
    "WinDSR",
    "WinOverlay",
];

/// One line per gate of a file that says something else than what this agent does. kubelet and kube-proxy
/// know the same gates, and so do both files here.
pub(super) fn warnings(file: &Node, given: &BTreeMap<String, bool>) -> Vec<String> {
    let place = |name: &str| {
        let written = file.get("featureGates");
        let node = written.and_then(|gates| gates.get(name)).or(written).unwrap_or(file);
        node.place.to_string()
    };
    let complaint =
        |(name, wanted)| Some(format!("{}: featureGates.{name}: {}", place(name), why(name, wanted)?));
    given.iter().map(|(name, wanted)| (name.as_str(), *wanted)).filter_map(complaint).collect()
}

/// What is wrong with a gate that is set so; `None` where it changes nothing.
fn why(name: &str, wanted: bool) -> Option<String> {
    let default = match (ON.contains(&name), OFF.contains(&name)) {
        (true, _) => true,
        (_, true) => false,
        _ if MEANINGLESS.contains(&name) => return None,
        _ => return Some("no gate that this version knows; it is ignored".to_owned()),
    };
    (wanted != default)
        .then(|| format!("is {wanted} and has no effect; this version behaves as with {default}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_a_difference_is_named() {
        let table = [
            ("NodeSwap", true, None),
            ("NFTablesProxyMode", true, None),
            ("WinDSR", false, None),
            ("EventedPLEG", true, Some("is true and has no effect; this version behaves as with false")),
            (
                "SidecarContainers",
                false,
                Some("is false and has no effect; this version behaves as with true"),
            ),
            ("Sidecars", true, Some("no gate that this version knows; it is ignored")),
        ];
        for (name, wanted, want) in table {
            assert_eq!(why(name, wanted).as_deref(), want, "{name}");
        }
    }

    #[test]
    fn no_gate_is_in_two_tables() {
        let tables = [ON, OFF, MEANINGLESS];
        assert!(tables.iter().all(|table| table.is_sorted()));
        let mut all = tables.concat();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    }
}
