//! `demo store`: keys and a log in memory, over HTTP, and a store that breaks its word when told to.
//!
//! | request | answer |
//! |---|---|
//! | `PUT /keys/NAME`, a value | 204 once it is kept |
//! | `GET /keys/NAME` | the value, or 404 |
//! | `POST /log`, `NAME VALUE` | 204 once it is kept |
//! | `GET /log/NAME` | the value, or 404 |
//!
//! With `--lose-one-in N` every Nth write is acknowledged and forgotten: what a drill must find. Nothing survives the process.

use std::collections::HashMap;
use std::sync::Mutex;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};

use crate::reply::{self, Reply};

/// Largest value, in bytes.
const VALUE_BYTES_MAX: usize = 4096;
/// Most keys, the log's included.
const KEYS_MAX: usize = 1_000_000;

/// What the program keeps.
#[derive(Debug, Default)]
pub(crate) struct Store {
    lose_one_in: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    writes: u64,
    /// By path: `/keys/a` and `/log/a` are two.
    values: HashMap<String, String>,
}

impl Store {
    /// A store that forgets every `lose_one_in`th write; 0: none.
    pub(crate) fn new(lose_one_in: u64) -> Self {
        Self { lose_one_in, kept: Mutex::default() }
    }

    fn keep(&self, path: String, value: String) -> Reply {
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if kept.values.len() >= KEYS_MAX && !kept.values.contains_key(&path) {
            return reply::text(StatusCode::INSUFFICIENT_STORAGE, format_args!("at most {KEYS_MAX} keys"));
        }
        kept.writes += 1;
        if self.lose_one_in == 0 || !kept.writes.is_multiple_of(self.lose_one_in) {
            kept.values.insert(path, value);
        }
        reply::with_type(StatusCode::NO_CONTENT, "text/plain; charset=utf-8", "")
    }

    fn find(&self, path: &str) -> Reply {
        let kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match kept.values.get(path) {
            Some(value) => reply::text(StatusCode::OK, value),
            None => reply::text(StatusCode::NOT_FOUND, "no such key"),
        }
    }
}

/// Answers the store's own paths.
pub(crate) async fn answer(store: &Store, request: Request<Incoming>) -> Reply {
    let path = request.uri().path().to_owned();
    let is_key = path.strip_prefix("/keys/").or(path.strip_prefix("/log/")).is_some_and(|name| !name.is_empty());
    match (request.method(), path.as_str()) {
        (&Method::GET, _) if is_key => store.find(&path),
        (&Method::PUT, _) if path.starts_with("/keys/") && is_key => match body(request).await {
            Ok(value) => store.keep(path, value),
            Err(refusal) => *refusal,
        },
        (&Method::POST, "/log") => match body(request).await {
            Ok(entry) => match entry.split_once(' ') {
                Some((name, value)) => store.keep(format!("/log/{name}"), value.to_owned()),
                None => reply::text(StatusCode::BAD_REQUEST, "an entry is NAME VALUE"),
            },
            Err(refusal) => *refusal,
        },
        _ => reply::text(StatusCode::NOT_FOUND, "try GET or PUT /keys/NAME, POST /log, GET /log/NAME"),
    }
}

async fn body(request: Request<Incoming>) -> Result<String, Box<Reply>> {
    let refuse = |status, why: String| Box::new(reply::text(status, why));
    let body = Limited::new(request.into_body(), VALUE_BYTES_MAX).collect().await;
    let body = body.map_err(|error| refuse(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()))?;
    String::from_utf8(body.to_bytes().into()).map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_forgets_exactly_what_it_was_told_to() {
        let store = Store::new(3);
        for number in 1..=6 {
            assert_eq!(store.keep(format!("/keys/{number}"), number.to_string()).status(), StatusCode::NO_CONTENT);
        }
        let gone: Vec<u32> =
            (1..=6).filter(|number| store.find(&format!("/keys/{number}")).status() == StatusCode::NOT_FOUND).collect();
        assert_eq!(gone, [3, 6]);
    }
}
