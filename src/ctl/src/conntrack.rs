//! `longshore conntrack`: the tracked flows to Services, and those that lead to an endpoint that is gone.
//! The flows are read over netlink; what may answer them is asked of the daemon. Nothing is deleted
//! here: the daemon forgets stale UDP flows by itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use longshore_core::conntrack::{Flow, FlowStanding};
use longshore_core::ruleset::Protocol;
use longshore_core::service::view::FrontendView;
use longshore_kernel::conntrack::{Conntrack, FlowFilter, RealConntrack};
use longshore_kernel::route::IpFamily;
use serde::Serialize;

use crate::error::{CliError, FAILED};
use crate::output::{Format, Paint, Rows, Screen, print, structured};
use crate::pods::Node;

/// One tracked flow to a Service's address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Row {
    /// `namespace/name:port/protocol`.
    service: String,
    protocol: String,
    client: SocketAddr,
    to: SocketAddr,
    /// Who answers; absent where the flow was never sent to an endpoint.
    endpoint: Option<SocketAddr>,
    standing: FlowStanding,
    /// Seconds until the kernel forgets it, unless packets come.
    timeout: u32,
}

/// Shows the flows; with `stale` only those whose endpoint is gone, and then the code is 1 where there
/// are any.
pub async fn run(node: &Node, screen: &Screen, stale: bool) -> Result<u8, CliError> {
    let frontends: Vec<FrontendView> = node.daemon.get("/v1/dataplane/frontends").await?;
    let failed = |error| CliError::from_chain("cannot read tracked connections", &error);
    let tracker = RealConntrack::open().map_err(failed)?;
    let mut rows = rows(&tracker, &frontends).await.map_err(failed)?;
    if stale {
        rows.retain(|row| row.standing.is_stale());
    }
    let code = if stale && !rows.is_empty() { FAILED } else { 0 };
    if structured(screen, &rows)? {
        return Ok(code);
    }
    if rows.is_empty() {
        eprintln!("{}", if stale { "no stale flows" } else { "no flows to Services" });
        return Ok(code);
    }
    print(&text(&rows, screen))?;
    Ok(code)
}

async fn rows(
    tracker: &impl Conntrack,
    frontends: &[FrontendView],
) -> Result<Vec<Row>, longshore_kernel::conntrack::ConntrackError> {
    let known: BTreeMap<(SocketAddr, &str), &FrontendView> =
        frontends.iter().map(|one| ((one.addr, one.protocol.as_str()), one)).collect();
    let mut rows = Vec::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        for protocol in Protocol::ALL {
            let name = protocol.to_string();
            for found in tracker.dump(FlowFilter { family, protocol, dnat_only: false }).await? {
                let Some(frontend) = known.get(&(found.service(), name.as_str())) else { continue };
                let flow =
                    Flow { src: found.original.source, dst: found.service(), answers: found.endpoint() };
                rows.push(Row {
                    service: frontend.service.clone(),
                    protocol: name.clone(),
                    client: flow.src,
                    to: flow.dst,
                    endpoint: (flow.answers != flow.dst).then_some(flow.answers),
                    standing: FlowStanding::of(&flow, &frontend.endpoints),
                    timeout: found.timeout,
                });
            }
        }
    }
    rows.sort();
    Ok(rows)
}

fn text(rows: &[Row], screen: &Screen) -> String {
    let wide = screen.format == Format::Wide;
    let mut headings = vec!["SERVICE", "CLIENT"];
    if wide {
        headings.push("TO");
    }
    headings.extend(["ENDPOINT", "LEFT", "STANDING"]);
    let mut table = Rows::new(&headings);
    for row in rows {
        let mut cells = vec![row.service.clone(), row.client.to_string()];
        if wide {
            cells.push(row.to.to_string());
        }
        cells.push(row.endpoint.map_or_else(String::new, |endpoint| endpoint.to_string()));
        cells.push(format!("{}s", row.timeout));
        cells.push(row.standing.reason().to_owned());
        table.push(cells);
    }
    let paint = |_: usize, word: &str| match word {
        "good" => Paint::Good,
        "gone" | "untranslated" => Paint::Bad,
        _ => Paint::Plain,
    };
    table.render(screen, paint)
}

#[cfg(test)]
mod tests {
    use longshore_kernel::conntrack::{self, FakeConntrack, Tuple};
    use serde_json::json;

    use super::*;

    fn tracked(protocol: Protocol, client: &str, to: &str, endpoint: &str) -> conntrack::Flow {
        let at = |text: &str| text.parse().unwrap();
        conntrack::Flow {
            protocol,
            original: Tuple { source: at(client), destination: at(to) },
            reply: Tuple { source: at(endpoint), destination: at(client) },
            status: 1 << 5,
            mark: 0,
            zone: 0,
            timeout: 29,
        }
    }

    #[tokio::test]
    async fn flows_to_services_are_told_from_others_and_stale_ones_named() {
        let frontends: Vec<FrontendView> = serde_json::from_value(json!([
            {"service": "kube-system/dns:dns/udp", "kind": "ClusterIP", "addr": "10.96.0.10:53", "protocol": "udp",
             "endpoints": ["10.244.0.7:53"]},
            {"service": "default/web:http/tcp", "kind": "ClusterIP", "addr": "10.96.0.80:80", "protocol": "tcp",
             "endpoints": ["10.244.0.5:8080"]},
        ]))
        .unwrap();
        let tracker = FakeConntrack::new(&[
            tracked(Protocol::Udp, "10.244.0.4:5000", "10.96.0.10:53", "10.244.0.7:53"),
            tracked(Protocol::Udp, "10.244.0.4:5001", "10.96.0.10:53", "10.244.0.6:53"),
            tracked(Protocol::Tcp, "10.244.0.4:5002", "10.96.0.80:80", "10.244.0.5:8080"),
            tracked(Protocol::Tcp, "10.244.0.4:5003", "10.96.0.10:53", "10.244.0.7:53"),
            tracked(Protocol::Udp, "10.244.0.4:5004", "192.0.2.53:53", "192.0.2.53:53"),
        ]);
        let rows = rows(&tracker, &frontends).await.unwrap();
        let screen = Screen { format: Format::Table, colour: false, width: Some(80) };
        assert_eq!(
            text(&rows, &screen),
            "SERVICE                  CLIENT           ENDPOINT         LEFT  STANDING\n\
             default/web:http/tcp     10.244.0.4:5002  10.244.0.5:8080  29s   good\n\
             kube-system/dns:dns/udp  10.244.0.4:5000  10.244.0.7:53    29s   good\n\
             kube-system/dns:dns/udp  10.244.0.4:5001  10.244.0.6:53    29s   endpoint gone\n"
        );
    }
}
