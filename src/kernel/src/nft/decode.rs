//! Tables, chains, rules, sets and elements read back from the kernel into the model. Every `parse_*`
//! takes arbitrary bytes and never panics; an object this program does not model is `None`, or has its
//! unknown parts named.

use longshore_core::ruleset::nft::{
    BaseChain, Data, Element, ElementKey, ElementValue, FieldType, MapType, Packed, Policy, Rule, SetFlags,
    SetSpec, TableKey,
};

use super::expr::{self, CounterValue};
use super::wire::{self, attr, set_flag};
use crate::netlink::wire::{Attributes, Malformed};

fn attributes(payload: &[u8]) -> Result<(u8, Attributes<'_>), Malformed> {
    let family = *payload.first().ok_or(Malformed("message without a family header"))?;
    Ok((family, Attributes::behind(payload, wire::HEADER_LEN)?))
}

fn text(attributes: &Attributes<'_>, kind: u16) -> Result<String, Malformed> {
    let attribute = attributes.find(kind)?.ok_or(Malformed("object without its name"))?;
    attribute.str().map(str::to_owned)
}

/// A table's identity; `None` for a family this program does not use.
pub fn parse_table(payload: &[u8]) -> Result<Option<TableKey>, Malformed> {
    let (family, attributes) = attributes(payload)?;
    let name = text(&attributes, attr::TABLE_NAME)?;
    Ok(wire::family_from(family).map(|family| TableKey { family, name }))
}

/// Family and generation: the number changes with every committed batch.
pub fn parse_generation(payload: &[u8]) -> Result<u32, Malformed> {
    let (_, attributes) = attributes(payload)?;
    attributes.find(attr::GEN_ID)?.ok_or(Malformed("generation without a number"))?.be32()
}

/// A chain: its table, its name, and what makes it a base chain.
pub fn parse_chain(payload: &[u8]) -> Result<(String, String, Option<BaseChain>), Malformed> {
    let (_, attributes) = attributes(payload)?;
    let table = text(&attributes, attr::CHAIN_TABLE)?;
    let name = text(&attributes, attr::CHAIN_NAME)?;
    let Some(hook) = attributes.find(attr::CHAIN_HOOK)? else { return Ok((table, name, None)) };
    let hook = hook.nested();
    let number = hook.find(attr::HOOK_NUMBER)?.ok_or(Malformed("hook without a number"))?.be32()?;
    let priority =
        hook.find(attr::HOOK_PRIORITY)?.ok_or(Malformed("hook without a priority"))?.be32()? as i32;
    let kind = wire::chain_type_from(&text(&attributes, attr::CHAIN_TYPE)?);
    let policy = match attributes.find(attr::CHAIN_POLICY)?.map(|policy| policy.be32()).transpose()? {
        Some(0) => Policy::Drop,
        _ => Policy::Accept,
    };
    let (Some(hook), Some(kind)) = (wire::hook_from(number), kind) else {
        return Err(Malformed("base chain of an unknown hook or type"));
    };
    Ok((table, name, Some(BaseChain { kind, hook, priority, policy })))
}

/// A rule, the chain it is in, and the figures of its counter.
pub fn parse_rule(payload: &[u8]) -> Result<(String, Rule, Option<CounterValue>), Malformed> {
    let (_, attributes) = attributes(payload)?;
    let chain = text(&attributes, attr::RULE_CHAIN)?;
    let mut rule = Rule::default();
    let mut counter = None;
    if let Some(list) = attributes.find(attr::RULE_EXPRESSIONS)? {
        for element in list.nested() {
            let (expr, figures) = expr::decode(element?.nested())?;
            rule.exprs.push(expr);
            counter = counter.or(figures);
        }
    }
    rule.comment = attributes.find(attr::RULE_USERDATA)?.and_then(|userdata| comment(userdata.value));
    Ok((chain, rule, counter))
}

fn comment(userdata: &[u8]) -> Option<String> {
    let value = wire::userdata_value(userdata, wire::UDATA_COMMENT)?;
    String::from_utf8(value.strip_suffix(&[0]).unwrap_or(value).to_vec()).ok()
}

