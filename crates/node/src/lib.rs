//! (being written)

pub mod pod;
