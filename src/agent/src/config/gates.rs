//! Feature gates of a node: their defaults in Kubernetes 1.36, which is how this agent behaves. A gate
//! set otherwise, or one nobody knows, is named. Facts: pkg/features/kube_features.go.

use std::collections::BTreeMap;

/// On by default, or locked on.
const ON: &[&str] = &[
    "CPUCFSQuotaPeriod",
    "ContainerCheckpoint",
    "ContainerRestartRules",
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
    "KubeletCgroupDriverFromCRI",
    "KubeletCrashLoopBackOffMax",
    "KubeletEnsureSecretPulledImages",
    "KubeletFineGrainedAuthz",
    "KubeletPSI",
    "KubeletPodResourcesDynamicResources",
    "KubeletPodResourcesGet",
    "KubeletSeparateDiskGC",
    "KubeletServiceAccountTokenForCredentialProviders",
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
    "SidecarContainers",
    "SupplementalGroupsPolicy",
    "SystemdWatchdog",
    "UserNamespacesSupport",
];

/// Off by default.
const OFF: &[&str] = &[
    "AllAlpha",
    "ChangeContainerStatusOnKubeletRestart",
    "ClusterTrustBundleProjection",
    "ContainerStopSignals",
    "EventedPLEG",
    "KubeletInUserNamespace",
    "MemoryQoS",
    "PodAndContainerStatsFromCRI",
    "PodCertificateRequest",
    "PodsAPI",
    "QOSReserved",
    "ReduceDefaultCrashLoopBackOffDecay",
    "SELinuxMount",
    "UserNamespacesHostNetworkSupport",
];

/// One line per gate that says something else than what this agent does.
pub(super) fn warnings(given: &BTreeMap<String, bool>) -> Vec<String> {
    let warning = |(name, wanted): (&String, &bool)| {
        let default = match (ON.contains(&name.as_str()), OFF.contains(&name.as_str())) {
            (true, _) => true,
            (_, true) => false,
            _ => {
                return Some(format!(
                    "featureGates.{name}: no gate of a node that this version knows; it is ignored"
                ));
            }
        };
        (*wanted != default).then(|| {
            format!(
                "featureGates.{name}: is {wanted} and has no effect; this version behaves as with {default}"
            )
        })
    };
    given.iter().filter_map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_a_difference_is_named() {
        let given =
            [("NodeSwap", true), ("EventedPLEG", true), ("SidecarContainers", false), ("Sidecars", true)];
        let given = given.into_iter().map(|(name, on)| (name.to_owned(), on)).collect();
        assert_eq!(
            warnings(&given),
            [
                "featureGates.EventedPLEG: is true and has no effect; this version behaves as with false",
                "featureGates.SidecarContainers: is false and has no effect; this version behaves as with true",
                "featureGates.Sidecars: no gate of a node that this version knows; it is ignored",
            ]
        );
    }

    #[test]
    fn no_gate_is_in_both_tables() {
        assert!(ON.is_sorted() && OFF.is_sorted() && ON.iter().all(|gate| !OFF.contains(gate)));
    }
}
