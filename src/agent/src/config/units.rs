//! The units of the Kubernetes configuration files: durations as Go prints them and byte quantities.
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

/// A Kubernetes quantity as a count of thousandths, rounded up as the API does (`0.5m` is 1).
///
/// # Errors
/// Says what is expected instead.
pub fn parse_quantity_millis(text: &str) -> Result<i128, String> {
    let wrong = || format!("{text:?} is not a quantity; write it like 500m, 2, 64Mi or 10Gi");
    let trimmed = text.trim();
    let (sign, unsigned) = match trimmed.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let digits = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || number == "." || fraction.contains('.') || number.len() > 30 {
        return Err(wrong());
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
    let decimals = u32::try_from(fraction.len()).map_err(|_| wrong())?;
    let (numerator, denominator) = suffix_scale(suffix).ok_or_else(wrong)?;
    let numerator = mantissa.checked_mul(numerator).and_then(|n| n.checked_mul(1000)).ok_or_else(wrong)?;
    let denominator =
        10_i128.checked_pow(decimals).and_then(|d| d.checked_mul(denominator)).ok_or_else(wrong)?;
    Ok(sign * (numerator + denominator - 1).div_euclid(denominator))
}

/// The suffix as a fraction.
fn suffix_scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| 1_i128 << (10 * power);
    Some(match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (binary(1), 1),
        "Mi" => (binary(2), 1),
        "Gi" => (binary(3), 1),
        "Ti" => (binary(4), 1),
        "Pi" => (binary(5), 1),
        "Ei" => (binary(6), 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

/// A quantity as whole bytes, rounded up.
///
/// # Errors
/// Not a quantity, negative, or more than 2^63 - 1.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let millis = parse_quantity_millis(text)?;
    let bytes = (millis + 999).div_euclid(1000);
    u64::try_from(bytes)
        .ok()
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| format!("{text:?} is out of range; it must be between 0 and 8Ei"))
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

    #[test]
    fn quantities_are_exact_and_round_up() {
        let cases: [(&str, i128); 12] = [
            ("1", 1000),
            ("500m", 500),
            ("0.5m", 1),
            ("100u", 1),
            ("2.5", 2500),
            ("64Mi", 64 * 1024 * 1024 * 1000),
            ("1.5Gi", 1536 * 1024 * 1024 * 1000),
            ("1e3", 1_000_000),
            ("1E", 1_000_000_000_000_000_000_000),
            ("12e-1", 1200),
            ("-1", -1000),
            ("0", 0),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_quantity_millis(text), Ok(millis), "{text}");
        }
        for text in ["", "Mi", "1 Mi", "1MiB", "1kk", "..", "1.2.3", "1e", "0x10", "1e99999999999"] {
            assert!(parse_quantity_millis(text).is_err(), "{text}");
        }
        assert_eq!(parse_bytes("10Mi"), Ok(10 << 20));
        assert!(parse_bytes("-1").is_err() && parse_bytes("9Ei").is_err());
    }
}
