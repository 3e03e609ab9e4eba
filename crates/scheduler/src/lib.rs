//! The scheduler: gives every pod that has no node one.
//!
//! Role: [`core`] decides, purely, on a model of the cluster; the driver keeps that model up to date and tells the API server.

pub mod core;
pub mod selector;

mod api;
pub mod bench;
mod claims;
mod decide;
mod driver;
mod pending;

pub use driver::{Settings, run};
