//! The nf_tables virtual machine, as far as our rules need it: registers, lookups, verdicts.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeBounds;

use super::super::chains::DSTNAT;
use super::super::nft::{
    ChainType, CmpOp, CtKey, Data, ElementKey, ElementValue, Expr, FibResult, HeaderField, Hook,
    LookupTarget, MetaKey, NatKind, Packed, PayloadBase, Reg, Value, Verdict, ct_state,
};
use super::super::object::{ObjectKey, ObjectValue, SetId, Spread};
use super::{Origin, Packet, Rules, TraceError};

/// How a hook ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Dropped,
    Rejected,
    Masqueraded,
    /// The destination was rewritten.
    Translated(SocketAddr),
}

/// Where evaluation stands after a rule or chain.
enum Flow {
    /// The next rule, or back to the caller.
    Next,
    Return,
    Goto(String),
    Jump(String),
    /// The end of this base chain, the packet goes on.
    Accept,
    End(Outcome),
}

pub(super) struct Machine<'a> {
    rules: Rules<'a>,
    packet: Packet,
    mark: u32,
    registers: [u8; 64],
    /// What the next random number is, and how many there could have been.
    choice: u32,
    choices: u32,
}

impl<'a> Machine<'a> {
    pub(super) fn new(rules: Rules<'a>, packet: &Packet) -> Self {
        Machine { rules, packet: *packet, mark: 0, registers: [0; 64], choice: 0, choices: 1 }
    }

    /// What every random number will be.
    pub(super) fn choose(&mut self, choice: u32) {
        self.choice = choice;
    }

    /// How many different numbers could have been drawn.
    pub(super) fn choices(&self) -> u32 {
        self.choices
    }

