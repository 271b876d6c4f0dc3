//! The shapes of endpoints and policies, one line each. An endpoint is written as its conditions
//! (`R` ready, `S` serving and terminating, `X` terminating and not serving, `-` not ready), then the
//! node (`1` is this one), then hints: `a`/`b` for zones (this node is in `a`), `:1`/`:2` for nodes.

use super::*;
use crate::service::backends::Hint;

struct Shape {
    what: &'static str,
    /// Internal and external policy (`C`, `L`), then `e` when externally accessible.
    policies: &'static str,
    zone: Option<&'static str>,
    endpoints: &'static str,
    cluster: &'static str,
    local: &'static str,
    has_any: bool,
}

fn endpoint(number: usize, text: &str) -> Endpoint<'static> {
    let (base, nodes) = text.split_once(':').map_or((text, ""), |(base, nodes)| (base, nodes));
    let hint = |letters: &str, prefix: &str| -> Hint {
        let names: Vec<std::sync::Arc<str>> =
            letters.chars().map(|c| format!("{prefix}{c}").into()).collect();
        (!names.is_empty()).then(|| names.into())
    };
    let kind = &base[..1];
    let node = &base[1..2];
    Endpoint {
        addr: format!("10.0.0.{}:80", number + 1).parse().unwrap(),
        ready: kind == "R",
        serving: matches!(kind, "R" | "S"),
        terminating: matches!(kind, "S" | "X"),
        local: node == "1",
        node: Some(format!("n{node}").into()),
        pod: None,
        for_zones: hint(&base[2..], "zone-"),
        for_nodes: hint(nodes, "n"),
    }
}

fn numbers(indexes: &[usize]) -> String {
    indexes.iter().map(|index| index.to_string()).collect()
}

