//! Tables and rules in a readable form close to nft's own, for `svc render`, `svc explain` and tests.
//! Registers are followed, so that a comparison reads `ip daddr 10.96.0.10`, not `reg 1`. The form is
//! for people: nothing parses it.

use std::fmt::{self, Write};

use super::expr::{
    CmpOp, CtDirection, CtKey, DynsetOp, Expr, FibResult, FibSelector, HeaderField, LookupTarget, MetaKey,
    NatFlags, NatKind, NumgenMode, PayloadBase, Reg, RejectWith, Verdict, ct_state, ct_status,
};
use super::{
    BaseChain, Data, ElementKey, ElementValue, FieldType, MapType, NftTable, Packed, Policy, Rule, Set,
    SetSpec, TableKey, Value,
};

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Continue => f.write_str("continue"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Addr(addr) => addr.fmt(f),
            Value::Proto(number) => match number {
                1 => f.write_str("icmp"),
                6 => f.write_str("tcp"),
                17 => f.write_str("udp"),
                58 => f.write_str("icmpv6"),
                132 => f.write_str("sctp"),
                _ => number.fmt(f),
            },
            Value::Port(port) => port.fmt(f),
            Value::Mark(mark) => write!(f, "{mark:#x}"),
            Value::IfName(name) => {
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                write!(f, "\"{}\"", String::from_utf8_lossy(&name[..end]))
            }
            Value::Index(index) => index.fmt(f),
        }
    }
}

impl fmt::Display for BaseChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = match self.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        let BaseChain { kind, hook, priority, .. } = self;
        write!(f, "type {} hook {} priority {priority}; policy {policy};", kind.name(), hook.name())
    }
}

impl Packed {
    /// The fields by their types, joined by ` . `; hexadecimal when they do not fit.
    pub fn text(&self, types: &[FieldType]) -> String {
        match self.values(types) {
            Some(values) => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . "),
            None => format!("{self:?}"),
        }
    }
}

impl ElementKey {
    /// The key by its set's types.
    pub fn text(&self, types: &[FieldType]) -> String {
        match &self.end {
            None => self.start.text(types),
            Some(end) => format!("{}-{}", self.start.text(types), end.text(types)),
        }
    }
}

impl SetSpec {
    fn text(&self) -> String {
        let names =
            |fields: &[FieldType]| fields.iter().map(|field| field.name()).collect::<Vec<_>>().join(" . ");
        let mut text = format!("type {}", names(&self.key));
        match &self.map {
            Some(MapType::Verdict) => text.push_str(" : verdict"),
            Some(MapType::Fields(fields)) => text.push_str(&format!(" : {}", names(fields))),
            None => {}
        }
        let flags = [
            (self.flags.interval, "interval"),
            (self.flags.timeout, "timeout"),
            (self.flags.dynamic, "dynamic"),
        ];
        let flags: Vec<_> = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        if !flags.is_empty() {
            text.push_str(&format!("; flags {}", flags.join(",")));
        }
        if let Some(timeout) = self.timeout_ms {
            text.push_str(&format!("; timeout {timeout}ms"));
        }
        if let Some(size) = self.size {
            text.push_str(&format!("; size {size}"));
        }
        text
    }

    fn element_text(&self, key: &ElementKey, value: &ElementValue) -> String {
        let mut text = key.text(&self.key);
        if let Some(timeout) = value.timeout_ms {
            text.push_str(&format!(" timeout {timeout}ms"));
        }
        if value.data.is_some() {
            text.push_str(&format!(" : {}", value.text(self)));
        }
        text
    }
}

impl ElementValue {
    /// What the element leads to, by its set's types; empty in a set that is no map.
    pub fn text(&self, spec: &SetSpec) -> String {
        match (&self.data, &spec.map) {
            (Some(Data::Verdict(verdict)), _) => verdict.to_string(),
            (Some(Data::Fields(data)), Some(MapType::Fields(types))) => data.text(types),
            (Some(Data::Fields(data)), _) => format!("{data:?}"),
            (None, _) => String::new(),
        }
    }
}

