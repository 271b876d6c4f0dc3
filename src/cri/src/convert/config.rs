//! What is asked of the runtime: sandbox and container specs to CRI messages.

use std::collections::{BTreeMap, HashMap};

use longshore_core::pod::spec::{
    ContainerMount, ContainerSecurity, ContainerSpec, DnsConfig, LinuxResources, MountPropagation,
    NamespaceMode, NamespaceModes, PortMapping, PortProtocol, SandboxSecurity, SandboxSpec, SecurityProfile,
    SelinuxOptions,
};

use crate::api::v1;
use crate::images::RegistryAuth;

pub(crate) fn sandbox_config(spec: &SandboxSpec) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: spec.key.name.to_string(),
            uid: spec.uid.to_string(),
            namespace: spec.key.namespace.to_string(),
            attempt: spec.attempt,
        }),
        hostname: spec.hostname.clone(),
        log_directory: spec.log_directory.clone(),
        dns_config: spec.dns.as_ref().map(dns_config),
        port_mappings: spec.port_mappings.iter().map(port_mapping).collect(),
        labels: map(&spec.labels),
        annotations: map(&spec.annotations),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: spec.cgroup_parent.clone(),
            security_context: Some(sandbox_security(&spec.security)),
            sysctls: map(&spec.sysctls),
            overhead: spec.overhead.as_ref().map(linux_resources),
            resources: spec.resources.as_ref().map(linux_resources),
        }),
        windows: None,
    }
}

pub(crate) fn container_config(spec: &ContainerSpec) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: spec.name.to_string(), attempt: spec.attempt }),
        image: Some(v1::ImageSpec {
            image: spec.image_ref.clone(),
            user_specified_image: spec.user_image.clone(),
            ..Default::default()
        }),
        command: spec.command.clone(),
        args: spec.args.clone(),
        working_dir: spec.working_dir.clone(),
        envs: spec.env.iter().map(env).collect(),
        mounts: spec.mounts.iter().map(mount).collect(),
        devices: spec
            .devices
            .iter()
            .map(|device| v1::Device {
                container_path: device.container_path.clone(),
                host_path: device.host_path.clone(),
                permissions: device.permissions.clone(),
            })
            .collect(),
        labels: map(&spec.labels),
        annotations: map(&spec.annotations),
        log_path: spec.log_path.clone(),
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        tty: spec.tty,
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(linux_resources(&spec.resources)),
            security_context: Some(container_security(&spec.security)),
        }),
        ..Default::default()
    }
}

/// Zero and empty mean `leave it to the runtime` in CRI, so `None` becomes zero.
pub(crate) fn linux_resources(resources: &LinuxResources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period_us.map_or(0, saturated),
        cpu_quota: resources.cpu_quota_us.unwrap_or(0),
        cpu_shares: resources.cpu_shares.map_or(0, saturated),
        memory_limit_in_bytes: resources.memory_limit_bytes.unwrap_or(0),
        oom_score_adj: resources.oom_score_adj.unwrap_or(0),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| v1::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: map(&resources.unified),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes.unwrap_or(0),
    }
}

pub(crate) fn auth_config(auth: &RegistryAuth) -> v1::AuthConfig {
    v1::AuthConfig {
        username: auth.username.clone(),
        password: auth.password.clone(),
        auth: auth.auth.clone(),
        server_address: auth.server_address.clone(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
    }
}

fn sandbox_security(security: &SandboxSecurity) -> v1::LinuxSandboxSecurityContext {
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(security.namespaces)),
        selinux_options: security.selinux.as_ref().map(selinux),
        run_as_user: security.run_as_user.map(number),
        run_as_group: security.run_as_group.map(number),
        readonly_rootfs: security.readonly_rootfs,
        supplemental_groups: security.supplemental_groups.clone(),
        supplemental_groups_policy: groups_policy(security.strict_supplemental_groups),
        privileged: security.privileged,
        seccomp: Some(profile(&security.seccomp)),
        ..Default::default()
    }
}

