//! `longshore svc`: the Services this node serves, how the dataplane is doing, and why a packet to an
//! address ends where it does.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use longshore_core::explain::{Candidate, Explanation};
use longshore_core::ruleset::trace::{Fate, Origin};
use longshore_core::service::frontends::FrontendKind;
use longshore_core::service::view::{DataplaneView, PortRow, ServiceRow};
use longshore_core::wire::{NodeView, PodView};

use crate::error::{CliError, one_line};
use crate::output::{Format, Paint, Rows, Screen, mood, print, structured};
use crate::pods::Node;
use crate::target::{PodName, distance};

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

/// Explains an address, or a Service's first one; `from` is a pod or an address.
pub async fn explain(
    node: &Node,
    screen: &Screen,
    to: &str,
    protocol: &str,
    from: Option<&str>,
) -> Result<(), CliError> {
    let to = target(node, to).await?;
    let (origin, source) = client(node, from, to).await?;
    let origin_word = match origin {
        Origin::Pod => "pod",
        Origin::Node => "node",
        Origin::Outside => "outside",
    };
    let path = format!("/v1/explain?addr={to}&from={origin_word}&src={source}&protocol={protocol}");
    let answer: Explanation = node.daemon.get(&path).await?;
    if structured(screen, &answer)? {
        return Ok(());
    }
    print(&explanation(&answer, screen))
}

/// An address as typed, or the cluster address of a Service: `web`, `shop/web`, `shop/web:8080`.
async fn target(node: &Node, text: &str) -> Result<SocketAddr, CliError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(CliError::usage(format!("{text} has no port")).hint("write IP:PORT, for IPv6 [IP]:PORT"));
    }
    let services: Vec<ServiceRow> = node.daemon.get("/v1/services").await?;
    service_address(&services, text)
}

fn service_address(services: &[ServiceRow], text: &str) -> Result<SocketAddr, CliError> {
    let text = text.strip_prefix("svc/").or_else(|| text.strip_prefix("service/")).unwrap_or(text);
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let Some(service) = services.iter().find(|row| row.namespace == namespace && row.name == name) else {
        let near = services.iter().min_by_key(|row| distance(&row.name, name));
        let error = CliError::new(format!("there is no Service {namespace}/{name}"));
        return Err(match near.filter(|row| distance(&row.name, name) <= 2) {
            Some(row) => error.hint(format!("did you mean {}/{}?", row.namespace, row.name)),
            None => error.hint("longshore svc list shows them; or write IP:PORT"),
        });
    };
    let matches = |row: &&PortRow| port.is_none_or(|port| port == row.name || port == row.port.to_string());
    let Some(row) = service.ports.iter().find(matches) else {
        let ports: Vec<String> = service.ports.iter().map(|row| row.port.to_string()).collect();
        return Err(CliError::new(format!(
            "Service {namespace}/{name} has no port {}",
            port.unwrap_or_default()
        ))
        .hint(format!("its ports are: {}", ports.join(", "))));
    };
    match service.cluster_ips.first() {
        Some(ip) => Ok(SocketAddr::new(*ip, row.port)),
        None => Err(CliError::new(format!("Service {namespace}/{name} has no cluster address"))
            .hint("it is headless: clients get the pods' addresses by DNS")),
    }
}

