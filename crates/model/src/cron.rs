//! Cron schedules: their syntax and when they are next due.
//!
//! Five fields (minute, hour, day of month, month, day of week), or a macro such as `@daily` or `@every 90s`. When both days
//! are restricted, either is enough.
//!
//! Daylight saving: a time that a change of clocks leaves out does not come; one that comes twice comes once, unless the
//! schedule is for every hour.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#schedule-syntax>.

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// Days looked ahead before a schedule counts as never due: 29 February may be eight years away.
const DAYS_AHEAD_MAX: usize = 8 * 366 + 1;

struct Bounds {
    name: &'static str,
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const FIELDS: [Bounds; 5] = [
    Bounds { name: "minute", low: 0, high: 59, names: &[] },
    Bounds { name: "hour", low: 0, high: 23, names: &[] },
    Bounds { name: "day of month", low: 1, high: 31, names: &[] },
    Bounds { name: "month", low: 1, high: 12, names: MONTHS },
    Bounds { name: "day of week", low: 0, high: 7, names: DAYS },
];

/// A set of small numbers, and whether it was written as `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    bits: u64,
    any: bool,
}

impl Field {
    fn has(self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|number| self.bits >> number & 1 == 1)
    }
}

/// A schedule that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// At times of the clock.
    #[doc(hidden)]
    Fields(Box<Fields>),
    /// At an interval.
    Every(SignedDuration),
}

