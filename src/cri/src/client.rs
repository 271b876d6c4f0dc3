//! The connection to a runtime: endpoint, deadlines, size limits, counting. Each call is made through
//! [`CriClient::run`] or [`CriClient::run_image`]; what is said in the calls is in the subject's own file.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, StdError, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::api::v1::image_service_client::ImageServiceClient;
use crate::api::v1::runtime_service_client::RuntimeServiceClient;
use crate::convert::ConvertError;
use crate::counters::{CallCounters, Operation};
use crate::error::{CriError, ErrorKind};

/// Largest answer taken, as the kubelet does and as containerd sends at most.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// The only version of the CRI spoken here.
const API_VERSION: &str = "v1";

/// Deadlines of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Every call that answers once (`runtimeRequestTimeout`). Running a sandbox has twice that; stopping
    /// a container and exec have it on top of their own time; pulls and events have no deadline.
    pub unary: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { unary: Duration::from_secs(120) }
    }
}

/// An endpoint that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("runtime endpoint {endpoint:?}: {problem}; write it as unix:///run/containerd/containerd.sock")]
pub struct EndpointError {
    pub endpoint: String,
    pub problem: &'static str,
}

/// A CRI v1 client. Cheap to clone; clones share one connection, which is made on the first call and
/// made anew when the runtime was restarted.
#[derive(Clone)]
pub struct CriClient {
    transport: Transport,
    endpoint: Arc<str>,
    timeouts: Timeouts,
    counters: Arc<CallCounters>,
}

impl fmt::Debug for CriClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CriClient")
            .field("endpoint", &self.endpoint)
            .field("timeouts", &self.timeouts)
            .finish()
    }
}

impl CriClient {
    /// A client that connects with its first call. `endpoint` is `unix:///path` or a bare absolute path.
    pub fn new(endpoint: &str, timeouts: Timeouts) -> Result<Self, EndpointError> {
        Ok(Self {
            transport: Transport::Socket(channel(endpoint)?),
            endpoint: Arc::from(endpoint),
            timeouts,
            counters: Arc::default(),
        })
    }

    /// A client that has spoken with the runtime and knows that it serves CRI v1.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for an endpoint that cannot be one, [`ErrorKind::Unimplemented`]
    /// where another API version is served, and what the Version call gives.
    pub async fn connect(endpoint: &str, timeouts: Timeouts) -> Result<Self, CriError> {
        let client = Self::new(endpoint, timeouts).map_err(|error| CriError {
            operation: Operation::Version,
            object: endpoint.to_owned(),
            kind: ErrorKind::InvalidArgument,
            cause: crate::error::Cause::Transport(error.to_string()),
        })?;
        client.check_version().await?;
        Ok(client)
    }

    /// Asks for the version and refuses everything but CRI v1.
    pub async fn check_version(&self) -> Result<(), CriError> {
        let version = crate::runtime_info::RuntimeInfo::version(self).await?;
        if version.api_version == API_VERSION {
            return Ok(());
        }
        let text =
            format!("{} {} serves CRI {:?}, not v1", version.name, version.version, version.api_version);
        Err(CriError {
            operation: Operation::Version,
            object: self.endpoint.to_string(),
            kind: ErrorKind::Unimplemented,
            cause: crate::error::Cause::Runtime(text),
        })
    }

    /// A client for another endpoint that counts into the same counters (`imageServiceEndpoint`).
    pub fn at(&self, endpoint: &str) -> Result<Self, EndpointError> {
        Ok(Self { counters: Arc::clone(&self.counters), ..Self::new(endpoint, self.timeouts)? })
    }

    #[cfg(feature = "fake")]
    pub(crate) fn in_process(
        service: crate::fake::InProcess,
        timeouts: Timeouts,
        counters: Arc<CallCounters>,
    ) -> Self {
        Self {
            transport: Transport::InProcess(service),
            endpoint: Arc::from("fake runtime"),
            timeouts,
            counters,
        }
    }

    /// What was called so far, by this client and its clones.
    pub fn counters(&self) -> &Arc<CallCounters> {
        &self.counters
    }

