//! Kubernetes quantities (`100m`, `1.5Gi`, `2e3`) as exact fixed-point amounts.
//! Grammar and rounding follow apimachinery `resource.Quantity`: nothing finer than a nano-unit,
//! nothing beyond 2^63-1 units; finer parts round away from zero, larger amounts are capped.

use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Longest accepted text; far beyond what any amount in range needs.
const MAX_TEXT: usize = 64;
/// Significant digits kept; what follows only rounds up.
const MAX_DIGITS: usize = 30;
const NANOS_PER_UNIT: i128 = 1_000_000_000;
const MAX_NANOS: i128 = (i64::MAX as i128) * NANOS_PER_UNIT;

/// An amount in nano-units, within ±(2^63-1) units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount {
    nanos: i128,
}

/// Why a text is not a quantity; names the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantity is empty")]
    Empty,
    #[error("quantity of {0} characters is longer than {MAX_TEXT}")]
    TooLong(usize),
    #[error("{0:?} is not a quantity: it must start with a number")]
    NoNumber(String),
    #[error(
        "{text:?} is not a quantity: {suffix:?} is no suffix (m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei or an exponent)"
    )]
    UnknownSuffix { text: String, suffix: String },
}

/// What the suffix multiplies by.
#[derive(Clone, Copy)]
enum Scale {
    /// Power of ten.
    Ten(i32),
    /// Power of two.
    Two(u32),
}

impl Amount {
    pub const ZERO: Self = Self { nanos: 0 };

    pub fn from_units(units: i64) -> Self {
        Self { nanos: i128::from(units) * NANOS_PER_UNIT }
    }

    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * (NANOS_PER_UNIT / 1000) }
    }

    /// Parses the API's text form.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Empty);
        }
        if text.len() > MAX_TEXT {
            return Err(QuantityError::TooLong(text.len()));
        }
        let (negative, rest) = split_sign(text);
        let number = Digits::take(rest).ok_or_else(|| QuantityError::NoNumber(text.to_owned()))?;
        let suffix = &rest[number.length..];
        let scale = parse_suffix(suffix).ok_or_else(|| QuantityError::UnknownSuffix {
            text: text.to_owned(),
            suffix: suffix.to_owned(),
        })?;
        let nanos = number.nanos(scale).min(MAX_NANOS);
        Ok(Self { nanos: if negative { -nanos } else { nanos } })
    }

    /// Whole units, rounded away from zero.
    pub fn value(self) -> i64 {
        self.scaled(NANOS_PER_UNIT)
    }

    /// Thousandths of a unit, rounded away from zero, capped at `i64::MAX`.
    pub fn milli_value(self) -> i64 {
        self.scaled(NANOS_PER_UNIT / 1000)
    }

    /// Whole units as unsigned; negative amounts count as zero.
    pub fn unsigned_value(self) -> u64 {
        u64::try_from(self.value()).unwrap_or(0)
    }

    /// Thousandths as unsigned; negative amounts count as zero.
    pub fn unsigned_millis(self) -> u64 {
        u64::try_from(self.milli_value()).unwrap_or(0)
    }

    /// How many `divisor` fit, rounded up: what `resourceFieldRef` prints. A zero divisor counts as one.
    pub fn divided_by(self, divisor: Self) -> i64 {
        self.scaled(if divisor.nanos == 0 { NANOS_PER_UNIT } else { divisor.nanos })
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount has no part finer than one unit.
    pub fn is_whole(self) -> bool {
        self.nanos % NANOS_PER_UNIT == 0
    }

    /// Whether the amount has no part finer than a thousandth.
    pub fn is_whole_millis(self) -> bool {
        self.nanos % (NANOS_PER_UNIT / 1000) == 0
    }

    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self { nanos: (self.nanos + other.nanos).clamp(-MAX_NANOS, MAX_NANOS) }
    }

    fn scaled(self, unit: i128) -> i64 {
        let quotient = self.nanos / unit;
        let rest = self.nanos % unit;
        let away = if rest == 0 { 0 } else { (self.nanos.signum() * unit.signum()).signum() };
        let rounded = quotient + away;
        rounded.clamp(-i128::from(i64::MAX), i128::from(i64::MAX)) as i64
    }
}

impl fmt::Display for Amount {
    /// Plain decimal notation: `1.5`, `0.25`, `1073741824`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.nanos < 0 { "-" } else { "" };
        let nanos = self.nanos.unsigned_abs();
        let (units, rest) = (nanos / NANOS_PER_UNIT as u128, nanos % NANOS_PER_UNIT as u128);
        if rest == 0 {
            return write!(f, "{sign}{units}");
        }
        write!(f, "{sign}{units}.{}", format!("{rest:09}").trim_end_matches('0'))
    }
}

