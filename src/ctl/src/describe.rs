//! `longshore describe pod`: everything the daemon knows of one pod, as a page to read.

use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Probe, Volume};
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::wire::{PodView, TimelineEntry, TimelineOutcome};

use crate::age::{age, millis};
use crate::error::{CliError, one_line, short_ids};
use crate::output::{Screen, print, structured};
use crate::pods::Node;
use crate::ps::source;
use crate::status_column::columns;
use crate::target::PodName;

/// Timeline entries shown at the end.
const RECENT: usize = 12;

/// Describes one pod.
pub async fn run(node: &Node, screen: &Screen, name: &PodName) -> Result<(), CliError> {
    let pods: Vec<PodView> = node.daemon.get("/v1/pods").await?;
    let key = name.choose(pods.iter().map(|pod| &pod.key))?;
    let path = format!("/v1/pods/{}/{}", key.namespace, key.name);
    let view: PodView = node.daemon.get(&path).await?;
    if structured(screen, &view)? {
        return Ok(());
    }
    let timeline: Vec<TimelineEntry> = node.daemon.get(&format!("{path}/timeline")).await?;
    print(&page(&view, &timeline, Timestamp::now()))
}

/// The page.
pub fn page(view: &PodView, timeline: &[TimelineEntry], now: Timestamp) -> String {
    let mut text = String::new();
    head(&mut text, view, now);
    let spec = view.pod.spec.as_ref();
    let init = view.status.init_container_statuses.as_deref().unwrap_or_default();
    let main = view.status.container_statuses.as_deref().unwrap_or_default();
    if let Some(spec) = spec {
        containers(
            &mut text,
            "Init containers",
            spec.init_containers.as_deref().unwrap_or_default(),
            init,
            now,
        );
        containers(&mut text, "Containers", &spec.containers, main, now);
        volumes(&mut text, spec.volumes.as_deref().unwrap_or_default());
    }
    conditions(&mut text, view, now);
    waiting(&mut text, view, now);
    recent(&mut text, timeline);
    text
}

fn field(text: &mut String, indent: usize, label: &str, value: &str) {
    if !value.is_empty() {
        let label = format!("{label}:");
        let _ =
            writeln!(text, "{:indent$}{label:<width$}{}", "", one_line(value), width = 18 - indent.min(4));
    }
}

fn head(text: &mut String, view: &PodView, now: Timestamp) {
    let shown = columns(&view.pod, &view.status, &view.lifecycle);
    let spec = view.pod.spec.as_ref();
    let status = &view.status;
    field(text, 0, "Name", &view.key.name);
    field(text, 0, "Namespace", &view.key.namespace);
    field(text, 0, "UID", view.uid.as_str());
    field(text, 0, "Source", &source(&view.source));
    field(text, 0, "Node", spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default());
    field(
        text,
        0,
        "Status",
        &format!(
            "{} ({}/{} ready, {} restarts)",
            shown.status, shown.ready, shown.containers, shown.restarts
        ),
    );
    field(text, 0, "Message", status.message.as_deref().unwrap_or_default());
    field(text, 0, "Lifecycle", &lifecycle(&view.lifecycle, now));
    field(text, 0, "QoS", status.qos_class.as_deref().unwrap_or_default());
    let ips: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    field(text, 0, "IPs", &ips.join(", "));
    if let Some(start) = &status.start_time {
        field(text, 0, "Started", &format!("{} ({} ago)", start.0, age(start.0, now)));
    }
    for (label, map) in
        [("Labels", &view.pod.metadata.labels), ("Annotations", &view.pod.metadata.annotations)]
    {
        for (index, (name, value)) in map.iter().flatten().enumerate() {
            field(text, 0, if index == 0 { label } else { "" }, &format!("{name}={value}"));
        }
    }
}

