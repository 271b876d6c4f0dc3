//! Images, usage, runtime status and events.

use jiff::Timestamp;
use longshore_core::ids::ContainerId;
use longshore_core::pod::step::{ImagePresent, ImageUser};

use super::observed::{container_name, observed_container, observed_sandbox, pod_uid, sandbox_key};
use super::{ConvertError, time};
use crate::api::v1;
use crate::containers::ContainerUsage;
use crate::error::bounded;
use crate::events::{EventKind, RuntimeEvent};
use crate::images::{FsUsage, ImageFsInfo, StoredImage};
use crate::runtime_info::{CgroupDriver, RuntimeCondition, RuntimeHandler, RuntimeStatus};

/// Longest text of a condition that is kept; it goes into the node's status.
const MAX_CONDITION_TEXT: usize = 1024;

/// Longest image id or digest reference taken.
const MAX_REFERENCE: usize = 1024;

pub(crate) fn image_present(asked: &str, image: &v1::Image) -> Result<ImagePresent, ConvertError> {
    let user = match (&image.uid, image.username.as_str()) {
        (Some(uid), _) if uid.value < 0 => {
            return Err(ConvertError::new(asked, "uid", format_args!("is negative: {}", uid.value)));
        }
        (Some(uid), _) => ImageUser::Uid(uid.value),
        (None, "") => ImageUser::Unset,
        (None, name) => ImageUser::Name(name.to_owned()),
    };
    Ok(ImagePresent { image_ref: reference(asked, &image.id)?, size_bytes: image.size, user })
}

pub(crate) fn stored_image(image: &v1::Image) -> Result<StoredImage, ConvertError> {
    let asked = image.repo_tags.first().or(image.repo_digests.first()).map_or("an image", String::as_str);
    Ok(StoredImage {
        id: reference(asked, &image.id)?,
        tags: image.repo_tags.clone(),
        digests: image.repo_digests.clone(),
        size_bytes: image.size,
        pinned: image.pinned,
    })
}

fn reference(asked: &str, id: &str) -> Result<String, ConvertError> {
    match id.len() {
        0 => Err(ConvertError::missing(asked, "id")),
        1..=MAX_REFERENCE => Ok(id.to_owned()),
        bytes => Err(ConvertError::new(asked, "id", format_args!("has {bytes} bytes"))),
    }
}

pub(crate) fn image_fs_info(answer: &v1::ImageFsInfoResponse) -> ImageFsInfo {
    ImageFsInfo {
        images: answer.image_filesystems.iter().map(fs_usage).collect(),
        containers: answer.container_filesystems.iter().map(fs_usage).collect(),
    }
}

fn fs_usage(usage: &v1::FilesystemUsage) -> FsUsage {
    let path = usage.fs_id.as_ref().map(|id| id.mountpoint.clone()).unwrap_or_default();
    FsUsage {
        at: sample_time(usage.timestamp),
        used_bytes: value(usage.used_bytes.as_ref()),
        used_inodes: value(usage.inodes_used.as_ref()),
        path,
    }
}

/// A sample without a sensible time is still a sample.
fn sample_time(nanos: i64) -> Option<Timestamp> {
    time("", "timestamp", nanos).ok().flatten()
}

fn value(optional: Option<&v1::UInt64Value>) -> Option<u64> {
    optional.map(|number| number.value)
}

