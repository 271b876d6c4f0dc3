//! What `iptables-save` prints, read back into objects: our own chains, the chains other programs look
//! for, and the jumps from built-in chains into ours. Everything else is skipped unread. Counters are
//! ignored. A rule we would never write is kept as text, so that it shows as a difference.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::super::Protocol;
use super::super::object::{ObjectKey, ObjectValue, Objects};
use super::super::render_ipt::{COMPAT_COMMENT, is_compat, is_ours};
use super::{Builtin, ChainId, ChainName, HookKey, Match, Rule, States, Table, Target};
use crate::service::cidr::Cidr;

/// Reads the program's output line by line, however large it is.
#[derive(Debug, Default)]
pub struct SaveReader {
    ipv6: bool,
    table: Option<Table>,
    chains: BTreeMap<ChainId, Vec<Rule>>,
    hooks: BTreeMap<HookKey, ()>,
    foreign: u64,
}

impl SaveReader {
    pub fn new(ipv6: bool) -> Self {
        SaveReader { ipv6, ..SaveReader::default() }
    }

    /// Take one line without its end.
    pub fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix('*') {
            self.table = Table::from_name(name.trim());
            return;
        }
        let Some(table) = self.table else { return };
        if let Some(rest) = line.strip_prefix(':') {
            let name = rest.split(' ').next().unwrap_or_default();
            if let Some(id) = self.chain(table, name) {
                self.chains.entry(id).or_default();
            }
        } else if let Some(rest) = line.strip_prefix("-A ") {
            let (name, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            self.rule(table, name, rule);
        }
    }

    /// How many rules of other programs were passed over.
    pub fn foreign_rules(&self) -> u64 {
        self.foreign
    }

    /// What was read. A chain that other programs look for and that one of them filled is `Foreign`: it
    /// is there, and it is not for us to change.
    pub fn finish(self) -> Objects {
        let chain = |(id, rules): (ChainId, Vec<Rule>)| {
            let tag = Match::Comment(COMPAT_COMMENT.into());
            let foreign = is_compat(&id.name)
                && !rules.is_empty()
                && !rules.iter().all(|rule| rule.matches.contains(&tag));
            (ObjectKey::Chain(id), if foreign { ObjectValue::Foreign } else { ObjectValue::Rules(rules) })
        };
        let hook = |(key, ()): (HookKey, ())| (ObjectKey::Hook(key), ObjectValue::Hook);
        self.chains.into_iter().map(chain).chain(self.hooks.into_iter().map(hook)).collect()
    }

    fn chain(&self, table: Table, name: &str) -> Option<ChainId> {
        let name = ChainName::new(name)?;
        (is_ours(&name) || is_compat(&name)).then_some(ChainId { ipv6: self.ipv6, table, name })
    }

    fn rule(&mut self, table: Table, name: &str, text: &str) {
        if let Some(id) = self.chain(table, name) {
            let rule = rule(text).unwrap_or_else(|| other(text));
            self.chains.entry(id).or_default().push(rule);
            return;
        }
        let hook = Builtin::from_name(name).and_then(|from| Some((from, jump_to(text)?)));
        let Some((from, to)) = hook.filter(|(_, to)| is_ours(to)) else {
            self.foreign += 1;
            return;
        };
        let rule = Box::new(rule(text).unwrap_or_else(|| other(text)));
        let to = ChainId { ipv6: self.ipv6, table, name: to };
        let mut key = HookKey { to, from, rule, copy: 0 };
        while self.hooks.contains_key(&key) {
            key.copy += 1;
        }
        self.hooks.insert(key, ());
    }
}

fn other(text: &str) -> Rule {
    Rule { matches: vec![Match::Other(text.into())], target: Target::Other }
}

/// Where a rule jumps or goes to.
fn jump_to(text: &str) -> Option<ChainName> {
    let mut words = text.split(' ');
    words.by_ref().find(|word| matches!(*word, "-j" | "-g"))?;
    ChainName::new(words.next()?)
}

/// A rule as printed after the chain's name; `None` for one that ours never are.
pub fn rule(text: &str) -> Option<Rule> {
    let words = words(text)?;
    let mut reader = Words { words: words.iter().map(String::as_str), not: false, matches: Vec::new() };
    let target = reader.read()?;
    Some(Rule { matches: reader.matches, target })
}

/// Split at spaces, minding double quotes and backslashes within them.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut begun) = (false, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            '\\' if quoted => word.push(letters.next()?),
            ' ' if !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            letter => {
                word.push(letter);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    (!quoted).then_some(words)
}

struct Words<'a, I: Iterator<Item = &'a str>> {
    words: I,
    /// A `!` stands before the next option.
    not: bool,
    matches: Vec<Match>,
}