/// A set or map; `None` for an anonymous one, an object map, or types this program does not write.
pub fn parse_set(payload: &[u8]) -> Result<Option<(String, SetSpec)>, Malformed> {
    let (_, attributes) = attributes(payload)?;
    let name = text(&attributes, attr::SET_NAME)?;
    let word = |kind| attributes.find(kind)?.map(|attribute| attribute.be32()).transpose();
    let flags = word(attr::SET_FLAGS)?.unwrap_or_default();
    let own = attributes.find(attr::SET_USERDATA)?.and_then(|userdata| wire::own_types(userdata.value));
    // Userdata that contradicts the types is not ours.
    let fields = |number: u32, own: Option<Vec<FieldType>>| {
        own.filter(|own| wire::type_number(own) == number).or_else(|| wire::fields_from(number))
    };
    let (own_key, own_data) = own.unzip();
    let key = word(attr::SET_KEY_TYPE)?.and_then(|number| fields(number, own_key));
    let Some(key) = key.filter(|_| flags & (set_flag::ANONYMOUS | set_flag::OBJECT) == 0) else {
        return Ok(None);
    };
    let map = match (flags & set_flag::MAP != 0, word(attr::SET_DATA_TYPE)?) {
        (false, _) => None,
        (true, Some(wire::DATA_TYPE_VERDICT)) => Some(MapType::Verdict),
        (true, number) => match number.and_then(|number| fields(number, own_data)) {
            Some(fields) => Some(MapType::Fields(fields)),
            None => return Ok(None),
        },
    };
    let size = match attributes.find(attr::SET_DESC)? {
        Some(desc) => desc.nested().find(attr::DESC_SIZE)?.map(|size| size.be32()).transpose()?,
        None => None,
    };
    let timeout = attributes.find(attr::SET_TIMEOUT)?.map(|timeout| timeout.be64()).transpose()?;
    let flags = SetFlags {
        interval: flags & set_flag::INTERVAL != 0,
        timeout: flags & set_flag::TIMEOUT != 0,
        dynamic: flags & set_flag::EVAL != 0,
    };
    let timeout_ms = timeout.filter(|timeout| *timeout > 0);
    Ok(Some((name, SetSpec { key, map, flags, timeout_ms, size })))
}

/// How many elements the kernel counts in a set, where it says so: newer kernels do (`NFTA_SET_COUNT`).
pub fn parse_count(payload: &[u8]) -> Result<Option<(String, u32)>, Malformed> {
    let (_, attributes) = attributes(payload)?;
    let Some(count) = attributes.find(attr::SET_COUNT)? else { return Ok(None) };
    Ok(Some((text(&attributes, attr::SET_NAME)?, count.be32()?)))
}

/// An element as it lies in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawElement {
    /// The element.
    pub element: Element,
    /// Whether it is only the value behind a range.
    pub ends_range: bool,
}

/// The elements of one message of a set's dump; those with keys longer than the model takes, and the
/// catch-all element, are left out.
pub fn parse_elements(payload: &[u8]) -> Result<Vec<RawElement>, Malformed> {
    let (_, attributes) = attributes(payload)?;
    let Some(list) = attributes.find(attr::LIST_ELEMENTS)? else { return Ok(vec![]) };
    let mut elements = Vec::new();
    for element in list.nested() {
        elements.extend(parse_element(element?.nested())?);
    }
    Ok(elements)
}

fn parse_element(attributes: Attributes<'_>) -> Result<Option<RawElement>, Malformed> {
    let Some(key) = attributes.find(attr::ELEM_KEY)? else { return Ok(None) };
    let Some(start) = expr::read_value(key.nested())? else { return Ok(None) };
    let end = match attributes.find(attr::ELEM_KEY_END)? {
        Some(end) => expr::read_value(end.nested())?.filter(|end| *end != start).map(Box::new),
        None => None,
    };
    let data = match attributes.find(attr::ELEM_DATA)? {
        Some(data) => match expr::read_verdict(data.nested())? {
            Some(verdict) => Some(Data::Verdict(verdict)),
            None => expr::read_value(data.nested())?.map(Data::Fields),
        },
        None => None,
    };
    let flags = attributes.find(attr::ELEM_FLAGS)?.map(|flags| flags.be32()).transpose()?.unwrap_or_default();
    let timeout_ms = attributes.find(attr::ELEM_TIMEOUT)?.map(|timeout| timeout.be64()).transpose()?;
    let element = Element { key: ElementKey { start, end }, value: ElementValue { data, timeout_ms } };
    Ok(Some(RawElement { element, ends_range: flags & wire::ELEM_INTERVAL_END != 0 }))
}

/// Put the ranges of a single-field set together again from their two ends.
pub(super) fn join_ranges(raw: Vec<RawElement>) -> Vec<Element> {
    let mut raw = raw;
    // In byte order; where a range begins right behind another, the other's end comes first.
    raw.sort_by(|a, b| {
        a.element
            .key
            .start
            .as_bytes()
            .cmp(b.element.key.start.as_bytes())
            .then(b.ends_range.cmp(&a.ends_range))
    });
    let mut elements: Vec<Element> = Vec::new();
    let mut open = false;
    for part in raw {
        match (part.ends_range, elements.last_mut()) {
            (false, _) => {
                elements.push(part.element);
                open = true;
            }
            (true, Some(range)) if open => {
                range.key.end =
                    previous(&part.element.key.start).filter(|last| *last != range.key.start).map(Box::new);
                open = false;
            }
            (true, _) => {}
        }
    }
    // A range without an end behind it reaches to the last value there is.
    if let Some(range) = elements.last_mut().filter(|_| open) {
        let last = Packed::from_bytes(&vec![0xff; range.key.start.as_bytes().len()]);
        range.key.end = last.filter(|last| *last != range.key.start).map(Box::new);
    }
    elements
}

