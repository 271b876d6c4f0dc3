//! A watch of the API beside the node: every event with the instant at which it came, kept until it is asked for.
//! Only for looking; what nodes do with watches is not tested here.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::Value;

use crate::process::Owned;

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    pub at: Timestamp,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub kind: String,
    pub object: Value,
}

/// A watch that goes on until it is dropped.
#[derive(Debug)]
pub struct Watch {
    events: Arc<Mutex<Vec<Event>>>,
    _program: Owned,
}

impl Watch {
    /// Begins it: what there is comes as `ADDED` first. `kubectl` is run in the network namespace `outside`.
    pub(super) fn begin(kubectl: &Path, kubeconfig: &Path, outside: &Path, path: &str) -> Result<Self> {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter"])
            .arg(format!("--net={}", outside.display()))
            .arg("--")
            .arg(kubectl)
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            // As it comes, nothing parsed: it shares the processors with what is measured.
            .args(["get", "--raw", path])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start setpriv")?;
        let stdout = child.stdout.take().context("standard output was asked for")?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        thread::spawn(move || {
            // The end of the program ends its output.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let at = Timestamp::now();
                if let Some(event) = event(at, &line) {
                    sink.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                }
            }
        });
        Ok(Self { events, _program: Owned::new("a watch", child) })
    }

    /// What has come so far, in its order.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn event(at: Timestamp, line: &str) -> Option<Event> {
    let mut value: Value = serde_json::from_str(line).ok()?;
    let kind = value["type"].as_str()?.to_owned();
    Some(Event { at, kind, object: value["object"].take() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_watch_are_events() {
        let at = Timestamp::UNIX_EPOCH;
        let read = event(at, r#"{"type":"ADDED","object":{"metadata":{"name":"web-0"}}}"#).unwrap();
        assert_eq!((read.kind.as_str(), &read.object["metadata"]["name"]), ("ADDED", &"web-0".into()));
        for other in ["", "{}", "Error from server", r#"{"kind":"Status"}"#] {
            assert!(event(at, other).is_none(), "{other}");
        }
    }
}
