//! Prometheus' text format 0.0.4, with a time per sample where one is given: what dashboards and
//! metrics-server read. Names, kinds and labels are the callers'.

use std::fmt::{Display, Write as _};

use jiff::Timestamp;

/// What a family's values mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// A text that grows family by family.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    text: String,
    family: &'static str,
}

impl Exposition {
    /// Begins a family; the samples that follow are its.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.family = name;
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// One value of the family.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display, at: Option<Timestamp>) {
        self.text.push_str(self.family);
        for (number, (name, value)) in labels.iter().enumerate() {
            self.text.push(if number == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(value, &mut self.text);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        match at {
            Some(at) => self.line(format_args!(" {value} {}\n", at.as_millisecond())),
            None => self.line(format_args!(" {value}\n")),
        }
    }

    pub fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // A String takes everything.
        let _ = self.text.write_fmt(line);
    }
}

fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// Nanoseconds as seconds, to the digit.
pub fn seconds(nanoseconds: u64) -> String {
    let (whole, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let text = format!("{whole}.{rest:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_samples_and_times() {
        let mut text = Exposition::default();
        text.family("cpu_seconds_total", Kind::Counter, "Time of CPUs");
        let at = Timestamp::from_millisecond(1_767_225_600_123).unwrap();
        text.sample(&[("pod", "a\"b\\c\nd"), ("namespace", "x")], seconds(1_500_000_000), Some(at));
        text.family("up", Kind::Gauge, "Whether it is up");
        text.sample(&[], 1, None);
        let expected = "# HELP cpu_seconds_total Time of CPUs\n# TYPE cpu_seconds_total counter\n\
            cpu_seconds_total{pod=\"a\\\"b\\\\c\\nd\",namespace=\"x\"} 1.5 1767225600123\n\
            # HELP up Whether it is up\n# TYPE up gauge\nup 1\n";
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn seconds_keep_every_digit() {
        for (nanoseconds, expected) in
            [(0, "0"), (1, "0.000000001"), (1_000_000_000, "1"), (u64::MAX, "18446744073.709551615")]
        {
            assert_eq!(seconds(nanoseconds), expected);
        }
    }
}