impl NftTable {
    /// The whole table, sets first, everything sorted by name.
    pub fn text(&self, key: &TableKey) -> String {
        let mut out = format!("table {key} {{\n");
        for counter in &self.counters {
            out.push_str(&format!("  counter {counter}\n"));
        }
        for (name, set) in &self.sets {
            self.write_set(&mut out, name, set);
        }
        for (name, chain) in &self.chains {
            out.push_str(&format!("  chain {name} {{\n"));
            if let Some(base) = &chain.base {
                out.push_str(&format!("    {base}\n"));
            }
            for rule in &chain.rules {
                out.push_str(&format!("    {}\n", self.rule_text(rule)));
            }
            out.push_str("  }\n");
        }
        out.push_str("}\n");
        out
    }

    fn write_set(&self, out: &mut String, name: &str, set: &Set) {
        let kind = if set.spec.map.is_some() { "map" } else { "set" };
        out.push_str(&format!("  {kind} {name} {{ {}\n", set.spec.text()));
        for (key, value) in &set.elements {
            out.push_str(&format!("    {}\n", set.spec.element_text(key, value)));
        }
        out.push_str("  }\n");
    }

    /// One rule, keys of look-ups written out by the types of this table's sets.
    pub fn rule_text(&self, rule: &Rule) -> String {
        let mut reader = Reader { table: self, registers: Default::default(), words: Vec::new() };
        for expr in &rule.exprs {
            reader.read(expr);
        }
        if let Some(comment) = &rule.comment {
            reader.words.push(format!("comment \"{comment}\""));
        }
        reader.words.join(" ")
    }
}

/// How a register's value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Field(FieldType),
    NfProto,
    CtState,
    CtStatus,
    CtDirection,
    AddrType,
    Number,
    Raw,
}

/// What a register holds, in words. `None` in `text` continues the register before.
#[derive(Debug, Clone)]
struct Loaded {
    text: Option<String>,
    kind: Kind,
}

struct Reader<'a> {
    table: &'a NftTable,
    registers: [Option<Loaded>; Reg::COUNT as usize],
    words: Vec<String>,
}

