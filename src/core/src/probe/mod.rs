//! Probes: which should be running for a pod, with ports and hosts resolved, and in `machine` the
//! thresholds and times of one probe. Sending the probe is the agent's.

pub mod machine;

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerPort, Probe};

use crate::pod::containers::{PodContainer, Role};
use crate::pod::facts::Facts;
use crate::pod::hooks::Target;
use crate::pod::observed::{ContainerState, ObservedContainer};
use crate::pod::snapshot::{ProbeAction, ProbeKind, ProbeTarget};
use crate::pod::step::Hook;

/// The probes that should be running now: a startup probe alone until it succeeded, then liveness
/// and readiness; while the pod ends only readiness (behaviours 4, 23).
pub fn targets(facts: &Facts<'_>, terminating: bool) -> Vec<ProbeTarget> {
    let pod_ip = facts.pod_ips().first().copied();
    let mut targets = Vec::new();
    let probed =
        facts.containers.iter().filter(|container| matches!(container.role, Role::Main | Role::Sidecar));
    for container in probed {
        let Some(instance) = facts.latest(&container.name) else { continue };
        let kinds: &[ProbeKind] = match (facts.is_startup_done(&container.spec, instance), terminating) {
            (true, false) => &[ProbeKind::Liveness, ProbeKind::Readiness],
            (true, true) => &[ProbeKind::Readiness],
            (false, false) => &[ProbeKind::Startup],
            (false, true) => &[],
        };
        targets.extend(kinds.iter().filter_map(|kind| target(container, instance, *kind, pod_ip)));
    }
    targets
}

fn target(
    container: &PodContainer<'_>,
    instance: &ObservedContainer,
    kind: ProbeKind,
    pod_ip: Option<IpAddr>,
) -> Option<ProbeTarget> {
    let ContainerState::Running { started_at } = instance.state else { return None };
    let probe = match kind {
        ProbeKind::Startup => container.spec.startup_probe.as_ref(),
        ProbeKind::Liveness => container.spec.liveness_probe.as_ref(),
        ProbeKind::Readiness => container.spec.readiness_probe.as_ref(),
    }?;
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
    };
    let times = |value: Option<i32>, default: u32| {
        value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default)
    };
    Some(ProbeTarget {
        container: container.name.clone(),
        id: instance.id.clone(),
        kind,
        action: action(probe, container.spec.ports.as_deref().unwrap_or_default(), pod_ip)?,
        container_started_at: started_at,
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
        period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
        success_threshold: times(probe.success_threshold, 1).max(1),
        failure_threshold: times(probe.failure_threshold, 3).max(1),
    })
}

fn action(probe: &Probe, ports: &[ContainerPort], pod_ip: Option<IpAddr>) -> Option<ProbeAction> {
    let target = Target { ports, pod_ip };
    if let Some(exec) = &probe.exec {
        return Some(ProbeAction::Hook(Hook::Exec { command: exec.command.clone().unwrap_or_default() }));
    }
    if let Some(http) = &probe.http_get {
        return target.http(http).map(ProbeAction::Hook);
    }
    if let Some(tcp) = &probe.tcp_socket {
        return target.tcp(tcp).map(ProbeAction::Hook);
    }
    let grpc = probe.grpc.as_ref()?;
    Some(ProbeAction::Grpc {
        host: target.host(None),
        port: u16::try_from(grpc.port).ok()?,
        service: grpc.service.clone().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::{Fixture, at, running, sandbox};
    use crate::pod::local::{ProbeResult, ProbeResults};
    use serde_json::json;

    fn fixture(container: serde_json::Value) -> Fixture {
        let mut all =
            json!({"name": "web", "image": "w:1", "ports": [{"name": "http", "containerPort": 8080}]});
        all.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
        let mut fixture = Fixture::new(json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"containers": [all]}}));
        fixture.observed.sandboxes.push(sandbox());
        fixture.observed.containers.push(running("c1", "web", 0, at(5)));
        fixture
    }

    fn kinds(fixture: &Fixture, terminating: bool) -> Vec<ProbeKind> {
        let snapshot = fixture.snapshot();
        targets(&Facts::new(&snapshot), terminating).into_iter().map(|target| target.kind).collect()
    }

    #[test]
    fn kinds_follow_startup_and_termination() {
        let tcp = json!({"tcpSocket": {"port": "http"}});
        let mut fixture = fixture(json!({"startupProbe": tcp, "livenessProbe": tcp, "readinessProbe": tcp}));
        assert_eq!(kinds(&fixture, false), [ProbeKind::Startup]);
        assert_eq!(kinds(&fixture, true), []);
        let passed = ProbeResult { healthy: true, since: at(6), message: String::new() };
        let results = ProbeResults { startup: Some(passed), ..ProbeResults::default() };
        fixture.local.probes.insert("c1".into(), results);
        assert_eq!(kinds(&fixture, false), [ProbeKind::Liveness, ProbeKind::Readiness]);
        assert_eq!(kinds(&fixture, true), [ProbeKind::Readiness]);
        fixture.observed.containers.clear();
        assert_eq!(kinds(&fixture, false), []);
    }

    #[test]
    fn resolves_targets() {
        let fixture = fixture(json!({
            "readinessProbe": {"httpGet": {"port": "http", "path": "/ok", "httpHeaders": [{"name": "A", "value": "b"}]},
                "periodSeconds": 3, "failureThreshold": 2, "initialDelaySeconds": 4},
            "livenessProbe": {"grpc": {"port": 9}}}));
        let snapshot = fixture.snapshot();
        let made = targets(&Facts::new(&snapshot), false);
        assert_eq!(
            made[0].action,
            ProbeAction::Grpc { host: "10.0.0.5".into(), port: 9, service: String::new() }
        );
        assert_eq!(
            made[1].action,
            ProbeAction::Hook(Hook::HttpGet {
                scheme: "HTTP".into(),
                host: "10.0.0.5".into(),
                port: 8080,
                path: "/ok".into(),
                headers: vec![("A".into(), "b".into())]
            })
        );
        assert_eq!(
            (made[1].period.as_secs(), made[1].failure_threshold, made[1].initial_delay.as_secs()),
            (3, 2, 4)
        );
        assert_eq!(made[1].container_started_at, at(5));
    }
}
