//! Words of Mainstay: the pure rules of the Kubernetes object model. No I/O, no async, no clock.

pub mod apply;
pub mod conform;
pub mod convert;
pub mod cron;
pub mod defaults;
pub mod fencing;
pub mod limit_range;
pub mod meta;
pub mod patch;
pub mod pod_security;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod rbac;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod validate;
pub mod workload;
