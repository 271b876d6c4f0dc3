//! How long a runtime had anything to do: what is left of a caller's time is the caller's own.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::locked;

/// Adds up the times in which at least one call is under way.
#[derive(Debug, Default)]
pub(super) struct Busy(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    since: Option<Instant>,
    total: Duration,
}

impl Busy {
    /// A call begins; it ends when the value is dropped, however it ends.
    pub(super) fn begin(&self) -> Call<'_> {
        let mut state = locked(&self.0);
        state.under_way += 1;
        state.since.get_or_insert_with(Instant::now);
        Call(self)
    }

    pub(super) fn total(&self) -> Duration {
        locked(&self.0).total
    }
}

#[derive(Debug)]
pub(super) struct Call<'a>(&'a Busy);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut state = locked(&self.0.0);
        state.under_way -= 1;
        if state.under_way == 0
            && let Some(since) = state.since.take()
        {
            state.total += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn times_that_overlap_count_once_and_pauses_not_at_all() {
        let busy = Busy::default();
        let pass = |millis| tokio::time::advance(Duration::from_millis(millis));
        let first = busy.begin();
        pass(10).await;
        let second = busy.begin();
        pass(10).await;
        drop(first);
        pass(10).await;
        drop(second);
        pass(100).await;
        drop(busy.begin());
        assert_eq!(busy.total(), Duration::from_millis(30));
    }
}
