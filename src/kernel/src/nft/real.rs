//! `Nft` on a netlink socket.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use longshore_core::ruleset::nft::{
    Chain, Element, ElementKey, ElementValue, NftBatch, NftOp, NftTable, Set, SetSpec, TableKey,
};
use nix::errno::Errno;

use super::decode::{self, RawElement};
use super::encode::{self, Transaction};
use super::watch::{Touched, Watch};
use super::wire::{self, attr, kind, msg};
use super::{CounterValue, Guess, Nft, NftDump, NftError};
use crate::netlink::socket::parse_ack;
use crate::netlink::wire::{Builder, NLM_F_ACK, NLM_F_DUMP, NLMSG_ERROR, RawMessage};
use crate::netlink::{NetlinkError, NetlinkSocket, Refusal, SharedSocket};

/// A dump takes several requests; when the ruleset changes in between it is made so often at most. The
/// last is taken as it is: where others never rest it is their tables that change, and who touches ours
/// is told by [`Nft::touched_by_others`].
const DUMP_ATTEMPTS: u32 = 5;

/// nf_tables of the network namespace it was opened in.
#[derive(Debug, Clone)]
pub struct RealNft {
    socket: SharedSocket,
    memory: Arc<Mutex<Memory>>,
    /// The socket's port: what is committed by it is our own.
    port: u32,
    watch: Arc<tokio::sync::Mutex<Option<Watch>>>,
}

/// Whether the ranges of a set are written as two elements, by table and set. Asked once per set, since
/// an operation on elements does not say.
type KnownSets = BTreeMap<(TableKey, String), bool>;

/// What is known of the ruleset without asking.
#[derive(Debug, Default)]
struct Memory {
    sets: KnownSets,
    /// The ruleset's generation if nobody but us committed since a whole dump; `None` before there was one.
    generation: Option<u32>,
}

/// What of a table is read, and how.
#[derive(Debug)]
struct Reading {
    /// Sets whose elements are not.
    leave_out: BTreeSet<String>,
    guess: Guess,
}

impl RealNft {
    /// Open nf_tables of the calling thread's network namespace.
    pub fn open() -> Result<Self, NftError> {
        let mut socket = NetlinkSocket::open(wire::NETLINK_NETFILTER).map_err(NftError::Unavailable)?;
        generation(&mut socket).map_err(NftError::Unavailable)?;
        let port = socket.port();
        Ok(RealNft { socket: SharedSocket::new(socket), memory: Arc::default(), port, watch: Arc::default() })
    }

    /// Begin to hear of other programs' commits.
    fn listen(&self) -> Result<Watch, NetlinkError> {
        // Held, so that no commit of ours is under way: the generation would be one ahead.
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut watch = Watch::open(self.port)?;
        let now = generation(&mut NetlinkSocket::open(wire::NETLINK_NETFILTER)?)?;
        if memory.generation.is_some_and(|ours| ours != now) {
            watch.missed_something();
        }
        Ok(watch)
    }

    async fn read_table(&self, table: &TableKey, reading: Reading) -> Result<NftDump, NftError> {
        let (what, table) = (format!("table {table}"), table.clone());
        let memory = Arc::clone(&self.memory);
        let conversation = move |socket: &mut NetlinkSocket| {
            let dump = dump_consistently(socket, &table, &reading)?;
            if reading.leave_out.is_empty() {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                memory.generation.get_or_insert(dump.generation);
            }
            Ok(dump)
        };
        self.read(what, conversation).await
    }

    async fn read<T: Send + 'static>(
        &self,
        what: String,
        conversation: impl FnOnce(&mut NetlinkSocket) -> Result<T, NetlinkError> + Send + 'static,
    ) -> Result<T, NftError> {
        let outcome = self.socket.run(conversation).await.and_then(|result| result);
        outcome.map_err(|source| NftError::Read { what, source })
    }
}

