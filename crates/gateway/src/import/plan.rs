//! What both languages come down to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Note;

/// A whole configuration.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) listeners: Vec<Listener>,
    pub(super) routes: Vec<Route>,
    pub(super) backends: BTreeMap<String, Backend>,
    /// Certificates (name, chain, key) whose files could be read.
    pub(super) certificates: BTreeMap<String, (String, String)>,
    /// Secrets with passwords.
    pub(super) passwords: BTreeMap<String, String>,
    /// Sections of the policy of the Gateway.
    pub(super) gateway_policy: BTreeMap<&'static str, Value>,
    pub(super) notes: Vec<Note>,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) kind: Kind,
    pub(super) hostname: Option<String>,
    /// Name of the certificate.
    pub(super) certificate: Option<String>,
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    Https,
    Tcp,
}

/// A route.
#[derive(Debug, Default)]
pub(super) struct Route {
    pub(super) name: String,
    /// Names of listeners.
    pub(super) listeners: Vec<String>,
    pub(super) hostnames: Vec<String>,
    pub(super) rules: Vec<Rule>,
    pub(super) tcp: bool,
}

/// A rule of a route.
#[derive(Debug, Default, Clone)]
pub(super) struct Rule {
    /// Alternatives, each as the Gateway API writes it.
    pub(super) matches: Vec<Value>,
    pub(super) filters: Vec<Value>,
    /// Name of a backend.
    pub(super) backend: Option<String>,
    /// Sections of the rule's own policy.
    pub(super) policy: BTreeMap<&'static str, Value>,
    pub(super) session: Option<Value>,
}

/// A backend.
#[derive(Debug, Default)]
pub(super) struct Backend {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) protocol: Option<&'static str>,
    pub(super) tls: Option<Value>,
    /// Sections of its policy.
    pub(super) policy: BTreeMap<&'static str, Value>,
}

/// An endpoint of a backend.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: String,
    pub(super) weight: Option<u32>,
    pub(super) backup: bool,
}

impl Plan {
    /// Names something that is not translated.
    pub(super) fn note(&mut self, path: &Path, line: usize, message: impl Into<String>) {
        self.notes.push(Note { path: path.to_owned(), line, message: message.into() });
    }

    /// A listener; the one there is if port, kind and host are the same.
    pub(super) fn listener(
        &mut self,
        port: u16,
        kind: Kind,
        hostname: Option<&str>,
        certificate: Option<String>,
    ) -> String {
        let same = |it: &&Listener| it.port == port && it.kind == kind && it.hostname.as_deref() == hostname;
        if let Some(known) = self.listeners.iter().find(same) {
            return known.name.clone();
        }
        let protocol = match kind {
            Kind::Http => "http",
            Kind::Https => "https",
            Kind::Tcp => "tcp",
        };
        let name = match hostname {
            Some(host) => format!("{protocol}-{port}-{}", name_of(host)),
            None => format!("{protocol}-{port}"),
        };
        let hostname = hostname.map(str::to_owned);
        self.listeners.push(Listener { name: name.clone(), port, kind, hostname, certificate });
        name
    }

    /// A certificate from files; its name.
    pub(super) fn certificate(&mut self, path: &Path, line: usize, chain: &Path, key: &Path) -> String {
        let name = name_of(&chain.file_stem().unwrap_or_default().to_string_lossy());
        let read = |file: &Path| std::fs::read_to_string(file);
        match (read(chain), read(key)) {
            (Ok(chain), Ok(key)) => {
                // HAProxy keeps both in one file.
                let part = |text: &str, of_key: bool| pem_parts(text, of_key);
                self.certificates.insert(name.clone(), (part(&chain, false), part(&key, true)));
            }
            _ => self.note(
                path,
                line,
                format!(
                    "{} cannot be read here: make the Secret with `kubectl create secret tls {name} --cert={} --key={}`",
                    chain.display(),
                    chain.display(),
                    key.display()
                ),
            ),
        }
        name
    }
}

/// The blocks of a PEM file that are keys, or those that are not.
fn pem_parts(text: &str, keys: bool) -> String {
    let mut parts = String::new();
    let mut within = false;
    for line in text.lines() {
        if line.starts_with("-----BEGIN ") {
            within = line.contains("PRIVATE KEY") == keys;
        }
        if within {
            parts.push_str(line);
            parts.push('\n');
        }
        within &= !line.starts_with("-----END ");
    }
    parts
}

/// A name that Kubernetes takes (RFC 1123 label) for any text.
pub(super) fn name_of(text: &str) -> String {
    let plain = |it: char| if it.is_ascii_alphanumeric() { it.to_ascii_lowercase() } else { '-' };
    let name: String = text.replace('*', "any").chars().map(plain).take(60).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "default".to_owned() } else { name.to_owned() }
}

/// A path beside a configuration file, as servers resolve relative names.
pub(super) fn beside(file: &Path, name: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new(".")).join(name)
}

/// A time in milliseconds as policies write it; whole seconds where it is that.
pub(super) fn span(ms: u64) -> String {
    if ms.is_multiple_of(1000) { format!("{}s", ms / 1000) } else { format!("{ms}ms") }
}

/// `10`, `10s`, `500ms`, `2m`, `1h`, `1d` in milliseconds; a number alone is in `unit` milliseconds.
pub(super) fn milliseconds(text: &str, unit: u64) -> Option<u64> {
    let digits = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let factor = match suffix {
        "" => unit,
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// `10`, `10k`, `10m`, `1g` in bytes.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A regular expression that must match somewhere, as one that must match the whole.
pub(super) fn whole(pattern: &str, ignore_case: bool) -> String {
    let start = pattern.strip_prefix('^');
    let body = start.unwrap_or(pattern);
    let end = body.strip_suffix('$').filter(|it| !it.ends_with('\\'));
    let body = end.unwrap_or(body);
    let (before, after) = (if start.is_some() { "" } else { ".*" }, if end.is_some() { "" } else { ".*" });
    // In a group of its own, so that an alternative does not take the ends with it.
    let body = if body.contains('|') { format!("(?:{body})") } else { body.to_owned() };
    format!("{}{before}{body}{after}", if ignore_case { "(?i)" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_names() {
        assert_eq!(
            [milliseconds("5", 1000), milliseconds("250ms", 1), milliseconds("2m", 1)],
            [Some(5000), Some(250), Some(120_000)]
        );
        assert_eq!([milliseconds("x", 1), milliseconds("5y", 1)], [None, None]);
        assert_eq!([bytes("8k"), bytes("1M"), bytes("x")], [Some(8192), Some(1 << 20), None]);
        assert_eq!([name_of("*.Shop.example"), name_of("_"), name_of("a_b")], ["any-shop-example", "default", "a-b"]);
        assert_eq!([span(1500), span(2000)], ["1500ms", "2s"]);
    }

    #[test]
    fn patterns_match_the_whole() {
        assert_eq!(whole("^/a$", false), "/a");
        assert_eq!(whole(r"\.(gif|png)$", true), r"(?i).*(?:\.(gif|png))");
        assert_eq!(whole("a", false), ".*a.*");
    }

    #[test]
    fn pem_files_are_taken_apart() {
        let both = "-----BEGIN CERTIFICATE-----\na\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nb\n-----END PRIVATE KEY-----\n";
        assert!(pem_parts(both, false).contains("\na\n") && !pem_parts(both, false).contains('b'));
        assert!(pem_parts(both, true).contains("\nb\n"));
    }
}
