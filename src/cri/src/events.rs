//! The runtime's container events: a wake-up, sometimes with the pod's state in it. Never the truth on
//! their own; what was missed is found by listing.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use longshore_core::ids::{PodKey, PodUid};
use longshore_core::pod::observed::{ObservedContainer, ObservedSandbox};

use crate::api::v1;
use crate::client::{Call, CriClient};
use crate::convert;
use crate::counters::Operation;
use crate::error::CriError;

/// Events as they come. An event that makes no sense is a `BadAnswer` item and the stream goes on; it ends
/// after any other error, and when the runtime ends it.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<RuntimeEvent, CriError>> + Send>>;

/// Where container events come from.
pub trait ContainerEvents: Send + Sync {
    /// Subscribes with the first poll. A runtime without events answers with an `Unimplemented` error as
    /// the first item; a runtime that has them says nothing until something happens, so nobody can know
    /// when the subscription stands: list once after subscribing, and again from time to time.
    ///
    /// Subscribe once per runtime: containerd 1.7 hands each event to only one of its subscribers.
    fn subscribe(&self) -> EventStream;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Something happened to a container or a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeEvent {
    pub kind: EventKind,
    /// Id of the container or the sandbox.
    pub subject: String,
    pub at: Timestamp,
    /// `None` where the runtime does not tell: always for a removed sandbox, look `subject` up.
    pub pod: Option<PodUid>,
    pub key: Option<PodKey>,
    /// The sandbox after the event, where it is told and can be read.
    pub sandbox: Option<ObservedSandbox>,
    /// All containers of that sandbox after the event, likewise; not those of the pod's older sandboxes.
    pub containers: Option<Vec<ObservedContainer>>,
}

impl ContainerEvents for CriClient {
    fn subscribe(&self) -> EventStream {
        let client = self.clone();
        let call = self.call_itself(Operation::GetContainerEvents).deadline(None);
        // gRPC servers written in Go send the headers with the first event, so the call itself may not
        // answer for hours: it is made inside the stream.
        let events = stream::once(async move {
            let started = tokio::time::Instant::now();
            let answer = client.runtime().get_container_events(v1::GetEventsRequest {}).await;
            client.counters().record(call.operation, started.elapsed(), answer.is_err());
            let messages = answer.map_err(|status| client.error(&call, &status))?.into_inner();
            Ok::<_, CriError>(messages.map(move |message| typed(&client, &call, message)))
        });
        Box::pin(events.try_flatten())
    }
}

fn typed(
    client: &CriClient,
    call: &Call,
    message: Result<v1::ContainerEventResponse, tonic::Status>,
) -> Result<RuntimeEvent, CriError> {
    let message = message.map_err(|status| client.error(call, &status))?;
    convert::runtime_event(&message).map_err(|error| call.bad_answer(error))
}
