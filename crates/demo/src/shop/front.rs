//! The front service: one page made of what catalogue and cart answer.
//!
//! # Flow
//! cookie → catalogue and cart asked at the same time → page (HTML, or JSON if the client asks for it).
//!
//! # Guarantees
//! Without the cart the page still comes (200, `degraded: ["cart"]`); without the catalogue there is nothing to sell
//! (503). Readiness does not depend on the others: a front that turned unready with its catalogue would only take the
//! page away as well.

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::address::Address;
use crate::client::{self, ClientError};
use crate::endpoints::query_value;
use crate::identity::Identity;
use crate::reply::{self, Reply};

/// The cookie that holds the cart: numbers with full stops between them, such as `1.3.3`.
const COOKIE: &str = "cart=";

/// The front service with the addresses of the two behind it.
#[derive(Debug)]
pub(crate) struct Front {
    catalogue: Address,
    cart: Address,
}

impl Front {
    pub(crate) fn new(catalogue: Address, cart: Address) -> Self {
        Self { catalogue, cart }
    }

    /// `GET /` is the page, `POST /add?item=3` puts something into the cart and leads back to it.
    pub(crate) async fn answer(&self, identity: &Identity, request: &Request<Incoming>) -> Reply {
        let cookies = request.headers().get_all(header::COOKIE);
        let pieces = cart_in_cookies(cookies.iter().filter_map(|it| it.to_str().ok()));
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => self.page(identity, request, &pieces).await,
            (&Method::POST, "/add") => add(pieces, &query_value(request.uri(), "item").unwrap_or_default()),
            (_, "/" | "/add") => reply::text(StatusCode::METHOD_NOT_ALLOWED, "GET / or POST /add?item=3"),
            _ => reply::text(StatusCode::NOT_FOUND, "try / or /whoami"),
        }
    }

    async fn page(&self, identity: &Identity, request: &Request<Incoming>, pieces: &[u32]) -> Reply {
        let total = format!("/total?items={}", joined(pieces, ","));
        let (catalogue, cart) =
            tokio::join!(client::get_json(&self.catalogue, "/items"), client::get_json(&self.cart, &total));
        let (status, content) = compose(&super::answered_by(identity), catalogue, cart);
        if wants_json(request) {
            reply::json(status, &content)
        } else {
            reply::html(status, super::page::render(&content))
        }
    }
}

/// What the page says, and whether that is enough to be called a page.
fn compose(
    front: &Value,
    catalogue: Result<Value, ClientError>,
    cart: Result<Value, ClientError>,
) -> (StatusCode, Value) {
    let status = if catalogue.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let missing = [("catalogue", catalogue.is_err()), ("cart", cart.is_err())];
    let degraded: Vec<&str> = missing.iter().filter(|(_, missing)| *missing).map(|(name, _)| *name).collect();
    let or_reason = |answer: Result<Value, ClientError>| answer.unwrap_or_else(|e| json!({ "error": e.to_string() }));
    let content = json!({
        "front": { "answered_by": front },
        "catalogue": or_reason(catalogue),
        "cart": or_reason(cart),
        "degraded": degraded,
    });
    (status, content)
}

/// Puts one more piece into the cookie and leads back to the page.
fn add(mut pieces: Vec<u32>, item: &str) -> Reply {
    let added = super::pieces(item);
    if added.len() != 1 || pieces.len() >= super::CART_PIECES_MAX {
        return reply::text(StatusCode::BAD_REQUEST, "no such item, or the cart is full");
    }
    pieces.extend(added);
    let mut back = reply::text(StatusCode::SEE_OTHER, "/");
    back.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/"));
    let cookie = format!("{COOKIE}{}; Path=/; HttpOnly; SameSite=Lax", joined(&pieces, "."));
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        back.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    back
}

fn cart_in_cookies<'a>(mut headers: impl Iterator<Item = &'a str>) -> Vec<u32> {
    headers
        .find_map(|header| header.split(';').find_map(|cookie| cookie.trim().strip_prefix(COOKIE)))
        .map_or_else(Vec::new, |list| super::pieces(&list.replace('.', ",")))
}

fn joined(pieces: &[u32], between: &str) -> String {
    pieces.iter().map(ToString::to_string).collect::<Vec<_>>().join(between)
}

/// JSON for programs (`Accept: application/json` or `?format=json`), HTML for everyone else.
fn wants_json(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
    accept.contains("application/json") || query_value(request.uri(), "format").as_deref() == Some("json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cart_comes_out_of_the_cookie_it_went_into() {
        let reply = add(vec![1], "3");
        let cookie = reply.headers()[header::SET_COOKIE].to_str().unwrap_or_default().to_owned();
        let sent = cookie.split(';').next().unwrap_or_default();
        assert_eq!(cart_in_cookies([format!("theme=dark; {sent}").as_str()].into_iter()), [1, 3]);
        assert_eq!(add(vec![], "99").status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn only_the_catalogue_is_indispensable() {
        let gone = || Err(ClientError::ConnectTimeout);
        let (status, content) = compose(&json!({}), Ok(json!({})), gone());
        assert_eq!((status, &content["degraded"]), (StatusCode::OK, &json!(["cart"])));
        let (status, content) = compose(&json!({}), gone(), gone());
        assert_eq!((status, &content["degraded"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(["catalogue", "cart"])));
    }
}