#[async_trait]
impl Nft for RealNft {
    async fn apply(&self, batch: &NftBatch, generation: Option<u32>) -> Result<(), NftError> {
        if let Some((index, name)) = encode::unsupported(batch) {
            let op = batch.ops[index].to_string();
            return Err(NftError::Unsupported { table: batch.table.clone(), op, name });
        }
        if batch.ops.is_empty() {
            return Ok(());
        }
        let owned = batch.clone();
        let memory = Arc::clone(&self.memory);
        let outcome = self
            .socket
            .run(move |socket| {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                commit(socket, &mut memory, &owned, generation)
            })
            .await;
        outcome.unwrap_or_else(|source| Err(NftError::NoAnswer { table: batch.table.clone(), source }))
    }

    async fn dump(&self, table: &TableKey, leave_out: &[&str]) -> Result<NftDump, NftError> {
        let leave_out = leave_out.iter().map(|set| (*set).to_owned()).collect();
        self.read_table(table, Reading { leave_out, guess: Guess::new() }).await
    }

    async fn dump_guessed(&self, table: &TableKey, guess: Guess) -> Result<NftDump, NftError> {
        self.read_table(table, Reading { leave_out: BTreeSet::new(), guess }).await
    }

    async fn elements(
        &self,
        table: &TableKey,
        set: &str,
        keys: &[ElementKey],
    ) -> Result<Vec<Option<ElementValue>>, NftError> {
        let what = format!("{} elements of set {set} of table {table}", keys.len());
        let (table, set, keys) = (table.clone(), set.to_owned(), keys.to_vec());
        self.read(what, move |socket| single_elements(socket, &table, &set, &keys)).await
    }

    async fn tables(&self) -> Result<Vec<TableKey>, NftError> {
        self.read("tables".to_owned(), list_tables).await
    }

    async fn generation(&self) -> Result<u32, NftError> {
        self.read("generation".to_owned(), generation).await
    }

    async fn touched_by_others(&self, name: &str) -> Result<Touched, NftError> {
        let failed = |source| NftError::Read { what: "commits of other programs".to_owned(), source };
        let mut watch = self.watch.lock().await;
        let watch = match &mut *watch {
            Some(watch) => watch,
            none => none.insert(self.listen().map_err(failed)?),
        };
        watch.next(name).await.map_err(failed)
    }
}

fn commit(
    socket: &mut NetlinkSocket,
    memory: &mut Memory,
    batch: &NftBatch,
    generation: Option<u32>,
) -> Result<(), NftError> {
    let no_answer = |source| NftError::NoAnswer { table: batch.table.clone(), source };
    let as_ends = sets_as_ends(socket, &mut memory.sets, batch).map_err(no_answer)?;
    // Of an answer that never comes it is not known what it was.
    let before = memory.generation.take();
    let transaction = encode::transaction(batch, socket.next_seq(), generation, &as_ends);
    socket.skip_seqs(transaction.op_of.len() as u32 + 1);
    socket.reserve(transaction.bytes.len()).map_err(no_answer)?;
    socket.send(&transaction.bytes).map_err(no_answer)?;
    let outcome = answer(socket, &transaction).map_err(no_answer)?;
    if let Err((index, source)) = outcome {
        memory.generation = before;
        return Err(match (index, source.errno) {
            (_, Errno::ERESTART) => NftError::Changed { table: batch.table.clone() },
            (Some(index), _) => NftError::refused(batch, index, source),
            (None, _) => NftError::Transaction { table: batch.table.clone(), ops: batch.ops.len(), source },
        });
    }
    memory.generation = before.map(following);
    remember(&mut memory.sets, batch);
    Ok(())
}

/// What the kernel said of a transaction: taken, or the first refusal and the operation it is about.
type Outcome = Result<(), (Option<usize>, Refusal)>;