#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// In words, what cannot be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix('@') {
            let fields = match name {
                "yearly" | "annually" => "0 0 1 1 *",
                "monthly" => "0 0 1 * *",
                "weekly" => "0 0 * * 0",
                "daily" | "midnight" => "0 0 * * *",
                "hourly" => "0 * * * *",
                _ => {
                    let interval = name.strip_prefix("every ").and_then(duration);
                    return interval.map(Self::Every).ok_or_else(|| format!("unrecognized descriptor: {text}"));
                }
            };
            return Self::parse(fields);
        }
        let parts: Vec<_> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: {parts:?}", parts.len()));
        };
        let mut weekday = field(weekday, &FIELDS[4])?;
        // Sunday is 0 and 7.
        weekday.bits |= weekday.bits >> 7 & 1;
        let (minute, hour) = (field(minute, &FIELDS[0])?, field(hour, &FIELDS[1])?);
        let (day, month) = (field(day, &FIELDS[2])?, field(month, &FIELDS[3])?);
        Ok(Self::Fields(Box::new(Fields { minute, hour, day, month, weekday })))
    }

    /// The first time after `after` that the schedule is due by the clocks of `zone`; `None` when it never is.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            // As whole seconds, so that times do not drift with who asks when.
            Self::Every(interval) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*interval).ok(),
            Self::Fields(fields) => fields.next(after, zone),
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut date = after.to_zoned(zone.clone()).date();
        for _ in 0..DAYS_AHEAD_MAX {
            if self.is_due_on(date)
                && let Some(found) = self.next_on(date, after, zone)
            {
                return Some(found);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    fn is_due_on(&self, date: Date) -> bool {
        let (day, weekday) = (self.day.has(date.day()), self.weekday.has(date.weekday().to_sunday_zero_offset()));
        let days = if self.day.any || self.weekday.any { day && weekday } else { day || weekday };
        self.month.has(date.month()) && days
    }

    /// The earliest due time of a day after `after`.
    fn next_on(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut best: Option<Timestamp> = None;
        for hour in (0..24).filter(|hour| self.hour.has(*hour)) {
            for minute in (0..60).filter(|minute| self.minute.has(*minute)) {
                let due = self.times_of(date.at(hour, minute, 0, 0), zone).into_iter().flatten();
                best = due.filter(|time| *time > after).chain(best).min();
            }
            // Hours that come twice make later ones come earlier by at most one.
            if best.is_some() && self.times_of(date.at(hour, 59, 0, 0), zone)[1].is_none() {
                break;
            }
        }
        best
    }

    /// When a time of the clock comes: once, not at all, or twice.
    fn times_of(&self, clock: DateTime, zone: &TimeZone) -> [Option<Timestamp>; 2] {
        match zone.to_ambiguous_timestamp(clock).offset() {
            AmbiguousOffset::Unambiguous { offset } => [offset.to_timestamp(clock).ok(), None],
            AmbiguousOffset::Gap { .. } => [None, None],
            AmbiguousOffset::Fold { before, after } => {
                [before.to_timestamp(clock).ok(), after.to_timestamp(clock).ok().filter(|_| self.hour.any)]
            }
        }
    }
}

/// Go durations as `@every` takes them, for example `1h30m`; at least a second, as cron has no finer clock.
fn duration(text: &str) -> Option<SignedDuration> {
    let mut total = SignedDuration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| at + digits);
        let seconds = match &rest[digits..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        total = total.checked_add(SignedDuration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then(|| SignedDuration::from_secs(total.as_secs().max(1)))
}

fn field(text: &str, bounds: &Bounds) -> Result<Field, String> {
    let mut field = Field { bits: 0, any: false };
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let wrong = || format!("step of range should be a positive number: {part}");
        let stride: u32 = step.map_or(Ok(1), |step| step.parse().ok().filter(|step| *step > 0).ok_or_else(wrong))?;
        let (low, high) = if range == "*" || range == "?" {
            field.any |= stride == 1;
            (bounds.low, bounds.high)
        } else {
            let (low, high) = range.split_once('-').map_or((range, None), |(low, high)| (low, Some(high)));
            let low = number(low, bounds)?;
            // `5/15` is from 5 on.
            let high = match high {
                Some(high) => number(high, bounds)?,
                None if step.is_some() => bounds.high,
                None => low,
            };
            (low, high)
        };
        if low > high {
            return Err(format!("beginning of range ({low}) beyond end of range ({high}): {part}"));
        }
        let mut at = low;
        while at <= high {
            field.bits |= 1 << at;
            at = at.saturating_add(stride);
        }
    }
    Ok(field)
}

fn number(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_lowercase();
    if let Some(index) = bounds.names.iter().position(|name| *name == lower) {
        return Ok(index as u32 + bounds.low);
    }
    let number = text.parse::<u32>().map_err(|_| format!("failed to parse int from {text} ({})", bounds.name))?;
    if number < bounds.low || number > bounds.high {
        return Err(format!("{} {number} is not between {} and {}", bounds.name, bounds.low, bounds.high));
    }
    Ok(number)
}

/// A time zone of the tz database, by name.
///
/// # Errors
/// In words, why it is not one.
pub fn time_zone(name: &str) -> Result<TimeZone, String> {
    if name.eq_ignore_ascii_case("local") {
        return Err("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned());
    }
    TimeZone::get(name).map_err(|_| format!("unknown time zone {name}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use jiff::ToSpan as _;

    use super::*;

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let schedule = Schedule::parse(schedule).unwrap();
        let next = schedule.next(after.parse().unwrap(), &time_zone(zone).unwrap());
        next.map_or_else(|| "never".to_owned(), |next| next.to_string())
    }

    #[test]
    fn syntax() {
        for good in [
            "* * * * *",
            "*/5 1,2 1-10/3 jan-mar MON",
            "0 0 * * 7",
            "? ? ? ? ?",
            "@daily",
            "@every 1h30m",
            "5/15 * * * *",
        ] {
            assert!(Schedule::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "*/0 * * * *",
            "5-1 * * * *",
            "a * * * *",
            "@weekdays",
            "@every",
            "@every x",
            "@every 5",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn when_it_is_due() {
        for (schedule, after, expected) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", "2026-01-01T00:00:59Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "2026-01-01T00:50:00Z", "2026-01-01T01:00:00Z"),
            ("30 4 * * *", "2026-01-01T04:30:00Z", "2026-01-02T04:30:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 31 2 *", "2026-01-01T00:00:00Z", "never"),
            // Thursday, 1 January 2026: the 13th is a Tuesday, Fridays come earlier.
            ("0 0 13 * 5", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 13 * *", "2026-01-01T00:00:00Z", "2026-01-13T00:00:00Z"),
            ("0 0 * * sun", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("0 0 * * 7", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@every 90s", "2026-01-01T00:00:10Z", "2026-01-01T00:01:40Z"),
        ] {
            assert_eq!(next(schedule, after, "UTC"), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn clocks_that_change() {
        // Berlin: 2026-03-29 02:00 is 03:00; 2026-10-25 03:00 is 02:00 again.
        let berlin = |schedule, after| next(schedule, after, "Europe/Berlin");
        assert_eq!(berlin("30 2 * * *", "2026-03-28T12:00:00Z"), "2026-03-30T00:30:00Z", "left out once");
        assert_eq!(berlin("30 2 * * *", "2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(berlin("30 2 * * *", "2026-10-25T00:30:00Z"), "2026-10-26T01:30:00Z", "comes once");
        assert_eq!(berlin("30 * * * *", "2026-10-25T00:30:00Z"), "2026-10-25T01:30:00Z", "every hour comes twice");
        assert_eq!(berlin("0 9 * * 1-5", "2026-01-02T08:00:00Z"), "2026-01-05T08:00:00Z");
        assert!(time_zone("Local").is_err() && time_zone("Mars/Olympus").is_err());
    }

    #[test]
    fn never_earlier_than_asked() {
        let zone = time_zone("America/New_York").unwrap();
        let schedule = Schedule::parse("*/20 * * * *").unwrap();
        let mut time: Timestamp = "2026-10-31T00:00:00Z".parse().unwrap();
        let end = time + 72.hours();
        let mut count = 0;
        while time < end {
            let next = schedule.next(time, &zone).unwrap();
            assert_eq!(next.as_second() - time.as_second(), 1200, "even steps, whatever the clocks do");
            (time, count) = (next, count + 1);
        }
        assert_eq!(count, 3 * 72);
    }
}
