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
    /// What failed at first and passed on the second try, with the reason of the first; counted as passed too.
    pub flaked: Vec<String>,
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
        self.flaked.extend(other.flaked);
        self.skipped.extend(other.skipped);
        self.excused.extend(other.excused);
        self.times.extend(other.times);
    }

    /// Adds one result by name.
    pub fn record<E: fmt::Display>(&mut self, name: &str, took: Duration, result: Result<(), E>) {
        self.times.push((name.to_owned(), took));
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => self.failed.push(format!("{name}: {}", excerpt(&format!("{error:#}")))),
        }
    }

    /// Adds what passed on its second try, with what the first one failed of.
    pub fn record_flaked<E: fmt::Display>(&mut self, name: &str, took: Duration, first: &E) {
        self.times.push((name.to_owned(), took));
        self.passed += 1;
        self.flaked.push(format!("{name}: {}", excerpt(&format!("{first:#}"))));
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

    /// Whether nothing failed and hardly anything needed a second try; with `strict`, whether nothing was skipped
    /// either.
    pub fn good(&self, strict: bool) -> bool {
        self.failed.is_empty() && self.flaked.len() <= MAX_FLAKED && (!strict || self.skipped.is_empty())
    }
}

/// As many scenarios of a whole run may need a second try. They play on real runtimes, control planes and emulated
/// machines beside whatever else the machine does; more than these is a fault of ours.
const MAX_FLAKED: usize = 2;

/// Bytes of an error in the summary; the whole of it stands where it happened.
const EXCERPT: usize = 600;

/// An error's text on one line, cut where it is long.
fn excerpt(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = line.floor_char_boundary(EXCERPT);
    format!("{}{}", &line[..end], if end < line.len() { " ..." } else { "" })
}

/// Reads the output of test programs line by line, keeps their times and tells what a person should see of it.
#[derive(Debug)]
pub struct LibtestOutput {
    pub tally: Tally,
    /// The program whose lines come now.
    program: String,
    /// The test whose captured output comes now (`--show-output`).
    shown: String,
    /// Whether it is the output of tests that passed.
    of_successes: bool,
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
            of_successes: false,
            last: one_by_one.then_some(now),
        }
    }

    /// Takes one line; `now` is when it came. Gives what is worth showing: the end of each program and everything
    /// about what failed.
    pub fn line(&mut self, line: &str, now: Instant) -> Option<String> {
        self.count(line, now);
        match line {
            "successes:" => self.of_successes = true,
            "failures:" => self.of_successes = false,
            _ => {}
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.of_successes = false;
            let nothing = result.starts_with("ok. 0 passed; 0 failed; 0 ignored");
            return (!nothing).then(|| format!("{}: {result}", self.program));
        }
        // What cargo and libtest say of what goes well.
        let dull = ["Compiling ", "Finished ", "Running ", "running "];
        let words = line.trim();
        let dull = words.is_empty() || words.ends_with("... ok") || dull.iter().any(|w| words.starts_with(w));
        (!self.of_successes && !dull).then(|| line.to_owned())
    }

    fn count(&mut self, line: &str, now: Instant) {
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
        for name in &self.flaked {
            write!(f, "\n  passed on the second try: {name}")?;
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
    fn of_what_passed_only_the_end_is_shown_and_of_what_failed_everything() {
        let mut output = LibtestOutput::new("netns_nft", true, Instant::now());
        let lines = "   Compiling longshore-core v0.1.0\nrunning 2 tests\ntest a ... ok\ntest b ... FAILED\n\n\
                     successes:\n\n---- a stdout ----\nseen by a\n\nsuccesses:\n    a\n\nfailures:\n\n\
                     ---- b stdout ----\nseen by b\n\nfailures:\n    b\n\n\
                     test result: FAILED. 1 passed; 1 failed; 0 ignored\n\
                     running 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured";
        let shown: Vec<_> = lines.lines().filter_map(|line| output.line(line, Instant::now())).collect();
        let expected = [
            "test b ... FAILED",
            "failures:",
            "---- b stdout ----",
            "seen by b",
            "failures:",
            "    b",
            "netns_nft: FAILED. 1 passed; 1 failed; 0 ignored",
        ];
        assert_eq!(shown, expected);
        assert_eq!((output.tally.passed, output.tally.failed.len()), (1, 1));
    }

    #[test]
    fn second_tries_are_shown_and_few_are_allowed() {
        let mut tally = Tally::default();
        for done in 1..=MAX_FLAKED {
            tally.record_flaked("vm 01", Duration::ZERO, &"too slow");
            assert!(tally.good(true) && tally.passed == done);
        }
        assert!(tally.to_string().contains("passed on the second try: vm 01: too slow"), "{tally}");
        tally.record_flaked("vm 02", Duration::ZERO, &"too slow");
        assert!(!tally.good(false));
    }

    #[test]
    fn a_failure_is_named_with_its_reason_in_short() {
        let mut tally = Tally::default();
        let long = format!("no pod\n  came {}", "x".repeat(2 * EXCERPT));
        tally.record("vm 01", Duration::ZERO, Err(long));
        assert!(tally.failed[0].starts_with("vm 01: no pod came xx"), "{tally}");
        assert!(tally.failed[0].ends_with("x ...") && tally.failed[0].len() < EXCERPT + 20);
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
