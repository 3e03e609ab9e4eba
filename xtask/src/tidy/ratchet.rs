//! The exceptions from the size limits that exist, and may only shrink.
//!
//! `xtask/tidy.ratchet` has one line per exception: `LINES WHAT`. A new one is added by hand, so that it is seen in
//! review; `--bless` lowers and removes lines, and never raises or adds one.

use std::collections::BTreeMap;
use std::fmt;

use super::files::Excess;

/// The head of the file, kept by `--bless`.
const HEAD: &str = "# Longer than the house allows (600 lines a file, 70 a function), for now. These may only shrink:\n\
                    # `cargo xtask tidy --bless` lowers them. LINES PATH or LINES PATH::FUNCTION.\n";

/// What may be how long.
pub(crate) struct Ratchet(BTreeMap<String, usize>);

impl Ratchet {
    /// Reads the file; lines that are neither comments nor entries are ignored.
    pub(crate) fn parse(text: &str) -> Self {
        let entries = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '));
        Self(entries.filter_map(|(lines, what)| Some((what.trim().to_owned(), lines.parse().ok()?))).collect())
    }

    /// What is too long and not known, or has grown.
    pub(crate) fn refuse(&self, excesses: &[Excess]) -> Vec<String> {
        let over = excesses.iter().filter(|it| it.lines > self.0.get(&it.what).copied().unwrap_or(it.limit));
        over.map(|it| {
            let limit =
                self.0.get(&it.what).map_or(format!("the limit is {}", it.limit), |known| format!("it had {known}"));
            format!("{}: {} lines; {limit}. Split it", it.what, it.lines)
        })
        .collect()
    }

    /// Entries that are longer than what they stand for.
    pub(crate) fn could_shrink(&self, excesses: &[Excess]) -> Vec<String> {
        let shrunk = self.shrunk_to(excesses);
        self.0.iter().filter(|(what, lines)| shrunk.0.get(*what) != Some(lines)).map(|(what, _)| what.clone()).collect()
    }

    /// The same exceptions, none larger than needed now, none that is no longer needed.
    pub(crate) fn shrunk_to(&self, excesses: &[Excess]) -> Self {
        let needed = excesses.iter().filter_map(|it| {
            let known = self.0.get(&it.what)?;
            Some((it.what.clone(), it.lines.min(*known)))
        });
        Self(needed.collect())
    }
}

impl fmt::Display for Ratchet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(HEAD)?;
        self.0.iter().try_for_each(|(what, lines)| writeln!(formatter, "{lines} {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excess(what: &str, lines: usize) -> Excess {
        Excess { what: what.into(), lines, limit: 70 }
    }

    #[test]
    fn it_turns_one_way() {
        let ratchet = Ratchet::parse("# head\n90 a.rs::f\n100 a.rs::g\n80 a.rs::gone\n");
        let now = [excess("a.rs::f", 95), excess("a.rs::g", 75), excess("a.rs::new", 71)];
        assert_eq!(ratchet.refuse(&now).len(), 2);
        assert_eq!(ratchet.could_shrink(&now), ["a.rs::g", "a.rs::gone"]);
        assert_eq!(ratchet.shrunk_to(&now).to_string(), format!("{HEAD}90 a.rs::f\n75 a.rs::g\n"));
    }
}
