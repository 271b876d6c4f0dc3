use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::pod::snapshot::ProbeAction;
use longshore_core::pod::step::Hook;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::attempt::RealAttempt;
use super::exec::{ContainerExec, ExecError, Executed};
use super::*;

fn target(id: &str, kind: ProbeKind, action: ProbeAction) -> ProbeTarget {
    ProbeTarget {
        container: "c".into(),
        id: id.into(),
        kind,
        action,
        container_started_at: jiff::Timestamp::now(),
        initial_delay: Duration::ZERO,
        timeout: Duration::from_secs(1),
        period: Duration::from_secs(10),
        success_threshold: 1,
        failure_threshold: 1,
    }
}

fn command(word: &str) -> ProbeAction {
    ProbeAction::Hook(Hook::Exec { command: vec![word.to_owned()] })
}

/// Answers by the container's id: `ok..`, `bad..`, `hang..`, `panic..`, `error..`; counts tries.
#[derive(Default)]
struct FakeAttempt {
    tries: Mutex<HashMap<String, u32>>,
}

#[async_trait]
impl Attempt for FakeAttempt {
    async fn attempt(&self, target: &ProbeTarget) -> Outcome {
        let id = target.id.as_str();
        *self.tries.lock().unwrap().entry(id.to_owned()).or_default() += 1;
        match id {
            id if id.starts_with("ok") => Outcome::Success("fine".into()),
            id if id.starts_with("bad") => Outcome::Failure("bad\nthing".into()),
            id if id.starts_with("panic") => panic!("a bug in a try"),
            id if id.starts_with("error") => Outcome::Error("no runtime".into()),
            _ => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Outcome::Failure("late".into())
            }
        }
    }
}

fn start(settings: ProbeSettings, attempt: Arc<dyn Attempt>) -> (Prober, mpsc::UnboundedReceiver<Verdict>) {
    let prober = Prober::new(settings, attempt, Clock::following_tokio(jiff::Timestamp::now()));
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(prober.clone().run(Arc::new(move |verdict| {
        let _ = sender.send(verdict);
    })));
    (prober, receiver)
}

fn want(prober: &Prober, pod: &str, targets: Vec<ProbeTarget>) {
    prober.want_for(&pod.into(), &PodKey::new("n", pod), targets);
}

const SETTINGS: ProbeSettings = ProbeSettings { max_network_tries: 8, max_exec_tries: 2 };

#[tokio::test(start_paused = true)]
async fn verdicts_arrive_while_others_hang_or_panic() {
    let attempt = Arc::new(FakeAttempt::default());
    let (prober, mut verdicts) = start(SETTINGS, attempt.clone());
    let tcp = || ProbeAction::Hook(Hook::TcpSocket { host: "h".into(), port: 1 });
    for n in 0..5 {
        want(
            &prober,
            &format!("hang{n}"),
            vec![target(&format!("hang{n}"), ProbeKind::Liveness, command("x"))],
        );
    }
    want(&prober, "panic", vec![target("panic", ProbeKind::Liveness, tcp())]);
    want(&prober, "error", vec![target("error", ProbeKind::Liveness, tcp())]);
    want(&prober, "ok", vec![target("ok", ProbeKind::Readiness, tcp())]);
    want(&prober, "bad", vec![target("bad", ProbeKind::Readiness, tcp())]);
    let mut heard = HashMap::new();
    for _ in 0..2 {
        let verdict = verdicts.recv().await.unwrap();
        heard.insert(verdict.key.name.to_string(), verdict.result);
    }
    assert!(heard["ok"].healthy);
    assert!(!heard["bad"].healthy);
    assert_eq!(heard["bad"].message, "bad thing", "one line");
    tokio::time::sleep(Duration::from_secs(21)).await;
    let tries = attempt.tries.lock().unwrap().clone();
    assert_eq!(tries["error"], 9, "three tries each at 0, 10 and 20 s");
    assert_eq!(tries["panic"], 3);
    assert!(tries["ok"] >= 3);
    let hanging: u32 = (0..5).filter_map(|n| tries.get(&format!("hang{n}"))).sum();
    assert_eq!(hanging, 2, "as many as there are places for exec");
    let stats = prober.stats();
    let of = |name: &str| stats.iter().find(|stats| &*stats.key.name == name).unwrap();
    assert_eq!((of("bad").failures, of("bad").last_message.as_str()), (of("bad").tries, "bad thing"));
    assert_eq!(prober.totals().in_flight, 2);
}

