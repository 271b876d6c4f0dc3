//! The pods of this node: from the daemon, or from the runtime's labels where the daemon is down.
//! One place decides which, and says so once on stderr.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::ids::PodKey;
use longshore_core::pod::observed::{ObservedContainer, ObservedPod};
use longshore_core::wire::PodView;
use longshore_cri::{CriClient, Runtime, Timeouts};

use crate::client::{ClientError, Daemon};
use crate::error::CliError;
use crate::target::PodName;

/// The runtime answers lists at once; a hanging one must not hang the command.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(10);

/// One pod, with the daemon's view of it where there is a daemon.
#[derive(Clone, Debug)]
pub struct NodePod {
    pub observed: ObservedPod,
    pub view: Option<Arc<PodView>>,
}

impl NodePod {
    pub fn key(&self) -> &PodKey {
        &self.observed.key
    }

    /// Instances of a container, newest first.
    pub fn instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ObservedContainer> {
        self.observed.containers.iter().filter(move |container| container.name.as_str() == name)
    }

    /// Names of the pod's containers: as the spec orders them, main ones first, else as the runtime has them.
    pub fn container_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        if let Some(spec) = self.view.as_ref().and_then(|view| view.pod.spec.as_ref()) {
            names.extend(spec.containers.iter().map(|container| container.name.clone()));
            names.extend(spec.init_containers.iter().flatten().map(|container| container.name.clone()));
        }
        let mut seen: Vec<&ObservedContainer> = self.observed.containers.iter().collect();
        seen.sort_by_key(|container| container.created_at);
        for container in seen {
            if !names.iter().any(|name| name == container.name.as_str()) {
                names.push(container.name.to_string());
            }
        }
        names
    }

    /// The container that is meant where none was named: the annotation kubectl honours, else the first.
    pub fn default_container(&self) -> Option<String> {
        let names = self.container_names();
        let annotated = self
            .view
            .as_ref()
            .and_then(|view| view.pod.metadata.annotations.as_ref())
            .and_then(|annotations| annotations.get("kubectl.kubernetes.io/default-container"));
        annotated.filter(|name| names.contains(name)).cloned().or_else(|| names.first().cloned())
    }

    /// Checks a container's name, or takes the default one.
    pub fn container(&self, wanted: Option<&str>) -> Result<String, CliError> {
        let names = self.container_names();
        match wanted {
            None => self
                .default_container()
                .ok_or_else(|| CliError::new(format!("pod {} has no containers yet", self.key()))),
            Some(name) if names.iter().any(|known| known == name) => Ok(name.to_string()),
            Some(name) => Err(CliError::new(format!("pod {} has no container {name}", self.key()))
                .hint(format!("its containers are: {}", names.join(", ")))),
        }
    }
}

/// Where pods are read from.
#[derive(Clone, Debug)]
pub struct Node {
    pub daemon: Daemon,
    /// CRI endpoint, `unix:///run/containerd/containerd.sock`.
    pub runtime: String,
}

impl Node {
    /// All pods. Falls back to the runtime, with one line on stderr, where the daemon is down.
    pub async fn pods(&self) -> Result<Vec<NodePod>, CliError> {
        match self.daemon.get::<Vec<PodView>>("/v1/pods").await {
            Ok(views) => Ok(views
                .into_iter()
                .map(|view| NodePod { observed: (*view.observed).clone(), view: Some(Arc::new(view)) })
                .collect()),
            Err(error @ ClientError::Down { .. }) => self.pods_of_runtime(&error).await,
            Err(error) => Err(error.into()),
        }
    }

    async fn pods_of_runtime(&self, down: &ClientError) -> Result<Vec<NodePod>, CliError> {
        match self.observed().await {
            Ok(pods) => {
                eprintln!("note: {down}; showing what the runtime at {} has", self.runtime);
                Ok(pods.into_iter().map(|observed| NodePod { observed, view: None }).collect())
            }
            Err(error) => Err(CliError::new(format!("{down}, and {}", error.message))
                .hint("start both (systemctl start containerd longshore), or see longshore doctor")),
        }
    }

    /// Everything the runtime has, grouped by the pod labels every kubelet writes.
    pub async fn observed(&self) -> Result<Vec<ObservedPod>, CliError> {
        let runtime = Runtime::new(self.cri()?);
        match runtime.observer().list_all(Timestamp::now()).await {
            Ok(found) => {
                for rejected in &found.rejected {
                    eprintln!("note: left out: {}", rejected.problem);
                }
                Ok(found.pods.into_values().collect())
            }
            Err(error) => Err(CliError::new(error.one_line())),
        }
    }

    /// The one pod that is meant by a name.
    pub async fn pod(&self, name: &PodName) -> Result<NodePod, CliError> {
        let pods = self.pods().await?;
        let key = name.choose(pods.iter().map(NodePod::key))?;
        pods.into_iter()
            .filter(|pod| *pod.key() == key)
            .min_by_key(|pod| pod.view.as_ref().is_some_and(|view| ended(view)))
            .ok_or_else(|| CliError::new(format!("there is no pod {key} on this node")))
    }

    /// A client of the runtime; connects at the first call.
    pub fn cri(&self) -> Result<CriClient, CliError> {
        CriClient::new(&self.runtime, Timeouts { unary: RUNTIME_DEADLINE })
            .map_err(|error| CliError::usage(error.to_string()))
    }
}

fn ended(view: &PodView) -> bool {
    use longshore_core::pod::lifecycle::Lifecycle;
    matches!(
        view.lifecycle,
        Lifecycle::Released { .. } | Lifecycle::Queued { .. } | Lifecycle::Terminated { .. }
    )
}
