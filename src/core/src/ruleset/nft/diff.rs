//! The difference between two tables as operations the kernel takes in that order, and what the kernel
//! refuses. The latter is what tests and the fake run on; nothing here talks to the kernel.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Chain, Data, Element, ElementKey, ElementValue, Expr, NftBatch, NftOp, NftTable, Set, SetSpec, TableKey,
    Verdict,
};

/// Why the kernel refuses an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NftRefusal {
    /// The object, or one it refers to, is not there (`ENOENT`).
    #[error("no such file or directory")]
    NotFound,
    /// Another object has its place (`EEXIST`).
    #[error("file exists")]
    Exists,
    /// Something still refers to it (`EBUSY`).
    #[error("device or resource busy")]
    Busy,
    /// The value does not fit its set (`EINVAL`).
    #[error("invalid argument")]
    Invalid,
}

/// The operation of a batch that was refused; none of the batch was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operation {index}")]
pub struct NftRefused {
    /// Which, counted from 0.
    pub index: usize,
    /// Why.
    #[source]
    pub refusal: NftRefusal,
}

/// Every table, changed by whole batches as the kernel does it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NftRuleset {
    /// Tables by identity.
    pub tables: BTreeMap<TableKey, NftTable>,
}

impl NftRuleset {
    /// Apply a batch whole, or nothing of it.
    pub fn apply(&mut self, batch: &NftBatch) -> Result<(), NftRefused> {
        let mut table = self.tables.get(&batch.table).cloned();
        for (index, op) in batch.ops.iter().enumerate() {
            apply_op(&mut table, op).map_err(|refusal| NftRefused { index, refusal })?;
        }
        match table {
            Some(table) => self.tables.insert(batch.table.clone(), table),
            None => self.tables.remove(&batch.table),
        };
        Ok(())
    }
}

fn apply_op(table: &mut Option<NftTable>, op: &NftOp) -> Result<(), NftRefusal> {
    match op {
        NftOp::AddTable => {
            table.get_or_insert_default();
            return Ok(());
        }
        NftOp::DelTable => return table.take().map(drop).ok_or(NftRefusal::NotFound),
        _ => {}
    }
    let table = table.as_mut().ok_or(NftRefusal::NotFound)?;
    match op {
        NftOp::AddTable | NftOp::DelTable => Ok(()),
        NftOp::AddChain { chain, base } => {
            let made =
                table.chains.entry(chain.clone()).or_insert_with(|| Chain { base: *base, rules: vec![] });
            if made.base == *base { Ok(()) } else { Err(NftRefusal::Exists) }
        }
        NftOp::DelChain { chain } => del_chain(table, chain),
        NftOp::FlushChain { chain } => {
            table.chains.get_mut(chain).ok_or(NftRefusal::NotFound)?.rules.clear();
            Ok(())
        }
        NftOp::AddRule { chain, rule } => {
            if !table.chains.contains_key(chain) || !rule.exprs.iter().all(|expr| resolves(table, expr)) {
                return Err(NftRefusal::NotFound);
            }
            table.chains.get_mut(chain).ok_or(NftRefusal::NotFound)?.rules.push(rule.clone());
            Ok(())
        }
        NftOp::AddSet { set, spec } => {
            let made = table.sets.entry(set.clone()).or_insert_with(|| Set::new(spec.clone()));
            if made.spec == *spec { Ok(()) } else { Err(NftRefusal::Exists) }
        }
        NftOp::DelSet { set } => {
            if uses(table, |expr| expr.set_used() == Some(set)) {
                return Err(NftRefusal::Busy);
            }
            table.sets.remove(set).map(drop).ok_or(NftRefusal::NotFound)
        }
        NftOp::AddElements { set, elements } => {
            elements.iter().try_for_each(|element| add_element(table, set, element))
        }
        NftOp::DelElements { set, keys } => {
            let elements = &mut table.sets.get_mut(set).ok_or(NftRefusal::NotFound)?.elements;
            keys.iter().try_for_each(|key| elements.remove(key).map(drop).ok_or(NftRefusal::NotFound))
        }
        NftOp::FlushSet { set } => {
            table.sets.get_mut(set).ok_or(NftRefusal::NotFound)?.elements.clear();
            Ok(())
        }
        NftOp::AddCounter { counter } => {
            table.counters.insert(counter.clone());
            Ok(())
        }
        NftOp::DelCounter { counter } => {
            if uses(table, |expr| expr.counter_used() == Some(counter)) {
                return Err(NftRefusal::Busy);
            }
            table.counters.remove(counter).then_some(()).ok_or(NftRefusal::NotFound)
        }
    }
}

