//! Arguments about the control plane's state: where it lies, snapshots of it, its encryption.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{AuditArgs, DataDir, Output};
use crate::tuning::Tuning;

/// `mainstay server`.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Which instance
    #[command(flatten)]
    pub data: DataDir,
    /// Start a control plane without nodes of its own here, reached at this address and port (kept for the next start)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub api: Option<SocketAddrV4>,
    /// Where state is kept
    #[command(flatten)]
    pub store: StoreArgs,
    /// How long past revisions are kept, for watches and lists that go on after a break
    #[arg(long, value_name = "MINUTES", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub store_keep_minutes: u64,
    /// How many past revisions are kept, if that is less
    #[arg(long, value_name = "REVISIONS", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1000..))]
    pub store_keep_revisions: u64,
    /// Leave compaction of etcd to others
    #[arg(long, requires = "store")]
    pub store_no_compaction: bool,
    /// What is encrypted at rest, and with which keys (default encryption.yaml in the data directory, made at the first
    /// start; servers that share an etcd need the same)
    #[arg(long, value_name = "FILE")]
    pub encryption_config: Option<PathBuf>,
    /// Who did what
    #[command(flatten)]
    pub audit: AuditArgs,
    /// Scheduling and silent nodes
    #[command(flatten)]
    pub tuning: Tuning,
}

/// Which store, if not the file in the data directory.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// An etcd: etcd://HOST:PORT[,HOST:PORT...][/ROOT]; without it, a file in the data directory
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// The authority that signed etcd's certificates; with it connections are encrypted
    #[arg(long, value_name = "FILE", requires = "store")]
    pub store_ca: Option<PathBuf>,
    /// The certificate to show to etcd
    #[arg(long, value_name = "FILE", requires_all = ["store_ca", "store_key"])]
    pub store_cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "store_cert")]
    pub store_key: Option<PathBuf>,
}

/// `mainstay snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: SnapshotVerb,
}

/// The snapshot verbs.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Save the control plane's state to a file; it may be running
    #[command(
        after_help = "Examples:\n  mainstay snapshot save /backup/state.snap             of the instance in the default directory\n  mainstay snapshot save s.snap --store etcd://a:2379   straight from etcd"
    )]
    Save {
        /// The file to make; it must not exist
        file: PathBuf,
        #[command(flatten)]
        data: DataDir,
        #[command(flatten)]
        store: StoreArgs,
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Make a store out of a snapshot; nothing is overwritten
    #[command(
        after_help = "Examples:\n  mainstay snapshot restore s.snap --data-dir /var/lib/mainstay\n  mainstay snapshot restore s.snap --store etcd://a:2379\n\nThe server must not run. Where a store is already, move it away first: mv DIR/store DIR/store.old.\nValues that are encrypted need the encryption.yaml of the time of the snapshot."
    )]
    Restore {
        /// The snapshot
        file: PathBuf,
        #[command(flatten)]
        data: DataDir,
        #[command(flatten)]
        store: StoreArgs,
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Check a snapshot and say what is in it
    #[command(after_help = "Examples:\n  mainstay snapshot status s.snap\n  mainstay snapshot status s.snap -o json")]
    Status {
        /// The snapshot
        file: PathBuf,
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Give disk space that deletions have freed back to the file system; the API waits meanwhile
    #[command(after_help = "Example:\n  mainstay snapshot defrag")]
    Defrag {
        #[command(flatten)]
        data: DataDir,
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
}

/// `mainstay secrets`.
#[derive(Debug, Args)]
pub struct SecretsArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: SecretsVerb,
}

/// The verbs about encryption at rest.
#[derive(Debug, Subcommand)]
pub enum SecretsVerb {
    /// With which keys the Secrets of a running instance are encrypted
    #[command(after_help = "Example:\n  mainstay secrets status")]
    Status {
        #[command(flatten)]
        data: DataDir,
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Make a new key and write everything anew with it; old keys stay readable
    #[command(
        after_help = "Examples:\n  mainstay secrets rotate\n  mainstay secrets rotate --forget-old     give the old keys up: older snapshots cannot be read then"
    )]
    Rotate {
        #[command(flatten)]
        data: DataDir,
        /// Remove the old keys once nothing is encrypted with them
        #[arg(long)]
        forget_old: bool,
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
}
