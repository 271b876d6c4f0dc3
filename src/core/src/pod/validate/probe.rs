//! Rules for probes and lifecycle hooks.

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Lifecycle, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Problems, names};

pub(super) fn probes(problems: &mut Problems, path: &str, container: &Container) {
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        if let Some(probe) = probe {
            let path = format!("{path}.{name}");
            check_probe(problems, &path, probe, container);
            if name != "readinessProbe" && probe.success_threshold.unwrap_or(1) != 1 {
                problems.add(
                    &format!("{path}.successThreshold"),
                    "must be 1 for this kind of probe",
                    "use 1",
                );
            }
            if name == "readinessProbe" && probe.termination_grace_period_seconds.is_some() {
                problems.add(
                    &format!("{path}.terminationGracePeriodSeconds"),
                    "has no meaning for a readiness probe, which never kills",
                    "remove it",
                );
            }
        }
    }
}

fn check_probe(problems: &mut Problems, path: &str, probe: &Probe, container: &Container) {
    problems.at_least(&format!("{path}.initialDelaySeconds"), probe.initial_delay_seconds.map(i64::from), 0);
    problems.at_least(&format!("{path}.timeoutSeconds"), probe.timeout_seconds.map(i64::from), 1);
    problems.at_least(&format!("{path}.periodSeconds"), probe.period_seconds.map(i64::from), 1);
    problems.at_least(&format!("{path}.successThreshold"), probe.success_threshold.map(i64::from), 1);
    problems.at_least(&format!("{path}.failureThreshold"), probe.failure_threshold.map(i64::from), 1);
    problems.at_least(
        &format!("{path}.terminationGracePeriodSeconds"),
        probe.termination_grace_period_seconds,
        1,
    );
    let kinds =
        [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
    if kinds.iter().filter(|given| **given).count() != 1 {
        problems.add(path, "must have exactly one action", "give one of exec, httpGet, tcpSocket and grpc");
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        problems.add(&format!("{path}.exec.command"), "is empty", "name the program to run");
    }
    if let Some(http) = &probe.http_get {
        check_http(problems, &format!("{path}.httpGet"), http, container);
    }
    if let Some(tcp) = &probe.tcp_socket {
        check_port(problems, &format!("{path}.tcpSocket.port"), &tcp.port, container);
    }
    if let Some(grpc) = &probe.grpc {
        names::port(problems, &format!("{path}.grpc.port"), grpc.port);
    }
}

pub(super) fn lifecycle(problems: &mut Problems, path: &str, lifecycle: &Lifecycle, container: &Container) {
    for (name, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(handler) = handler {
            check_handler(problems, &format!("{path}.lifecycle.{name}"), handler, container);
        }
    }
    if lifecycle.stop_signal.is_some() {
        problems.add(
            &format!("{path}.lifecycle.stopSignal"),
            "is an alpha field that is not supported",
            "remove it; the image's own stop signal is used",
        );
    }
}

fn check_handler(problems: &mut Problems, path: &str, handler: &LifecycleHandler, container: &Container) {
    let kinds = [
        handler.exec.is_some(),
        handler.http_get.is_some(),
        handler.tcp_socket.is_some(),
        handler.sleep.is_some(),
    ];
    if kinds.iter().filter(|given| **given).count() != 1 {
        problems.add(path, "must have exactly one action", "give one of exec, httpGet, tcpSocket and sleep");
    }
    if handler.exec.as_ref().is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        problems.add(&format!("{path}.exec.command"), "is empty", "name the program to run");
    }
    if let Some(http) = &handler.http_get {
        check_http(problems, &format!("{path}.httpGet"), http, container);
    }
    if let Some(tcp) = &handler.tcp_socket {
        check_port(problems, &format!("{path}.tcpSocket.port"), &tcp.port, container);
    }
    problems.at_least(&format!("{path}.sleep.seconds"), handler.sleep.as_ref().map(|sleep| sleep.seconds), 0);
}

fn check_http(problems: &mut Problems, path: &str, http: &HTTPGetAction, container: &Container) {
    check_port(problems, &format!("{path}.port"), &http.port, container);
    problems.one_of(&format!("{path}.scheme"), http.scheme.as_deref(), &["HTTP", "HTTPS"]);
    for (index, header) in http.http_headers.iter().flatten().enumerate() {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if header.name.is_empty() || !header.name.bytes().all(token) {
            problems.add(
                &format!("{path}.httpHeaders[{index}].name"),
                format!("{:?} is not a header name", header.name),
                "use letters, digits and '-'",
            );
        }
    }
}

/// A number in range, or the name of one of the container's own ports.
fn check_port(problems: &mut Problems, field: &str, port: &IntOrString, container: &Container) {
    match port {
        IntOrString::Int(number) => names::port(problems, field, *number),
        IntOrString::String(name) => {
            let known = container.ports.iter().flatten().any(|port| port.name.as_deref() == Some(name));
            if !known && !name.parse::<u16>().is_ok_and(|number| number > 0) {
                problems.add(
                    field,
                    format!("the container has no port named {name:?}"),
                    "name one of its ports, or write the number",
                );
            }
        }
    }
}