/// Who asks: the pod that was named, whoever has the address, else some pod of this node.
async fn client(node: &Node, from: Option<&str>, to: SocketAddr) -> Result<(Origin, IpAddr), CliError> {
    let host: NodeView = node.daemon.get("/v1/node").await?;
    // A daemon that only serves Services has no pods to tell of.
    let pods: Vec<PodView> = node.daemon.get("/v1/pods").await.unwrap_or_default();
    let addresses: Vec<(&PodView, IpAddr)> =
        pods.iter().filter_map(|pod| Some((pod, own_address(pod)?))).collect();
    let same_family = |ip: &IpAddr| ip.is_ipv4() == to.is_ipv4();
    let fallback = || {
        let ip = host.ips.iter().copied().find(same_family);
        (Origin::Node, ip.unwrap_or(if to.is_ipv4() { [127, 0, 0, 1].into() } else { IpAddr::V6(1.into()) }))
    };
    let Some(from) = from else {
        let pod = addresses.iter().find(|(_, ip)| same_family(ip) && *ip != to.ip());
        return Ok(pod.map_or_else(fallback, |(_, ip)| (Origin::Pod, *ip)));
    };
    if from == "node" {
        return Ok(fallback());
    }
    if let Ok(ip) = from.parse::<IpAddr>() {
        let origin = if addresses.iter().any(|(_, known)| *known == ip) {
            Origin::Pod
        } else if host.ips.contains(&ip) || ip.is_loopback() {
            Origin::Node
        } else {
            Origin::Outside
        };
        return Ok((origin, ip));
    }
    let key = PodName::parse(from, None)?.choose(pods.iter().map(|pod| &pod.key))?;
    if let Some((_, ip)) = addresses.iter().find(|(pod, _)| pod.key == key) {
        return Ok((Origin::Pod, *ip));
    }
    let on_host = pods.iter().any(|pod| pod.key == key && uses_host_network(pod));
    if on_host {
        return Ok(fallback());
    }
    Err(CliError::new(format!("pod {key} has no address yet")).hint(format!("longshore why pod/{key}")))
}

