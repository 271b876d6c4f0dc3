//! The server over real TLS on loopback: who is let in where, what is bounded, and that a stream is the bytes
//! of its two ends and nothing else. The API server and the runtime are fakes.

mod attacks;
mod figures;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use longshore_cluster::ApiError;
use longshore_core::ids::{ContainerId, PodKey, PodUid, SandboxId};
use longshore_core::kubelet_api::access::User;
use longshore_core::kubelet_api::route::Verb;
use longshore_core::pod::desired::PodSource;
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::pod::observed::*;
use longshore_core::wire::PodView;
use longshore_cri::fake::{FakeOptions, FakeRuntime};
use longshore_cri::{CriError, ExecOutput, StreamIo, Streams};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::callers::Callers;
use super::routes::Guarded;
use super::*;
use crate::config::{CallerRules, ProbeSettings, RightsRules, ServerTls};
use crate::probes::attempt::RealAttempt;
use crate::probes::exec::RuntimeExec;

/// What the fake API server says: tokens are their users' names, and rights are a set.
#[derive(Default)]
struct FakeReviews {
    /// `user verb subresource`; `*` for any verb and subresource.
    rights: Mutex<BTreeSet<String>>,
    asked: AtomicUsize,
    down: std::sync::atomic::AtomicBool,
}

impl FakeReviews {
    fn answer<T>(&self, value: T) -> Result<T, ApiError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.down.load(Ordering::Relaxed) {
            true => Err(ApiError::Timeout { call: "POST".into(), after: Duration::from_secs(1) }),
            false => Ok(value),
        }
    }
}

#[async_trait]
impl Reviews for FakeReviews {
    async fn token(&self, token: &str) -> Result<Option<User>, ApiError> {
        let user = token.strip_prefix("token-of-").map(|name| User { name: name.into(), ..User::default() });
        self.answer(user)
    }

    async fn access(&self, user: &User, node: &str, verb: Verb, sub: &'static str) -> Result<bool, ApiError> {
        assert_eq!(node, "node");
        let rights = self.rights.lock().unwrap();
        let may = |right: String| rights.contains(&right);
        let name = &user.name;
        self.answer(may(format!("{name} {} {sub}", verb.name())) || may(format!("{name} * *")))
    }
}

/// A runtime whose streams are at one place.
struct StreamsAt(String);

#[async_trait]
impl Streams for StreamsAt {
    async fn exec_sync(
        &self,
        _: &ContainerId,
        command: &[String],
        _: Option<Duration>,
    ) -> Result<ExecOutput, CriError> {
        Ok(ExecOutput { exit_code: 0, stdout: command.join("|").into_bytes(), stderr: Vec::new() })
    }
    async fn exec_url(&self, _: &ContainerId, _: &[String], _: StreamIo) -> Result<String, CriError> {
        Ok(self.0.clone())
    }
    async fn attach_url(&self, _: &ContainerId, _: StreamIo) -> Result<String, CriError> {
        Ok(self.0.clone())
    }
    async fn port_forward_url(&self, _: &SandboxId, _: &[u16]) -> Result<String, CriError> {
        Ok(self.0.clone())
    }
}

/// A certificate and its key, as clients hold them.
type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn client(&self, name: &str, expired: bool) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, "people");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }
}

/// A server that runs, with one pod `default/web` whose container `c` has a log.
struct TestServer {
    addr: SocketAddr,
    disk: tempfile::TempDir,
    pods: PodsView,
    authority: Authority,
    reviews: Arc<FakeReviews>,
    shown: Arc<ServingCertificate>,
    roots: rustls::RootCertStore,
    stop: CancellationToken,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// TLS with a certificate of our own.
fn kept_in(folder: &Path) -> ServerTls {
    ServerTls { files: None, folder: folder.to_owned(), cipher_suites: Vec::new(), only_tls13: false }
}

impl TestServer {
    async fn start() -> Self {
        Self::with("http://127.0.0.1:9/nowhere", false).await
    }

