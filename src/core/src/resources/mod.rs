//! Amounts of resources and what follows from them: QoS class, cgroup names and values, what a
//! container asks of the runtime, whether a pod fits the node. No pod lifecycle here.

pub mod admission;
pub mod cgroup_names;
pub mod cgroup_values;
pub mod container_resources;
pub mod placement;
pub mod pod_sums;
pub mod preemption;
pub mod qos;
pub mod quantity;
