//! From HTTP path and query to what is asked for.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/>.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, Method, Uri, header};
use mainstay_model::protobuf;
use mainstay_model::resource::Subresource;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use crate::authn::User;
use crate::registry::{Catalogue, Served};

/// What is done to a resource, in the words of authorisation and audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// The verb's name in RBAC.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// Whether it may change something.
    pub(crate) fn mutates(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

/// A call on a resource.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    pub(crate) resource: Served,
    /// Set for namespaced resources unless the call is across all namespaces.
    pub(crate) namespace: Option<String>,
    /// Set unless the call is on a collection.
    pub(crate) name: Option<String>,
    /// For example `status`.
    pub(crate) subresource: Option<String>,
    /// What follows a subresource in the path, as it was written: only `proxy` has such a rest.
    pub(crate) rest: String,
    pub(crate) query: Query,
    /// Who calls.
    pub(crate) user: Arc<User>,
    /// The program that calls, as its `User-Agent` names it.
    pub(crate) agent: String,
    /// What the caller should be told besides the answer; shared by all calls a request leads to.
    pub(crate) warnings: Warnings,
    /// What the audit log is told besides; shared like the warnings.
    pub(crate) notes: Notes,
}

/// Warnings for the caller, which become `Warning` headers.
///
/// Source: <https://kubernetes.io/docs/reference/using-api/deprecation-policy/>, RFC 7234 section 5.5.
#[derive(Debug, Clone, Default)]
pub(crate) struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Most warnings one request gets.
    const MAX: usize = 32;

    /// Adds a warning, once.
    pub(crate) fn add(&self, text: impl Into<String>) {
        let (text, mut all) = (text.into(), self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if all.len() < Self::MAX && !all.contains(&text) {
            all.push(text);
        }
    }

    /// All so far.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Annotations of a request for the audit log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<BTreeMap<String, String>>>);

impl Notes {
    /// Adds an annotation; the first under a key stays.
    pub(crate) fn annotate(&self, key: &str, value: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }

    /// All so far.
    #[allow(dead_code, reason = "the audit log comes next")]
    pub(crate) fn take(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Call {
    /// A call the server makes by itself on a collection.
    pub(crate) fn internal(verb: Verb, resource: Served, namespace: Option<&str>) -> Self {
        Self {
            verb,
            resource,
            namespace: namespace.map(str::to_owned),
            name: None,
            subresource: None,
            rest: String::new(),
            query: Query::default(),
            user: Arc::new(User::internal("system:apiserver")),
            agent: "kube-apiserver".to_owned(),
            warnings: Warnings::default(),
            notes: Notes::default(),
        }
    }

    /// The object's name, which calls on one object always have.
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// The field manager of what is written: as the caller says, or the name of its program.
    pub(crate) fn manager(&self) -> &str {
        self.query.get("fieldManager").unwrap_or(&self.agent)
    }

    /// The key of the object in the store.
    pub(crate) fn key(&self) -> String {
        self.resource.key(self.namespace.as_deref(), self.name())
    }

    /// A 404 about the object.
    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.resource.group, &self.resource.plural, self.name())
    }
}

/// Where a request goes.
#[derive(Debug)]
pub(crate) enum Target {
    /// A resource in the registry.
    Resource(Box<Call>),
    /// Discovery, health, version and the like.
    Path(String),
}

/// Query parameters; the last of several equal names wins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(HashMap<String, String>);

impl Query {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        Self(form_urlencoded::parse(text.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// A parameter's value, unless it is missing or empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The parameters as the options object of a subresource that opens a connection, for example PodExecOptions.
    pub(crate) fn to_options(&self, call: &Call) -> Value {
        let shape = Subresource::of(call.subresource.as_deref().unwrap_or_default(), &call.resource);
        let mut options = json!({"kind": shape.kind, "apiVersion": shape.group_version});
        for (name, value) in &self.0 {
            options[name] = match (name.as_str(), value.as_str()) {
                ("command", value) => json!([value]),
                (_, "true" | "1") => json!(true),
                (_, "false" | "0") => json!(false),
                (_, value) => json!(value),
            };
        }
        options
    }

    /// A boolean parameter: `true` and `1` are true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "True"))
    }

    /// A whole number.
    ///
    /// # Errors
    /// 400 when it is not one.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let parse = |text: &str| {
            text.parse().map_err(|_| {
                ApiError::bad_request(format!("the query parameter {name}={text:?} is not a valid number"))
            })
        };
        self.get(name).map(parse).transpose()
    }

    /// Whether the write is only to be tried (`dryRun=All`).
    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => {
                Err(ApiError::bad_request(format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"")))
            }
        }
    }
}

