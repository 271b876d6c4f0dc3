//! Amounts of resources and what follows from them: QoS class, cgroup names and values, what a
//! container asks of the runtime, whether a pod fits the node. No pod lifecycle here.

pub mod quantity;
