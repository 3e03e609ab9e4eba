//! What names, label keys and values may look like, with Kubernetes' own wording of the rules.
//!
//! Every check returns the list of rules that are broken, empty when the text is good.
//!
//! Source: <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/> and
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>.

use super::hash::SAFE;

/// Longest DNS label (RFC 1123).
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain.
pub const SUBDOMAIN_MAX: usize = 253;
/// Characters that a generated name appends.
pub const SUFFIX_LEN: usize = 5;

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn rule(text: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<_> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{text} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

fn is_lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
fn is_label_shaped(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    is_lower_alphanumeric(*first)
        && is_lower_alphanumeric(*last)
        && bytes.iter().all(|b| is_lower_alphanumeric(*b) || *b == b'-')
}

/// `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`
fn is_qualified_shaped(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A DNS label (RFC 1123): names of namespaces, containers, volumes.
pub fn check_label(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LABEL_MAX {
        faults.push(too_long(LABEL_MAX));
    }
    if !is_label_shaped(text) {
        faults.push(rule(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
             with an alphanumeric character",
            "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "123-abc"],
        ));
    }
    faults
}

/// A DNS label that begins with a letter (RFC 1035).
pub fn check_label_1035(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LABEL_MAX {
        faults.push(too_long(LABEL_MAX));
    }
    if !is_label_shaped(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        faults.push(rule(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    faults
}

/// A DNS subdomain (RFC 1123): the names of most objects.
pub fn check_subdomain(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        faults.push(too_long(SUBDOMAIN_MAX));
    }
    if !text.split('.').all(is_label_shaped) {
        faults.push(rule(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character",
            r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    faults
}

/// One segment of a URL path: names of roles and bindings.
pub fn check_path_segment(text: &str) -> Vec<String> {
    match text {
        "." | ".." => vec![format!("may not be '{text}'")],
        _ => ['/', '%'].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect(),
    }
}

/// A label key, annotation key, taint key or finalizer: `[prefix/]name`.
pub fn check_qualified_name(text: &str) -> Vec<String> {
    const CHARACTERS: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    const PATTERN: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut faults = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            let words = rule(&format!("a qualified name {CHARACTERS}"), PATTERN, EXAMPLES);
            return vec![format!("{words} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
        Some(("", name)) => {
            faults.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            faults.extend(check_subdomain(prefix).into_iter().map(|fault| format!("prefix part {fault}")));
            name
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        faults.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_qualified_shaped(name) {
        faults.push(rule(&format!("name part {CHARACTERS}"), PATTERN, EXAMPLES));
    }
    faults
}

/// A label value.
pub fn check_label_value(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LABEL_MAX {
        faults.push(too_long(LABEL_MAX));
    }
    if !text.is_empty() && !is_qualified_shaped(text) {
        faults.push(rule(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    faults
}

/// A key of a ConfigMap or Secret.
pub fn check_config_key(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        faults.push(too_long(SUBDOMAIN_MAX));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        faults.push(rule(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    if text == "." || text == ".." {
        faults.push(format!("must not be '{text}'"));
    } else if text.starts_with("..") {
        faults.push("must not start with '..'".to_owned());
    }
    faults
}

/// A port name (RFC 6335, section 5.1, lower case only).
pub fn check_port_name(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 15 {
        faults.push(too_long(15));
    }
    if !text.bytes().all(|b| is_lower_alphanumeric(b) || b == b'-') {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        faults.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        faults.push("must not begin or end with a hyphen".to_owned());
    }
    faults
}

/// The name of an environment variable.
pub fn check_env_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// Five characters of the safe alphabet, from a random number.
pub fn random_suffix(random: u64) -> String {
    let mut rest = random;
    let base = SAFE.len() as u64;
    (0..SUFFIX_LEN)
        .map(|_| {
            let character = SAFE[(rest % base) as usize];
            rest /= base;
            char::from(character)
        })
        .collect()
}

/// The name that `metadata.generateName` stands for; the base is cut so that the whole fits in a DNS label.
pub fn generate_name(base: &str, random: u64) -> String {
    let mut end = base.len().min(LABEL_MAX - SUFFIX_LEN);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], random_suffix(random))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tables() {
        type Check = fn(&str) -> Vec<String>;
        let long = "a".repeat(64);
        let cases: &[(&str, Check, &[&str], &[&str])] = &[
            ("label", check_label, &["a", "a-1", "0"], &["", "-a", "a-", "A", "a.b", "a_b", &long]),
            ("1035", check_label_1035, &["a", "a-1"], &["", "0", "1a", "a-", "A", &long]),
            ("subdomain", check_subdomain, &["a", "a.b-c", "0.1"], &["", ".", "a..b", "a.", "a.-b", "A.b"]),
            ("path", check_path_segment, &["a", "system:node", "A..b"], &[".", "..", "a/b", "a%b"]),
            (
                "qualified",
                check_qualified_name,
                &["a", "A_b.c", "example.com/X"],
                &["", "/a", "a/", "a/b/c", "-a", "Ex.com/a", &long],
            ),
            ("value", check_label_value, &["", "A_b.c", "1"], &["-", "a-", "a b", &long]),
            (
                "config",
                check_config_key,
                &["a", "..a".trim_start_matches('.'), "_x", "A.b-c"],
                &["", ".", "..", "..a", "a/b"],
            ),
            ("port", check_port_name, &["http", "a-1"], &["", "1", "HTTP", "a--b", "-a", "a-", "sixteen-letters-"]),
            ("env", check_env_name, &["A", "a.b-c", "1 x"], &["", "A=B", "ä"]),
        ];
        for (name, check, good, bad) in cases {
            for text in *good {
                assert_eq!(check(text), [""; 0], "{name} {text}");
            }
            for text in *bad {
                assert_ne!(check(text), [""; 0], "{name} {text}");
            }
        }
    }

    #[test]
    fn wording() {
        assert_eq!(
            check_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
              with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
    }

    proptest! {
        #[test]
        fn generated_names_are_good(random in any::<u64>(), base in "[a-z][a-z0-9]{0,70}-") {
            let name = generate_name(&base, random);
            prop_assert_eq!(check_label(&name), Vec::<String>::new());
            prop_assert_eq!(name.len(), base.len().min(58) + 5);
        }
    }
}
