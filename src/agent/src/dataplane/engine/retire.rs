//! After a start: once everything that is wanted is in the kernel by the mode in force, what another
//! mode or another proxy left is taken out, step by step as its connections end.

use super::super::former::{self, IpvsGoes, Unwanted};
use super::{Engine, Mode, Served};

/// How far that is.
#[derive(Clone, Debug, Default)]
pub(super) struct Retirement {
    done: bool,
    /// Virtual servers that wait for their last connection.
    pub(super) kept: usize,
    /// What stands in the way, said once.
    problem: Option<String>,
}

impl Retirement {
    /// Until then chains and sets of another mode stay beside ours.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }
}

impl Engine {
    /// Whether something may be left of another mode or proxy, and its time has come.
    pub fn wants_to_retire(&self) -> bool {
        !self.retirement.done && self.is_synced() && self.keeps_up()
    }

    /// One step away from what was before; asked again until nothing is left.
    pub async fn retire(&mut self) {
        let Mode::Serving(served) = self.mode.clone() else { return };
        if !self.wants_to_retire() {
            return;
        }
        match self.retire_step(&served).await {
            Ok(kept) => {
                self.retirement.kept = kept;
                self.retirement.done = kept == 0;
                self.retirement.problem = None;
            }
            Err(problem) => {
                if self.retirement.problem.as_ref() != Some(&problem) {
                    tracing::warn!(problem, "what another mode or proxy left is not all gone; tried again");
                }
                self.retirement.problem = Some(problem);
            }
        }
    }

    async fn retire_step(&mut self, served: &Served) -> Result<usize, String> {
        let by_ipvs = served.back_end.is_ipvs();
        let unwanted = Unwanted {
            kube_proxy: true,
            our_tables: served.iptables.is_some(),
            our_chains: served.iptables.is_none(),
            ipvs: (!by_ipvs).then_some(IpvsGoes::Gently),
        };
        let xtables = self.open.xtables();
        let found =
            former::find(&served.kernel, xtables.as_deref(), unwanted, &self.config.exclude_cidrs).await;
        let mut problems = found.problems;
        for removal in &found.removals {
            match former::remove(&served.kernel, xtables.as_deref(), removal).await {
                Ok(()) => tracing::info!(%removal, "of another mode or proxy: removed"),
                Err(error) => problems.push(format!("{removal}: {error}")),
            }
        }
        // Now our own tables hold what this mode needs and nothing else.
        self.retirement.done = true;
        let tidied = match served.kernel.outline(self.ipv6).await {
            Ok(outline) => self.ensure_chains(served, &outline.tables).await,
            Err(error) => Err(error),
        };
        self.retirement.done = false;
        problems.extend(tidied.err().map(|error| super::in_full(&error)));
        if problems.is_empty() { Ok(found.kept) } else { Err(problems.join("; ")) }
    }
}
