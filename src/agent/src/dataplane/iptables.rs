//! iptables mode's side of the kernel: opening the programs, reading our chains back, and carrying out
//! changes of both families. What the chains are is decided in `longshore_core::ruleset::ipt`.

use std::pin::Pin;
use std::sync::Arc;

use longshore_core::ruleset::diff::Op;
use longshore_core::ruleset::object::{ObjectKey, Objects};
use longshore_kernel::iptables::{Iptables, IptablesError, RealIptables, Tools, Variant, apply_each};

use super::kernel::KernelError;

type Opening = Pin<Box<dyn Future<Output = Result<Arc<dyn Iptables>, IptablesError>> + Send>>;

/// Opens the programs when they are needed.
#[derive(Clone)]
pub struct OpenIptables(Arc<dyn Fn(Option<Variant>) -> Opening + Send + Sync>);

impl std::fmt::Debug for OpenIptables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenIptables").finish_non_exhaustive()
    }
}

impl OpenIptables {
    /// The installed programs, of the variant the node uses.
    pub fn installed() -> Self {
        OpenIptables(Arc::new(|variant| {
            Box::pin(async move {
                let programs = RealIptables::open(variant, Tools::default()).await?;
                Ok(Arc::new(programs) as Arc<dyn Iptables>)
            })
        }))
    }

    /// These, whenever asked.
    pub fn given(iptables: Arc<dyn Iptables>) -> Self {
        OpenIptables(Arc::new(move |_| {
            let iptables = iptables.clone();
            Box::pin(async move { Ok(iptables) })
        }))
    }

    /// The variant the node uses; the legacy one where the kernel has no nf_tables for the other.
    pub(super) async fn open(&self, nf_tables: bool) -> Result<Arc<dyn Iptables>, IptablesError> {
        let programs = (self.0)(None).await?;
        if nf_tables || programs.features().variant == Variant::Legacy {
            return Ok(programs);
        }
        (self.0)(Some(Variant::Legacy)).await
    }
}

/// Everything of ours; a node without ip6tables is served for IPv4 alone.
pub(super) async fn dump(iptables: &dyn Iptables, ipv6: bool) -> Result<Objects, KernelError> {
    let mut objects = iptables.dump(false).await?.objects;
    if ipv6 {
        objects.extend(iptables.dump(true).await?.objects);
    }
    Ok(objects)
}

/// Carry out operations on chains, each family in as few runs as it takes; the result is as long as
/// `ops`. A run costs as much as the table is large, so that they are not cut into batches.
pub(super) async fn execute(iptables: &dyn Iptables, ops: &[Op]) -> Vec<Result<(), KernelError>> {
    let mut outcomes: Vec<Result<(), KernelError>> = vec![Ok(()); ops.len()];
    for ipv6 in [false, true] {
        let of_family: Vec<usize> = (0..ops.len()).filter(|index| is_ipv6(&ops[*index]) == ipv6).collect();
        if of_family.is_empty() {
            continue;
        }
        let these: Vec<Op> = of_family.iter().map(|index| ops[*index].clone()).collect();
        let done = apply_each(iptables, ipv6, &these).await;
        for (index, outcome) in of_family.into_iter().zip(done.each) {
            outcomes[index] = outcome.map_err(Into::into);
        }
    }
    outcomes
}

fn is_ipv6(op: &Op) -> bool {
    match &op.key {
        ObjectKey::Chain(id) => id.ipv6,
        ObjectKey::Hook(hook) => hook.to.ipv6,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use longshore_kernel::iptables::FakeIptables;

    use super::*;

    #[tokio::test]
    async fn without_nf_tables_the_legacy_programs_are_taken_whatever_the_node_uses() {
        for used in [Variant::Nft, Variant::Legacy] {
            let open = OpenIptables(Arc::new(move |asked| {
                let programs = FakeIptables::new(asked.unwrap_or(used));
                Box::pin(async move { Ok(Arc::new(programs) as Arc<dyn Iptables>) })
            }));
            let variant = async |nf_tables| open.open(nf_tables).await.unwrap().features().variant;
            assert_eq!((variant(true).await, variant(false).await), (used, Variant::Legacy));
        }
    }
}
