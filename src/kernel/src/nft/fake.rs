//! nf_tables in memory: `longshore_core`'s own idea of what the kernel takes and refuses, with
//! generations, scripted faults and changes behind the agent's back. Moves no packets.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use longshore_core::ruleset::nft::{
    ElementKey, ElementValue, Expr, NftBatch, NftRefusal, NftRuleset, NftTable, TableKey,
};
use nix::errno::Errno;
use tokio::sync::Notify;

use super::{CounterValue, Guess, Nft, NftDump, NftError, Touched};
use crate::fake::Faults;
use crate::netlink::{NetlinkError, Refusal};

/// nf_tables in memory.
#[derive(Debug, Default)]
pub struct FakeNft {
    /// Scripted faults; the text of an operation is `nft table ip longshore: set services: add 2 elements`.
    pub faults: Faults,
    inner: Mutex<Inner>,
    /// Signalled by `tamper`.
    touched: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    ruleset: NftRuleset,
    generation: u32,
    batches: Vec<NftBatch>,
    elements_read: usize,
    elements_guessed: usize,
    counts_nothing: bool,
}

impl FakeNft {
    /// An empty ruleset.
    pub fn new() -> Self {
        FakeNft::default()
    }

    /// A table as it is now.
    pub fn table(&self, key: &TableKey) -> Option<NftTable> {
        self.lock().ruleset.tables.get(key).cloned()
    }

    /// Every batch that was applied, in order: how a test asserts how little a change cost.
    pub fn batches(&self) -> Vec<NftBatch> {
        self.lock().batches.clone()
    }

    /// Elements that were read so far, by dumps and one by one: how a test asserts what a look cost.
    pub fn elements_read(&self) -> usize {
        self.lock().elements_read
    }

    /// Elements of these that no dump of their set was needed for.
    pub fn elements_guessed(&self) -> usize {
        self.lock().elements_guessed
    }

    /// Be a kernel that does not say how many elements a set has.
    pub fn count_nothing(&self) {
        self.lock().counts_nothing = true;
    }

    /// Change the ruleset without anybody being told, as the kernel never does.
    pub fn corrupt(&self, change: impl FnOnce(&mut NftRuleset)) {
        change(&mut self.lock().ruleset);
    }

    /// Change the ruleset as another program would.
    pub fn tamper(&self, change: impl FnOnce(&mut NftRuleset)) {
        let mut inner = self.lock();
        change(&mut inner.ruleset);
        inner.generation += 1;
        self.touched.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, what: &str) -> Result<MutexGuard<'_, Inner>, NftError> {
        self.faults.check(&format!("nft: read {what}")).map_err(|errno| NftError::Read {
            what: what.to_owned(),
            source: NetlinkError::Refused(Refusal::new(errno)),
        })?;
        Ok(self.lock())
    }
}

fn errno(refusal: NftRefusal) -> Errno {
    match refusal {
        NftRefusal::NotFound => Errno::ENOENT,
        NftRefusal::Exists => Errno::EEXIST,
        NftRefusal::Busy => Errno::EBUSY,
        NftRefusal::Invalid => Errno::EINVAL,
    }
}

#[async_trait]
impl Nft for FakeNft {
    async fn apply(&self, batch: &NftBatch, generation: Option<u32>) -> Result<(), NftError> {
        for (index, op) in batch.ops.iter().enumerate() {
            let fault = self.faults.check(&format!("nft table {}: {op}", batch.table));
            fault.map_err(|errno| NftError::refused(batch, index, Refusal::new(errno)))?;
        }
        let mut inner = self.lock();
        if generation.is_some_and(|generation| generation != inner.generation) {
            return Err(NftError::Changed { table: batch.table.clone() });
        }
        if batch.ops.is_empty() {
            return Ok(());
        }
        inner.ruleset.apply(batch).map_err(|refused| {
            NftError::refused(batch, refused.index, Refusal::new(errno(refused.refusal)))
        })?;
        inner.generation += 1;
        inner.batches.push(batch.clone());
        Ok(())
    }