    async fn with(streams: &str, anonymous: bool) -> Self {
        Self::with_log_places(streams, anonymous, 3).await
    }

    async fn with_log_places(streams: &str, anonymous: bool, log_places: usize) -> Self {
        let disk = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let reviews = Arc::new(FakeReviews::default());
        reviews.rights.lock().unwrap().insert("admin * *".into());
        let tls = kept_in(&disk.path().join("pki"));
        let ca = disk.path().join("ca.crt");
        std::fs::write(&ca, &authority.pem).unwrap();
        let shown = Arc::new(ServingCertificate::default());
        shown.set(tls::first_certificate(&tls, "node", &["127.0.0.1".parse().unwrap()]).unwrap());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(shown.current().unwrap().cert[0].clone()).unwrap();
        let known = Arc::new(ClientAuthority::default());
        known.load(&ca).unwrap();
        let config = tls::server_config(&tls, shown.clone(), true).unwrap();
        let pods = PodsView::default();
        let fake = FakeRuntime::new(FakeOptions::default());
        let folder = disk.path().join("logs");
        std::fs::create_dir_all(folder.join("default_web_uid-web/c")).unwrap();
        let answers = Arc::new(routes::Answers {
            pods: pods.clone(),
            logs: logs::Logs {
                pods: pods.clone(),
                clock: Clock::System,
                folder,
                readers: Arc::new(Semaphore::new(log_places)),
            },
            streams: streams::StreamRoutes {
                pods: pods.clone(),
                streams: Arc::new(StreamsAt(streams.to_owned())),
                places: Arc::new(Semaphore::new(3)),
            },
            stats: stats::Stats {
                node: "node".into(),
                clock: Clock::System,
                pods: pods.clone(),
                runtime: fake.runtime(),
                root: disk.path().to_owned(),
                earlier: Mutex::default(),
                unread: seldom::Seldom::default(),
            },
            metrics: metrics::DaemonMetrics {
                node: "node".into(),
                pods: pods.clone(),
                counted: PodMetrics::default(),
                started: jiff::Timestamp::now(),
                requests: metrics::Requests::default(),
                clock: Clock::System,
                certificates: Certificates { client: Some(figures::client_state()), serving: None },
                shown: shown.clone(),
            },
            checkpoints: checkpoint::Checkpoints {
                pods: pods.clone(),
                upkeep: fake.runtime().upkeep,
                clock: Clock::System,
                folder: disk.path().join("checkpoints"),
            },
            prober: Prober::new(
                ProbeSettings { max_network_tries: 1, max_exec_tries: 1 },
                Arc::new(RealAttempt::new(Arc::new(RuntimeExec(fake.runtime().streams)))),
                Clock::System,
            ),
            debugging: true,
            profiles: profiles::Profiles { enabled: true },
            node_logs: node_logs::NodeLogs {
                folder: disk.path().join("logs"),
                files: true,
                queries: true,
                journal: disk.path().join("no-journal"),
                readers: Arc::new(Semaphore::new(3)),
            },
            configz: json!({"port": 10250}),
            flags: String::new(),
            started: jiff::Timestamp::now(),
        });
        let rules = CallerRules { client_ca: Some(ca), token_ttl: Some(Duration::from_secs(120)), anonymous };
        let rights = RightsRules::Webhook {
            allowed_ttl: Duration::from_secs(300),
            denied_ttl: Duration::from_secs(30),
        };
        let callers = Callers::new(rules, rights, "node".into(), known, Some(reviews.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(listener::serve(
            listener,
            acceptor,
            Arc::new(Guarded::new(callers, answers)),
            stop.clone(),
        ));
        let server = Self { addr, disk, pods, authority, reviews, shown, roots, stop };
        server.publish(true);
        server
    }

    fn log(&self) -> std::path::PathBuf {
        self.disk.path().join("logs/default_web_uid-web/c/0.log")
    }

    fn write_log(&self, lines: std::ops::Range<u32>) {
        let mut file = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        for n in lines {
            std::io::Write::write_all(
                &mut file,
                format!("2026-01-01T00:00:00.000000000Z stdout F {n}\n").as_bytes(),
            )
            .unwrap();
        }
    }

    fn publish(&self, running: bool) {
        let now = jiff::Timestamp::now();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "uid-web"},
            "spec": {"containers": [{"name": "c", "image": "web:1"}]},
        }))
        .unwrap();
        let state = match running {
            true => json!({"running": {}}),
            false => json!({"terminated": {"exitCode": 0, "containerID": "containerd://c-0"}}),
        };
        let status: PodStatus = serde_json::from_value(json!({"containerStatuses": [{
            "name": "c", "image": "web:1", "imageID": "", "ready": running, "restartCount": 0,
            "containerID": "containerd://c-0", "state": state,
        }]}))
        .unwrap();
        let container = ObservedContainer {
            id: "c-0".into(),
            sandbox: "s-0".into(),
            name: "c".into(),
            attempt: 0,
            state: match running {
                true => ContainerState::Running { started_at: now },
                false => ContainerState::Exited {
                    started_at: None,
                    finished_at: now,
                    exit_code: 0,
                    reason: "Completed".into(),
                    message: String::new(),
                },
            },
            created_at: now,
            image: "web:1".into(),
            image_ref: String::new(),
            labels: Default::default(),
            annotations: Default::default(),
            log_path: self.log().display().to_string(),
        };
        let sandbox = ObservedSandbox {
            id: "s-0".into(),
            attempt: 0,
            state: SandboxState::Ready,
            created_at: now,
            ips: Vec::new(),
            host_network: false,
            labels: Default::default(),
            annotations: Default::default(),
        };
        let key = PodKey::new("default", "web");
        let uid = PodUid::from("uid-web");
        self.pods.publish(PodView {
            key: key.clone(),
            uid: uid.clone(),
            source: PodSource::Api,
            pod: Arc::new(pod),
            status: Arc::new(status),
            lifecycle: Lifecycle::Syncing,
            observed: Arc::new(ObservedPod {
                uid,
                key,
                sandboxes: vec![sandbox],
                containers: vec![container],
                observed_at: now,
            }),
            waiting: Vec::new(),
            in_flight: Vec::new(),
            failures: Vec::new(),
            probes: Vec::new(),
            failed_hooks: Vec::new(),
        });
    }

    async fn connect(&self, pair: Option<Pair>) -> TlsStream<TcpStream> {
        self.connect_as(pair, "http/1.1").await
    }

    async fn connect_as(&self, pair: Option<Pair>, protocol: &str) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let mut config = match pair {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let name = ServerName::try_from("node").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// Everything the server answers to these bytes, until it closes.
    async fn exchange(&self, pair: Option<Pair>, request: &str) -> String {
        let mut stream = self.connect(pair).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that closes on bytes it has not read resets the connection; what came before counts.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn ask(&self, pair: Option<Pair>, method: &str, path: &str, more: &str) -> (u16, String) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{more}Content-Length: 0\r\n\r\n"
        );
        let answer = self.exchange(pair, &request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, unchunked(head, body))
    }

    async fn admin(&self, method: &str, path: &str) -> (u16, String) {
        self.ask(Some(self.authority.client("admin", false)), method, path, "").await
    }
}

