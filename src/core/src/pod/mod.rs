//! The pod engine: desired + observed + local state -> plan (steps) and status, all pure.
//!
//! One pod worker in the agent runs this loop: build a [`snapshot::PodSnapshot`], call the planner,
//! start the steps that are not in flight, fold each outcome back into [`local::LocalState`],
//! publish the status. Nothing here performs a step.

pub mod desired;
pub mod lifecycle;
pub mod local;
pub mod observed;
pub mod snapshot;
pub mod spec;
pub mod step;
