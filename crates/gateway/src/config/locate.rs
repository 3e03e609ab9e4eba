//! The line on which a field stands in a YAML document.
//!
//! Follows block style by indentation, as manifests are written. Where a path goes on inside flow style (`{a: 1}`), the line
//! of the last part that was found is the answer: near enough for people, and nothing else depends on it.

/// The 1-based line of the field at `path`; list items are decimal numbers.
pub(crate) fn line_of(text: &str, path: &[&str]) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let (mut from, mut to, mut found) = (0, lines.len(), 0);
    let mut column = None;
    for part in path {
        let item = part.parse::<usize>().ok();
        let Some((line, next_column)) = find(&lines, from, to, column, part, item) else { break };
        found = line;
        // The field's own block: all that follows and is indented deeper, or is the rest of the same list item.
        to = (line + 1..to).find(|&at| ends(lines[at], next_column, item.is_some())).unwrap_or(to);
        (from, column) = if item.is_some() { (line, Some(next_column)) } else { (line + 1, None) };
    }
    found + 1
}

/// The line and column of a mapping key, or of the n-th list item, among the lines of one block.
fn find(
    lines: &[&str],
    from: usize,
    to: usize,
    column: Option<usize>,
    part: &str,
    item: Option<usize>,
) -> Option<(usize, usize)> {
    let mut block = column;
    let mut seen = 0;
    for (at, line) in lines.iter().enumerate().take(to).skip(from) {
        let mut indent = line.len() - line.trim_start().len();
        let mut content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        if let Some(wanted) = item {
            let block = *block.get_or_insert(indent);
            if indent == block && (content.starts_with("- ") || content == "-") {
                if seen == wanted {
                    // The item's keys begin after the dash.
                    let inner = content[1..].trim_start();
                    return Some((at, indent + content.len() - inner.len()));
                }
                seen += 1;
            }
            continue;
        }
        // `- key: value`: the key stands behind the dash.
        while let Some(rest) = content.strip_prefix("- ") {
            indent += content.len() - rest.trim_start().len();
            content = rest.trim_start();
        }
        let block = *block.get_or_insert(indent);
        if indent == block && key_of(content) == Some(part) {
            return Some((at, indent));
        }
    }
    None
}

/// Whether a line is outside the block of a key (or list item content) at `column`.
fn ends(line: &str, column: usize, item: bool) -> bool {
    let content = line.trim_start();
    let indent = line.len() - content.len();
    if content.is_empty() || content.starts_with('#') {
        return false;
    }
    if item { indent < column } else { indent < column || (indent == column && !content.starts_with('-')) }
}

fn key_of(content: &str) -> Option<&str> {
    let (key, rest) = content.split_once(':')?;
    (rest.is_empty() || rest.starts_with([' ', '\t'])).then(|| key.trim().trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
kind: HTTPRoute
metadata:
  name: a
spec:
  parentRefs:
  - name: g
    port: 80
  rules:
    - matches:
        - path: {type: Exact, value: /a}
      backendRefs:
        - name: x
        - name: y
          port: 2
    - backendRefs: []
";

    #[test]
    fn fields_are_found_by_their_path() {
        let cases: [(&[&str], usize); 9] = [
            (&["kind"], 1),
            (&["metadata", "name"], 3),
            (&["spec", "parentRefs", "0", "port"], 7),
            (&["spec", "rules", "0", "matches", "0", "path"], 10),
            (&["spec", "rules", "0", "matches", "0", "path", "value"], 10),
            (&["spec", "rules", "0", "backendRefs", "1", "port"], 14),
            (&["spec", "rules", "1", "backendRefs"], 15),
            (&["spec", "rules", "1"], 15),
            (&["spec", "nothing"], 4),
        ];
        for (path, line) in cases {
            assert_eq!(line_of(TEXT, path), line, "{path:?}");
        }
    }
}