/// The amount of an API quantity.
pub fn amount(quantity: &Quantity) -> Result<Amount, QuantityError> {
    Amount::parse(&quantity.0)
}

/// The amount of a quantity that validation has let through; what slipped by counts as zero.
pub fn amount_or_zero(quantity: Option<&Quantity>) -> Amount {
    quantity.and_then(|quantity| amount(quantity).ok()).unwrap_or(Amount::ZERO)
}

fn split_sign(text: &str) -> (bool, &str) {
    match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    }
}

/// The decimal digits in front of a suffix: `mantissa · 10^-fraction`, at most [`MAX_DIGITS`] of them.
struct Digits {
    mantissa: u128,
    /// Digits behind the point among the kept ones; negative where kept ones end before the point.
    fraction: i32,
    /// A digit that was not kept was not zero.
    inexact: bool,
    /// Bytes of the text used.
    length: usize,
}

impl Digits {
    fn take(text: &str) -> Option<Self> {
        let mut digits = Self { mantissa: 0, fraction: 0, inexact: false, length: 0 };
        let (mut seen, mut kept, mut after_point) = (false, 0, false);
        for byte in text.bytes() {
            match byte {
                b'.' if !after_point => after_point = true,
                b'0'..=b'9' => {
                    seen = true;
                    let digit = u128::from(byte - b'0');
                    if kept < MAX_DIGITS {
                        digits.mantissa = digits.mantissa * 10 + digit;
                        kept += usize::from(digits.mantissa != 0);
                        digits.fraction += i32::from(after_point);
                    } else {
                        digits.inexact |= digit != 0;
                        digits.fraction -= i32::from(!after_point);
                    }
                }
                _ => break,
            }
            digits.length += 1;
        }
        seen.then_some(digits)
    }

    /// The amount in nano-units, rounded up, capped.
    fn nanos(&self, scale: Scale) -> i128 {
        let exact = match scale {
            Scale::Ten(exponent) => shift_decimal(self.mantissa, exponent - self.fraction + 9),
            Scale::Two(exponent) => self.binary_nanos(exponent),
        };
        exact.saturating_add(i128::from(self.inexact)).min(MAX_NANOS)
    }

    fn binary_nanos(&self, exponent: u32) -> i128 {
        if self.fraction <= 0 {
            let units = shift_decimal(self.mantissa, -self.fraction);
            return units.saturating_mul(1 << exponent).saturating_mul(NANOS_PER_UNIT);
        }
        let Some(one) = 10u128.checked_pow(self.fraction.unsigned_abs()) else {
            return i128::from(self.mantissa != 0);
        };
        let whole = i128::try_from(self.mantissa / one).unwrap_or(MAX_NANOS);
        let whole_nanos = whole.saturating_mul(1 << exponent).saturating_mul(NANOS_PER_UNIT);
        // The fraction is below one, so 2^60 of it stay within 10^36 once it is cut to 18 digits.
        let (mut part, mut base, mut cut) = (self.mantissa % one, one, false);
        while base > 1_000_000_000_000_000_000 {
            cut |= part % 10 != 0;
            part /= 10;
            base /= 10;
        }
        let scaled = part << exponent;
        let part_nanos = (scaled / base) * NANOS_PER_UNIT as u128
            + ((scaled % base) * NANOS_PER_UNIT as u128).div_ceil(base)
            + u128::from(cut);
        whole_nanos.saturating_add(i128::try_from(part_nanos).unwrap_or(MAX_NANOS))
    }
}

/// `mantissa · 10^exponent`, rounded up, capped at [`MAX_NANOS`].
fn shift_decimal(mantissa: u128, exponent: i32) -> i128 {
    if mantissa == 0 {
        return 0;
    }
    let power = 10u128.checked_pow(exponent.unsigned_abs());
    let shifted = match (power, exponent >= 0) {
        (Some(power), true) => mantissa.saturating_mul(power),
        (Some(power), false) => mantissa.div_ceil(power),
        (None, true) => u128::MAX,
        (None, false) => 1,
    };
    i128::try_from(shifted).unwrap_or(MAX_NANOS).min(MAX_NANOS)
}

