//! `longshore ps`: the pods of this node, or their containers, one line each.

use jiff::Timestamp;
use longshore_core::pod::desired::PodSource;
use longshore_core::pod::observed::{ContainerState, ObservedContainer, SandboxState};
use longshore_core::wire::NodeView;
use serde::Serialize;

use crate::age::age;
use crate::error::CliError;
use crate::output::{Format, Rows, Screen, mood, print, structured};
use crate::pods::{Node, NodePod};
use crate::status_column::columns;

/// One line of `ps`, also its JSON and YAML form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLine {
    pub namespace: String,
    pub name: String,
    pub ready: String,
    pub status: String,
    pub restarts: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_restart: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting_on: Vec<String>,
    pub images: Vec<String>,
}

/// One line of `ps --containers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerLine {
    pub namespace: String,
    pub pod: String,
    pub container: String,
    pub state: String,
    pub attempt: u32,
    pub created: Timestamp,
    pub image: String,
    pub id: String,
}

/// Shows pods, or containers with `containers`; `namespace` narrows to one.
pub async fn run(
    node: &Node,
    screen: &Screen,
    namespace: Option<&str>,
    containers: bool,
) -> Result<(), CliError> {
    let mut pods = node.pods().await?;
    pods.retain(|pod| namespace.is_none_or(|namespace| namespace == &*pod.key().namespace));
    pods.sort_by(|a, b| a.key().cmp(b.key()));
    let now = Timestamp::now();
    if containers {
        let lines: Vec<ContainerLine> = pods.iter().flat_map(container_lines).collect();
        if structured(screen, &lines)? {
            return Ok(());
        }
        return print(&container_table(&lines, screen, now));
    }
    let mut lines: Vec<PodLine> = pods.iter().map(pod_line).collect();
    if screen.format != Format::Table {
        // A manifest names no node: its pods are on this one.
        let host = node.daemon.get::<NodeView>("/v1/node").await.ok().map(|view| view.name);
        lines.iter_mut().for_each(|line| line.node = line.node.take().or_else(|| host.clone()));
    }
    if structured(screen, &lines)? {
        return Ok(());
    }
    if lines.is_empty() {
        eprintln!(
            "no pods{}",
            namespace.map_or(String::new(), |namespace| format!(" in namespace {namespace}"))
        );
        return Ok(());
    }
    print(&pod_table(&lines, screen, now))
}

fn pod_line(pod: &NodePod) -> PodLine {
    let mut line = match &pod.view {
        Some(view) => {
            let columns = columns(&view.pod, &view.status, &view.lifecycle);
            let spec = view.pod.spec.as_ref();
            PodLine {
                ready: format!("{}/{}", columns.ready, columns.containers),
                status: columns.status,
                restarts: columns.restarts,
                last_restart: columns.last_restart,
                started: view
                    .pod
                    .metadata
                    .creation_timestamp
                    .as_ref()
                    .or(view.status.start_time.as_ref())
                    .map(|t| t.0),
                ip: view.status.pod_ip.clone(),
                node: spec.and_then(|spec| spec.node_name.clone()),
                source: Some(source(&view.source)),
                waiting_on: view.waiting.iter().map(|waiting| waiting.message.clone()).collect(),
                images: spec
                    .iter()
                    .flat_map(|spec| &spec.containers)
                    .filter_map(|c| c.image.clone())
                    .collect(),
                ..runtime_line(pod)
            }
        }
        None => runtime_line(pod),
    };
    line.images.dedup();
    line
}

/// What the runtime alone can tell of a pod.
fn runtime_line(pod: &NodePod) -> PodLine {
    let names = pod.container_names();
    let newest: Vec<&ObservedContainer> =
        names.iter().filter_map(|name| pod.instances(name).next()).collect();
    let running = newest.iter().filter(|container| container.is_running()).count();
    let sandbox = pod.observed.sandboxes.first();
    let status = newest
        .iter()
        .find_map(|container| match &container.state {
            ContainerState::Exited { reason, exit_code, .. } if *exit_code != 0 => Some(reason.clone()),
            _ => None,
        })
        .unwrap_or_else(|| match sandbox.map(|sandbox| sandbox.state) {
            Some(SandboxState::Ready) if running > 0 => "Running".into(),
            Some(SandboxState::Ready) if newest.is_empty() => "ContainerCreating".into(),
            _ => "Completed".into(),
        });
    PodLine {
        namespace: pod.key().namespace.to_string(),
        name: pod.key().name.to_string(),
        ready: format!("{running}/{}", newest.len()),
        status,
        restarts: newest.iter().map(|container| container.attempt as i32).sum(),
        last_restart: None,
        started: sandbox.map(|sandbox| sandbox.created_at),
        ip: sandbox.and_then(|sandbox| sandbox.ips.first()).map(ToString::to_string),
        node: None,
        source: None,
        waiting_on: Vec::new(),
        images: newest.iter().map(|container| container.image.clone()).collect(),
    }
}