impl Reader<'_> {
    fn read(&mut self, expr: &Expr) {
        match expr {
            Expr::Meta { key, dst } => {
                let (text, kind) = meta_text(*key);
                self.load(*dst, text.to_owned(), kind);
            }
            Expr::MetaSet { key, src } => self.word(format!("{} set {}", meta_text(*key).0, self.held(*src))),
            Expr::Payload { base, offset, len, dst } => {
                let (text, kind) = payload_text(*base, *offset, *len);
                self.load(*dst, text, kind);
            }
            Expr::Cmp { src, op, value } => {
                let text = format!("{}{} {}", self.held(*src), op_text(*op), self.value(*src, value));
                self.word(text);
            }
            Expr::Range { src, op, from, to } => {
                let (from, to) = (self.value(*src, from), self.value(*src, to));
                self.word(format!("{}{} {from}-{to}", self.held(*src), op_text(*op)));
            }
            Expr::Bitwise { src, dst, mask, xor } => self.bitwise(*src, *dst, mask, xor),
            Expr::Immediate { dst, value } => self.load(*dst, format!("{value:?}"), Kind::Raw),
            Expr::Verdict(verdict) => self.word(verdict.to_string()),
            Expr::Lookup { set, src, target } => self.lookup(set, *src, *target),
            Expr::Nat { kind, ipv6, addr, port, flags } => self.nat(*kind, *ipv6, (*addr, *port), *flags),
            Expr::Masquerade { flags } => self.word(format!("masquerade{}", nat_flags(*flags))),
            Expr::Reject(with) => self.word(reject_text(*with)),
            Expr::Ct { key, direction, dst } => {
                let (text, kind) = ct_text(*key, *direction);
                self.load(*dst, text, kind);
            }
            Expr::CtSet { key, src } => {
                self.word(format!("{} set {}", ct_text(*key, None).0, self.held(*src)))
            }
            Expr::Fib { selector, result, dst } => {
                let (text, kind) = fib_text(*selector, *result);
                self.load(*dst, text, kind);
            }
            Expr::Numgen { mode, modulus, offset, dst } => {
                let mode = match mode {
                    NumgenMode::Random => "random",
                    NumgenMode::Incremental => "inc",
                };
                self.load(*dst, format!("numgen {mode} mod {modulus}{}", offset_text(*offset)), Kind::Number);
            }
            Expr::Jhash { src, len, modulus, seed, offset, dst } => {
                let key = self.joined(*src, *len as usize);
                let text = format!("jhash {key} mod {modulus} seed {seed:#x}{}", offset_text(*offset));
                self.load(*dst, text, Kind::Number);
            }
            Expr::Counter => self.word("counter".to_owned()),
            Expr::Dynset { set, op, key, data, timeout_ms } => {
                self.dynset(set, *op, (*key, *data), *timeout_ms)
            }
            Expr::CounterRef { counter } => self.word(format!("counter name {counter}")),
            Expr::Notrack => self.word("notrack".to_owned()),
            Expr::Other { name } => self.word(format!("[{name}]")),
        }
    }

    fn word(&mut self, word: String) {
        self.words.push(word);
    }

    fn load(&mut self, dst: Reg, text: String, kind: Kind) {
        let words = match kind {
            Kind::Field(field) => field.padded_len() / 4,
            _ => 1,
        };
        for (at, register) in self.registers.iter_mut().skip(usize::from(dst.0)).take(words).enumerate() {
            *register = Some(Loaded { text: (at == 0).then(|| text.clone()), kind });
        }
    }

    fn register(&self, reg: Reg) -> Option<&Loaded> {
        self.registers.get(usize::from(reg.0))?.as_ref()
    }

    fn held(&self, reg: Reg) -> String {
        let text = self.register(reg).and_then(|loaded| loaded.text.clone());
        text.unwrap_or_else(|| format!("reg{}", reg.0))
    }

    fn joined(&self, first: Reg, len: usize) -> String {
        let words = self.registers.iter().skip(usize::from(first.0)).take(len.div_ceil(4));
        let texts: Vec<String> = words.flatten().filter_map(|loaded| loaded.text.clone()).collect();
        if texts.is_empty() { format!("reg{}", first.0) } else { texts.join(" . ") }
    }

    fn value(&self, reg: Reg, value: &Packed) -> String {
        let kind = self.register(reg).map_or(Kind::Raw, |loaded| loaded.kind);
        let word = value.as_bytes().first_chunk().map(|word| u32::from_ne_bytes(*word));
        match (kind, word) {
            (Kind::Field(field), _) => value.text(&[field]),
            (Kind::CtState, Some(word)) => bit_names(word, &CT_STATES),
            (Kind::CtStatus, Some(word)) => bit_names(word, &CT_STATUSES),
            (Kind::Number, Some(word)) => word.to_string(),
            (Kind::AddrType, Some(word)) => addr_type(word),
            (Kind::NfProto, _) if value.as_bytes() == [2] => "ipv4".to_owned(),
            (Kind::NfProto, _) if value.as_bytes() == [10] => "ipv6".to_owned(),
            (Kind::CtDirection, _) if value.as_bytes() == [0] => "original".to_owned(),
            (Kind::CtDirection, _) if value.as_bytes() == [1] => "reply".to_owned(),
            _ => format!("{value:?}"),
        }
    }

    fn bitwise(&mut self, src: Reg, dst: Reg, mask: &Packed, xor: &Packed) {
        let kind = self.register(src).map_or(Kind::Raw, |loaded| loaded.kind);
        let held = self.held(src);
        let word = |packed: &Packed| packed.as_bytes().first_chunk().map(|word| u32::from_ne_bytes(*word));
        let bits = |word: u32| match kind {
            Kind::CtState => bit_names(word, &CT_STATES),
            Kind::CtStatus => bit_names(word, &CT_STATUSES),
            _ => format!("{word:#x}"),
        };
        let text = match (word(mask), word(xor)) {
            (Some(mask), Some(0)) => format!("{held} & {}", bits(mask)),
            (Some(mask), Some(xor)) if mask == !xor => format!("{held} | {}", bits(xor)),
            _ => format!("{held} & {mask:?} ^ {xor:?}"),
        };
        self.load(dst, text, kind);
    }

    fn lookup(&mut self, set: &str, src: Reg, target: LookupTarget) {
        let spec = self.table.sets.get(set).map(|set| &set.spec);
        let key = self.joined(src, spec.map_or(4, SetSpec::key_len));
        match target {
            LookupTarget::Hit => self.word(format!("{key} @{set}")),
            LookupTarget::Miss => self.word(format!("{key} != @{set}")),
            LookupTarget::Verdict => self.word(format!("{key} vmap @{set}")),
            LookupTarget::Data(dst) => {
                let len = match spec.and_then(|spec| spec.map.as_ref()) {
                    Some(MapType::Fields(fields)) => super::fields_len(fields),
                    _ => 4,
                };
                let words = len.div_ceil(4);
                for (at, register) in
                    self.registers.iter_mut().skip(usize::from(dst.0)).take(words).enumerate()
                {
                    let text = (at == 0).then(|| format!("{key} map @{set}"));
                    *register = Some(Loaded { text, kind: Kind::Raw });
                }
            }
        }
    }

    fn nat(&mut self, kind: NatKind, ipv6: bool, (addr, port): (Option<Reg>, Option<Reg>), flags: NatFlags) {
        let mut text = match kind {
            NatKind::Snat => "snat".to_owned(),
            NatKind::Dnat => "dnat".to_owned(),
        };
        text.push_str(if ipv6 { " ip6 to" } else { " ip to" });
        if let Some(addr) = addr {
            text.push_str(&format!(" {}", self.held(addr)));
        }
        // A port that came out of the same map as the address is part of its words already.
        if let Some(port) = port
            && self.register(port).is_none_or(|loaded| loaded.text.is_some())
        {
            text.push_str(&format!(" : {}", self.held(port)));
        }
        text.push_str(&nat_flags(flags));
        self.word(text);
    }

    fn dynset(&mut self, set: &str, op: DynsetOp, (key, data): (Reg, Option<Reg>), timeout_ms: Option<u64>) {
        let spec = self.table.sets.get(set).map(|set| &set.spec);
        let mut element = self.joined(key, spec.map_or(4, SetSpec::key_len));
        if let Some(timeout) = timeout_ms {
            element.push_str(&format!(" timeout {timeout}ms"));
        }
        if let Some(data) = data {
            let len = match spec.and_then(|spec| spec.map.as_ref()) {
                Some(MapType::Fields(fields)) => super::fields_len(fields),
                _ => 4,
            };
            element.push_str(&format!(" : {}", self.joined(data, len)));
        }
        let op = match op {
            DynsetOp::Add => "add",
            DynsetOp::Update => "update",
            DynsetOp::Delete => "delete",
        };
        self.word(format!("{op} @{set} {{ {element} }}"));
    }
}

