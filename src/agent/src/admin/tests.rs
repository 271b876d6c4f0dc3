//! The admin socket against fixed reads, over real sockets in a temporary folder.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use longshore_core::ids::{ObjectKey, PodKey, PodUid};
use longshore_core::pod::desired::PodSource;
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::pod::observed::ObservedPod;
use longshore_core::wire::{NodeView, ObjectKind, PodView, TimelineEntry, TimelineOutcome, WhyView};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::*;

struct FixedReads;

fn web() -> PodView {
    let key = PodKey::new("default", "web");
    let uid = PodUid::from("u1");
    PodView {
        key: key.clone(),
        uid: uid.clone(),
        source: PodSource::Api,
        pod: Arc::new(Pod::default()),
        status: Arc::new(PodStatus { phase: Some("Running".into()), ..Default::default() }),
        lifecycle: Lifecycle::Syncing,
        observed: Arc::new(ObservedPod {
            uid,
            key,
            sandboxes: Vec::new(),
            containers: Vec::new(),
            observed_at: jiff::Timestamp::UNIX_EPOCH,
        }),
        waiting: Vec::new(),
        in_flight: Vec::new(),
        failures: Vec::new(),
        probes: Vec::new(),
        failed_hooks: Vec::new(),
    }
}

fn why(subject: &str) -> WhyView {
    WhyView {
        subject: subject.into(),
        ok: true,
        sentence: "runs as wanted".into(),
        next_steps: Vec::new(),
        facts: Vec::new(),
    }
}

impl PodReads for FixedReads {
    fn pods(&self) -> Vec<PodView> {
        vec![web()]
    }
    fn pod(&self, key: &PodKey) -> Option<PodView> {
        (*key == web().key).then(web)
    }
    fn timeline(&self, key: &PodKey) -> Option<Vec<TimelineEntry>> {
        (*key == web().key).then(|| {
            vec![TimelineEntry {
                at: jiff::Timestamp::UNIX_EPOCH,
                took_ms: Some(12),
                what: "create sandbox".into(),
                outcome: TimelineOutcome::Done,
                detail: String::new(),
            }]
        })
    }
    fn why(&self, key: &PodKey) -> Option<WhyView> {
        (*key == web().key).then(|| why("pod default/web"))
    }
}

impl NodeReads for FixedReads {
    fn node(&self) -> NodeView {
        NodeView {
            name: "n1".into(),
            ips: Vec::new(),
            version: "0.1.0".into(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            runtime: Err("no answer".into()),
            network: Ok(()),
            sources: Vec::new(),
            problems: Vec::new(),
            service_mode: "ipvs".into(),
            service_mode_reason: String::new(),
        }
    }
    fn why_node(&self) -> WhyView {
        why("node n1")
    }
    fn objects(&self, kind: ObjectKind) -> Vec<ObjectKey> {
        if kind == ObjectKind::ConfigMap { vec![ObjectKey::new("default", "page")] } else { Vec::new() }
    }
    fn object(&self, kind: ObjectKind, key: &ObjectKey) -> Option<serde_json::Value> {
        (kind == ObjectKind::ConfigMap && &*key.name == "page")
            .then(|| serde_json::json!({"kind": "ConfigMap"}))
    }
}

#[async_trait]
impl ServiceReads for FixedReads {
    async fn services(&self) -> Vec<ServiceRow> {
        Vec::new()
    }
    async fn dataplane(&self) -> DataplaneView {
        DataplaneView { mode: "ipvs".into(), ..Default::default() }
    }
    async fn explain(&self, query: Query) -> Explanation {
        Explanation {
            dst: query.dst,
            protocol: query.protocol.to_string(),
            from: query.origin,
            src: query.src,
            matched: None,
            candidates: Vec::new(),
            fate: longshore_core::ruleset::trace::Fate::Forwarded,
            pending: Vec::new(),
            sentence: "no Service is there".into(),
            next_step: None,
        }
    }
    async fn frontends(&self) -> Vec<FrontendView> {
        Vec::new()
    }
    async fn diff(&self, repair: bool) -> DiffView {
        DiffView { repaired: repair.then_some(3), ..DiffView::default() }
    }
}

fn own_uid() -> PeerPolicy {
    PeerPolicy { allowed_uid: nix::unistd::Uid::effective().as_raw() }
}

struct Running {
    folder: tempfile::TempDir,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(policy: PeerPolicy, roles: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = AdminSocket::bind(&folder.path().join("run/l.sock"), policy).await.unwrap();
        let stop = CancellationToken::new();
        let reads = AdminReads {
            node: Arc::new(FixedReads),
            pods: roles.then(|| Arc::new(FixedReads) as Arc<dyn PodReads>),
            services: roles.then(|| Arc::new(FixedReads) as Arc<dyn ServiceReads>),
            images: None,
        };
        let task = tokio::spawn(serve(socket, reads, stop.clone()));
        Self { folder, stop, task }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("run/l.sock")
    }

