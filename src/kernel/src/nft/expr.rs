//! Rule expressions to and from the wire: each has a name and its own attributes. Decoding is the
//! encoding's inverse on everything this program writes; anything else becomes `Expr::Other`.

use longshore_core::ruleset::nft::{
    CmpOp, CtDirection, Expr, LookupTarget, NatKind, Packed, Reg, RejectWith, Verdict,
};

use super::wire::{
    self, CMP_OPS, CT_KEYS, DYNSET_OPS, FIB_RESULTS, META_KEYS, NUMGEN_MODES, PAYLOAD_BASES, attr, number_of,
    reg_from, reg_number, value_of,
};
use crate::netlink::wire::{Attributes, Builder, Malformed};

const VERDICT_REGISTER: u32 = 0;
const LOOKUP_INVERT: u32 = 1;

/// Write an expression as one list element. Nothing is written for `Expr::Other`.
pub(super) fn encode(builder: &mut Builder, expr: &Expr) {
    builder.nest(attr::LIST_ELEM, |builder| {
        builder.str(attr::EXPR_NAME, name(expr));
        builder.nest(attr::EXPR_DATA, |builder| encode_data(builder, expr));
    });
}

fn name(expr: &Expr) -> &str {
    match expr {
        Expr::Meta { .. } | Expr::MetaSet { .. } => "meta",
        Expr::Payload { .. } => "payload",
        Expr::Cmp { .. } => "cmp",
        Expr::Range { .. } => "range",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
        Expr::Lookup { .. } => "lookup",
        Expr::Nat { .. } => "nat",
        Expr::Masquerade { .. } => "masq",
        Expr::Reject(_) => "reject",
        Expr::Ct { .. } | Expr::CtSet { .. } => "ct",
        Expr::Fib { .. } => "fib",
        Expr::Numgen { .. } => "numgen",
        Expr::Jhash { .. } => "hash",
        Expr::Counter => "counter",
        Expr::Dynset { .. } => "dynset",
        Expr::CounterRef { .. } => "objref",
        Expr::Notrack => "notrack",
        Expr::Other { name } => name,
    }
}

fn encode_data(builder: &mut Builder, expr: &Expr) {
    match expr {
        Expr::Meta { key, dst } => words(builder, &[(1, reg_number(*dst)), (2, number_of(&META_KEYS, key))]),
        Expr::MetaSet { key, src } => {
            words(builder, &[(2, number_of(&META_KEYS, key)), (3, reg_number(*src))])
        }
        Expr::Payload { base, offset, len, dst } => {
            let base = number_of(&PAYLOAD_BASES, base);
            words(builder, &[(1, reg_number(*dst)), (2, base), (3, *offset), (4, *len)]);
        }
        Expr::Cmp { src, op, value: data } => {
            words(builder, &[(1, reg_number(*src)), (2, number_of(&CMP_OPS, op))]);
            value(builder, 3, data);
        }
        Expr::Range { src, op, from, to } => {
            words(builder, &[(1, reg_number(*src)), (2, number_of(&CMP_OPS, op))]);
            value(builder, 3, from);
            value(builder, 4, to);
        }
        Expr::Bitwise { src, dst, mask, xor } => {
            let len = mask.as_bytes().len() as u32;
            words(builder, &[(1, reg_number(*src)), (2, reg_number(*dst)), (3, len)]);
            value(builder, 4, mask);
            value(builder, 5, xor);
        }
        Expr::Immediate { dst, value: data } => {
            words(builder, &[(1, reg_number(*dst))]);
            value(builder, 2, data);
        }
        Expr::Verdict(to) => {
            words(builder, &[(1, VERDICT_REGISTER)]);
            builder.nest(2, |builder| verdict(builder, to));
        }
        Expr::Lookup { set, src, target } => encode_lookup(builder, set, *src, *target),
        Expr::Nat { kind, ipv6, addr, port, flags } => {
            let kind = u32::from(*kind == NatKind::Dnat);
            words(builder, &[(1, kind), (2, if *ipv6 { 10 } else { 2 })]);
            addr.iter().for_each(|reg| words(builder, &[(3, reg_number(*reg))]));
            port.iter().for_each(|reg| words(builder, &[(5, reg_number(*reg))]));
            optional_flags(builder, 7, wire::nat_flag_bits(*flags));
        }
        Expr::Masquerade { flags } => optional_flags(builder, 1, wire::nat_flag_bits(*flags)),
        Expr::Reject(with) => {
            let (kind, code) = match with {
                RejectWith::Icmp(code) => (0, Some(*code)),
                RejectWith::TcpReset => (1, None),
                RejectWith::Icmpx(code) => (2, Some(*code)),
            };
            words(builder, &[(1, kind)]);
            code.iter().for_each(|code| builder.bytes(2, &[*code]));
        }
        Expr::Ct { key, direction, dst } => {
            words(builder, &[(1, reg_number(*dst)), (2, number_of(&CT_KEYS, key))]);
            direction.iter().for_each(|way| builder.bytes(3, &[u8::from(*way == CtDirection::Reply)]));
        }
        Expr::CtSet { key, src } => words(builder, &[(2, number_of(&CT_KEYS, key)), (4, reg_number(*src))]),
        Expr::Fib { selector, result, dst } => {
            let result = number_of(&FIB_RESULTS, result);
            words(builder, &[(1, reg_number(*dst)), (2, result), (3, wire::fib_bits(*selector))]);
        }
        Expr::Numgen { mode, modulus, offset, dst } => {
            let mode = number_of(&NUMGEN_MODES, mode);
            words(builder, &[(1, reg_number(*dst)), (2, *modulus), (3, mode), (4, *offset)]);
        }
        Expr::Jhash { src, len, modulus, seed, offset, dst } => {
            let registers = [(1, reg_number(*src)), (2, reg_number(*dst))];
            words(builder, &registers);
            words(builder, &[(3, *len), (4, *modulus), (5, *seed), (6, *offset), (7, 0)]);
        }
        Expr::Dynset { set, op, key, data, timeout_ms } => {
            builder.str(1, set);
            words(builder, &[(3, number_of(&DYNSET_OPS, op)), (4, reg_number(*key))]);
            data.iter().for_each(|reg| words(builder, &[(5, reg_number(*reg))]));
            timeout_ms.iter().for_each(|timeout| builder.be64(6, *timeout));
        }
        Expr::CounterRef { counter } => {
            words(builder, &[(1, wire::OBJECT_COUNTER)]);
            builder.str(2, counter);
        }
        Expr::Counter | Expr::Notrack | Expr::Other { .. } => {}
    }
}

