//! The proxy half: what serves the node's Services, beside the pods or alone as a kube-proxy would.
//! Here it is put together; the dataplane itself is in `dataplane`, objects come from `services`.

mod addresses;
mod checks;
pub mod cleanup;
pub mod lock;
mod own_node;
mod servers;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use longshore_kernel::modules::RealModules;
use longshore_kernel::route::RealRoutes;
use longshore_kernel::route::monitor::{AddressEvents, RealAddressEvents};
use longshore_kernel::sysctl::RealSysctls;
use longshore_kernel::xtables::RealXtables;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::lock::WriterLock;
use crate::admin::{self, AdminReads, AdminSocket, PeerPolicy, ServiceReads};
use crate::certificates::Certificates;
use crate::config::Settings;
use crate::dataplane::{
    self, DataplaneConfig, DataplaneHandle, Kernel, OpenIptables, OpenKernel, dataplane, kernel_flows,
};
use crate::joined::{Clients, ClusterServices};
use crate::node::{self, Facts};
use crate::pods::Clock;
use crate::pods::follow::RuntimeHealth;
use crate::process;
use crate::reads::NodeViews;
use crate::services::ServiceFiles;
use crate::sources::{ManifestOptions, Manifests};
use crate::supervisor;

/// Start the task that owns the node's Services in the kernel, and the servers that tell of it. They end
/// with `stop` and leave all rules as they are.
///
/// # Errors
/// Another daemon that serves this network namespace, a scheduler that is none, or an address of the
/// servers that cannot be had where that shall end the daemon.
pub async fn start(
    settings: &Settings,
    facts: &Facts,
    stop: &CancellationToken,
) -> anyhow::Result<DataplaneHandle> {
    let lock = WriterLock::take()?;
    let config = dataplane_config(settings, facts)?;
    let (handle, task) = dataplane(config, open_kernel(), Clock::System, stop.clone());
    tokio::spawn(async move {
        task.await;
        drop(lock);
    });
    servers::start(&settings.servers, &handle, stop).await?;
    tokio::spawn(checks::run(handle.clone(), stop.clone()));
    let watching = addresses::watch(handle.clone(), || {
        RealAddressEvents::open().map(|events| Box::new(events) as Box<dyn AddressEvents>)
    });
    tokio::spawn(stop.clone().run_until_cancelled_owned(watching));
    if let Some(join) = &settings.join {
        let client = Clients::open(join)?.services;
        let name = node::context(settings, facts, None, Clock::System.now()).name;
        tokio::spawn(stop.clone().run_until_cancelled_owned(own_node::watch(client, name, handle.clone())));
    }
    Ok(handle)
}

/// The kernel of this network namespace, its modules loaded when they are first needed.
fn open_kernel() -> OpenKernel {
    OpenKernel::new(|| Kernel::open(kernel_flows()))
        .loading(Arc::new(RealModules::default()))
        .clearing(Arc::new(RealXtables))
        .with_iptables(OpenIptables::installed())
}