fn lifecycle(lifecycle: &Lifecycle, now: Timestamp) -> String {
    match lifecycle {
        Lifecycle::Queued { behind } => format!("waits for the end of the pod's former life {behind}"),
        Lifecycle::Syncing => "kept running".into(),
        Lifecycle::Terminating { cause, since, deadline } => format!(
            "ending for {} ({cause:?}), killed {}",
            age(*since, now),
            if *deadline > now { format!("in {}", age(now, *deadline)) } else { "now".into() }
        ),
        Lifecycle::Terminated { cause, at } => {
            format!("ended {} ago ({cause:?}), being cleaned up", age(*at, now))
        }
        Lifecycle::Released { cause, at } => format!("ended {} ago ({cause:?})", age(*at, now)),
    }
}

fn containers(
    text: &mut String,
    title: &str,
    specs: &[Container],
    statuses: &[ContainerStatus],
    now: Timestamp,
) {
    if specs.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{title}:");
    for spec in specs {
        let _ = writeln!(text, "  {}:", spec.name);
        let status = statuses.iter().find(|status| status.name == spec.name);
        field(text, 4, "Image", spec.image.as_deref().unwrap_or_default());
        let words = [spec.command.as_deref(), spec.args.as_deref()].into_iter().flatten().flatten();
        field(text, 4, "Command", &words.cloned().collect::<Vec<_>>().join(" "));
        if let Some(status) = status {
            field(text, 4, "ID", status.container_id.as_deref().unwrap_or_default());
            field(text, 4, "State", &status.state.as_ref().map_or(String::new(), |s| state(s, now)));
            field(
                text,
                4,
                "Last state",
                &status.last_state.as_ref().map_or(String::new(), |s| state(s, now)),
            );
            field(text, 4, "Ready", if status.ready { "yes" } else { "no" });
            field(text, 4, "Restarts", &status.restart_count.to_string());
        }
        let ports = spec.ports.iter().flatten().map(|port| {
            let host = port.host_port.map_or(String::new(), |host| format!(" (host {host})"));
            format!("{}/{}{host}", port.container_port, port.protocol.as_deref().unwrap_or("TCP"))
        });
        field(text, 4, "Ports", &ports.collect::<Vec<_>>().join(", "));
        if let Some(resources) = &spec.resources {
            for (label, map) in [("Limits", &resources.limits), ("Requests", &resources.requests)] {
                let items = map.iter().flatten().map(|(name, quantity)| format!("{name}={}", quantity.0));
                field(text, 4, label, &items.collect::<Vec<_>>().join(" "));
            }
        }
        for (label, check) in [
            ("Startup", &spec.startup_probe),
            ("Liveness", &spec.liveness_probe),
            ("Readiness", &spec.readiness_probe),
        ] {
            field(text, 4, label, &check.as_ref().map_or(String::new(), probe));
        }
        for mount in spec.volume_mounts.iter().flatten() {
            let mode = if mount.read_only == Some(true) { " (read-only)" } else { "" };
            field(text, 4, "Mount", &format!("{} from {}{mode}", mount.mount_path, mount.name));
        }
    }
}

fn state(state: &ContainerState, now: Timestamp) -> String {
    if let Some(running) = &state.running {
        return running
            .started_at
            .as_ref()
            .map_or("running".into(), |at| format!("running for {}", age(at.0, now)));
    }
    if let Some(waiting) = &state.waiting {
        let message = waiting.message.as_ref().map_or(String::new(), |message| format!(": {message}"));
        return format!("waiting, {}{message}", waiting.reason.as_deref().unwrap_or("reason unknown"));
    }
    let Some(ended) = &state.terminated else { return String::new() };
    let at = ended.finished_at.as_ref().map_or(String::new(), |at| format!(" {} ago", age(at.0, now)));
    let message = ended.message.as_ref().map_or(String::new(), |message| format!(": {message}"));
    format!("ended{at} with {}, {}{message}", ended.exit_code, ended.reason.as_deref().unwrap_or("no reason"))
}

