//! What `iptables-restore --noflush` reads: a change of one family's tables as one text, where every
//! line knows the operation it came from. Chains are declared (which makes or empties them), filled, and
//! only then deleted, so that no jump ever dangles; each table changes at once or not at all.

use std::fmt::{self, Write as _};

use super::super::diff::{Change, Op};
use super::super::object::{ObjectKey, ObjectValue};
use super::{ChainName, Match, Rule, States, Table, Target};

/// A change in the form the program takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restore {
    pub ipv6: bool,
    pub text: String,
    /// For each line, counted from 0, the operation it came from; `None` for a table's frame.
    owners: Vec<Option<u32>>,
}

impl Restore {
    /// The text for operations of one family; others are left out.
    pub fn of(ipv6: bool, ops: &[Op]) -> Restore {
        let mut restore = Restore { ipv6, text: String::new(), owners: Vec::new() };
        for table in Table::ALL {
            restore.table(table, ops);
        }
        restore
    }

    /// A text from elsewhere; its lines belong to no operation.
    pub fn from_text(ipv6: bool, text: &str) -> Restore {
        Restore { ipv6, text: text.to_owned(), owners: vec![None; text.lines().count()] }
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The operations of tables that were complete before a line: the program had changed them when it
    /// failed there. As indexes into the operations the text was made of.
    pub fn committed_before(&self, line: usize, ops: &[Op]) -> Vec<usize> {
        let before = self.text.lines().take(line.saturating_sub(1));
        let mut tables = Vec::new();
        let mut table = None;
        for text in before {
            if let Some(name) = text.strip_prefix('*') {
                table = Table::from_name(name);
            } else if text == "COMMIT" {
                tables.extend(table.take());
            }
        }
        let done = |op: &Op| table_of(&op.key, self.ipv6).is_some_and(|table| tables.contains(&table));
        (0..ops.len()).filter(|index| done(&ops[*index])).collect()
    }

    /// The text of a line, as errors show it; without a line, the change as a whole.
    pub fn describe(&self, line: Option<usize>) -> String {
        let found = line.and_then(|line| self.text.lines().nth(line.checked_sub(1)?));
        match found {
            Some("COMMIT") | None => format!("a change of {} lines", self.lines()),
            Some(text) => format!("{text:?}"),
        }
    }

    /// How many lines there are.
    pub fn lines(&self) -> usize {
        self.owners.len()
    }

    /// The operation behind a line, counted from 1 as the program counts; `None` where the line belongs
    /// to all (`COMMIT`), or there is no such line.
    pub fn owner(&self, line: usize) -> Option<usize> {
        self.owners.get(line.checked_sub(1)?)?.and_then(|index| usize::try_from(index).ok())
    }

    fn line(&mut self, owner: Option<usize>, text: fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.text.write_fmt(text);
        self.text.push('\n');
        self.owners.push(owner.and_then(|index| u32::try_from(index).ok()));
    }

    fn table(&mut self, table: Table, ops: &[Op]) {
        let ipv6 = self.ipv6;
        let mine = || ops.iter().enumerate().filter(move |(_, op)| table_of(&op.key, ipv6) == Some(table));
        if mine().next().is_none() {
            return;
        }
        self.line(None, format_args!("*{}", table.name()));
        for (index, op) in mine() {
            if let ObjectKey::Chain(id) = &op.key {
                self.line(Some(index), format_args!(":{} - [0:0]", id.name));
            }
        }
        for (index, op) in mine() {
            if let (ObjectKey::Hook(hook), Change::Remove) = (&op.key, &op.change) {
                let shown = Shown { rule: &hook.rule, ipv6 };
                self.line(Some(index), format_args!("-D {}{shown}", hook.from.name()));
            }
        }
        for (index, op) in mine() {
            if let (
                ObjectKey::Chain(id),
                Change::Add(ObjectValue::Rules(rules)) | Change::Set(ObjectValue::Rules(rules)),
            ) = (&op.key, &op.change)
            {
                for rule in rules {
                    self.line(Some(index), format_args!("-A {}{}", id.name, Shown { rule, ipv6 }));
                }
            }
        }
        for (index, op) in mine() {
            if let (ObjectKey::Hook(hook), Change::Add(_) | Change::Set(_)) = (&op.key, &op.change) {
                // In front: others' accepting rules must not keep a Service from its clients.
                let shown = Shown { rule: &hook.rule, ipv6 };
                self.line(Some(index), format_args!("-I {}{shown}", hook.from.name()));
            }
        }
        for (index, op) in mine() {
            if let (ObjectKey::Chain(id), Change::Remove) = (&op.key, &op.change) {
                self.line(Some(index), format_args!("-X {}", id.name));
            }
        }
        self.line(None, format_args!("COMMIT"));
    }
}

/// The table of an object of this family.
fn table_of(key: &ObjectKey, ipv6: bool) -> Option<Table> {
    let id = match key {
        ObjectKey::Chain(id) => id,
        ObjectKey::Hook(hook) => &hook.to,
        _ => return None,
    };
    (id.ipv6 == ipv6).then_some(id.table)
}

/// A rule as `iptables-save` prints it after the chain's name, with a space in front.
#[derive(Debug)]
pub struct Shown<'a> {
    pub rule: &'a Rule,
    pub ipv6: bool,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.rule.matches {
            write_match(f, condition)?;
        }
        write_target(f, &self.rule.target, self.ipv6)
    }
}