fn del_chain(table: &mut NftTable, chain: &str) -> Result<(), NftRefusal> {
    let from_others =
        table.chains.iter().filter(|(name, _)| *name != chain).any(|(_, other)| {
            other.rules.iter().flat_map(|rule| &rule.exprs).any(|expr| leads_to(expr, chain))
        });
    let from_elements =
        table.sets.values().flat_map(|set| set.elements.values()).any(
            |value| matches!(&value.data, Some(Data::Verdict(verdict)) if verdict.target() == Some(chain)),
        );
    if from_others || from_elements {
        return Err(NftRefusal::Busy);
    }
    table.chains.remove(chain).map(drop).ok_or(NftRefusal::NotFound)
}

fn leads_to(expr: &Expr, chain: &str) -> bool {
    expr.chain_used() == Some(chain)
}

fn uses(table: &NftTable, mut test: impl FnMut(&Expr) -> bool) -> bool {
    table.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs).any(&mut test)
}

fn resolves(table: &NftTable, expr: &Expr) -> bool {
    expr.set_used().is_none_or(|set| table.sets.contains_key(set))
        && expr.chain_used().is_none_or(|chain| table.chains.contains_key(chain))
        && expr.counter_used().is_none_or(|counter| table.counters.contains(counter))
}

fn add_element(table: &mut NftTable, set: &str, element: &Element) -> Result<(), NftRefusal> {
    let spec = &table.sets.get(set).ok_or(NftRefusal::NotFound)?.spec;
    check_element(spec, element)?;
    if let Some(Data::Verdict(verdict)) = &element.value.data
        && verdict.target().is_some_and(|chain| !table.chains.contains_key(chain))
    {
        return Err(NftRefusal::NotFound);
    }
    let set = table.sets.get_mut(set).ok_or(NftRefusal::NotFound)?;
    match set.elements.get(&element.key) {
        Some(there) if there.data == element.value.data => return Ok(()),
        Some(_) => return Err(NftRefusal::Exists),
        None if overlaps(set, &element.key) => return Err(NftRefusal::Exists),
        None => {}
    }
    set.elements.insert(element.key.clone(), element.value.clone());
    Ok(())
}

fn check_element(spec: &SetSpec, element: &Element) -> Result<(), NftRefusal> {
    let len = spec.key_len();
    let lengths_fit = element.key.start.as_bytes().len() == len
        && element.key.end.as_ref().is_none_or(|end| spec.flags.interval && end.as_bytes().len() == len);
    let data_fits = match (&spec.map, &element.value.data) {
        (None, None) => true,
        (Some(super::MapType::Verdict), Some(Data::Verdict(_))) => true,
        (Some(super::MapType::Fields(fields)), Some(Data::Fields(data))) => {
            data.as_bytes().len() == super::fields_len(fields)
        }
        _ => false,
    };
    let timeout_fits = element.value.timeout_ms.is_none() || spec.flags.timeout;
    if lengths_fit && data_fits && timeout_fits { Ok(()) } else { Err(NftRefusal::Invalid) }
}

