//! The node as pods' plans see it: name, addresses, DNS, capacity, network. Facts are read once at
//! start (`facts.rs`), later changes come in through [`Node`]; plans read the newest value.

pub mod facts;
mod resolv;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use longshore_core::pod::snapshot::{CgroupDriver, CgroupSettings, DnsSettings, NodeContext};
use longshore_core::resources::placement::Placement;
use tokio::sync::watch;

use crate::config::Settings;
pub use facts::{Facts, FactsError};
pub use resolv::parse as parse_resolv_conf;

/// Memory kept from pods by default: the kubelet's hard eviction threshold.
const EVICTION_HARD_MEMORY: u64 = 100 << 20;

/// The newest [`NodeContext`] and the ways it changes.
#[derive(Clone, Debug)]
pub struct Node {
    context: watch::Sender<Arc<NodeContext>>,
}

impl Node {
    pub fn new(context: NodeContext) -> Self {
        Self { context: watch::Sender::new(Arc::new(context)) }
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<NodeContext>> {
        self.context.subscribe()
    }

    pub fn now(&self) -> Arc<NodeContext> {
        self.context.borrow().clone()
    }

    /// Whether pods can get a network; with the reason where not.
    pub fn set_network(&self, network: Result<(), String>) {
        self.change(|context| {
            let news = context.network != network;
            context.network = network;
            news
        });
    }

    /// The runtime's cgroup driver, which wins over the configured one (behaviours 54).
    pub fn set_cgroup_driver(&self, driver: CgroupDriver) {
        self.change(|context| std::mem::replace(&mut context.cgroups.driver, driver) != driver);
    }

    /// The runtime's own name, for the ids of containers.
    pub fn set_runtime_name(&self, name: &str) {
        self.change(|context| {
            let news = context.runtime_name != name;
            name.clone_into(&mut context.runtime_name);
            news
        });
    }

    /// The first full sync of Services is in the kernel, or there are none to wait for.
    pub fn set_services_synced(&self) {
        self.change(|context| !std::mem::replace(&mut context.services_synced, true));
    }

    /// `<NAME>_SERVICE_HOST` and friends by namespace, for containers created from now on.
    pub fn set_service_env(&self, env: BTreeMap<String, Vec<(String, String)>>) {
        self.change(|context| {
            let news = *context.service_env != env;
            context.service_env = Arc::new(env);
            news
        });
    }

    /// What the Node object says of the pods it takes.
    pub fn set_placement(&self, placement: Placement) {
        self.change(|context| {
            let news = context.placement.as_deref() != Some(&placement);
            context.placement = Some(Arc::new(placement));
            news
        });
    }

    /// Handlers by the name of their RuntimeClass, as the control plane has them now.
    pub fn set_runtime_classes(&self, classes: BTreeMap<String, String>) {
        self.change(|context| {
            let news = context.runtime_classes.as_deref() != Some(&classes);
            context.runtime_classes = Some(Arc::new(classes));
            news
        });
    }

    /// Takes over what may change while the daemon runs from a context made of newer settings; what it
    /// learned since its start stays.
    pub fn reconfigure(&self, newer: NodeContext) {
        self.change(|context| {
            let driver = context.cgroups.driver;
            context.cgroups = CgroupSettings {
                driver,
                per_qos: context.cgroups.per_qos,
                root: context.cgroups.root.clone(),
                ..newer.cgroups
            };
            context.dns = newer.dns;
            context.allocatable_cpu_millis = newer.allocatable_cpu_millis;
            context.allocatable_memory_bytes = newer.allocatable_memory_bytes;
            context.max_restart_backoff = newer.max_restart_backoff;
            context.seccomp_default = newer.seccomp_default;
            context.max_pods = newer.max_pods;
            context.allowed_unsafe_sysctls = newer.allowed_unsafe_sysctls;
            true
        });
    }

    fn change(&self, change: impl FnOnce(&mut NodeContext) -> bool) {
        self.context.send_if_modified(|context| {
            let mut next = (**context).clone();
            let news = change(&mut next);
            if news {
                *context = Arc::new(next);
            }
            news
        });
    }
}

/// The context plans start with. `driver` is what the runtime says, which wins over the configuration
/// (behaviours 54).
pub fn context(
    settings: &Settings,
    facts: &Facts,
    driver: Option<CgroupDriver>,
    now: Timestamp,
) -> NodeContext {
    let reserved = |resource: &str| {
        settings.node.reserved_millis.get(resource).map_or(0, |millis| u64::try_from(*millis).unwrap_or(0))
    };
    let cpu_millis = facts.cpus * 1000;
    NodeContext {
        name: settings.node.name.clone().unwrap_or_else(|| facts.hostname.to_lowercase()),
        // Until the runtime has said its own.
        runtime_name: "containerd".to_owned(),
        ips: if settings.node.ips.is_empty() { facts.ips.clone() } else { settings.node.ips.clone() },
        root_dir: settings.pods.root_dir.clone(),
        pod_logs_dir: settings.pods.pod_logs_dir.clone(),
        cgroups: CgroupSettings {
            driver: driver.unwrap_or(settings.cgroups.driver),
            ..settings.cgroups.clone()
        },
        dns: DnsSettings {
            cluster_dns: settings.dns.cluster_dns.clone(),
            cluster_domain: settings.dns.cluster_domain.clone(),
            ..facts.dns.clone()
        },
        network: Err("the runtime has not been asked yet".into()),
        services_synced: !settings.roles.proxy,
        service_env: Arc::default(),
        allocatable_cpu_millis: cpu_millis.saturating_sub(reserved("cpu")),
        allocatable_memory_bytes: facts
            .memory_bytes
            .saturating_sub(reserved("memory") / 1000)
            .saturating_sub(EVICTION_HARD_MEMORY),
        capacity_memory_bytes: facts.memory_bytes,
        swap_bytes: facts.swap_bytes,
        max_pods: usize::try_from(settings.pods.max_pods).unwrap_or(usize::MAX),
        allowed_unsafe_sysctls: settings.pods.allowed_unsafe_sysctls.clone(),
        max_restart_backoff: settings.pods.max_restart_backoff,
        seccomp_default: settings.pods.seccomp_default,
        agent_started_at: now,
        hugepage_sizes: facts.hugepage_sizes.clone(),
        runtime_classes: None,
        placement: None,
    }
}