/// The value before this one in byte order.
fn previous(value: &Packed) -> Option<Packed> {
    let mut bytes = value.as_bytes().to_vec();
    for byte in bytes.iter_mut().rev() {
        let (difference, borrowed) = byte.overflowing_sub(1);
        *byte = difference;
        if !borrowed {
            return Packed::from_bytes(&bytes);
        }
    }
    None
}

/// A named counter with its figures; `None` for another kind of object.
pub fn parse_counter(payload: &[u8]) -> Result<Option<(String, CounterValue)>, Malformed> {
    let (_, attributes) = attributes(payload)?;
    let name = text(&attributes, attr::OBJ_NAME)?;
    let kind = attributes.find(attr::OBJ_TYPE)?.map(|kind| kind.be32()).transpose()?;
    if kind != Some(wire::OBJECT_COUNTER) {
        return Ok(None);
    }
    let figures = match attributes.find(attr::OBJ_DATA)? {
        Some(data) => expr::read_counter_object(data.nested())?,
        None => CounterValue::default(),
    };
    Ok(Some((name, figures)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use longshore_core::ruleset::nft::{
        Expr, Family, MetaKey, NftBatch, NftOp, NumgenMode, Reg, Value, Verdict,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::wire::Messages;
    use crate::nft::encode::transaction;

    fn parse_all(payload: &[u8]) {
        let _ = parse_table(payload);
        let _ = parse_generation(payload);
        let _ = parse_chain(payload);
        let _ = parse_rule(payload);
        let _ = parse_set(payload);
        let _ = parse_count(payload);
        let _ = parse_elements(payload).map(join_ranges);
        let _ = parse_counter(payload);
    }

    fn sample() -> Vec<u8> {
        let rule = Rule::new(vec![
            Expr::meta(MetaKey::L4Proto, Reg(0)),
            Expr::eq(Reg(0), Value::Proto(6)),
            Expr::Numgen { mode: NumgenMode::Random, modulus: 3, offset: 0, dst: Reg(4) },
            Expr::Counter,
            Expr::Verdict(Verdict::Jump("n3".into())),
        ]);
        let key = ElementKey::range(&[Value::Port(1)], &[Value::Port(9)]);
        let set = || "ports".to_owned();
        let ops = vec![
            NftOp::AddRule { chain: "c".into(), rule: rule.commented("why") },
            NftOp::AddSet { set: set(), spec: SetSpec::set(&[FieldType::InetService]).interval() },
            NftOp::AddElements { set: set(), elements: vec![Element::key(key)] },
        ];
        let batch = NftBatch { table: TableKey::new(Family::Ip, "t"), ops };
        transaction(&batch, 1, None, &BTreeSet::from([set()])).bytes
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        let bytes = sample();
        let messages: Vec<_> = Messages::new(&bytes).collect::<Result<_, _>>().unwrap();
        let (chain, rule, counter) = parse_rule(messages[1].payload).unwrap();
        assert_eq!((chain.as_str(), rule.comment.as_deref()), ("c", Some("why")));
        assert_eq!(rule.exprs.len(), 5);
        assert_eq!(rule.exprs[4], Expr::Verdict(Verdict::Jump("n3".into())));
        assert_eq!(counter, Some(CounterValue::default()));
        let (name, spec) = parse_set(messages[2].payload).unwrap().unwrap();
        assert_eq!((name.as_str(), spec), ("ports", SetSpec::set(&[FieldType::InetService]).interval()));
        let elements = join_ranges(parse_elements(messages[3].payload).unwrap());
        assert_eq!(elements, [Element::key(ElementKey::range(&[Value::Port(1)], &[Value::Port(9)]))]);
    }

    #[test]
    fn ranges_are_joined_whatever_order_they_come_in() {
        let part = |port: u16, ends_range| RawElement {
            element: Element::key(ElementKey::of(&[Value::Port(port)])),
            ends_range,
        };
        let range =
            |from: u16, to: u16| Element::key(ElementKey::range(&[Value::Port(from)], &[Value::Port(to)]));
        let raw = vec![part(100, false), part(21, true), part(21, false), part(31, true), part(10, false)];
        assert_eq!(join_ranges(raw), [range(10, 20), range(21, 30), range(100, 65_535)]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse_all(&bytes);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0usize..2000, value: u8) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = value;
            for message in Messages::new(&bytes).flatten() {
                parse_all(message.payload);
            }
        }
    }
}