/// The parts of a path, decoded; a part that is not valid UTF-8 stays as it is, and names nothing.
pub(crate) fn segments(path: &str) -> Vec<String> {
    let parts = path.split('/').filter(|part| !part.is_empty());
    parts.map(|part| percent_decoded(part).unwrap_or_else(|| part.to_owned())).collect()
}

/// Undoes percent-encoding (RFC 3986 section 2.1); `None` when the result is not UTF-8.
pub(crate) fn percent_decoded(text: &str) -> Option<String> {
    let hex = |bytes: Option<&[u8]>| {
        let digits = std::str::from_utf8(bytes?).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u8::from_str_radix(digits, 16).ok()
    };
    let (bytes, mut decoded, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let escaped = if *byte == b'%' { hex(bytes.get(at + 1..at + 3)) } else { None };
        decoded.push(escaped.unwrap_or(*byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8(decoded).ok()
}

/// Reads method and URI.
///
/// # Errors
/// 404 for a path under `/api` or `/apis` that names no resource, 405 for a method a resource does not have.
pub(crate) fn parse(method: &Method, uri: &Uri, catalogue: &Catalogue) -> Result<Target, ApiError> {
    let path = uri.path();
    let parts = segments(path);
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Target::Path(path.to_owned())),
    };
    let (legacy_watch, rest) = without_watch(rest);
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && !matches!(rest[0], "status" | "finalize") => {
            (Some((*namespace).to_owned()), rest)
        }
        _ => (None, rest),
    };
    let [plural, rest @ ..] = rest else { return Err(ApiError::no_such_path()) };
    let resource = catalogue.find(group, version, plural).filter(|r| r.namespaced || namespace.is_none());
    let resource = resource.ok_or_else(ApiError::no_such_path)?;
    let name = rest.first().map(|name| (*name).to_owned());
    let (subresource, rest) = match rest {
        [_, "proxy", rest @ ..] => (Some("proxy".to_owned()), behind(path, parts.len() - rest.len()).to_owned()),
        [_, ..] if rest.len() > 1 => (Some(rest[1..].join("/")), String::new()),
        _ => (None, String::new()),
    };
    if resource.namespaced && namespace.is_none() && name.is_some() {
        return Err(ApiError::no_such_path());
    }
    if subresource.as_deref().is_some_and(|sub| !resource.has_subresource(sub)) {
        return Err(ApiError::no_such_path());
    }
    let query = Query::parse(uri.query());
    let verb = match subresource.as_deref() {
        Some("proxy") => proxied(method),
        sub => verb(method, name.is_some(), sub.is_some(), legacy_watch || query.flag("watch"))?,
    };
    if subresource.is_none() && !resource.has_verb(verb.word()) {
        return Err(ApiError::method_not_allowed());
    }
    let (resource, user, warnings) = (resource.clone(), Arc::new(User::anonymous()), Warnings::default());
    let (agent, notes) = (String::new(), Notes::default());
    let call = Call { verb, resource, namespace, name, subresource, rest, query, user, agent, warnings, notes };
    Ok(Target::Resource(Box::new(call)))
}

/// Watches were once asked for below `/watch`, and still are by old clients: whether this is such a path, and the rest.
///
/// Source: the `watch` operations of <https://kubernetes.io/docs/reference/kubernetes-api/>, deprecated.
pub(crate) fn without_watch<'a, 'b>(rest: &'b [&'a str]) -> (bool, &'b [&'a str]) {
    match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        _ => (false, rest),
    }
}

/// What of a path lies behind so many of its parts, as it was written.
fn behind(path: &str, parts: usize) -> &str {
    let mut rest = path;
    for _ in 0..parts {
        rest = rest.trim_start_matches('/');
        rest = rest.find('/').map_or("", |at| &rest[at..]);
    }
    rest
}

/// What a proxied request does, by its method, for authorisation.
fn proxied(method: &Method) -> Verb {
    match method.as_str() {
        "POST" => Verb::Create,
        "PUT" => Verb::Update,
        "PATCH" => Verb::Patch,
        "DELETE" => Verb::Delete,
        _ => Verb::Get,
    }
}

