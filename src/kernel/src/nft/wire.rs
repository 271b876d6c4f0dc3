//! Numbers of the nf_tables protocol (`linux/netfilter/nf_tables.h`, `nfnetlink.h`) and how the model's
//! small enumerations map to them. All integers on the wire are in network order.

use longshore_core::ruleset::nft::{
    ChainType, CmpOp, CtKey, DynsetOp, Family, FibResult, FibSelector, FieldType, Hook, MetaKey, NatFlags,
    NumgenMode, PayloadBase, Reg, Verdict,
};

/// `NETLINK_NETFILTER`.
pub(super) const NETLINK_NETFILTER: isize = 12;
/// Length of `struct nfgenmsg`.
pub(super) const HEADER_LEN: usize = 4;
const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;
pub(super) const BATCH_GENID: u16 = 1;

/// The message type of a command.
pub(super) const fn kind(command: u16) -> u16 {
    SUBSYSTEM << 8 | command
}

/// The family header.
pub(super) const fn header(family: u8) -> [u8; HEADER_LEN] {
    [family, 0, 0, 0]
}

/// The family header of a batch's begin and end, which names the subsystem.
pub(super) const fn batch_header() -> [u8; HEADER_LEN] {
    [0, 0, 0, SUBSYSTEM as u8]
}

/// `NFT_MSG_*`.
pub(super) mod msg {
    pub(in super::super) const NEWTABLE: u16 = 0;
    pub(in super::super) const GETTABLE: u16 = 1;
    pub(in super::super) const DELTABLE: u16 = 2;
    pub(in super::super) const NEWCHAIN: u16 = 3;
    pub(in super::super) const GETCHAIN: u16 = 4;
    pub(in super::super) const DELCHAIN: u16 = 5;
    pub(in super::super) const NEWRULE: u16 = 6;
    pub(in super::super) const GETRULE: u16 = 7;
    pub(in super::super) const DELRULE: u16 = 8;
    pub(in super::super) const NEWSET: u16 = 9;
    pub(in super::super) const GETSET: u16 = 10;
    pub(in super::super) const DELSET: u16 = 11;
    pub(in super::super) const NEWSETELEM: u16 = 12;
    pub(in super::super) const GETSETELEM: u16 = 13;
    pub(in super::super) const DELSETELEM: u16 = 14;
    pub(in super::super) const NEWGEN: u16 = 15;
    pub(in super::super) const GETGEN: u16 = 16;
    pub(in super::super) const NEWOBJ: u16 = 18;
    pub(in super::super) const GETOBJ: u16 = 19;
    pub(in super::super) const DELOBJ: u16 = 20;
}

