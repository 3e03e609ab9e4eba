//! From objects to a routing table.
//!
//! # Flow
//! `source` reads files → `objects` decodes them → `listeners` opens ports → `attach` finds what is attached where →
//! `rules`, `upstreams`, `policies`, `secrets` fill it → [`compile`] returns a [`Table`], the conditions of every object and
//! the problems, each with its place.
//!
//! # Guarantees
//! - Pure: the same objects make the same table. Looking up names and reading files happens before.
//! - One broken object does not take the others down: it is left out (a broken backend answers 500, as the Gateway API
//!   demands), and its conditions say why.

mod acme;
mod attach;
mod compile;
mod ingress;
mod listeners;
mod locate;
mod objects;
mod policies;
mod rules;
mod secrets;
pub(crate) mod source;
pub(crate) mod status;
#[cfg(test)]
mod tests;
mod upstreams;

use std::fmt;
use std::path::PathBuf;

pub(crate) use compile::{Compiled, Options, compile};
pub(crate) use objects::Objects;
pub(crate) use secrets::{TlsMemo, trusted};
use source::Place;
pub(crate) use upstreams::names;

/// Why a configuration could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or directory could not be read.
    #[error("cannot read {path}: {source}; -f takes a file or a directory")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is too large.
    #[error("{path}: {bytes} bytes; a configuration file may have {max}")]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// Not YAML, or not an object.
    #[error("{path}:{line}: {reason}")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// Something does not work as written.
    Error,
    /// It works, and is probably not what was meant.
    Warning,
}

/// Something wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    pub(crate) place: Place,
    pub(crate) severity: Severity,
    /// Kind and name.
    pub(crate) object: String,
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}: {severity}: {}: {}", self.place, self.object, self.message)
    }
}
