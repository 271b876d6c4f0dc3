//! Rules for one container: image, ports, environment, mounts, security, restart rules.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec, SecurityContext, VolumeMount};

use super::{Problems, names, probe, quantity, resource_requirements};
use crate::pod::containers::{PodContainer, Role, containers};
use crate::pod::env::{is_field_path_known, is_resource_field_known};

pub(super) fn container(
    problems: &mut Problems,
    path: &str,
    spec: &PodSpec,
    container: &PodContainer<'_>,
    volumes: &BTreeSet<String>,
) {
    let given: &Container = &container.spec;
    if given.name.is_empty() {
        problems.add(&format!("{path}.name"), "is missing", "give the container a name");
    } else {
        names::label(problems, &format!("{path}.name"), &given.name);
    }
    if given.image.as_deref().unwrap_or("").trim().is_empty() {
        problems.add(&format!("{path}.image"), "is missing", "name the image to run");
    } else if given.image.as_deref().is_some_and(|image| image.trim() != image) {
        problems.add(&format!("{path}.image"), "has blanks around it", "remove them");
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    problems.one_of(&format!("{path}.imagePullPolicy"), given.image_pull_policy.as_deref(), &policies);
    problems.one_of(
        &format!("{path}.terminationMessagePolicy"),
        given.termination_message_policy.as_deref(),
        &["File", "FallbackToLogsOnError"],
    );
    ports(problems, path, given);
    env(problems, path, given);
    mounts(problems, path, given.volume_mounts.as_deref(), volumes);
    if given.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        problems.add(&format!("{path}.volumeDevices"), "block volumes are not supported", "remove it");
    }
    if let Some(resources) = &given.resources {
        resource_requirements(problems, &format!("{path}.resources"), resources);
    }
    if let Some(security) = &given.security_context {
        security_context(problems, &format!("{path}.securityContext"), security);
    }
    restart(problems, path, container);
    hooks_and_probes(problems, path, container);
    if spec.host_network == Some(true) {
        host_network_ports(problems, path, given);
    }
}

fn hooks_and_probes(problems: &mut Problems, path: &str, container: &PodContainer<'_>) {
    let given = &container.spec;
    let has_probe =
        given.liveness_probe.is_some() || given.readiness_probe.is_some() || given.startup_probe.is_some();
    if container.role == Role::Init && (has_probe || given.lifecycle.is_some()) {
        problems.add(
            path,
            "an init container cannot have probes or lifecycle hooks",
            "remove them, or make it a sidecar with restartPolicy: Always",
        );
        return;
    }
    probe::probes(problems, path, given);
    if let Some(lifecycle) = &given.lifecycle {
        probe::lifecycle(problems, path, lifecycle, given);
    }
}

fn restart(problems: &mut Problems, path: &str, container: &PodContainer<'_>) {
    let field = format!("{path}.restartPolicy");
    problems.one_of(&field, container.spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"]);
    for (index, rule) in container.spec.restart_policy_rules.iter().flatten().enumerate() {
        let path = format!("{path}.restartPolicyRules[{index}]");
        if container.spec.restart_policy.is_none() {
            problems.add(
                &path,
                "needs the container's own restartPolicy",
                "set restartPolicy beside the rules",
            );
        }
        problems.one_of(&format!("{path}.action"), Some(&rule.action), &["Restart"]);
        match &rule.exit_codes {
            None => problems.add(&format!("{path}.exitCodes"), "is missing", "give operator and values"),
            Some(codes) => {
                problems.one_of(
                    &format!("{path}.exitCodes.operator"),
                    Some(&codes.operator),
                    &["In", "NotIn"],
                );
            }
        }
    }
}

fn ports(problems: &mut Problems, path: &str, container: &Container) {
    let mut seen = BTreeSet::new();
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let path = format!("{path}.ports[{index}]");
        names::port(problems, &format!("{path}.containerPort"), port.container_port);
        if let Some(host_port) = port.host_port.filter(|port| *port != 0) {
            names::port(problems, &format!("{path}.hostPort"), host_port);
        }
        problems.one_of(&format!("{path}.protocol"), port.protocol.as_deref(), &["TCP", "UDP", "SCTP"]);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            names::port_name(problems, &format!("{path}.name"), name);
            if !seen.insert(name) {
                let problem = format!("{name:?} is the name of two ports");
                problems.add(&format!("{path}.name"), problem, "give each port its own name");
            }
        }
        if let Some(ip) = port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
            names::ip(problems, &format!("{path}.hostIP"), ip);
        }
    }
}

