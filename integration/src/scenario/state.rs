//! What the node says about pods and containers: through longshore's own command line, so that it is tested on the
//! way, and through containerd where the daemon must not be asked. Reads only.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::form::PodState;
use crate::fake::Order;
use crate::node::{Kind, Node, sh};

/// A line of `longshore ps -o json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLine {
    pub namespace: String,
    pub name: String,
    pub ready: String,
    pub status: String,
    pub restarts: i64,
    pub ip: Option<String>,
}

/// A line of `longshore ps --containers -o json`.
#[derive(Debug, Clone, Deserialize)]
pub struct ContainerLine {
    pub pod: String,
    pub container: String,
    pub state: String,
    pub id: String,
}

/// All pods.
///
/// # Errors
/// Where the command fails or prints something else.
pub fn pods(node: &dyn Node) -> Result<Vec<PodLine>> {
    let text = sh(node, "longshore ps -o json")?;
    serde_json::from_str(&text).with_context(|| format!("`longshore ps -o json` printed {text}"))
}

/// One pod of any namespace.
///
/// # Errors
/// Where it is not there.
pub fn pod(node: &dyn Node, name: &str) -> Result<PodLine> {
    let all = pods(node)?;
    let names: Vec<_> = all.iter().map(|p| format!("{} {} {}", p.name, p.ready, p.status)).collect();
    all.into_iter()
        .find(|p| p.name == name)
        .with_context(|| format!("no pod {name}; there are: {}", names.join(", ")))
}

/// All containers.
///
/// # Errors
/// Where the command fails or prints something else.
pub fn containers(node: &dyn Node) -> Result<Vec<ContainerLine>> {
    let text = sh(node, "longshore ps --containers -o json")?;
    serde_json::from_str(&text).with_context(|| format!("`longshore ps --containers -o json` printed {text}"))
}

/// Running containers and sandboxes as the runtime has them: by id, what changes with a restart (the process id; the
/// time of the start on the fake runtime).
///
/// # Errors
/// Where the runtime does not answer.
pub fn tasks(node: &dyn Node) -> Result<BTreeMap<String, String>> {
    if node.kind() == Kind::Fake {
        let answer = node.order(&Order::Tasks)?;
        let tasks = answer.as_object().context("tasks are an object")?;
        return Ok(tasks.iter().map(|(id, started)| (id.clone(), started.to_string())).collect());
    }
    let text = sh(node, "ctr -n k8s.io tasks list")?;
    let rows = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    Ok(rows
        .filter(|row| row.get(2) == Some(&"RUNNING"))
        .map(|row| (row[0].to_owned(), row[1].to_owned()))
        .collect())
}

/// The Pod as the API would show it.
///
/// # Errors
/// Where it is not there.
pub fn object(node: &dyn Node, name: &str) -> Result<Value> {
    let text = sh(node, &format!("longshore get pod {name} -o json"))?;
    serde_json::from_str(&text).with_context(|| format!("`longshore get pod {name} -o json` printed {text}"))
}

/// Whether the pod is as expected.
///
/// # Errors
/// Says what differs.
pub fn check_pod(node: &dyn Node, expected: &PodState) -> Result<String> {
    let line = pod(node, &expected.name)?;
    let seen = format!("{} {} {} {} restarts", line.name, line.ready, line.status, line.restarts);
    if let Some(status) = expected.status.as_ref().filter(|status| **status != line.status) {
        bail!("expected status {status}: {seen}");
    }
    if let Some(ready) = expected.ready.as_ref().filter(|ready| **ready != line.ready) {
        bail!("expected {ready} ready: {seen}");
    }
    if let Some(restarts) = expected.restarts.as_ref().filter(|r| !counts(r, line.restarts)) {
        bail!("expected {restarts} restarts: {seen}");
    }
    if expected.phase.is_some() || !expected.conditions.is_empty() || !expected.fields.is_empty() {
        check_object(&object(node, &expected.name)?, expected)?;
    }
    Ok(seen)
}

/// `2` or `>=2`.
fn counts(expected: &str, seen: i64) -> bool {
    match expected.strip_prefix(">=") {
        Some(least) => least.trim().parse().is_ok_and(|least: i64| seen >= least),
        None => expected.parse() == Ok(seen),
    }
}

fn check_object(object: &Value, expected: &PodState) -> Result<()> {
    if let Some(phase) = &expected.phase {
        let seen = &object["status"]["phase"];
        if seen != phase.as_str() {
            bail!("expected phase {phase}, it is {seen}");
        }
    }
    for (kind, status) in &expected.conditions {
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let seen = conditions.iter().find(|c| c["type"] == kind.as_str()).map(|c| c["status"].clone());
        if seen.as_ref().and_then(Value::as_str) != Some(status) {
            bail!("expected condition {kind}={status}, it is {seen:?}");
        }
    }
    for (pointer, value) in &expected.fields {
        let seen = object.pointer(pointer).unwrap_or(&Value::Null);
        if seen != value {
            bail!("expected {pointer} = {value}, it is {seen}");
        }
    }
    Ok(())
}

/// What a person would look at when a scenario fails.
pub fn dump(node: &dyn Node) -> String {
    use crate::node::Service;
    let mut text = String::new();
    let mut show = |title: &str, script: &str| {
        let output = node.run(script, &[], Duration::from_secs(30));
        let said = output.map_or_else(|error| format!("{error:#}"), |output| output.text());
        text.push_str(&format!("  -- {title}\n{}\n", indent(&said)));
    };
    show("longshore ps -o wide", "longshore ps -o wide");
    show("longshore ps --containers", "longshore ps --containers");
    for pod in pods(node).unwrap_or_default().iter().take(5) {
        show(
            &format!("longshore why pod/{}", pod.name),
            &format!("longshore why pod/{} -n {}", pod.name, pod.namespace),
        );
    }
    let tasks = tasks(node).map_or_else(|error| format!("{error:#}"), |tasks| format!("{tasks:?}"));
    text.push_str(&format!("  -- the runtime's tasks\n{}\n", indent(&tasks)));
    for (service, lines) in [(Service::Agent, 60), (Service::Containerd, 15)] {
        text.push_str(&format!("  -- log of {}\n{}\n", service.name(), indent(&node.log(service, lines))));
    }
    text.push_str(&format!("  -- whole logs: {}\n", node.logs().display()));
    text
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("     {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_counts_compare() {
        for (expected, seen, holds) in
            [("2", 2, true), ("2", 3, false), (">=2", 3, true), (">=2", 1, false), ("x", 0, false)]
        {
            assert_eq!(counts(expected, seen), holds, "{expected} {seen}");
        }
    }

    #[test]
    fn objects_are_compared_field_by_field() {
        let object = serde_json::json!({"status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [{"restartCount": 1}]}});
        let expected = |yaml: &str| serde_saphyr::from_str::<PodState>(yaml).unwrap();
        for good in [
            "{phase: Running}",
            "{conditions: {Ready: 'False'}}",
            "{fields: {/status/containerStatuses/0/restartCount: 1}}",
        ] {
            assert!(check_object(&object, &expected(good)).is_ok(), "{good}");
        }
        for bad in [
            "{phase: Failed}",
            "{conditions: {Ready: 'True'}}",
            "{conditions: {Started: 'True'}}",
            "{fields: {/status/x: 1}}",
        ] {
            assert!(check_object(&object, &expected(bad)).is_err(), "{bad}");
        }
    }
}