fn encode_lookup(builder: &mut Builder, set: &str, src: Reg, target: LookupTarget) {
    builder.str(1, set);
    words(builder, &[(2, reg_number(src))]);
    match target {
        LookupTarget::Hit => {}
        LookupTarget::Miss => words(builder, &[(5, LOOKUP_INVERT)]),
        LookupTarget::Verdict => words(builder, &[(3, VERDICT_REGISTER)]),
        LookupTarget::Data(dst) => words(builder, &[(3, reg_number(dst))]),
    }
}

fn words(builder: &mut Builder, pairs: &[(u16, u32)]) {
    for (kind, word) in pairs {
        builder.be32(*kind, *word);
    }
}

fn optional_flags(builder: &mut Builder, kind: u16, bits: u32) {
    if bits != 0 {
        builder.be32(kind, bits);
    }
}

/// A value as `NFTA_DATA_VALUE` within the attribute `kind`.
pub(super) fn value(builder: &mut Builder, kind: u16, data: &Packed) {
    builder.nest(kind, |builder| builder.bytes(attr::DATA_VALUE, data.as_bytes()));
}

/// A verdict as `NFTA_DATA_VERDICT`.
pub(super) fn verdict(builder: &mut Builder, to: &Verdict) {
    builder.nest(attr::DATA_VERDICT, |builder| {
        builder.be32(attr::VERDICT_CODE, wire::verdict_code(to) as u32);
        if let Some(chain) = to.target() {
            builder.str(attr::VERDICT_CHAIN, chain);
        }
    });
}

/// Packets and bytes that went through a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CounterValue {
    /// Packets.
    pub packets: u64,
    /// Bytes, headers included.
    pub bytes: u64,
}

/// The attributes of one expression, by number, for look-ups while decoding.
struct Fields<'a>(Attributes<'a>);

impl<'a> Fields<'a> {
    fn word(&self, kind: u16) -> Result<Option<u32>, Malformed> {
        self.0.find(kind)?.map(|attribute| attribute.be32()).transpose()
    }

    fn long(&self, kind: u16) -> Result<Option<u64>, Malformed> {
        self.0.find(kind)?.map(|attribute| attribute.be64()).transpose()
    }

    fn byte(&self, kind: u16) -> Result<Option<u8>, Malformed> {
        self.0.find(kind)?.map(|attribute| attribute.u8()).transpose()
    }

    fn text(&self, kind: u16) -> Result<Option<String>, Malformed> {
        self.0.find(kind)?.map(|attribute| attribute.str().map(str::to_owned)).transpose()
    }

    fn reg(&self, kind: u16) -> Result<Option<Reg>, Malformed> {
        Ok(self.word(kind)?.and_then(reg_from))
    }

    fn of<T: Copy>(&self, kind: u16, table: &[(T, u32)]) -> Result<Option<T>, Malformed> {
        Ok(self.word(kind)?.and_then(|number| value_of(table, number)))
    }

