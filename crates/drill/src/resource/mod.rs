//! The Drill resource: what to ask, what to break, and what must hold. `kind: Drill`, `mainstay.dev/v1alpha1`.
//!
//! Reading is strict: an unknown field or value is refused with its line, because a drill that silently leaves something out
//! proves nothing. [`Drill::check`] refuses what is well formed but makes no sense.

pub mod standard;
pub mod time;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::{FaultKind, TargetSpec};
use crate::load::sample::SAMPLES_MAX;
use crate::load::schedule::Arrivals;

/// The longest drill.
const LENGTH_MAX: Duration = Duration::from_secs(4 * 3600);
/// Most faults of one drill.
const FAULTS_MAX: usize = 100;
/// Most requests per second.
const RATE_MAX: f64 = 100_000.0;

/// Why a drill cannot be read or makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// Not a Drill; the reason says the line.
    #[error("{file}: {reason}")]
    Form {
        /// The file.
        file: String,
        /// What is wrong, with its place.
        reason: String,
    },
    /// Well formed, but impossible.
    #[error("{file}: {field}: {reason}")]
    Sense {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// What is wrong, and what would do.
        reason: String,
    },
}

/// The only version there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// As the group's other resources.
    #[serde(rename = "mainstay.dev/v1alpha1")]
    V1alpha1,
}

/// The only kind there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A drill.
    Drill,
}

/// A drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drill {
    /// `mainstay.dev/v1alpha1`.
    pub api_version: ApiVersion,
    /// `Drill`.
    pub kind: Kind,
    /// Its name.
    pub metadata: Metadata,
    /// What is done.
    pub spec: DrillSpec,
}

/// What a drill is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// The drill's name; the report's files are named after it.
    pub name: String,
    /// The namespace of what the drill names without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// What a drill does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrillSpec {
    /// What is asked all the time.
    pub load: LoadSpec,
    /// Stores that are written to and held to their word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ledgers: Vec<LedgerSpec>,
    /// What is broken, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultSpec>,
    /// If set, the faults are not taken in their order but drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<RandomSpec>,
    /// Of all that is drawn: mix, arrivals, random faults, `any` targets.
    #[serde(default = "one")]
    pub seed: u64,
    /// What the service promises its users; the drill's cost is set against it.
    #[serde(default)]
    pub objective: Objective,
    /// What must hold for the drill to pass.
    #[serde(default)]
    pub require: Require,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadSpec {
    /// Whom.
    pub target: LoadTarget,
    /// The `Host` header; by default the name in the URL, `SERVICE.NAMESPACE`, or the first one that the Gateway serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Over TLS; a `url` of `https://` asks for it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// Whether connections are used again; if not, each request is that of a new user.
    #[serde(default = "yes")]
    pub keep_alive: bool,
    /// Requests per second.
    pub rate: f64,
    /// How far apart.
    #[serde(default)]
    pub arrivals: Arrivals,
    /// What; `/` alone if none is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestSpec>,
    /// Sessions of several requests that keep their cookies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<SessionSpec>,
    /// How long one try may take.
    #[serde(default = "two_seconds", with = "time")]
    pub timeout: Duration,
    /// How long connecting may take.
    #[serde(default = "one_second", with = "time")]
    pub connect_timeout: Duration,
    /// How often an idempotent request is tried, the first included.
    #[serde(default = "one_try")]
    pub tries: u8,
}

/// Whose certificates are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsSpec {
    /// A Secret, `NAMESPACE/NAME`, with `ca.crt`, else `tls.crt`; by default those that this machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl LoadSpec {
    /// Whether it asks over TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some() || matches!(&self.target, LoadTarget::Url(url) if url.starts_with("https://"))
    }
}

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum LoadTarget {
    /// `http://HOST[:PORT]` or `https://HOST[:PORT]`, as reached from here.
    Url(String),
    /// A Service, `NAMESPACE/NAME`, at its load-balancer address, else at its cluster address.
    Service(String),
    /// A Gateway, `NAMESPACE/NAME`, at the address in its status.
    Gateway(String),
}

/// One kind of request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestSpec {
    /// GET unless it says otherwise.
    #[serde(default = "get")]
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Sent as it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// How often, compared with the others.
    #[serde(default = "weight")]
    pub weight: u32,
}

/// Sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionSpec {
    /// How many requests each makes.
    pub requests: u32,
    /// Between two of them.
    #[serde(with = "time")]
    pub think: Duration,
}

