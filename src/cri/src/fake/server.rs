//! A fake runtime on a real unix socket, for tests of the client and of whole programs.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;

use super::FakeRuntime;
use crate::api::v1::image_service_server::ImageServiceServer;
use crate::api::v1::runtime_service_server::RuntimeServiceServer;
use crate::client::MAX_MESSAGE;

/// Serves a [`FakeRuntime`] until it is stopped or dropped.
#[derive(Debug)]
pub struct FakeCriServer {
    path: PathBuf,
    runtime: FakeRuntime,
    shutdown: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Result<(), tonic::transport::Error>>>,
}

impl FakeCriServer {
    /// Listens on `path`, in place of whatever socket was there.
    pub async fn serve(runtime: FakeRuntime, path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let sockets = UnixListenerStream::new(UnixListener::bind(path)?);
        let (shutdown, stopped) = oneshot::channel::<()>();
        let routes = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(runtime.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(ImageServiceServer::new(runtime.clone()).max_decoding_message_size(MAX_MESSAGE));
        let task = tokio::spawn(routes.serve_with_incoming_shutdown(sockets, async move {
            let _ = stopped.await;
        }));
        Ok(Self { path: path.to_owned(), runtime, shutdown: Some(shutdown), task: Some(task) })
    }

    /// For [`crate::CriClient::connect`].
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Ends every connection and the socket, as stopping the runtime's daemon does. The runtime and its
    /// containers live on; serve it again to bring it back.
    pub async fn stop(mut self) {
        self.runtime.go_down();
        drop(self.shutdown.take());
        if let Some(task) = self.task.take() {
            // An error would be one of the socket, which is gone in any case.
            let _ = task.await;
        }
        let _ = std::fs::remove_file(&self.path);
        self.runtime.come_back();
    }
}

impl Drop for FakeCriServer {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}
