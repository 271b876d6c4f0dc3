//! One try of one probe: which protocol, its timeout, and what its answer means. The real one dials
//! the pod and asks the runtime; the fake of the tests has a script per container.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::pod::snapshot::{ProbeAction, ProbeTarget};
use longshore_core::pod::step::Hook;

use super::exec::ContainerExec;
use super::http::{HttpClient, HttpRequest};
use super::{exec, grpc, tcp};

/// A try that could not be made is repeated at once, up to this many times in all (prober/prober.go).
const TRIES_ON_ERROR: u32 = 3;
/// Longest message of an answer, characters.
const MAX_MESSAGE: usize = 256;

/// The answer of one try, with words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success(String),
    Failure(String),
    /// The try could not be made: this says nothing about the container.
    Error(String),
}

/// Makes single tries.
#[async_trait]
pub trait Attempt: Send + Sync {
    /// One try, over within the target's timeout.
    async fn attempt(&self, target: &ProbeTarget) -> Outcome;
}

/// A try, repeated while it cannot be made.
pub(super) async fn with_retries(attempt: &dyn Attempt, target: &ProbeTarget) -> Outcome {
    let mut outcome = attempt.attempt(target).await;
    for _ in 1..TRIES_ON_ERROR {
        if !matches!(outcome, Outcome::Error(_)) {
            break;
        }
        outcome = attempt.attempt(target).await;
    }
    outcome.bounded()
}

impl Outcome {
    /// One line of bounded length.
    fn bounded(self) -> Self {
        match self {
            Self::Success(text) => Self::Success(one_line(&text)),
            Self::Failure(text) => Self::Failure(one_line(&text)),
            Self::Error(text) => Self::Error(one_line(&text)),
        }
    }
}

/// The text without line breaks and control characters, cut to the length of a message.
pub(crate) fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(MAX_MESSAGE).map(clean).collect()
}

/// Tries against real containers.
pub struct RealAttempt {
    http: HttpClient,
    exec: Arc<dyn ContainerExec>,
}

impl fmt::Debug for RealAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RealAttempt")
    }
}

impl RealAttempt {
    pub fn new(exec: Arc<dyn ContainerExec>) -> Self {
        Self { http: HttpClient::for_probes(), exec }
    }
}

#[async_trait]
impl Attempt for RealAttempt {
    async fn attempt(&self, target: &ProbeTarget) -> Outcome {
        let timeout = target.timeout.max(Duration::from_secs(1));
        let tried = async {
            match &target.action {
                ProbeAction::Grpc { host, port, service } => grpc::check(host, *port, service).await,
                ProbeAction::Hook(Hook::TcpSocket { host, port }) => tcp::connect(host, *port).await,
                ProbeAction::Hook(Hook::Exec { command }) => {
                    exec::run(&*self.exec, &target.id, command, timeout).await
                }
                ProbeAction::Hook(Hook::HttpGet { scheme, host, port, path, headers }) => {
                    let request = HttpRequest { scheme, host, port: *port, path, headers };
                    self.http.probe(&request).await
                }
                // Not a probe in the API; planners do not make it.
                ProbeAction::Hook(Hook::Sleep { .. }) => Outcome::Error("sleep is no probe".to_owned()),
            }
        };
        match tokio::time::timeout(timeout, tried).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failure(format!("no answer within {}s", timeout.as_secs_f64())),
        }
    }
}
