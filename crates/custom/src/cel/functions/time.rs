//! Times and lengths of time.
//!
//! Time zones are UTC or a fixed distance such as `-08:00`; names are not known here.

use jiff::civil::Date;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::super::value::Val;
use super::{EvalError, NO_OVERLOAD, Price, Row, method};

const PART: &[&str] = &["timestamp -> int", "timestamp, string -> int"];
const BOTH: &[&str] = &["timestamp -> int", "timestamp, string -> int", "duration -> int"];

pub(super) const ROWS: &[Row] = &[
    method("getFullYear", PART, Price::Step, |args, _| part(args, |time| i64::from(time.year()))),
    method("getMonth", PART, Price::Step, |args, _| part(args, |time| i64::from(time.month()) - 1)),
    method("getDate", PART, Price::Step, |args, _| part(args, |time| i64::from(time.day()))),
    method("getDayOfMonth", PART, Price::Step, |args, _| part(args, |time| i64::from(time.day()) - 1)),
    method("getDayOfWeek", PART, Price::Step, |args, _| {
        part(args, |time| i64::from(time.weekday().to_sunday_zero_offset()))
    }),
    method("getDayOfYear", PART, Price::Step, |args, _| part(args, |time| i64::from(time.day_of_year()) - 1)),
    method("getHours", BOTH, Price::Step, |args, _| match args {
        [Val::Duration(duration)] => Ok(Val::Int(duration.as_hours())),
        args => part(args, |time| i64::from(time.hour())),
    }),
    method("getMinutes", BOTH, Price::Step, |args, _| match args {
        [Val::Duration(duration)] => Ok(Val::Int(duration.as_mins())),
        args => part(args, |time| i64::from(time.minute())),
    }),
    method("getSeconds", BOTH, Price::Step, |args, _| match args {
        [Val::Duration(duration)] => Ok(Val::Int(duration.as_secs())),
        args => part(args, |time| i64::from(time.second())),
    }),
    method("getMilliseconds", BOTH, Price::Step, |args, _| match args {
        [Val::Duration(duration)] => Ok(Val::Int(i64::from(duration.subsec_millis()))),
        args => part(args, |time| i64::from(time.millisecond())),
    }),
];

fn part<'a>(args: &[Val<'a>], of: fn(&Zoned) -> i64) -> Result<Val<'a>, EvalError> {
    let (time, zone) = match args {
        [Val::Timestamp(time)] => (time, TimeZone::UTC),
        [Val::Timestamp(time), Val::Text(zone)] => (time, zone_of(zone)?),
        _ => return Err(NO_OVERLOAD),
    };
    Ok(Val::Int(of(&time.to_zoned(zone))))
}

fn zone_of(text: &str) -> Result<TimeZone, EvalError> {
    let fixed = || {
        let (sign, rest) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        let (hours, minutes) = rest.split_once(':')?;
        let seconds = sign * (hours.parse::<i32>().ok()? * 3600 + minutes.parse::<i32>().ok()? * 60);
        Offset::from_seconds(seconds).ok().map(Offset::to_time_zone)
    };
    match text {
        "UTC" | "" | "Z" => Ok(TimeZone::UTC),
        _ => fixed().ok_or_else(|| EvalError::Other(format!("unknown time zone {text}"))),
    }
}

/// Reads RFC 3339, or a date alone as its midnight in UTC.
pub fn parse_date_time(text: &str) -> Option<Timestamp> {
    if text.len() == 10 {
        return text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp());
    }
    // `T` or `t`, and a zone: jiff takes more spellings than RFC 3339 has.
    let good = text.len() >= 20 && matches!(text.as_bytes().get(10), Some(b'T' | b't')) && !text.contains('[');
    good.then(|| text.parse().ok()).flatten()
}

/// Reads a duration as Go writes them (`1h30m`, `-1.5s`), or a number of one unit (`22 ns`, `3 days`).
pub fn parse_duration(text: &str) -> Option<SignedDuration> {
    const UNITS: &[(&str, i128)] = &[
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
        ("w", 604_800_000_000_000),
    ];
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() || rest.len() > 100 {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number = &rest[..end];
        rest = rest[end..].trim_start();
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || matches!(c, '.' | ' ')).unwrap_or(rest.len());
        let factor = unit(&rest[..unit_end], UNITS)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let fraction_value: f64 = if fraction.is_empty() { 0.0 } else { format!("0.{fraction}").parse().ok()? };
        nanos = nanos
            .checked_add(whole.checked_mul(factor)?)?
            .checked_add((fraction_value * factor as f64).round() as i128)?;
        rest = rest[unit_end..].trim_start();
    }
    i64::try_from(sign * nanos).ok().map(SignedDuration::from_nanos)
}

fn unit(word: &str, units: &[(&str, i128)]) -> Option<i128> {
    let short = match word.trim_end_matches('s') {
        "nano" | "nanosecond" => "ns",
        "micro" | "microsecond" => "us",
        "milli" | "millisecond" => "ms",
        "sec" | "second" => "s",
        "min" | "minute" => "m",
        "hr" | "hour" => "h",
        "day" => "d",
        "week" => "w",
        _ => word,
    };
    units.iter().find(|(name, _)| *name == short).map(|(_, factor)| *factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("1h30m", 5_400_000),
            ("-1.5s", -1500),
            ("10ms", 10),
            ("0", 0),
            ("3 days", 259_200_000),
            ("1m0.5s", 60_500),
            (".5s", 500),
        ] {
            assert_eq!(parse_duration(text), Some(SignedDuration::from_millis(millis)), "{text}");
        }
        for text in ["", "1", "h", "1x", "1h-", "--1s", "9999999999999h", "1..2s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn times() {
        assert!(parse_date_time("2026-01-02T03:04:05Z").is_some() && parse_date_time("2026-01-02").is_some());
        assert!(parse_date_time("2026-01-02 03:04:05Z").is_none() && parse_date_time("x").is_none());
    }
}
