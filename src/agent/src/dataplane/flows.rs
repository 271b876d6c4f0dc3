//! The kernel's connection tracker as the dataplane asks it: UDP flows in, deletions out. Which flows
//! must go is decided in `longshore_core::conntrack`.

use std::sync::Arc;

use async_trait::async_trait;
use longshore_core::conntrack::Flow;
use longshore_core::ruleset::Protocol;
use longshore_kernel::conntrack::{self, Conntrack, FlowFilter, RealConntrack, Tuple};
use longshore_kernel::route::IpFamily;

use super::UdpFlows;
use crate::text::error_chain;

/// A connection tracker's UDP flows, of both families.
#[derive(Debug)]
pub struct TrackedFlows<C>(pub C);

/// The UDP flows of the calling thread's network namespace; `None`, and said in the log, where the
/// kernel does not show them. Services work without: flows to a gone endpoint then last until they end.
pub fn kernel_flows() -> Option<Arc<dyn UdpFlows>> {
    match RealConntrack::open() {
        Ok(conntrack) => Some(Arc::new(TrackedFlows(conntrack))),
        Err(err) => {
            tracing::warn!(error = error_chain(&err), "stale UDP flows will not be forgotten");
            None
        }
    }
}

#[async_trait]
impl<C: Conntrack> UdpFlows for TrackedFlows<C> {
    async fn flows(&self) -> Result<Vec<Flow>, String> {
        let mut flows = Vec::new();
        for family in [IpFamily::V4, IpFamily::V6] {
            // Untranslated ones too: a flow from a time without endpoints goes nowhere until forgotten.
            let filter = FlowFilter { dnat_only: false, ..FlowFilter::translated_udp(family) };
            let found = self.0.dump(filter).await.map_err(|err| error_chain(&err))?;
            flows.extend(found.iter().map(|flow| Flow {
                src: flow.original.source,
                dst: flow.service(),
                answers: flow.endpoint(),
            }));
        }
        Ok(flows)
    }

    async fn forget(&self, flows: &[Flow]) -> Vec<Result<(), String>> {
        let tracked: Vec<conntrack::Flow> = flows.iter().map(tracked).collect();
        let outcomes = self.0.delete(&tracked).await;
        outcomes.into_iter().map(|outcome| outcome.map(drop).map_err(|err| error_chain(&err))).collect()
    }
}

/// The kernel finds a flow by what its client sent; the rest is for texts.
fn tracked(flow: &Flow) -> conntrack::Flow {
    conntrack::Flow {
        protocol: Protocol::Udp,
        original: Tuple { source: flow.src, destination: flow.dst },
        reply: Tuple { source: flow.answers, destination: flow.src },
        status: 0,
        mark: 0,
        zone: 0,
        timeout: 0,
    }
}

#[cfg(test)]
mod tests {
    use longshore_kernel::conntrack::FakeConntrack;

    use super::*;

    #[tokio::test]
    async fn flows_of_both_families_are_seen_and_forgotten() {
        let flow = |src: &str, dst: &str, answers: &str| Flow {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            answers: answers.parse().unwrap(),
        };
        let v4 = flow("10.1.0.5:4000", "10.96.0.10:53", "10.1.2.3:5353");
        let v6 = flow("[fd00::5]:4000", "[fd00:96::a]:53", "[fd00:96::a]:53");
        let conntrack = FakeConntrack::new(&[tracked(&v4), tracked(&v6)]);
        let flows = TrackedFlows(conntrack);
        assert_eq!(flows.flows().await, Ok(vec![v4, v6]));
        assert_eq!(flows.forget(&[v4, v4]).await, [Ok(()), Ok(())], "one that is gone is a success");
        assert_eq!(flows.flows().await, Ok(vec![v6]));
        flows.0.faults.script("list flows", nix::errno::Errno::EPERM, 1);
        assert!(flows.flows().await.unwrap_err().starts_with("conntrack: list flows: "));
    }
}
