//! How long a failed step rests before its next try (kubelet-surface B11).

use std::time::Duration;

use crate::pod::step::{StepError, StepKind};

/// A pause that doubles from `first` to `last`.
#[derive(Clone, Copy)]
struct Pause {
    first: Duration,
    last: Duration,
}

/// Volumes, as the kubelet's volume back-off.
const VOLUME: Pause = Pause { first: Duration::from_millis(500), last: Duration::from_secs(122) };
/// Image pulls.
const IMAGE: Pause = Pause { first: Duration::from_secs(10), last: Duration::from_secs(300) };
/// Everything else that is part of syncing a pod: the kubelet waits 10 s at once, we get there in steps.
const SYNC: Pause = Pause { first: Duration::from_secs(1), last: Duration::from_secs(10) };
/// What only a change from outside can mend is looked at again now and then.
const HOPELESS: Pause = Pause { first: Duration::from_secs(10), last: Duration::from_secs(60) };

/// The pause after the `attempts`-th failure in a row (1 for the first).
pub fn pause(kind: StepKind, error: &StepError, attempts: u32) -> Duration {
    let rule = match kind {
        _ if !error.retryable => HOPELESS,
        StepKind::PullImage => IMAGE,
        StepKind::PrepareVolume | StepKind::UpdateVolume | StepKind::ReleaseVolume => VOLUME,
        _ => SYNC,
    };
    let doublings = attempts.saturating_sub(1).min(20);
    rule.first.saturating_mul(1 << doublings).min(rule.last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_limit_of_its_kind() {
        let cases = [
            (StepKind::PullImage, true, [10_000, 20_000, 40_000], 300_000),
            (StepKind::PrepareVolume, true, [500, 1000, 2000], 122_000),
            (StepKind::CreateSandbox, true, [1000, 2000, 4000], 10_000),
            (StepKind::PullImage, false, [10_000, 20_000, 40_000], 60_000),
        ];
        for (kind, retryable, first, last) in cases {
            let error = StepError { reason: String::new(), message: String::new(), retryable };
            let millis = |attempts| pause(kind, &error, attempts).as_millis();
            assert_eq!([millis(1), millis(2), millis(3)], first, "{kind:?}");
            assert_eq!(millis(u32::MAX), last, "{kind:?}");
        }
    }
}
