//! `svc explain`: what happens to a packet to an address, why, and what to do about it.

use std::fmt::Write as _;

use longshore_core::explain::{Candidate, Explanation};
use longshore_core::ruleset::trace::{Fate, Origin};
use longshore_core::service::frontends::FrontendKind;

use super::packet;
use crate::error::{CliError, one_line};
use crate::output::{Paint, Rows, Screen, mood, print, structured};
use crate::pods::Node;

/// Explains an address, or a Service's first one; `from` is a pod or an address.
pub async fn run(
    node: &Node,
    screen: &Screen,
    to: &str,
    protocol: &str,
    from: Option<&str>,
) -> Result<(), CliError> {
    let answer = ask(node, to, protocol, from).await?;
    if structured(screen, &answer)? {
        return Ok(());
    }
    print(&explanation(&answer, screen))
}

/// The daemon's answer.
pub async fn ask(node: &Node, to: &str, protocol: &str, from: Option<&str>) -> Result<Explanation, CliError> {
    let to = packet::target(node, to).await?;
    let (origin, source) = packet::client(node, from, to).await?;
    let origin = origin_word(origin);
    let path = format!("/v1/explain?addr={to}&from={origin}&src={source}&protocol={protocol}");
    Ok(node.daemon.get(&path).await?)
}

fn origin_word(origin: Origin) -> &'static str {
    match origin {
        Origin::Pod => "pod",
        Origin::Node => "node",
        Origin::Outside => "outside",
    }
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

pub(super) fn frontend(kind: FrontendKind) -> &'static str {
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
    let from = origin_word(answer.from);
    // The sentence names the address itself.
    let sentence = one_line(&answer.sentence);
    let head = screen.wrap(&format!("from {from} {}: {sentence}", answer.src), 0);
    let mut text = match head.split_once(": ") {
        Some((asked, answered)) => format!("{asked}: {}\n", screen.paint(paint, answered)),
        None => format!("{}\n", screen.paint(paint, &head)),
    };
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
    if let Fate::Endpoints(deliveries) = &answer.fate {
        let rewritten = deliveries.iter().filter(|delivery| delivery.masqueraded).count();
        let source = match (rewritten, rewritten == deliveries.len()) {
            (0, _) => "kept: the endpoint sees the client's address",
            (_, true) => "rewritten to the node's address",
            (_, false) => "kept, and rewritten to the node's only where the client meets itself",
        };
        let _ = writeln!(text, "source    {source}");
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
        let _ = writeln!(text, "\nwhat to do: {}", screen.wrap(&next, 12));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::screen;
    use super::*;
    use crate::output::Format;

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
             source    kept: the endpoint sees the client's address\n\
             \nENDPOINT     POD            NODE  USED  WEIGHT  WHY\n\
             10.1.0.4:80  default/web-1  n1    yes   1       ready\n\
             10.1.0.5:80  default/web-2  n1    no    -       not ready\n\
             \nwhat to do: longshore why pod/web-2\n"
        );
    }
}