fn verb(method: &Method, named: bool, sub: bool, watch: bool) -> Result<Verb, ApiError> {
    Ok(match (method.as_str(), named) {
        ("GET" | "HEAD", true) if watch && !sub => Verb::Watch,
        ("GET" | "HEAD", true) => Verb::Get,
        ("GET" | "HEAD", false) if watch => Verb::Watch,
        ("GET" | "HEAD", false) => Verb::List,
        ("POST", false) => Verb::Create,
        ("POST", true) if sub => Verb::Create,
        ("PUT", true) => Verb::Update,
        ("PATCH", true) => Verb::Patch,
        ("DELETE", true) if !sub => Verb::Delete,
        ("DELETE", false) => Verb::DeleteCollection,
        _ => return Err(ApiError::method_not_allowed()),
    })
}

/// In which form the client wants objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects themselves.
    Object,
    /// `meta.k8s.io/v1` Table, what `kubectl get` prints.
    Table,
    /// `meta.k8s.io/v1` PartialObjectMetadata.
    Metadata,
}

/// In which bytes the client wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    /// The media type of one answer.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => PROTOBUF,
        }
    }

    fn of(media: &str, watch: bool, protobuf: bool) -> Option<Self> {
        match media {
            "application/json" | "*/*" | "application/*" | "" => Some(Self::Json),
            "application/yaml" if !watch => Some(Self::Yaml),
            PROTOBUF if protobuf => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// The media type of Kubernetes' protobuf.
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Form and encoding of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) form: Form,
    pub(crate) encoding: Encoding,
}

/// The alternatives of an `Accept` header, the most wanted first (RFC 9110 section 12.5.1): by weight, then as written.
pub(crate) fn alternatives(headers: &HeaderMap) -> Vec<(&str, HashMap<&str, &str>)> {
    let text = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let mut all: Vec<_> = text
        .split(',')
        .filter_map(|alternative| {
            let mut parts = alternative.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let parameters: HashMap<&str, &str> = parts.filter_map(|p| p.split_once('=')).collect();
            let weight: f32 = parameters.get("q").and_then(|q| q.parse().ok()).unwrap_or(1.0);
            (weight > 0.0).then_some((weight, media, parameters))
        })
        .collect();
    all.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
    all.into_iter().map(|(_, media, parameters)| (media, parameters)).collect()
}

/// The encoding of a `Status` that refuses a request, whatever else is wrong with it: JSON where the `Accept` header names
/// nothing that can be given.
pub(crate) fn status_encoding(headers: &HeaderMap) -> Encoding {
    let mut wanted = alternatives(headers).into_iter().map(|(media, _)| media);
    wanted.find_map(|media| Encoding::of(media, false, true)).unwrap_or(Encoding::Json)
}

