//! From the answers of single tries to a verdict: successThreshold and failureThreshold in a row, and
//! the hold after a liveness or startup failure. Pure (behaviours 23; prober/worker.go).

use longshore_core::pod::snapshot::ProbeKind;

/// The counts of one probe of one container instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Thresholds {
    last: Option<bool>,
    /// Tries in a row that gave `last`.
    run: u32,
    verdict: Option<bool>,
}

impl Thresholds {
    /// Takes one answer. `Some` where the verdict is new or another than before; until the threshold
    /// is reached the verdict stays, so that one bad answer after a restart of the daemon is no news.
    pub fn step(&mut self, healthy: bool, success_threshold: u32, failure_threshold: u32) -> Option<bool> {
        self.run = if self.last == Some(healthy) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(healthy);
        let needed = if healthy { success_threshold } else { failure_threshold };
        if self.run < needed.max(1) || self.verdict == Some(healthy) {
            return None;
        }
        self.verdict = Some(healthy);
        self.verdict
    }

    /// Nothing this instance answers can matter any more: it is about to be killed for its liveness or
    /// startup failure, or its startup succeeded.
    pub fn is_final(&self, kind: ProbeKind) -> bool {
        match kind {
            ProbeKind::Startup => self.verdict.is_some(),
            ProbeKind::Liveness => self.verdict == Some(false),
            ProbeKind::Readiness => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as `+` and `-`; the expected verdicts under them, a blank where there is none.
    fn verdicts(answers: &str, success: u32, failure: u32) -> String {
        let mut thresholds = Thresholds::default();
        let step = |answer| match thresholds.step(answer == '+', success, failure) {
            Some(true) => '+',
            Some(false) => '-',
            None => ' ',
        };
        answers.chars().map(step).collect()
    }

    #[test]
    fn verdicts_follow_the_thresholds() {
        let cases = [
            ("+++", 1, 3, "+  "),
            ("---+", 1, 3, "  -+"),
            ("--+--+", 1, 3, "  +   "),
            ("+--+---", 1, 3, "+     -"),
            ("+-+-+-", 1, 1, "+-+-+-"),
            ("-++-++", 2, 1, "- +- +"),
            ("-+-+-+", 2, 2, "      "),
            ("----", 1, 1, "-   "),
            ("+", 0, 0, "+"),
        ];
        for (answers, success, failure, expected) in cases {
            assert_eq!(verdicts(answers, success, failure), expected, "{answers} {success}/{failure}");
        }
    }

    #[test]
    fn liveness_holds_after_failure_and_startup_after_any_verdict() {
        let after = |healthy| {
            let mut thresholds = Thresholds::default();
            thresholds.step(healthy, 1, 1);
            [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness]
                .map(|kind| thresholds.is_final(kind))
        };
        assert_eq!(after(true), [true, false, false]);
        assert_eq!(after(false), [true, true, false]);
    }
}
