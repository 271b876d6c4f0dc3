//! Scripted faults for the fakes: which operation fails, how often, with which errno. No state of a
//! kernel subsystem lives here; each fake sits beside its real implementation.

use std::sync::Mutex;

use nix::errno::Errno;

/// Faults of one fake. An operation asks [`Faults::check`] with its text, the same text its error
/// would have, so that a test scripts `"add destination 10.1.2.3:53"` and needs no enum of hooks.
#[derive(Debug, Default)]
pub struct Faults {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    scripted: Vec<Fault>,
    every: Option<(u64, Errno)>,
    asked: u64,
    injected: u64,
}

#[derive(Debug)]
struct Fault {
    contains: String,
    errno: Errno,
    left: u32,
}

impl Faults {
    /// The next `times` operations whose text contains `contains` fail with `errno`.
    pub fn script(&self, contains: &str, errno: Errno, times: u32) {
        let fault = Fault { contains: contains.to_owned(), errno, left: times };
        self.lock().scripted.push(fault);
    }

    /// From now on every `n`th operation fails with `errno`; 0 stops that.
    pub fn every(&self, n: u64, errno: Errno) {
        self.lock().every = (n > 0).then_some((n, errno));
    }

    /// Forget every scripted fault.
    pub fn clear(&self) {
        *self.lock() = Inner::default();
    }

    /// How many faults were injected: a test that scripts one asserts that it happened.
    pub fn injected(&self) -> u64 {
        self.lock().injected
    }

    /// Whether the operation with this text fails now.
    pub fn check(&self, operation: &str) -> Result<(), Errno> {
        let mut inner = self.lock();
        inner.asked += 1;
        let asked = inner.asked;
        let scripted =
            inner.scripted.iter_mut().find(|fault| fault.left > 0 && operation.contains(&fault.contains));
        let errno = match scripted {
            Some(fault) => {
                fault.left -= 1;
                Some(fault.errno)
            }
            None => inner.every.and_then(|(n, errno)| asked.is_multiple_of(n).then_some(errno)),
        };
        match errno {
            Some(errno) => {
                inner.injected += 1;
                Err(errno)
            }
            None => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A test that panicked while it held the lock has failed already.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scripted_fault_hits_its_operation_only_and_as_often_as_asked() {
        let faults = Faults::default();
        faults.script("add b", Errno::EBUSY, 2);
        let outcomes: Vec<_> =
            ["add a", "add b", "add b now", "add b"].iter().map(|op| faults.check(op)).collect();
        assert_eq!(outcomes, [Ok(()), Err(Errno::EBUSY), Err(Errno::EBUSY), Ok(())]);
        assert_eq!(faults.injected(), 2);
    }

    #[test]
    fn every_nth_operation_fails() {
        let faults = Faults::default();
        faults.every(3, Errno::EAGAIN);
        let failed: Vec<_> = (1..=7).filter(|_| faults.check("any").is_err()).collect();
        assert_eq!(failed, [3, 6]);
        faults.clear();
        assert!((0..9).all(|_| faults.check("any").is_ok()));
    }
}
