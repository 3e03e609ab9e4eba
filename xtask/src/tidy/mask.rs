//! Rust source with comments and literals blanked out, so that braces and words can be counted.
//!
//! Not a parser: it knows exactly as much of Rust's lexical structure as is needed to tell code from text
//! (<https://doc.rust-lang.org/reference/tokens.html>). Lines stay where they are.

/// `text` with every character of a comment, string or character literal replaced by a space.
pub(crate) fn mask(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_word = masked.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let blank = blank_length(rest, after_word);
        if blank == 0 {
            masked.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            masked.extend(rest[..blank].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[blank..];
        }
    }
    masked
}

/// How many bytes at the start of `rest` are a comment or a literal; 0 if it is code.
/// `after_word`: a word ends right before, so that an `r` here is its last letter and starts no raw string.
fn blank_length(rest: &str, after_word: bool) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_length(rest);
    }
    if let Some(inside) = rest.strip_prefix('"') {
        return 1 + closing_quote(inside, '"');
    }
    if !after_word && let Some(length) = raw_string_length(rest) {
        return length;
    }
    if rest.starts_with('\'') { character_length(rest) } else { 0 }
}

/// Block comments nest.
fn block_comment_length(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// `r"…"`, `r#"…"#`, and the same with `b` or `c` before.
fn raw_string_length(rest: &str) -> Option<usize> {
    let prefix = usize::from(rest.starts_with(['b', 'c']));
    let hashes_from = prefix + 1;
    let after_r = rest[prefix..].strip_prefix('r')?;
    let hashes = after_r.len() - after_r.trim_start_matches('#').len();
    let inside = after_r[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(hashes_from + hashes + 1 + length)
}

/// A character literal, or 0 for a lifetime such as `'a`.
fn character_length(rest: &str) -> usize {
    let mut inside = rest[1..].chars();
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => 1 + closing_quote(&rest[1..], '\''),
        (Some(one), Some('\'')) => 2 + one.len_utf8(),
        _ => 0,
    }
}

/// Bytes up to and including the quote that is not escaped.
fn closing_quote(inside: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in inside.char_indices() {
        if !escaped && character == quote {
            return at + 1;
        }
        escaped = !escaped && character == '\\';
    }
    inside.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        for (text, code) in [
            ("a // {\nb", "a b"),
            ("a /* { /* */ } */ b", "a b"),
            (r#"f("{\"}") + 1"#, "f( ) + 1"),
            (r##"f(r#"{"}"#) + 1"##, "f( ) + 1"),
            ("f(b\"{\", '{', '\\'', 'a: 1)", "f(b , , , 'a: 1)"),
            ("for\"x\"", "for"),
        ] {
            let masked = mask(text);
            assert_eq!(masked.split_whitespace().collect::<Vec<_>>().join(" "), code, "{text}");
            assert_eq!((masked.len(), masked.lines().count()), (text.len(), text.lines().count()), "{text}");
        }
    }
}
