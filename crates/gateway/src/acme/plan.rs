//! What to do next about certificates: pure.
//!
//! Renewal at two thirds of a certificate's life, as Let's Encrypt recommends ("Integration Guide", "When to Renew").

use serde_json::{Value, json};

use super::{Certificate, Entry, Held};

/// The wait after a first failure, in seconds; it doubles with each further one. Let's Encrypt takes five failures an hour.
const RETRY_FIRST_S: i64 = 300;
/// The longest wait.
const RETRY_MAX_S: i64 = 12 * 3600;

/// Why a certificate is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// There is none.
    Missing,
    /// It is another authority's.
    Server,
    /// It lacks a name.
    Names,
    /// Two thirds of its life are over.
    Renewal,
}

/// What is to be done for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: the Secret is somebody else's.
    Leave,
    /// Nothing before this time, in seconds since 1970.
    Wait(i64),
    /// An account must be had first.
    Register,
    /// A certificate is ordered.
    Order(Reason),
}

/// When a certificate is to be renewed.
pub(super) fn renew_at(certificate: &Certificate) -> i64 {
    certificate.not_before + (certificate.not_after - certificate.not_before) * 2 / 3
}

/// When the next attempt may be made after so many failures, the last of which ended at `last`.
pub(super) fn retry_at(failures: u32, last: i64) -> i64 {
    if failures == 0 {
        return last;
    }
    last + RETRY_FIRST_S.saturating_mul(1 << (failures - 1).min(20)).min(RETRY_MAX_S)
}

/// Why a certificate does not do, if it does not.
pub(super) fn lacking(entry: &Entry, certificate: &Certificate, now: i64) -> Option<Reason> {
    if certificate.server != entry.issuer.server {
        return Some(Reason::Server);
    }
    if !entry.names.is_subset(&certificate.names) {
        return Some(Reason::Names);
    }
    (now >= renew_at(certificate)).then_some(Reason::Renewal)
}

/// What is to be done for one certificate at `now`.
pub(super) fn step(entry: &Entry, now: i64) -> Step {
    let reason = match &entry.held {
        Held::Foreign => return Step::Leave,
        Held::Nothing => Reason::Missing,
        Held::Certificate(certificate) => match lacking(entry, certificate, now) {
            Some(reason) => reason,
            None => return Step::Wait(renew_at(certificate)),
        },
    };
    let tried = entry.tried();
    if tried.failures > 0 && now < retry_at(tried.failures, tried.last) {
        return Step::Wait(retry_at(tried.failures, tried.last));
    }
    if entry.account.is_none() { Step::Register } else { Step::Order(reason) }
}

/// The first entry there is something to do for, and what; or how long to wait, if there is anything to wait for.
pub(super) fn next(entries: &[Entry], now: i64) -> Result<(&Entry, Step), Option<i64>> {
    let steps = || entries.iter().map(|entry| (entry, step(entry, now)));
    match steps().find(|(_, step)| matches!(step, Step::Register | Step::Order(_))) {
        Some(found) => Ok(found),
        None => Err(steps().filter_map(|(_, step)| if let Step::Wait(at) = step { Some(at) } else { None }).min()),
    }
}

