//! Pauses between tries: doubling, bounded, and jittered, so that a thousand nodes do not come back to
//! a server in the same instant.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Doubling pauses from `first` to `longest`, each drawn from its upper half.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, tries: 0 }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let full = self.first.saturating_mul(1 << self.tries.min(20)).min(self.longest);
        self.tries = self.tries.saturating_add(1);
        between(full / 2, full)
    }

    /// It worked: the next failure starts from the shortest pause.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// Failures in a row.
    pub fn tries(&self) -> u32 {
        self.tries
    }
}

/// A random length from `low` up to `high`. The standard library's hash keys are random per call site
/// and process, which is all a jitter needs.
pub fn between(low: Duration, high: Duration) -> Duration {
    let span = u64::try_from(high.saturating_sub(low).as_nanos()).unwrap_or(u64::MAX);
    if span == 0 {
        return low;
    }
    let random = RandomState::new().hash_one(0_u8);
    low + Duration::from_nanos(random % span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_differ() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(10));
        let mut backoff = Backoff::new(first, longest);
        for tries in 0..40_u32 {
            let full = (first * (1 << tries.min(16))).min(longest);
            let pause = backoff.pause();
            assert!(pause >= full / 2 && pause <= full, "try {tries}: {pause:?} of {full:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= first);
        let drawn: std::collections::HashSet<_> = (0..20).map(|_| between(first, longest)).collect();
        assert!(drawn.len() > 15, "{drawn:?}");
        assert_eq!(between(first, first), first);
    }
}