fn unchunked(head: &str, body: &str) -> String {
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return body.to_owned();
    }
    let (mut text, mut rest) = (String::new(), body);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text.push_str(&after[..size]);
        rest = after[size..].strip_prefix("\r\n").unwrap_or_default();
    }
    text
}

/// Every path of the API, and one that is none.
const PATHS: [&str; 29] = [
    "/healthz",
    "/healthz/ping",
    "/pods",
    "/runningpods/",
    "/stats/summary",
    "/metrics",
    "/metrics/cadvisor",
    "/metrics/resource",
    "/metrics/probes",
    "/metrics/slis",
    "/containerLogs/default/web/c",
    "/exec/default/web/c?command=x&output=1",
    "/exec/default/web/uid-web/c?command=x&output=1",
    "/attach/default/web/c?output=1",
    "/portForward/default/web",
    "/run/default/web/c?cmd=x",
    "/checkpoint/default/web/c",
    "/logs/",
    "/logs/none",
    "/logs/?query=kubelet",
    "/logs/?query=/none.log",
    "/configz",
    "/statusz",
    "/flagz",
    "/debug/pprof/",
    "/debug/pprof/cmdline",
    "/debug/pprof/profile",
    "/",
    "/none/../pods",
];

/// A caller with a connection of its own, over which it asks for everything.
struct Caller {
    sender: hyper::client::conn::http2::SendRequest<Empty<Bytes>>,
    headers: Vec<(&'static str, &'static str)>,
}

