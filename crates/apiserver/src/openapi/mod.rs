//! OpenAPI: what there is, in the two forms clients read (`kubectl explain`, `kubectl apply`, Helm, generators).
//!
//! Flow: the shapes and descriptions of the built-in kinds come from `k8s-openapi` ([`library`]), the extensions that say
//! how lists merge from Mainstay's own table ([`annotate`]), paths and operations from the catalogue of what is served.
//! Documents are made when they are asked for and not kept: they are large and rarely read. Clients keep them under the
//! tag that goes with them.
//!
//! Source: <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#openapi-interface-definition>.

mod annotate;
mod gnostic;
mod library;
mod operations;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use mainstay_model::status::ApiError;
use serde_json::{Map, Value, json};

use crate::registry::{Catalogue, Served};
use crate::reply::{self, Body};
use crate::request::{Query, alternatives};

/// What client-go asks for when it wants the second version.
const GNOSTIC: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The same in the media type's other spelling.
const GNOSTIC_AT: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Answers a path below `/openapi`.
///
/// # Errors
/// 404 for any other path, 406 when the client takes neither JSON nor, for the second version, protobuf.
pub(crate) fn answer(
    catalogue: &Catalogue,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    if path == "/openapi/v2" {
        return second(catalogue, headers);
    }
    if !alternatives(headers).iter().any(|(media, _)| is_json(media)) {
        return Err(not_acceptable("application/json"));
    }
    match path.strip_prefix("/openapi/v3/") {
        None if path == "/openapi/v3" => Ok(reply::json(StatusCode::OK, &index(catalogue))),
        None => Err(ApiError::no_such_path()),
        Some(name) => third(catalogue, name, Query::parse(query).get("hash"), headers),
    }
}

fn is_json(media: &str) -> bool {
    matches!(media, "application/json" | "application/*" | "*/*" | "")
}

fn not_acceptable(known: &str) -> ApiError {
    ApiError::new(406, "NotAcceptable", format!("only the following media types are accepted: {known}"))
}

