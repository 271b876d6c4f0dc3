//! Tables for the conversions, and a property: no bytes make them panic.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use longshore_core::ids::{ContainerName, PodKey, PodUid, SandboxId};
use longshore_core::pod::observed::{ContainerState, SandboxState};
use longshore_core::pod::spec::{
    ContainerDevice, ContainerMount, ContainerSecurity, ContainerSpec, DnsConfig, LinuxResources,
    MountPropagation, NamespaceMode, NamespaceModes, PortMapping, PortProtocol, SandboxSecurity, SandboxSpec,
    SecurityProfile, SelinuxOptions,
};
use longshore_core::pod::step::ImageUser;
use prost::Message;

use super::*;
use crate::api::v1;
use crate::containers::{ContainerFilter, ContainerPhase};
use crate::events::EventKind;
use crate::runtime_info::CgroupDriver;
use crate::sandboxes::SandboxFilter;

fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn hashed(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    strings(pairs).into_iter().collect()
}

fn namespaces() -> NamespaceModes {
    NamespaceModes { network: NamespaceMode::Node, pid: NamespaceMode::Container, ipc: NamespaceMode::Pod }
}

fn resources() -> LinuxResources {
    LinuxResources {
        cpu_shares: Some(512),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        memory_limit_bytes: Some(64 << 20),
        memory_swap_limit_bytes: Some(64 << 20),
        oom_score_adj: Some(-997),
        cpuset_cpus: "0-1".to_owned(),
        cpuset_mems: "0".to_owned(),
        hugepage_limits: BTreeMap::from([("2MB".to_owned(), 0)]),
        unified: strings(&[("memory.oom.group", "1")]),
    }
}

fn sandbox_spec() -> SandboxSpec {
    SandboxSpec {
        key: PodKey::new("default", "web"),
        uid: PodUid::from("uid-1"),
        attempt: 2,
        hostname: "web".to_owned(),
        log_directory: "/var/log/pods/default_web_uid-1".to_owned(),
        dns: Some(DnsConfig {
            servers: vec!["10.96.0.10".to_owned()],
            searches: vec!["default.svc.cluster.local".to_owned()],
            options: vec!["ndots:5".to_owned()],
        }),
        port_mappings: vec![PortMapping {
            protocol: PortProtocol::Udp,
            container_port: 53,
            host_port: 5353,
            host_ip: "127.0.0.1".to_owned(),
        }],
        labels: strings(&[(labels::POD_UID, "uid-1")]),
        annotations: strings(&[("a", "b")]),
        cgroup_parent: "/kubepods/burstable/poduid-1".to_owned(),
        sysctls: strings(&[("net.core.somaxconn", "1024")]),
        security: SandboxSecurity {
            namespaces: namespaces(),
            privileged: true,
            readonly_rootfs: true,
            run_as_user: Some(1000),
            run_as_group: Some(0),
            supplemental_groups: vec![5],
            strict_supplemental_groups: true,
            selinux: Some(SelinuxOptions { kind: "spc_t".to_owned(), ..Default::default() }),
            seccomp: SecurityProfile::Localhost("/var/lib/kubelet/seccomp/p.json".to_owned()),
        },
        resources: Some(resources()),
        overhead: None,
        runtime_handler: "kata".to_owned(),
    }
}

