//! Container images: names, registries, and the store of layers that root file systems are mounted from.
//!
//! Role: everything about an image until it is mounted; mounting is the runtime's. One [`store::Store`] serves all nodes of
//! a machine, so that each layer is fetched and unpacked once.
//!
//! Flow: a name becomes a [`reference::Reference`]; [`pull`] asks its [`registry`] for the manifest, fetches what is missing
//! ([`manifest`]), checks every byte against its digest ([`digest`]) and unpacks each layer into a directory of its own
//! ([`layer`]); [`archive`] does the same from a file. [`gc`] takes away what nobody uses when the disk fills.
//!
//! Guarantees: content is stored under its digest and never changed; a crash at any instant leaves either all of an image or
//! nothing of it that is ever looked at; an archive that tries to write outside its own directory is refused.
//!
//! Deliberately absent: building, pushing, signatures, images of other systems than Linux.

#![forbid(unsafe_code)]

pub mod archive;
pub mod auth;
pub mod digest;
pub mod gc;
pub mod layer;
pub mod manifest;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod store;
pub mod user;

pub use auth::Keychain;
pub use reference::Reference;
pub use store::{Image, Store};
