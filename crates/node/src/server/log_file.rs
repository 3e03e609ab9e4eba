//! Log files in the CRI format, read as `kubectl logs` wants them. Pure.
//!
//! Source: `TIME STREAM TAG TEXT`, where the tag is `F` for a whole line and `P` for a part of a long one
//! (Kubernetes, "CRI log format").

use jiff::{SignedDuration, Timestamp};

/// What of a log is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// The instance before the present one.
    pub previous: bool,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Only lines from then on.
    pub since: Option<Timestamp>,
    /// Only so many of the last lines.
    pub tail_lines: Option<u64>,
    /// Only so many bytes of output.
    pub limit_bytes: Option<u64>,
}

impl LogOptions {
    /// From the query of a request; unknown parameters are ignored.
    ///
    /// # Errors
    /// Names the parameter that cannot be read.
    pub fn parse(query: &str, now: Timestamp) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let bad = || format!("invalid value {value:?} of parameter {name}");
            let flag = || matches!(value.as_ref(), "true" | "1");
            let number = || value.parse::<u64>().map_err(|_| bad());
            match name.as_ref() {
                "follow" => options.follow = flag(),
                "previous" => options.previous = flag(),
                "timestamps" => options.timestamps = flag(),
                "tailLines" => options.tail_lines = Some(number()?),
                "limitBytes" => options.limit_bytes = Some(number()?),
                "sinceSeconds" => {
                    let seconds = i64::try_from(number()?).map_err(|_| bad())?;
                    options.since = now.checked_sub(SignedDuration::from_secs(seconds)).ok();
                }
                "sinceTime" => options.since = Some(value.parse().map_err(|_| bad())?),
                _ => {}
            }
        }
        Ok(options)
    }
}

/// Turns a log file, piece by piece, into output.
pub struct LogReader {
    options: LogOptions,
    partial: Vec<u8>,
    left: u64,
    /// The next piece begins a line: it gets the time.
    at_start: bool,
}

/// A line that never ends is cut here; the writer's own limit is far below.
const LINE_BYTES_MAX: usize = 256 * 1024;

impl LogReader {
    /// A reader at the beginning of a line.
    pub fn new(options: LogOptions) -> Self {
        let left = options.limit_bytes.unwrap_or(u64::MAX);
        Self { options, partial: Vec::new(), left, at_start: true }
    }

    /// Whether the byte limit has been reached.
    pub fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Takes in what was read and returns what to send.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut output = Vec::with_capacity(bytes.len());
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.last() == Some(&b'\n') || self.partial.len() > LINE_BYTES_MAX {
                let line = std::mem::take(&mut self.partial);
                self.line(line.strip_suffix(b"\n").unwrap_or(&line), &mut output);
            }
        }
        output.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= output.len() as u64;
        output
    }

    fn line(&mut self, line: &[u8], output: &mut Vec<u8>) {
        let Some(entry) = Entry::parse(line) else { return };
        let wanted = self.options.since.is_none_or(|since| entry.time().is_none_or(|time| time >= since));
        if wanted {
            if self.options.timestamps && self.at_start {
                output.extend_from_slice(entry.time);
                output.push(b' ');
            }
            output.extend_from_slice(entry.text);
            if entry.whole {
                output.push(b'\n');
            }
        }
        self.at_start = entry.whole;
    }
}

/// One line of a log file.
struct Entry<'a> {
    time: &'a [u8],
    whole: bool,
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (time, _stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { time, whole: !tag.starts_with(b"P"), text: parts.next().unwrap_or_default() })
    }

    fn time(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.time).ok()?.parse().ok()
    }
}

/// Looks for the beginning of the last lines in one piece of a file, the pieces being taken from the end backwards.
/// `ends_left` is how many line ends are still to be passed; the place behind the last of them is the answer, if it lies
/// in this piece.
pub fn seek_back(piece: &[u8], ends_left: &mut u64) -> Option<usize> {
    for (at, _) in piece.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
        *ends_left -= 1;
        if *ends_left == 0 {
            return Some(at + 1);
        }
    }
    None
}

/// The last lines of a piece of a log file as plain text; the first line may be cut and is dropped if it makes no sense.
pub fn plain_tail(piece: &str, lines_max: usize) -> String {
    let lines: Vec<_> = piece.lines().collect();
    let from = lines.len().saturating_sub(lines_max);
    let mut reader = LogReader::new(LogOptions::default());
    let text =
        lines[from..].iter().filter(|line| Entry::parse(line.as_bytes()).is_some_and(|entry| entry.time().is_some()));
    let mut output = Vec::new();
    for line in text {
        output.extend(reader.take(line.as_bytes()));
        output.extend(reader.take(b"\n"));
    }
    String::from_utf8_lossy(&output).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LOG: &str = "2026-01-02T03:04:05.000000001Z stdout F one\n2026-01-02T03:04:06.5Z stderr P tw\n\
                       2026-01-02T03:04:06.6Z stderr F o\n2026-01-02T03:04:07Z stdout F \n";

    fn read(query: &str) -> String {
        let options = LogOptions::parse(query, "2026-01-02T03:04:08Z".parse().unwrap()).unwrap();
        // Byte by byte: pieces must not matter.
        let mut reader = LogReader::new(options);
        let output: Vec<u8> = LOG.bytes().flat_map(|byte| reader.take(&[byte])).collect();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn what_of_a_log_is_shown() {
        for (query, expected) in [
            ("", "one\ntwo\n\n"),
            (
                "timestamps=true",
                "2026-01-02T03:04:05.000000001Z one\n2026-01-02T03:04:06.5Z two\n2026-01-02T03:04:07Z \n",
            ),
            ("sinceSeconds=2", "two\n\n"),
            ("sinceTime=2026-01-02T03:04:07Z", "\n"),
            ("limitBytes=5", "one\nt"),
        ] {
            assert_eq!(read(query), expected, "{query}");
        }
        assert!(LogOptions::parse("tailLines=-1", Timestamp::UNIX_EPOCH).is_err());
    }

    #[test]
    fn the_last_lines_are_found_piece_by_piece() {
        let find = |ends: u64, pieces: &[&[u8]]| {
            let mut left = ends;
            pieces.iter().enumerate().find_map(|(index, piece)| Some((index, seek_back(piece, &mut left)?)))
        };
        // The end that closes the file counts: two ends for the last line.
        for (ends, expected) in [(2, Some((0, 4))), (3, Some((0, 2))), (4, None)] {
            assert_eq!(find(ends, &[b"a\nb\nc\n"]), expected, "{ends}");
            assert_eq!(find(ends, &[b"\n", b"c", b"b\n", b"a\n"]).is_some(), expected.is_some(), "{ends}");
        }
        assert_eq!(find(3, &[b"\n", b"c", b"b\n", b"a\n"]), Some((3, 2)));
        assert_eq!(find(1, &[b"a\nb"]), Some((0, 2)));
    }

    #[test]
    fn a_log_can_stand_in_for_the_termination_message() {
        assert_eq!(plain_tail(&LOG[10..], 80), "two\n\n");
        assert_eq!(plain_tail(LOG, 1), "\n");
    }
}
