//! A running daemon as a bench looks at it: its processor time and memory by the kernel, its pods by the admin
//! socket. Looking costs the daemon as little as can be; nothing here starts or stops anything.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use nix::unistd::Pid;
use serde_json::Value;

use crate::process::wait_until;

/// The daemon, by its process and its admin socket.
#[derive(Debug, Clone)]
pub struct Watched {
    pub process: Process,
    /// As this machine reaches it.
    pub socket: PathBuf,
}

/// MiB, as proc_pid_status(5) has them.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub resident: f64,
    pub anonymous: f64,
    /// Largest resident set so far.
    pub peak: f64,
}

/// A process, as this machine counts.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

impl Process {
    /// Processor seconds used so far by all threads, ended ones included; the clock counts nanoseconds.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn cpu(&self) -> Result<f64> {
        let clock = nix::time::clock_getcpuclockid(Pid::from_raw(self.0 as i32))
            .with_context(|| format!("no process {}", self.0))?;
        Ok(Duration::from(clock.now()?).as_secs_f64())
    }

    /// # Errors
    /// Where the process is gone.
    pub fn memory(&self) -> Result<Memory> {
        let file = format!("/proc/{}/status", self.0);
        let text = fs::read_to_string(&file).with_context(|| file.clone())?;
        let field = |name: &str| -> Result<f64> {
            let line = text.lines().find(|line| line.starts_with(name));
            let kib =
                line.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse::<f64>().ok());
            Ok(kib.with_context(|| format!("{file} has no {name}"))? / 1024.0)
        };
        Ok(Memory { resident: field("VmRSS:")?, anonymous: field("RssAnon:")?, peak: field("VmHWM:")? })
    }
}

impl Watched {
    /// One view of the admin API.
    ///
    /// # Errors
    /// Where nobody answers, or not with JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.socket).context("the admin socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: longshore\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {}", head.lines().next().unwrap_or_default());
        serde_json::from_str(body).with_context(|| format!("{path} is not JSON"))
    }

    /// When each of these pods was Ready first, by the daemon's own time line. It is asked for one pod after the
    /// other, so that the asking costs it nothing worth counting.
    ///
    /// # Errors
    /// Names the first pod that is not Ready in time.
    pub fn started(&self, names: &[String], within: Duration) -> Result<Vec<Started>> {
        names.iter().map(|name| self.pod_started(name, within)).collect()
    }

    fn pod_started(&self, name: &str, within: Duration) -> Result<Started> {
        let path = format!("/v1/pods/default/{name}/timeline");
        wait_until(within, Duration::from_millis(100), || {
            let lines = self.get(&path)?;
            let lines = lines.as_array().context("a time line is a list")?;
            let ready = lines.iter().find(|line| line["what"] == "Ready");
            let Some(at) = ready.and_then(|line| line["at"].as_str()) else {
                bail!("pod {name} is not Ready")
            };
            Ok(Started { ready_at: at.parse()?, waited: lines.iter().filter_map(waited_millis).sum() })
        })
    }

    /// The Ready condition of every pod, since when included, by name.
    ///
    /// # Errors
    /// Where the daemon does not answer.
    pub fn ready_conditions(&self) -> Result<BTreeMap<String, Value>> {
        let pods = self.get("/v1/pods")?;
        let pods = pods.as_array().context("pods are a list")?;
        let ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.into_iter().find(|condition| condition["type"] == "Ready");
            let mut found = found.unwrap_or(Value::Null);
            // When it was last looked at is no transition.
            if let Some(fields) = found.as_object_mut() {
                fields.remove("lastProbeTime");
            }
            (pod["key"]["name"].as_str().unwrap_or_default().to_owned(), found)
        };
        Ok(pods.iter().map(ready).collect())
    }
}

/// How a pod's start went.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    pub ready_at: Timestamp,
    /// Milliseconds its steps waited for their turn at the start gate; below five a step does not tell.
    pub waited: f64,
}

/// Of a line of the time line: `waited 12 ms for its turn`. Pulls wait for each other, not at the gate.
fn waited_millis(line: &Value) -> Option<f64> {
    let step = line["what"].as_str()?;
    let of_gate = ["create ", "start "].iter().any(|verb| step.starts_with(verb));
    let millis = line["detail"].as_str()?.strip_prefix("waited ")?.split_whitespace().next()?;
    of_gate.then(|| millis.parse().ok()).flatten()
}

/// Of every pod that is started.
pub const IMAGE: &str = "longshore.test/web:1";

/// `web-0`, `web-1`, ...
pub fn names(pods: usize) -> Vec<String> {
    (0..pods).map(|n| format!("web-{n}")).collect()
}

/// One document per pod; `more` is added to its only container.
pub fn manifests(pods: usize, more: &str) -> String {
    documents(pods, "", more)
}

/// The same for the API, past the scheduler.
pub fn manifests_bound(pods: usize, node: &str) -> String {
    documents(pods, &format!("nodeName: {node}\n  "), "")
}

fn documents(pods: usize, spec: &str, more: &str) -> String {
    let manifest = |name: &String| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\nspec:\n  \
             {spec}terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: web, image: '{IMAGE}'{more}}}\n"
        )
    };
    names(pods).iter().map(manifest).collect()
}

/// Seconds from one instant to another.
pub fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_at_the_gate_are_read_from_the_time_line() {
        for (what, detail, expected) in [
            ("create sandbox", "waited 387 ms for its turn", Some(387.0)),
            ("start container web", "waited 5 ms for its turn", Some(5.0)),
            ("pull image for web", "waited 9 ms for its turn", None),
            ("create sandbox", "", None),
        ] {
            let line = serde_json::json!({"what": what, "detail": detail});
            assert_eq!(waited_millis(&line), expected, "{what}: {detail}");
        }
    }
}