    /// As given to [`Self::new`].
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// A call of the runtime service about `object`, with the usual deadline.
    pub(crate) fn call(&self, operation: Operation, object: impl fmt::Display) -> Call {
        Call { operation, object: object.to_string(), deadline: Some(self.timeouts.unary) }
    }

    /// A call about the runtime itself.
    pub(crate) fn call_itself(&self, operation: Operation) -> Call {
        self.call(operation, &self.endpoint)
    }

    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Transport> {
        RuntimeServiceClient::new(self.transport.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn images(&self) -> ImageServiceClient<Transport> {
        ImageServiceClient::new(self.transport.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Sends `message` to the runtime service.
    pub(crate) async fn run<Q, A, F>(
        &self,
        call: &Call,
        message: Q,
        send: impl FnOnce(RuntimeServiceClient<Transport>, Request<Q>) -> F,
    ) -> Result<A, CriError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.measured(call, send(self.runtime(), call.request(message))).await
    }

    /// Sends `message` to the image service.
    pub(crate) async fn run_image<Q, A, F>(
        &self,
        call: &Call,
        message: Q,
        send: impl FnOnce(ImageServiceClient<Transport>, Request<Q>) -> F,
    ) -> Result<A, CriError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.measured(call, send(self.images(), call.request(message))).await
    }

    async fn measured<A>(
        &self,
        call: &Call,
        answer: impl Future<Output = Result<Response<A>, Status>>,
    ) -> Result<A, CriError> {
        let started = Instant::now();
        let result = match call.deadline {
            None => self.translated(call, answer.await),
            Some(deadline) => match tokio::time::timeout(deadline, answer).await {
                Ok(answer) => self.translated(call, answer),
                Err(_elapsed) => Err(CriError::deadline(call.operation, call.object.clone(), deadline)),
            },
        };
        self.counters.record(call.operation, started.elapsed(), result.is_err());
        if let Err(error) = &result {
            tracing::debug!(operation = call.operation.name(), object = %call.object, cause = %error.cause, "call failed");
        }
        result
    }

    fn translated<A>(&self, call: &Call, answer: Result<Response<A>, Status>) -> Result<A, CriError> {
        answer.map(Response::into_inner).map_err(|status| self.error(call, &status))
    }

    pub(crate) fn error(&self, call: &Call, status: &Status) -> CriError {
        CriError::from_status(call.operation, call.object.clone(), &self.endpoint, status)
    }
}

/// One call: what for, about what, for how long.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) operation: Operation,
    pub(crate) object: String,
    /// `None`: as long as it takes.
    pub(crate) deadline: Option<Duration>,
}

impl Call {
    pub(crate) fn deadline(self, deadline: Option<Duration>) -> Self {
        Self { deadline, ..self }
    }

    /// The runtime is told the deadline too, so that it does not go on with what nobody waits for.
    fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        request
    }

    pub(crate) fn bad_answer(&self, error: ConvertError) -> CriError {
        CriError::bad_answer(self.operation, self.object.clone(), error)
    }

    /// The object an answer must carry.
    pub(crate) fn present<T>(&self, field: &'static str, value: Option<T>) -> Result<T, CriError> {
        value.ok_or_else(|| self.bad_answer(ConvertError::missing(&self.object, field)))
    }
}

/// For calls that must be repeatable: an object the runtime does not know is stopped and removed.
pub(crate) fn gone_is_done<T: Default>(result: Result<T, CriError>) -> Result<(), CriError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn channel(endpoint: &str) -> Result<Channel, EndpointError> {
    let refuse = |problem| EndpointError { endpoint: endpoint.to_owned(), problem };
    let path = match endpoint.split_once("://") {
        Some(("unix", path)) => path,
        Some(_) => return Err(refuse("only unix sockets are supported")),
        None => endpoint,
    };
    if !path.starts_with('/') {
        return Err(refuse("the path of the socket is not absolute"));
    }
    // No HTTP/2 keep-alive: gRPC servers written in Go end connections that ping more often than every
    // five minutes, and a unix socket tells at once when its other side is gone.
    let endpoint = Endpoint::from_shared(format!("unix://{path}")).map_err(|_| refuse("not a path"))?;
    Ok(endpoint.connect_lazy())
}

