//! iptables in memory: reads the same texts, line by line, refuses what the program and the kernel
//! refuse, commits table by table, and can be held by another program or flushed by hand. Moves no
//! packets.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::ruleset::ipt::text::Restore;
use longshore_core::ruleset::ipt::{Builtin, ChainId, ChainName, HookKey, Rule, Table, Target, parse};
use longshore_core::ruleset::object::{ObjectKey, ObjectValue};

use super::{Features, Iptables, IptablesDump, IptablesError, Spent, Variant};
use crate::fake::Faults;

type Held = BTreeMap<ObjectKey, ObjectValue>;

/// iptables in memory.
#[derive(Debug)]
pub struct FakeIptables {
    /// Scripted faults; the text of a line is `iptables line 5: -A LONGSHORE-T -j DROP`, of a listing
    /// `iptables list IPv4`.
    pub faults: Faults,
    features: Features,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    objects: Held,
    held: Duration,
    /// Tables with such a line are refused as a whole, at their end, as the legacy variant does.
    refused: Vec<String>,
    runs: Vec<Restore>,
}

impl Default for FakeIptables {
    fn default() -> Self {
        FakeIptables::new(Variant::Nft)
    }
}

impl FakeIptables {
    /// Empty tables.
    pub fn new(variant: Variant) -> Self {
        let features = Features { variant, version: (1, 8, 9) };
        FakeIptables { faults: Faults::default(), features, inner: Mutex::default() }
    }

    /// Everything that is there now.
    pub fn objects(&self) -> BTreeMap<ObjectKey, ObjectValue> {
        self.lock().objects.clone()
    }

    /// Every text that was given, refused ones too: how a test asserts how little a change cost.
    pub fn runs(&self) -> Vec<Restore> {
        self.lock().runs.clone()
    }

    /// Another program takes the xtables lock now, for so long; the next change waits for it.
    pub fn hold_lock(&self, time: Duration) {
        self.lock().held = time;
    }

    /// From now on the kernel refuses every table with a line that begins so, and no line is named.
    pub fn refuse_at_commit(&self, line: &str) {
        self.lock().refused.push(line.to_owned());
    }

    /// `iptables -t table -F` by hand: no chain has a rule left.
    pub fn flush(&self, ipv6: bool, table: Table) {
        self.lock().objects.retain(|key, value| match (key, value) {
            (ObjectKey::Chain(id), ObjectValue::Rules(rules)) if id.ipv6 == ipv6 && id.table == table => {
                rules.clear();
                true
            }
            (ObjectKey::Hook(hook), _) => hook.to.ipv6 != ipv6 || hook.to.table != table,
            _ => true,
        });
    }

    /// Change what is there as another program would.
    pub fn tamper(&self, change: impl FnOnce(&mut BTreeMap<ObjectKey, ObjectValue>)) {
        change(&mut self.lock().objects);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Apply a text; each table at its `COMMIT`.
    fn restore(&self, change: &Restore, refused: &[String], objects: &mut Held) -> Result<(), IptablesError> {
        let mut bad = false;
        let mut draft = Draft { ipv6: change.ipv6, table: Table::Nat, objects: objects.clone() };
        for (index, text) in change.text.lines().enumerate() {
            let line = index + 1;
            let refusal = |said: String| IptablesError::Refused {
                what: change.describe(Some(line)),
                line: Some(line),
                said,
            };
            let fault = self.faults.check(&format!("iptables line {line}: {text}"));
            fault.map_err(|errno| refusal(errno.desc().to_owned()))?;
            draft.line(text).map_err(|said| refusal(format!("line {line} failed: {said}")))?;
            bad |= refused.iter().any(|start| text.starts_with(start.as_str()));
            if bad && text == "COMMIT" {
                return Err(refusal(format!("line {line} failed: invalid argument")));
            }
            if text == "COMMIT" {
                *objects = draft.objects.clone();
            }
        }
        Ok(())
    }
}

/// A table that is being changed.
struct Draft {
    ipv6: bool,
    table: Table,
    objects: Held,
}

impl Draft {
    fn id(&self, name: &str) -> Result<ChainId, &'static str> {
        let name = ChainName::new(name).ok_or("invalid chain name")?;
        Ok(ChainId { ipv6: self.ipv6, table: self.table, name })
    }