/// An entry as people see it.
pub(crate) fn shown(entry: &Entry, now: i64) -> Value {
    let time = |at: i64| jiff::Timestamp::from_second(at).map(|it| it.to_string()).unwrap_or_default();
    let tried = entry.tried();
    let (state, at) = match step(entry, now) {
        Step::Leave => ("the Secret was not made here; delete it to have it ordered", None),
        Step::Wait(at) if tried.failures > 0 => ("failed; tried again at `next`", Some(at)),
        Step::Wait(at) => ("good; renewed at `next`", Some(at)),
        Step::Register => ("an account is registered first", None),
        Step::Order(Reason::Missing) => ("ordered", None),
        Step::Order(Reason::Server) => ("ordered: it is another authority's", None),
        Step::Order(Reason::Names) => ("ordered: it lacks a name", None),
        Step::Order(Reason::Renewal) => ("renewed", None),
    };
    let until = if let Held::Certificate(it) = &entry.held { Some(time(it.not_after)) } else { None };
    json!({
        "secret": entry.secret.to_string(),
        "names": entry.names,
        "server": entry.issuer.server,
        "state": state,
        "next": at.map(time),
        "notAfter": until,
        "failures": tried.failures,
        "error": Some(tried.error).filter(|it| !it.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::acme::{Attempts, Issuer};
    use crate::api::Key;

    const DAY: i64 = 86_400;
    const SERVER: &str = "https://acme.example/directory";

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|it| (*it).to_owned()).collect()
    }

    fn certificate(list: &[&str]) -> Certificate {
        Certificate { names: names(list), not_before: 0, not_after: 90 * DAY, server: SERVER.to_owned() }
    }

    fn entry(held: Held) -> Entry {
        let issuer = Issuer { server: SERVER.to_owned(), email: None, account: Key::new("n", "account"), roots: None };
        let (secret, account) = (Key::new("n", "tls"), Some("{}".to_owned()));
        let (names, attempts) = (names(&["a.example", "b.example"]), BTreeMap::new());
        Entry { secret, names, issuer, held, account, thumbprint: None, attempts }
    }

    fn failed(entry: &mut Entry, failures: u32, last: i64) {
        let attempts = Attempts { failures, last, error: "no".to_owned(), asked: entry.asked() };
        entry.attempts.insert(entry.secret.to_string(), attempts);
    }

    #[test]
    fn a_certificate_is_ordered_once_there_is_an_account_and_renewed_at_two_thirds() {
        let mut wanted = entry(Held::Nothing);
        assert_eq!(step(&wanted, 0), Step::Order(Reason::Missing));
        wanted.account = None;
        assert_eq!(step(&wanted, 0), Step::Register);
        let good = entry(Held::Certificate(certificate(&["a.example", "b.example", "c.example"])));
        assert_eq!(step(&good, 60 * DAY - 1), Step::Wait(60 * DAY));
        assert_eq!(step(&good, 60 * DAY), Step::Order(Reason::Renewal));
        let narrow = entry(Held::Certificate(certificate(&["a.example"])));
        assert_eq!(step(&narrow, 0), Step::Order(Reason::Names));
        let mut moved = certificate(&["a.example", "b.example"]);
        moved.server = "https://other.example".to_owned();
        assert_eq!(step(&entry(Held::Certificate(moved)), 0), Step::Order(Reason::Server));
        assert_eq!(step(&entry(Held::Foreign), 0), Step::Leave);
    }

    #[test]
    fn the_wait_doubles_up_to_half_a_day_and_does_not_outlive_what_was_asked() {
        let waits: Vec<i64> = (0..10).map(|failures| retry_at(failures, 0)).collect();
        assert_eq!(waits, [0, 300, 600, 1200, 2400, 4800, 9600, 19200, 38400, 43200]);
        assert_eq!(retry_at(u32::MAX, 0), 43200);
        // Of the failures that fall into any hour there are fewer than the five that Let's Encrypt takes.
        let times: Vec<i64> = waits[1..].iter().scan(0, |at, wait| Some(std::mem::replace(at, *at + wait))).collect();
        assert!(times.iter().all(|from| times.iter().filter(|at| (*from..from + 3600).contains(*at)).count() < 5));
        let mut wanted = entry(Held::Nothing);
        failed(&mut wanted, 2, 100);
        assert_eq!(step(&wanted, 699), Step::Wait(700));
        assert_eq!(step(&wanted, 700), Step::Order(Reason::Missing));
        wanted.names.insert("c.example".to_owned());
        assert_eq!(step(&wanted, 101), Step::Order(Reason::Missing), "something else is asked for now");
    }

    #[test]
    fn one_thing_at_a_time_and_else_the_earliest() {
        let good = entry(Held::Certificate(certificate(&["a.example", "b.example"])));
        let mut sick = entry(Held::Nothing);
        failed(&mut sick, 1, 0);
        let both = [good.clone(), sick, entry(Held::Foreign)];
        assert_eq!(next(&both, 10), Err(Some(300)));
        assert_eq!(next(&both, 300), Ok((&both[1], Step::Order(Reason::Missing))));
        assert_eq!(next(&[], 0), Err(None));
    }

    #[test]
    fn what_is_shown_says_why() {
        let mut wanted = entry(Held::Nothing);
        failed(&mut wanted, 1, 0);
        let shown = shown(&wanted, 10);
        assert_eq!((&shown["next"], &shown["error"]), (&json!("1970-01-01T00:05:00Z"), &json!("no")));
        assert_eq!(shown["names"], json!(["a.example", "b.example"]));
    }
}