fn container_spec() -> ContainerSpec {
    ContainerSpec {
        name: ContainerName::from("app"),
        attempt: 3,
        image_ref: "sha256:abc".to_owned(),
        user_image: "web:1".to_owned(),
        command: vec!["/bin/web".to_owned()],
        args: vec!["-v".to_owned()],
        working_dir: "/srv".to_owned(),
        env: vec![("A".to_owned(), "ü".to_owned()), ("A".to_owned(), "2".to_owned())],
        mounts: vec![ContainerMount {
            container_path: "/data".to_owned(),
            host_path: "/var/lib/kubelet/pods/uid-1/volumes/x".to_owned(),
            readonly: true,
            recursive_readonly: true,
            selinux_relabel: true,
            propagation: MountPropagation::HostToContainer,
        }],
        devices: vec![ContainerDevice {
            host_path: "/dev/fuse".to_owned(),
            container_path: "/dev/fuse".to_owned(),
            permissions: "rw".to_owned(),
        }],
        labels: strings(&[(labels::CONTAINER_NAME, "app")]),
        annotations: strings(&[("io.kubernetes.container.hash", "1")]),
        log_path: "app/3.log".to_owned(),
        stdin: true,
        stdin_once: true,
        tty: true,
        resources: resources(),
        security: ContainerSecurity {
            namespaces: namespaces(),
            process_target: None,
            privileged: false,
            add_capabilities: vec!["NET_ADMIN".to_owned()],
            drop_capabilities: vec!["ALL".to_owned()],
            run_as_user: None,
            run_as_username: "nobody".to_owned(),
            run_as_group: Some(7),
            readonly_rootfs: true,
            supplemental_groups: vec![1, 2],
            strict_supplemental_groups: false,
            no_new_privs: true,
            masked_paths: vec!["/proc/kcore".to_owned()],
            readonly_paths: vec!["/proc/sys".to_owned()],
            selinux: None,
            seccomp: SecurityProfile::RuntimeDefault,
            apparmor: Some(SecurityProfile::Unconfined),
        },
    }
}

#[test]
fn a_container_joins_the_processes_of_its_target() {
    let mut spec = container_spec();
    spec.security.process_target = Some("c9".into());
    let security = container_config(&spec).linux.unwrap().security_context.unwrap();
    let options = security.namespace_options.unwrap();
    assert_eq!((options.pid(), &*options.target_id), (v1::NamespaceMode::Target, "c9"));
    assert_eq!(options.ipc(), v1::NamespaceMode::Pod, "only processes are another's");
}