impl<'a, I: Iterator<Item = &'a str> + Clone> Words<'a, I> {
    fn read(&mut self) -> Option<Target> {
        loop {
            match self.words.next()? {
                "!" if !self.not => self.not = true,
                "-j" => {
                    let name = self.words.next()?;
                    let target = self.target(name)?;
                    return (self.words.next().is_none() && !self.not).then_some(target);
                }
                option => {
                    let not = std::mem::take(&mut self.not);
                    if let Some(found) = self.option(option, not)? {
                        self.matches.push(found);
                    }
                }
            }
        }
    }

    /// `Some(None)` for what says nothing of its own, such as `-m tcp` before `--dport`.
    fn option(&mut self, option: &str, not: bool) -> Option<Option<Match>> {
        Some(Some(match option {
            "-s" => Match::Source { within: self.cidr()?, not },
            "-d" => Match::Destination { within: self.cidr()?, not },
            "-m" if !not => return self.module(),
            _ if not => return None,
            "-i" => Match::Interface(plain(self.words.next()?)?.into()),
            "-p" => Match::Protocol(protocol(self.words.next()?)?),
            _ => return None,
        }))
    }

    fn module(&mut self) -> Option<Option<Match>> {
        let module = self.words.next()?;
        if let Some(protocol) = protocol(module) {
            return Some(Some(self.ports(protocol)?));
        }
        Some(Some(match module {
            "comment" => Match::Comment(self.after("--comment")?.into()),
            "mark" => {
                let (value, mask) = masked(self.after("--mark")?)?;
                Match::Mark { value, mask }
            }
            "conntrack" => {
                let mut option = self.words.next()?;
                let not = option == "!";
                if not {
                    option = self.words.next()?;
                }
                let any = (option == "--ctstate").then(|| self.words.next())??;
                Match::State { any: States::parse(any)?, not }
            }
            "addrtype" => match (self.words.next()?, self.words.next()?) {
                ("--src-type", "LOCAL") => Match::SourceIsLocal,
                ("--dst-type", "LOCAL") => Match::DestinationIsLocal,
                _ => return None,
            },
            "statistic" => {
                (self.after("--mode")? == "random").then_some(())?;
                Match::Random(probability(self.after("--probability")?)?)
            }
            "recent" => self.recent()?,
            _ => return None,
        }))
    }

    fn ports(&mut self, protocol: Protocol) -> Option<Match> {
        let ports = self.after("--dport")?;
        let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
        Some(Match::Ports(protocol, first.parse().ok()?, last.parse().ok()?))
    }

    fn recent(&mut self) -> Option<Match> {
        let update = match self.words.next()? {
            "--set" => false,
            "--update" => true,
            _ => return None,
        };
        let (mut seconds, mut reap) = (0, false);
        loop {
            match self.words.next()? {
                "--seconds" => seconds = self.words.next()?.parse().ok()?,
                "--reap" => reap = true,
                "--name" => break,
                _ => return None,
            }
        }
        let list: Box<str> = plain(self.words.next()?)?.into();
        self.whole_address()?;
        match (update, seconds, reap) {
            (true, 1.., true) => Some(Match::Remembered { list, seconds }),
            (false, 0, false) => Some(Match::Remember(list)),
            _ => None,
        }
    }

    /// `--mask` of all bits, which old versions do not print, and `--rsource`.
    fn whole_address(&mut self) -> Option<()> {
        let mut word = self.words.next()?;
        if word == "--mask" {
            let whole = match self.words.next()?.parse().ok()? {
                IpAddr::V4(mask) => u32::from(mask) == u32::MAX,
                IpAddr::V6(mask) => u128::from(mask) == u128::MAX,
            };
            whole.then_some(())?;
            word = self.words.next()?;
        }
        (word == "--rsource").then_some(())
    }

    fn target(&mut self, name: &str) -> Option<Target> {
        Some(match name {
            "RETURN" => Target::Return,
            "ACCEPT" => Target::Accept,
            "DROP" => Target::Drop,
            "REJECT" => match self.after("--reject-with")? {
                "tcp-reset" => Target::Reset,
                "icmp-port-unreachable" | "icmp6-port-unreachable" => Target::Unreachable,
                _ => return None,
            },
            "MARK" => {
                let (value, mask) = masked(self.after("--set-xmark")?)?;
                Target::Mark { value, mask }
            }
            "DNAT" => Target::Translate(self.after("--to-destination")?.parse::<SocketAddr>().ok()?),
            "MASQUERADE" => match self.words.next() {
                None => Target::Masquerade { random_fully: false },
                Some("--random-fully") => Target::Masquerade { random_fully: true },
                Some(_) => return None,
            },
            name => Target::Jump(ChainName::new(name).filter(is_ours)?),
        })
    }

    fn after(&mut self, option: &str) -> Option<&'a str> {
        (self.words.next()? == option).then(|| self.words.next())?
    }

    fn cidr(&mut self) -> Option<Cidr> {
        let text = self.words.next()?;
        match text.parse() {
            Ok(cidr) => Some(cidr),
            Err(_) => text.parse().ok().map(Cidr::host),
        }
    }
}

/// A name that needs no quotes.
fn plain(word: &str) -> Option<&str> {
    let good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    (!word.is_empty() && word.bytes().all(good)).then_some(word)
}

fn protocol(name: &str) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol.to_string() == name)
}

fn masked(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// A decimal fraction in units of 2^-31.
fn probability(text: &str) -> Option<u32> {
    let value: f64 = text.parse().ok()?;
    let units = (value * f64::from(1_u32 << 31)).round();
    // In range, so that the cast is exact.
    (0.0..=f64::from(1_u32 << 31)).contains(&units).then_some(units as u32)
}
