//! What an audit of nftables mode reads. Commits of other programs to our tables are told by the kernel;
//! where none was, an audit reads what does not grow with Services, and asks for some elements by key, the
//! next ones each time. So its cost is the same at any size, and it holds no change up.

use std::collections::BTreeMap;

use longshore_core::ruleset::desired::BackEnd;
use longshore_core::ruleset::diff::Applied;
use longshore_core::ruleset::nft::{ElementKey, ElementValue};
use longshore_core::ruleset::object::{Claim, ObjectKey, ObjectValue, SetId, TABLE};
use tokio::task::unconstrained;

use super::super::kernel::{self, Kernel, KernelError, in_full};
use super::{Engine, Served};

/// Elements that one audit asks for, a few more where a Service has many: 10 ms of the kernel's time. At an
/// audit every 30 s all 120,000 of 10,000 Services with 10 endpoints each are seen again within half an hour.
pub(in crate::dataplane) const SAMPLE: usize = 2048;

/// Why an audit need not read everything.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// Our tables were read whole, and nothing was told of others' commits to them since.
    pub(super) untouched: bool,
    /// The claim whose elements were asked for last; `None` at the beginning.
    asked: Option<Claim>,
}

impl Engine {
    /// Take note of what other programs did by now, without waiting; whether that can be heard at all.
    pub(super) async fn hear(&mut self, kernel: &Kernel) -> bool {
        // Until the first sync is done nobody listens; what is missed so is told when listening begins.
        while self.is_synced() {
            tokio::select! {
                biased;
                // It is asked once: a used up budget of the task must not pass for silence.
                told = unconstrained(kernel.nft.touched_by_others(TABLE)) => {
                    self.trust.untouched = false;
                    if let Err(error) = told {
                        tracing::debug!(error = in_full(&error), "cannot hear of other programs' changes");
                        return false;
                    }
                }
                () = std::future::ready(()) => break,
            }
        }
        true
    }

    /// Whether nothing speaks for a comparison of everything with the kernel.
    pub(super) async fn looks_untouched(&mut self, served: &Served) -> bool {
        self.hear(&served.kernel).await;
        if served.back_end != BackEnd::Nftables || !self.trust.untouched {
            return false;
        }
        self.look(served).await.unwrap_or_else(|error| {
            tracing::debug!(error = in_full(&error), "an audit could not read; everything is compared");
            false
        })
    }

    async fn look(&mut self, served: &Served) -> Result<bool, KernelError> {
        let outline = served.kernel.outline(self.ipv6).await?;
        let keep = !self.retirement.is_done();
        for ipv6 in [false, true].into_iter().filter(|ipv6| self.ipv6 || !ipv6) {
            let index = usize::from(ipv6);
            let (found, wanted) = (outline.tables[index].as_ref(), &self.chains[index]);
            if !kernel::chain_ops(ipv6, found, wanted, keep).is_empty() {
                return Ok(false);
            }
        }
        let spreads = Applied::adopt(outline.objects);
        let believed = self.applied.only(|claim| matches!(claim, Claim::Spread(_)));
        Ok(believed == spreads && self.sample(&served.kernel).await?)
    }

    /// Whether the next elements in turn are there as they were acknowledged.
    async fn sample(&mut self, kernel: &Kernel) -> Result<bool, KernelError> {
        let mut asked: BTreeMap<(bool, SetId), (Vec<ElementKey>, Vec<Option<ElementValue>>)> =
            BTreeMap::new();
        let (mut count, mut last) = (0, None);
        for (claim, objects) in self.applied.by_claim_after(self.trust.asked.as_ref()) {
            last = None;
            for (key, value) in objects.into_owned() {
                let (ObjectKey::Element { set, ipv6, key }, ObjectValue::Element(value)) = (key, value)
                else {
                    continue;
                };
                let (keys, values) = asked.entry((ipv6, set)).or_default();
                keys.push(key);
                values.push(Some(value));
                count += 1;
            }
            if count >= SAMPLE {
                last = Some(*claim);
                break;
            }
        }
        for ((ipv6, set), (keys, believed)) in asked {
            let found = kernel.nft.elements(&kernel::table_key(ipv6), set.name(), &keys).await?;
            if found != believed {
                return Ok(false);
            }
        }
        // After the last of all the next audit begins again with the first.
        self.trust.asked = last;
        Ok(true)
    }
}
