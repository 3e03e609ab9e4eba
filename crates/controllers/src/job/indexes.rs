//! Sets of completion indexes as a Job's status writes them: `1,3-5,7`.

use std::collections::BTreeSet;

/// A set of indexes.
pub(super) type Indexes = BTreeSet<i32>;

/// Reads the text; what is not an index below `limit` is left out.
pub(super) fn parse(text: Option<&str>, limit: i32) -> Indexes {
    let mut all = Indexes::new();
    for part in text.unwrap_or_default().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
        all.extend(first.max(0)..=last.min(limit - 1));
    }
    all
}

/// Writes the text; `None` for an empty set.
pub(super) fn format(indexes: &Indexes) -> Option<String> {
    let mut parts: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => parts.push((*index, *index)),
        }
    }
    // Two in a row are written as two, three and more as a range.
    let shown = parts.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    let text = shown.collect::<Vec<_>>().join(",");
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_kubernetes_writes_them() {
        for (text, back) in [("1,3-5,7", "1,3-5,7"), ("0-1", "0,1"), ("2,x,4-", "2"), ("5-9", "5-7"), ("3,2,1", "1-3")]
        {
            assert_eq!(format(&parse(Some(text), 8)).as_deref(), Some(back), "{text}");
        }
        assert_eq!(format(&parse(None, 8)), None);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(indexes: BTreeSet<u8>) {
            let indexes: Indexes = indexes.into_iter().map(i32::from).collect();
            prop_assert_eq!(parse(format(&indexes).as_deref(), 256), indexes);
        }
    }
}
