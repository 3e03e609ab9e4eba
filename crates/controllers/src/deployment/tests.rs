//! Deployment tests.
