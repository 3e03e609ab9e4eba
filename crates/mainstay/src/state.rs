//! Where the control plane's state is: the file in the data directory or an etcd, with encryption over it.

use std::sync::Arc;
use std::time::Duration;

use mainstay_apiserver::Maintenance;
use mainstay_store::{EmbeddedStore, Encrypted, EtcdSettings, EtcdStore, Settings, Store, TlsFiles};

use crate::cli::{ServerArgs, StoreArgs};
use crate::encryption::{self, EncryptError};
use crate::instance::Instance;

/// The state a server works on.
pub struct State {
    /// What the API server reads and writes.
    pub store: Arc<Encrypted>,
    /// What its maintenance works on.
    pub maintenance: Maintenance,
}

/// Opens the state of an instance.
///
/// # Errors
/// When the store cannot be opened or the encryption's configuration not be used.
pub async fn open(instance: &Instance, args: &ServerArgs) -> Result<State, StateError> {
    let keyring = match &args.encryption_config {
        Some(path) => encryption::keyring(path)?,
        None => encryption::keyring_of(instance)?,
    };
    let keep_for = Duration::from_secs(args.store_keep_minutes * 60);
    let raw: Arc<dyn Store> = if let Some(settings) = etcd(&args.store)? {
        let keep_for = if args.store_no_compaction { Duration::ZERO } else { keep_for };
        Arc::new(
            EtcdStore::open(EtcdSettings { keep_for, keep_revisions: args.store_keep_revisions, ..settings }).await?,
        )
    } else {
        let settings = Settings { keep_for, keep_revisions: args.store_keep_revisions, ..Settings::default() };
        Arc::new(EmbeddedStore::open(&instance.data_dir.join("store"), settings)?)
    };
    let store = Arc::new(Encrypted::new(Arc::clone(&raw), keyring));
    let (instance, path) = (instance.clone(), args.encryption_config.clone());
    let keyring = move || {
        let read = path.as_deref().map_or_else(|| encryption::keyring_of(&instance), encryption::keyring);
        read.map_err(|error| error.to_string())
    };
    let maintenance = Maintenance { store: raw, encrypted: Arc::clone(&store), keyring: Box::new(keyring) };
    Ok(State { store, maintenance })
}

/// The etcd that the arguments name.
///
/// # Errors
/// When the address cannot be read.
pub fn etcd(args: &StoreArgs) -> Result<Option<EtcdSettings>, mainstay_store::Error> {
    let Some(url) = &args.store else { return Ok(None) };
    let identity = args.store_cert.clone().zip(args.store_key.clone());
    let tls = args.store_ca.clone().map(|authority| TlsFiles { authority, identity });
    Ok(Some(EtcdSettings { tls, ..EtcdSettings::parse(url)? }))
}

/// Why the state could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The store.
    #[error(transparent)]
    Store(#[from] mainstay_store::Error),
    /// The encryption's configuration.
    #[error(transparent)]
    Encryption(#[from] EncryptError),
}
