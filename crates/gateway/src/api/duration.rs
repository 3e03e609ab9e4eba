//! Gateway API durations (GEP-2257): `1h30m`, `250ms`, `10s`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A duration as it is written in manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    /// Parses numbers with the units h, m, s and ms, each at most five digits long, in any order without repetition of meaning.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration; write for example 250ms, 10s or 1h30m");
        let mut rest = text;
        let mut total = Duration::ZERO;
        if text.is_empty() || text.len() > 32 {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits =
                rest.find(|c: char| !c.is_ascii_digit()).filter(|at| (1..=5).contains(at)).ok_or_else(wrong)?;
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            total += match &rest[..end] {
                "h" => Duration::from_secs(number * 3600),
                "m" => Duration::from_secs(number * 60),
                "s" => Duration::from_secs(number),
                "ms" => Duration::from_millis(number),
                _ => return Err(wrong()),
            };
            rest = &rest[end..];
        }
        Ok(Self(total))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_are_read_as_the_gateway_api_writes_them() {
        for (text, millis) in [("0s", 0), ("250ms", 250), ("10s", 10_000), ("1h30m", 5_400_000), ("1m1s1ms", 61_001)] {
            assert_eq!(Span::parse(text).unwrap().0, Duration::from_millis(millis), "{text}");
        }
        for text in ["", "1", "s", "1.5s", "-1s", "1d", "123456s", "1s ", "1us"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }
}