impl Caller {
    async fn new(server: &TestServer, pair: Option<Pair>, headers: &[(&'static str, &'static str)]) -> Self {
        let stream = server.connect_as(pair, "h2").await;
        let opened = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = opened.unwrap();
        tokio::spawn(connection);
        Self { sender, headers: headers.to_vec() }
    }

    async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut request = http::Request::builder().method(method).uri(format!("https://node{path}"));
        for (name, value) in &self.headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = self.sender.clone().send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

const BOB: (&str, &str) = ("authorization", "Bearer token-of-bob");
const ADMIN: (&str, &str) = ("authorization", "Bearer token-of-admin");

#[tokio::test]
async fn every_path_by_every_method_lets_in_only_who_may() {
    let server = TestServer::start().await;
    let pair = |name: &str| Some(server.authority.client(name, false));
    let wrong = Some(Authority::new().client("admin", false));
    let expired = Some(server.authority.client("admin", true));
    let forged: &[_] =
        &[("x-remote-user", "admin"), ("impersonate-user", "admin"), ("x-remote-group", "system:masters")];
    let nobody = [
        Caller::new(&server, None, &[]).await,
        Caller::new(&server, None, &[("authorization", "Bearer of-nobody")]).await,
        Caller::new(&server, None, &[("authorization", "Basic YWRtaW46YWRtaW4=")]).await,
        Caller::new(&server, None, &[ADMIN, ADMIN]).await,
        Caller::new(&server, None, forged).await,
        Caller::new(&server, wrong, &[]).await,
        Caller::new(&server, expired, &[]).await,
    ];
    let unauthorised =
        [Caller::new(&server, pair("bob"), &[]).await, Caller::new(&server, None, &[BOB]).await];
    let authorised =
        [Caller::new(&server, pair("admin"), &[]).await, Caller::new(&server, None, &[ADMIN]).await];
    for path in PATHS {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
            for caller in &nobody {
                let answer = caller.ask(method, path).await;
                assert_eq!(answer, (401, "Unauthorized".to_owned()), "{method} {path} {:?}", caller.headers);
            }
            for caller in &unauthorised {
                let (status, body) = caller.ask(method, path).await;
                let known = Verb::of_method(method).is_some();
                assert_eq!(status, if known { 403 } else { 405 }, "{method} {path}: {body}");
            }
            for caller in &authorised {
                let (status, body) = caller.ask(method, path).await;
                assert!(status != 401 && status != 403, "{method} {path}: {status} {body}");
            }
        }
    }
}

