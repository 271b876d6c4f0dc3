//! Between CRI messages and the types of `longshore_core` and this crate: pure functions, never a panic,
//! whatever a runtime answers. No call is made here and nothing is decided.
//!
//! Answers are taken as they come where a gap does no harm, and refused, naming object and field, where
//! going on could make the agent act on the wrong thing (an id that is none, a state nobody knows).

mod answers;
mod config;
mod filters;
mod observed;

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

pub(crate) use answers::{
    cgroup_driver, container_usage, image_fs_info, image_present, runtime_event, runtime_status, stored_image,
};
pub(crate) use config::{auth_config, container_config, linux_resources, sandbox_config};
pub(crate) use filters::{container_filter, sandbox_filter, stats_filter};
pub(crate) use observed::{listed_container, listed_sandbox, observed_container, observed_sandbox};

/// The labels by which pods are found again; the kubelet's own, so that each adopts the other's pods.
pub mod labels {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
}

/// Longest id taken; they become keys, file names and log fields. Runtimes use 64 hexadecimal digits.
const MAX_ID: usize = 256;

/// Part of an answer that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field} {problem}")]
pub struct ConvertError {
    /// Id of the object, or what it was asked for by.
    pub object: String,
    /// The field as the protocol names it.
    pub field: &'static str,
    pub problem: String,
}

impl ConvertError {
    pub(crate) fn new(object: &str, field: &'static str, problem: impl fmt::Display) -> Self {
        Self { object: crate::error::bounded(object, MAX_ID), field, problem: problem.to_string() }
    }

    pub(crate) fn missing(object: &str, field: &'static str) -> Self {
        Self::new(object, field, "is missing")
    }
}

/// The answer to a list: what could be read, and what could not. One bad object hides no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing<T> {
    pub items: Vec<T>,
    pub rejected: Vec<ConvertError>,
}

impl<T> Listing<T> {
    pub(crate) fn collect(results: impl Iterator<Item = Result<T, ConvertError>>) -> Self {
        let mut listing = Self { items: Vec::new(), rejected: Vec::new() };
        for result in results {
            match result {
                Ok(item) => listing.items.push(item),
                Err(error) => listing.rejected.push(error),
            }
        }
        listing
    }
}

/// An id that can be one: not empty, not absurdly long, no path, nothing unprintable.
pub(crate) fn id(object: &str, field: &'static str, text: &str) -> Result<String, ConvertError> {
    if text.is_empty() {
        return Err(ConvertError::missing(object, field));
    }
    if text.len() > MAX_ID {
        return Err(ConvertError::new(object, field, format_args!("has {} bytes", text.len())));
    }
    if text.contains(|c: char| c == '/' || c.is_control() || c.is_whitespace()) {
        return Err(ConvertError::new(object, field, format_args!("is not an id: {text:?}")));
    }
    Ok(text.to_owned())
}

/// Nanoseconds since the epoch; zero is no time.
fn time(object: &str, field: &'static str, nanos: i64) -> Result<Option<Timestamp>, ConvertError> {
    match nanos {
        0 => Ok(None),
        1.. => Timestamp::from_nanosecond(i128::from(nanos))
            .map(Some)
            .map_err(|_| ConvertError::new(object, field, format_args!("is no time: {nanos}"))),
        _ => Err(ConvertError::new(object, field, format_args!("is before 1970: {nanos}"))),
    }
}

/// Whole seconds, rounded up, as CRI wants grace periods and timeouts.
pub(crate) fn whole_seconds(duration: Duration) -> i64 {
    let seconds = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
