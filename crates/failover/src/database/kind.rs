//! The resource: its definition and its fields.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Members beside which the primary acknowledges, where nothing is said: with three or more, one may die.
const REPLICAS_SYNCHRONOUS: i32 = 3;
/// The priority of a member of which nothing is said.
const PRIORITY: u32 = 100;

/// A Database.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Database {
    /// `mainstay.dev/v1alpha1`.
    pub api_version: String,
    /// `Database`.
    pub kind: String,
    /// Name and so on.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: DatabaseSpec,
    /// What is; written by the controller and the primary's steward.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub status: Value,
}

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// PostgreSQL.
    #[default]
    Postgres,
    /// Redis.
    Redis,
    /// MariaDB.
    Mysql,
}

impl EngineName {
    /// As in `spec.engine`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Mysql => "mysql",
        }
    }

    /// Where its clients connect.
    pub fn port(self) -> u16 {
        match self {
            Self::Postgres => 5432,
            Self::Redis => 6379,
            Self::Mysql => 3306,
        }
    }
}

/// What is wanted. The definition says what each field means, and checks it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // said once, in the definition
pub struct DatabaseSpec {
    pub engine: EngineName,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    pub replicas: i32,
    pub paused: bool,
    pub synchronous: SynchronousSpec,
    pub ttl: String,
    pub renewal: String,
    pub lag_max: u64,
    pub parameters: BTreeMap<String, String>,
    pub priorities: BTreeMap<String, u32>,
    pub users: Vec<UserSpec>,
    pub storage: Storage,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub resources: Value,
    pub spread: Spread,
    pub backup: Backup,
    pub pod_template: PodTemplate,
}

impl Default for DatabaseSpec {
    fn default() -> Self {
        Self {
            engine: EngineName::Postgres,
            version: None,
            image: None,
            replicas: 3,
            paused: false,
            synchronous: SynchronousSpec::default(),
            ttl: "1500ms".to_owned(),
            renewal: "300ms".to_owned(),
            lag_max: 1 << 20,
            parameters: BTreeMap::new(),
            priorities: BTreeMap::new(),
            users: Vec::new(),
            storage: Storage::default(),
            resources: Value::Null,
            spread: Spread::default(),
            backup: Backup::default(),
            pod_template: PodTemplate::default(),
        }
    }
}

/// `spec.synchronous`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct SynchronousSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<u32>,
    pub strict: bool,
}

impl Default for SynchronousSpec {
    fn default() -> Self {
        Self { members: None, strict: true }
    }
}

/// One of `spec.users`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct UserSpec {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

impl UserSpec {
    /// The database that is the user's.
    pub fn database(&self) -> &str {
        self.database.as_deref().unwrap_or(&self.name)
    }
}

/// `spec.storage`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Storage {
    /// A quantity: text or a number.
    pub size: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
}

impl Default for Storage {
    fn default() -> Self {
        Self { size: Value::from("10Gi"), class_name: None }
    }
}

/// `spec.spread`: `hard`, `soft` or `none`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Spread {
    pub nodes: String,
    pub zones: String,
}

impl Default for Spread {
    fn default() -> Self {
        Self { nodes: "hard".to_owned(), zones: "soft".to_owned() }
    }
}

/// `spec.backup`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Backup {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<BackupSource>,
}

/// `spec.backup.from`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct BackupSource {
    pub command: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// `spec.podTemplate`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct PodTemplate {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
}

impl DatabaseSpec {
    /// On how many members beside the primary a write must be.
    pub fn synchronous_members(&self) -> u32 {
        self.synchronous.members.unwrap_or(u32::from(self.replicas >= REPLICAS_SYNCHRONOUS))
    }

    /// The priority of a member, by its name: the number at its end is its key.
    pub fn priority(&self, member: &str) -> u32 {
        let number = member.rsplit('-').next().unwrap_or_default();
        self.priorities.get(number).copied().unwrap_or(PRIORITY)
    }

    /// Without a sign of the primary for so long, another is elected.
    ///
    /// # Errors
    /// When it is no duration; the definition refuses such.
    pub fn ttl(&self) -> Result<Duration, String> {
        duration(&self.ttl)
    }

    /// How often the lease is renewed.
    ///
    /// # Errors
    /// When it is no duration; the definition refuses such.
    pub fn renewal(&self) -> Result<Duration, String> {
        duration(&self.renewal)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|error: jiff::Error| format!("{text:?}: {error}"))?;
    Duration::try_from(parsed).map_err(|error| format!("{text:?}: {error}"))
}

/// Labels, annotations and names that controller, stewards and commands share.
pub mod names {
    /// The label of everything that belongs to a Database: its name.
    pub const DATABASE: &str = "mainstay.dev/database";
    /// The label of a member's pod, set by its steward: `primary` or `replica`.
    pub const ROLE: &str = "mainstay.dev/role";
    /// On a member's pod, set by its steward: what it does and why.
    pub const REASON: &str = "mainstay.dev/steward";
    /// On a member's pod, set by its steward: epoch and offset of its newest write, `3/1000`.
    pub const POSITION: &str = "mainstay.dev/position";
    /// On a member's pod, set by its steward: why it does not stand, while there is no primary.
    pub const REFUSAL: &str = "mainstay.dev/refusal";
    /// On the primary's pod, set by its steward: how many bytes each replica is behind, as JSON.
    pub const LAGS: &str = "mainstay.dev/lags";
    /// On the Database, or the Lease: move the primary to this member; empty: to the best. Removed when done.
    pub const SWITCHOVER: &str = "mainstay.dev/switchover";
    /// On the Lease: "true" suspends elections.
    pub const PAUSED: &str = "mainstay.dev/paused";
    /// On the Service of the primary: connections to a former primary are reset. Only Mainstay's own services know it.
    pub const CUT: &str = "mainstay.dev/cut-removed-endpoints";
    /// On a pod: whether Mainstay's nodes stop it when they lose the API.
    pub const RUNS_ONCE: &str = "mainstay.dev/runs-once";
    /// On the Lease: what the members agree upon, as JSON.
    pub const RECORD: &str = "mainstay.dev/record";
    /// Port on which stewards answer each other, probes and the metrics.
    pub const STEWARD_PORT: u16 = 8008;
    /// Where a member's volume is mounted.
    pub const DATA: &str = "/var/lib/database";
    /// Where the passwords of the system's own users are mounted.
    pub const SECRETS: &str = "/etc/mainstay/database";
    /// Where the passwords of people's users are mounted, a file for each.
    pub const USERS: &str = "/etc/mainstay/users";
    /// Key of the Secret: the password of the database's superuser.
    pub const PASSWORD: &str = "password";
    /// Key of the Secret: what stewards sign their messages with.
    pub const STEWARD_SECRET: &str = "steward-secret";
}

mainstay_informer::namespaced_kind!(Database, "mainstay.dev", "v1alpha1", "Database", "databases");
