//! A batch of operations as one nf_tables transaction: begin, one or more messages per operation, end.
//! Which operation a message belongs to is kept, so that the kernel's errors can be attributed.

use std::collections::BTreeSet;

use longshore_core::ruleset::nft::{
    BaseChain, Data, Element, ElementKey, ElementValue, Expr, FieldType, MapType, NftBatch, NftOp, Packed,
    Policy, Rule, SetSpec, TableKey, fields_len,
};

use super::expr;
use super::wire::{self, attr, kind, msg, set_flag};
use crate::netlink::wire::{Builder, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};

/// A nested attribute ends at 64 KiB; elements go into several messages long before.
const ELEMENTS_BYTES: usize = 32 * 1024;

/// A transaction ready to be sent.
#[derive(Debug)]
pub(super) struct Transaction {
    /// All messages.
    pub(super) bytes: Vec<u8>,
    /// Sequence number of the begin message; message `i` has `first + 1 + i`.
    pub(super) begin: u32,
    /// For each message between begin and end, the operation it belongs to.
    pub(super) op_of: Vec<usize>,
}

impl Transaction {
    /// Sequence number of the message whose acknowledgement ends the conversation.
    pub(super) fn last(&self) -> u32 {
        self.begin.wrapping_add(self.op_of.len() as u32)
    }

    /// The operation the message with this sequence number belongs to.
    pub(super) fn op(&self, seq: u32) -> Option<usize> {
        self.op_of.get(seq.wrapping_sub(self.begin).checked_sub(1)? as usize).copied()
    }
}

/// Encode a batch. `begin` is the sequence number of its first message, the following ones are used
/// up; `generation` makes the kernel refuse the batch when the ruleset changed since. `as_ends` are the
/// sets whose ranges lie in the kernel as two elements, see [`splits_ranges`].
pub(super) fn transaction(
    batch: &NftBatch,
    begin: u32,
    generation: Option<u32>,
    as_ends: &BTreeSet<String>,
) -> Transaction {
    let mut encoder = Encoder {
        builder: Builder::new(),
        op_of: Vec::new(),
        begin,
        table: &batch.table.name,
        header: wire::header(wire::family_number(batch.table.family)),
        next_set_id: 1,
        as_ends,
    };
    encoder.builder.begin(wire::BATCH_BEGIN, 0, begin, &wire::batch_header());
    if let Some(generation) = generation {
        encoder.builder.be32(wire::BATCH_GENID, generation);
    }
    encoder.builder.end();
    for (index, op) in batch.ops.iter().enumerate() {
        encoder.op(index, op);
    }
    // Only the last message asks for an acknowledgement: errors come in any case, and thousands of
    // acknowledgements would overrun the receive buffer.
    if !encoder.op_of.is_empty() {
        encoder.builder.add_flags(NLM_F_ACK);
    }
    let end = begin.wrapping_add(encoder.op_of.len() as u32 + 1);
    encoder.builder.begin(wire::BATCH_END, 0, end, &wire::batch_header());
    encoder.builder.end();
    Transaction { bytes: encoder.builder.as_bytes().to_vec(), begin, op_of: encoder.op_of }
}

struct Encoder<'a> {
    builder: Builder,
    op_of: Vec<usize>,
    begin: u32,
    table: &'a str,
    header: [u8; wire::HEADER_LEN],
    next_set_id: u32,
    as_ends: &'a BTreeSet<String>,
}