/// Ranges of one field may not overlap; the kernel keeps them in a tree of their ends.
fn overlaps(set: &Set, key: &ElementKey) -> bool {
    let ends = |key: &ElementKey| (key.start, key.end.as_deref().copied().unwrap_or(key.start));
    let (first, last) = ends(key);
    set.spec.flags.interval
        && set.spec.key.len() == 1
        && set.elements.keys().map(ends).any(|(start, end)| first <= end && start <= last)
}

/// The operations that turn `applied` into `wanted`, in an order the kernel takes; `None` is a table
/// that is not there. Elements of dynamic sets are left alone, as packets made them.
///
/// Within one batch no packet sees a state in between, so that rules of a changed chain are flushed and
/// written again. Only what changed is named: the size follows the change, not the table.
pub fn diff(applied: Option<&NftTable>, wanted: Option<&NftTable>) -> Vec<NftOp> {
    let empty = NftTable::default();
    let (mut ops, applied, wanted) = match (applied, wanted) {
        (None, None) => return vec![],
        (Some(_), None) => return vec![NftOp::DelTable],
        (None, Some(wanted)) => (vec![NftOp::AddTable], &empty, wanted),
        (Some(applied), Some(wanted)) => (vec![], applied, wanted),
    };
    let gone = Gone::new(applied, wanted);
    let rewritten = gone.rewritten_chains(applied, wanted);
    let to_flush = rewritten.iter().filter(|name| applied.chains.contains_key(**name));
    ops.extend(to_flush.map(|name| NftOp::FlushChain { chain: (*name).to_owned() }));
    gone.stale_elements(applied, wanted, &mut ops);
    ops.extend(gone.sets.iter().map(|set| NftOp::DelSet { set: (*set).to_owned() }));
    ops.extend(gone.chains.iter().map(|chain| NftOp::DelChain { chain: (*chain).to_owned() }));
    ops.extend(gone.counters.iter().map(|counter| NftOp::DelCounter { counter: (*counter).to_owned() }));
    add_objects(applied, wanted, &gone, &mut ops);
    gone.new_elements(applied, wanted, &mut ops);
    add_rules(applied, wanted, &rewritten, &mut ops);
    ops
}

/// What is removed, or removed and made again because a fixed property changed.
struct Gone<'a> {
    chains: BTreeSet<&'a str>,
    sets: BTreeSet<&'a str>,
    counters: BTreeSet<&'a str>,
}

impl<'a> Gone<'a> {
    fn new(applied: &'a NftTable, wanted: &NftTable) -> Self {
        let chain_stays =
            |name: &str, chain: &Chain| wanted.chains.get(name).is_some_and(|want| want.base == chain.base);
        let set_stays =
            |name: &str, set: &Set| wanted.sets.get(name).is_some_and(|want| want.spec == set.spec);
        Gone {
            chains: applied
                .chains
                .iter()
                .filter(|(name, chain)| !chain_stays(name, chain))
                .map(|(name, _)| name.as_str())
                .collect(),
            sets: applied
                .sets
                .iter()
                .filter(|(name, set)| !set_stays(name, set))
                .map(|(name, _)| name.as_str())
                .collect(),
            counters: applied
                .counters
                .iter()
                .filter(|counter| !wanted.counters.contains(*counter))
                .map(String::as_str)
                .collect(),
        }
    }

    fn touches(&self, expr: &Expr) -> bool {
        expr.set_used().is_some_and(|set| self.sets.contains(set))
            || expr.chain_used().is_some_and(|chain| self.chains.contains(chain))
            || expr.counter_used().is_some_and(|counter| self.counters.contains(counter))
    }

    fn touches_value(&self, value: &ElementValue) -> bool {
        let target = |verdict: &'_ Verdict| verdict.target().is_some_and(|chain| self.chains.contains(chain));
        matches!(&value.data, Some(Data::Verdict(verdict)) if target(verdict))
    }