const CT_STATES: [(u32, &str); 5] = [
    (ct_state::INVALID, "invalid"),
    (ct_state::ESTABLISHED, "established"),
    (ct_state::RELATED, "related"),
    (ct_state::NEW, "new"),
    (ct_state::UNTRACKED, "untracked"),
];

const CT_STATUSES: [(u32, &str); 2] = [(ct_status::SNAT, "snat"), (ct_status::DNAT, "dnat")];

fn bit_names(word: u32, names: &[(u32, &str)]) -> String {
    let known: u32 = names.iter().map(|(bit, _)| bit).sum();
    if word == 0 || word & !known != 0 {
        return format!("{word:#x}");
    }
    names.iter().filter(|(bit, _)| word & bit != 0).map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

fn addr_type(word: u32) -> String {
    match word {
        1 => "unicast".to_owned(),
        2 => "local".to_owned(),
        3 => "broadcast".to_owned(),
        5 => "multicast".to_owned(),
        _ => word.to_string(),
    }
}

fn op_text(op: CmpOp) -> &'static str {
    match op {
        CmpOp::Eq => "",
        CmpOp::Neq => " !=",
        CmpOp::Lt => " <",
        CmpOp::Lte => " <=",
        CmpOp::Gt => " >",
        CmpOp::Gte => " >=",
    }
}

fn meta_text(key: MetaKey) -> (&'static str, Kind) {
    match key {
        MetaKey::Mark => ("meta mark", Kind::Field(FieldType::Mark)),
        MetaKey::Iif => ("iif", Kind::Number),
        MetaKey::Oif => ("oif", Kind::Number),
        MetaKey::IifName => ("iifname", Kind::Field(FieldType::IfName)),
        MetaKey::OifName => ("oifname", Kind::Field(FieldType::IfName)),
        MetaKey::NfProto => ("meta nfproto", Kind::NfProto),
        MetaKey::L4Proto => ("meta l4proto", Kind::Field(FieldType::InetProto)),
        MetaKey::Random => ("meta random", Kind::Number),
    }
}

