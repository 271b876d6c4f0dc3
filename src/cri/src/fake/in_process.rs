//! Hands a client's messages straight to a fake runtime, without a socket.

use std::io;

use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, StdError, http};

use super::{FakeRuntime, gone_down};
use crate::api::v1::image_service_server::ImageServiceServer;
use crate::api::v1::runtime_service_server::RuntimeServiceServer;

/// In place of a connection.
#[derive(Clone, Debug)]
pub(crate) struct InProcess {
    runtime: FakeRuntime,
}

impl InProcess {
    pub(super) fn new(runtime: FakeRuntime) -> Self {
        Self { runtime }
    }

    /// As a connection would: refused while the runtime is down, broken when it goes down.
    pub(crate) fn call(&mut self, request: http::Request<Body>) -> BoxFuture<http::Response<Body>, StdError> {
        let mut down = self.runtime.inner.down.subscribe();
        if *down.borrow_and_update() {
            let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused");
            return Box::pin(async move { Err(refused.into()) });
        }
        let runtime = self.runtime.clone();
        Box::pin(async move {
            let answer = async {
                if request.uri().path().starts_with("/runtime.v1.ImageService/") {
                    ImageServiceServer::new(runtime).call(request).await
                } else {
                    RuntimeServiceServer::new(runtime).call(request).await
                }
            };
            tokio::select! {
                biased;
                _ = gone_down(&mut down) => {
                    Err(io::Error::new(io::ErrorKind::ConnectionReset, "connection reset by peer").into())
                }
                answer = answer => match answer {
                    Ok(answer) => Ok(answer),
                    Err(never) => match never {},
                },
            }
        })
    }
}