#[tokio::test(start_paused = true)]
async fn probes_of_a_pod_that_is_gone_are_not_tried() {
    let attempt = Arc::new(FakeAttempt::default());
    let (prober, mut verdicts) = start(SETTINGS, attempt.clone());
    let delayed = ProbeTarget {
        initial_delay: Duration::from_secs(30),
        container_started_at: jiff::Timestamp::now(),
        ..target("ok", ProbeKind::Readiness, command("x"))
    };
    want(&prober, "p", vec![delayed]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    want(&prober, "p", Vec::new());
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(attempt.tries.lock().unwrap().is_empty());
    assert!(verdicts.try_recv().is_err());
}

/// Runs commands by their first word.
#[derive(Debug)]
struct FakeExec;

#[async_trait]
impl ContainerExec for FakeExec {
    async fn exec(&self, _: &ContainerId, command: &[String], _: Duration) -> Result<Executed, ExecError> {
        match command[0].as_str() {
            "ok" => Ok(Executed { exit_code: 0, output: b"fine\n".to_vec() }),
            "fail" => Ok(Executed { exit_code: 2, output: b"sick".to_vec() }),
            "timeout" => Err(ExecError::Timeout),
            "gone" => Err(ExecError::Runtime("no such container".into())),
            _ => std::future::pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn exec_answers_are_judged() {
    let attempt = RealAttempt::new(Arc::new(FakeExec));
    let cases = [
        ("ok", Outcome::Success("fine".into())),
        ("fail", Outcome::Failure("exit code 2: sick".into())),
        ("timeout", Outcome::Failure("the command did not end within 1s".into())),
        ("gone", Outcome::Error("no such container".into())),
        ("hang", Outcome::Failure("no answer within 1s".into())),
    ];
    for (word, expected) in cases {
        assert_eq!(
            attempt.attempt(&target("c", ProbeKind::Liveness, command(word))).await,
            expected,
            "{word}"
        );
    }
}

#[tokio::test]
async fn tcp_connects_or_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let attempt = RealAttempt::new(Arc::new(FakeExec));
    let probe = target(
        "c",
        ProbeKind::Readiness,
        ProbeAction::Hook(Hook::TcpSocket { host: "127.0.0.1".into(), port }),
    );
    assert_eq!(attempt.attempt(&probe).await, Outcome::Success("connected".into()));
    drop(listener);
    assert!(
        matches!(attempt.attempt(&probe).await, Outcome::Failure(message) if message.contains("refused"))
    );
}

mod grpc {
    use longshore_cri::api::health::health_check_response::ServingStatus;
    use longshore_cri::api::health::health_server::{Health, HealthServer};
    use longshore_cri::api::health::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    };
    use tonic::{Request, Response, Status};

    use super::*;

    /// Knows the services ``, `sick` and no other.
    struct FakeHealth;

    #[tonic::async_trait]
    impl Health for FakeHealth {
        async fn check(
            &self,
            request: Request<HealthCheckRequest>,
        ) -> Result<Response<HealthCheckResponse>, Status> {
            let status = match request.get_ref().service.as_str() {
                "" => ServingStatus::Serving,
                "sick" => ServingStatus::NotServing,
                _ => return Err(Status::not_found("unknown service")),
            };
            Ok(Response::new(HealthCheckResponse { status: status.into() }))
        }

        async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
            Err(Status::unimplemented("list"))
        }

        type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

        async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
            Err(Status::unimplemented("watch"))
        }
    }

    #[tokio::test]
    async fn the_health_service_is_asked_by_name() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(HealthServer::new(FakeHealth));
        tokio::spawn(server.serve_with_incoming(incoming));
        let attempt = RealAttempt::new(Arc::new(FakeExec));
        let cases = [
            ("", Outcome::Success("SERVING".into())),
            ("sick", Outcome::Failure("service \"sick\" is NOT_SERVING".into())),
            ("other", Outcome::Failure("health check of service \"other\": unknown service".into())),
        ];
        for (service, expected) in cases {
            let action = ProbeAction::Grpc { host: "127.0.0.1".into(), port, service: service.into() };
            assert_eq!(attempt.attempt(&target("c", ProbeKind::Readiness, action)).await, expected);
        }
    }
}