fn payload_text(base: PayloadBase, offset: u32, len: u32) -> (String, Kind) {
    let field = HeaderField::ALL.into_iter().find(|field| field.location() == (base, offset, len));
    let (text, field) = match field {
        Some(HeaderField::Ip4Saddr) => ("ip saddr", FieldType::Ipv4Addr),
        Some(HeaderField::Ip4Daddr) => ("ip daddr", FieldType::Ipv4Addr),
        Some(HeaderField::Ip6Saddr) => ("ip6 saddr", FieldType::Ipv6Addr),
        Some(HeaderField::Ip6Daddr) => ("ip6 daddr", FieldType::Ipv6Addr),
        Some(HeaderField::Sport) => ("th sport", FieldType::InetService),
        Some(HeaderField::Dport) => ("th dport", FieldType::InetService),
        None => {
            let base = match base {
                PayloadBase::Network => "nh",
                PayloadBase::Transport => "th",
            };
            return (format!("@{base},{},{}", offset * 8, len * 8), Kind::Raw);
        }
    };
    (text.to_owned(), Kind::Field(field))
}

fn ct_text(key: CtKey, direction: Option<CtDirection>) -> (String, Kind) {
    let (name, kind) = match key {
        CtKey::State => ("state", Kind::CtState),
        CtKey::Direction => ("direction", Kind::CtDirection),
        CtKey::Status => ("status", Kind::CtStatus),
        CtKey::Mark => ("mark", Kind::Field(FieldType::Mark)),
        CtKey::Protocol => ("protocol", Kind::Field(FieldType::InetProto)),
        CtKey::ProtoSrc => ("proto-src", Kind::Field(FieldType::InetService)),
        CtKey::ProtoDst => ("proto-dst", Kind::Field(FieldType::InetService)),
        CtKey::SrcIp => ("ip saddr", Kind::Field(FieldType::Ipv4Addr)),
        CtKey::DstIp => ("ip daddr", Kind::Field(FieldType::Ipv4Addr)),
        CtKey::SrcIp6 => ("ip6 saddr", Kind::Field(FieldType::Ipv6Addr)),
        CtKey::DstIp6 => ("ip6 daddr", Kind::Field(FieldType::Ipv6Addr)),
    };
    let way = match direction {
        Some(CtDirection::Original) => "original ",
        Some(CtDirection::Reply) => "reply ",
        None => "",
    };
    (format!("ct {way}{name}"), kind)
}

fn fib_text(selector: FibSelector, result: FibResult) -> (String, Kind) {
    let FibSelector { saddr, daddr, mark, iif, oif } = selector;
    let flags = [(saddr, "saddr"), (daddr, "daddr"), (mark, "mark"), (iif, "iif"), (oif, "oif")];
    let flags: Vec<_> = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    let (name, kind) = match result {
        FibResult::Oif => ("oif", Kind::Number),
        FibResult::OifName => ("oifname", Kind::Field(FieldType::IfName)),
        FibResult::AddrType => ("type", Kind::AddrType),
    };
    (format!("fib {} {name}", flags.join(" . ")), kind)
}

fn nat_flags(flags: NatFlags) -> String {
    let names =
        [(flags.random, "random"), (flags.fully_random, "fully-random"), (flags.persistent, "persistent")];
    let names: Vec<_> = names.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    if names.is_empty() { String::new() } else { format!(" {}", names.join(",")) }
}

fn reject_text(with: RejectWith) -> String {
    let mut text = "reject".to_owned();
    let _ = match with {
        RejectWith::Icmp(code) => write!(text, " with icmp {code}"),
        RejectWith::TcpReset => write!(text, " with tcp reset"),
        RejectWith::Icmpx(code) => {
            write!(
                text,
                " with icmpx {}",
                ["no-route", "port-unreachable", "host-unreachable", "admin-prohibited"]
                    .get(usize::from(code))
                    .unwrap_or(&"unknown")
            )
        }
    };
    text
}

fn offset_text(offset: u32) -> String {
    if offset == 0 { String::new() } else { format!(" offset {offset}") }
}