pub(crate) fn container_usage(stats: &v1::ContainerStats) -> Result<ContainerUsage, ConvertError> {
    let attributes = stats.attributes.as_ref().ok_or_else(|| ConvertError::missing("usage", "attributes"))?;
    let id = super::id("usage", "attributes.id", &attributes.id)?;
    let (cpu, memory, layer) = (stats.cpu.as_ref(), stats.memory.as_ref(), stats.writable_layer.as_ref());
    let timestamp = cpu.map(|cpu| cpu.timestamp).or(memory.map(|memory| memory.timestamp));
    Ok(ContainerUsage {
        pod: pod_uid(&attributes.labels),
        name: container_name(&id, attributes.metadata.as_ref(), &attributes.labels)?,
        at: timestamp.and_then(sample_time),
        cpu_nanoseconds: cpu.and_then(|cpu| value(cpu.usage_core_nano_seconds.as_ref())),
        memory_working_set: memory.and_then(|memory| value(memory.working_set_bytes.as_ref())),
        memory_usage: memory.and_then(|memory| value(memory.usage_bytes.as_ref())),
        memory_rss: memory.and_then(|memory| value(memory.rss_bytes.as_ref())),
        page_faults: memory.and_then(|memory| value(memory.page_faults.as_ref())),
        major_page_faults: memory.and_then(|memory| value(memory.major_page_faults.as_ref())),
        swap_usage: stats.swap.as_ref().and_then(|swap| value(swap.swap_usage_bytes.as_ref())),
        layer_bytes: layer.and_then(|layer| value(layer.used_bytes.as_ref())),
        layer_inodes: layer.and_then(|layer| value(layer.inodes_used.as_ref())),
        id: ContainerId::from(id),
    })
}

pub(crate) fn runtime_status(answer: v1::StatusResponse) -> RuntimeStatus {
    let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
    RuntimeStatus {
        conditions: conditions
            .into_iter()
            .map(|condition| RuntimeCondition {
                kind: condition.r#type,
                status: condition.status,
                reason: bounded(&condition.reason, MAX_CONDITION_TEXT),
                message: bounded(&condition.message, MAX_CONDITION_TEXT),
            })
            .collect(),
        handlers: answer
            .runtime_handlers
            .into_iter()
            .map(|handler| {
                let features = handler.features.unwrap_or_default();
                RuntimeHandler {
                    name: handler.name,
                    recursive_read_only_mounts: features.recursive_read_only_mounts,
                    user_namespaces: features.user_namespaces,
                }
            })
            .collect(),
        supplemental_groups_policy: answer
            .features
            .is_some_and(|features| features.supplemental_groups_policy),
    }
}

pub(crate) fn cgroup_driver(
    answer: &v1::RuntimeConfigResponse,
) -> Result<Option<CgroupDriver>, ConvertError> {
    let Some(linux) = &answer.linux else { return Ok(None) };
    match v1::CgroupDriver::try_from(linux.cgroup_driver) {
        Ok(v1::CgroupDriver::Systemd) => Ok(Some(CgroupDriver::Systemd)),
        Ok(v1::CgroupDriver::Cgroupfs) => Ok(Some(CgroupDriver::Cgroupfs)),
        Err(_) => {
            let problem = format_args!("is {}, which no version has", linux.cgroup_driver).to_string();
            Err(ConvertError::new("runtime configuration", "linux.cgroup_driver", problem))
        }
    }
}

/// Only kind and subject must make sense: with them alone it is still a wake-up.
pub(crate) fn runtime_event(message: &v1::ContainerEventResponse) -> Result<RuntimeEvent, ConvertError> {
    let subject = super::id("an event", "container_id", &message.container_id)?;
    let kind = match v1::ContainerEventType::try_from(message.container_event_type) {
        Ok(v1::ContainerEventType::ContainerCreatedEvent) => EventKind::Created,
        Ok(v1::ContainerEventType::ContainerStartedEvent) => EventKind::Started,
        Ok(v1::ContainerEventType::ContainerStoppedEvent) => EventKind::Stopped,
        Ok(v1::ContainerEventType::ContainerDeletedEvent) => EventKind::Deleted,
        Err(_) => {
            let problem = format!("is {}, which no version has", message.container_event_type);
            return Err(ConvertError::new(&subject, "container_event_type", problem));
        }
    };
    let status = message.pod_sandbox_status.as_ref();
    let sandbox = status.and_then(|status| observed_sandbox(status).ok());
    // Half a list would look like removed containers: all of them or none.
    let containers = sandbox.as_ref().and_then(|sandbox| {
        message
            .containers_statuses
            .iter()
            .map(|status| observed_container(status, &sandbox.id).ok())
            .collect()
    });
    Ok(RuntimeEvent {
        kind,
        at: sample_time(message.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        pod: status.and_then(|status| pod_uid(&status.labels)),
        key: status.and_then(|status| status.metadata.as_ref()).map(sandbox_key),
        sandbox,
        containers,
        subject,
    })
}
