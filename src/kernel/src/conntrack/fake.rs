//! Flows in memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Conntrack, ConntrackError, Flow, FlowFilter};
use crate::fake::Faults;
use crate::netlink::{NetlinkError, Refusal, RequestError};

/// Flows in memory.
#[derive(Debug, Default)]
pub struct FakeConntrack {
    /// Scripted faults; texts are `conntrack: list flows` and `conntrack udp ... : delete`.
    pub faults: Faults,
    flows: Mutex<Vec<Flow>>,
}

impl FakeConntrack {
    /// These flows.
    pub fn new(flows: &[Flow]) -> Self {
        FakeConntrack { faults: Faults::default(), flows: Mutex::new(flows.to_vec()) }
    }

    /// The flows that are left.
    pub fn flows(&self) -> Vec<Flow> {
        self.lock().clone()
    }

    /// A packet made a flow.
    pub fn add(&self, flow: Flow) {
        self.lock().push(flow);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Flow>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Conntrack for FakeConntrack {
    async fn dump(&self, filter: FlowFilter) -> Result<Vec<Flow>, ConntrackError> {
        let fault = self.faults.check("conntrack: list flows");
        fault.map_err(|errno| ConntrackError::Dump(NetlinkError::Refused(Refusal::new(errno))))?;
        Ok(self.lock().iter().copied().filter(|flow| filter.takes(flow)).collect())
    }

    async fn delete(&self, flows: &[Flow]) -> Vec<Result<bool, ConntrackError>> {
        let delete = |flow: &Flow| {
            let fault = self.faults.check(&format!("{flow}: delete"));
            fault.map_err(|errno| ConntrackError::Delete {
                flow: Box::new(*flow),
                source: RequestError::Refused(Refusal::new(errno)),
            })?;
            let mut known = self.lock();
            let same = |other: &Flow| {
                (other.protocol, other.original, other.zone) == (flow.protocol, flow.original, flow.zone)
            };
            let before = known.len();
            known.retain(|other| !same(other));
            Ok(known.len() < before)
        };
        flows.iter().map(delete).collect()
    }
}

#[cfg(test)]
mod tests {
    use longshore_core::ruleset::Protocol;
    use nix::errno::Errno;

    use super::super::Tuple;
    use super::*;
    use crate::route::IpFamily;

    fn flow(protocol: Protocol, port: u16, status: u32) -> Flow {
        let addr = |last: u8, port| std::net::SocketAddr::from(([10, 0, 0, last], port));
        Flow {
            protocol,
            original: Tuple { source: addr(1, port), destination: addr(2, 53) },
            reply: Tuple { source: addr(3, 5353), destination: addr(1, port) },
            status,
            mark: 0,
            zone: 0,
            timeout: 30,
        }
    }

    #[tokio::test]
    async fn only_translated_udp_is_shown_and_a_deleted_flow_is_gone() {
        let stale = flow(Protocol::Udp, 1000, 1 << 5);
        let conntrack =
            FakeConntrack::new(&[stale, flow(Protocol::Udp, 1001, 0), flow(Protocol::Tcp, 1002, 1 << 5)]);
        let filter = FlowFilter::translated_udp(IpFamily::V4);
        assert_eq!(conntrack.dump(filter).await, Ok(vec![stale]));
        assert_eq!(conntrack.dump(FlowFilter::translated_udp(IpFamily::V6)).await, Ok(vec![]));
        conntrack.faults.script("udp", Errno::EBUSY, 1);
        assert!(conntrack.delete(&[stale]).await[0].as_ref().unwrap_err().is_retryable());
        assert_eq!(conntrack.delete(&[stale, stale]).await, [Ok(true), Ok(false)]);
        assert_eq!(conntrack.flows().len(), 2);
    }
}
