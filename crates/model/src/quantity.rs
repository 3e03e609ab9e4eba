//! Resource quantities: `100m`, `1.5`, `128Mi`, `1e3`.
//!
//! Role: exact arithmetic and comparison, and the same canonical text as the Kubernetes API server prints.
//!
//! A quantity is kept as a whole number of billionths (the smallest step Kubernetes knows) in 128 bits; its size is
//! limited to 2⁶³−1 as in Kubernetes, and finer fractions are rounded away from zero.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;

use serde_json::Value;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// The largest absolute value, in billionths.
const MAX: i128 = i64::MAX as i128 * NANO;
/// More digits than any quantity needs; a limit on what is parsed.
const TEXT_MAX: usize = 128;

/// Which family of suffixes a quantity is printed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `m`, `k`, `M`, `G`: powers of 1000.
    #[default]
    DecimalSi,
    /// `Ki`, `Mi`, `Gi`: powers of 1024.
    BinarySi,
    /// `e3`, `e6`: exponents of ten.
    DecimalExponent,
}

/// A fixed-point number with the format it was written in. Equality and order ignore the format.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A suffix that is none.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// Neither text nor number.
    #[error("a quantity must be a string or a number")]
    Type,
}

impl Quantity {
    /// Zero.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number.
    pub fn new(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * NANO, format }
    }

    /// A number of thousandths, for example of a CPU.
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// From JSON: a string or a number.
    pub fn from_value(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError::Type),
        }
    }

    /// Whole units, rounded away from zero.
    pub fn value(self) -> i64 {
        self.rounded(NANO)
    }

    /// Thousandths, rounded away from zero; saturates at the limits of 64 bits.
    pub fn milli_value(self) -> i64 {
        self.rounded(NANO / 1000)
    }

    fn rounded(self, unit: i128) -> i64 {
        let whole = away_from_zero(self.nanos, unit);
        i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX })
    }

    /// How it is printed.
    pub fn format(self) -> Format {
        self.format
    }

    /// Whether it is exactly zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it has no fraction.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    /// As a floating-point number, for metrics and scores.
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Multiplied by a whole number, saturating at the limits.
    #[must_use]
    pub fn times(self, factor: i64) -> Self {
        self.with(self.nanos.saturating_mul(i128::from(factor)))
    }

    fn with(self, nanos: i128) -> Self {
        Self { nanos: nanos.clamp(-MAX, MAX), format: self.format }
    }
}

fn away_from_zero(number: i128, unit: i128) -> i128 {
    let (whole, rest) = (number / unit, number % unit);
    whole + rest.signum()
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.len() > TEXT_MAX {
            return Err(QuantityError::Format);
        }
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (base, exponent, format) = parse_suffix(suffix)?;
        let nanos = scale(whole, fraction, base, exponent);
        Ok(Self { nanos: if negative { -nanos } else { nanos }.clamp(-MAX, MAX), format })
    }
}

fn parse_suffix(suffix: &str) -> Result<(i128, i32, Format), QuantityError> {
    let decimal = |exponent| Ok((10, exponent, Format::DecimalSi));
    let binary = |exponent| Ok((2, exponent, Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            let exponent = digits.parse::<i32>().map_err(|_| QuantityError::Suffix)?;
            Ok((10, exponent, Format::DecimalExponent))
        }
    }
}

/// `whole.fraction × base^exponent` in billionths, rounded up, saturating above the limit.
fn scale(whole: &str, fraction: &str, base: i128, exponent: i32) -> i128 {
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    // Power of ten to apply to `digits` as a whole number of billionths.
    let mut power = 9 - fraction.len() as i32;
    let factor = if base == 10 {
        power = power.saturating_add(exponent);
        1
    } else {
        1i128 << exponent.clamp(0, 60)
    };
    // 2^60 has 19 digits; beyond 40 significant digits a value is over the limit or its tail below a billionth.
    let kept = digits.len().min(40);
    power = power.saturating_add((digits.len() - kept) as i32);
    let lost = digits[kept..].bytes().any(|b| b != b'0');
    let Ok(mantissa) = digits[..kept].parse::<i128>() else { return MAX };
    rescale(mantissa, factor, power, lost)
}