#[tokio::test]
async fn reading_rights_run_no_command_and_fine_rights_open_their_path_only() {
    let server = TestServer::start().await;
    server.write_log(0..2);
    let mut rights = BTreeSet::from(["getter get proxy".to_owned(), "poder get pods".to_owned()]);
    rights.insert("creator create proxy".to_owned());
    *server.reviews.rights.lock().unwrap() = rights;
    let ask = async |name: &str, method: &str, path: &str| {
        server.ask(Some(server.authority.client(name, false)), method, path, "").await.0
    };
    for path in [
        "/exec/default/web/c?command=x&output=1",
        "/attach/default/web/c?output=1",
        "/portForward/default/web",
    ] {
        assert_eq!(ask("getter", "GET", path).await, 403, "{path}");
        assert_eq!(ask("getter", "POST", path).await, 403, "{path}");
        // Without an upgrade it is refused for that only.
        assert_eq!(ask("creator", "GET", path).await, 400, "{path}");
    }
    assert_eq!(ask("getter", "GET", "/run/default/web/c?cmd=x").await, 403);
    assert_eq!(ask("creator", "POST", "/run/default/web/c?cmd=x").await, 200);
    assert_eq!(ask("getter", "GET", "/containerLogs/default/web/c").await, 200);
    assert_eq!(ask("creator", "GET", "/containerLogs/default/web/c").await, 403);
    assert_eq!(ask("getter", "GET", "/pods").await, 200, "proxy holds the fine ones");
    assert_eq!(ask("getter", "GET", "/metrics").await, 403, "but not those it never held");
    assert_eq!(ask("poder", "GET", "/pods").await, 200);
    assert_eq!(ask("poder", "GET", "/configz").await, 403);
    server
        .reviews
        .rights
        .lock()
        .unwrap()
        .extend(["logger get log".to_owned(), "poster create log".to_owned()]);
    for path in ["/logs/", "/logs/?query=kubelet"] {
        assert_eq!(
            (ask("logger", "GET", path).await, ask("logger", "POST", path).await),
            (200, 403),
            "{path}"
        );
        assert_eq!(
            (ask("poster", "GET", path).await, ask("poster", "POST", path).await),
            (403, 200),
            "{path}"
        );
        assert_eq!(ask("getter", "GET", path).await, 403, "{path}");
    }
}

#[tokio::test]
async fn the_api_servers_word_is_kept_and_its_silence_lets_nobody_in() {
    let server = TestServer::start().await;
    let bearer = "Authorization: Bearer token-of-admin\r\n";
    for _ in 0..3 {
        assert_eq!(server.ask(None, "GET", "/pods", bearer).await.0, 200);
    }
    assert_eq!(server.reviews.asked.load(Ordering::Relaxed), 2, "one for the token, one for the right");
    server.reviews.down.store(true, Ordering::Relaxed);
    assert_eq!(server.ask(None, "GET", "/pods", bearer).await.0, 200, "kept");
    assert_eq!(server.ask(None, "GET", "/metrics", bearer).await.0, 500, "not known yet");
    let other = "Authorization: Bearer token-of-eve\r\n";
    assert_eq!(server.ask(None, "GET", "/pods", other).await.0, 401);
    server.reviews.down.store(false, Ordering::Relaxed);
    assert_eq!(server.ask(None, "GET", "/pods", other).await.0, 403, "no failure was kept");
}

#[tokio::test]
async fn nobody_in_particular_is_somebody_where_that_is_asked_for() {
    let server = TestServer::with("http://127.0.0.1:9/", true).await;
    server.reviews.rights.lock().unwrap().insert("system:anonymous get healthz".into());
    assert_eq!(server.ask(None, "GET", "/healthz", "").await.0, 200);
    assert_eq!(server.ask(None, "GET", "/pods", "").await.0, 403);
    let wrong = Authority::new().client("admin", false);
    assert_eq!(server.ask(Some(wrong), "GET", "/healthz", "").await.0, 401);
    assert_eq!(server.ask(None, "GET", "/healthz", "Authorization: Bearer x\r\n").await.0, 401);
}