fn answer(socket: &mut NetlinkSocket, transaction: &Transaction) -> Result<Outcome, NetlinkError> {
    let mut first: Option<(Option<usize>, Refusal)> = None;
    let ended = Cell::new(false);
    let mut read = |message: RawMessage<'_>| {
        let within = message.seq.wrapping_sub(transaction.begin) as usize <= transaction.op_of.len() + 1;
        if message.kind != NLMSG_ERROR || !within {
            return Ok(()); // A late answer to an earlier, abandoned request.
        }
        if let Err(refusal) = parse_ack(&message)? {
            first.get_or_insert((transaction.op(message.seq), refusal));
        }
        // An error of the begin message means that nothing else of the batch is answered.
        let last = message.seq == transaction.last() || message.seq == transaction.begin;
        ended.set(ended.get() || last);
        Ok(())
    };
    loop {
        match socket.receive(&mut read) {
            Ok(()) if ended.get() => break,
            Ok(()) => {}
            // Only a refused batch has more answers than the buffer holds; those that arrived tell why.
            Err(NetlinkError::Overrun) => {
                while socket.receive_waiting(&mut read)? {}
                return Ok(Err(first.ok_or(NetlinkError::Overrun)?));
            }
            Err(err) => return Err(err),
        }
    }
    Ok(first.map_or(Ok(()), Err))
}

/// The sets of a batch's elements whose ranges are written as two elements.
fn sets_as_ends(
    socket: &mut NetlinkSocket,
    known: &mut KnownSets,
    batch: &NftBatch,
) -> Result<BTreeSet<String>, NetlinkError> {
    let mut as_ends = BTreeSet::new();
    let mut made = BTreeMap::new();
    for op in &batch.ops {
        match op {
            NftOp::AddSet { set, spec } => {
                made.insert(set.clone(), encode::splits_ranges(spec));
            }
            NftOp::AddElements { set, .. } | NftOp::DelElements { set, .. } => {
                let key = (batch.table.clone(), set.clone());
                let splits = match made.get(set).or_else(|| known.get(&key)) {
                    Some(splits) => *splits,
                    None => {
                        let spec = sets(socket, &batch.table)?.remove(set);
                        let splits = spec.as_ref().is_some_and(encode::splits_ranges);
                        if spec.is_some() {
                            known.insert(key, splits);
                        }
                        splits
                    }
                };
                if splits {
                    as_ends.insert(set.clone());
                }
            }
            _ => {}
        }
    }
    Ok(as_ends)
}

