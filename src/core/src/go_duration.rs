//! Durations as Go prints them and Kubernetes writes them in files and answers.
//! Only conversions between text and numbers live here.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `metav1.Duration`: `1h30m`, `1.5s`, `300ms`. Kept with its sign: a few fields take a negative
/// duration for "off".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration {
    nanos: i64,
}

impl GoDuration {
    pub const fn from_secs(seconds: u32) -> Self {
        Self { nanos: seconds as i64 * 1_000_000_000 }
    }

    pub const fn from_millis(millis: u32) -> Self {
        Self { nanos: millis as i64 * 1_000_000 }
    }

    /// The duration itself; zero where it is negative.
    pub fn get(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.nanos).unwrap_or(0))
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Reads Go's `time.ParseDuration` form.
    ///
    /// # Errors
    /// Says what is expected instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration; write it like 30s, 1m30s or 500ms");
        if text == "0" {
            return Ok(Self::default());
        }
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest.is_empty() {
            return Err(wrong());
        }
        let mut nanos: u128 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let unit_nanos = unit_nanos(unit).ok_or_else(wrong)?;
            let part = scaled(number, unit_nanos).ok_or_else(wrong)?;
            nanos = nanos.checked_add(part).ok_or_else(wrong)?;
            rest = tail;
        }
        // Go's durations end at about 292 years.
        let nanos = i64::try_from(nanos).map_err(|_| wrong())?;
        Ok(Self { nanos: if negative { -nanos } else { nanos } })
    }
}

fn unit_nanos(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// `number` (decimal, at most one point) times `scale`, cut to whole units.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30 {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(scale)?;
    let mut place = scale;
    for digit in fraction.bytes() {
        place /= 10;
        total = total.checked_add(u128::from(digit - b'0') * place)?;
    }
    Some(total)
}

impl fmt::Display for GoDuration {
    /// As Go prints it: `1m0s`, `1h30m0s`, `1.5s`, `100ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = u128::from(self.nanos.unsigned_abs());
        if nanos == 0 {
            return f.write_str("0s");
        }
        if self.is_negative() {
            f.write_str("-")?;
        }
        if nanos < 1_000_000_000 {
            let (unit, name) = match nanos {
                ..1_000 => (1, "ns"),
                1_000..1_000_000 => (1_000, "µs"),
                _ => (1_000_000, "ms"),
            };
            return write!(f, "{}{name}", decimal(nanos, unit));
        }
        let seconds = nanos / 1_000_000_000;
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}s", decimal(nanos % 60_000_000_000, 1_000_000_000))
    }
}

fn decimal(value: u128, unit: u128) -> String {
    let (whole, mut part) = (value / unit, value % unit);
    if part == 0 {
        return whole.to_string();
    }
    let mut text = format!("{whole}.");
    let mut place = unit / 10;
    while part > 0 {
        text.push(char::from(b'0' + (part / place) as u8));
        part %= place;
        place /= 10;
    }
    text
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip_as_go_prints_them() {
        let cases = [
            ("0", "0s"),
            ("0s", "0s"),
            ("1m", "1m0s"),
            ("1h30m", "1h30m0s"),
            ("1.5s", "1.5s"),
            (".5s", "500ms"),
            ("100ms", "100ms"),
            ("4h0m0s", "4h0m0s"),
            ("1.25ms", "1.25ms"),
            ("90s", "1m30s"),
            ("7us", "7µs"),
            ("3ns", "3ns"),
            ("24h", "24h0m0s"),
            ("-1m", "-1m0s"),
        ];
        for (text, shown) in cases {
            let duration = GoDuration::parse(text).expect(text);
            assert_eq!(duration.to_string(), shown, "{text}");
            assert_eq!(GoDuration::parse(shown), Ok(duration), "{shown}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in
            ["", "1", "s", "1 s", "--1s", "-", "1d", "1..5s", "1s2", ".s", "9999999999999999h", "1e3s"]
        {
            assert!(GoDuration::parse(text).is_err(), "{text}");
        }
    }
}
