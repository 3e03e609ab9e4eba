//! `ListOptions`: at which revision a list reads and where a watch begins.
//!
//! | resourceVersion | match          | list reads                      | watch begins with            |
//! |-----------------|----------------|---------------------------------|------------------------------|
//! | none            | none           | the newest state                | the state now                |
//! | 0               | none or newer  | the newest state                | the state now                |
//! | N               | none           | the newest, or N when paging    | what follows N               |
//! | N               | `NotOlderThan` | the newest                      | (only with sendInitialEvents) |
//! | N               | `Exact`        | N                               | (refused)                    |
//!
//! Every read goes to the store, which is never behind, so "not older than N" only means that N must exist.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>.

use mainstay_model::status::{ApiError, Cause, FieldError, FieldErrorKind};
use serde_json::json;

use crate::request::{Call, Verb};

const MATCHES: &[&str] = &["Exact", "NotOlderThan"];

/// What a list or watch asks for, checked.
#[derive(Debug, Default)]
pub(crate) struct ListOptions {
    /// The revision named by the caller; 0 when none is.
    pub(crate) revision: u64,
    /// Whether the list must be of just that revision.
    pub(crate) exact: bool,
    /// Most objects of a page; 0 for all.
    pub(crate) limit: usize,
    /// Where the previous page ended.
    pub(crate) continue_token: Option<String>,
    /// Whether a watch begins with the state as it is, when the caller says so.
    pub(crate) initial_events: Option<bool>,
}

impl ListOptions {
    /// Reads and checks the query.
    ///
    /// # Errors
    /// 400 for what cannot be read, 422 for what does not go together.
    pub(crate) fn read(call: &Call) -> Result<Self, ApiError> {
        let query = &call.query;
        let revision: Option<u64> = query.number("resourceVersion")?;
        let token = query.get("continue").map(str::to_owned);
        let initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let wanted = query.get("resourceVersionMatch");
        let faults = faults(call.verb == Verb::Watch, revision, wanted, token.is_some(), initial_events.is_some());
        if !faults.is_empty() {
            return Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", faults));
        }
        let limit = query.number("limit")?.unwrap_or(0);
        if token.is_some() && revision.is_some_and(|revision| revision > 0) {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        let revision = revision.unwrap_or(0);
        let exact = wanted == Some("Exact") || (wanted.is_none() && limit > 0 && revision > 0);
        Ok(Self { revision, exact, limit, continue_token: token, initial_events })
    }

    /// Whether the store, which is at `current`, has what was asked for.
    ///
    /// # Errors
    /// 504 as Kubernetes gives it; clients know the cause and try again.
    pub(crate) fn check_fresh(&self, current: u64) -> Result<(), ApiError> {
        if self.revision > current { Err(too_new(self.revision, current)) } else { Ok(()) }
    }
}

/// 504 for a revision that nobody has written yet.
pub(super) fn too_new(revision: u64, current: u64) -> ApiError {
    let text = format!("Too large resource version: {revision}, current: {current}");
    let mut error = ApiError::new(504, "Timeout", text);
    let message = "Too large resource version".to_owned();
    error.other_causes = vec![Cause { reason: "ResourceVersionTooLarge", message, field: String::new() }];
    error.retry_after_seconds = Some(1);
    error
}

fn faults(
    watch: bool,
    revision: Option<u64>,
    wanted: Option<&str>,
    continued: bool,
    initial_events: bool,
) -> Vec<FieldError> {
    const FIELD: &str = "resourceVersionMatch";
    let mut faults = Vec::new();
    let mut forbid = |field: &str, why: &str| faults.push(FieldError::new(field, FieldErrorKind::Forbidden, why));
    match wanted {
        None if initial_events && watch => {
            forbid(FIELD, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        Some(other) if initial_events && watch && other != "NotOlderThan" => {
            forbid(FIELD, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        _ if initial_events && !watch => forbid("sendInitialEvents", "sendInitialEvents is forbidden for list"),
        Some(_) if watch && !initial_events => forbid(FIELD, "resourceVersionMatch is forbidden for watch"),
        Some(_) if revision.is_none() && !initial_events => {
            forbid(FIELD, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        Some(_) if continued => forbid(FIELD, "resourceVersionMatch is forbidden when continue is provided"),
        Some("Exact") if revision == Some(0) => {
            forbid(FIELD, "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"");
        }
        Some(other) if !MATCHES.contains(&other) => {
            let detail = "supported values: \"Exact\", \"NotOlderThan\", \"\"";
            faults.push(FieldError::with_value(FIELD, FieldErrorKind::NotSupported, json!(other), detail));
        }
        _ => {}
    }
    faults
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::request::Query;
    use mainstay_model::resource::known;

    fn read(verb: Verb, query: &str) -> Result<ListOptions, u16> {
        let mut call = Call::internal(verb, known("Pod").into(), None);
        call.query = Query::parse(Some(query));
        ListOptions::read(&call).map_err(|error| error.code)
    }

    #[test]
    fn what_goes_together() {
        assert!(!read(Verb::List, "resourceVersion=5").unwrap().exact);
        assert!(read(Verb::List, "resourceVersion=5&limit=2").unwrap().exact);
        assert!(read(Verb::List, "resourceVersion=5&resourceVersionMatch=Exact").unwrap().exact);
        assert!(!read(Verb::List, "resourceVersion=0&limit=2").unwrap().exact);
        let watch_list = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        assert_eq!(read(Verb::Watch, watch_list).unwrap().initial_events, Some(true));
    }

    #[test]
    fn what_does_not() {
        assert_eq!(read(Verb::List, "resourceVersion=abc").unwrap_err(), 400);
        assert_eq!(read(Verb::List, "limit=-1").unwrap_err(), 400);
        assert_eq!(read(Verb::List, "continue=x&resourceVersion=5").unwrap_err(), 400);
        for query in [
            "resourceVersionMatch=Exact",
            "resourceVersion=0&resourceVersionMatch=Exact",
            "resourceVersion=5&resourceVersionMatch=Newer",
            "sendInitialEvents=true",
        ] {
            assert_eq!(read(Verb::List, query).unwrap_err(), 422, "{query}");
        }
        assert_eq!(read(Verb::Watch, "sendInitialEvents=true").unwrap_err(), 422);
        assert_eq!(read(Verb::Watch, "resourceVersion=5&resourceVersionMatch=Exact").unwrap_err(), 422);
    }

    #[test]
    fn the_future_is_a_timeout_that_clients_know() {
        let options = read(Verb::List, "resourceVersion=9").unwrap();
        let status = options.check_fresh(8).unwrap_err().to_status();
        assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
        assert!(options.check_fresh(9).is_ok());
    }
}