fn dataplane_config(settings: &Settings, facts: &Facts) -> anyhow::Result<DataplaneConfig> {
    let context = node::context(settings, facts, None, Clock::System.now());
    let cpus = u32::try_from(facts.cpus).unwrap_or(u32::MAX);
    let machine = (facts.kernel_version, cpus);
    let made = DataplaneConfig::from_settings(&settings.dataplane, &context.name, context.ips, machine);
    let (mut config, warnings) = made?;
    config.follow_primary = settings.node.ips.is_empty() && settings.dataplane.bind_address.is_none();
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// Makes the kernel settings the dataplane wants and ends, for an init container with the rights that
/// the daemon's own container lacks.
///
/// # Errors
/// Settings that could not be made, one line each.
pub async fn init_only(settings: &Settings) -> anyhow::Result<()> {
    let routes = RealRoutes::open().context("open the routing table")?;
    let facts = Facts::read(&routes, None).await?;
    let config = dataplane_config(settings, &facts)?;
    let problems = dataplane::make_settings(&config, &RealSysctls::default());
    if problems.is_empty() { Ok(()) } else { Err(anyhow!("{}", problems.join("\n"))) }
}

/// Writes the proxy's configuration with every default, as JSON, which YAML readers take.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_config(settings: &Settings, path: &Path) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(&settings.servers.configz)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Runs the proxy half alone until SIGTERM: no runtime, no pods, no folders of the kubelet's.
///
/// # Errors
/// What makes starting pointless: another daemon in this network namespace or on this socket, no
/// routing table to read.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    process::apply(&settings.node);
    let stop = CancellationToken::new();
    supervisor::handle_signals(stop.clone(), || {
        tracing::info!("reload: manifests are watched anyway; other settings take a restart");
    })?;
    tokio::spawn(supervisor::keep_watchdog_fed());
    let routes = RealRoutes::open().context("open the routing table")?;
    let facts = Facts::read(&routes, None).await?;
    let clients = settings.join.as_ref().map(Clients::open).transpose()?;
    let dataplane = start(&settings, &facts, &stop).await?;
    let files = Arc::new(ServiceFiles::new(dataplane.clone()));
    let name = node::context(&settings, &facts, None, Clock::System.now()).name;
    let socket = AdminSocket::bind(&settings.admin.socket, PeerPolicy::default()).await?;
    let reads = reads(&settings, &facts, &dataplane, files.clone());
    let serving = tokio::spawn(admin::serve(socket, reads, stop.clone()));
    tokio::select! {
        () = stop.cancelled() => {}
        () = feed(&settings, clients, &name, &dataplane, &files) => {
            supervisor::notify(&[NotifyState::Ready]);
            supervisor::status("serving Services");
            tracing::info!("ready");
            stop.cancelled().await;
        }
    }
    serving.await.context("the admin socket's task")?;
    Ok(())
}

/// Where Services and slices come from: a control plane, or a folder of files. Whatever it is tells the
/// [`DataplaneHandle`] of each change, and that it was heard once.
async fn feed(
    settings: &Settings,
    clients: Option<Clients>,
    name: &str,
    dataplane: &DataplaneHandle,
    files: &Arc<ServiceFiles>,
) {
    if let Some((clients, join)) = clients.zip(settings.join.as_ref()) {
        let services = ClusterServices {
            client: clients.services,
            dataplane: dataplane.clone(),
            node: name.to_owned(),
            event_rate: join.event_rate,
            clock: Clock::System,
            containers: None,
        };
        tokio::spawn(services.run());
        // The task that syncs lives as long as the daemon.
        let _ = dataplane.synced().wait_for(|synced| *synced).await;
        return;
    }
    if let Some(folder) = &settings.sources.manifests {
        let options = ManifestOptions {
            folder: folder.clone(),
            audit_period: settings.sources.audit_period,
            memory: None,
        };
        let sink = files.clone();
        let manifests = Manifests::start(options, Vec::new(), Arc::new(move |change| sink.take(change)));
        let mut synced = manifests.synced();
        files.show(manifests);
        // The sender lives as long as the folder is watched.
        let _ = synced.wait_for(|synced| *synced).await;
    }
    files.synced();
}

/// What the admin socket may read: Services, and a node without pods.
fn reads(
    settings: &Settings,
    facts: &Facts,
    dataplane: &DataplaneHandle,
    files: Arc<ServiceFiles>,
) -> AdminReads {
    let now = Clock::System.now();
    let context = node::context(settings, facts, None, now);
    let (_, health) = watch::channel(RuntimeHealth {
        runtime: "none: the node role is off".to_owned(),
        answers: Ok(()),
        network: Ok(()),
        since: now,
    });
    let node = NodeViews {
        name: context.name,
        ips: context.ips,
        started_at: now,
        health,
        sources: files,
        dataplane: Some(dataplane.clone()),
        certificates: Certificates::default(),
    };
    let services = Arc::new(dataplane.clone()) as Arc<dyn ServiceReads>;
    AdminReads { node: Arc::new(node), pods: None, services: Some(services), images: None }
}
