//! What the runtime has: lists and statuses of sandboxes and containers.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use jiff::Timestamp;
use longshore_core::ids::{ContainerId, ContainerName, PodKey, PodUid, SandboxId};
use longshore_core::pod::observed::{ContainerState, ObservedContainer, ObservedSandbox, SandboxState};

use super::{ConvertError, id, labels, time};
use crate::api::v1;
use crate::containers::{ContainerPhase, ListedContainer};
use crate::error::bounded;
use crate::sandboxes::ListedSandbox;

/// Longest message of a container that is kept, as in the API.
const MAX_MESSAGE: usize = 4096;
/// Longest reason that is kept; it is one word.
const MAX_REASON: usize = 256;

pub(crate) fn listed_sandbox(item: &v1::PodSandbox) -> Result<ListedSandbox, ConvertError> {
    let id = id("a sandbox", "id", &item.id)?;
    let metadata = item.metadata.as_ref().ok_or_else(|| ConvertError::missing(&id, "metadata"))?;
    Ok(ListedSandbox {
        pod: pod_uid(&item.labels),
        key: sandbox_key(metadata),
        attempt: metadata.attempt,
        state: sandbox_state(&id, item.state)?,
        created_at: created_at(&id, item.created_at)?,
        id: SandboxId::from(id),
    })
}

pub(crate) fn observed_sandbox(status: &v1::PodSandboxStatus) -> Result<ObservedSandbox, ConvertError> {
    let id = id("a sandbox", "id", &status.id)?;
    let metadata = status.metadata.as_ref().ok_or_else(|| ConvertError::missing(&id, "metadata"))?;
    let options = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref()?.options.as_ref());
    Ok(ObservedSandbox {
        attempt: metadata.attempt,
        state: sandbox_state(&id, status.state)?,
        created_at: created_at(&id, status.created_at)?,
        ips: addresses(&id, status.network.as_ref())?,
        host_network: options.is_some_and(|options| options.network() == v1::NamespaceMode::Node),
        labels: sorted(&status.labels),
        annotations: sorted(&status.annotations),
        id: SandboxId::from(id),
    })
}

pub(crate) fn listed_container(item: &v1::Container) -> Result<ListedContainer, ConvertError> {
    let own = id("a container", "id", &item.id)?;
    let sandbox = id(&own, "pod_sandbox_id", &item.pod_sandbox_id)?;
    Ok(ListedContainer {
        sandbox: SandboxId::from(sandbox),
        pod: pod_uid(&item.labels),
        name: container_name(&own, item.metadata.as_ref(), &item.labels)?,
        attempt: item.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        phase: phase(item.state),
        created_at: created_at(&own, item.created_at)?,
        id: ContainerId::from(own),
    })
}

pub(crate) fn observed_container(
    status: &v1::ContainerStatus,
    sandbox: &SandboxId,
) -> Result<ObservedContainer, ConvertError> {
    let id = id("a container", "id", &status.id)?;
    let created_at = created_at(&id, status.created_at)?;
    let asked = status.image.as_ref();
    Ok(ObservedContainer {
        sandbox: sandbox.clone(),
        name: container_name(&id, status.metadata.as_ref(), &status.labels)?,
        attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        state: container_state(&id, status, created_at)?,
        created_at,
        image: asked.map(asked_image).unwrap_or_default().to_owned(),
        image_ref: status.image_ref.clone(),
        labels: sorted(&status.labels),
        annotations: sorted(&status.annotations),
        log_path: status.log_path.clone(),
        id: ContainerId::from(id),
    })
}

/// Names of the pod a sandbox is for.
pub(super) fn sandbox_key(metadata: &v1::PodSandboxMetadata) -> PodKey {
    PodKey::new(metadata.namespace.as_str(), metadata.name.as_str())
}

/// The pod uid label; absent on what other programs made.
pub(super) fn pod_uid(labels: &HashMap<String, String>) -> Option<PodUid> {
    labels.get(labels::POD_UID).filter(|uid| !uid.is_empty()).map(|uid| PodUid::from(uid.as_str()))
}

/// From the label, else from the metadata: they are equal for all that a kubelet or longshore made.
pub(super) fn container_name(
    id: &str,
    metadata: Option<&v1::ContainerMetadata>,
    labels: &HashMap<String, String>,
) -> Result<ContainerName, ConvertError> {
    let label = labels.get(labels::CONTAINER_NAME).map(String::as_str);
    let name = label.or(metadata.map(|metadata| metadata.name.as_str())).unwrap_or_default();
    if name.is_empty() {
        return Err(ConvertError::missing(id, "metadata.name"));
    }
    Ok(ContainerName::from(name))
}

/// A state nobody knows is an error: as either of the two it would make the agent start or kill something.
fn sandbox_state(id: &str, state: i32) -> Result<SandboxState, ConvertError> {
    match v1::PodSandboxState::try_from(state) {
        Ok(v1::PodSandboxState::SandboxReady) => Ok(SandboxState::Ready),
        Ok(v1::PodSandboxState::SandboxNotready) => Ok(SandboxState::NotReady),
        Err(_) => Err(ConvertError::new(id, "state", format_args!("is {state}, which no version has"))),
    }
}

fn phase(state: i32) -> ContainerPhase {
    match v1::ContainerState::try_from(state) {
        Ok(v1::ContainerState::ContainerCreated) => ContainerPhase::Created,
        Ok(v1::ContainerState::ContainerRunning) => ContainerPhase::Running,
        Ok(v1::ContainerState::ContainerExited) => ContainerPhase::Exited,
        Ok(v1::ContainerState::ContainerUnknown) | Err(_) => ContainerPhase::Unknown,
    }
}

fn container_state(
    id: &str,
    status: &v1::ContainerStatus,
    created_at: Timestamp,
) -> Result<ContainerState, ConvertError> {
    let started_at = time(id, "started_at", status.started_at)?;
    Ok(match phase(status.state) {
        ContainerPhase::Created => ContainerState::Created,
        ContainerPhase::Running => ContainerState::Running { started_at: started_at.unwrap_or(created_at) },
        ContainerPhase::Exited => ContainerState::Exited {
            started_at,
            // Back-off is counted from the end; without one the last known time is the earliest it can be.
            finished_at: time(id, "finished_at", status.finished_at)?.or(started_at).unwrap_or(created_at),
            exit_code: status.exit_code,
            reason: bounded(&status.reason, MAX_REASON),
            message: bounded(&status.message, MAX_MESSAGE),
        },
        ContainerPhase::Unknown => ContainerState::Unknown,
    })
}

/// Order between instances hangs on it, so a missing time is the epoch: older than everything.
fn created_at(id: &str, nanos: i64) -> Result<Timestamp, ConvertError> {
    Ok(time(id, "created_at", nanos)?.unwrap_or(Timestamp::UNIX_EPOCH))
}

fn addresses(id: &str, network: Option<&v1::PodSandboxNetworkStatus>) -> Result<Vec<IpAddr>, ConvertError> {
    let Some(network) = network else { return Ok(Vec::new()) };
    let additional = network.additional_ips.iter().map(|more| more.ip.as_str());
    std::iter::once(network.ip.as_str())
        .chain(additional)
        .filter(|text| !text.is_empty())
        .map(|text| {
            text.parse()
                .map_err(|_| ConvertError::new(id, "network.ip", format_args!("is not an address: {text:?}")))
        })
        .collect()
}

fn asked_image(image: &v1::ImageSpec) -> &str {
    if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image }
}

fn sorted(pairs: &HashMap<String, String>) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
