//! Security contexts of sandbox and containers (pkg/kubelet/kuberuntime/security_context*.go).

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext,
};

use crate::pod::containers::{containers, spec};
use crate::pod::snapshot::NodeContext;
use crate::pod::spec::{
    ContainerSecurity, NamespaceMode, NamespaceModes, SandboxSecurity, SecurityProfile, SelinuxOptions,
};
use crate::pod::step::ImageUser;

/// Paths of /proc and /sys that tell about or change the node (pkg/securitycontext/util.go).
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub fn namespaces(pod: &Pod) -> NamespaceModes {
    let spec = spec(pod);
    let node_or = |flag: Option<bool>, other| if flag == Some(true) { NamespaceMode::Node } else { other };
    let shared_pid = spec.share_process_namespace == Some(true);
    let own_pid = if shared_pid { NamespaceMode::Pod } else { NamespaceMode::Container };
    NamespaceModes {
        network: node_or(spec.host_network, NamespaceMode::Pod),
        pid: node_or(spec.host_pid, own_pid),
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod),
    }
}

pub fn sandbox_security(pod: &Pod, node: &NodeContext) -> SandboxSecurity {
    let security = pod_security(pod);
    SandboxSecurity {
        namespaces: namespaces(pod),
        privileged: containers(pod).iter().any(|container| is_privileged(&container.spec)),
        readonly_rootfs: false,
        run_as_user: security.run_as_user,
        run_as_group: security.run_as_group,
        supplemental_groups: supplemental_groups(&security),
        strict_supplemental_groups: is_strict(&security),
        selinux: security.se_linux_options.as_ref().map(selinux),
        // The pause process needs nothing of what a workload's profile may allow.
        seccomp: security
            .seccomp_profile
            .as_ref()
            .map_or(SecurityProfile::RuntimeDefault, |profile| seccomp_profile(profile, node)),
    }
}

/// The container's context over the pod's; `image_user` decides where both leave the user open.
pub fn container_security(
    pod: &Pod,
    container: &Container,
    image_user: &ImageUser,
    node: &NodeContext,
) -> ContainerSecurity {
    let whole = pod_security(pod);
    let own = container.security_context.clone().unwrap_or_default();
    let (user, username) = match (own.run_as_user.or(whole.run_as_user), image_user) {
        (Some(user), _) => (Some(user), String::new()),
        (None, ImageUser::Uid(user)) => (Some(*user), String::new()),
        (None, ImageUser::Name(name)) => (None, name.clone()),
        (None, ImageUser::Unset) => (None, String::new()),
    };
    let privileged = own.privileged == Some(true);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| {
        if unmasked { Vec::new() } else { list.iter().map(|path| (*path).to_owned()).collect() }
    };
    let capabilities = own.capabilities.clone().unwrap_or_default();
    ContainerSecurity {
        namespaces: namespaces(pod),
        process_target: None,
        privileged,
        add_capabilities: capability_names(capabilities.add),
        drop_capabilities: capability_names(capabilities.drop),
        run_as_user: user,
        run_as_username: username,
        run_as_group: own.run_as_group.or(whole.run_as_group),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: supplemental_groups(&whole),
        strict_supplemental_groups: is_strict(&whole),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        selinux: own.se_linux_options.as_ref().or(whole.se_linux_options.as_ref()).map(selinux),
        seccomp: seccomp(&own, &whole, node),
        apparmor: own.app_armor_profile.as_ref().or(whole.app_armor_profile.as_ref()).map(apparmor),
    }
}

/// runAsNonRoot needs a user that is known and not 0 (behaviours 53). Says what is wrong and the mend.
pub fn check_non_root(pod: &Pod, container: &Container, image_user: &ImageUser) -> Result<(), String> {
    let whole = pod_security(pod);
    let own = container.security_context.as_ref();
    let asked = own.and_then(|own| own.run_as_non_root).or(whole.run_as_non_root) == Some(true);
    if !asked {
        return Ok(());
    }
    let name = &container.name;
    let problem = match (own.and_then(|own| own.run_as_user).or(whole.run_as_user), image_user) {
        (Some(0), _) => "runAsUser is 0; use another user".to_owned(),
        (Some(_), _) => return Ok(()),
        (None, ImageUser::Uid(user)) if *user != 0 => return Ok(()),
        (None, ImageUser::Name(user)) => {
            format!("the image's user {user:?} is no number, so it cannot be told from root; set runAsUser")
        }
        (None, ImageUser::Uid(_) | ImageUser::Unset) => "the image runs as root; set runAsUser".to_owned(),
    };
    Err(format!("container {name} has runAsNonRoot, but {problem}"))
}

pub fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|own| own.privileged) == Some(true)
}

fn pod_security(pod: &Pod) -> PodSecurityContext {
    spec(pod).security_context.clone().unwrap_or_default()
}

/// fsGroup first, then the stated groups.
fn supplemental_groups(security: &PodSecurityContext) -> Vec<i64> {
    security.fs_group.into_iter().chain(security.supplemental_groups.iter().flatten().copied()).collect()
}

fn is_strict(security: &PodSecurityContext) -> bool {
    security.supplemental_groups_policy.as_deref() == Some("Strict")
}

