//! Counts of calls to the runtime, per operation: calls, failures and time.
//! Printing them as metrics belongs to the agent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

macro_rules! operations {
    ($($variant:ident $name:literal $verb:literal;)*) => {
        /// A CRI call this crate makes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Operation {
            $($variant,)*
        }

        impl Operation {
            /// Every operation, in a fixed order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Label `operation_type` of `kubelet_runtime_operations_total` and its like, as the kubelet
            /// spells it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// In words, to be followed by the object: `start container`.
            pub fn verb(self) -> &'static str {
                match self { $(Self::$variant => $verb,)* }
            }
        }
    };
}

operations! {
    Version "version" "ask the version of";
    Status "status" "ask the status of";
    RuntimeConfig "runtime_config" "ask the configuration of";
    UpdateRuntimeConfig "update_runtime_config" "tell the pod CIDR to";
    RunPodSandbox "run_podsandbox" "run sandbox of";
    StopPodSandbox "stop_podsandbox" "stop sandbox";
    RemovePodSandbox "remove_podsandbox" "remove sandbox";
    PodSandboxStatus "podsandbox_status" "read the status of sandbox";
    ListPodSandbox "list_podsandbox" "list sandboxes of";
    CreateContainer "create_container" "create container";
    StartContainer "start_container" "start container";
    StopContainer "stop_container" "stop container";
    RemoveContainer "remove_container" "remove container";
    ContainerStatus "container_status" "read the status of container";
    ListContainers "list_containers" "list containers of";
    UpdateContainerResources "update_container" "change the resources of container";
    ReopenContainerLog "reopen_container_log" "reopen the log of container";
    CheckpointContainer "checkpoint_container" "write the checkpoint of container";
    ListContainerStats "list_container_stats" "read the usage of";
    ExecSync "exec_sync" "run a command in container";
    Exec "exec" "prepare exec in container";
    Attach "attach" "prepare attach to container";
    PortForward "port_forward" "prepare port forwarding to sandbox";
    GetContainerEvents "get_container_events" "follow the events of";
    ImageStatus "image_status" "look up image";
    PullImage "pull_image" "pull image";
    ListImages "list_images" "list images of";
    RemoveImage "remove_image" "remove image";
    ImageFsInfo "image_fs_info" "read the image file systems of";
}

/// What was counted for one operation since the program started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationCount {
    pub operation: Operation,
    /// Calls that ended, well or not; those in flight are not in.
    pub calls: u64,
    /// Of them, those that failed.
    pub errors: u64,
    /// Time they took, summed.
    pub duration: Duration,
}

#[derive(Debug, Default)]
struct Slot {
    calls: AtomicU64,
    errors: AtomicU64,
    nanos: AtomicU64,
}

/// Shared by every client of one runtime; counting never blocks.
#[derive(Debug)]
pub struct CallCounters {
    slots: Vec<Slot>,
}

impl Default for CallCounters {
    fn default() -> Self {
        Self { slots: Operation::ALL.iter().map(|_| Slot::default()).collect() }
    }
}

impl CallCounters {
    /// One call ended after `took`.
    pub fn record(&self, operation: Operation, took: Duration, failed: bool) {
        let slot = &self.slots[operation as usize];
        slot.calls.fetch_add(1, Ordering::Relaxed);
        slot.errors.fetch_add(u64::from(failed), Ordering::Relaxed);
        slot.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// One operation's counts.
    pub fn of(&self, operation: Operation) -> OperationCount {
        let slot = &self.slots[operation as usize];
        OperationCount {
            operation,
            calls: slot.calls.load(Ordering::Relaxed),
            errors: slot.errors.load(Ordering::Relaxed),
            duration: Duration::from_nanos(slot.nanos.load(Ordering::Relaxed)),
        }
    }

    /// The operations that were called at least once.
    pub fn snapshot(&self) -> Vec<OperationCount> {
        Operation::ALL.iter().map(|op| self.of(*op)).filter(|count| count.calls > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_calls_errors_and_time_apart() {
        let counters = CallCounters::default();
        counters.record(Operation::StartContainer, Duration::from_millis(20), false);
        counters.record(Operation::StartContainer, Duration::from_millis(30), true);
        let wanted = OperationCount {
            operation: Operation::StartContainer,
            calls: 2,
            errors: 1,
            duration: Duration::from_millis(50),
        };
        assert_eq!(counters.snapshot(), [wanted]);
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let mut names: Vec<_> = Operation::ALL.iter().map(|op| op.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Operation::ALL.len());
        assert!(Operation::ALL.iter().enumerate().all(|(i, op)| *op as usize == i));
    }
}