    fn value(&self, kind: u16) -> Result<Option<Packed>, Malformed> {
        let Some(attribute) = self.0.find(kind)? else { return Ok(None) };
        read_value(attribute.nested())
    }
}

/// The `NFTA_DATA_VALUE` among these attributes; `None` also when it is longer than the model takes.
pub(super) fn read_value(attributes: Attributes<'_>) -> Result<Option<Packed>, Malformed> {
    Ok(attributes.find(attr::DATA_VALUE)?.and_then(|attribute| Packed::from_bytes(attribute.value)))
}

/// The `NFTA_DATA_VERDICT` among these attributes.
pub(super) fn read_verdict(attributes: Attributes<'_>) -> Result<Option<Verdict>, Malformed> {
    let Some(attribute) = attributes.find(attr::DATA_VERDICT)? else { return Ok(None) };
    let fields = Fields(attribute.nested());
    let Some(code) = fields.word(attr::VERDICT_CODE)? else { return Ok(None) };
    Ok(wire::verdict_from(code as i32, fields.text(attr::VERDICT_CHAIN)?.as_deref()))
}

/// Read one list element, with the figures of a counter.
pub(super) fn decode(element: Attributes<'_>) -> Result<(Expr, Option<CounterValue>), Malformed> {
    let name =
        element.find(attr::EXPR_NAME)?.ok_or(Malformed("expression without a name"))?.str()?.to_owned();
    let data = element.find(attr::EXPR_DATA)?.map_or(Attributes::new(&[]), |data| data.nested());
    let fields = Fields(data);
    if name == "counter" {
        return Ok((Expr::Counter, Some(read_counter(&fields)?)));
    }
    let expr = decode_match(&name, &fields)?.or(decode_action(&name, &fields)?);
    Ok((expr.unwrap_or(Expr::Other { name }), None))
}

fn read_counter(fields: &Fields<'_>) -> Result<CounterValue, Malformed> {
    Ok(CounterValue {
        packets: fields.long(attr::COUNTER_PACKETS)?.unwrap_or_default(),
        bytes: fields.long(attr::COUNTER_BYTES)?.unwrap_or_default(),
    })
}

/// The figures of a named counter from its `NFTA_OBJ_DATA`.
pub(super) fn read_counter_object(data: Attributes<'_>) -> Result<CounterValue, Malformed> {
    read_counter(&Fields(data))
}

/// Expressions that load and compare.
fn decode_match(name: &str, fields: &Fields<'_>) -> Result<Option<Expr>, Malformed> {
    Ok(match name {
        "meta" => decode_meta(fields)?,
        "payload" => {
            match (fields.of(2, &PAYLOAD_BASES)?, fields.word(3)?, fields.word(4)?, fields.reg(1)?) {
                (Some(base), Some(offset), Some(len), Some(dst)) => {
                    Some(Expr::Payload { base, offset, len, dst })
                }
                _ => None,
            }
        }
        "cmp" => match (fields.reg(1)?, fields.of(2, &CMP_OPS)?, fields.value(3)?) {
            (Some(src), Some(op), Some(value)) => Some(Expr::Cmp { src, op, value }),
            _ => None,
        },
        "range" => match (fields.reg(1)?, fields.of(2, &CMP_OPS)?, fields.value(3)?, fields.value(4)?) {
            (Some(src), Some(op @ (CmpOp::Eq | CmpOp::Neq)), Some(from), Some(to)) => {
                Some(Expr::Range { src, op, from, to })
            }
            _ => None,
        },
        // Operation 0 is the mask-and-xor form; shifts are not ours.
        "bitwise" if fields.word(6)?.unwrap_or_default() == 0 => {
            match (fields.reg(1)?, fields.reg(2)?, fields.value(4)?, fields.value(5)?) {
                (Some(src), Some(dst), Some(mask), Some(xor)) => Some(Expr::Bitwise { src, dst, mask, xor }),
                _ => None,
            }
        }
        "ct" => decode_ct(fields)?,
        "fib" => match (fields.word(3)?, fields.of(2, &FIB_RESULTS)?, fields.reg(1)?) {
            (Some(bits), Some(result), Some(dst)) if bits & !0x1f == 0 => {
                Some(Expr::Fib { selector: wire::fib_from(bits), result, dst })
            }
            _ => None,
        },
        "numgen" => match (fields.of(3, &NUMGEN_MODES)?, fields.word(2)?, fields.reg(1)?) {
            (Some(mode), Some(modulus), Some(dst)) => {
                Some(Expr::Numgen { mode, modulus, offset: fields.word(4)?.unwrap_or_default(), dst })
            }
            _ => None,
        },
        "hash" => decode_hash(fields)?,
        _ => None,
    })
}