/// Attributes of objects, `NFTA_<OBJECT>_<NAME>`.
pub(super) mod attr {
    pub(in super::super) const TABLE_NAME: u16 = 1;
    pub(in super::super) const CHAIN_TABLE: u16 = 1;
    pub(in super::super) const CHAIN_NAME: u16 = 3;
    pub(in super::super) const CHAIN_HOOK: u16 = 4;
    pub(in super::super) const CHAIN_POLICY: u16 = 5;
    pub(in super::super) const CHAIN_TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
    pub(in super::super) const RULE_TABLE: u16 = 1;
    pub(in super::super) const RULE_CHAIN: u16 = 2;
    pub(in super::super) const RULE_EXPRESSIONS: u16 = 4;
    pub(in super::super) const RULE_USERDATA: u16 = 7;
    pub(in super::super) const LIST_ELEM: u16 = 1;
    pub(in super::super) const EXPR_NAME: u16 = 1;
    pub(in super::super) const EXPR_DATA: u16 = 2;
    pub(in super::super) const SET_TABLE: u16 = 1;
    pub(in super::super) const SET_NAME: u16 = 2;
    pub(in super::super) const SET_FLAGS: u16 = 3;
    pub(in super::super) const SET_KEY_TYPE: u16 = 4;
    pub(in super::super) const SET_KEY_LEN: u16 = 5;
    pub(in super::super) const SET_DATA_TYPE: u16 = 6;
    pub(in super::super) const SET_DATA_LEN: u16 = 7;
    pub(in super::super) const SET_DESC: u16 = 9;
    pub(in super::super) const SET_ID: u16 = 10;
    pub(in super::super) const SET_TIMEOUT: u16 = 11;
    pub(in super::super) const SET_USERDATA: u16 = 13;
    pub(in super::super) const SET_COUNT: u16 = 20;
    pub(in super::super) const DESC_SIZE: u16 = 1;
    pub(in super::super) const DESC_CONCAT: u16 = 2;
    pub(in super::super) const FIELD_LEN: u16 = 1;
    pub(in super::super) const LIST_TABLE: u16 = 1;
    pub(in super::super) const LIST_SET: u16 = 2;
    pub(in super::super) const LIST_ELEMENTS: u16 = 3;
    pub(in super::super) const ELEM_KEY: u16 = 1;
    pub(in super::super) const ELEM_DATA: u16 = 2;
    pub(in super::super) const ELEM_FLAGS: u16 = 3;
    pub(in super::super) const ELEM_TIMEOUT: u16 = 4;
    pub(in super::super) const ELEM_KEY_END: u16 = 10;
    pub(in super::super) const DATA_VALUE: u16 = 1;
    pub(in super::super) const DATA_VERDICT: u16 = 2;
    pub(in super::super) const VERDICT_CODE: u16 = 1;
    pub(in super::super) const VERDICT_CHAIN: u16 = 2;
    pub(in super::super) const OBJ_NAME: u16 = 2;
    pub(in super::super) const OBJ_TYPE: u16 = 3;
    pub(in super::super) const OBJ_DATA: u16 = 4;
    pub(in super::super) const GEN_ID: u16 = 1;
    pub(in super::super) const GEN_PROC_NAME: u16 = 3;
    pub(in super::super) const COUNTER_BYTES: u16 = 1;
    pub(in super::super) const COUNTER_PACKETS: u16 = 2;
}

/// `NFT_SET_*` flags.
pub(super) mod set_flag {
    pub(in super::super) const ANONYMOUS: u32 = 0x1;
    pub(in super::super) const INTERVAL: u32 = 0x4;
    pub(in super::super) const MAP: u32 = 0x8;
    pub(in super::super) const TIMEOUT: u32 = 0x10;
    pub(in super::super) const EVAL: u32 = 0x20;
    pub(in super::super) const OBJECT: u32 = 0x40;
    pub(in super::super) const CONCAT: u32 = 0x80;
}

/// `NFT_SET_ELEM_INTERVAL_END`: the element is the first value behind a range.
pub(super) const ELEM_INTERVAL_END: u32 = 1;
/// `NFT_DATA_VERDICT`.
pub(super) const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;
/// `NFT_OBJECT_COUNTER`.
pub(super) const OBJECT_COUNTER: u32 = 1;
/// `NFTNL_UDATA_RULE_COMMENT` of libnftnl: how `nft` finds a rule's comment.
pub(super) const UDATA_COMMENT: u8 = 0;
/// `NFTNL_UDATA_SET_KEYBYTEORDER` of libnftnl, and nft's value for host order.
const UDATA_KEY_BYTE_ORDER: u8 = 0;
const BYTE_ORDER_HOST: u32 = 1;
/// Userdata of a set that is only ours; libnftnl passes over types it does not know.
const UDATA_OWN_TYPES: u8 = 0xf0;
/// nft's TYPE_BITS: concatenated types are 6 bits each.
const TYPE_BITS: u32 = 6;

pub(super) const fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

pub(super) const fn family_from(number: u8) -> Option<Family> {
    match number {
        1 => Some(Family::Inet),
        2 => Some(Family::Ip),
        10 => Some(Family::Ip6),
        _ => None,
    }
}