/// How messages travel: over a socket, or straight to a fake in this process.
#[derive(Clone)]
pub(crate) enum Transport {
    Socket(Channel),
    #[cfg(feature = "fake")]
    InProcess(crate::fake::InProcess),
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self {
            Self::Socket(channel) => channel.poll_ready(context).map_err(Into::into),
            #[cfg(feature = "fake")]
            Self::InProcess(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self {
            Self::Socket(channel) => {
                let answer = channel.call(request);
                Box::pin(async move { answer.await.map_err(Into::into) })
            }
            #[cfg(feature = "fake")]
            Self::InProcess(service) => service.call(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints_are_unix_sockets_by_absolute_path() {
        for good in ["unix:///run/containerd/containerd.sock", "/run/crio/crio.sock"] {
            assert!(CriClient::new(good, Timeouts::default()).is_ok(), "{good}");
        }
        for bad in ["tcp://127.0.0.1:1234", "run/x.sock", "unix://x.sock", ""] {
            let error = CriClient::new(bad, Timeouts::default()).unwrap_err();
            assert!(error.to_string().contains("unix:///run/containerd/containerd.sock"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_unavailable_and_named() {
        let error =
            CriClient::connect("unix:///nonexistent/cri.sock", Timeouts::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.one_line().contains("/nonexistent/cri.sock"), "{}", error.one_line());
        assert!(error.one_line().contains("No such file"), "{}", error.one_line());
    }

    /// A runtime that answers everything with this body.
    fn answering(path: &std::path::Path, body: Vec<u8>) {
        use http_body_util::Full;
        use hyper_util::rt::{TokioExecutor, TokioIo};
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let body = body.clone();
                let service = hyper::service::service_fn(move |_| {
                    let answer = http::Response::builder()
                        .header("content-type", "application/grpc")
                        .body(Full::new(bytes::Bytes::from(body.clone())));
                    async move { answer }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
    }

    /// A gRPC frame that says it is so long.
    fn frame(flags: u8, length: u32, message: &[u8]) -> Vec<u8> {
        [&[flags][..], &length.to_be_bytes(), message].concat()
    }

    #[tokio::test]
    async fn bytes_no_runtime_would_send_are_an_error_at_once_and_nothing_worse() {
        let whole = |message: &[u8]| frame(0, u32::try_from(message.len()).unwrap(), message);
        let cases = [
            ("nothing", Vec::new()),
            ("no field", whole(&[0xff; 8])),
            ("a text that is none", whole(&[0x0a, 0x02, 0xff, 0xfe])),
            ("a field longer than the message", whole(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, b'x'])),
            ("a field of another type", whole(&[0x0d, 1, 2, 3, 4])),
            ("groups without end", whole(&vec![0x0b; 100_000])),
            ("less than it says", frame(0, 100, b"abc")),
            ("more than may be", frame(0, u32::MAX, b"abc")),
            ("compressed by nobody knows what", frame(1, 3, b"abc")),
            ("half a head", vec![0, 0]),
            ("a page", b"<html>not what was asked for</html>".to_vec()),
        ];
        for (what, body) in cases {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("cri.sock");
            answering(&path, body);
            let client = CriClient::new(path.to_str().unwrap(), Timeouts::default()).unwrap();
            let asked = tokio::time::timeout(Duration::from_secs(10), client.check_version());
            let error = asked.await.unwrap_or_else(|_| panic!("{what}: no end")).unwrap_err();
            assert!(!error.one_line().is_empty() && error.kind != ErrorKind::NotFound, "{what}: {error:?}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_speaks_something_else_is_no_runtime() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cri.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                let _ = stream.read(&mut [0; 1024]).await;
            }
        });
        let client = CriClient::new(path.to_str().unwrap(), Timeouts::default()).unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(10), client.check_version());
        let error = asked.await.expect("it ends").unwrap_err();
        assert!(error.one_line().contains("cri.sock"), "{}", error.one_line());
    }
}
