//! `longshore svc`: the Services this node serves, how the dataplane is doing, and, in the files beside
//! this one, why a packet ends where it does, what differs from the kernel, and what would be in it.

pub mod diff;
pub mod explain;
pub mod packet;
pub mod render;
pub mod trace;

use std::fmt::Write as _;
use std::net::IpAddr;

use longshore_core::service::view::{DataplaneView, PortRow, ServiceRow};

use crate::error::{CliError, one_line};
use crate::output::{Format, Rows, Screen, mood, print, structured};
use crate::pods::Node;

/// Lists the Services.
pub async fn list(node: &Node, screen: &Screen, namespace: Option<&str>) -> Result<(), CliError> {
    let mut services: Vec<ServiceRow> = node.daemon.get("/v1/services").await?;
    services.retain(|row| namespace.is_none_or(|namespace| namespace == row.namespace));
    services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    if structured(screen, &services)? {
        return Ok(());
    }
    if services.is_empty() {
        eprintln!("no services");
        return Ok(());
    }
    print(&table(&services, screen))
}

/// Shows how the dataplane is doing.
pub async fn status(node: &Node, screen: &Screen) -> Result<(), CliError> {
    let view: DataplaneView = node.daemon.get("/v1/dataplane").await?;
    if structured(screen, &view)? {
        return Ok(());
    }
    print(&status_text(&view))
}

fn table(services: &[ServiceRow], screen: &Screen) -> String {
    let wide = screen.format == Format::Wide;
    let mut headings = vec!["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP"];
    if wide {
        headings.extend(["EXTERNAL-IP", "AFFINITY", "POLICY"]);
    }
    headings.extend(["ENDPOINTS", "PORTS"]);
    let mut rows = Rows::new(&headings);
    for service in services {
        let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut row = vec![service.namespace.clone(), service.name.clone(), service.kind.clone()];
        row.push(if service.cluster_ips.is_empty() { "None".into() } else { join(&service.cluster_ips) });
        if wide {
            row.push(join(&[service.external_ips.clone(), service.load_balancer_ips.clone()].concat()));
            row.push(service.affinity.map_or_else(String::new, |seconds| format!("{seconds}s")));
            row.push(format!("{:?}/{:?}", service.internal_policy, service.external_policy));
        }
        row.push(endpoints(&service.ports));
        row.push(service.ports.iter().map(port).collect::<Vec<_>>().join(","));
        rows.push(row);
    }
    let mut text = rows.render(screen, mood);
    for service in services {
        for problem in &service.problems {
            let line = format!("{}/{}: {problem}", service.namespace, service.name);
            let _ = writeln!(text, "\n{}", screen.wrap(&line, 0));
        }
    }
    text
}

/// `80:30080/tcp`, as kubectl writes ports.
fn port(row: &PortRow) -> String {
    let node_port = row.node_port.map_or_else(String::new, |node_port| format!(":{node_port}"));
    format!("{}{node_port}/{}", row.port, row.protocol)
}

/// Used of known endpoints; one number where all ports agree.
fn endpoints(ports: &[PortRow]) -> String {
    let mut counts: Vec<String> = ports.iter().map(|row| format!("{}/{}", row.used, row.known)).collect();
    counts.dedup();
    counts.join(",")
}

/// `1 service`, `2 services`.
fn counted(count: impl TryInto<u64>, what: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn status_text(view: &DataplaneView) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(text, "{label:<12}{}", one_line(value));
    };
    line("mode", &format!("{} ({})", view.mode, view.reason));
    let at = view.synced_at.map_or_else(String::new, |at| format!(", last at {at}"));
    line("in sync", &format!("{}{at}", if view.synced { "yes" } else { "not yet" }));
    line(
        "holds",
        &format!(
            "{}, {}, {} draining",
            counted(view.services, "service"),
            counted(view.objects, "kernel object"),
            view.draining
        ),
    );
    let counters = &view.counters;
    line(
        "done",
        &format!(
            "{} (last {} ms), {}, {} refused, {} found {}, {} forgotten",
            counted(counters.syncs, "sync"),
            counters.last_sync_ms,
            counted(counters.writes, "write"),
            counters.refusals,
            counted(counters.audits, "audit"),
            counted(counters.drift, "difference"),
            counted(counters.flows_deleted, "UDP flow")
        ),
    );
    for failure in &view.failures {
        line(
            "refused",
            &format!(
                "{}: {} ({} tries since {})",
                failure.claim, failure.error, failure.attempts, failure.since
            ),
        );
    }
    for (label, items) in [("clash", &view.clashes), ("left out", &view.skipped), ("warning", &view.warnings)]
    {
        for item in items {
            line(label, item);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(super) fn screen(format: Format) -> Screen {
        Screen { format, colour: false, width: Some(80) }
    }

    pub(super) fn services() -> Vec<ServiceRow> {
        let row = |name: &str, kind: &str, ips: serde_json::Value, ports: serde_json::Value| {
            json!({"namespace": "default", "name": name, "kind": kind, "cluster_ips": ips, "external_ips": [],
                "load_balancer_ips": [], "ports": ports, "affinity": null, "internal_policy": "Cluster",
                "external_policy": "Local", "problems": []})
        };
        let port = |port: u16, node_port: Option<u16>, used: usize| {
            json!({"name": format!("p{port}"), "family": Family::V4, "protocol": "tcp", "port": port,
                "node_port": node_port, "used": used, "known": 3})
        };
        let mut rows: Vec<ServiceRow> = serde_json::from_value(json!([
            row(
                "web",
                "NodePort",
                json!(["10.96.0.10"]),
                json!([port(80, Some(30080), 2), port(443, None, 2)])
            ),
            row("db", "ClusterIP", json!([]), json!([port(5432, None, 0)])),
        ]))
        .unwrap();
        rows[1].problems.push("no endpoints are ready".into());
        rows
    }

    use longshore_core::service::Family;

    #[test]
    fn services_are_listed_with_their_problems() {
        assert_eq!(
            table(&services(), &screen(Format::Table)),
            "NAMESPACE  NAME  TYPE       CLUSTER-IP  ENDPOINTS  PORTS\n\
             default    web   NodePort   10.96.0.10  2/3        80:30080/tcp,443/tcp\n\
             default    db    ClusterIP  None        0/3        5432/tcp\n\
             \ndefault/db: no endpoints are ready\n"
        );
    }
}