fn rescale(mantissa: i128, factor: i128, power: i32, lost: bool) -> i128 {
    if power >= 0 {
        let Some(ten) = 10i128.checked_pow(power.unsigned_abs()) else { return MAX };
        return mantissa.checked_mul(factor).and_then(|n| n.checked_mul(ten)).unwrap_or(MAX).min(MAX);
    }
    let Some(ten) = 10i128.checked_pow(power.unsigned_abs()) else { return 1 };
    // Split so that the product with 2^60 cannot overflow: (q·t + r)·f / t = q·f + r·f / t.
    let (quotient, rest) = (mantissa / ten, mantissa % ten);
    let high = quotient.checked_mul(factor).unwrap_or(MAX).min(MAX);
    let low = match rest.checked_mul(factor) {
        Some(product) => away_from_zero(product, ten) + i128::from(product % ten == 0 && lost),
        None => (rest / (ten / factor).max(1)) + 1,
    };
    (high + low).min(MAX)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let binary = self.format == Format::BinarySi && self.is_whole() && self.nanos.abs() >= 1024 * NANO;
        if binary {
            let mut value = self.nanos / NANO;
            let mut step = 0;
            while value % 1024 == 0 && step < 6 {
                value /= 1024;
                step += 1;
            }
            return write!(f, "{value}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]);
        }
        let (mut value, mut exponent) = (self.nanos, -9);
        while value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{value}") } else { write!(f, "{value}e{exponent}") };
        }
        let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][usize::try_from(exponent / 3 + 3).unwrap_or(3)];
        write!(f, "{value}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    /// Saturates at the limits; keeps the left format, or the right one when the left is zero.
    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos + other.nanos, format }.with(self.nanos + other.nanos)
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        self.with(-self.nanos)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_text() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("100m", "100m"),
            ("1.5", "1500m"),
            ("128Mi", "128Mi"),
            ("1e3", "1e3"),
            ("1000", "1k"),
            ("2k", "2k"),
            ("0.5Gi", "512Mi"),
            ("-1.5", "-1500m"),
            ("1024Mi", "1Gi"),
            ("1000m", "1"),
            ("0.1Ki", "102400m"),
            ("1.5Gi", "1536Mi"),
            ("100Ki", "100Ki"),
            ("1023", "1023"),
            ("1E", "1E"),
            ("12E3", "12e3"),
            ("1e-3", "1e-3"),
            ("0.0000000001", "1n"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("9223372036854775807", "9223372036854775807"),
            ("100E", "9223372036854775807"),
            ("123.456m", "123456u"),
            ("1.0000000001", "1000000001n"),
            ("1000Ki", "1000Ki"),
            ("0.000000000000000000001Ki", "1n"),
            ("3000000Ei", "9223372036854775807"),
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in ["", "-", ".", "1.2.3", "one", "1 Gi", " 1", "1x"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
        for text in ["1KB", "1mi", "1e", "1ee3", "1K"] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError::Suffix), "{text}");
        }
        assert_eq!(Quantity::from_value(&Value::Bool(true)), Err(QuantityError::Type));
    }

    #[test]
    fn values_round_up() {
        let parsed = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!((parsed("100m").value(), parsed("100m").milli_value()), (1, 100));
        assert_eq!((parsed("-100m").value(), parsed("1500u").milli_value()), (-1, 2));
        assert_eq!(parsed("1Gi").value(), 1 << 30);
        assert_eq!(parsed("1Ei").milli_value(), i64::MAX);
        assert_eq!(parsed("0.5Gi"), parsed("512Mi"));
        assert!(parsed("1G") < parsed("1Gi"));
        assert_eq!((parsed("1Gi") + parsed("1Mi")).to_string(), "1025Mi");
        assert_eq!((parsed("1") - parsed("100m")).to_string(), "900m");
        assert_eq!(parsed("250m").times(4).to_string(), "1");
    }

    proptest! {
        #[test]
        fn text_round_trips(value in -1_000_000_000_000i64..1_000_000_000_000, suffix in "n|u|m||k|M|Ki|Mi|e3|e-3") {
            let quantity: Quantity = format!("{value}{suffix}").parse().unwrap();
            let again: Quantity = quantity.to_string().parse().unwrap();
            prop_assert_eq!(quantity, again);
            prop_assert_eq!(quantity.to_string(), again.to_string());
        }

        #[test]
        fn sum_and_difference_cancel(a in any::<i32>(), b in any::<i32>()) {
            let (a, b) = (Quantity::from_milli(a.into()), Quantity::from_milli(b.into()));
            prop_assert_eq!(a + b - b, a);
            prop_assert_eq!((a - b).is_negative(), a < b);
        }

        #[test]
        fn never_panics(text in "[-+0-9.eEinumkKMGTP]{0,50}") {
            let _ = text.parse::<Quantity>().map(|q| (q.to_string(), q.value(), q.milli_value()));
        }
    }
}
