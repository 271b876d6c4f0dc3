//! A token bucket for image pulls (`registryPullQPS`, `registryBurst`). Pure: time is a parameter.

use std::time::Duration;

/// Pulls that may begin now. A pull over the rate is refused, not queued, as the kubelet does it; the
/// pod's back-off brings it back.
#[derive(Clone, Debug, PartialEq)]
pub struct PullRate {
    per_second: f64,
    burst: f64,
    tokens: f64,
    /// Of the last look, since some fixed instant.
    looked_at: Duration,
}

impl PullRate {
    /// `per_second` pulls on average and `burst` at once, at least one.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Self { per_second: f64::from(per_second), burst, tokens: burst, looked_at: Duration::ZERO }
    }

    /// Whether one more pull may begin at `now`, counted where it may.
    pub fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.looked_at).as_secs_f64();
        self.looked_at = self.looked_at.max(now);
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut rate = PullRate::new(5, 3);
        let taken: Vec<bool> = [0, 0, 0, 0, 100, 200, 200, 400, 10_000, 10_000, 10_000, 10_000]
            .into_iter()
            .map(|ms| rate.take(Duration::from_millis(ms)))
            .collect();
        let expected = [true, true, true, false, false, true, false, true, true, true, true, false];
        assert_eq!(taken, expected);
    }
}