/// The generation after one more commit; the kernel leaves 0 out (`nf_tables_commit`).
fn following(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

fn remember(known: &mut KnownSets, batch: &NftBatch) {
    for op in &batch.ops {
        match op {
            NftOp::AddSet { set, spec } => {
                known.insert((batch.table.clone(), set.clone()), encode::splits_ranges(spec));
            }
            NftOp::DelSet { set } => {
                known.remove(&(batch.table.clone(), set.clone()));
            }
            NftOp::DelTable => known.retain(|(table, _), _| *table != batch.table),
            _ => {}
        }
    }
}

fn generation(socket: &mut NetlinkSocket) -> Result<u32, NetlinkError> {
    let mut generation = None;
    socket.request(
        |builder, seq| {
            builder.begin(kind(msg::GETGEN), NLM_F_ACK, seq, &wire::header(0));
            builder.end();
        },
        |message| {
            generation = Some(decode::parse_generation(message.payload)?);
            Ok(())
        },
    )?;
    generation.ok_or(NetlinkError::Malformed("no generation in the answer"))
}

fn list_tables(socket: &mut NetlinkSocket) -> Result<Vec<TableKey>, NetlinkError> {
    let tables = list(socket, msg::GETTABLE, 0, |_| {}, decode::parse_table)?;
    Ok(tables.into_iter().flatten().collect())
}

fn dump_consistently(
    socket: &mut NetlinkSocket,
    table: &TableKey,
    reading: &Reading,
) -> Result<NftDump, NetlinkError> {
    let mut attempt = 1;
    loop {
        let before = generation(socket)?;
        let dump = dump(socket, table, reading, before);
        if generation(socket)? == before || attempt == DUMP_ATTEMPTS {
            return dump;
        }
        attempt += 1;
    }
}

fn dump(
    socket: &mut NetlinkSocket,
    key: &TableKey,
    reading: &Reading,
    generation: u32,
) -> Result<NftDump, NetlinkError> {
    let mut dump =
        NftDump { table: None, generation, rule_counters: BTreeMap::new(), counters: BTreeMap::new() };
    if !list_tables(socket)?.contains(key) {
        return Ok(dump);
    }
    let family = wire::family_number(key.family);
    let mut table = NftTable::default();
    for (of, name, base) in list(socket, msg::GETCHAIN, family, |_| {}, decode::parse_chain)? {
        if of == key.name {
            table.chains.insert(name, Chain { base, rules: vec![] });
        }
    }
    let in_table = |builder: &mut Builder| builder.str(attr::RULE_TABLE, &key.name);
    for (chain, rule, counter) in list(socket, msg::GETRULE, family, in_table, decode::parse_rule)? {
        let Some(in_chain) = table.chains.get_mut(&chain) else { continue };
        if let Some(figures) = counter {
            dump.rule_counters.insert((chain, in_chain.rules.len()), figures);
        }
        in_chain.rules.push(rule);
    }
    let counts = if reading.guess.is_empty() { BTreeMap::new() } else { counts(socket, key)? };
    for (name, spec) in sets(socket, key)? {
        // What packets put into a set comes and goes, and can be more than all the rest.
        let elements = match spec.flags.dynamic || reading.leave_out.contains(&name) {
            true => BTreeMap::new(),
            false => match guessed(socket, (key, &name, &spec), reading, &counts)? {
                Some(all) => all,
                None => elements(socket, key, &name, &spec)?,
            },
        };
        table.sets.insert(name, Set { elements, ..Set::new(spec) });
    }
    for (name, figures) in
        list(socket, msg::GETOBJ, family, in_table, decode::parse_counter)?.into_iter().flatten()
    {
        table.counters.insert(name.clone());
        dump.counters.insert(name, figures);
    }
    dump.table = Some(table);
    Ok(dump)
}

fn sets(socket: &mut NetlinkSocket, table: &TableKey) -> Result<BTreeMap<String, SetSpec>, NetlinkError> {
    let family = wire::family_number(table.family);
    let in_table = |builder: &mut Builder| builder.str(attr::SET_TABLE, &table.name);
    match list(socket, msg::GETSET, family, in_table, decode::parse_set) {
        Ok(sets) => Ok(sets.into_iter().flatten().collect()),
        // No such table: a batch that makes elements in it is told so by the kernel.
        Err(NetlinkError::Refused(refusal)) if refusal.errno == Errno::ENOENT => Ok(BTreeMap::new()),
        Err(err) => Err(err),
    }
}

fn counts(socket: &mut NetlinkSocket, table: &TableKey) -> Result<BTreeMap<String, u32>, NetlinkError> {
    let in_table = |builder: &mut Builder| builder.str(attr::SET_TABLE, &table.name);
    let family = wire::family_number(table.family);
    Ok(list(socket, msg::GETSET, family, in_table, decode::parse_count)?.into_iter().flatten().collect())
}

/// All elements of a set by a guess of their keys; `None` where they may be more than these. What the kernel
/// counts is all there is but a catch-all element, which is none of the model's. It counts an element that
/// is written or taken out when that is committed, and whether there was a commit meanwhile is asked after
/// the whole dump.
fn guessed(
    socket: &mut NetlinkSocket,
    (table, set, spec): (&TableKey, &str, &SetSpec),
    reading: &Reading,
    counts: &BTreeMap<String, u32>,
) -> Result<Option<BTreeMap<ElementKey, ElementValue>>, NetlinkError> {
    let (Some(keys), Some(count)) = (reading.guess.get(set), counts.get(set)) else { return Ok(None) };
    let count = *count as usize;
    // Ranges may be two elements each, and what times out goes without a commit.
    if spec.flags.interval || spec.flags.timeout || keys.len() < count {
        return Ok(None);
    }
    let mut all = BTreeMap::new();
    if count == 0 {
        return Ok(Some(all));
    }
    let mut may_miss = keys.len() - count;
    for keys in keys.chunks(ASKED_BEFORE_GIVING_UP) {
        let found = single_elements(socket, table, set, keys)?;
        let missing = found.iter().filter(|value| value.is_none()).count();
        let Some(rest) = may_miss.checked_sub(missing) else { return Ok(None) };
        may_miss = rest;
        let found = keys.iter().cloned().zip(found);
        all.extend(found.filter_map(|(key, value)| Some((key, value?))));
    }
    Ok((all.len() == count).then_some(all))
}

fn elements(
    socket: &mut NetlinkSocket,
    table: &TableKey,
    set: &str,
    spec: &SetSpec,
) -> Result<BTreeMap<ElementKey, ElementValue>, NetlinkError> {
    let of_set = |builder: &mut Builder| {
        builder.str(attr::LIST_TABLE, &table.name);
        builder.str(attr::LIST_SET, set);
    };
    let family = wire::family_number(table.family);
    let raw: Vec<RawElement> = list(socket, msg::GETSETELEM, family, of_set, decode::parse_elements)?
        .into_iter()
        .flatten()
        .collect();
    let elements = if encode::splits_ranges(spec) {
        decode::join_ranges(raw)
    } else {
        raw.into_iter().map(|raw| raw.element).collect()
    };
    // The kernel says the set's own time-out for every element; the model has it once.
    let own_timeout = |mut element: Element| {
        element.value.timeout_ms = element.value.timeout_ms.filter(|own| Some(*own) != spec.timeout_ms);
        (element.key, element.value)
    };
    Ok(elements.into_iter().map(own_timeout).collect())
}

/// A guess is known to be wrong when too many of its keys are missing; looked at so often.
const ASKED_BEFORE_GIVING_UP: usize = 1024;

/// As many elements are asked for in one request: their answers together fill a quarter of the receive
/// buffer, which holds 208 KiB by default.
const ASKED_TOGETHER: usize = 64;

/// Of the elements in one request the kernel stops at the first that is not there (`nf_tables_getsetelem`);
/// what comes behind it is asked for anew.
fn single_elements(
    socket: &mut NetlinkSocket,
    table: &TableKey,
    set: &str,
    keys: &[ElementKey],
) -> Result<Vec<Option<ElementValue>>, NetlinkError> {
    let mut found = Vec::with_capacity(keys.len());
    while found.len() < keys.len() {
        let end = keys.len().min(found.len() + ASKED_TOGETHER);
        let asked = &keys[found.len()..end];
        let outcome = socket.request(
            |builder, seq| encode::ask_elements(builder, (table, set), asked, seq),
            |message| {
                let answer = decode::parse_elements(message.payload)?.into_iter().next();
                // A range is found by any value in it.
                let key = keys.get(found.len());
                let same = |element: &Element| key == Some(&element.key);
                found.push(answer.map(|raw| raw.element).filter(same).map(|element| element.value));
                Ok(())
            },
        );
        match outcome {
            Ok(()) if found.len() < end => {
                return Err(NetlinkError::Malformed("fewer elements than were asked for"));
            }
            Ok(()) => {}
            Err(NetlinkError::Refused(refusal)) if refusal.errno == Errno::ENOENT => found.push(None),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn list<T>(
    socket: &mut NetlinkSocket,
    command: u16,
    family: u8,
    filter: impl Fn(&mut Builder),
    parse: impl Fn(&[u8]) -> Result<T, crate::netlink::wire::Malformed>,
) -> Result<Vec<T>, NetlinkError> {
    let mut attempt = 1;
    loop {
        let (objects, consistent) = socket.dump_once(
            |builder, seq| {
                builder.begin(kind(command), NLM_F_DUMP, seq, &wire::header(family));
                filter(builder);
                builder.end();
            },
            Vec::new(),
            |objects, message| {
                objects.push(parse(message.payload)?);
                Ok(())
            },
        )?;
        if consistent || attempt == DUMP_ATTEMPTS {
            return Ok(objects);
        }
        attempt += 1;
    }
}

/// Figures that only move by traffic, for tests of the fake against the real thing.
impl NftDump {
    /// The dump without them.
    pub fn without_figures(mut self) -> Self {
        self.rule_counters.values_mut().for_each(|figures| *figures = CounterValue::default());
        self.counters.values_mut().for_each(|figures| *figures = CounterValue::default());
        self
    }
}