fn probe(probe: &Probe) -> String {
    let what = if let Some(http) = &probe.http_get {
        format!("http-get :{}{}", port(&http.port), http.path.as_deref().unwrap_or("/"))
    } else if let Some(tcp) = &probe.tcp_socket {
        format!("tcp :{}", port(&tcp.port))
    } else if let Some(grpc) = &probe.grpc {
        format!("grpc :{}", grpc.port)
    } else if let Some(exec) = &probe.exec {
        format!("exec {}", exec.command.as_deref().unwrap_or_default().join(" "))
    } else {
        String::new()
    };
    format!(
        "{what}, first after {}s, every {}s, timeout {}s, {} good / {} bad in a row",
        probe.initial_delay_seconds.unwrap_or(0),
        probe.period_seconds.unwrap_or(10),
        probe.timeout_seconds.unwrap_or(1),
        probe.success_threshold.unwrap_or(1),
        probe.failure_threshold.unwrap_or(3)
    )
}

fn port(port: &k8s_openapi::apimachinery::pkg::util::intstr::IntOrString) -> String {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    }
}

fn volumes(text: &mut String, volumes: &[Volume]) {
    if volumes.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nVolumes:");
    for volume in volumes {
        field(text, 2, &volume.name, &volume_source(volume));
    }
}

fn volume_source(volume: &Volume) -> String {
    if let Some(dir) = &volume.empty_dir {
        let medium = dir.medium.as_deref().filter(|medium| !medium.is_empty()).unwrap_or("disk");
        let size = dir.size_limit.as_ref().map_or(String::new(), |size| format!(", at most {}", size.0));
        return format!("emptyDir on {medium}{size}");
    }
    if let Some(path) = &volume.host_path {
        return format!("hostPath {}", path.path);
    }
    if let Some(map) = &volume.config_map {
        return format!("configMap {}", map.name);
    }
    if let Some(secret) = &volume.secret {
        return format!("secret {}", secret.secret_name.as_deref().unwrap_or_default());
    }
    if volume.downward_api.is_some() {
        return "downwardAPI".into();
    }
    if let Some(projected) = &volume.projected {
        return format!("projected, {} sources", projected.sources.as_ref().map_or(0, Vec::len));
    }
    "of a kind that needs a control plane".into()
}

fn conditions(text: &mut String, view: &PodView, now: Timestamp) {
    let conditions = view.status.conditions.as_deref().unwrap_or_default();
    if conditions.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nConditions:");
    for condition in conditions {
        let since = condition
            .last_transition_time
            .as_ref()
            .map_or(String::new(), |at| format!(" for {}", age(at.0, now)));
        let why = [condition.reason.as_deref(), condition.message.as_deref()].into_iter().flatten();
        let why = why.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
        let why = if why.is_empty() { why } else { format!(" ({why})") };
        let _ = writeln!(text, "  {:<27}{}{since}{}", condition.type_, condition.status, one_line_keep(&why));
    }
}

fn one_line_keep(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" {}", one_line(text)) }
}

fn waiting(text: &mut String, view: &PodView, now: Timestamp) {
    if !view.waiting.is_empty() {
        let _ = writeln!(text, "\nWaiting on:");
    }
    for waiting in &view.waiting {
        let until = waiting.until.filter(|until| *until > now);
        let until = until.map_or(String::new(), |until| format!(", again in {}", age(now, until)));
        let _ = writeln!(text, "  {}: {}{until}", waiting.reason, one_line(&waiting.message));
    }
    if !view.in_flight.is_empty() {
        let _ = writeln!(text, "\nUnder way:");
    }
    for (step, since) in &view.in_flight {
        let _ = writeln!(text, "  {step} for {}", age(*since, now));
    }
    if !view.failures.is_empty() {
        let _ = writeln!(text, "\nFailed:");
    }
    for (step, failure) in &view.failures {
        let _ = writeln!(
            text,
            "  {step}: {} ({} times in a row since {}): {}",
            failure.error.reason,
            failure.attempts,
            failure.since,
            one_line(&failure.error.message)
        );
    }
}