fn host_network_ports(problems: &mut Problems, path: &str, container: &Container) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        if port.host_port.is_some_and(|host| host != port.container_port) {
            problems.add(
                &format!("{path}.ports[{index}].containerPort"),
                "must equal hostPort in a hostNetwork pod",
                "use the same number, or leave out hostPort",
            );
        }
    }
}

/// No two containers of the pod take the same port of the node.
pub(super) fn host_ports(problems: &mut Problems, pod: &Pod) {
    let mut taken: BTreeMap<(String, i32, String), String> = BTreeMap::new();
    for container in containers(pod).iter().filter(|container| container.role != Role::Init) {
        for (index, port) in container.spec.ports.iter().flatten().enumerate() {
            let Some(host_port) = port.host_port.filter(|port| *port != 0) else { continue };
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let field = format!("spec.{}[{}].ports[{index}].hostPort", container.list(), container.index);
            let key = (protocol, host_port, port.host_ip.clone().unwrap_or_default());
            if let Some(other) = taken.get(&key) {
                let problem = format!("{host_port}/{} is also taken by {other}", key.0);
                problems.add(&field, problem, "use another hostPort");
            } else {
                taken.insert(key, field);
            }
        }
    }
}

fn env(problems: &mut Problems, path: &str, container: &Container) {
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let path = format!("{path}.env[{index}]");
        names::env_name(problems, &format!("{path}.name"), &variable.name);
        env_source(problems, &path, variable);
    }
    for (index, source) in container.env_from.iter().flatten().enumerate() {
        let path = format!("{path}.envFrom[{index}]");
        if source.config_map_ref.is_some() == source.secret_ref.is_some() {
            problems.add(&path, "must have exactly one source", "give configMapRef or secretRef");
        }
    }
}

fn env_source(problems: &mut Problems, path: &str, variable: &EnvVar) {
    let Some(source) = &variable.value_from else { return };
    if variable.value.as_ref().is_some_and(|value| !value.is_empty()) {
        problems.add(path, "has both value and valueFrom", "keep one");
    }
    let kinds = [
        source.field_ref.is_some(),
        source.resource_field_ref.is_some(),
        source.config_map_key_ref.is_some(),
        source.secret_key_ref.is_some(),
        source.file_key_ref.is_some(),
    ];
    if kinds.iter().filter(|given| **given).count() != 1 {
        problems.add(
            &format!("{path}.valueFrom"),
            "must have exactly one source",
            "give one of fieldRef, resourceFieldRef, configMapKeyRef and secretKeyRef",
        );
    }
    if source.file_key_ref.is_some() {
        problems.add(&format!("{path}.valueFrom.fileKeyRef"), "is not supported", "use a configMapKeyRef");
    }
    if let Some(field) = &source.field_ref
        && !is_field_path_known(&field.field_path)
    {
        problems.add(
            &format!("{path}.valueFrom.fieldRef.fieldPath"),
            format!("{:?} is not a field a container can read", field.field_path),
            "use metadata.name, .namespace, .uid, .labels['key'], .annotations['key'], spec.nodeName, \
             spec.serviceAccountName, status.hostIP(s) or status.podIP(s)",
        );
    }
    if let Some(field) = &source.resource_field_ref {
        if !is_resource_field_known(&field.resource) {
            problems.add(
                &format!("{path}.valueFrom.resourceFieldRef.resource"),
                format!("{:?} is not known", field.resource),
                "use limits. or requests. with cpu, memory, ephemeral-storage or hugepages-<size>",
            );
        }
        if let Some(divisor) = &field.divisor {
            quantity(problems, &format!("{path}.valueFrom.resourceFieldRef.divisor"), &divisor.0);
        }
    }
}