/// nft's number of a concatenated type. An index is shown as a mark: both are words in host order, and
/// nft 1.0.6 stops with an assertion at an `integer` in a concatenation.
pub(super) fn type_number(fields: &[FieldType]) -> u32 {
    let shown = |field: &FieldType| match field {
        FieldType::Index => FieldType::Mark.number(),
        field => field.number(),
    };
    fields.iter().fold(0, |number, field| number << TYPE_BITS | shown(field))
}

/// Userdata of a set: for nft, that a lone key is in host order (else it shows names and marks turned
/// round); for ourselves, the types where nft's numbers do not tell an index from a mark.
pub(super) fn set_userdata(key: &[FieldType], data: &[FieldType]) -> Vec<u8> {
    let mut userdata = Vec::new();
    if let [FieldType::Mark | FieldType::IfName | FieldType::Index] = key {
        userdata.extend_from_slice(&[UDATA_KEY_BYTE_ORDER, 4]);
        userdata.extend_from_slice(&BYTE_ORDER_HOST.to_ne_bytes());
    }
    if key.contains(&FieldType::Index) || data.contains(&FieldType::Index) {
        let numbers =
            |fields: &[FieldType]| fields.iter().map(|field| field.number() as u8).collect::<Vec<_>>();
        let types = [numbers(key), vec![0], numbers(data)].concat();
        userdata.extend_from_slice(&[UDATA_OWN_TYPES, types.len() as u8]);
        userdata.extend(types);
    }
    userdata
}

/// The types of key and data from userdata of ours.
pub(super) fn own_types(userdata: &[u8]) -> Option<(Vec<FieldType>, Vec<FieldType>)> {
    let types = userdata_value(userdata, UDATA_OWN_TYPES)?;
    let split = types.iter().position(|number| *number == 0)?;
    let fields = |numbers: &[u8]| -> Option<Vec<FieldType>> {
        numbers.iter().map(|number| FieldType::from_number(u32::from(*number))).collect()
    };
    Some((fields(&types[..split])?, fields(&types[split + 1..])?))
}

/// The value of one kind in userdata as libnftnl has it: type, length, value, one after the other.
pub(super) fn userdata_value(mut userdata: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, len, rest @ ..] = userdata {
        let (value, tail) = rest.split_at_checked(usize::from(*len))?;
        if *kind == wanted {
            return Some(value);
        }
        userdata = tail;
    }
    None
}

/// The fields of a concatenated type; `None` for a type this program does not write.
pub(super) fn fields_from(mut number: u32) -> Option<Vec<FieldType>> {
    let mut fields = Vec::new();
    while number != 0 {
        fields.push(FieldType::from_number(number & ((1 << TYPE_BITS) - 1))?);
        number >>= TYPE_BITS;
    }
    fields.reverse();
    (!fields.is_empty()).then_some(fields)
}

pub(super) fn hook_number(hook: Hook) -> u32 {
    Hook::ALL.iter().position(|known| *known == hook).unwrap_or_default() as u32
}

pub(super) fn hook_from(number: u32) -> Option<Hook> {
    Hook::ALL.get(number as usize).copied()
}

pub(super) fn chain_type_from(name: &str) -> Option<ChainType> {
    [ChainType::Filter, ChainType::Nat, ChainType::Route].into_iter().find(|kind| kind.name() == name)
}

/// `NFT_REG32_00` and following.
pub(super) const fn reg_number(reg: Reg) -> u32 {
    8 + reg.0 as u32
}

/// The kernel answers with the 16-byte registers 1..=4 where it can.
pub(super) fn reg_from(number: u32) -> Option<Reg> {
    match number {
        1..=4 => Some(Reg((number as u8 - 1) * 4)),
        8..=23 => Some(Reg(number as u8 - 8)),
        _ => None,
    }
}

pub(super) const fn verdict_code(verdict: &Verdict) -> i32 {
    match verdict {
        Verdict::Drop => 0,
        Verdict::Accept => 1,
        Verdict::Continue => -1,
        Verdict::Jump(_) => -3,
        Verdict::Goto(_) => -4,
        Verdict::Return => -5,
    }
}

