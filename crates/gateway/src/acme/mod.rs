//! Certificates obtained and renewed by ACME (RFC 8555), for listeners and Ingresses whose TrafficPolicy says so.
//!
//! # Flow
//! `config` finds what is wanted, and what is there already, as [`Entry`]s → `plan` decides, purely, what to do next → `driver`
//! does it through `order`, one thing at a time, and puts what came of it into a Secret (`kept`): a file of the state directory,
//! or an object of the cluster → the configuration is read again, and the Secret serves like any other.
//!
//! # Challenges
//! HTTP-01 only, and without any state: the answer to a token is the token and the thumbprint of the account's key (RFC 8555,
//! 8.1), so that every gateway that knows the account's Secret answers any challenge, whichever of them ordered.
//!
//! # Guarantees
//! - In a cluster one gateway orders, the one that holds the Lease.
//! - A Secret that was not made here is never written.
//! - After a failure the wait doubles, from five minutes to twelve hours. It is kept with the account, so that a restart does not
//!   begin anew: authorities limit failures per hour.
//!
//! # Deliberately absent
//! DNS-01, and so wildcards; TLS-ALPN-01, which would need a certificate per challenge on every gateway; renewal information
//! (RFC 9773); revocation.

mod driver;
mod kept;
mod order;
mod plan;
mod transport;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::api::Key;

pub(crate) use driver::{Driver, Store};
pub(crate) use kept::{ACCOUNT, ATTEMPTS, MANAGED, SERVER, THUMBPRINT, certificate};
pub(crate) use plan::shown;

/// The server unless a policy names another.
pub(crate) const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Where challenges are asked for (RFC 8555, 8.3).
pub(crate) const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";

/// Who gives certificates, and as whom he is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issuer {
    /// URL of the directory (RFC 8555, 7.1.1).
    pub(crate) server: String,
    /// Where the authority writes to.
    pub(crate) email: Option<String>,
    /// The Secret of the account.
    pub(crate) account: Key,
    /// PEM of the authorities that vouch for the server; those of the machine if `None`.
    pub(crate) roots: Option<Vec<u8>>,
}

/// A certificate that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The Secret that is to hold it.
    pub(crate) secret: Key,
    /// The names it is to be for, in lower case.
    pub(crate) names: BTreeSet<String>,
    pub(crate) issuer: Issuer,
    pub(crate) held: Held,
    /// The account's credentials, if there is one, and the thumbprint of its key.
    pub(crate) account: Option<String>,
    pub(crate) thumbprint: Option<String>,
    /// Everything that was tried with this account, by Secret.
    pub(crate) attempts: BTreeMap<String, Attempts>,
}

/// What a Secret holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    /// There is no such Secret, or nothing of use in it.
    Nothing,
    /// Somebody else's: it is left alone.
    Foreign,
    /// A certificate from here.
    Certificate(Certificate),
}

/// What matters of a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Certificate {
    pub(crate) names: BTreeSet<String>,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// Who gave it: the URL of the directory.
    pub(crate) server: String,
}

/// What came of trying to obtain a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Attempts {
    /// Failures since the last success.
    pub(crate) failures: u32,
    /// When the last attempt ended, in seconds since 1970.
    pub(crate) last: i64,
    /// Why the last one failed.
    pub(crate) error: String,
    /// What was asked for: failures of something else do not count.
    pub(crate) asked: String,
}

impl Entry {
    /// What is asked for, as one word.
    pub(crate) fn asked(&self) -> String {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        format!("{} {}", self.issuer.server, names.join(","))
    }

    /// What was tried for it so far.
    pub(crate) fn tried(&self) -> Attempts {
        let known = self.attempts.get(&self.secret.to_string()).filter(|it| it.asked == self.asked());
        known.cloned().unwrap_or_default()
    }
}