#[tokio::test]
async fn logs_come_as_asked_for_and_follow_to_the_end_of_their_instance() {
    let server = TestServer::start().await;
    server.write_log(0..5);
    let path = "/containerLogs/default/web/c";
    assert_eq!(server.admin("GET", path).await, (200, "0\n1\n2\n3\n4\n".to_owned()));
    assert_eq!(server.admin("GET", &format!("{path}?tailLines=2")).await.1, "3\n4\n");
    assert_eq!(
        server.admin("GET", &format!("{path}?tailLines=1&timestamps=true")).await.1,
        "2026-01-01T00:00:00.000000000Z 4\n"
    );
    assert_eq!(server.admin("GET", &format!("{path}?tailLines=x")).await.0, 400);
    let (status, text) = server.admin("GET", &format!("{path}?previous=true")).await;
    assert_eq!(
        (status, text.as_str()),
        (400, "previous terminated container \"c\" in pod \"web\" not found\n")
    );
    assert_eq!(server.admin("GET", "/containerLogs/default/none/c").await.0, 404);
    assert_eq!(server.admin("GET", "/containerLogs/default/web/none").await.0, 404);
    let following = format!("{path}?follow=true&tailLines=1");
    let (answer, ()) = tokio::join!(server.admin("GET", &following), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.write_log(5..7);
        std::fs::rename(server.log(), server.log().with_extension("log.20260101-000000")).unwrap();
        server.write_log(7..8);
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.publish(false);
        server.write_log(8..9);
    });
    assert_eq!(answer, (200, "4\n5\n6\n7\n8\n".to_owned()));
}

/// A streaming server that takes one connection: gives back the head it saw, answers with `answer`, and echoes.
async fn streaming(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/exec/once?a=b", listener.local_addr().unwrap());
    let seen = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
        String::from_utf8(head).unwrap()
    });
    (url, seen)
}

const UPGRADE: &str = "Host: node\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                       X-Stream-Protocol-Version: v4.channel.k8s.io\r\n";

#[tokio::test]
async fn a_stream_is_the_bytes_of_its_two_ends() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                  X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\nfirst";
    let (url, seen) = streaming(switch).await;
    let server = TestServer::with(&url, false).await;
    let mut stream = server.connect(Some(server.authority.client("admin", false))).await;
    let request = format!(
        "POST /exec/default/web/c?command=sh&input=1&output=1 HTTP/1.1\r\n{UPGRADE}Authorization: Bearer secret\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains("x-stream-protocol-version: v4.channel.k8s.io"),
        "{head}"
    );
    let mut first = [0; 5];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"first", "bytes after the head belong to the stream");
    // A second request in the stream is only bytes: nobody here reads it as one.
    let smuggled = "GET /pods HTTP/1.1\r\nHost: node\r\n\r\n";
    stream.write_all(smuggled.as_bytes()).await.unwrap();
    let mut back = vec![0; smuggled.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, smuggled.as_bytes());
    stream.shutdown().await.unwrap();
    let head = seen.await.unwrap().to_lowercase();
    assert!(head.starts_with("post /exec/once?a=b http/1.1\r\n"), "{head}");
    assert!(!head.contains("secret"), "{head}");
}