/// Chooses the answer's form and encoding from the `Accept` header: the first acceptable alternative wins. Custom
/// resources have no protobuf form, and watches none in YAML.
///
/// # Errors
/// 406 when the client takes nothing that can be given.
pub(crate) fn accept(headers: &HeaderMap, call: &Call) -> Result<Accepted, ApiError> {
    let protobuf = protobuf::can_encode(&call.resource.api_version(), &call.resource.kind);
    for (media, parameters) in alternatives(headers) {
        let form = match (parameters.get("as").copied(), parameters.get("v").copied()) {
            (None, _) => Form::Object,
            (Some("Table"), Some("v1")) => Form::Table,
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1")) => Form::Metadata,
            _ => continue,
        };
        let protobuf = match form {
            Form::Object => protobuf,
            Form::Metadata => true,
            Form::Table => false,
        };
        if let Some(encoding) = Encoding::of(media, call.verb == Verb::Watch, protobuf) {
            return Ok(Accepted { form, encoding });
        }
    }
    let given: &[&str] = if protobuf {
        &["application/json", "application/yaml", PROTOBUF]
    } else {
        &["application/json", "application/yaml"]
    };
    let why = format!("only the following media types are accepted: {}", given.join(", "));
    Err(ApiError::new(406, "NotAcceptable", why))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registry::Catalogue;

    fn call(method: &str, path: &str) -> Result<Call, u16> {
        let catalogue = Catalogue::built_in();
        match parse(&Method::from_bytes(method.as_bytes()).unwrap(), &path.parse().unwrap(), &catalogue) {
            Ok(Target::Resource(call)) => Ok(*call),
            Ok(Target::Path(_)) => Err(0),
            Err(error) => Err(error.code),
        }
    }

    #[test]
    fn paths_of_resources() {
        let get = call("GET", "/api/v1/namespaces/shop/pods/a?x=1").unwrap();
        assert_eq!((get.verb, get.namespace.as_deref(), get.name()), (Verb::Get, Some("shop"), "a"));
        assert_eq!(call("GET", "/api/v1/pods?watch=true").unwrap().verb, Verb::Watch);
        let old = call("GET", "/api/v1/watch/namespaces/shop/pods/a").unwrap();
        assert_eq!((old.verb, old.namespace.as_deref(), old.name()), (Verb::Watch, Some("shop"), "a"));
        assert_eq!(call("GET", "/apis/apps/v1/watch/deployments").unwrap().verb, Verb::Watch);
        assert_eq!(call("GET", "/api/v1/watch").unwrap_err(), 404);
        let namespace = call("GET", "/api/v1/namespaces/shop").unwrap();
        assert_eq!((namespace.resource.kind.as_str(), namespace.name()), ("Namespace", "shop"));
        let finalize = call("PUT", "/api/v1/namespaces/shop/finalize").unwrap();
        assert_eq!((finalize.name(), finalize.subresource.as_deref()), ("shop", Some("finalize")));
        let scale = call("PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale").unwrap();
        assert_eq!((scale.verb, scale.subresource.as_deref()), (Verb::Patch, Some("scale")));
    }

    #[test]
    fn a_proxied_path_keeps_its_form() {
        let rest = |path: &str| call("DELETE", path).map(|call| (call.name().to_owned(), call.rest));
        let proxied = |name: &str, rest: &str| Ok((name.to_owned(), rest.to_owned()));
        assert_eq!(rest("/api/v1/namespaces/proxy/pods/a:80/proxy/x//y%2Fz/"), proxied("a:80", "/x//y%2Fz/"));
        assert_eq!(rest("/api/v1/nodes/n/proxy"), proxied("n", ""));
        assert_eq!(rest("/api/v1/nodes/n/proxy/"), proxied("n", "/"));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        assert_eq!(call("GET", "/api/v1/namespaces/a/unicorns").unwrap_err(), 404);
        assert_eq!(call("GET", "/api/v1/namespaces/a/pods/p/scale").unwrap_err(), 404);
        assert_eq!(call("GET", "/api/v1/namespaces/a/nodes").unwrap_err(), 404);
        assert_eq!(call("POST", "/api/v1/namespaces/a/pods/p").unwrap_err(), 405);
        assert_eq!(call("GET", "/apis/apps/v1").unwrap_err(), 0);
    }

    #[test]
    fn kubectl_asks_for_tables_first() {
        let mut headers = HeaderMap::new();
        let text = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        headers.insert(header::ACCEPT, text.parse().unwrap());
        let pods = call("GET", "/api/v1/pods").unwrap();
        let accepted = |headers: &HeaderMap| accept(headers, &pods).map(|a| (a.form, a.encoding)).map_err(|e| e.code);
        assert_eq!(accepted(&headers), Ok((Form::Table, Encoding::Json)));
        headers.insert(header::ACCEPT, "application/vnd.kubernetes.protobuf,application/json".parse().unwrap());
        assert_eq!(accepted(&headers), Ok((Form::Object, Encoding::Protobuf)));
        headers.insert(header::ACCEPT, "application/cbor".parse().unwrap());
        assert_eq!(accepted(&headers), Err(406));
        headers.insert(header::ACCEPT, format!("application/yaml;q=0.5, {PROTOBUF};q=0.9").parse().unwrap());
        assert_eq!(accepted(&headers), Ok((Form::Object, Encoding::Protobuf)));
        headers.insert(header::ACCEPT, format!("{PROTOBUF};q=0, application/yaml").parse().unwrap());
        assert_eq!(accepted(&headers), Ok((Form::Object, Encoding::Yaml)));
        let usage = call("GET", "/apis/metrics.k8s.io/v1beta1/nodes").unwrap();
        headers.insert(header::ACCEPT, PROTOBUF.parse().unwrap());
        assert_eq!(accept(&headers, &usage).unwrap_err().code, 406);
    }
}
