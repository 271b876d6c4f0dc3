//! The engine's answers that need a fresh look into the kernel: `svc diff` and its repair. A look
//! changes nothing, neither in the kernel nor in what is believed of it.

use jiff::Timestamp;
use longshore_core::ruleset::compare::{self, Difference};
use longshore_core::ruleset::diff::Applied;
use longshore_core::ruleset::object::Objects;
use longshore_core::service::view::{self, DiffView, FrontendView};

use super::super::kernel::{KernelError, in_full};
use super::views::mode_name;
use super::{Engine, Mode, Served};

impl Engine {
    /// What is wanted against what the kernel holds now.
    pub async fn diff(&self) -> DiffView {
        let wanted = self.desired.claims().map(|claim| self.desired.objects(claim).len()).sum();
        let view = DiffView { mode: "none".to_owned(), wanted, ..DiffView::default() };
        let served = match &self.mode {
            Mode::Serving(served) => served,
            Mode::None { reason } => return DiffView { error: Some(reason.clone()), ..view },
            Mode::Unknown => {
                return DiffView { error: Some("the dataplane has not started yet".to_owned()), ..view };
            }
        };
        let mode = mode_name(served.back_end).to_owned();
        match self.differences(served).await {
            Ok(differences) => DiffView { mode, differences, ..view },
            Err(error) => DiffView { mode, error: Some(in_full(&error)), ..view },
        }
    }

    /// Bring the kernel back to what is wanted; what was repaired, and what still differs.
    pub async fn repair(&mut self, now: Timestamp) -> DiffView {
        let repaired = self.audit_whole(now).await;
        DiffView { repaired: Some(repaired), ..self.diff().await }
    }

    /// Every address Services are reached at.
    pub fn frontends(&self) -> Vec<FrontendView> {
        view::frontends(&self.table, &self.desired)
    }

    async fn differences(&self, served: &Served) -> Result<Vec<Difference>, KernelError> {
        let dump = self.read(served).await?;
        let mut seen = Applied::adopt(dump.objects);
        // What stays until the next audit on purpose is no difference.
        for claim in &self.idle {
            seen.replace(*claim, Objects::new());
        }
        let mut found = compare::differences(&self.desired, &seen);
        let families = [false, true].into_iter().filter(|ipv6| self.ipv6 || !ipv6);
        for ipv6 in families.filter(|_| served.iptables.is_none()) {
            let index = usize::from(ipv6);
            found.extend(compare::table_differences(&self.chains[index], dump.tables[index].as_ref(), ipv6));
        }
        Ok(found)
    }
}