#[tokio::test]
async fn refused_and_crooked_upgrades_open_nothing() {
    let (url, _) = streaming("HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope").await;
    let server = TestServer::with(&url, false).await;
    let admin = || Some(server.authority.client("admin", false));
    let path = "/exec/default/web/c?command=sh&output=1";
    let crooked = [
        "Host: node\r\nConnection: close\r\n\r\n",
        "Host: node\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n",
        "Host: node\r\nConnection: Upgrade, close\r\nUpgrade: SPDY/3.1\r\nUpgrade: websocket\r\n\r\n",
        "Host: node\r\nConnection: close\r\nUpgrade: SPDY/3.1\r\n\r\n",
        "Host: node\r\nConnection: Upgrade, close\r\nUpgrade: SPDY/3.1\r\nContent-Length: 5\r\n\r\nhello",
        "Host: node\r\nConnection: Upgrade, close\r\nUpgrade: SPDY/3.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Host: node\r\nConnection: Upgrade, close\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /pods HTTP/1.1\r\nHost: node\r\n\r\n",
    ];
    for rest in crooked {
        let answer = server.exchange(admin(), &format!("POST {path} HTTP/1.1\r\n{rest}")).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        // Refused by us, or closed as no HTTP at all.
        assert!(["400", "413", ""].contains(&status), "{rest:?}: {answer}");
        assert!(!answer.contains("PodList"), "{rest:?}: {answer}");
    }
    let refused =
        format!("POST {path} HTTP/1.1\r\n{}\r\n", UPGRADE.replace("Upgrade\r\n", "Upgrade, close\r\n"));
    let answer = server.exchange(admin(), &refused).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.ends_with("nope"), "{answer}");
    assert_eq!(server.ask(admin(), "POST", "/exec/default/none/c?command=sh&output=1", "").await.0, 400);
}

#[tokio::test]
async fn heads_and_bodies_are_bounded() {
    let server = TestServer::start().await;
    let admin = || Some(server.authority.client("admin", false));
    let long = format!("GET /pods HTTP/1.1\r\nHost: node\r\nX: {}\r\n\r\n", "a".repeat(100 << 10));
    let answer = server.exchange(admin(), &long).await;
    assert!(!answer.contains(" 200 ") && !answer.contains("PodList"), "{answer}");
    let many = format!("GET /pods HTTP/1.1\r\nHost: node\r\n{}\r\n", "X: a\r\n".repeat(5000));
    let answer = server.exchange(admin(), &many).await;
    assert!(!answer.contains(" 200 ") && !answer.contains("PodList"), "{answer}");
    let body =
        "POST /stats/summary HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: 9999999\r\n\r\n";
    let answer = server.exchange(admin(), &format!("{body}abc")).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(server.admin("GET", "/pods").await.0, 200, "and goes on");
}

