//! A server over a store of its own, for tests: requests go in where the listener would hand them over.

#![allow(clippy::unwrap_used, clippy::unnecessary_wraps)]

pub(crate) mod hook;

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use mainstay_store::EmbeddedStore;
use serde_json::{Value, json};

use crate::authn::TokenKeys;
use crate::{Api, Settings, User, bootstrap};

/// The issuer of tokens in tests.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A server with everything `bootstrap` makes.
pub(crate) struct World {
    pub(crate) api: Arc<Api>,
    _directory: tempfile::TempDir,
}

/// An answer: code, headers, body.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The message of a refusal.
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// The warnings that came along.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.headers.get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    /// The body, when all went well.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.code < 300, "{} {}", self.code, self.body);
        self.body
    }

    /// Expects a refusal with this code.
    #[track_caller]
    pub(crate) fn refused(&self, code: u16) -> &str {
        assert_eq!(self.code, code, "{}", self.body);
        self.message()
    }
}

/// The administrator.
pub(crate) fn admin() -> Option<User> {
    Some(User::new("admin", &["system:masters"]))
}

/// Somebody without any role.
pub(crate) fn user(name: &str) -> Option<User> {
    Some(User::new(name, &[]))
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A server whose settings are changed first.
    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path(), mainstay_store::Settings::default()).unwrap();
        let mut settings = Settings {
            service_range: [10, 0, 0, 0].into(),
            service_prefix: 24,
            service_reserved: 16,
            advertise: "127.0.0.1:6443".parse().unwrap(),
            agents: None,
            tokens: Some(Arc::new(TokenKeys::ephemeral(ISSUER).unwrap())),
            authority: Some("an authority".to_owned()),
            mount_tokens: false,
            toleration_seconds: None,
            audit: None,
        };
        change(&mut settings);
        let api = Api::new(Arc::new(store), settings);
        bootstrap(&api).await.unwrap();
        Self { api, _directory: directory }
    }

    /// A request as `user`, or with `None` as somebody whose connection says nothing.
    pub(crate) async fn call(&self, user: Option<User>, method: &str, path: &str, body: &Value) -> Answer {
        self.call_with(user, method, path, body, &[]).await
    }

    /// The same with headers.
    pub(crate) async fn call_with(
        &self,
        user: Option<User>,
        method: &str,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Answer {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let media_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let headers = [&[("content-type", media_type)], headers].concat();
        self.call_raw(user, method, path, &text, &headers).await
    }

    /// A request with any body, whose media type is among the headers.
    pub(crate) async fn call_raw(
        &self,
        user: Option<User>,
        method: &str,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Request::builder().method(method.parse::<Method>().unwrap()).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::from(body.to_owned()));
        let response = self.api.handle(request.body(body).unwrap(), user).await;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
        Answer { code: head.status.as_u16(), headers: head.headers, body }
    }

    /// GET as the administrator.
    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(admin(), "GET", path, &Value::Null).await.ok()
    }

    /// POST as the administrator.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.call(admin(), "POST", path, &body).await.ok()
    }

    /// A namespace with its default account.
    pub(crate) async fn namespace(&self, name: &str, labels: Value) {
        self.post("/api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels}})).await;
        let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
        self.post(&path, json!({"metadata": {"name": "default"}})).await;
    }

    /// Binds a user to a ClusterRole in a namespace.
    pub(crate) async fn bind(&self, namespace: &str, role: &str, user: &str) {
        let body = json!({
            "metadata": {"generateName": "b-"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        });
        self.post(&format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"), body).await;
    }
}