fn parse_suffix(suffix: &str) -> Option<Scale> {
    let scale = match suffix {
        "" => Scale::Ten(0),
        "n" => Scale::Ten(-9),
        "u" => Scale::Ten(-6),
        "m" => Scale::Ten(-3),
        "k" => Scale::Ten(3),
        "M" => Scale::Ten(6),
        "G" => Scale::Ten(9),
        "T" => Scale::Ten(12),
        "P" => Scale::Ten(15),
        "E" => Scale::Ten(18),
        "Ki" => Scale::Two(10),
        "Mi" => Scale::Two(20),
        "Gi" => Scale::Two(30),
        "Ti" => Scale::Two(40),
        "Pi" => Scale::Two(50),
        "Ei" => Scale::Two(60),
        _ => return parse_exponent(suffix),
    };
    Some(scale)
}

fn parse_exponent(suffix: &str) -> Option<Scale> {
    let digits = suffix.strip_prefix(['e', 'E'])?;
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    if unsigned.is_empty() || !unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Beyond a thousand every amount is capped or rounds to a nano-unit already.
    let size = unsigned.parse::<i32>().unwrap_or(1000).min(1000);
    Some(Scale::Ten(if digits.starts_with('-') { -size } else { size }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_every_form_exactly() {
        // text, value (units, up), milli-value
        let cases = [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("+1", 1, 1000),
            ("-1", -1, -1000),
            (".5", 1, 500),
            ("5.", 5, 5000),
            ("100m", 1, 100),
            ("1500m", 2, 1500),
            ("1n", 1, 1),
            ("1u", 1, 1),
            ("0.1n", 1, 1),
            ("12k", 12_000, 12_000_000),
            ("3M", 3_000_000, 3_000_000_000),
            ("2E", 2_000_000_000_000_000_000, i64::MAX),
            ("2e3", 2000, 2_000_000),
            ("2E3", 2000, 2_000_000),
            ("25e-1", 3, 2500),
            ("1Ki", 1024, 1_024_000),
            ("0.5Ki", 512, 512_000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("1.123456789012345678Ei", 1_295_257_491_548_890_609, i64::MAX),
            ("8Ei", i64::MAX, i64::MAX),
            ("1e400", i64::MAX, i64::MAX),
            ("-1e400", -i64::MAX, -i64::MAX),
            ("1e-400", 1, 1),
            ("0.1000000000000000055511151231257827", 1, 101),
            ("100000000000000000000000000000000000000", i64::MAX, i64::MAX),
            ("0.000000000000000000000000000000000000001Ki", 1, 1),
        ];
        for (text, value, millis) in cases {
            let amount = Amount::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(amount.value(), value, "value of {text}");
            assert_eq!(amount.milli_value(), millis, "milli-value of {text}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in [
            "", "-", "+", ".", "Gi", "1gi", "1 Gi", "1K", "1.2.3", "1e", "1e+", "1e1.5", "0x10", "--1", "1mi",
        ] {
            assert!(Amount::parse(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(Amount::parse(&"1".repeat(65)), Err(QuantityError::TooLong(65)));
    }

    #[test]
    fn divides_rounding_up() {
        let cases = [
            ("1500m", "1", 2),
            ("1500m", "1m", 1500),
            ("1Gi", "1Mi", 1024),
            ("1", "0", 1),
            ("1025", "1Ki", 2),
        ];
        for (amount, divisor, expected) in cases {
            let parse = |text| Amount::parse(text).unwrap();
            assert_eq!(parse(amount).divided_by(parse(divisor)), expected, "{amount} / {divisor}");
        }
    }

    #[test]
    fn prints_plain_decimals() {
        for (text, printed) in [("1500m", "1.5"), ("1Gi", "1073741824"), ("-250m", "-0.25"), ("0", "0")] {
            assert_eq!(Amount::parse(text).unwrap().to_string(), printed);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[-+]?[0-9.]{0,45}[a-zA-Z]{0,3}[-+]?[0-9]{0,5}") {
            let _ = Amount::parse(&text);
        }

        #[test]
        fn whole_milli_amounts_survive_a_round_trip(millis in -9_000_000_000_000_000i64..9_000_000_000_000_000) {
            let amount = Amount::from_millis(millis);
            prop_assert_eq!(Amount::parse(&amount.to_string()).unwrap(), amount);
            prop_assert_eq!(Amount::parse(&format!("{millis}m")).unwrap().milli_value(), millis);
        }

        #[test]
        fn binary_suffixes_multiply(number in 0i64..(1 << 22), power in 0u32..5) {
            let suffix = ["", "Ki", "Mi", "Gi", "Ti"][power as usize];
            prop_assert_eq!(Amount::parse(&format!("{number}{suffix}")).unwrap().value(), number << (10 * power));
        }
    }
}
