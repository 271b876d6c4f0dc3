//! Tells the dataplane that the node's addresses changed, as the kernel tells it. What they are now is
//! read by the dataplane itself, whose audit is the fallback where an event is lost.

use std::time::Duration;

use futures_util::FutureExt;
use longshore_core::ruleset::object::DEVICE;
use longshore_kernel::route::RouteError;
use longshore_kernel::route::monitor::{AddressEvent, AddressEvents};
use tokio::time::sleep;

use crate::dataplane::{Change, DataplaneHandle};
use crate::text::error_chain;

/// An interface that comes up changes several addresses: one look for all of them.
const SETTLE: Duration = Duration::from_millis(50);
/// A socket that breaks is opened again after this, doubling up to a minute.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Runs until the dataplane's daemon ends; `open` makes a new source of events.
pub async fn watch(
    dataplane: DataplaneHandle,
    open: impl Fn() -> Result<Box<dyn AddressEvents>, RouteError> + Send,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        match open() {
            Ok(mut events) => {
                while let Some(event) = events.next().await {
                    pause = FIRST_PAUSE;
                    if !concerns(&event) {
                        continue;
                    }
                    sleep(SETTLE).await;
                    // Those that came meanwhile are in the same look.
                    let more = drain(events.as_mut());
                    dataplane.tell(Change::HostAddresses);
                    if more == More::Lost {
                        break;
                    }
                }
                tracing::debug!("address events were lost; reading all addresses");
            }
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "changes of addresses are found by audits only")
            }
        }
        dataplane.tell(Change::HostAddresses);
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

#[derive(PartialEq, Eq)]
enum More {
    Read,
    Lost,
}

/// Takes the events that are there.
fn drain(events: &mut dyn AddressEvents) -> More {
    loop {
        match events.next().now_or_never() {
            None => return More::Read,
            Some(Some(_)) => {}
            Some(None) => return More::Lost,
        }
    }
}

/// Addresses on the Services' own device are ours: each would make us read them all again.
fn concerns(event: &AddressEvent) -> bool {
    *event != AddressEvent::Device(Some(DEVICE.to_owned()))
}