#[test]
fn a_sandbox_spec_keeps_everything() {
    let config = sandbox_config(&sandbox_spec());
    let metadata = config.metadata.unwrap();
    assert_eq!((&*metadata.name, &*metadata.namespace, &*metadata.uid), ("web", "default", "uid-1"));
    assert_eq!(metadata.attempt, 2);
    assert_eq!((&*config.hostname, &*config.log_directory), ("web", "/var/log/pods/default_web_uid-1"));
    assert_eq!(config.dns_config.unwrap().options, ["ndots:5"]);
    let port = &config.port_mappings[0];
    assert_eq!((port.protocol(), port.container_port, port.host_port), (v1::Protocol::Udp, 53, 5353));
    assert_eq!(port.host_ip, "127.0.0.1");
    assert_eq!(config.labels, hashed(&[(labels::POD_UID, "uid-1")]));
    assert_eq!(config.annotations, hashed(&[("a", "b")]));
    let linux = config.linux.unwrap();
    assert_eq!(linux.cgroup_parent, "/kubepods/burstable/poduid-1");
    assert_eq!(linux.sysctls, hashed(&[("net.core.somaxconn", "1024")]));
    assert_eq!((linux.resources.unwrap().cpu_shares, linux.overhead), (512, None));
    let security = linux.security_context.unwrap();
    let options = security.namespace_options.as_ref().unwrap();
    assert_eq!(options.network(), v1::NamespaceMode::Node);
    assert_eq!((options.pid(), options.ipc()), (v1::NamespaceMode::Container, v1::NamespaceMode::Pod));
    assert!(security.privileged && security.readonly_rootfs);
    assert_eq!((security.run_as_user.unwrap().value, security.run_as_group.unwrap().value), (1000, 0));
    assert_eq!(security.supplemental_groups_policy(), v1::SupplementalGroupsPolicy::Strict);
    assert_eq!(security.supplemental_groups, [5]);
    assert_eq!(security.selinux_options.as_ref().unwrap().r#type, "spc_t");
    let seccomp = security.seccomp.as_ref().unwrap();
    assert_eq!(seccomp.profile_type(), v1::security_profile::ProfileType::Localhost);
    assert_eq!(seccomp.localhost_ref, "/var/lib/kubelet/seccomp/p.json");
}

#[test]
fn a_container_spec_keeps_everything() {
    let config = container_config(&container_spec());
    assert_eq!(config.metadata, Some(v1::ContainerMetadata { name: "app".to_owned(), attempt: 3 }));
    let image = config.image.unwrap();
    assert_eq!((&*image.image, &*image.user_specified_image), ("sha256:abc", "web:1"));
    assert_eq!((config.command, config.args), (vec!["/bin/web".to_owned()], vec!["-v".to_owned()]));
    // Order and repetition are the caller's: the last one wins in the runtime.
    let env: Vec<_> = config.envs.iter().map(|env| (&*env.key, &*env.value)).collect();
    assert_eq!(env, [("A", "ü".as_bytes()), ("A", b"2")]);
    let mount = &config.mounts[0];
    assert!(mount.readonly && mount.recursive_read_only && mount.selinux_relabel);
    assert_eq!(mount.propagation(), v1::MountPropagation::PropagationHostToContainer);
    assert_eq!((&*mount.container_path, &*config.devices[0].permissions), ("/data", "rw"));
    assert_eq!((&*config.log_path, &*config.working_dir), ("app/3.log", "/srv"));
    assert!(config.stdin && config.stdin_once && config.tty);
    assert_eq!(config.labels, hashed(&[(labels::CONTAINER_NAME, "app")]));
    let linux = config.linux.unwrap();
    let limits = linux.resources.unwrap();
    assert_eq!((limits.cpu_quota, limits.cpu_period, limits.cpu_shares), (50_000, 100_000, 512));
    assert_eq!((limits.memory_limit_in_bytes, limits.memory_swap_limit_in_bytes), (64 << 20, 64 << 20));
    assert_eq!((limits.oom_score_adj, &*limits.cpuset_cpus, &*limits.cpuset_mems), (-997, "0-1", "0"));
    assert_eq!(limits.hugepage_limits, [v1::HugepageLimit { page_size: "2MB".to_owned(), limit: 0 }]);
    assert_eq!(limits.unified, hashed(&[("memory.oom.group", "1")]));
    let security = linux.security_context.unwrap();
    let capabilities = security.capabilities.as_ref().unwrap();
    assert_eq!(
        (&*capabilities.add_capabilities[0], &*capabilities.drop_capabilities[0]),
        ("NET_ADMIN", "ALL")
    );
    assert_eq!((security.run_as_user, security.run_as_group.unwrap().value), (None, 7));
    assert_eq!(security.run_as_username, "nobody");
    assert!(security.readonly_rootfs && security.no_new_privs && !security.privileged);
    assert_eq!((&*security.masked_paths[0], &*security.readonly_paths[0]), ("/proc/kcore", "/proc/sys"));
    assert_eq!(security.supplemental_groups_policy(), v1::SupplementalGroupsPolicy::Merge);
    let apparmor = security.apparmor.as_ref().unwrap();
    assert_eq!(apparmor.profile_type(), v1::security_profile::ProfileType::Unconfined);
    // The old string forms stay empty: a runtime that knows both would take the wrong one.
    #[allow(deprecated)]
    let old = (&*security.apparmor_profile, &*security.seccomp_profile_path);
    assert_eq!(old, ("", ""));
}

#[test]
fn what_is_left_open_stays_open() {
    let limits = linux_resources(&LinuxResources::default());
    assert_eq!(limits, v1::LinuxContainerResources::default());
    let huge = LinuxResources { cpu_shares: Some(u64::MAX), ..Default::default() };
    assert_eq!(linux_resources(&huge).cpu_shares, i64::MAX);
}

#[test]
fn filters_ask_for_what_is_set() {
    assert_eq!(sandbox_filter(&SandboxFilter::default()), v1::PodSandboxFilter::default());
    let filter = SandboxFilter {
        pod: Some(PodUid::from("u")),
        state: Some(SandboxState::NotReady),
        ..Default::default()
    };
    let filter = sandbox_filter(&filter);
    assert_eq!(filter.label_selector, hashed(&[(labels::POD_UID, "u")]));
    assert_eq!(filter.state.unwrap().state(), v1::PodSandboxState::SandboxNotready);
    let filter = ContainerFilter {
        sandbox: Some(SandboxId::from("s")),
        state: Some(ContainerPhase::Exited),
        ..Default::default()
    };
    let filter = container_filter(&filter);
    assert_eq!((&*filter.pod_sandbox_id, &*filter.id), ("s", ""));
    assert_eq!(filter.state.unwrap().state(), v1::ContainerState::ContainerExited);
}

fn sandbox_status() -> v1::PodSandboxStatus {
    v1::PodSandboxStatus {
        id: "s1".to_owned(),
        metadata: Some(v1::PodSandboxMetadata {
            name: "web".to_owned(),
            namespace: "default".to_owned(),
            uid: "uid-1".to_owned(),
            attempt: 1,
        }),
        state: v1::PodSandboxState::SandboxReady.into(),
        created_at: 1_700_000_000_000_000_000,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: "10.1.0.7".to_owned(),
            additional_ips: vec![v1::PodIp { ip: "fd00::7".to_owned() }],
        }),
        labels: hashed(&[(labels::POD_UID, "uid-1")]),
        ..Default::default()
    }
}

