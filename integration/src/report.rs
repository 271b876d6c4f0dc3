//! Counting and printing of results, in one form for every tier: `N passed, N failed, N skipped`.
//! A skip always has a reason, and is a failure where all tiers were asked for.

use std::fmt;

/// Results of one or more test runs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    /// Names of what failed.
    pub failed: Vec<String>,
    /// Name and reason of what did not run.
    pub skipped: Vec<(String, String)>,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// Adds one result by name.
    pub fn record<E: fmt::Display>(&mut self, name: &str, result: Result<(), E>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(_) => self.failed.push(name.to_owned()),
        }
    }

    /// Reads one line of libtest's output, where it is a result.
    pub fn read_libtest(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test ") else { return };
        let Some((name, verdict)) = rest.rsplit_once(" ... ") else { return };
        match verdict.split([' ', ',']).next() {
            Some("ok") => self.passed += 1,
            Some("FAILED") => self.failed.push(name.to_owned()),
            Some("ignored") => {
                let reason = verdict.strip_prefix("ignored, ").unwrap_or("ignored without a reason");
                self.skipped.push((name.to_owned(), reason.to_owned()));
            }
            _ => {}
        }
    }

    /// Whether nothing failed; with `strict`, whether nothing was skipped either.
    pub fn good(&self, strict: bool) -> bool {
        self.failed.is_empty() && (!strict || self.skipped.is_empty())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())?;
        for name in &self.failed {
            write!(f, "\n  failed: {name}")?;
        }
        for (name, reason) in &self.skipped {
            write!(f, "\n  skipped: {name}: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_libtest_lines() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test a::b ... ok",
            "test c - should panic ... ok",
            "test d ... FAILED",
            "test e ... ignored, needs a kernel with IPVS",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured",
        ] {
            tally.read_libtest(line);
        }
        let skipped = vec![("e".to_owned(), "needs a kernel with IPVS".to_owned())];
        assert_eq!(tally, Tally { passed: 2, failed: vec!["d".to_owned()], skipped });
        assert!(!tally.good(false));
    }
}
