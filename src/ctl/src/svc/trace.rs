//! `svc trace`: one real flow to a Service, sent by us or waited for, and what the kernel made of it:
//! the connection tracker's entry, the endpoint that was chosen, and how it ended. Read over netlink;
//! nothing on the node is changed.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use longshore_core::explain::Explanation;
use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::trace::Origin;
use longshore_kernel::conntrack::{Conntrack, Flow, FlowFilter, RealConntrack};
use longshore_kernel::netns::NetNs;
use longshore_kernel::route::IpFamily;
use serde::Serialize;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{explain, packet};
use crate::error::{CliError, FAILED};
use crate::output::{Paint, Screen, print, structured};
use crate::pods::Node;

/// How often the tracker is looked at while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// IP:PORT or a Service.
    pub to: String,
    pub protocol: String,
    /// A pod, an address of this node, or `node`.
    pub from: Option<String>,
    /// Wait for somebody else's flow instead of sending one.
    pub watch: bool,
    pub timeout: Duration,
}

/// How the packet we sent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Connected,
    /// UDP: the endpoint answered.
    Answered,
    /// UDP says nothing by itself; the flow was sent on.
    Sent,
    Refused,
    NoAnswer,
    Unreachable,
    /// It was not ours: only seen.
    Seen,
}

/// What became of one flow.
#[derive(Clone, Debug, Serialize)]
pub struct Traced {
    pub protocol: String,
    pub client: Option<SocketAddr>,
    pub to: SocketAddr,
    /// `namespace/name` and port of the Service behind the address.
    pub service: Option<String>,
    /// The tracker's entry: `client -> to, answered by endpoint to source`.
    pub conntrack: Option<String>,
    pub endpoint: Option<SocketAddr>,
    /// The endpoint's pod and node, where the daemon knows them.
    pub endpoint_is: Option<String>,
    /// The endpoint is among those that may answer.
    pub as_explained: Option<bool>,
    /// The endpoint sees this address instead of the client's.
    pub source_rewritten_to: Option<SocketAddr>,
    pub verdict: Verdict,
    /// Milliseconds until the verdict.
    pub took_ms: f64,
    /// What the rules say about such a packet.
    pub explained: String,
}

/// Sends or awaits one flow and shows it. The code is 1 where nobody answered, or somebody else than
/// was explained.
pub async fn run(node: &Node, screen: &Screen, request: &Request) -> Result<u8, CliError> {
    let answer = explain::ask(node, &request.to, &request.protocol, request.from.as_deref()).await?;
    let tracker = RealConntrack::open().map_err(|error| {
        CliError::from_chain("cannot read tracked connections", &error).hint("run the command as root (sudo)")
    })?;
    let traced = if request.watch {
        watch(&tracker, &answer, request).await?
    } else {
        send(&tracker, &answer, request).await?
    };
    let good =
        matches!(traced.verdict, Verdict::Connected | Verdict::Answered | Verdict::Sent | Verdict::Seen)
            && traced.as_explained != Some(false);
    if !structured(screen, &traced)? {
        print(&text(&traced, good, screen))?;
    }
    Ok(if good { 0 } else { FAILED })
}

fn filter(answer: &Explanation) -> FlowFilter {
    let family = if answer.dst.is_ipv6() { IpFamily::V6 } else { IpFamily::V4 };
    let named = Protocol::ALL.into_iter().find(|protocol| protocol.to_string() == answer.protocol);
    FlowFilter { family, protocol: named.unwrap_or(Protocol::Tcp), dnat_only: false }
}

async fn flows(tracker: &impl Conntrack, answer: &Explanation) -> Result<Vec<Flow>, CliError> {
    let all = tracker.dump(filter(answer)).await;
    let mut all = all.map_err(|error| CliError::from_chain("cannot read tracked connections", &error))?;
    all.retain(|flow| flow.original.destination == answer.dst);
    Ok(all)
}

