//! Times as Kubernetes writes them, and ages as `kubectl` shows them.

use jiff::Timestamp;

/// `Time`: RFC 3339 in UTC with whole seconds, for example `2026-01-02T15:04:05Z`.
pub fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `MicroTime`: RFC 3339 in UTC with six decimals, for example `2026-01-02T15:04:05.000123Z`.
pub fn format_micro_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Reads a `Time` or `MicroTime`.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// A duration the way `kubectl` shows ages: at most two units, coarser the longer it is.
///
/// Source: the observable behaviour of `kubectl get`; a clock that is up to one second behind counts as zero.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

fn two(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
}

/// The age at `now` of something that began at `since`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    // In milliseconds and then truncated, as Go divides durations.
    human_duration((now.as_millisecond() - since.as_millisecond()) / 1000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn formats() {
        let time: Timestamp = "2026-01-02T15:04:05.000123456Z".parse().unwrap();
        assert_eq!(format_time(time), "2026-01-02T15:04:05Z");
        assert_eq!(format_micro_time(time), "2026-01-02T15:04:05.000123Z");
        assert_eq!(format_micro_time(parse_time("2026-01-02T15:04:05Z").unwrap()), "2026-01-02T15:04:05.000000Z");
        assert_eq!(parse_time("2026-01-02T16:04:05+01:00"), parse_time("2026-01-02T15:04:05Z"));
        assert_eq!(parse_time("now"), None);
    }

    #[test]
    fn ages() {
        let (minute, hour, day) = (60, 3600, 86_400);
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (5, "5s"),
            (119, "119s"),
            (2 * minute, "2m"),
            (2 * minute + 3, "2m3s"),
            (10 * minute + 5, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (3 * hour + 5 * minute, "3h5m"),
            (8 * hour, "8h"),
            (47 * hour, "47h"),
            (4 * day + 2 * hour, "4d2h"),
            (7 * day, "7d"),
            (9 * day + hour, "9d"),
            (729 * day, "729d"),
            (730 * day, "2y"),
            (740 * day, "2y10d"),
            (365 * 9 * day, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }
}