fn recent(text: &mut String, timeline: &[TimelineEntry]) {
    if timeline.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nRecent steps (all: longshore timeline):");
    for entry in &timeline[timeline.len().saturating_sub(RECENT)..] {
        let outcome = match (entry.outcome, entry.took_ms) {
            (TimelineOutcome::Running, _) => "running".into(),
            (TimelineOutcome::Failed, _) => "failed".into(),
            (TimelineOutcome::Done, Some(ms)) => millis(ms),
            (TimelineOutcome::Done, None) | (TimelineOutcome::Event, _) => String::new(),
        };
        let _ = writeln!(
            text,
            "  {}  {:<10}{}{}",
            entry.at.strftime("%H:%M:%S%.3f"),
            outcome,
            short_ids(&one_line(&entry.what)),
            one_line_keep(&entry.detail)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_core::ids::{PodKey, PodUid};
    use longshore_core::pod::desired::PodSource;
    use longshore_core::pod::observed::ObservedPod;
    use longshore_core::pod::snapshot::Waiting;
    use serde_json::json;

    #[test]
    fn a_page_holds_what_a_person_asks() {
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
            "spec": {
                "nodeName": "n1",
                "containers": [{
                    "name": "main", "image": "web:1", "command": ["/web"], "args": ["-p", "80"],
                    "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"memory": "64Mi"}},
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": 80}},
                    "volumeMounts": [{"name": "page", "mountPath": "/page", "readOnly": true}],
                }],
                "volumes": [{"name": "page", "configMap": {"name": "page"}}],
            },
            "status": {
                "phase": "Running", "qosClass": "Burstable", "podIPs": [{"ip": "10.0.0.2"}],
                "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "containerStatuses": [{"name": "main", "ready": false, "restartCount": 2, "image": "", "imageID": "",
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}},
                    "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "finishedAt": "2026-01-01T00:00:30Z"}}}],
            },
        }))
        .unwrap();
        let key = PodKey::new("default", "web");
        let view = PodView {
            key: key.clone(),
            uid: PodUid::from("u-1"),
            source: PodSource::File { path: "/m/web.yaml".into(), document: 1 },
            status: std::sync::Arc::new(pod.status.clone().unwrap()),
            pod: std::sync::Arc::new(pod),
            lifecycle: Lifecycle::Syncing,
            observed: std::sync::Arc::new(ObservedPod {
                uid: PodUid::from("u-1"),
                key,
                sandboxes: vec![],
                containers: vec![],
                observed_at: Timestamp::UNIX_EPOCH,
            }),
            waiting: vec![Waiting {
                reason: "CrashLoopBackOff".into(),
                container: None,
                message: "container main ended with 3".into(),
                until: Some("2026-01-01T00:01:20Z".parse().unwrap()),
            }],
            in_flight: vec![],
            failures: vec![],
            probes: vec![],
            failed_hooks: vec![],
        };
        let timeline = [TimelineEntry {
            at: "2026-01-01T00:00:00.25Z".parse().unwrap(),
            took_ms: Some(150),
            what: "create sandbox".into(),
            outcome: TimelineOutcome::Done,
            detail: String::new(),
        }];
        let page = page(&view, &timeline, "2026-01-01T00:01:00Z".parse().unwrap());
        let expected = "\
Name:             web
Namespace:        default
UID:              u-1
Source:           /m/web.yaml
Node:             n1
Status:           CrashLoopBackOff (0/1 ready, 2 restarts)
Lifecycle:        kept running
QoS:              Burstable
IPs:              10.0.0.2
Labels:           app=web

Containers:
  main:
    Image:        web:1
    Command:      /web -p 80
    State:        waiting, CrashLoopBackOff: back-off 20s
    Last state:   ended 30s ago with 3, Error
    Ready:        no
    Restarts:     2
    Ports:        80/TCP
    Limits:       memory=64Mi
    Readiness:    http-get :80/ready, first after 0s, every 10s, timeout 1s, 1 good / 3 bad in a row
    Mount:        /page from page (read-only)

Volumes:
  page:           configMap page

Conditions:
  Ready                      False for 60s (ContainersNotReady)

Waiting on:
  CrashLoopBackOff: container main ended with 3, again in 20s

Recent steps (all: longshore timeline):
  00:00:00.250  150 ms    create sandbox
";
        assert_eq!(page, expected);
    }
}