#[tokio::test]
async fn http2_carries_many_at_once_and_no_stream() {
    let server = TestServer::start().await;
    server.write_log(0..3);
    let caller = Caller::new(&server, Some(server.authority.client("admin", false)), &[]).await;
    let (pods, log, exec) = tokio::join!(
        caller.ask("GET", "/pods"),
        caller.ask("GET", "/containerLogs/default/web/c"),
        caller.ask("POST", "/exec/default/web/c?command=x&output=1")
    );
    assert!(pods.0 == 200 && pods.1.contains("uid-web"), "{pods:?}");
    assert_eq!(log, (200, "0\n1\n2\n".to_owned()));
    assert_eq!(exec, (400, "Upgrade request required\n".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_let_go() {
    let server = TestServer::start().await;
    let began = tokio::time::Instant::now();
    // Before the handshake, and after it in the middle of a head.
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap_or(0), 0);
    let answer = server.exchange(None, "GET /pods HT").await;
    assert!(answer.is_empty() || answer.contains(" 408 "), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

/// What the server shows in a handshake.
fn shown_to(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_who_comes_next() {
    let mut server = TestServer::start().await;
    let first = server.shown.current().unwrap().cert[0].clone();
    let mut before = server.connect(None).await;
    assert_eq!(shown_to(&before), first);
    let other = tempfile::tempdir().unwrap();
    let next = tls::first_certificate(&kept_in(other.path()), "node", &[]).unwrap();
    let second = next.cert[0].clone();
    server.roots.add(second.clone()).unwrap();
    server.shown.set(next);
    assert_eq!(shown_to(&server.connect(None).await), second);
    // Who has a connection goes on with it.
    before.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    before.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 401"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn the_first_certificate_is_kept_on_the_disk_and_its_key_is_roots_alone() {
    let disk = tempfile::tempdir().unwrap();
    let settings = kept_in(&disk.path().join("pki"));
    let made = tls::first_certificate(&settings, "node", &[]).unwrap();
    let again = tls::first_certificate(&settings, "other", &[]).unwrap();
    assert_eq!(made.cert[0], again.cert[0]);
    let mode = |name: &str| {
        let found = std::fs::metadata(settings.folder.join(name)).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777
    };
    assert_eq!((mode("kubelet.key"), mode("kubelet.crt")), (0o600, 0o644));
}

#[test]
fn a_list_of_suites_is_what_is_offered() {
    let suites = |names: &[&'static str]| {
        let settings = ServerTls { cipher_suites: names.to_vec(), ..kept_in(Path::new("/nowhere")) };
        let config = tls::server_config(&settings, Arc::default(), true).unwrap();
        let of12 = config.crypto_provider().cipher_suites.iter().filter(|suite| suite.tls13().is_none());
        of12.count()
    };
    // Every name the configuration takes is one that the library has, and it has no other.
    assert_eq!(suites(&crate::config::OFFERED_SUITES), crate::config::OFFERED_SUITES.len());
    assert_eq!(suites(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]), 1);
    assert_eq!(suites(&[]), 0, "TLS 1.3 is left");
    let all = rustls::crypto::ring::default_provider().cipher_suites;
    let of12 = all.iter().filter(|suite| suite.tls13().is_none()).count();
    assert_eq!(of12, crate::config::OFFERED_SUITES.len());
}

#[tokio::test(start_paused = true)]
async fn files_that_change_are_taken_up_and_what_cannot_be_used_is_not() {
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name);
    let others = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let made = others.each_ref().map(|folder| {
        let pair = tls::first_certificate(&kept_in(folder.path()), "node", &[]).unwrap();
        pair.cert[0].clone()
    });
    let copy = |which: usize| {
        for (from, to) in [("kubelet.crt", "tls.crt"), ("kubelet.key", "tls.key")] {
            std::fs::copy(others[which].path().join(from), at(to)).unwrap();
        }
    };
    // The kernel's clock of files may be too coarse for two writes of a test.
    let mut written = std::time::SystemTime::now();
    let mut touch = |name: &str| {
        written += Duration::from_secs(1);
        std::fs::File::options().write(true).open(at(name)).unwrap().set_modified(written).unwrap();
    };
    copy(0);
    let (first, second) = (Authority::new(), Authority::new());
    std::fs::write(at("ca.crt"), &first.pem).unwrap();
    let (shown, known) = (Arc::new(ServingCertificate::default()), Arc::new(ClientAuthority::default()));
    shown.set(load_pair(&at("tls.crt"), &at("tls.key")).unwrap());
    known.load(&at("ca.crt")).unwrap();
    let counts = |authority: &Authority| {
        let chain = authority.client("admin", false).0;
        known.user(&chain, rustls::pki_types::UnixTime::now()).is_ok()
    };
    let pair = Some((at("tls.crt"), at("tls.key")));
    let following = tokio::spawn(tls::follow_files(pair, shown.clone(), Some(at("ca.crt")), known.clone()));
    let a_while = Duration::from_secs(11);
    tokio::time::sleep(a_while).await;
    // Half of a pair, and an authority that is none: what was there before stays in force.
    std::fs::copy(others[1].path().join("kubelet.crt"), at("tls.crt")).unwrap();
    std::fs::write(at("ca.crt"), "no certificate").unwrap();
    touch("tls.crt");
    touch("ca.crt");
    tokio::time::sleep(a_while).await;
    assert_eq!(shown.current().unwrap().cert[0], made[0]);
    assert!(counts(&first) && !counts(&second));
    copy(1);
    std::fs::write(at("ca.crt"), &second.pem).unwrap();
    touch("tls.key");
    touch("ca.crt");
    tokio::time::sleep(a_while).await;
    assert_eq!(shown.current().unwrap().cert[0], made[1]);
    assert!(counts(&second) && !counts(&first));
    following.abort();
}
