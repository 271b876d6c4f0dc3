//! Taking connections: bounded in number, and alive when there are no file descriptors left. Who may connect, what
//! is answered and how a connection ends is each server's own business.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// After a refusal of the kernel, most likely for want of file descriptors: the loop must not spin.
const PAUSE: Duration = Duration::from_millis(200);

/// Takes connections until `stop` is cancelled, `at_most` at the same time; more wait in the kernel's queue.
/// `each` gets a connection with its place among them, starts what serves it, and returns.
pub(crate) async fn take<S, A>(
    what: &str,
    at_most: usize,
    stop: &CancellationToken,
    accept: impl Fn() -> A,
    mut each: impl FnMut(S, OwnedSemaphorePermit),
) where
    A: Future<Output = io::Result<S>>,
{
    let places = Arc::new(Semaphore::new(at_most));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok(stream) => each(stream, place),
            Err(error) => {
                tracing::warn!(%error, "{what}: accept failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