    /// Chains whose rules are written anew: their rules changed other than by additions at the end, or
    /// refer to something that goes.
    fn rewritten_chains<'b>(&self, applied: &'b NftTable, wanted: &NftTable) -> BTreeSet<&'b str> {
        let stays = |name: &str, chain: &Chain| {
            let tainted = chain.rules.iter().flat_map(|rule| &rule.exprs).any(|expr| self.touches(expr));
            let extended = wanted.chains.get(name).is_some_and(|want| want.rules.starts_with(&chain.rules));
            !self.chains.contains(name) && !tainted && extended
        };
        applied
            .chains
            .iter()
            .filter(|(name, chain)| !stays(name, chain))
            .map(|(name, _)| name.as_str())
            .collect()
    }

    fn stale_elements(&self, applied: &NftTable, wanted: &NftTable, ops: &mut Vec<NftOp>) {
        for (name, set) in kept_sets(applied, self) {
            let want = wanted.sets.get(name).map(|set| &set.elements);
            let stale = |(key, value): &(&ElementKey, &ElementValue)| {
                self.touches_value(value) || want.and_then(|want| want.get(key)) != Some(value)
            };
            let keys: Vec<_> = set.elements.iter().filter(stale).map(|(key, _)| key.clone()).collect();
            if !keys.is_empty() {
                ops.push(NftOp::DelElements { set: name.clone(), keys });
            }
        }
    }

    fn new_elements(&self, applied: &NftTable, wanted: &NftTable, ops: &mut Vec<NftOp>) {
        for (name, set) in wanted.sets.iter().filter(|(_, set)| !set.spec.flags.dynamic) {
            let have = applied.sets.get(name).filter(|_| !self.sets.contains(name.as_str()));
            let have = have.map(|set| &set.elements);
            let missing = |(key, value): &(&ElementKey, &ElementValue)| {
                self.touches_value(value) || have.and_then(|have| have.get(key)) != Some(value)
            };
            let element = |(key, value): (&ElementKey, &ElementValue)| Element {
                key: key.clone(),
                value: value.clone(),
            };
            let elements: Vec<_> = set.elements.iter().filter(missing).map(element).collect();
            if !elements.is_empty() {
                ops.push(NftOp::AddElements { set: name.clone(), elements });
            }
        }
    }
}

fn kept_sets<'a>(applied: &'a NftTable, gone: &Gone<'_>) -> impl Iterator<Item = (&'a String, &'a Set)> {
    applied.sets.iter().filter(|(name, set)| !gone.sets.contains(name.as_str()) && !set.spec.flags.dynamic)
}

fn add_objects(applied: &NftTable, wanted: &NftTable, gone: &Gone<'_>, ops: &mut Vec<NftOp>) {
    let is_new = |there: bool, gone: bool| !there || gone;
    let chains = wanted
        .chains
        .iter()
        .filter(|(name, _)| is_new(applied.chains.contains_key(*name), gone.chains.contains(name.as_str())));
    ops.extend(chains.map(|(name, chain)| NftOp::AddChain { chain: name.clone(), base: chain.base }));
    let sets = wanted
        .sets
        .iter()
        .filter(|(name, _)| is_new(applied.sets.contains_key(*name), gone.sets.contains(name.as_str())));
    ops.extend(sets.map(|(name, set)| NftOp::AddSet { set: name.clone(), spec: set.spec.clone() }));
    let counters = wanted.counters.difference(&applied.counters);
    ops.extend(counters.map(|counter| NftOp::AddCounter { counter: counter.clone() }));
}

fn add_rules(applied: &NftTable, wanted: &NftTable, rewritten: &BTreeSet<&str>, ops: &mut Vec<NftOp>) {
    for (name, chain) in &wanted.chains {
        let kept = match applied.chains.get(name) {
            Some(have) if !rewritten.contains(name.as_str()) => have.rules.len(),
            _ => 0,
        };
        let rules = chain.rules.iter().skip(kept);
        ops.extend(rules.map(|rule| NftOp::AddRule { chain: name.clone(), rule: rule.clone() }));
    }
}