#[test]
fn a_sandbox_status_is_read() {
    let seen = observed_sandbox(&sandbox_status()).unwrap();
    assert_eq!((seen.id.as_str(), seen.attempt, seen.state), ("s1", 1, SandboxState::Ready));
    assert_eq!(seen.created_at.as_second(), 1_700_000_000);
    assert_eq!(seen.ips, ["10.1.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
    assert!(!seen.host_network);
    let mut host = sandbox_status();
    host.network = Some(v1::PodSandboxNetworkStatus::default());
    let options = v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
    host.linux =
        Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) });
    let seen = observed_sandbox(&host).unwrap();
    assert_eq!((seen.host_network, seen.ips.len()), (true, 0));
}

#[test]
fn bad_sandboxes_are_named() {
    type Spoil = fn(&mut v1::PodSandboxStatus);
    let cases: [(Spoil, &str); 7] = [
        (|s| s.id.clear(), "a sandbox: id is missing"),
        (|s| s.id = "../x".to_owned(), "a sandbox: id is not an id: \"../x\""),
        (|s| s.id = "x".repeat(300), "a sandbox: id has 300 bytes"),
        (|s| s.metadata = None, "s1: metadata is missing"),
        (|s| s.state = 7, "s1: state is 7, which no version has"),
        (|s| s.created_at = -5, "s1: created_at is before 1970: -5"),
        (
            |s| s.network.as_mut().unwrap().ip = "10.1".to_owned(),
            "s1: network.ip is not an address: \"10.1\"",
        ),
    ];
    for (spoil, wanted) in cases {
        let mut status = sandbox_status();
        spoil(&mut status);
        assert_eq!(observed_sandbox(&status).unwrap_err().to_string(), wanted);
    }
}

fn container_status(state: v1::ContainerState) -> v1::ContainerStatus {
    v1::ContainerStatus {
        id: "c1".to_owned(),
        metadata: Some(v1::ContainerMetadata { name: "app".to_owned(), attempt: 4 }),
        state: state.into(),
        created_at: 1_000_000_000,
        started_at: 2_000_000_000,
        finished_at: 3_000_000_000,
        exit_code: 137,
        reason: "OOMKilled".to_owned(),
        image: Some(v1::ImageSpec {
            image: "sha256:1".to_owned(),
            user_specified_image: "web:1".to_owned(),
            ..Default::default()
        }),
        image_ref: "web@sha256:2".to_owned(),
        log_path: "/var/log/pods/x/app/4.log".to_owned(),
        ..Default::default()
    }
}

fn second(at: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(at).unwrap()
}