/// CRI wants the names without `CAP_`.
fn capability_names(names: Option<Vec<String>>) -> Vec<String> {
    names.into_iter().flatten().map(|name| name.strip_prefix("CAP_").unwrap_or(&name).to_owned()).collect()
}

fn seccomp(own: &SecurityContext, whole: &PodSecurityContext, node: &NodeContext) -> SecurityProfile {
    match own.seccomp_profile.as_ref().or(whole.seccomp_profile.as_ref()) {
        Some(profile) => seccomp_profile(profile, node),
        None if node.seccomp_default => SecurityProfile::RuntimeDefault,
        None => SecurityProfile::Unconfined,
    }
}

fn seccomp_profile(profile: &SeccompProfile, node: &NodeContext) -> SecurityProfile {
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Localhost", Some(file)) => {
            let path = node.root_dir.join("seccomp").join(file.trim_start_matches('/'));
            SecurityProfile::Localhost(path.to_string_lossy().into_owned())
        }
        ("Unconfined", _) => SecurityProfile::Unconfined,
        _ => SecurityProfile::RuntimeDefault,
    }
}

fn apparmor(profile: &AppArmorProfile) -> SecurityProfile {
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Localhost", Some(name)) => SecurityProfile::Localhost(name.clone()),
        ("Unconfined", _) => SecurityProfile::Unconfined,
        _ => SecurityProfile::RuntimeDefault,
    }
}

fn selinux(options: &SELinuxOptions) -> SelinuxOptions {
    SelinuxOptions {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        kind: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::{node, pod};
    use serde_json::{Value, json};

    fn parts(spec: Value, container: Value) -> (Pod, Container) {
        let mut all = json!({"name": "a", "image": "i"});
        all.as_object_mut().unwrap().insert("securityContext".to_owned(), container);
        let container: Container = serde_json::from_value(all.clone()).unwrap();
        let mut spec = spec;
        spec.as_object_mut().unwrap().insert("containers".to_owned(), json!([all]));
        (pod(json!({"metadata": {"name": "w"}, "spec": spec})), container)
    }

    #[test]
    fn container_over_pod_over_image() {
        let (pod, container) = parts(
            json!({"securityContext": {"runAsUser": 5, "runAsGroup": 6, "fsGroup": 7, "supplementalGroups": [8, 9],
                "seccompProfile": {"type": "RuntimeDefault"}}}),
            json!({"runAsUser": 10, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["ALL"]},
                "seccompProfile": {"type": "Localhost", "localhostProfile": "p/x.json"}}),
        );
        let made = container_security(&pod, &container, &ImageUser::Uid(3), &node());
        assert_eq!((made.run_as_user, made.run_as_group), (Some(10), Some(6)));
        assert_eq!(made.supplemental_groups, [7, 8, 9]);
        assert!(made.readonly_rootfs && made.no_new_privs && !made.privileged);
        assert_eq!(
            (made.add_capabilities, made.drop_capabilities),
            (vec!["NET_ADMIN".to_owned()], vec!["ALL".to_owned()])
        );
        assert_eq!(made.seccomp, SecurityProfile::Localhost("/var/lib/kubelet/seccomp/p/x.json".to_owned()));
        assert_eq!(made.masked_paths.len(), 12);
    }

    #[test]
    fn privileged_sees_everything() {
        let (pod, container) = parts(json!({}), json!({"privileged": true}));
        let made = container_security(&pod, &container, &ImageUser::Name("app".to_owned()), &node());
        assert!(made.masked_paths.is_empty() && made.readonly_paths.is_empty());
        assert_eq!((made.run_as_user, made.run_as_username.as_str()), (None, "app"));
        assert_eq!(made.seccomp, SecurityProfile::Unconfined);
        assert!(sandbox_security(&pod, &node()).privileged);
    }

    #[test]
    fn namespaces_by_flag() {
        use NamespaceMode::{Container as Own, Node, Pod};
        let cases = [
            (json!({}), (Pod, Own, Pod)),
            (json!({"shareProcessNamespace": true}), (Pod, Pod, Pod)),
            (json!({"hostNetwork": true, "hostPID": true, "hostIPC": true}), (Node, Node, Node)),
        ];
        for (spec, expected) in cases {
            let made = namespaces(&parts(spec.clone(), json!({})).0);
            assert_eq!((made.network, made.pid, made.ipc), expected, "{spec}");
        }
    }

    #[test]
    fn non_root_needs_a_known_user() {
        let asked = json!({"runAsNonRoot": true});
        let cases = [
            (json!({}), ImageUser::Unset, true),
            (asked.clone(), ImageUser::Unset, false),
            (asked.clone(), ImageUser::Uid(0), false),
            (asked.clone(), ImageUser::Uid(7), true),
            (asked, ImageUser::Name("app".to_owned()), false),
            (json!({"runAsNonRoot": true, "runAsUser": 0}), ImageUser::Uid(7), false),
            (json!({"runAsNonRoot": true, "runAsUser": 7}), ImageUser::Unset, true),
        ];
        for (context, user, fine) in cases {
            let (pod, container) = parts(json!({}), context.clone());
            assert_eq!(check_non_root(&pod, &container, &user).is_ok(), fine, "{context} {user:?}");
        }
    }
}