impl Encoder<'_> {
    fn message(&mut self, op: usize, command: u16, flags: u16, fill: impl FnOnce(&mut Builder)) {
        self.op_of.push(op);
        let seq = self.begin.wrapping_add(self.op_of.len() as u32);
        self.builder.begin(kind(command), flags, seq, &self.header);
        // Every object's first attribute is its table, and the table's own is its name.
        self.builder.str(attr::TABLE_NAME, self.table);
        fill(&mut self.builder);
        self.builder.end();
    }

    fn op(&mut self, index: usize, op: &NftOp) {
        match op {
            NftOp::AddTable => self.message(index, msg::NEWTABLE, NLM_F_CREATE, |_| {}),
            NftOp::DelTable => self.message(index, msg::DELTABLE, 0, |_| {}),
            NftOp::AddChain { chain, base } => self.message(index, msg::NEWCHAIN, NLM_F_CREATE, |builder| {
                builder.str(attr::CHAIN_NAME, chain);
                if let Some(base) = base {
                    base_chain(builder, base);
                }
            }),
            NftOp::DelChain { chain } => {
                self.message(index, msg::DELCHAIN, 0, |builder| builder.str(attr::CHAIN_NAME, chain));
            }
            // A deletion that names no rule means all of the chain's.
            NftOp::FlushChain { chain } => {
                self.message(index, msg::DELRULE, 0, |builder| builder.str(attr::RULE_CHAIN, chain));
            }
            NftOp::AddRule { chain, rule } => {
                self.message(index, msg::NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |builder| {
                    builder.str(attr::RULE_CHAIN, chain);
                    encode_rule(builder, rule);
                });
            }
            NftOp::AddSet { set, spec } => {
                let id = self.next_set_id;
                self.next_set_id += 1;
                self.message(index, msg::NEWSET, NLM_F_CREATE, |builder| {
                    builder.str(attr::SET_NAME, set);
                    encode_set(builder, spec, id);
                });
            }
            NftOp::DelSet { set } => {
                self.message(index, msg::DELSET, 0, |builder| builder.str(attr::SET_NAME, set));
            }
            NftOp::AddElements { set, elements } => {
                let as_ends = self.as_ends.contains(set);
                let encode = |builder: &mut Builder, element: &Element| {
                    encode_element(builder, &element.key, as_ends, |builder| {
                        encode_value(builder, &element.value);
                    });
                };
                self.elements(index, msg::NEWSETELEM, set, elements, encode);
            }
            NftOp::DelElements { set, keys } => {
                let as_ends = self.as_ends.contains(set);
                let encode = |builder: &mut Builder, key: &ElementKey| {
                    encode_element(builder, key, as_ends, |_| {});
                };
                self.elements(index, msg::DELSETELEM, set, keys, encode);
            }
            // A deletion that names no element means all of them.
            NftOp::FlushSet { set } => {
                self.message(index, msg::DELSETELEM, 0, |builder| builder.str(attr::LIST_SET, set));
            }
            NftOp::AddCounter { counter } => self.message(index, msg::NEWOBJ, NLM_F_CREATE, |builder| {
                builder.str(attr::OBJ_NAME, counter);
                builder.be32(attr::OBJ_TYPE, wire::OBJECT_COUNTER);
                builder.nest(attr::OBJ_DATA, |_| {});
            }),
            NftOp::DelCounter { counter } => self.message(index, msg::DELOBJ, 0, |builder| {
                builder.str(attr::OBJ_NAME, counter);
                builder.be32(attr::OBJ_TYPE, wire::OBJECT_COUNTER);
            }),
        }
    }

    fn elements<T>(
        &mut self,
        index: usize,
        command: u16,
        set: &str,
        mut rest: &[T],
        encode: impl Fn(&mut Builder, &T),
    ) {
        let flags = if command == msg::NEWSETELEM { NLM_F_CREATE } else { 0 };
        while !rest.is_empty() {
            let mut sent = 0;
            self.message(index, command, flags, |builder| {
                builder.str(attr::LIST_SET, set);
                let start = builder.len();
                let list = builder.begin_nest(attr::LIST_ELEMENTS);
                for element in rest {
                    encode(builder, element);
                    sent += 1;
                    if builder.len() - start > ELEMENTS_BYTES {
                        break;
                    }
                }
                builder.end_nest(list);
            });
            rest = &rest[sent..];
        }
    }
}

/// Ask for elements of a set; each that is there is answered by a message of its own.
pub(super) fn ask_elements(
    builder: &mut Builder,
    (table, set): (&TableKey, &str),
    keys: &[ElementKey],
    seq: u32,
) {
    let header = wire::header(wire::family_number(table.family));
    builder.begin(kind(msg::GETSETELEM), NLM_F_ACK, seq, &header);
    builder.str(attr::LIST_TABLE, &table.name);
    builder.str(attr::LIST_SET, set);
    builder.nest(attr::LIST_ELEMENTS, |builder| {
        keys.iter().for_each(|key| encode_element(builder, key, false, |_| {}));
    });
    builder.end();
}

fn base_chain(builder: &mut Builder, base: &BaseChain) {
    builder.nest(attr::CHAIN_HOOK, |builder| {
        builder.be32(attr::HOOK_NUMBER, wire::hook_number(base.hook));
        builder.be32(attr::HOOK_PRIORITY, base.priority as u32);
    });
    builder.be32(attr::CHAIN_POLICY, u32::from(base.policy == Policy::Accept));
    builder.str(attr::CHAIN_TYPE, base.kind.name());
}

/// Write a rule's expressions and comment.
pub(super) fn encode_rule(builder: &mut Builder, rule: &Rule) {
    builder.nest(attr::RULE_EXPRESSIONS, |builder| {
        for expression in &rule.exprs {
            expr::encode(builder, expression);
        }
    });
    if let Some(comment) = &rule.comment {
        let text: String = comment.chars().filter(|char| *char != '\0').take(MAX_COMMENT).collect();
        let mut userdata = vec![wire::UDATA_COMMENT, text.len() as u8 + 1];
        userdata.extend_from_slice(text.as_bytes());
        userdata.push(0);
        builder.bytes(attr::RULE_USERDATA, &userdata);
    }
}