fn uses_host_network(pod: &PodView) -> bool {
    pod.pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

fn own_address(pod: &PodView) -> Option<IpAddr> {
    if uses_host_network(pod) {
        return None;
    }
    pod.status.pod_ip.as_ref()?.parse().ok()
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
            let _ = writeln!(text, "\n{}/{}: {}", service.namespace, service.name, one_line(problem));
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
        &format!("{} services, {} kernel objects, {} draining", view.services, view.objects, view.draining),
    );
    let counters = &view.counters;
    line(
        "done",
        &format!(
            "{} syncs (last {} ms), {} writes, {} refused, {} audits found {} differences, {} UDP flows forgotten",
            counters.syncs,
            counters.last_sync_ms,
            counters.writes,
            counters.refusals,
            counters.audits,
            counters.drift,
            counters.flows_deleted
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

/// The endpoints, with their weights where the back end has weights.
fn candidates(candidates: &[Candidate]) -> Rows {
    let weights = candidates.iter().any(|candidate| candidate.kernel_weight.is_some());
    let mut headings = vec!["ENDPOINT", "POD", "NODE", "USED"];
    headings.extend(weights.then_some("WEIGHT"));
    headings.push("WHY");
    let mut rows = Rows::new(&headings);
    for candidate in candidates {
        let mut row = vec![
            candidate.endpoint.to_string(),
            candidate.pod.clone().unwrap_or_default(),
            candidate.node.clone().unwrap_or_default(),
            if candidate.used { "yes" } else { "no" }.into(),
        ];
        if weights {
            row.push(candidate.kernel_weight.map_or_else(String::new, |weight| weight.to_string()));
        }
        row.push(candidate.reason.clone());
        rows.push(row);
    }
    rows
}

fn frontend(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "cluster address",
        FrontendKind::ExternalIp => "external address",
        FrontendKind::LoadBalancer => "load balancer address",
        FrontendKind::NodePort => "node port",
    }
}

/// The answer as text: the sentence, what it rests on, what to do.
fn explanation(answer: &Explanation, screen: &Screen) -> String {
    let good = matches!(answer.fate, Fate::Endpoints(_));
    let paint = if good { Paint::Good } else { Paint::Bad };
    let from = match answer.from {
        Origin::Pod => "pod",
        Origin::Node => "node",
        Origin::Outside => "outside",
    };
    // The sentence names the address itself.
    let sentence = one_line(&answer.sentence);
    let mut text = format!("from {from} {}: {}\n", answer.src, screen.paint(paint, &sentence));
    if let Some(matched) = &answer.matched {
        let port = if matched.port.is_empty() { String::new() } else { format!(" port {}", matched.port) };
        let affinity =
            matched.affinity_seconds.map_or_else(String::new, |s| format!(", a client stays for {s}s"));
        let _ = writeln!(
            text,
            "\nservice   {}{port} by its {}, policy {:?}{affinity}",
            matched.service,
            frontend(matched.kind),
            matched.policy
        );
    }
    if let Fate::Endpoints(deliveries) = &answer.fate
        && deliveries.iter().any(|delivery| delivery.masqueraded)
    {
        let all = deliveries.iter().all(|delivery| delivery.masqueraded);
        let some = if all { "" } else { "sometimes " };
        let _ = writeln!(text, "source    {some}rewritten to the node's address");
    }
    if !answer.candidates.is_empty() {
        let _ = write!(text, "\n{}", candidates(&answer.candidates).render(screen, mood));
    }
    if !answer.pending.is_empty() {
        text.push_str("\nnot yet in the kernel:\n");
        for change in &answer.pending {
            let _ = writeln!(text, "  {}", one_line(change));
        }
    }
    if let Some(next) = answer.next_step.as_deref().map(one_line).filter(|next| !sentence.contains(next)) {
        let _ = writeln!(text, "\nwhat to do: {next}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn screen(format: Format) -> Screen {
        Screen { format, colour: false, width: Some(80) }
    }

    fn services() -> Vec<ServiceRow> {
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

    #[test]
    fn a_service_stands_for_its_address() {
        let cases = [
            ("web", Ok("10.96.0.10:80")),
            ("default/web:443", Ok("10.96.0.10:443")),
            ("svc/web:p443", Ok("10.96.0.10:443")),
            ("web:99", Err("its ports are: 80, 443")),
            ("db", Err("it is headless: clients get the pods' addresses by DNS")),
            ("wep", Err("did you mean default/web?")),
            ("shop/something", Err("longshore svc list shows them; or write IP:PORT")),
        ];
        for (text, expected) in cases {
            match (service_address(&services(), text), expected) {
                (Ok(address), Ok(want)) => assert_eq!(address.to_string(), want),
                (Err(error), Err(hint)) => assert_eq!(error.hint.as_deref(), Some(hint), "{text}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn an_explanation_reads_from_top_to_bottom() {
        let answer: Explanation = serde_json::from_value(json!({
            "dst": "10.96.0.10:80", "protocol": "tcp", "from": "pod", "src": "10.1.0.9",
            "matched": {"service": "default/web", "port": "http", "kind": "ClusterIP", "policy": "Cluster",
                "affinity_seconds": 60},
            "candidates": [
                {"endpoint": "10.1.0.4:80", "pod": "default/web-1", "node": "n1", "used": true, "standing": "used",
                    "reason": "ready", "kernel_weight": 1},
                {"endpoint": "10.1.0.5:80", "pod": "default/web-2", "node": "n1", "used": false,
                    "standing": "not-ready", "reason": "not ready", "kernel_weight": null},
            ],
            "fate": {"endpoints": [{"to": "10.1.0.4:80", "masqueraded": false}]},
            "pending": [], "sentence": "10.96.0.10:80/tcp goes to 1 of 2 endpoints", "next_step": "longshore why pod/web-2",
        }))
        .unwrap();
        assert_eq!(
            explanation(&answer, &screen(Format::Table)),
            "from pod 10.1.0.9: 10.96.0.10:80/tcp goes to 1 of 2 endpoints\n\
             \nservice   default/web port http by its cluster address, policy Cluster, a client stays for 60s\n\
             \nENDPOINT     POD            NODE  USED  WEIGHT  WHY\n\
             10.1.0.4:80  default/web-1  n1    yes   1       ready\n\
             10.1.0.5:80  default/web-2  n1    no    -       not ready\n\
             \nwhat to do: longshore why pod/web-2\n"
        );
    }
}
