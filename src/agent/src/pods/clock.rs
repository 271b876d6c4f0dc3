//! Wall-clock time for decisions. In production the system's clock; under tests it follows tokio's
//! clock, so that a paused runtime makes hours pass in no time.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug)]
pub enum Clock {
    System,
    /// Reads `start` plus what tokio's clock has advanced since `origin`.
    Tokio {
        start: Timestamp,
        origin: Instant,
    },
}

impl Clock {
    /// A clock that shows `start` now and goes as tokio's clock goes.
    pub fn following_tokio(start: Timestamp) -> Self {
        Self::Tokio { start, origin: Instant::now() }
    }

    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Tokio { start, origin } => start.saturating_add(origin.elapsed()).unwrap_or(Timestamp::MAX),
        }
    }

    /// How long from now until `at`; zero where it has passed.
    pub fn until(&self, at: Timestamp) -> Duration {
        Duration::try_from(at.duration_since(self.now())).unwrap_or(Duration::ZERO)
    }
}

/// Whole milliseconds from one instant to a later one.
pub fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}