/// The first flow to the address that was not there before.
async fn watch(
    tracker: &impl Conntrack,
    answer: &Explanation,
    request: &Request,
) -> Result<Traced, CliError> {
    let known = flows(tracker, answer).await?;
    let began = Instant::now();
    eprintln!("waiting {} s for a flow to {}/{}", request.timeout.as_secs(), answer.dst, answer.protocol);
    while began.elapsed() < request.timeout {
        let found = flows(tracker, answer).await?.into_iter().find(|flow| {
            let is_new = !known.iter().any(|before| before.original == flow.original);
            is_new && (request.from.is_none() || flow.original.source.ip() == answer.src)
        });
        if let Some(flow) = found {
            return Ok(traced(
                answer,
                Some(flow.original.source),
                Some(&flow),
                Verdict::Seen,
                began.elapsed(),
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let who = request.from.as_ref().map_or_else(String::new, |from| format!(" from {from}"));
    Err(CliError::new(format!(
        "no new flow to {}/{}{who} within {} s",
        answer.dst,
        answer.protocol,
        request.timeout.as_secs()
    ))
    .hint("leave --watch away to send one"))
}

/// Opens a connection, or sends one byte by UDP, and looks it up while it stands.
async fn send(tracker: &impl Conntrack, answer: &Explanation, request: &Request) -> Result<Traced, CliError> {
    let place = place(answer)?;
    let deadline = request.timeout;
    let began = Instant::now();
    let (client, verdict, _kept) = match answer.protocol.as_str() {
        "tcp" => tcp(&place, answer, deadline).await?,
        "udp" => udp(&place, answer, deadline).await?,
        other => {
            return Err(CliError::usage(format!("svc trace cannot send {other}"))
                .hint("with --watch it waits for somebody else's"));
        }
    };
    let took = began.elapsed();
    let all = flows(tracker, answer).await?;
    let flow = all.iter().find(|flow| flow.original.source == client);
    Ok(traced(answer, Some(client), flow, verdict, took))
}

/// Keeps a socket open until the tracker was read.
#[derive(Debug)]
enum Kept {
    Tcp(#[allow(dead_code, reason = "held, not read")] TcpStream),
    Udp(#[allow(dead_code, reason = "held, not read")] UdpSocket),
    Nothing,
}

async fn tcp(
    place: &Place,
    answer: &Explanation,
    deadline: Duration,
) -> Result<(SocketAddr, Verdict, Kept), CliError> {
    let bind = place.bind;
    let ipv6 = answer.dst.is_ipv6();
    let socket = place.enter(move || {
        let socket = if ipv6 { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        socket.bind(bind)?;
        Ok(socket)
    })?;
    let client = socket.local_addr()?;
    match timeout(deadline, socket.connect(answer.dst)).await {
        Err(_) => Ok((client, Verdict::NoAnswer, Kept::Nothing)),
        Ok(Err(error)) => Ok((client, verdict(&error), Kept::Nothing)),
        Ok(Ok(stream)) => Ok((stream.local_addr()?, Verdict::Connected, Kept::Tcp(stream))),
    }
}

async fn udp(
    place: &Place,
    answer: &Explanation,
    deadline: Duration,
) -> Result<(SocketAddr, Verdict, Kept), CliError> {
    let bind = place.bind;
    let socket = place.enter(move || {
        let socket = std::net::UdpSocket::bind(bind)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })?;
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(answer.dst).await?;
    let client = socket.local_addr()?;
    if let Err(error) = socket.send(&[0]).await {
        return Ok((client, verdict(&error), Kept::Udp(socket)));
    }
    let mut byte = [0; 1];
    let outcome = match timeout(deadline.min(Duration::from_secs(1)), socket.recv(&mut byte)).await {
        Err(_) => Verdict::Sent,
        Ok(Ok(_)) => Verdict::Answered,
        Ok(Err(error)) => verdict(&error),
    };
    Ok((client, outcome, Kept::Udp(socket)))
}

fn verdict(error: &std::io::Error) -> Verdict {
    match error.kind() {
        // A rule that refuses what this host itself sends fails the call that sent it.
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::PermissionDenied => {
            Verdict::Refused
        }
        ErrorKind::TimedOut => Verdict::NoAnswer,
        _ => Verdict::Unreachable,
    }
}

/// Where the packet is sent from.
#[derive(Debug)]
struct Place {
    /// Another network namespace than ours.
    net: Option<NetNs>,
    bind: SocketAddr,
}

impl Place {
    fn enter<T: Send>(&self, work: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T, CliError> {
        let outcome = match &self.net {
            None => work(),
            Some(net) => net
                .run(work)
                .map_err(|error| CliError::from_chain("cannot enter the pod's network", &error))?,
        };
        outcome.map_err(|error| CliError::new(format!("cannot open a socket at {}: {error}", self.bind.ip())))
    }
}

/// The namespace the client's address lives in, found by trying to bind it.
fn place(answer: &Explanation) -> Result<Place, CliError> {
    let any: IpAddr = if answer.dst.is_ipv6() { IpAddr::V6(0.into()) } else { IpAddr::V4(0.into()) };
    match answer.from {
        // The node takes the source the kernel gives it, as its programs do.
        Origin::Node => Ok(Place { net: None, bind: SocketAddr::new(any, 0) }),
        Origin::Outside => {
            Err(CliError::new(format!("{} is not on this node: nothing can be sent from there", answer.src))
                .hint("send from the client itself while svc trace --watch waits here"))
        }
        Origin::Pod => {
            let bind = SocketAddr::new(answer.src, 0);
            match packet::namespace_of(answer.src) {
                Some(net) => Ok(Place { net: Some(net), bind }),
                None => Err(CliError::new(format!(
                    "no network namespace of this node has the address {}",
                    answer.src
                ))
                .hint("run the command as root; longshore ps -o wide shows the pods' addresses")),
            }
        }
    }
}

fn traced(
    answer: &Explanation,
    client: Option<SocketAddr>,
    flow: Option<&Flow>,
    verdict: Verdict,
    took: Duration,
) -> Traced {
    let translated = flow.filter(|flow| flow.endpoint() != flow.service());
    let endpoint = translated.map(Flow::endpoint);
    let candidate = endpoint.and_then(|at| answer.candidates.iter().find(|one| one.endpoint == at));
    let answered_to = flow.map(|flow| flow.reply.destination);
    Traced {
        protocol: answer.protocol.clone(),
        client,
        to: answer.dst,
        service: answer.matched.as_ref().map(|matched| match matched.port.as_str() {
            "" => matched.service.clone(),
            port => format!("{} port {port}", matched.service),
        }),
        conntrack: flow.map(|flow| {
            format!("{}, answered by {} to {}", flow.original, flow.reply.source, flow.reply.destination)
        }),
        endpoint,
        endpoint_is: candidate.and_then(|one| {
            let pod = one.pod.as_ref()?;
            Some(
                one.node.as_ref().map_or_else(|| format!("pod {pod}"), |node| format!("pod {pod} on {node}")),
            )
        }),
        as_explained: endpoint.map(|_| candidate.is_some_and(|one| one.used)),
        source_rewritten_to: answered_to.filter(|addr| client.is_some_and(|client| client != *addr)),
        verdict,
        took_ms: (took.as_secs_f64() * 10_000.0).round() / 10.0,
        explained: answer.sentence.clone(),
    }
}

fn text(traced: &Traced, good: bool, screen: &Screen) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(text, "{label:<11}{}", screen.wrap(value, 11));
    };
    let client = traced.client.map_or_else(|| "?".to_owned(), |client| client.to_string());
    line("flow", &format!("{} {client} -> {}", traced.protocol, traced.to));
    line("service", traced.service.as_deref().unwrap_or("none that this node knows"));
    line(
        "conntrack",
        traced.conntrack.as_deref().unwrap_or("no entry: it was refused or dropped before one was kept"),
    );
    let endpoint = match (traced.endpoint, traced.as_explained) {
        (None, _) => "none was chosen".to_owned(),
        (Some(at), explained) => {
            let is = traced.endpoint_is.as_ref().map_or_else(String::new, |is| format!(" ({is})"));
            let agrees =
                if explained == Some(true) { "as explained" } else { "NOT among those that may answer" };
            format!("{at}{is}, {agrees}")
        }
    };
    line("endpoint", &endpoint);
    if traced.endpoint.is_some() {
        let source = traced.source_rewritten_to.map_or_else(
            || "kept: the endpoint sees the client's address".to_owned(),
            |addr| format!("rewritten to {addr}"),
        );
        line("source", &source);
    }
    let verdict = match traced.verdict {
        Verdict::Connected => format!("connected in {} ms", traced.took_ms),
        Verdict::Answered => format!("answered in {} ms", traced.took_ms),
        Verdict::Sent => "sent; no answer, which UDP need not give".to_owned(),
        Verdict::Refused => format!("refused in {} ms", traced.took_ms),
        Verdict::NoAnswer => format!("no answer within {} ms", traced.took_ms),
        Verdict::Unreachable => "the network is unreachable from there".to_owned(),
        Verdict::Seen => format!("seen after {} ms", traced.took_ms),
    };
    let _ = writeln!(
        text,
        "{:<11}{}",
        "verdict",
        screen.paint(if good { Paint::Good } else { Paint::Bad }, &verdict)
    );
    if !good {
        let _ = writeln!(text, "{:<11}{}", "explained", screen.wrap(&traced.explained, 11));
    }
    text
}

#[cfg(test)]
mod tests {
    use longshore_kernel::conntrack::{FakeConntrack, Tuple};
    use serde_json::json;

    use super::super::tests::screen;
    use super::*;
    use crate::output::Format;

    fn answer(fate: serde_json::Value) -> Explanation {
        serde_json::from_value(json!({
            "dst": "10.96.0.80:80", "protocol": "tcp", "from": "pod", "src": "10.244.0.4",
            "matched": {"service": "default/web", "port": "http", "kind": "ClusterIP", "policy": "Cluster", "affinity_seconds": null},
            "candidates": [
                {"endpoint": "10.244.0.5:8080", "pod": "default/web-1", "node": "n1", "used": true, "standing": "used", "reason": "ready", "kernel_weight": null},
                {"endpoint": "10.244.0.6:8080", "pod": "default/web-2", "node": "n1", "used": false, "standing": "not-ready", "reason": "not ready", "kernel_weight": null},
            ],
            "fate": fate, "pending": [], "sentence": "10.96.0.80:80/tcp is Service default/web", "next_step": null,
        }))
        .unwrap()
    }

    fn flow(client: &str, endpoint: &str, answered_to: &str) -> Flow {
        let at = |text: &str| text.parse().unwrap();
        Flow {
            protocol: Protocol::Tcp,
            original: Tuple { source: at(client), destination: at("10.96.0.80:80") },
            reply: Tuple { source: at(endpoint), destination: at(answered_to) },
            status: 1 << 5,
            mark: 0,
            zone: 0,
            timeout: 60,
        }
    }

    #[test]
    fn a_flow_is_told_from_client_to_verdict() {
        let answer = answer(json!({"endpoints": []}));
        let flow = flow("10.244.0.4:40000", "10.244.0.5:8080", "10.244.0.4:40000");
        let client = Some("10.244.0.4:40000".parse().unwrap());
        let told = traced(&answer, client, Some(&flow), Verdict::Connected, Duration::from_micros(412));
        assert_eq!(
            text(&told, true, &screen(Format::Table)),
            "flow       tcp 10.244.0.4:40000 -> 10.96.0.80:80\n\
             service    default/web port http\n\
             conntrack  10.244.0.4:40000 -> 10.96.0.80:80, answered by 10.244.0.5:8080 to\n\
             \u{20}          10.244.0.4:40000\n\
             endpoint   10.244.0.5:8080 (pod default/web-1 on n1), as explained\n\
             source     kept: the endpoint sees the client's address\n\
             verdict    connected in 0.4 ms\n"
        );
    }

    #[test]
    fn a_refused_flow_says_what_was_explained() {
        let answer = answer(json!("rejected"));
        let client = Some("10.244.0.4:40000".parse().unwrap());
        let told = traced(&answer, client, None, Verdict::Refused, Duration::from_micros(80));
        assert_eq!(
            text(&told, false, &screen(Format::Table)),
            "flow       tcp 10.244.0.4:40000 -> 10.96.0.80:80\n\
             service    default/web port http\n\
             conntrack  no entry: it was refused or dropped before one was kept\n\
             endpoint   none was chosen\n\
             verdict    refused in 0.1 ms\n\
             explained  10.96.0.80:80/tcp is Service default/web\n"
        );
    }

    #[test]
    fn a_wrong_endpoint_and_a_rewritten_source_are_seen() {
        let answer = answer(json!({"endpoints": []}));
        let flow = flow("10.244.0.4:40000", "10.244.0.6:8080", "10.244.0.1:40000");
        let told = traced(
            &answer,
            Some("10.244.0.4:40000".parse().unwrap()),
            Some(&flow),
            Verdict::Seen,
            Duration::ZERO,
        );
        assert_eq!(told.as_explained, Some(false));
        assert_eq!(told.source_rewritten_to, Some("10.244.0.1:40000".parse().unwrap()));
    }

    #[tokio::test]
    async fn waiting_takes_a_new_flow_to_the_address_only() {
        let answer = answer(json!({"endpoints": []}));
        let mut elsewhere = flow("10.244.0.4:40001", "10.244.0.5:8080", "10.244.0.4:40001");
        elsewhere.original.destination = "10.96.0.81:80".parse().unwrap();
        let old = flow("10.244.0.4:40000", "10.244.0.5:8080", "10.244.0.4:40000");
        let tracker = FakeConntrack::new(&[elsewhere, old]);
        assert_eq!(flows(&tracker, &answer).await.unwrap(), [old]);
        let request = Request {
            to: String::new(),
            protocol: "tcp".into(),
            from: Some("pod/web".into()),
            watch: true,
            timeout: Duration::from_millis(250),
        };
        let error = watch(&tracker, &answer, &request).await.unwrap_err();
        assert!(error.message.contains("no new flow to 10.96.0.80:80/tcp from pod/web"), "{error}");
    }
}