    /// Run the base chains of a type at a hook that have one of these priorities, lowest first.
    pub(super) fn run_hook(
        &mut self,
        kind: ChainType,
        hook: Hook,
        priorities: impl RangeBounds<i32>,
    ) -> Result<Outcome, TraceError> {
        let all = self.rules.table.chains.iter();
        let mut bases: Vec<(i32, &String)> = all
            .filter_map(|(name, chain)| {
                let base = chain.base.filter(|base| base.kind == kind && base.hook == hook)?;
                priorities.contains(&base.priority).then_some(())?;
                Some((base.priority, name))
            })
            .collect();
        bases.sort_unstable();
        for (_, name) in bases {
            if let Flow::End(outcome) = self.run_chain(name)? {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Passed)
    }

    /// The destination was rewritten; whether the source is rewritten too on the way out.
    pub(super) fn after_translation(&mut self, to: SocketAddr) -> Result<bool, TraceError> {
        let outcome = self.bound_for(to, |machine| machine.run_hook(ChainType::Nat, Hook::Postrouting, ..));
        Ok(outcome? == Outcome::Masqueraded)
    }

    /// Whether the filters behind the rewriting of destinations drop what goes to `to` now.
    pub(super) fn is_dropped_behind(&mut self, hook: Hook, to: SocketAddr) -> Result<bool, TraceError> {
        let filters = |machine: &mut Self| machine.run_hook(ChainType::Filter, hook, DSTNAT..);
        Ok(self.bound_for(to, filters)? == Outcome::Dropped)
    }

    /// Do something with the packet as it is once its destination is `to`.
    fn bound_for<T>(&mut self, to: SocketAddr, work: impl FnOnce(&mut Self) -> T) -> T {
        let (original, mark) = (self.packet.dst, self.mark);
        self.packet.dst = to;
        let outcome = work(self);
        self.packet.dst = original;
        self.mark = mark;
        outcome
    }

    fn run_chain(&mut self, name: &str) -> Result<Flow, TraceError> {
        let table = self.rules.table;
        let spread = Spread::from_chain(name, self.packet.dst.is_ipv6()).map(ObjectKey::Spread);
        let spread = spread.and_then(|key| self.rules.applied.get(&key));
        let rules = match (table.chains.get(name), spread.as_deref()) {
            (Some(chain), _) => Some(&chain.rules),
            (None, Some(ObjectValue::Spread(rules))) => Some(rules),
            _ => None,
        };
        let Some(rules) = rules else {
            return Err(TraceError {
                chain: name.to_owned(),
                expression: "a jump into it: no such chain".to_owned(),
            });
        };
        for rule in rules {
            match self.run_rule(name, &rule.exprs)? {
                Flow::Next => {}
                Flow::Return => return Ok(Flow::Next),
                Flow::Goto(target) => return self.run_chain(&target),
                Flow::Jump(target) => match self.run_chain(&target)? {
                    Flow::Next => {}
                    ended => return Ok(ended),
                },
                ended @ (Flow::Accept | Flow::End(_)) => return Ok(ended),
            }
        }
        Ok(Flow::Next)
    }

    fn run_rule(&mut self, chain: &str, exprs: &[Expr]) -> Result<Flow, TraceError> {
        for expr in exprs {
            if let Some(flow) = self.step(chain, expr)? {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// `None` goes on with the rule; a condition that fails ends it with `Next`.
    fn step(&mut self, chain: &str, expr: &Expr) -> Result<Option<Flow>, TraceError> {
        let unknown = || TraceError { chain: chain.to_owned(), expression: format!("{expr:?}") };
        let unless = |holds: bool| if holds { None } else { Some(Flow::Next) };
        Ok(match expr {
            Expr::Counter | Expr::CounterRef { .. } => None,
            Expr::Meta { key, dst } => {
                let value = self.meta(*key).ok_or_else(unknown)?;
                self.load(*dst, value.as_bytes());
                None
            }
            Expr::MetaSet { key: MetaKey::Mark, src } => {
                self.mark = self.word(*src);
                None
            }
            Expr::Payload { base, offset, len, dst } => {
                let value = self.payload(*base, *offset, *len).ok_or_else(unknown)?;
                self.load(*dst, value.as_bytes());
                None
            }
            Expr::Ct { key: CtKey::State, dst, .. } => {
                self.load(*dst, &ct_state::NEW.to_ne_bytes());
                None
            }
            Expr::Fib { selector, result: FibResult::AddrType, dst } => {
                let local = if selector.saddr { self.is_local_source() } else { true };
                let kind: u32 = if local { 2 } else { 1 };
                self.load(*dst, &kind.to_ne_bytes());
                None
            }
            Expr::Immediate { dst, value } => {
                self.load(*dst, value.as_bytes());
                None
            }
            Expr::Bitwise { src, dst, mask, xor } => {
                self.bitwise(*src, *dst, mask, xor);
                None
            }
            Expr::Cmp { src, op, value } => unless(self.compare(*src, *op, value)),
            Expr::Range { src, op, from, to } => {
                let inside = self.compare(*src, CmpOp::Gte, from) && self.compare(*src, CmpOp::Lte, to);
                unless(inside == (*op == CmpOp::Eq))
            }
            Expr::Lookup { set, src, target } => return self.lookup(set, *src, *target).ok_or_else(unknown),
            Expr::Verdict(verdict) => Some(follow(verdict)),
            Expr::Numgen { modulus, dst, .. } => {
                self.choices = *modulus;
                self.load(*dst, &(self.choice % (*modulus).max(1)).to_ne_bytes());
                None
            }
            Expr::Nat { kind: NatKind::Dnat, ipv6, addr: Some(addr), port: Some(port), .. } => {
                let to = self.socket_address(*ipv6, *addr, *port).ok_or_else(unknown)?;
                Some(Flow::End(Outcome::Translated(to)))
            }
            // Every packet here is of a client that was never seen, and is forgotten again.
            Expr::Dynset { .. } => None,
            Expr::Masquerade { .. } => Some(Flow::End(Outcome::Masqueraded)),
            Expr::Reject(_) => Some(Flow::End(Outcome::Rejected)),
            _ => return Err(unknown()),
        })
    }

    fn meta(&self, key: MetaKey) -> Option<Packed> {
        Some(match key {
            MetaKey::Mark => Value::Mark(self.mark).into(),
            MetaKey::IifName if self.packet.origin == Origin::Pod => {
                Value::if_name(&self.rules.node.pod_interface).into()
            }
            MetaKey::IifName => Value::if_name("").into(),
            MetaKey::L4Proto => Value::Proto(self.packet.protocol.number()).into(),
            _ => return None,
        })
    }

    fn payload(&self, base: PayloadBase, offset: u32, len: u32) -> Option<Packed> {
        let ipv6 = self.packet.dst.is_ipv6();
        let fields = [
            (HeaderField::saddr(ipv6), Value::Addr(self.packet.src)),
            (HeaderField::daddr(ipv6), Value::Addr(self.packet.dst.ip())),
            (HeaderField::Dport, Value::Port(self.packet.dst.port())),
        ];
        let found = fields.into_iter().find(|(field, _)| field.location() == (base, offset, len));
        found.map(|(_, value)| value.into())
    }

    /// A packet of the node to a Service has the node's or the Service's own address as its source.
    fn is_local_source(&self) -> bool {
        self.packet.origin == Origin::Node || self.rules.node.host_addresses.contains(&self.packet.src)
    }

    fn lookup(&mut self, set: &str, src: Reg, target: LookupTarget) -> Option<Option<Flow>> {
        let id = SetId::from_name(set)?;
        let ipv6 = self.packet.dst.is_ipv6();
        let spec = id.spec(ipv6);
        let start = usize::from(src.0) * 4;
        let key = Packed::from_bytes(self.registers.get(start..start + spec.key_len())?)?;
        let found = self.find(id, ipv6, key);
        Some(match (target, found) {
            (LookupTarget::Hit, Some(_)) | (LookupTarget::Miss, None) => None,
            (LookupTarget::Hit | LookupTarget::Data(_) | LookupTarget::Verdict, None)
            | (LookupTarget::Miss, Some(_)) => Some(Flow::Next),
            (LookupTarget::Verdict, Some(value)) => match value.data {
                Some(Data::Verdict(verdict)) => Some(follow(&verdict)),
                _ => return None,
            },
            (LookupTarget::Data(dst), Some(value)) => match value.data {
                Some(Data::Fields(fields)) => {
                    self.load(dst, fields.as_bytes());
                    None
                }
                _ => return None,
            },
        })
    }

    fn find(&self, set: SetId, ipv6: bool, key: Packed) -> Option<ElementValue> {
        if !set.holds_objects() {
            let fixed = &self.rules.table.sets.get(set.name())?.elements;
            let exact = fixed.get(&ElementKey { start: key, end: None });
            let range = || fixed.iter().find(|(range, _)| contains(range, &key)).map(|(_, value)| value);
            return exact.or_else(range).cloned();
        }
        let exact = ObjectKey::Element { set, ipv6, key: ElementKey { start: key, end: None } };
        if let Some(ObjectValue::Element(value)) = self.rules.applied.get(&exact).as_deref() {
            return Some(value.clone());
        }
        if !set.spec(ipv6).flags.interval {
            return None;
        }
        // All ranges of a frontend belong to its claim.
        let objects = self.rules.applied.objects(&exact.claim()?)?;
        objects.iter().find_map(|(object, value)| match (object, value) {
            (ObjectKey::Element { set: of, key: range, .. }, ObjectValue::Element(value))
                if *of == set && contains(range, &key) =>
            {
                Some(value.clone())
            }
            _ => None,
        })
    }

    fn load(&mut self, dst: Reg, bytes: &[u8]) {
        let start = usize::from(dst.0) * 4;
        let end = start + bytes.len().next_multiple_of(4);
        if let Some(place) = self.registers.get_mut(start..end) {
            place.fill(0);
            place[..bytes.len()].copy_from_slice(bytes);
        }
    }

    fn bytes(&self, src: Reg, len: usize) -> &[u8] {
        let start = usize::from(src.0) * 4;
        self.registers.get(start..start + len).unwrap_or_default()
    }

    fn socket_address(&self, ipv6: bool, addr: Reg, port: Reg) -> Option<SocketAddr> {
        let ip: IpAddr = if ipv6 {
            <[u8; 16]>::try_from(self.bytes(addr, 16)).ok()?.into()
        } else {
            <[u8; 4]>::try_from(self.bytes(addr, 4)).ok()?.into()
        };
        let port = u16::from_be_bytes(self.bytes(port, 2).try_into().ok()?);
        Some(SocketAddr::new(ip, port))
    }

    fn word(&self, src: Reg) -> u32 {
        self.bytes(src, 4).try_into().map(u32::from_ne_bytes).unwrap_or_default()
    }

    fn bitwise(&mut self, src: Reg, dst: Reg, mask: &Packed, xor: &Packed) {
        let masks = mask.as_bytes().iter().zip(xor.as_bytes());
        let value = self.bytes(src, mask.as_bytes().len()).iter().zip(masks);
        let result: Vec<u8> = value.map(|(byte, (mask, xor))| (byte & mask) ^ xor).collect();
        self.load(dst, &result);
    }

    fn compare(&self, src: Reg, op: CmpOp, value: &Packed) -> bool {
        let order = self.bytes(src, value.as_bytes().len()).cmp(value.as_bytes());
        match op {
            CmpOp::Eq => order.is_eq(),
            CmpOp::Neq => order.is_ne(),
            CmpOp::Lt => order.is_lt(),
            CmpOp::Lte => order.is_le(),
            CmpOp::Gt => order.is_gt(),
            CmpOp::Gte => order.is_ge(),
        }
    }
}

fn follow(verdict: &Verdict) -> Flow {
    match verdict {
        Verdict::Accept => Flow::Accept,
        Verdict::Drop => Flow::End(Outcome::Dropped),
        Verdict::Continue => Flow::Next,
        Verdict::Return => Flow::Return,
        Verdict::Jump(chain) => Flow::Jump(chain.clone()),
        Verdict::Goto(chain) => Flow::Goto(chain.clone()),
    }
}

/// The ranges in use differ in the last field only, so that bytes compare as the fields do.
fn contains(range: &ElementKey, key: &Packed) -> bool {
    let last = range.end.as_deref().unwrap_or(&range.start);
    range.start.as_bytes() <= key.as_bytes() && key.as_bytes() <= last.as_bytes()
}
