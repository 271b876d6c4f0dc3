//! A socket shared by the async methods of one real implementation: each conversation runs whole on a
//! blocking thread, since the kernel works on a request within the send. No protocol lives here.

use std::sync::{Arc, Mutex, PoisonError};

use super::{NetlinkError, NetlinkSocket};

/// A netlink socket that one conversation at a time uses.
#[derive(Debug, Clone)]
pub struct SharedSocket(Arc<Mutex<NetlinkSocket>>);

impl SharedSocket {
    /// Share a socket.
    pub fn new(socket: NetlinkSocket) -> Self {
        SharedSocket(Arc::new(Mutex::new(socket)))
    }

    /// Run a conversation on a blocking thread. It goes on to its end even when the caller is
    /// cancelled, so that the socket is never left in the middle of one.
    pub async fn run<T, F>(&self, conversation: F) -> Result<T, NetlinkError>
    where
        T: Send + 'static,
        F: FnOnce(&mut NetlinkSocket) -> T + Send + 'static,
    {
        let socket = Arc::clone(&self.0);
        let work = move || {
            // A conversation that panicked leaves only stale answers, which sequence numbers tell apart.
            let mut socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
            conversation(&mut socket)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| NetlinkError::ThreadEnded)
    }
}