fn mounts(problems: &mut Problems, path: &str, mounts: Option<&[VolumeMount]>, volumes: &BTreeSet<String>) {
    let mut seen = BTreeSet::new();
    for (index, mount) in mounts.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if !volumes.contains(&mount.name) {
            problems.add(
                &format!("{path}.name"),
                format!("the pod has no volume named {:?}", mount.name),
                "add it to spec.volumes, or mount one that is there",
            );
        }
        if mount.mount_path.is_empty() || mount.mount_path.contains(':') {
            problems.add(
                &format!("{path}.mountPath"),
                format!("{:?} is not a path to mount at", mount.mount_path),
                "write an absolute path without ':'",
            );
        }
        if !seen.insert(mount.mount_path.trim_end_matches('/').to_owned()) {
            let problem = format!("{} is mounted twice", mount.mount_path);
            problems.add(&format!("{path}.mountPath"), problem, "choose another path");
        }
        sub_path(problems, &path, mount);
        let modes = ["None", "HostToContainer", "Bidirectional"];
        problems.one_of(&format!("{path}.mountPropagation"), mount.mount_propagation.as_deref(), &modes);
        let modes = ["Disabled", "IfPossible", "Enabled"];
        problems.one_of(&format!("{path}.recursiveReadOnly"), mount.recursive_read_only.as_deref(), &modes);
    }
}

fn sub_path(problems: &mut Problems, path: &str, mount: &VolumeMount) {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (plain, expression) = (given(&mount.sub_path), given(&mount.sub_path_expr));
    if plain.is_some() && expression.is_some() {
        problems.add(&format!("{path}.subPathExpr"), "is given together with subPath", "keep one");
    }
    if let Some(sub_path) = plain {
        names::relative_path(problems, &format!("{path}.subPath"), &sub_path);
    }
    if let Some(sub_path) = expression {
        names::relative_path(problems, &format!("{path}.subPathExpr"), &sub_path);
    }
}

fn security_context(problems: &mut Problems, path: &str, security: &SecurityContext) {
    problems.at_least(&format!("{path}.runAsUser"), security.run_as_user, 0);
    problems.at_least(&format!("{path}.runAsGroup"), security.run_as_group, 0);
    problems.one_of(&format!("{path}.procMount"), security.proc_mount.as_deref(), &["Default", "Unmasked"]);
    let escalation = security.allow_privilege_escalation;
    if escalation == Some(false) && security.privileged == Some(true) {
        problems.add(
            &format!("{path}.allowPrivilegeEscalation"),
            "cannot be false in a privileged container",
            "remove one of the two",
        );
    }
    let adds_admin = security
        .capabilities
        .iter()
        .flat_map(|caps| caps.add.iter().flatten())
        .any(|cap| cap == "CAP_SYS_ADMIN" || cap == "SYS_ADMIN");
    if escalation == Some(false) && adds_admin {
        problems.add(
            &format!("{path}.allowPrivilegeEscalation"),
            "cannot be false together with CAP_SYS_ADMIN",
            "remove one of the two",
        );
    }
    if let Some(seccomp) = &security.seccomp_profile {
        profile(
            problems,
            &format!("{path}.seccompProfile"),
            &seccomp.type_,
            seccomp.localhost_profile.as_deref(),
        );
    }
    if let Some(apparmor) = &security.app_armor_profile {
        profile(
            problems,
            &format!("{path}.appArmorProfile"),
            &apparmor.type_,
            apparmor.localhost_profile.as_deref(),
        );
    }
}

pub(super) fn profile(problems: &mut Problems, path: &str, kind: &str, localhost: Option<&str>) {
    problems.one_of(&format!("{path}.type"), Some(kind), &["RuntimeDefault", "Unconfined", "Localhost"]);
    let given = localhost.is_some_and(|profile| !profile.is_empty());
    if (kind == "Localhost") != given {
        problems.add(
            &format!("{path}.localhostProfile"),
            "goes with type Localhost and only with it",
            "set both, or remove the profile",
        );
    }
    if let Some(text) = localhost.filter(|text| text.split('/').any(|part| part == "..")) {
        problems.add(
            &format!("{path}.localhostProfile"),
            format!("{text:?} contains '..'"),
            "write it without '..'",
        );
    }
}
