//! `format` of strings. Formats that are not listed here are not checked, as Kubernetes does it; `int32` and its like
//! are among those.
//!
//! Source: the list in <https://kubernetes.io/docs/reference/kubernetes-api/extend-resources/custom-resource-definition-v1/#JSONSchemaProps>.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine as _;
use jiff::civil::Date;
use mainstay_model::meta::names;
use regex::Regex;

/// Whether `text` has this format; true for a format nobody knows.
pub(crate) fn is_valid(format: &str, text: &str) -> bool {
    match format.replace('-', "").as_str() {
        "bsonobjectid" => is_hex(text, 24),
        "uri" => is_uri(text),
        "email" => is_email(text),
        "hostname" => is_hostname(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => matches_any(&MAC, text),
        "uuid" => matches_any(&UUID, text),
        "uuid3" => is_uuid_of(text, "3", "0123456789abcdefABCDEF"),
        "uuid4" => is_uuid_of(text, "4", "89abAB"),
        "uuid5" => is_uuid_of(text, "5", "89abAB"),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "creditcard" => is_credit_card(text),
        "ssn" => matches_any(&SSN, text),
        "hexcolor" => matches_any(&HEX_COLOR, text),
        "rgbcolor" => matches_any(&RGB_COLOR, text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "date" => text.len() == 10 && text.parse::<Date>().is_ok(),
        "duration" => crate::cel::parse_duration(text).is_some(),
        "datetime" => text.len() > 10 && crate::cel::parse_date_time(text).is_some(),
        "k8sshortname" => names::check_label(text).is_empty(),
        "k8slongname" => names::check_subdomain(text).is_empty(),
        _ => true,
    }
}

type Lazy = LazyLock<Option<Regex>>;

static MAC: Lazy = LazyLock::new(|| {
    Regex::new("^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$|^([0-9A-Fa-f]{2}[:-]){7}[0-9A-Fa-f]{2}$").ok()
});
static UUID: Lazy =
    LazyLock::new(|| Regex::new("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$").ok());
static SSN: Lazy = LazyLock::new(|| Regex::new("^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$").ok());
static HEX_COLOR: Lazy = LazyLock::new(|| Regex::new("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$").ok());
static RGB_COLOR: Lazy = LazyLock::new(|| {
    let part = "([01]?[0-9]?[0-9]|2[0-4][0-9]|25[0-5])";
    Regex::new(&format!(r"^rgb\(\s*{part}\s*,\s*{part}\s*,\s*{part}\s*\)$")).ok()
});

fn matches_any(regex: &Lazy, text: &str) -> bool {
    regex.as_ref().is_none_or(|regex| regex.is_match(text))
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// An absolute URI or an absolute path (Go's `url.ParseRequestURI`).
fn is_uri(text: &str) -> bool {
    crate::cel::Url::parse(text).is_some()
}

/// One mailbox, with or without a name before it.
fn is_email(text: &str) -> bool {
    let address = match text.rfind('<') {
        Some(start) if text.ends_with('>') => &text[start + 1..text.len() - 1],
        _ => text,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let is_word = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let local_good = (local.len() > 1 && local.starts_with('"') && local.ends_with('"'))
        || (!local.is_empty() && local.chars().all(is_word) && !local.split('.').any(str::is_empty));
    local_good && !domain.is_empty() && !domain.split('.').any(str::is_empty) && domain.chars().all(is_word)
}

/// RFC 1034 names, as the validator of go-openapi reads them.
fn is_hostname(text: &str) -> bool {
    let good_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || c == '-')
    };
    !text.is_empty() && text.len() <= 255 && text.trim_end_matches('.').split('.').all(good_label)
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let max = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|bits| bits <= max)
}

fn is_uuid_of(text: &str, version: &str, variants: &str) -> bool {
    let plain: String = text.chars().filter(|c| *c != '-').collect();
    matches_any(&UUID, text) && plain[12..].starts_with(version) && plain[16..].starts_with(|c| variants.contains(c))
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter(|c| !matches!(c, '-' | ' ')).map(|c| c.to_digit(10).unwrap_or(99)).collect()
}

fn is_isbn10(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let mut sum = 0;
    for (i, c) in plain.chars().enumerate() {
        let digit = match c {
            'X' | 'x' if i == 9 => 10,
            c => match c.to_digit(10) {
                Some(digit) => digit,
                None => return false,
            },
        };
        sum += (i as u32 + 1) * digit;
    }
    plain.len() == 10 && sum % 11 == 0
}

fn is_isbn13(text: &str) -> bool {
    let digits = digits(text);
    let sum: u32 = digits.iter().enumerate().map(|(i, digit)| digit * if i % 2 == 0 { 1 } else { 3 }).sum();
    digits.len() == 13 && digits.iter().all(|digit| *digit < 10) && sum.is_multiple_of(10)
}

/// Thirteen to nineteen digits with the right check digit (ISO/IEC 7812-1).
fn is_credit_card(text: &str) -> bool {
    let digits = digits(text);
    let luhn = digits.iter().rev().enumerate().map(|(i, digit)| match digit * (1 + i as u32 % 2) {
        doubled if doubled > 9 => doubled - 9,
        plain => plain,
    });
    (13..=19).contains(&digits.len()) && digits.iter().all(|digit| *digit < 10) && luhn.sum::<u32>() % 10 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("date-time", "2026-01-02T15:04:05Z", "2026-01-02"),
            ("date-time", "2026-01-02T15:04:05.123+01:00", "yesterday"),
            ("date", "2026-02-28", "2026-02-30"),
            ("duration", "1h30m", "1 hour and"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e"),
            ("uuid4", "123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
            ("uri", "https://example.com/a", "nothing here"),
            ("email", "a.b@example.com", "a.b"),
            ("hostname", "a-b.example.com", "-a"),
            ("mac", "00:1b:44:11:3a:b7", "00:1b"),
            ("byte", "aGVsbG8=", "hello!"),
            ("isbn10", "0-306-40615-2", "0-306-40615-3"),
            ("isbn13", "978-0-306-40615-7", "978-0-306-40615-8"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("hexcolor", "#fff", "#ff"),
            ("rgbcolor", "rgb(1, 2, 255)", "rgb(1, 2, 256)"),
            ("ssn", "123-45-6789", "123-45"),
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f"),
            ("k8s-short-name", "a-b", "a.b"),
        ] {
            assert!(is_valid(format, good), "{format}: {good}");
            assert!(!is_valid(format, bad), "{format}: {bad}");
        }
        assert!(is_valid("int32", "whatever") && is_valid("my-format", ""));
    }
}