fn container_security(security: &ContainerSecurity) -> v1::LinuxContainerSecurityContext {
    v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            add_capabilities: security.add_capabilities.clone(),
            drop_capabilities: security.drop_capabilities.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: security.privileged,
        namespace_options: Some(container_namespaces(security)),
        selinux_options: security.selinux.as_ref().map(selinux),
        run_as_user: security.run_as_user.map(number),
        run_as_group: security.run_as_group.map(number),
        run_as_username: security.run_as_username.clone(),
        readonly_rootfs: security.readonly_rootfs,
        supplemental_groups: security.supplemental_groups.clone(),
        supplemental_groups_policy: groups_policy(security.strict_supplemental_groups),
        no_new_privs: security.no_new_privs,
        masked_paths: security.masked_paths.clone(),
        readonly_paths: security.readonly_paths.clone(),
        seccomp: Some(profile(&security.seccomp)),
        apparmor: security.apparmor.as_ref().map(profile),
        ..Default::default()
    }
}

fn namespaces(modes: NamespaceModes) -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: namespace(modes.network).into(),
        pid: namespace(modes.pid).into(),
        ipc: namespace(modes.ipc).into(),
        ..Default::default()
    }
}

fn container_namespaces(security: &ContainerSecurity) -> v1::NamespaceOption {
    let own = namespaces(security.namespaces);
    match &security.process_target {
        Some(target) => v1::NamespaceOption {
            pid: v1::NamespaceMode::Target.into(),
            target_id: target.to_string(),
            ..own
        },
        None => own,
    }
}

fn namespace(mode: NamespaceMode) -> v1::NamespaceMode {
    match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod,
        NamespaceMode::Container => v1::NamespaceMode::Container,
        NamespaceMode::Node => v1::NamespaceMode::Node,
    }
}

fn profile(profile: &SecurityProfile) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let (kind, localhost_ref) = match profile {
        SecurityProfile::RuntimeDefault => (ProfileType::RuntimeDefault, ""),
        SecurityProfile::Unconfined => (ProfileType::Unconfined, ""),
        SecurityProfile::Localhost(name) => (ProfileType::Localhost, name.as_str()),
    };
    v1::SecurityProfile { profile_type: kind.into(), localhost_ref: localhost_ref.to_owned() }
}

fn selinux(options: &SelinuxOptions) -> v1::SeLinuxOption {
    v1::SeLinuxOption {
        user: options.user.clone(),
        role: options.role.clone(),
        r#type: options.kind.clone(),
        level: options.level.clone(),
    }
}

fn groups_policy(strict: bool) -> i32 {
    if strict { v1::SupplementalGroupsPolicy::Strict } else { v1::SupplementalGroupsPolicy::Merge }.into()
}

fn dns_config(dns: &DnsConfig) -> v1::DnsConfig {
    v1::DnsConfig {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    }
}

fn port_mapping(mapping: &PortMapping) -> v1::PortMapping {
    let protocol = match mapping.protocol {
        PortProtocol::Tcp => v1::Protocol::Tcp,
        PortProtocol::Udp => v1::Protocol::Udp,
        PortProtocol::Sctp => v1::Protocol::Sctp,
    };
    v1::PortMapping {
        protocol: protocol.into(),
        container_port: i32::from(mapping.container_port),
        host_port: i32::from(mapping.host_port),
        host_ip: mapping.host_ip.clone(),
    }
}

fn mount(mount: &ContainerMount) -> v1::Mount {
    let propagation = match mount.propagation {
        MountPropagation::Private => v1::MountPropagation::PropagationPrivate,
        MountPropagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        MountPropagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_readonly,
        ..Default::default()
    }
}

fn env((key, value): &(String, String)) -> v1::KeyValue {
    v1::KeyValue { key: key.clone(), value: value.clone().into_bytes() }
}

fn number(value: i64) -> v1::Int64Value {
    v1::Int64Value { value }
}

fn saturated(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn map(pairs: &BTreeMap<String, String>) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
