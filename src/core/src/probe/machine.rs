//! Thresholds and times of one probe against one container instance (behaviours 23, 24;
//! pkg/kubelet/prober/worker.go). Time comes in, verdicts go out.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::pod::local::ProbeResult;
use crate::pod::snapshot::{ProbeKind, ProbeTarget};

/// The answer of one try, before thresholds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawResult {
    pub success: bool,
    /// In words, bounded by who made it: `HTTP 503`, `connection refused`.
    pub message: String,
}

/// One probe's counters. A new container instance gets a new machine.
#[derive(Clone, Debug)]
pub struct ProbeMachine {
    kind: ProbeKind,
    success_threshold: u32,
    failure_threshold: u32,
    /// Answers of one kind in a row: whether they were successes, and how many.
    run: (bool, u32),
    verdict: Option<ProbeResult>,
    /// Taken over from before the agent: counts as healthy until the thresholds say otherwise.
    adopted: bool,
}

impl ProbeMachine {
    /// `known` is the verdict from before a restart of the agent; `adopted` says that the container
    /// is from before it.
    pub fn new(target: &ProbeTarget, known: Option<ProbeResult>, adopted: bool) -> Self {
        Self {
            kind: target.kind,
            success_threshold: target.success_threshold,
            failure_threshold: target.failure_threshold,
            run: (true, 0),
            verdict: known,
            adopted,
        }
    }

    /// When to try first: exactly `initialDelaySeconds` after the container's start. What is due
    /// already because the agent was restarted is spread over one period by `share` (0 to 1), so that
    /// a node full of pods is not probed at one instant.
    pub fn first_try(target: &ProbeTarget, now: Timestamp, share: f64) -> Timestamp {
        let due = plus(target.container_started_at, target.initial_delay);
        if due >= now || plus(due, target.period) >= now {
            return due.max(now);
        }
        plus(now, target.period.mul_f64(share.clamp(0.0, 1.0)))
    }

    /// When to try again after a try that began at `last`; `None` holds the probe until there is a
    /// new container, because a liveness or startup probe that gave up ends the old one.
    pub fn next_try(&self, target: &ProbeTarget, last: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let kills = self.kind != ProbeKind::Readiness;
        let gave_up = self.verdict.as_ref().is_some_and(|verdict| !verdict.healthy);
        if kills && gave_up {
            return None;
        }
        // A try that took longer than a period is followed at once, never by a backlog.
        Some(plus(last, target.period).max(now))
    }

    pub fn verdict(&self) -> Option<&ProbeResult> {
        self.verdict.as_ref()
    }

    /// Counts an answer; `Some` where the verdict, or why it is unhealthy, changed.
    pub fn fold(&mut self, raw: RawResult, now: Timestamp) -> Option<ProbeResult> {
        self.run = if self.run.0 == raw.success {
            (raw.success, self.run.1.saturating_add(1))
        } else {
            (raw.success, 1)
        };
        let threshold = if raw.success { self.success_threshold } else { self.failure_threshold };
        if self.run.1 < threshold && !self.is_first_word(raw.success) {
            return None;
        }
        let since = match &self.verdict {
            Some(before) if before.healthy == raw.success => before.since,
            _ => now,
        };
        let verdict = ProbeResult { healthy: raw.success, since, message: raw.message };
        let told = match &self.verdict {
            Some(before) if before.healthy && verdict.healthy => false,
            before => before.as_ref() != Some(&verdict),
        };
        self.verdict = Some(verdict.clone());
        told.then_some(verdict)
    }

    /// Readiness is false from the beginning, so that its first failure is a verdict already: it says
    /// why the container is not ready. Not for an adopted one, which may have been ready.
    fn is_first_word(&self, success: bool) -> bool {
        self.kind == ProbeKind::Readiness && !success && self.verdict.is_none() && !self.adopted
    }
}

fn plus(at: Timestamp, duration: Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    at.saturating_add(duration).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::at;
    use crate::pod::snapshot::ProbeAction;
    use crate::pod::step::Hook;

    fn target(kind: ProbeKind, success: u32, failure: u32) -> ProbeTarget {
        ProbeTarget {
            container: "c".into(),
            id: "1".into(),
            kind,
            action: ProbeAction::Hook(Hook::Exec { command: vec![] }),
            container_started_at: at(100),
            initial_delay: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            period: Duration::from_secs(10),
            success_threshold: success,
            failure_threshold: failure,
        }
    }

    /// Verdicts told for a row of answers: `+` healthy, `-` unhealthy, `.` nothing new.
    fn told(
        kind: ProbeKind,
        thresholds: (u32, u32),
        known: Option<bool>,
        adopted: bool,
        answers: &str,
    ) -> String {
        let target = target(kind, thresholds.0, thresholds.1);
        let known = known.map(|healthy| ProbeResult { healthy, since: at(0), message: "m".into() });
        let mut machine = ProbeMachine::new(&target, known, adopted);
        let word = |result: Option<ProbeResult>| match result {
            Some(result) if result.healthy => '+',
            Some(_) => '-',
            None => '.',
        };
        let answer = |success| RawResult { success, message: "m".into() };
        answers.chars().enumerate().map(|(n, c)| word(machine.fold(answer(c == 's'), at(n as i64)))).collect()
    }

    #[test]
    fn thresholds_decide() {
        use ProbeKind::{Liveness, Readiness, Startup};
        let cases = [
            (Readiness, (1, 3), None, false, "sfffsf", "+..-+."),
            (Readiness, (1, 3), None, false, "ffs", "-.+"),
            (Readiness, (3, 1), None, false, "ssfsss", "..-..+"),
            (Readiness, (1, 3), None, true, "fffs", "..-+"),
            (Readiness, (1, 3), Some(true), true, "sff", "..."),
            (Readiness, (1, 1), Some(false), true, "fs", ".+"),
            (Liveness, (1, 3), None, false, "ffsfff", "..+..-"),
            (Startup, (1, 2), None, false, "fs", ".+"),
            (Startup, (1, 2), None, false, "ff", ".-"),
        ];
        for (kind, thresholds, known, adopted, answers, expected) in cases {
            assert_eq!(told(kind, thresholds, known, adopted, answers), expected, "{kind:?} {answers}");
        }
    }

    #[test]
    fn first_try_is_exact_and_only_a_restart_spreads() {
        let target = target(ProbeKind::Readiness, 1, 1);
        let cases = [(100, 105), (105, 105), (107, 107), (115, 115), (200, 205)];
        for (now, first) in cases {
            assert_eq!(ProbeMachine::first_try(&target, at(now), 0.5), at(first), "seen at {now}");
        }
    }

    #[test]
    fn holds_after_giving_up_and_never_piles_up() {
        let failed = RawResult { success: false, message: String::new() };
        for (kind, held) in
            [(ProbeKind::Liveness, true), (ProbeKind::Startup, true), (ProbeKind::Readiness, false)]
        {
            let target = target(kind, 1, 1);
            let mut machine = ProbeMachine::new(&target, None, false);
            assert_eq!(machine.next_try(&target, at(1), at(2)), Some(at(11)));
            assert_eq!(machine.next_try(&target, at(1), at(30)), Some(at(30)), "after a slow try");
            machine.fold(failed.clone(), at(1));
            assert_eq!(machine.next_try(&target, at(1), at(2)).is_none(), held, "{kind:?}");
        }
    }
}