fn write_match(f: &mut fmt::Formatter<'_>, condition: &Match) -> fmt::Result {
    let unless = |not: &bool| if *not { " !" } else { "" };
    match condition {
        Match::Source { within, not } => write!(f, "{} -s {within}", unless(not)),
        Match::Destination { within, not } => write!(f, "{} -d {within}", unless(not)),
        Match::Interface(name) => write!(f, " -i {name}"),
        Match::Protocol(protocol) => write!(f, " -p {protocol}"),
        Match::Comment(text) => write!(f, " -m comment --comment \"{}\"", Quoted(text)),
        Match::Ports(protocol, first, last) if first == last => {
            write!(f, " -m {protocol} --dport {first}")
        }
        Match::Ports(protocol, first, last) => write!(f, " -m {protocol} --dport {first}:{last}"),
        Match::Mark { value, mask } => write!(f, " -m mark --mark {value:#x}/{mask:#x}"),
        Match::State { any, not } => write_state(f, *any, *not),
        Match::SourceIsLocal => f.write_str(" -m addrtype --src-type LOCAL"),
        Match::DestinationIsLocal => f.write_str(" -m addrtype --dst-type LOCAL"),
        Match::Random(part) => {
            write!(f, " -m statistic --mode random --probability {}", Probability(*part))
        }
        Match::Remember(list) => write!(f, " -m recent --set --name {list} --rsource"),
        Match::Remembered { list, seconds } => {
            write!(f, " -m recent --update --seconds {seconds} --reap --name {list} --rsource")
        }
        Match::Other(text) => write!(f, " {text}"),
    }
}

fn write_state(f: &mut fmt::Formatter<'_>, any: States, not: bool) -> fmt::Result {
    write!(f, " -m conntrack{} --ctstate {any}", if not { " !" } else { "" })
}

fn write_target(f: &mut fmt::Formatter<'_>, target: &Target, ipv6: bool) -> fmt::Result {
    match target {
        Target::Jump(name) => write!(f, " -j {name}"),
        Target::Return => f.write_str(" -j RETURN"),
        Target::Accept => f.write_str(" -j ACCEPT"),
        Target::Drop => f.write_str(" -j DROP"),
        Target::Reset => f.write_str(" -j REJECT --reject-with tcp-reset"),
        Target::Unreachable if ipv6 => f.write_str(" -j REJECT --reject-with icmp6-port-unreachable"),
        Target::Unreachable => f.write_str(" -j REJECT --reject-with icmp-port-unreachable"),
        Target::Mark { value, mask } => write!(f, " -j MARK --set-xmark {value:#x}/{mask:#x}"),
        Target::Translate(to) => write!(f, " -j DNAT --to-destination {to}"),
        Target::Masquerade { random_fully: true } => f.write_str(" -j MASQUERADE --random-fully"),
        Target::Masquerade { random_fully: false } => f.write_str(" -j MASQUERADE"),
        Target::Other => Ok(()),
    }
}

/// A probability in units of 2^-31 with the eleven decimals `iptables-save` prints: enough to get the
/// same number back.
struct Probability(u32);

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DECIMALS: u64 = 100_000_000_000;
        // Below 2^31 * 10^11 < 2^68: in two steps, so that it stays within 64 bits.
        let scaled = (u128::from(self.0) * u128::from(DECIMALS) + (1 << 30)) >> 31;
        let scaled = u64::try_from(scaled).unwrap_or(DECIMALS);
        write!(f, "{}.{:011}", scaled / DECIMALS, scaled % DECIMALS)
    }
}

/// A comment within double quotes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            if matches!(letter, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(letter)?;
        }
        Ok(())
    }
}

/// A comment that survives the program's own quoting: at most 255 bytes of plain letters.
pub fn comment(text: &str) -> Match {
    let plain = |letter: char| if letter.is_ascii_graphic() || letter == ' ' { letter } else { '_' };
    let kept: String =
        text.chars().map(plain).filter(|letter| !matches!(letter, '"' | '\\')).take(255).collect();
    Match::Comment(kept.into())
}

/// The whole content of one family's tables, in the form of `iptables-save`, for `svc render`.
pub fn listing<'a>(
    objects: impl IntoIterator<Item = (&'a ObjectKey, &'a ObjectValue)>,
    ipv6: bool,
) -> String {
    let objects: Vec<(&ObjectKey, &ObjectValue)> = objects.into_iter().collect();
    let mut text = String::new();
    for table in Table::ALL {
        let mut chains: Vec<(ChainName, &[Rule])> = Vec::new();
        let mut hooks = String::new();
        for (key, value) in &objects {
            match (key, value) {
                (ObjectKey::Chain(id), ObjectValue::Rules(rules)) if id.ipv6 == ipv6 && id.table == table => {
                    chains.push((id.name, rules.as_slice()));
                }
                (ObjectKey::Hook(hook), _) if hook.to.ipv6 == ipv6 && hook.to.table == table => {
                    let shown = Shown { rule: &hook.rule, ipv6 };
                    let _ = writeln!(hooks, "-A {}{shown}", hook.from.name());
                }
                _ => {}
            }
        }
        if chains.is_empty() && hooks.is_empty() {
            continue;
        }
        chains.sort_unstable_by_key(|(name, _)| *name);
        let _ = writeln!(text, "*{}", table.name());
        for (name, _) in &chains {
            let _ = writeln!(text, ":{name} - [0:0]");
        }
        text.push_str(&hooks);
        for (name, rules) in &chains {
            for rule in *rules {
                let _ = writeln!(text, "-A {name}{}", Shown { rule, ipv6 });
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}