    async fn dump(&self, key: &TableKey, leave_out: &[&str]) -> Result<NftDump, NftError> {
        let mut inner = self.read(&format!("table {key}"))?;
        let mut table = inner.ruleset.tables.get(key).cloned();
        for (name, set) in table.iter_mut().flat_map(|table| &mut table.sets) {
            if set.spec.flags.dynamic || leave_out.contains(&name.as_str()) {
                set.elements.clear();
            }
            inner.elements_read += set.elements.len();
        }
        let mut rule_counters = BTreeMap::new();
        for (name, chain) in table.iter().flat_map(|table| &table.chains) {
            for (index, rule) in chain.rules.iter().enumerate() {
                if rule.exprs.contains(&Expr::Counter) {
                    rule_counters.insert((name.clone(), index), CounterValue::default());
                }
            }
        }
        let names = table.iter().flat_map(|table| table.counters.iter().cloned());
        let counters = names.map(|name| (name, CounterValue::default())).collect();
        Ok(NftDump { table, generation: inner.generation, rule_counters, counters })
    }

    async fn dump_guessed(&self, key: &TableKey, guess: Guess) -> Result<NftDump, NftError> {
        let whole = self.dump(key, &[]).await?;
        let mut inner = self.lock();
        for (name, keys) in guess {
            let set = whole.table.as_ref().and_then(|table| table.sets.get(&name));
            let elements = set.map(|set| &set.elements).filter(|_| !inner.counts_nothing);
            let right = |all: &&BTreeMap<ElementKey, ElementValue>| {
                keys.iter().filter(|key| all.contains_key(key)).count() == all.len()
            };
            if let Some(all) = elements.filter(right) {
                inner.elements_guessed += all.len();
            }
        }
        Ok(whole)
    }

    async fn elements(
        &self,
        table: &TableKey,
        set: &str,
        keys: &[ElementKey],
    ) -> Result<Vec<Option<ElementValue>>, NftError> {
        let mut inner = self.read(&format!("{} elements of set {set} of table {table}", keys.len()))?;
        inner.elements_read += keys.len();
        let set = inner.ruleset.tables.get(table).and_then(|table| table.sets.get(set));
        Ok(keys.iter().map(|key| set.and_then(|set| set.elements.get(key)).cloned()).collect())
    }

    async fn tables(&self) -> Result<Vec<TableKey>, NftError> {
        Ok(self.read("tables")?.ruleset.tables.keys().cloned().collect())
    }

    async fn generation(&self) -> Result<u32, NftError> {
        Ok(self.read("generation")?.generation)
    }

    async fn touched_by_others(&self, _name: &str) -> Result<Touched, NftError> {
        self.touched.notified().await;
        Ok(Touched { by: Some("another program".to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use longshore_core::ruleset::nft::{Family, NftOp};

    use super::*;

    fn batch(ops: Vec<NftOp>) -> NftBatch {
        NftBatch { table: TableKey::new(Family::Ip, "longshore"), ops }
    }

    fn chain(name: &str) -> NftOp {
        NftOp::AddChain { chain: name.into(), base: None }
    }

    #[tokio::test]
    async fn a_refused_operation_is_named_and_undoes_its_batch() {
        let nft = FakeNft::new();
        let ops = vec![NftOp::AddTable, chain("a"), NftOp::DelChain { chain: "b".into() }];
        let err = nft.apply(&batch(ops), None).await.unwrap_err();
        assert_eq!(err.to_string(), "nft table ip longshore: chain b: delete");
        assert!(err.is_drift());
        assert_eq!(nft.tables().await, Ok(vec![]));
        assert!(nft.batches().is_empty());
    }

    #[tokio::test]
    async fn a_batch_for_an_older_generation_is_refused() {
        let nft = FakeNft::new();
        nft.apply(&batch(vec![NftOp::AddTable]), None).await.unwrap();
        let read = nft.dump(&batch(vec![]).table, &[]).await.unwrap();
        nft.tamper(|ruleset| ruleset.tables.clear());
        let outcome = nft.apply(&batch(vec![chain("a")]), Some(read.generation)).await;
        assert_eq!(outcome, Err(NftError::Changed { table: batch(vec![]).table }));
    }

    #[tokio::test]
    async fn scripted_faults_leave_the_ruleset_alone() {
        let nft = FakeNft::new();
        nft.faults.script("chain a: add", Errno::ENOMEM, 1);
        let all = batch(vec![NftOp::AddTable, chain("a")]);
        let err = nft.apply(&all, None).await.unwrap_err();
        assert!(err.is_retryable() && !err.is_drift());
        assert_eq!(nft.generation().await, Ok(0));
        nft.apply(&all, None).await.unwrap();
        assert!(nft.table(&all.table).unwrap().chains.contains_key("a"));
    }
}