pub(super) fn verdict_from(code: i32, chain: Option<&str>) -> Option<Verdict> {
    match (code, chain) {
        (0, _) => Some(Verdict::Drop),
        (1, _) => Some(Verdict::Accept),
        (-1, _) => Some(Verdict::Continue),
        (-5, _) => Some(Verdict::Return),
        (-3, Some(chain)) => Some(Verdict::Jump(chain.to_owned())),
        (-4, Some(chain)) => Some(Verdict::Goto(chain.to_owned())),
        _ => None,
    }
}

/// Pairs of a model value and its number; the first match wins both ways.
pub(super) fn number_of<T: PartialEq>(table: &[(T, u32)], value: &T) -> u32 {
    table.iter().find(|(known, _)| known == value).map_or(u32::MAX, |(_, number)| *number)
}

pub(super) fn value_of<T: Copy>(table: &[(T, u32)], number: u32) -> Option<T> {
    table.iter().find(|(_, known)| *known == number).map(|(value, _)| *value)
}

pub(super) const META_KEYS: [(MetaKey, u32); 8] = [
    (MetaKey::Mark, 3),
    (MetaKey::Iif, 4),
    (MetaKey::Oif, 5),
    (MetaKey::IifName, 6),
    (MetaKey::OifName, 7),
    (MetaKey::NfProto, 15),
    (MetaKey::L4Proto, 16),
    (MetaKey::Random, 24),
];

pub(super) const CT_KEYS: [(CtKey, u32); 11] = [
    (CtKey::State, 0),
    (CtKey::Direction, 1),
    (CtKey::Status, 2),
    (CtKey::Mark, 3),
    (CtKey::Protocol, 10),
    (CtKey::ProtoSrc, 11),
    (CtKey::ProtoDst, 12),
    (CtKey::SrcIp, 19),
    (CtKey::DstIp, 20),
    (CtKey::SrcIp6, 21),
    (CtKey::DstIp6, 22),
];

pub(super) const PAYLOAD_BASES: [(PayloadBase, u32); 2] =
    [(PayloadBase::Network, 1), (PayloadBase::Transport, 2)];

pub(super) const CMP_OPS: [(CmpOp, u32); 6] =
    [(CmpOp::Eq, 0), (CmpOp::Neq, 1), (CmpOp::Lt, 2), (CmpOp::Lte, 3), (CmpOp::Gt, 4), (CmpOp::Gte, 5)];

pub(super) const FIB_RESULTS: [(FibResult, u32); 3] =
    [(FibResult::Oif, 1), (FibResult::OifName, 2), (FibResult::AddrType, 3)];

pub(super) const NUMGEN_MODES: [(NumgenMode, u32); 2] =
    [(NumgenMode::Incremental, 0), (NumgenMode::Random, 1)];

pub(super) const DYNSET_OPS: [(DynsetOp, u32); 3] =
    [(DynsetOp::Add, 0), (DynsetOp::Update, 1), (DynsetOp::Delete, 2)];

pub(super) fn nat_flag_bits(flags: NatFlags) -> u32 {
    u32::from(flags.random) << 2 | u32::from(flags.persistent) << 3 | u32::from(flags.fully_random) << 4
}

/// The bits the kernel adds for itself (addresses and ports given) are dropped.
pub(super) fn nat_flags_from(bits: u32) -> NatFlags {
    NatFlags { random: bits & 4 != 0, persistent: bits & 8 != 0, fully_random: bits & 16 != 0 }
}

pub(super) fn fib_bits(selector: FibSelector) -> u32 {
    let FibSelector { saddr, daddr, mark, iif, oif } = selector;
    [saddr, daddr, mark, iif, oif].iter().enumerate().map(|(bit, on)| u32::from(*on) << bit).sum()
}

pub(super) fn fib_from(bits: u32) -> FibSelector {
    let [saddr, daddr, mark, iif, oif] = [0, 1, 2, 3, 4].map(|bit| bits & 1 << bit != 0);
    FibSelector { saddr, daddr, mark, iif, oif }
}
