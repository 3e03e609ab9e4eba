//! The syntax of cron schedules: five fields, or a macro such as `@daily`.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#schedule-syntax>.

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

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

/// Whether `schedule` can be read, and if not, why.
pub fn check_schedule(schedule: &str) -> Result<(), String> {
    if let Some(name) = schedule.strip_prefix('@') {
        return match name {
            "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly" => Ok(()),
            _ if name.strip_prefix("every ").is_some_and(is_duration) => Ok(()),
            _ => Err(format!("unrecognized descriptor: {schedule}")),
        };
    }
    let fields: Vec<_> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: {fields:?}", fields.len()));
    }
    fields
        .iter()
        .zip(&FIELDS)
        .try_for_each(|(text, bounds)| text.split(',').try_for_each(|part| check_part(part, bounds)))
}

/// Go durations as `@every` takes them, for example `1h30m`.
fn is_duration(text: &str) -> bool {
    let end = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    end.len() < text.len()
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || b"hms.".contains(&b))
}

/// `*`, `n`, `n-m`, each with `/step`.
fn check_part(part: &str, bounds: &Bounds) -> Result<(), String> {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if let Some(step) = step
        && !step.parse::<u32>().is_ok_and(|step| step > 0)
    {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    if range == "*" || range == "?" {
        return Ok(());
    }
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    let (low, high) = (number(low, bounds)?, number(high, bounds)?);
    if low > high {
        return Err(format!("beginning of range ({low}) beyond end of range ({high}): {part}"));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-6 1,15 jan-mar MON", "0 0 * * 7", "@daily", "@every 1h30m", "? 1-5/2 * * *"] {
            assert_eq!(check_schedule(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "x * * * *",
            "@often",
            "@every x",
            "* * * foo *",
        ] {
            assert!(check_schedule(bad).is_err(), "{bad}");
        }
    }
}