/// Where a pod came from, as a person would say it.
pub fn source(source: &PodSource) -> String {
    match source {
        PodSource::File { path, document: 1 } => path.display().to_string(),
        PodSource::File { path, document } => format!("{}#{document}", path.display()),
        PodSource::Api => "API".into(),
        PodSource::Runtime => "runtime".into(),
    }
}

fn pod_table(lines: &[PodLine], screen: &Screen, now: Timestamp) -> String {
    let wide = screen.format == Format::Wide;
    let mut headings = vec!["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP"];
    if wide {
        headings.extend(["NODE", "*SOURCE", "*IMAGE", "WAITING ON"]);
    }
    let mut rows = Rows::new(&headings);
    for line in lines {
        let restarts = match line.last_restart.filter(|_| line.restarts > 0) {
            Some(at) => format!("{} ({} ago)", line.restarts, age(at, now)),
            None => line.restarts.to_string(),
        };
        let mut row = vec![
            line.namespace.clone(),
            line.name.clone(),
            line.ready.clone(),
            line.status.clone(),
            restarts,
            line.started.map_or_else(String::new, |at| age(at, now)),
            line.ip.clone().unwrap_or_default(),
        ];
        if wide {
            row.push(line.node.clone().unwrap_or_default());
            row.push(line.source.clone().unwrap_or_default());
            row.push(line.images.join(","));
            row.push(line.waiting_on.first().cloned().unwrap_or_default());
        }
        rows.push(row);
    }
    rows.render(screen, mood)
}

fn container_lines(pod: &NodePod) -> Vec<ContainerLine> {
    let line = |container: &ObservedContainer| ContainerLine {
        namespace: pod.key().namespace.to_string(),
        pod: pod.key().name.to_string(),
        container: container.name.to_string(),
        state: match &container.state {
            ContainerState::Created => "Created".into(),
            ContainerState::Running { .. } => "Running".into(),
            ContainerState::Exited { exit_code, reason, .. } => format!("{reason} ({exit_code})"),
            ContainerState::Unknown => "Unknown".into(),
        },
        attempt: container.attempt,
        created: container.created_at,
        image: container.image.clone(),
        id: container.id.to_string(),
    };
    pod.observed.containers.iter().map(line).collect()
}

fn container_table(lines: &[ContainerLine], screen: &Screen, now: Timestamp) -> String {
    let wide = screen.format == Format::Wide;
    let mut rows = Rows::new(&["NAMESPACE", "POD", "CONTAINER", "STATE", "ATTEMPT", "AGE", "ID", "IMAGE"]);
    for line in lines {
        let id = if wide { line.id.as_str() } else { line.id.get(..13).unwrap_or(&line.id) };
        rows.push(vec![
            line.namespace.clone(),
            line.pod.clone(),
            line.container.clone(),
            line.state.clone(),
            line.attempt.to_string(),
            age(line.created, now),
            id.to_string(),
            line.image.clone(),
        ]);
    }
    rows.render(screen, mood)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<PodLine> {
        let web = PodLine {
            namespace: "default".into(),
            name: "web-1".into(),
            ready: "1/1".into(),
            status: "Running".into(),
            restarts: 0,
            last_restart: None,
            started: Some(Timestamp::from_second(1000).unwrap()),
            ip: Some("10.1.0.4".into()),
            node: Some("worker-1".into()),
            source: Some("/etc/longshore/manifests/web.yaml#2".into()),
            waiting_on: Vec::new(),
            images: vec!["localhost/web:1".into()],
        };
        let crash = PodLine {
            name: "crash".into(),
            ready: "0/1".into(),
            status: "CrashLoopBackOff".into(),
            restarts: 4,
            last_restart: Some(Timestamp::from_second(1290).unwrap()),
            ip: None,
            waiting_on: vec!["container main ended with 1; it starts again in 40s".into()],
            ..web.clone()
        };
        vec![crash, web]
    }

    fn screen(format: Format, width: Option<u16>) -> Screen {
        Screen { format, colour: false, width }
    }

    #[test]
    fn pods_fit_eighty_columns() {
        let now = Timestamp::from_second(1320).unwrap();
        assert_eq!(
            pod_table(&lines(), &screen(Format::Table, Some(80)), now),
            "NAMESPACE  NAME   READY  STATUS            RESTARTS     AGE    IP\n\
             default    crash  0/1    CrashLoopBackOff  4 (30s ago)  5m20s  -\n\
             default    web-1  1/1    Running           0            5m20s  10.1.0.4\n"
        );
    }

    #[test]
    fn wide_adds_what_a_person_asks_next() {
        let now = Timestamp::from_second(1320).unwrap();
        let table = pod_table(&lines(), &screen(Format::Wide, Some(200)), now);
        let first: Vec<&str> = table.lines().collect();
        assert!(
            first[0].ends_with("NODE      SOURCE                               IMAGE            WAITING ON"),
            "{table}"
        );
        assert!(first[1].contains("it starts again in 40s"), "{table}");
        assert!(table.lines().all(|line| line.chars().count() <= 200), "{table}");
    }
}
