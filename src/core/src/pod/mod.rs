//! The pod engine: desired + observed + local state -> plan (steps) and status, all pure.
//!
//! One pod worker in the agent runs this loop: build a [`snapshot::PodSnapshot`], call the planner,
//! start the steps that are not in flight, fold each outcome back into [`local::LocalState`],
//! publish the status. Nothing here performs a step.

pub mod adopted;
pub mod command;
pub mod containers;
pub mod default;
pub mod desired;
pub mod dns;
pub mod env;
pub mod events;
pub mod facts;
pub mod fields;
#[cfg(test)]
pub(crate) mod fixture;
pub mod hooks;
pub mod hostname;
pub mod hosts_file;
pub mod known;
pub mod leftover;
pub mod lifecycle;
pub mod local;
pub mod logs;
pub mod mirror;
pub mod mounts;
pub mod observed;
pub mod plan;
pub mod refs;
pub mod render;
pub mod report;
pub mod restart;
pub mod retry;
pub mod runtime_class;
pub mod security;
pub mod snapshot;
pub mod spec;
pub mod static_life;
pub mod status;
pub mod step;
pub mod taken_over;
pub mod token;
pub mod validate;