fn index(catalogue: &Catalogue) -> Value {
    let mut paths = Map::new();
    for resource in catalogue.all() {
        let name = document_name(resource);
        if !paths.contains_key(&name) {
            let hash = hash(catalogue.of(&resource.group, &resource.version));
            let url = url(&name, &hash);
            paths.insert(name, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// Where a document is, with the tag of what it says, so that it may be kept for as long as one likes.
fn url(name: &str, hash: &str) -> String {
    format!("/openapi/v3/{name}?hash={hash}")
}

fn document_name(resource: &Served) -> String {
    if resource.group.is_empty() {
        format!("api/{}", resource.version)
    } else {
        format!("apis/{}/{}", resource.group, resource.version)
    }
}

/// A tag that is another whenever the document could be another.
fn hash<'a>(resources: impl Iterator<Item = &'a Served>) -> String {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    for resource in resources {
        format!("{resource:?}").hash(&mut hasher);
    }
    format!("{:016X}", hasher.finish())
}

/// 304 where the client has the document already.
fn unchanged(headers: &HeaderMap, tag: &str) -> Option<Response<Body>> {
    let given = headers.get(header::IF_NONE_MATCH)?.to_str().ok()?;
    if given.split(',').any(|one| one.trim().trim_matches('"') == tag) {
        let mut response = Response::new(reply::full(bytes::Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Some(response);
    }
    None
}

fn tagged(mut response: Response<Body>, tag: &str) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{tag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// One group and version; with a `hash` only if it is still the one that was asked for.
fn third(
    catalogue: &Catalogue,
    name: &str,
    hash_given: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let resources: Vec<&Served> = catalogue.all().iter().filter(|r| document_name(r) == name).collect();
    if resources.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let tag = hash(resources.iter().copied());
    if hash_given.is_some_and(|given| given != tag) {
        return Ok(moved(&url(name, &tag)));
    }
    if let Some(response) = unchanged(headers, &tag) {
        return Ok(response);
    }
    let mut schemas = library::schemas(&resources, library::Version::Third);
    annotate::annotate(&mut schemas, &resources);
    let mut paths = Map::new();
    for resource in &resources {
        operations::add(&mut paths, resource, library::Version::Third);
    }
    let document = json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.37.0"},
        "paths": paths, "components": {"schemas": schemas},
    });
    let mut response = tagged(reply::json(StatusCode::OK, &document), &tag);
    if hash_given.is_some() {
        let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    Ok(response)
}

/// The document is not what it was, and has another address.
fn moved(url: &str) -> Response<Body> {
    let mut response = Response::new(reply::full(bytes::Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(url) = HeaderValue::from_str(url) {
        response.headers_mut().insert(header::LOCATION, url);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Everything in one.
fn second(catalogue: &Catalogue, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let in_protobuf = |media: &str| match media {
        GNOSTIC | GNOSTIC_AT => Some(true),
        media => is_json(media).then_some(false),
    };
    let in_protobuf = alternatives(headers).into_iter().find_map(|(media, _)| in_protobuf(media));
    let in_protobuf = in_protobuf.ok_or_else(|| not_acceptable(&format!("application/json, {GNOSTIC_AT}")))?;
    let resources: Vec<&Served> = catalogue.all().iter().collect();
    let tag = format!("{}{}", hash(resources.iter().copied()), if in_protobuf { "P" } else { "" });
    if let Some(response) = unchanged(headers, &tag) {
        return Ok(response);
    }
    let mut definitions = library::schemas(&resources, library::Version::Second);
    annotate::annotate(&mut definitions, &resources);
    let mut paths = Map::new();
    for resource in &resources {
        operations::add(&mut paths, resource, library::Version::Second);
    }
    let document = json!({
        "swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.37.0"},
        "paths": paths, "definitions": definitions,
    });
    if in_protobuf {
        let mut response = Response::new(reply::full(gnostic::encode(&document)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(GNOSTIC));
        return Ok(tagged(response, &tag));
    }
    Ok(tagged(reply::json(StatusCode::OK, &document), &tag))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http_body_util::BodyExt as _;

    fn get(path: &str, accept: &str) -> (u16, Vec<u8>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        match answer(&Catalogue::built_in(), path, query, &headers) {
            Ok(response) => {
                let code = response.status().as_u16();
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let body = runtime.block_on(response.into_body().collect()).unwrap();
                (code, body.to_bytes().to_vec())
            }
            Err(error) => (error.code, Vec::new()),
        }
    }

    #[test]
    fn every_document_of_the_index_is_there_and_its_references_lead_somewhere() {
        let (_, index) = get("/openapi/v3", "application/json");
        let index: Value = serde_json::from_slice(&index).unwrap();
        for (name, _) in index["paths"].as_object().unwrap() {
            let (code, body) = get(&format!("/openapi/v3/{name}"), "application/json");
            assert_eq!(code, 200, "{name}");
            let document: Value = serde_json::from_slice(&body).unwrap();
            let text = String::from_utf8(body).unwrap();
            for reference in text.split("\"$ref\":\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
                let found = reference.trim_start_matches('#');
                assert!(document.pointer(found).is_some(), "{name}: {reference}");
            }
        }
    }

    #[test]
    fn a_kind_is_found_by_its_extension() {
        let (_, body) = get("/openapi/v3/apis/apps/v1", "application/json");
        let document: Value = serde_json::from_slice(&body).unwrap();
        let deployment = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
        let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(pod["x-kubernetes-patch-merge-key"], "name");
        assert!(pod["description"].as_str().is_some_and(|text| !text.is_empty()));
    }

    #[test]
    fn the_second_version_in_both_encodings() {
        let (code, json) = get("/openapi/v2", "application/json");
        assert_eq!(code, 200);
        let document: Value = serde_json::from_slice(&json).unwrap();
        assert!(document["definitions"]["io.k8s.api.core.v1.Pod"]["properties"]["spec"]["$ref"].is_string());
        let (code, protobuf) = get("/openapi/v2", GNOSTIC_AT);
        assert_eq!((code, &protobuf[..5]), (200, &b"\x0a\x032.0"[..]));
        assert_eq!(get("/openapi/v2", "text/html").0, 406);
        assert_eq!(get("/openapi/v3/apis/none/v1", "*/*").0, 404);
        assert_eq!(
            get("/openapi/v3/apis/apps/v1", "application/com.github.proto-openapi.spec.v3.v1.0+protobuf").0,
            406
        );
    }

    #[test]
    fn a_document_is_at_the_address_of_the_index_and_an_old_address_leads_there() {
        let (_, index) = get("/openapi/v3", "application/json");
        let index: Value = serde_json::from_slice(&index).unwrap();
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
        assert_eq!(get(url, "application/json").0, 200);
        assert_eq!(get("/openapi/v3/apis/apps/v1?hash=OLD", "application/json").0, 301);
    }
}