/// Characters of a comment that are kept; nft allows 128 bytes, userdata as a whole 256.
const MAX_COMMENT: usize = 60;

/// Write a set's fixed properties.
pub(super) fn encode_set(builder: &mut Builder, spec: &SetSpec, id: u32) {
    let concatenated_ranges = spec.flags.interval && spec.key.len() > 1;
    let flags = [
        (spec.flags.interval, set_flag::INTERVAL),
        (spec.map.is_some(), set_flag::MAP),
        (spec.flags.timeout, set_flag::TIMEOUT),
        (spec.flags.dynamic, set_flag::EVAL),
        (concatenated_ranges, set_flag::CONCAT),
    ];
    builder.be32(attr::SET_FLAGS, flags.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum());
    builder.be32(attr::SET_KEY_TYPE, wire::type_number(&spec.key));
    builder.be32(attr::SET_KEY_LEN, spec.key_len() as u32);
    match &spec.map {
        Some(MapType::Verdict) => builder.be32(attr::SET_DATA_TYPE, wire::DATA_TYPE_VERDICT),
        Some(MapType::Fields(fields)) => {
            builder.be32(attr::SET_DATA_TYPE, wire::type_number(fields));
            builder.be32(attr::SET_DATA_LEN, fields_len(fields) as u32);
        }
        None => {}
    }
    if spec.size.is_some() || concatenated_ranges {
        builder.nest(attr::SET_DESC, |builder| {
            if let Some(size) = spec.size {
                builder.be32(attr::DESC_SIZE, size);
            }
            if concatenated_ranges {
                builder.nest(attr::DESC_CONCAT, |builder| {
                    for field in &spec.key {
                        let len = field.byte_len() as u32;
                        builder.nest(attr::LIST_ELEM, |builder| builder.be32(attr::FIELD_LEN, len));
                    }
                });
            }
        });
    }
    if let Some(timeout) = spec.timeout_ms {
        builder.be64(attr::SET_TIMEOUT, timeout);
    }
    let data: &[FieldType] = match &spec.map {
        Some(MapType::Fields(fields)) => fields,
        _ => &[],
    };
    let userdata = wire::set_userdata(&spec.key, data);
    if !userdata.is_empty() {
        builder.bytes(attr::SET_USERDATA, &userdata);
    }
    builder.be32(attr::SET_ID, id);
}

fn encode_element(builder: &mut Builder, key: &ElementKey, as_ends: bool, value: impl FnOnce(&mut Builder)) {
    builder.nest(attr::LIST_ELEM, |builder| {
        expr::value(builder, attr::ELEM_KEY, &key.start);
        if let Some(end) = key.end.as_deref().filter(|_| !as_ends) {
            expr::value(builder, attr::ELEM_KEY_END, end);
        }
        value(builder);
    });
    if as_ends && let Some(behind) = next(key.end.as_deref().unwrap_or(&key.start)) {
        builder.nest(attr::LIST_ELEM, |builder| {
            expr::value(builder, attr::ELEM_KEY, &behind);
            builder.be32(attr::ELEM_FLAGS, wire::ELEM_INTERVAL_END);
        });
    }
}

fn encode_value(builder: &mut Builder, value: &ElementValue) {
    match &value.data {
        Some(Data::Fields(data)) => expr::value(builder, attr::ELEM_DATA, data),
        Some(Data::Verdict(to)) => builder.nest(attr::ELEM_DATA, |builder| expr::verdict(builder, to)),
        None => {}
    }
    if let Some(timeout) = value.timeout_ms {
        builder.be64(attr::ELEM_TIMEOUT, timeout);
    }
}

/// Whether ranges of such a set lie in the kernel as two elements, the first value and the one behind
/// the last (`nft_set_rbtree.c`); ranges of several fields are one element (`nft_set_pipapo.c`).
pub(super) fn splits_ranges(spec: &SetSpec) -> bool {
    spec.flags.interval && spec.key.len() == 1
}

/// The value behind this one in byte order; `None` behind the last.
pub(super) fn next(value: &Packed) -> Option<Packed> {
    let mut bytes = value.as_bytes().to_vec();
    for byte in bytes.iter_mut().rev() {
        let (sum, carried) = byte.overflowing_add(1);
        *byte = sum;
        if !carried {
            return Packed::from_bytes(&bytes);
        }
    }
    None
}

/// Whether every expression of a batch's rules can be encoded; the first that cannot is named.
pub(super) fn unsupported(batch: &NftBatch) -> Option<(usize, String)> {
    batch.ops.iter().enumerate().find_map(|(index, op)| match op {
        NftOp::AddRule { rule, .. } => rule.exprs.iter().find_map(|expr| match expr {
            Expr::Other { name } => Some((index, name.clone())),
            _ => None,
        }),
        _ => None,
    })
}
