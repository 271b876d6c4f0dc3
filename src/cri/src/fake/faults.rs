//! Faults of calls: which calls are hit, and what happens to them.

use std::time::Duration;

use tonic::{Code, Status};

use crate::counters::Operation;

/// A rule that hits some calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `None`: any call.
    pub operation: Option<Operation>,
    pub when: When,
    pub effect: Effect,
}

/// Which of the calls a rule looks at are hit. Counting starts when the rule is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// All of them.
    Always,
    /// The `n`th, from 1, and no other.
    Nth(u64),
    /// The first `n`.
    First(u64),
    /// So many out of a hundred, by the runtime's seed.
    Percent(u8),
}

/// What happens to a call that is hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails and changes nothing.
    Fail(Code, String),
    /// It changes nothing and never answers.
    Hang,
    /// It is carried out, and its answer is lost on the way.
    LoseAnswer,
    /// It is carried out and never answers.
    HangAfter,
    /// It is carried out at once, and answers so much later: the answer is old when it comes.
    Late(Duration),
}

impl Fault {
    /// Fails the `n`th call of `operation` from now on.
    pub fn nth(operation: Operation, n: u64, code: Code, text: &str) -> Self {
        Self { operation: Some(operation), when: When::Nth(n), effect: Effect::Fail(code, text.to_owned()) }
    }

    /// Fails `percent` of all calls, half of them after they were carried out.
    pub fn random(percent: u8) -> [Self; 2] {
        let fail = Effect::Fail(Code::Unknown, "fault by lot".to_owned());
        let half = percent / 2;
        [
            Self { operation: None, when: When::Percent(percent - half), effect: fail },
            Self { operation: None, when: When::Percent(half), effect: Effect::LoseAnswer },
        ]
    }
}

/// The rules in force, each with the number of calls it has looked at.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Vec<(Fault, u64)>,
    random: SplitMix,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { rules: Vec::new(), random: SplitMix(seed) }
    }

    pub(super) fn add(&mut self, fault: Fault) {
        self.rules.push((fault, 0));
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    /// The effect on the next call of `operation`: that of the first rule that hits. Every rule counts it.
    pub(super) fn next(&mut self, operation: Operation) -> Option<Effect> {
        let random = &mut self.random;
        let mut hit = None;
        for (fault, seen) in &mut self.rules {
            if fault.operation.is_some_and(|only| only != operation) {
                continue;
            }
            *seen += 1;
            let hits = match fault.when {
                When::Always => true,
                When::Nth(n) => *seen == n,
                When::First(n) => *seen <= n,
                When::Percent(percent) => random.below(100) < u64::from(percent),
            };
            if hits && hit.is_none() {
                hit = Some(fault.effect.clone());
            }
        }
        hit
    }
}

/// The status of an answer lost on the way, as a broken connection gives it.
pub(super) fn lost() -> Status {
    Status::unavailable("error reading from server: EOF")
}

/// SplitMix64: small, and the same on every machine for the same seed.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_hit_the_calls_they_name() {
        let mut faults = Faults::new(1);
        faults.add(Fault::nth(Operation::StartContainer, 2, Code::Internal, "x"));
        faults.add(Fault { operation: None, when: When::First(1), effect: Effect::Hang });
        let hits: Vec<bool> = [
            Operation::Version,
            Operation::StartContainer,
            Operation::StartContainer,
            Operation::StartContainer,
        ]
        .into_iter()
        .map(|operation| faults.next(operation).is_some())
        .collect();
        assert_eq!(hits, [true, false, true, false]);
    }

    #[test]
    fn lots_are_the_same_for_the_same_seed_and_about_right() {
        let hits = |seed| {
            let mut faults = Faults::new(seed);
            Fault::random(10).into_iter().for_each(|fault| faults.add(fault));
            (0..1000).map(|_| faults.next(Operation::Status).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(hits(7), hits(7));
        assert_ne!(hits(7), hits(8));
        let count = hits(7).iter().filter(|hit| **hit).count();
        assert!((70..130).contains(&count), "{count} of 1000");
    }
}
