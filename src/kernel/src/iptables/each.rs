//! A change in which one bad object must keep no other out: what the program refuses is taken out by the
//! line it names, or found by halving where it names none, and the rest goes in.

use std::time::Duration;

use longshore_core::ruleset::diff::{Change, Op};
use longshore_core::ruleset::ipt::text::Restore;
use longshore_core::ruleset::object::{ObjectKey, ObjectValue};

use super::{Iptables, IptablesError};

/// Each run costs as much as the table is large; more bad objects than these wait for the next time.
const MAX_RUNS: u32 = 48;

/// How each operation went, and what was waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcomes {
    /// One for each operation.
    pub each: Vec<Result<(), IptablesError>>,
    /// How long another program's xtables lock was waited for, in all runs.
    pub waited: Duration,
    /// How often the program was run.
    pub runs: u32,
}

/// Carry out operations of one family, in one run where nothing is refused.
pub async fn apply_each(iptables: &dyn Iptables, ipv6: bool, ops: &[Op]) -> Outcomes {
    let mut all = Vec::with_capacity(ops.len());
    // Chains are deleted after what jumps to them has changed, also when halves go one after the other.
    let (last, first): (Vec<usize>, Vec<usize>) = (0..ops.len()).partition(|index| is_deletion(&ops[*index]));
    all.extend(first);
    all.extend(last);
    let mut attempt =
        Attempt { iptables, ipv6, ops, each: vec![None; ops.len()], waited: Duration::ZERO, runs: 0 };
    attempt.work(all).await;
    let (waited, runs) = (attempt.waited, attempt.runs);
    Outcomes {
        each: attempt.each.into_iter().map(|outcome| outcome.unwrap_or(Ok(()))).collect(),
        waited,
        runs,
    }
}

fn is_deletion(op: &Op) -> bool {
    matches!((&op.key, &op.change), (ObjectKey::Chain(_), Change::Remove))
}

struct Attempt<'a> {
    iptables: &'a dyn Iptables,
    ipv6: bool,
    ops: &'a [Op],
    each: Vec<Option<Result<(), IptablesError>>>,
    waited: Duration,
    runs: u32,
}

impl Attempt<'_> {
    async fn work(&mut self, all: Vec<usize>) {
        let mut groups = vec![all];
        while let Some(group) = groups.pop() {
            if group.is_empty() {
                continue;
            }
            let (text_ops, origin) = self.text_ops(&group);
            let restore = Restore::of(self.ipv6, &text_ops);
            self.runs += 1;
            let error = match self.iptables.apply(&restore).await {
                Ok(spent) => {
                    self.waited += spent.waited;
                    group.iter().for_each(|index| self.each[*index] = Some(Ok(())));
                    continue;
                }
                Err(error) => error,
            };
            let IptablesError::Refused { line, .. } = &error else { return self.give_up(&error) };
            if self.runs >= MAX_RUNS {
                return self.give_up(&error);
            }
            let committed = line.map(|line| restore.committed_before(line, &text_ops)).unwrap_or_default();
            for index in committed {
                self.each[origin[index]] = Some(Ok(()));
            }
            let culprit = line.and_then(|line| restore.owner(line)).map(|index| origin[index]);
            let left: Vec<usize> = group.into_iter().filter(|index| self.each[*index].is_none()).collect();
            match (culprit, left.as_slice()) {
                (Some(culprit), _) => {
                    self.each[culprit] = Some(Err(error));
                    groups.push(left.into_iter().filter(|index| *index != culprit).collect());
                }
                (None, [one]) => self.each[*one] = Some(Err(error)),
                (None, many) => {
                    let (first, second) = many.split_at(many.len() / 2);
                    groups.push(second.to_vec());
                    groups.push(first.to_vec());
                }
            }
        }
    }

    /// The group's operations, and new chains outside of it as empty ones: what jumps to them can be
    /// written, and packets fall through. Gives the place of each in the whole.
    fn text_ops(&self, group: &[usize]) -> (Vec<Op>, Vec<usize>) {
        let mut origin = group.to_vec();
        let mut ops: Vec<Op> = group.iter().map(|index| self.ops[*index].clone()).collect();
        if group.len() < self.ops.len() {
            for (index, op) in self.ops.iter().enumerate() {
                let new = matches!((&op.key, &op.change), (ObjectKey::Chain(_), Change::Add(_)));
                let done = matches!(self.each[index], Some(Ok(())));
                if new && !done && !group.contains(&index) {
                    let mut empty = op.clone();
                    empty.change = Change::Add(ObjectValue::Rules(Vec::new()));
                    ops.push(empty);
                    origin.push(index);
                }
            }
        }
        (ops, origin)
    }

    fn give_up(&mut self, error: &IptablesError) {
        for outcome in self.each.iter_mut().filter(|outcome| outcome.is_none()) {
            *outcome = Some(Err(error.clone()));
        }
    }
}