    async fn stop(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.task.await.unwrap();
        self.folder
    }
}

/// Sends raw bytes and reads all that comes back.
async fn raw(path: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // The server may refuse and close before everything was sent.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(path: &Path, uri: &str) -> String {
    raw(path, format!("GET {uri} HTTP/1.1\r\nHost: longshore\r\nConnection: close\r\n\r\n").as_bytes()).await
}

#[tokio::test]
async fn each_route_answers_with_its_view() {
    let server = Running::start(own_uid(), true).await;
    let cases = [
        ("/healthz", "200 OK", "ok"),
        ("/v1/pods", "200 OK", "\"phase\":\"Running\""),
        ("/v1/pods/default/web", "200 OK", "\"namespace\":\"default\""),
        ("/v1/pods/default/nope", "404 Not Found", "there is no pod default/nope on this node"),
        ("/v1/pods/default/web/timeline", "200 OK", "\"took_ms\":12"),
        ("/v1/why/default/web", "200 OK", "runs as wanted"),
        ("/v1/why/node", "200 OK", "node n1"),
        ("/v1/node", "200 OK", "\"service_mode\":\"ipvs\""),
        ("/v1/problems", "200 OK", "[]"),
        ("/v1/objects/cm", "200 OK", "\"page\""),
        ("/v1/objects/cm/default/page", "200 OK", "\"ConfigMap\""),
        ("/v1/objects/secret/default/page", "404 Not Found", "there is no default/page among the secrets"),
        ("/v1/objects/flowers", "404 Not Found", "the daemon keeps no flowers"),
        ("/v1/services", "200 OK", "[]"),
        ("/v1/dataplane", "200 OK", "\"mode\":\"ipvs\""),
        ("/v1/dataplane/frontends", "200 OK", "[]"),
        ("/v1/dataplane/diff", "200 OK", "\"repaired\":null"),
        ("/v1/dataplane/repair", "405 Method Not Allowed", ""),
        ("/v1/explain?addr=10.0.0.1:80&from=pod&src=10.1.0.5", "200 OK", "\"protocol\":\"tcp\""),
        (
            "/v1/explain?addr=[fd00::1]:53&from=node&src=fd00::5&protocol=UDP",
            "200 OK",
            "\"protocol\":\"udp\"",
        ),
        ("/v1/explain?addr=10.0.0.1&from=pod&src=10.1.0.5", "400 Bad Request", "addr"),
        ("/v1/explain?addr=10.0.0.1:80&from=moon&src=10.1.0.5", "400 Bad Request", "moon"),
        (
            "/v1/explain?addr=10.0.0.1:80&from=pod&src=10.1.0.5&protocol=icmp",
            "400 Bad Request",
            "none of tcp",
        ),
        ("/v2/anything", "404 Not Found", "no such path"),
    ];
    for (uri, status, part) in cases {
        let answer = get(&server.path(), uri).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{uri}: {answer}");
        assert!(answer.contains(part), "{uri}: {answer}");
    }
}

#[tokio::test]
async fn a_daemon_without_a_role_says_so() {
    let server = Running::start(own_uid(), false).await;
    let explain = "/v1/explain?addr=10.0.0.1:80&from=pod&src=10.1.0.5";
    for (uri, role) in [
        ("/v1/pods", "node"),
        ("/v1/pods/default/web", "node"),
        ("/v1/why/default/web", "node"),
        ("/v1/services", "proxy"),
        ("/v1/dataplane", "proxy"),
        (explain, "proxy"),
    ] {
        let answer = get(&server.path(), uri).await;
        assert!(
            answer.contains("404") && answer.contains(&format!("its {role} role is off")),
            "{uri}: {answer}"
        );
    }
}

#[tokio::test]
async fn another_user_gets_a_clear_refusal_and_no_data() {
    let other = PeerPolicy { allowed_uid: own_uid().allowed_uid + 1 };
    let server = Running::start(other, true).await;
    for uri in ["/v1/pods", "/healthz"] {
        let answer = get(&server.path(), uri).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(answer.contains("may not use the admin socket") && answer.contains("sudo"), "{answer}");
        assert!(!answer.contains("Running"), "{answer}");
    }
}

#[tokio::test]
async fn oversized_and_writing_requests_are_refused_and_the_next_one_is_served() {
    let server = Running::start(own_uid(), true).await;
    let long_head = format!("GET /{} HTTP/1.1\r\nHost: l\r\n\r\n", "x".repeat(200_000));
    let answer = raw(&server.path(), long_head.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let cases = [
        ("GET / HTTP/1.1\r\nHost: l\r\nContent-Length: 99999999\r\n\r\n", "413"),
        (
            "GET / HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
            "413",
        ),
        (
            "POST /v1/dataplane/repair HTTP/1.1\r\nHost: l\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            "200",
        ),
        ("POST /v1/pods HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n", "405"),
        ("DELETE /v1/pods HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n", "405"),
        ("not http at all\r\n\r\n", "400"),
    ];
    for (request, status) in cases {
        let answer = raw(&server.path(), request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    assert!(get(&server.path(), "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn the_socket_is_for_root_only_and_goes_away_with_the_daemon() {
    let server = Running::start(own_uid(), true).await;
    let path = server.path();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let folder = server.stop().await;
    assert!(!path.exists());
    // The lock went with it: the next daemon starts.
    AdminSocket::bind(&path, own_uid()).await.unwrap();
    drop(folder);
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_the_first_keeps_answering() {
    let server = Running::start(own_uid(), true).await;
    let error = AdminSocket::bind(&server.path(), own_uid()).await.unwrap_err();
    assert!(matches!(error, AdminError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another longshore agent is running"));
    assert!(get(&server.path(), "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn what_lies_at_the_path_decides() {
    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("stale.sock");
    // Dropping a std listener leaves the file, as a killed daemon does.
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    AdminSocket::bind(&stale, own_uid()).await.unwrap();

    let foreign = folder.path().join("foreign.sock");
    let listener = std::os::unix::net::UnixListener::bind(&foreign).unwrap();
    let error = AdminSocket::bind(&foreign, own_uid()).await.unwrap_err();
    assert!(matches!(error, AdminError::InUse { .. }), "{error}");
    assert!(foreign.exists());
    drop(listener);

    let file = folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let error = AdminSocket::bind(&file, own_uid()).await.unwrap_err();
    assert!(matches!(error, AdminError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}
