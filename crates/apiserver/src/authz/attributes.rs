//! What is asked for, in the words of authorisation; read from the request alone, whether such a resource exists or not.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authorization/#review-your-request-attributes>.

use http::{Method, Uri};
use mainstay_model::rbac::Object;
use mainstay_model::status::ApiError;

use crate::authn::User;
use crate::request::{Query, segments, without_watch};

/// An action on a resource, or on a path outside the resources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) verb: String,
    pub(crate) group: String,
    pub(crate) version: String,
    /// Plural name; empty for a path.
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Set for a path.
    pub(crate) path: String,
    /// The `fieldSelector` of a list or watch.
    pub(crate) field_selector: String,
}

impl Attributes {
    /// `verb` on a resource; empty namespace and name mean all.
    pub(crate) fn on(verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> Self {
        let owned = str::to_owned;
        Self {
            verb: owned(verb),
            group: owned(group),
            resource: owned(resource),
            namespace: owned(namespace),
            name: owned(name),
            ..Self::default()
        }
    }

    /// `verb` on a path.
    pub(crate) fn at(verb: &str, path: &str) -> Self {
        Self { verb: verb.to_owned(), path: path.to_owned(), ..Self::default() }
    }

    /// What a request asks for.
    pub(crate) fn of(method: &Method, uri: &Uri) -> Self {
        let parts = segments(uri.path());
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Self::at(&method.as_str().to_lowercase(), uri.path()),
        };
        let (legacy_watch, rest) = without_watch(rest);
        // The namespace of a Namespace is itself.
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize"]) => (*namespace, rest),
            ["namespaces", namespace, ..] => (*namespace, rest),
            _ => ("", rest),
        };
        let at = |index: usize| rest.get(index).copied().unwrap_or_default();
        let query = Query::parse(uri.query());
        let mut name = at(1).to_owned();
        let watches = legacy_watch || (query.flag("watch") && at(2).is_empty());
        let verb = match (method.as_str(), name.is_empty()) {
            ("GET" | "HEAD", _) if watches => "watch",
            ("GET" | "HEAD", true) => "list",
            ("GET" | "HEAD", false) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "deletecollection",
            ("DELETE", false) => "delete",
            _ => "",
        };
        let field_selector = query.get("fieldSelector").unwrap_or_default().to_owned();
        if name.is_empty() && matches!(verb, "list" | "watch" | "deletecollection") {
            selected(&field_selector, "metadata.name").unwrap_or_default().clone_into(&mut name);
        }
        Self {
            version: version.to_owned(),
            subresource: at(2).to_owned(),
            field_selector,
            ..Self::on(verb, group, at(0), namespace, &name)
        }
    }

    /// As a rule sees it.
    pub(crate) fn object(&self) -> Object<'_> {
        if self.resource.is_empty() {
            return Object::Path(&self.path);
        }
        Object::Resource {
            group: &self.group,
            resource: &self.resource,
            subresource: &self.subresource,
            name: &self.name,
        }
    }

    /// The one value of a field that the selector lets through.
    pub(crate) fn selects(&self, field: &str) -> Option<&str> {
        selected(&self.field_selector, field)
    }

    /// 403 for `user`, in kube-apiserver's words.
    pub(crate) fn forbidden(&self, user: &User, reason: &str) -> ApiError {
        let mut why = self.sentence(&user.name);
        if !reason.is_empty() {
            why = format!("{why}: {reason}");
        }
        if self.resource.is_empty() {
            return ApiError::new(403, "Forbidden", format!("forbidden: {why}"));
        }
        ApiError::forbidden(&self.group, &self.resource, &self.name, &why)
    }

    fn sentence(&self, user: &str) -> String {
        let Self { verb, group, namespace, .. } = self;
        if self.resource.is_empty() {
            return format!("User {user:?} cannot {verb} path {:?}", self.path);
        }
        let scope = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {namespace:?}")
        };
        format!("User {user:?} cannot {verb} resource {:?} in API group {group:?} {scope}", self.full_resource())
    }

    /// `pods` or `pods/log`.
    pub(crate) fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// The value a field must have by an equality in a selector.
fn selected<'a>(selector: &'a str, field: &str) -> Option<&'a str> {
    selector.split(',').find_map(|term| {
        let (name, value) = term.split_once('=')?;
        (name == field).then(|| value.strip_prefix('=').unwrap_or(value)).filter(|value| !value.is_empty())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(method: &str, uri: &str) -> Attributes {
        Attributes::of(&method.parse().unwrap(), &uri.parse().unwrap())
    }

    fn words(method: &str, uri: &str) -> String {
        let a = of(method, uri);
        [a.verb.as_str(), &a.group, &a.full_resource(), &a.namespace, &a.name, &a.path].join(" ")
    }

    #[test]
    fn requests_become_attributes() {
        for (method, uri, expected) in [
            ("GET", "/api/v1/namespaces/a/pods", "list  pods a  "),
            ("GET", "/api/v1/namespaces/a/pods?watch=1&fieldSelector=metadata.name%3Dp", "watch  pods a p "),
            ("GET", "/api/v1/namespaces/a/pods/p/log", "get  pods/log a p "),
            ("POST", "/api/v1/namespaces/a/pods/p/exec", "create  pods/exec a p "),
            ("GET", "/api/v1/namespaces/a", "get  namespaces a a "),
            ("PUT", "/api/v1/namespaces/a/finalize", "update  namespaces/finalize a a "),
            ("POST", "/api/v1/namespaces", "create  namespaces   "),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection apps deployments a  "),
            (
                "PATCH",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "patch rbac.authorization.k8s.io clusterroles  system:node ",
            ),
            ("GET", "/apis/apps/v1", "get     /apis/apps/v1"),
            ("POST", "/healthz", "post     /healthz"),
        ] {
            assert_eq!(words(method, uri), expected, "{method} {uri}");
        }
    }

    #[test]
    fn refusals_read_as_those_of_kubernetes() {
        let jane = User::new("jane", &[]);
        let text = |method: &str, uri: &str, reason: &str| of(method, uri).forbidden(&jane, reason).message;
        assert_eq!(
            text("GET", "/api/v1/namespaces/default/pods", ""),
            r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        assert_eq!(
            text("DELETE", "/apis/apps/v1/namespaces/a/deployments/d", "RBAC: x"),
            r#"deployments.apps "d" is forbidden: User "jane" cannot delete resource "deployments" in API group "apps" in the namespace "a": RBAC: x"#
        );
        assert_eq!(
            text("GET", "/api/v1/nodes", ""),
            r#"nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope"#
        );
        assert_eq!(text("GET", "/metrics", ""), r#"forbidden: User "jane" cannot get path "/metrics""#);
    }
}