/// A store that is held to its word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LedgerSpec {
    /// Its name in the report.
    pub name: String,
    /// How it is spoken to.
    pub kind: LedgerKind,
    /// `HOST:PORT`, as reached from here, or `service: NAMESPACE/NAME`.
    pub target: LedgerTarget,
    /// Before all paths (HTTP) or keys (Redis); the name of the table (PostgreSQL), `mainstay_drill` if none is given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// A Secret, `NAMESPACE/NAME`, with `username` and `password`, as that of a Database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Instead of the Secret's user name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Instead of the Secret's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// The database of a `postgres-rows`, `postgres` if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Clients at the same time.
    #[serde(default = "four")]
    pub clients: u32,
    /// Keys they share at any one time.
    #[serde(default = "four")]
    pub keys: u32,
    /// Operations per second, all clients together.
    #[serde(default = "forty")]
    pub rate: f64,
    /// The share of writes in percent.
    #[serde(default = "half")]
    pub writes: u8,
    /// How long one operation may take.
    #[serde(default = "two_seconds", with = "time")]
    pub timeout: Duration,
}

/// How a ledger speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LedgerKind {
    /// Keys over HTTP.
    HttpKeys,
    /// A log over HTTP.
    HttpLog,
    /// Keys in Redis.
    RedisKeys,
    /// Rows in PostgreSQL.
    PostgresRows,
}

/// Where a ledger's store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum LedgerTarget {
    /// `HOST:PORT`, as reached from here; several are spread over the clients.
    Addresses(Vec<String>),
    /// A Service, `NAMESPACE/NAME`.
    Service(String),
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultSpec {
    /// Its name in the report; kind and target if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is done.
    pub fault: FaultKind,
    /// To what.
    pub target: TargetSpec,
    /// Quiet time before it.
    #[serde(default = "two_seconds", with = "time")]
    pub after: Duration,
    /// How long it lasts.
    #[serde(default = "five_seconds", with = "time")]
    pub hold: Duration,
    /// How long everything may take to be Ready again once it is undone.
    #[serde(default = "thirty_seconds", with = "time")]
    pub heal_within: Duration,
    /// Numbers that some faults take.
    #[serde(default)]
    pub settings: FaultSettings,
}

/// The numbers that some faults take.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultSettings {
    /// `delay`: added to every packet, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u32>,
    /// `loss`: of every hundred packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_percent: Option<u8>,
    /// `bandwidth`: kilobits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kbit_per_second: Option<u32>,
    /// `cut-incoming`, `cut-outgoing`: only what comes from or goes to this node and its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// `disk-full`: where in the pod the file system is that is filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `slow-disk`: kilobytes per second, reading and writing each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kbyte_per_second: Option<u32>,
    /// `cpu-pressure`: busy processes, 2 if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// `memory-pressure`: how much is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub megabytes: Option<u32>,
    /// `cpu-pressure`, `memory-pressure`: an image with `sh`, `head` and `tail`, where `mainstay.dev/host` is none; `bad-release`
    /// with `status`: one with `mainstay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `bad-release`: what the new pods answer to everyone but probes, instead of failing those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// `bad-release`: merged into the pod template (JSON merge patch) in place of a readiness probe that fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<serde_json::Value>,
}

/// Random faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RandomSpec {
    /// How many are drawn from the list, with repetition.
    pub count: usize,
}

/// What the service promises its users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Objective {
    /// Of every hundred requests, how many are to be answered.
    #[serde(default = "objective_percent")]
    pub availability_percent: f64,
    /// Over how many days.
    #[serde(default = "thirty")]
    pub days: u32,
    /// How often in that time what the drill does is expected to happen.
    #[serde(default = "once")]
    pub times: f64,
}

impl Default for Objective {
    fn default() -> Self {
        Self { availability_percent: objective_percent(), days: thirty(), times: once() }
    }
}

/// What must hold for a drill to pass. Lost and stale writes and disorder are never allowed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Require {
    /// Answered of every hundred requests.
    #[serde(default = "hundred")]
    pub availability_percent: f64,
    /// The longest time without an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_gap_ms: Option<u64>,
    /// The latency of 99 of 100 answered requests, over the whole drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<u64>,
}

impl Default for Require {
    fn default() -> Self {
        Self { availability_percent: hundred(), longest_gap_ms: None, p99_ms: None }
    }
}

