//! Lines of the log that callers can cause as often as they like: the first is told, those that follow are
//! counted until some time has passed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Between two lines of one kind.
const EVERY: Duration = Duration::from_secs(30);

/// One kind of line.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// What to add to the line where it is to be told; `None` where it is one too many.
    pub(super) fn line(&self) -> Option<String> {
        let now = Instant::now();
        // Nothing is left half done by a panic.
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.is_some_and(|last| now.duration_since(last) < EVERY) {
            told.untold += 1;
            return None;
        }
        told.last = Some(now);
        Some(match std::mem::take(&mut told.untold) {
            0 => String::new(),
            1 => " (and once more since the last such line)".to_owned(),
            more => format!(" (and {more} times more since the last such line)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_told_and_the_others_are_counted() {
        let seldom = Seldom::default();
        assert_eq!(seldom.line().as_deref(), Some(""));
        assert!((0..1000).all(|_| seldom.line().is_none()));
        tokio::time::advance(EVERY).await;
        assert_eq!(seldom.line().as_deref(), Some(" (and 1000 times more since the last such line)"));
        assert_eq!(seldom.line(), None);
        tokio::time::advance(EVERY).await;
        assert_eq!(seldom.line().as_deref(), Some(" (and once more since the last such line)"));
        tokio::time::advance(EVERY).await;
        assert_eq!(seldom.line().as_deref(), Some(""));
    }
}