fn decode_meta(fields: &Fields<'_>) -> Result<Option<Expr>, Malformed> {
    Ok(match (fields.of(2, &META_KEYS)?, fields.reg(1)?, fields.reg(3)?) {
        (Some(key), Some(dst), None) => Some(Expr::Meta { key, dst }),
        (Some(key), None, Some(src)) => Some(Expr::MetaSet { key, src }),
        _ => None,
    })
}

fn decode_ct(fields: &Fields<'_>) -> Result<Option<Expr>, Malformed> {
    let direction = match fields.byte(3)? {
        Some(0) => Some(CtDirection::Original),
        Some(_) => Some(CtDirection::Reply),
        None => None,
    };
    Ok(match (fields.of(2, &CT_KEYS)?, fields.reg(1)?, fields.reg(4)?) {
        (Some(key), Some(dst), None) => Some(Expr::Ct { key, direction, dst }),
        (Some(key), None, Some(src)) => Some(Expr::CtSet { key, src }),
        _ => None,
    })
}

fn decode_hash(fields: &Fields<'_>) -> Result<Option<Expr>, Malformed> {
    if fields.word(7)?.unwrap_or_default() != 0 {
        return Ok(None);
    }
    Ok(match (fields.reg(1)?, fields.reg(2)?, fields.word(3)?, fields.word(4)?, fields.word(5)?) {
        (Some(src), Some(dst), Some(len), Some(modulus), Some(seed)) => {
            let offset = fields.word(6)?.unwrap_or_default();
            Some(Expr::Jhash { src, len, modulus, seed, offset, dst })
        }
        _ => None,
    })
}

/// Expressions that decide and change.
fn decode_action(name: &str, fields: &Fields<'_>) -> Result<Option<Expr>, Malformed> {
    Ok(match name {
        "immediate" => decode_immediate(fields)?,
        "lookup" => decode_lookup(fields)?,
        "nat" => decode_nat(fields)?,
        "masq" => Some(Expr::Masquerade { flags: wire::nat_flags_from(fields.word(1)?.unwrap_or_default()) }),
        "reject" => match (fields.word(1)?, fields.byte(2)?) {
            (Some(0), Some(code)) => Some(Expr::Reject(RejectWith::Icmp(code))),
            (Some(1), _) => Some(Expr::Reject(RejectWith::TcpReset)),
            (Some(2), Some(code)) => Some(Expr::Reject(RejectWith::Icmpx(code))),
            _ => None,
        },
        "dynset" => match (fields.text(1)?, fields.of(3, &DYNSET_OPS)?, fields.reg(4)?) {
            (Some(set), Some(op), Some(key)) => {
                Some(Expr::Dynset { set, op, key, data: fields.reg(5)?, timeout_ms: fields.long(6)? })
            }
            _ => None,
        },
        "objref" => match (fields.word(1)?, fields.text(2)?) {
            (Some(wire::OBJECT_COUNTER), Some(counter)) => Some(Expr::CounterRef { counter }),
            _ => None,
        },
        "notrack" => Some(Expr::Notrack),
        _ => None,
    })
}

fn decode_immediate(fields: &Fields<'_>) -> Result<Option<Expr>, Malformed> {
    let Some(data) = fields.0.find(2)? else { return Ok(None) };
    if fields.word(1)? == Some(VERDICT_REGISTER) {
        return Ok(read_verdict(data.nested())?.map(Expr::Verdict));
    }
    Ok(match (fields.reg(1)?, read_value(data.nested())?) {
        (Some(dst), Some(value)) => Some(Expr::Immediate { dst, value }),
        _ => None,
    })
}

fn decode_lookup(fields: &Fields<'_>) -> Result<Option<Expr>, Malformed> {
    let (Some(set), Some(src)) = (fields.text(1)?, fields.reg(2)?) else { return Ok(None) };
    let inverted = fields.word(5)?.unwrap_or_default() & LOOKUP_INVERT != 0;
    let target = match (fields.word(3)?, inverted) {
        (None, false) => LookupTarget::Hit,
        (None, true) => LookupTarget::Miss,
        (Some(VERDICT_REGISTER), _) => LookupTarget::Verdict,
        (Some(number), _) => match reg_from(number) {
            Some(reg) => LookupTarget::Data(reg),
            None => return Ok(None),
        },
    };
    Ok(Some(Expr::Lookup { set, src, target }))
}

fn decode_nat(fields: &Fields<'_>) -> Result<Option<Expr>, Malformed> {
    let kind = match fields.word(1)? {
        Some(0) => NatKind::Snat,
        Some(1) => NatKind::Dnat,
        _ => return Ok(None),
    };
    let flags = wire::nat_flags_from(fields.word(7)?.unwrap_or_default());
    let ipv6 = fields.word(2)? == Some(10);
    Ok(Some(Expr::Nat { kind, ipv6, addr: fields.reg(3)?, port: fields.reg(5)?, flags }))
}