#[test]
fn container_states_are_read() {
    use v1::ContainerState as S;
    let exited = |started_at, finished_at| ContainerState::Exited {
        started_at,
        finished_at,
        exit_code: 137,
        reason: "OOMKilled".to_owned(),
        message: String::new(),
    };
    type Spoil = fn(&mut v1::ContainerStatus);
    let cases: [(S, Spoil, ContainerState); 7] = [
        (S::ContainerCreated, |_| {}, ContainerState::Created),
        (S::ContainerRunning, |_| {}, ContainerState::Running { started_at: second(2) }),
        (S::ContainerRunning, |s| s.started_at = 0, ContainerState::Running { started_at: second(1) }),
        (S::ContainerExited, |_| {}, exited(Some(second(2)), second(3))),
        // What never started has no start; without an end the last known time stands in.
        (S::ContainerExited, |s| (s.started_at, s.finished_at) = (0, 0), exited(None, second(1))),
        (S::ContainerUnknown, |_| {}, ContainerState::Unknown),
        (S::ContainerRunning, |s| s.state = 99, ContainerState::Unknown),
    ];
    for (state, spoil, wanted) in cases {
        let mut status = container_status(state);
        spoil(&mut status);
        assert_eq!(observed_container(&status, &SandboxId::from("s1")).unwrap().state, wanted, "{state:?}");
    }
    let seen = observed_container(&container_status(S::ContainerRunning), &SandboxId::from("s1")).unwrap();
    assert_eq!((seen.name.as_str(), seen.attempt, seen.sandbox.as_str()), ("app", 4, "s1"));
    assert_eq!((&*seen.image, &*seen.image_ref), ("web:1", "web@sha256:2"));
    assert_eq!(seen.log_path, "/var/log/pods/x/app/4.log");
}

#[test]
fn bad_containers_are_named_and_long_texts_cut() {
    let mut status = container_status(v1::ContainerState::ContainerExited);
    status.message = "é".repeat(5000);
    let seen = observed_container(&status, &SandboxId::from("s1")).unwrap();
    let ContainerState::Exited { message, .. } = seen.state else { panic!("{:?}", seen.state) };
    assert_eq!(message.len(), 4096);
    status.metadata = None;
    let error = observed_container(&status, &SandboxId::from("s1")).unwrap_err();
    assert_eq!(error.to_string(), "c1: metadata.name is missing");
    status.labels = hashed(&[(labels::CONTAINER_NAME, "app")]);
    assert!(observed_container(&status, &SandboxId::from("s1")).is_ok(), "the label is enough");
}

#[test]
fn one_bad_object_of_a_list_hides_no_other() {
    let good = v1::Container {
        id: "c1".to_owned(),
        pod_sandbox_id: "s1".to_owned(),
        metadata: Some(v1::ContainerMetadata { name: "app".to_owned(), attempt: 0 }),
        state: 42,
        ..Default::default()
    };
    let bad = v1::Container { pod_sandbox_id: String::new(), ..good.clone() };
    let listing = Listing::collect([good, bad].iter().map(listed_container));
    assert_eq!(listing.items.len(), 1);
    assert_eq!((listing.items[0].phase, listing.items[0].pod.clone()), (ContainerPhase::Unknown, None));
    assert_eq!(listing.rejected[0].to_string(), "c1: pod_sandbox_id is missing");
}

#[test]
fn images_tell_their_user() {
    let image = |uid: Option<i64>, username: &str| v1::Image {
        id: "sha256:1".to_owned(),
        size: 5,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: username.to_owned(),
        ..Default::default()
    };
    let user = |image: &v1::Image| image_present("web:1", image).unwrap().user;
    assert_eq!(user(&image(Some(0), "")), ImageUser::Uid(0));
    assert_eq!(user(&image(None, "nobody")), ImageUser::Name("nobody".to_owned()));
    assert_eq!(user(&image(None, "")), ImageUser::Unset);
    assert!(image_present("web:1", &image(Some(-1), "")).is_err());
    let error = image_present("web:1", &v1::Image::default()).unwrap_err();
    assert_eq!(error.to_string(), "web:1: id is missing");
}

#[test]
fn the_runtimes_answers_about_itself_are_read() {
    let config = |driver| v1::RuntimeConfigResponse {
        linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver: driver }),
    };
    assert_eq!(cgroup_driver(&config(0)), Ok(Some(CgroupDriver::Systemd)));
    assert_eq!(cgroup_driver(&config(1)), Ok(Some(CgroupDriver::Cgroupfs)));
    assert_eq!(cgroup_driver(&v1::RuntimeConfigResponse::default()), Ok(None));
    assert!(cgroup_driver(&config(9)).is_err());
    let status = runtime_status(v1::StatusResponse::default());
    assert!(!status.runtime_ready() && !status.network_ready());
}

