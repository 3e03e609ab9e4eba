//! Giving back memory that only the start needed.
//!
//! The kernel maps a program's code in large pieces around every page that is touched, so a process that has started holds
//! far more of it than it goes on to use. Dropping those mappings costs nothing but a minor fault for each piece that is
//! used again: the code itself stays in the page cache, shared by all processes of this program.
//!
//! Source: madvise(2), `MADV_DONTNEED`.

use std::fs;

/// Drops the mappings of this program's code and constants. Only mappings that cannot be written and hold no page of their
/// own are touched, so that the file has all that is dropped. What cannot be read or dropped simply stays.
#[allow(unsafe_code)]
pub fn release_code() {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, end) in unwritten(&maps) {
        // SAFETY: the range is a private, read-only, file-backed mapping of this process without anonymous pages; its
        // pages come back from the file, unchanged, when they are touched next, including those this function runs from.
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_DONTNEED) };
    }
}

/// The ranges of files that are mapped read-only and were never written. In `/proc/PID/smaps` each mapping has a line
/// `START-END PERMISSIONS OFFSET DEVICE INODE PATH` and further ones, one of which is `Anonymous: N kB`.
fn unwritten(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(kib) = line.strip_prefix("Anonymous:") {
            // Relocated constants are written once, at the start, and are not in the file.
            found.extend(candidate.take().filter(|_| kib.trim() == "0 kB"));
        } else if let Some(range) = range(line) {
            let mut words = line.split_whitespace().skip(1);
            let read_only = words.next().is_some_and(|permissions| matches!(permissions, "r-xp" | "r--p"));
            let of_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
            candidate = (read_only && of_file).then_some(range);
        }
    }
    found
}

/// `START-END` at the beginning of a mapping's first line.
fn range(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0a00000-55d0c2000000 r-xp 00a00000 fe:00 123    /usr/local/bin/mainstay
Rss:                 200 kB
Anonymous:             0 kB
55d0c2000000-55d0c2100000 r--p 01600000 fe:00 123    /usr/local/bin/mainstay
Anonymous:           944 kB
55d0c2100000-55d0c2200000 rw-p 01700000 fe:00 123    /usr/local/bin/mainstay
Anonymous:             0 kB
7ffc1000-7ffc3000 r-xp 00000000 00:00 0              [vdso]
Anonymous:             0 kB
";

    #[test]
    fn only_what_the_file_has_is_dropped() {
        assert_eq!(unwritten(SMAPS), [(0x55d0_c0a0_0000, 0x55d0_c200_0000)]);
        release_code();
        assert_eq!(unwritten(SMAPS).len(), 1, "code and constants are still there");
    }
}
