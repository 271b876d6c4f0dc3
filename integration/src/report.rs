//! Counting and printing of results, in one form for every tier: `N passed, N failed, N skipped`.
//! A skip always has a reason, and is a failure where all tiers were asked for.

use std::fmt;
use std::time::{Duration, Instant};

/// Results of one or more test runs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    /// Names of what failed.
    pub failed: Vec<String>,
    /// Name and reason of what did not run.
    pub skipped: Vec<(String, String)>,
    /// As `skipped`, for want of something nobody has to have; never a failure.
    pub excused: Vec<(String, String)>,
    /// How long tests took, where that is known: one test, one scenario, or a test program whose tests run together.
    pub times: Vec<(String, Duration)>,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
        self.excused.extend(other.excused);
        self.times.extend(other.times);
    }

    /// Adds one result by name.
    pub fn record<E: fmt::Display>(&mut self, name: &str, took: Duration, result: Result<(), E>) {
        self.times.push((name.to_owned(), took));
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

    /// The slowest of what was timed, one per line.
    pub fn slowest(&self, count: usize) -> String {
        let mut times: Vec<_> = self.times.iter().collect();
        times.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        let lines = times.iter().take(count);
        lines.map(|(name, took)| format!("{:>7.1} s  {name}\n", took.as_secs_f32())).collect()
    }

    /// How many did not run, whatever the reason.
    pub fn not_run(&self) -> usize {
        self.skipped.len() + self.excused.len()
    }

    /// Whether nothing failed; with `strict`, whether nothing was skipped either.
    pub fn good(&self, strict: bool) -> bool {
        self.failed.is_empty() && (!strict || self.skipped.is_empty())
    }
}

/// Reads the output of test programs line by line and keeps their times.
#[derive(Debug)]
pub struct LibtestOutput {
    pub tally: Tally,
    /// The program whose lines come now.
    program: String,
    /// The test whose captured output comes now (`--show-output`).
    shown: String,
    /// When the last line came, where tests run one after the other: the next one's time counts from there.
    last: Option<Instant>,
}

impl LibtestOutput {
    /// `one_by_one`: each test is timed, else the program as a whole.
    pub fn new(program: &str, one_by_one: bool, now: Instant) -> Self {
        Self {
            tally: Tally::default(),
            program: program.to_owned(),
            shown: String::new(),
            last: one_by_one.then_some(now),
        }
    }

    /// Takes one line; `now` is when it came.
    pub fn line(&mut self, line: &str, now: Instant) {
        // As cargo announces them: `Running unittests src/lib.rs (target/debug/deps/longshore_core-0123)`.
        if let Some(path) = line.trim_start().strip_prefix("Running ").and_then(|l| l.split('(').nth(1)) {
            let file = path.trim_end_matches(')').rsplit('/').next().unwrap_or_default();
            file.split('-').next().unwrap_or_default().clone_into(&mut self.program);
        }
        if let Some(test) = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----")) {
            test.clone_into(&mut self.shown);
        }
        // Such a test was counted as passed: libtest has no word for one that found out by itself.
        if let Some(reason) = line.strip_prefix("SKIPPED: ") {
            self.tally.passed = self.tally.passed.saturating_sub(1);
            self.tally.skipped.push((format!("{} {}", self.program, self.shown), reason.to_owned()));
        }
        self.tally.read_libtest(line);
        let result = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "));
        match (self.last.as_mut(), result) {
            (Some(last), Some((name, _))) => {
                self.tally.times.push((format!("{} {name}", self.program), now - *last));
                *last = now;
            }
            (Some(last), None) => *last = now,
            (None, _) => {
                let seconds = line.rsplit_once("finished in ").and_then(|(_, s)| s.strip_suffix('s'));
                if let Some(seconds) = seconds.and_then(|s| s.parse().ok()).filter(|s: &f64| *s >= 0.0) {
                    self.tally
                        .times
                        .push((format!("{} (all)", self.program), Duration::from_secs_f64(seconds)));
                }
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.not_run())?;
        for name in &self.failed {
            write!(f, "\n  failed: {name}")?;
        }
        for (name, reason) in self.skipped.iter().chain(&self.excused) {
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
        assert_eq!(tally, Tally { passed: 2, failed: vec!["d".to_owned()], skipped, ..Tally::default() });
        assert!(!tally.good(false));
    }

    #[test]
    fn what_is_excused_is_shown_and_fails_nothing() {
        let lack = vec![("tier x".to_owned(), "no compiler".to_owned())];
        let excused = Tally { excused: lack.clone(), ..Tally::default() };
        let skipped = Tally { skipped: lack, ..Tally::default() };
        assert!(excused.good(true) && !skipped.good(true) && skipped.good(false));
        assert_eq!(excused.to_string(), skipped.to_string());
        assert!(excused.to_string().contains("1 skipped"), "{excused}");
    }

    #[test]
    fn times_are_those_of_programs_or_of_single_tests() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut together = LibtestOutput::new("cargo test", false, start);
        for line in [
            "     Running unittests src/lib.rs (target/debug/deps/longshore_core-0123abcd)",
            "test a ... ok",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            together.line(line, at(9));
        }
        assert_eq!(together.tally.slowest(3), "    1.5 s  longshore_core (all)\n");
        let mut each = LibtestOutput::new("netns_nft", true, start);
        for (line, seconds) in [("running 2 tests", 1), ("test a ... ok", 2), ("test b ... FAILED", 5)] {
            each.line(line, at(seconds));
        }
        assert_eq!(each.tally.slowest(1), "    3.0 s  netns_nft b\n");
        assert_eq!((each.tally.passed, each.tally.failed.len()), (1, 1));
    }

    #[test]
    fn a_test_that_says_it_was_skipped_has_not_passed() {
        let mut output = LibtestOutput::new("vm_cgroup", true, Instant::now());
        for line in
            ["test a ... ok", "test b ... ok", "successes:", "---- b stdout ----", "SKIPPED: no systemd"]
        {
            output.line(line, Instant::now());
        }
        assert_eq!(output.tally.passed, 1);
        assert_eq!(output.tally.skipped, [("vm_cgroup b".to_owned(), "no systemd".to_owned())]);
        assert!(output.tally.good(false) && !output.tally.good(true));
    }
}