#[test]
fn an_event_is_a_wake_up_even_without_its_pod() {
    let mut event = v1::ContainerEventResponse {
        container_id: "c1".to_owned(),
        container_event_type: v1::ContainerEventType::ContainerStoppedEvent.into(),
        created_at: 1_000_000_000,
        pod_sandbox_status: Some(sandbox_status()),
        containers_statuses: vec![container_status(v1::ContainerState::ContainerExited)],
    };
    let seen = runtime_event(&event).unwrap();
    assert_eq!((seen.kind, seen.pod), (EventKind::Stopped, Some(PodUid::from("uid-1"))));
    assert_eq!((seen.key, seen.at), (Some(PodKey::new("default", "web")), second(1)));
    assert_eq!(seen.containers.unwrap()[0].sandbox.as_str(), "s1");

    event.containers_statuses.push(v1::ContainerStatus::default());
    assert_eq!(
        runtime_event(&event).unwrap().containers,
        None,
        "half a list would look like removed containers"
    );

    event.pod_sandbox_status = None;
    let seen = runtime_event(&event).unwrap();
    assert_eq!((seen.subject.as_str(), seen.pod, seen.sandbox), ("c1", None, None));

    event.container_event_type = 12;
    assert!(runtime_event(&event).is_err());
}

#[test]
fn seconds_are_rounded_up() {
    let cases = [(0, 0), (1, 1), (1000, 1), (1001, 2), (30_000, 30)];
    for (millis, seconds) in cases {
        assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
    }
    assert_eq!(whole_seconds(Duration::MAX), i64::MAX);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Decodes `bytes` as every answer the client reads and converts what came out of it.
    fn convert_everything(bytes: &[u8]) {
        fn decoded<M: Message + Default>(bytes: &[u8]) -> M {
            M::decode(bytes).unwrap_or_default()
        }
        let sandbox = SandboxId::from("s");
        let _ = observed_sandbox(&decoded(bytes));
        let _ = observed_container(&decoded(bytes), &sandbox);
        let _ = listed_sandbox(&decoded(bytes));
        let _ = listed_container(&decoded(bytes));
        let _ = runtime_event(&decoded(bytes));
        let _ = runtime_status(decoded(bytes));
        let _ = cgroup_driver(&decoded(bytes));
        let _ = container_usage(&decoded(bytes));
        let _ = image_present("i", &decoded(bytes));
        let _ = stored_image(&decoded(bytes));
        let _ = image_fs_info(&decoded(bytes));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_conversion_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            convert_everything(&bytes);
        }

        /// Purely random bytes seldom decode, so also messages that do, with fields of every value.
        #[test]
        fn no_message_makes_the_conversion_panic(
            texts in proptest::collection::vec(".{0,40}", 4),
            numbers in proptest::collection::vec(any::<i64>(), 4),
            state in any::<i32>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let status = v1::ContainerStatus {
                id: texts[0].clone(),
                metadata: Some(v1::ContainerMetadata { name: texts[1].clone(), attempt: state as u32 }),
                state,
                created_at: numbers[0],
                started_at: numbers[1],
                finished_at: numbers[2],
                message: texts[2].repeat(200),
                ..Default::default()
            };
            let sandbox = v1::PodSandboxStatus {
                id: texts[1].clone(),
                metadata: Some(v1::PodSandboxMetadata::default()),
                state: state % 3,
                created_at: numbers[3],
                network: Some(v1::PodSandboxNetworkStatus { ip: texts[3].clone(), additional_ips: Vec::new() }),
                ..Default::default()
            };
            let _ = observed_container(&status, &SandboxId::from("s"));
            let _ = observed_sandbox(&sandbox);
            let event = v1::ContainerEventResponse {
                container_id: texts[0].clone(),
                container_event_type: state % 5,
                created_at: numbers[0],
                pod_sandbox_status: Some(sandbox),
                containers_statuses: vec![status],
            };
            let _ = runtime_event(&event);
            let bytes = event.encode_to_vec();
            convert_everything(&bytes[..cut.index(bytes.len() + 1)]);
        }

        #[test]
        fn ids_that_pass_are_safe_as_names(text in ".{0,300}") {
            if let Ok(id) = id("x", "id", &text) {
                prop_assert!(!id.is_empty() && id.len() <= MAX_ID);
                prop_assert!(!id.contains('/') && !id.chars().any(char::is_control));
            }
        }
    }
}