fn policies(text: &str) -> Policies {
    let policy = |c: char| if c == 'L' { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let mut chars = text.chars();
    let (internal, external) = (chars.next().unwrap(), chars.next().unwrap());
    Policies {
        internal: policy(internal),
        external: policy(external),
        externally_accessible: chars.next().is_some(),
    }
}

#[rustfmt::skip]
const SHAPES: &[Shape] = &[
    Shape { what: "no endpoints at all", policies: "CC", zone: Some("zone-a"), endpoints: "", cluster: "", local: "", has_any: false },
    Shape { what: "all ready", policies: "CC", zone: Some("zone-a"), endpoints: "R1 R2 R3", cluster: "012", local: "", has_any: true },
    Shape { what: "an unready one is left out", policies: "CC", zone: Some("zone-a"), endpoints: "R1 -2 R3", cluster: "02", local: "", has_any: true },
    Shape { what: "only unready", policies: "CC", zone: Some("zone-a"), endpoints: "-1 -2", cluster: "", local: "", has_any: false },
    Shape { what: "ready ones win over terminating", policies: "CC", zone: Some("zone-a"), endpoints: "R1 S2 X3", cluster: "0", local: "", has_any: true },
    Shape { what: "only terminating ones that serve", policies: "CC", zone: Some("zone-a"), endpoints: "S1 S2 X3 -1", cluster: "01", local: "", has_any: true },
    Shape { what: "terminating that do not serve", policies: "CC", zone: Some("zone-a"), endpoints: "X1 X2", cluster: "", local: "", has_any: false },
    Shape { what: "zone hints narrow", policies: "CC", zone: Some("zone-a"), endpoints: "R1a R2b R3a", cluster: "02", local: "", has_any: true },
    Shape { what: "an endpoint for two zones", policies: "CC", zone: Some("zone-a"), endpoints: "R1b R2ab", cluster: "1", local: "", has_any: true },
    Shape { what: "one hint missing: all", policies: "CC", zone: Some("zone-a"), endpoints: "R1a R2 R3b", cluster: "012", local: "", has_any: true },
    Shape { what: "hint missing on an unready one does not matter", policies: "CC", zone: Some("zone-a"), endpoints: "R1a -2 R3b", cluster: "0", local: "", has_any: true },
    Shape { what: "hint of an unready one does not count", policies: "CC", zone: Some("zone-a"), endpoints: "-1a R2b R3b", cluster: "12", local: "", has_any: true },
    Shape { what: "no hint for this zone: all", policies: "CC", zone: Some("zone-a"), endpoints: "R1b R2b", cluster: "01", local: "", has_any: true },
    Shape { what: "node without a zone: all", policies: "CC", zone: None, endpoints: "R1a R2b", cluster: "01", local: "", has_any: true },
    Shape { what: "node in an unknown zone: all", policies: "CC", zone: Some("zone-z"), endpoints: "R1a R2b", cluster: "01", local: "", has_any: true },
    Shape { what: "node hints narrow", policies: "CC", zone: Some("zone-a"), endpoints: "R1a:1 R2a:2", cluster: "0", local: "", has_any: true },
    Shape { what: "node hints without this node fall back to zones", policies: "CC", zone: Some("zone-a"), endpoints: "R2a:2 R3b:3", cluster: "0", local: "", has_any: true },
    Shape { what: "one node hint missing falls back to zones", policies: "CC", zone: Some("zone-a"), endpoints: "R1b:1 R2a", cluster: "1", local: "", has_any: true },
    Shape { what: "node hints without zones, none here: all", policies: "CC", zone: Some("zone-a"), endpoints: "R2:2 R3:3", cluster: "01", local: "", has_any: true },
    Shape { what: "hinted ready one keeps terminating local away", policies: "CC", zone: Some("zone-a"), endpoints: "S1a R2a R3b", cluster: "1", local: "", has_any: true },
    Shape { what: "hints ignored when only terminating are left", policies: "CC", zone: Some("zone-a"), endpoints: "S1b S2a", cluster: "01", local: "", has_any: true },
    Shape { what: "internal Local: local ready", policies: "LC", zone: Some("zone-a"), endpoints: "R1 R2 R1", cluster: "", local: "02", has_any: true },
    Shape { what: "internal Local: none local", policies: "LC", zone: Some("zone-a"), endpoints: "R2 R3", cluster: "", local: "", has_any: true },
    Shape { what: "internal Local: none at all", policies: "LC", zone: Some("zone-a"), endpoints: "", cluster: "", local: "", has_any: false },
    Shape { what: "internal Local: hints ignored", policies: "LC", zone: Some("zone-a"), endpoints: "R1b R2a", cluster: "", local: "0", has_any: true },
    Shape { what: "internal Local: terminating local although remote ready", policies: "LC", zone: Some("zone-a"), endpoints: "S1 R2", cluster: "", local: "0", has_any: true },
    Shape { what: "internal Local, external Cluster, accessible: both lists", policies: "LCe", zone: Some("zone-a"), endpoints: "R1 R2", cluster: "01", local: "0", has_any: true },
    Shape { what: "external Local not accessible: as Cluster", policies: "CL", zone: Some("zone-a"), endpoints: "R1 R2", cluster: "01", local: "", has_any: true },
    Shape { what: "external Local: both lists", policies: "CLe", zone: Some("zone-a"), endpoints: "R1 R2 -1", cluster: "01", local: "0", has_any: true },
    Shape { what: "external Local: none local but some remote", policies: "CLe", zone: Some("zone-a"), endpoints: "R2 R3", cluster: "01", local: "", has_any: true },
    Shape { what: "external Local: local terminating beside remote ready", policies: "CLe", zone: Some("zone-a"), endpoints: "S1 R2", cluster: "1", local: "0", has_any: true },
    Shape { what: "external Local: only terminating", policies: "CLe", zone: Some("zone-a"), endpoints: "S1 S2 X1", cluster: "01", local: "0", has_any: true },
    Shape { what: "external Local: only unready", policies: "CLe", zone: Some("zone-a"), endpoints: "-1 -2", cluster: "", local: "", has_any: false },
    Shape { what: "both Local: hints narrow cluster only", policies: "LLe", zone: Some("zone-a"), endpoints: "R1b R2a R3b", cluster: "1", local: "0", has_any: true },
    Shape { what: "both Local: only a remote terminating one", policies: "LLe", zone: Some("zone-a"), endpoints: "S2", cluster: "0", local: "", has_any: true },
];

#[test]
fn every_shape_gets_its_endpoints() {
    for shape in SHAPES {
        let endpoints: Vec<Endpoint<'_>> =
            shape.endpoints.split_whitespace().enumerate().map(|(n, text)| endpoint(n, text)).collect();
        let node = NodeTopology { name: "n1".into(), zone: shape.zone.map(Into::into) };
        let got = decide(&endpoints, policies(shape.policies), &node);
        assert_eq!(
            (numbers(&got.cluster).as_str(), numbers(&got.local).as_str(), got.has_any),
            (shape.cluster, shape.local, shape.has_any),
            "{}",
            shape.what
        );
    }
}

#[test]
fn standing_says_why_and_agrees_with_the_decision() {
    for shape in SHAPES {
        let endpoints: Vec<Endpoint<'_>> =
            shape.endpoints.split_whitespace().enumerate().map(|(n, text)| endpoint(n, text)).collect();
        let node = NodeTopology { name: "n1".into(), zone: shape.zone.map(Into::into) };
        let decision = decide(&endpoints, policies(shape.policies), &node);
        for index in 0..endpoints.len() {
            let used = standing(index, &endpoints, &decision, TrafficPolicy::Cluster).is_used();
            assert_eq!(used, decision.cluster.contains(&index), "{} #{index}", shape.what);
        }
    }
    let table = [
        ("R1a R2b", 1, TrafficPolicy::Cluster, Standing::OtherZone),
        ("R1:1 R2:2", 1, TrafficPolicy::Cluster, Standing::OtherNode),
        ("R1 -2", 1, TrafficPolicy::Cluster, Standing::NotReady),
        ("R1 S2", 1, TrafficPolicy::Cluster, Standing::Terminating),
        ("R1 X2", 1, TrafficPolicy::Cluster, Standing::NotReady),
        ("S1 S2", 1, TrafficPolicy::Cluster, Standing::UsedWhileTerminating),
        ("R1 R2", 1, TrafficPolicy::Local, Standing::NotLocal),
        ("R1 S1", 1, TrafficPolicy::Local, Standing::Terminating),
        ("R1 R2", 0, TrafficPolicy::Local, Standing::Used),
    ];
    for (text, index, policy, want) in table {
        let endpoints: Vec<Endpoint<'_>> =
            text.split_whitespace().enumerate().map(|(n, text)| endpoint(n, text)).collect();
        let node = NodeTopology { name: "n1".into(), zone: Some("zone-a".into()) };
        let decision = decide(&endpoints, policies("CLe"), &node);
        assert_eq!(standing(index, &endpoints, &decision, policy), want, "{text} #{index}");
    }
}