impl Drill {
    /// Reads and checks a drill; `file` is for messages.
    ///
    /// # Errors
    /// See [`DrillError`].
    pub fn parse(file: &str, text: &str) -> Result<Self, DrillError> {
        let options = serde_saphyr::options! { strict_booleans: true };
        let drill: Self = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| DrillError::Form { file: file.to_owned(), reason: error.to_string() })?;
        drill.check().map_err(|(field, reason)| DrillError::Sense { file: file.to_owned(), field, reason })?;
        Ok(drill)
    }

    /// Whether it makes sense: the field that does not, and why.
    pub fn check(&self) -> Result<(), (String, String)> {
        let spec = &self.spec;
        let refuse = |field: &str, reason: String| Err((format!("spec.{field}"), reason));
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if self.metadata.name.is_empty() || !self.metadata.name.chars().all(named) {
            return Err((
                "metadata.name".to_owned(),
                "letters, digits, - and . only; files are named after it".to_owned(),
            ));
        }
        if !(spec.load.rate > 0.0 && spec.load.rate <= RATE_MAX) {
            return refuse("load.rate", format!("it must be above 0 and at most {RATE_MAX}"));
        }
        if spec.faults.len() > FAULTS_MAX || spec.random.as_ref().is_some_and(|random| random.count > FAULTS_MAX) {
            return refuse("faults", format!("at most {FAULTS_MAX}"));
        }
        if spec.random.is_some() && spec.faults.is_empty() {
            return refuse("random", "there is nothing to draw from in spec.faults".to_owned());
        }
        let length = self.length();
        if length > LENGTH_MAX || length.as_secs_f64() * spec.load.rate > SAMPLES_MAX as f64 {
            let most = (SAMPLES_MAX as f64 / spec.load.rate).min(LENGTH_MAX.as_secs_f64());
            return refuse(
                "faults",
                format!("together they may take {} s; at this rate {most:.0} s are possible", length.as_secs()),
            );
        }
        for (number, fault) in spec.faults.iter().enumerate() {
            if fault.fault == FaultKind::CertificateExpiry && !spec.load.is_tls() {
                let reason = "nobody would see it: ask over TLS (spec.load.tls, or a url of https://)".to_owned();
                return refuse(&format!("faults[{number}]"), reason);
            }
            if let Err(reason) = fault.fault.fits(&fault.target, &fault.settings) {
                return refuse(&format!("faults[{number}]"), reason);
            }
        }
        for (number, ledger) in spec.ledgers.iter().enumerate() {
            if ledger.rate <= 0.0
                || ledger.rate > 10_000.0
                || ledger.clients == 0
                || ledger.clients > 100
                || ledger.writes > 100
            {
                let reason = "rate above 0 to 10000, clients 1 to 100, writes 0 to 100".to_owned();
                return refuse(&format!("ledgers[{number}]"), reason);
            }
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if ledger.kind == LedgerKind::PostgresRows && !ledger.prefix.chars().all(is_name) {
                let reason = "the table is made by this name: letters, digits and _ only".to_owned();
                return refuse(&format!("ledgers[{number}].prefix"), reason);
            }
        }
        let share = |percent: f64| (0.0..=100.0).contains(&percent);
        if !share(spec.objective.availability_percent) || !share(spec.require.availability_percent) {
            return refuse("objective", "availability is a percentage, 0 to 100".to_owned());
        }
        Ok(())
    }

    /// The longest it can take.
    pub fn length(&self) -> Duration {
        let one = |fault: &FaultSpec| fault.after + fault.hold + fault.heal_within;
        match &self.spec.random {
            Some(random) => self.spec.faults.iter().map(one).max().unwrap_or_default() * random.count as u32,
            None => self.spec.faults.iter().map(one).sum(),
        }
    }

    /// The faults in the order in which they are made.
    pub fn sequence(&self) -> Vec<FaultSpec> {
        let faults = &self.spec.faults;
        let mut drawn = fastrand::Rng::with_seed(self.spec.seed);
        match &self.spec.random {
            Some(random) => (0..random.count).filter_map(|_| drawn.choice(faults).cloned()).collect(),
            None => faults.clone(),
        }
    }
}

impl FaultSpec {
    /// Its name, or what it does.
    pub fn shown(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("{} {}", self.fault, self.target))
    }
}

// Defaults, named after their values: serde takes functions only.
fn yes() -> bool {
    true
}
fn one() -> u64 {
    1
}
fn one_try() -> u8 {
    1
}
fn weight() -> u32 {
    1
}
fn four() -> u32 {
    4
}
fn forty() -> f64 {
    40.0
}
fn half() -> u8 {
    50
}
fn thirty() -> u32 {
    30
}
fn once() -> f64 {
    1.0
}
fn hundred() -> f64 {
    100.0
}
fn objective_percent() -> f64 {
    99.95
}
fn get() -> String {
    "GET".to_owned()
}
fn one_second() -> Duration {
    Duration::from_secs(1)
}
fn two_seconds() -> Duration {
    Duration::from_secs(2)
}
fn five_seconds() -> Duration {
    Duration::from_secs(5)
}
fn thirty_seconds() -> Duration {
    Duration::from_secs(30)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