    fn line(&mut self, text: &str) -> Result<(), &'static str> {
        if let Some(name) = text.strip_prefix('*') {
            self.table = Table::from_name(name).ok_or("no such table")?;
            return Ok(());
        }
        if text == "COMMIT" {
            return self.check();
        }
        let (word, rest) = text.split_once(' ').ok_or("unknown command")?;
        if let Some(name) = word.strip_prefix(':') {
            let id = self.id(name)?;
            self.objects.insert(ObjectKey::Chain(id), ObjectValue::Rules(Vec::new()));
            return Ok(());
        }
        if word == "-X" {
            let key = ObjectKey::Chain(self.id(rest)?);
            let gone = self.objects.remove(&key).ok_or("no chain by that name")?;
            return if gone == ObjectValue::Rules(Vec::new()) { Ok(()) } else { Err("directory not empty") };
        }
        let (name, rule) = rest.split_once(' ').ok_or("no rule")?;
        let rule = parse::rule(rule).ok_or("no chain/target/match by that name")?;
        match (word, Builtin::from_name(name)) {
            ("-A", None) => match self.objects.get_mut(&ObjectKey::Chain(self.id(name)?)) {
                Some(ObjectValue::Rules(rules)) => rules.push(rule),
                _ => return Err("no chain by that name"),
            },
            ("-I" | "-D", Some(from)) => self.hook(word == "-I", from, rule)?,
            _ => return Err("unknown command"),
        }
        Ok(())
    }

    fn hook(&mut self, insert: bool, from: Builtin, rule: Rule) -> Result<(), &'static str> {
        let Target::Jump(to) = rule.target else { return Err("only jumps stand in built-in chains") };
        let to = self.id(to.as_str())?;
        let mut key = HookKey { to, from, rule: Box::new(rule), copy: 0 };
        while self.objects.contains_key(&ObjectKey::Hook(key.clone())) {
            key.copy += 1;
        }
        if insert {
            self.objects.insert(ObjectKey::Hook(key), ObjectValue::Hook);
            return Ok(());
        }
        // Which of equal rules goes makes no difference: the last number is free then.
        key.copy = key.copy.checked_sub(1).ok_or("bad rule (does a matching rule exist in that chain?)")?;
        self.objects.remove(&ObjectKey::Hook(key));
        Ok(())
    }

    /// What the kernel looks at: that no jump leads nowhere.
    fn check(&self) -> Result<(), &'static str> {
        let mut missing = BTreeMap::new();
        for (key, value) in &self.objects {
            let (id, rules): (&ChainId, Vec<&Rule>) = match (key, value) {
                (ObjectKey::Chain(id), ObjectValue::Rules(rules)) => (id, rules.iter().collect()),
                (ObjectKey::Hook(hook), _) => (&hook.to, vec![&hook.rule]),
                _ => continue,
            };
            for rule in rules {
                if let Target::Jump(name) = rule.target {
                    let to = ChainId { name, ..*id };
                    missing.insert(to, !self.objects.contains_key(&ObjectKey::Chain(to)));
                }
            }
        }
        if missing.values().any(|missing| *missing) {
            Err("no chain/target/match by that name")
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl Iptables for FakeIptables {
    fn features(&self) -> Features {
        self.features
    }

    async fn apply(&self, change: &Restore) -> Result<Spent, IptablesError> {
        if change.is_empty() {
            return Ok(Spent::default());
        }
        let waited = std::mem::take(&mut self.lock().held);
        if !waited.is_zero() {
            tokio::time::sleep(waited).await;
        }
        let mut inner = self.lock();
        inner.runs.push(change.clone());
        let mut objects = std::mem::take(&mut inner.objects);
        let outcome = self.restore(change, &inner.refused, &mut objects);
        inner.objects = objects;
        outcome.map(|()| Spent { waited })
    }

    async fn dump(&self, ipv6: bool) -> Result<IptablesDump, IptablesError> {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        self.faults.check(&format!("iptables list {family}")).map_err(|errno| IptablesError::Refused {
            what: format!("to list {family}"),
            line: None,
            said: errno.desc().to_owned(),
        })?;
        let of_family = |key: &ObjectKey| key.claim().is_some_and(|claim| claim.is_ipv6() == ipv6);
        let inner = self.lock();
        let objects = inner.objects.iter().filter(|(key, _)| of_family(key));
        let objects = objects.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(IptablesDump { objects, foreign_rules: 0 })
    }
}

#[cfg(test)]
mod tests;
