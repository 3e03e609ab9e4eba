//! The shop: a page, the goods, and a cart.
//!
//! No state of its own anywhere: the goods are a table in the program, and what a customer has put in the cart
//! travels in the customer's cookie. So any replica of any service can answer any request, and killing one loses
//! nothing that was not in flight.

mod front;
mod page;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};

pub(crate) use front::Front;

use crate::endpoints::query_value;
use crate::identity::Identity;
use crate::reply::{self, Reply};

/// What the shop sells: number, name, price in cents.
const GOODS: [(u32, &str, u32); 4] =
    [(1, "rope, 20 m", 2_490), (2, "anchor, 5 kg", 5_900), (3, "lantern", 1_750), (4, "ship's biscuit", 320)];

/// Most pieces in one cart; more are ignored.
const CART_PIECES_MAX: usize = 100;

/// The catalogue service: `GET /items`.
pub(crate) fn catalogue(identity: &Identity, request: &Request<Incoming>) -> Reply {
    match request.uri().path() {
        "/" | "/items" => {
            let items: Vec<Value> = GOODS
                .iter()
                .map(|(number, name, cents)| json!({ "number": number, "name": name, "price_cents": cents }))
                .collect();
            reply::json(StatusCode::OK, &json!({ "answered_by": answered_by(identity), "items": items }))
        }
        _ => reply::text(StatusCode::NOT_FOUND, "try /items"),
    }
}

/// The cart service: `GET /total?items=1,3,3` adds up. Numbers that name nothing are left out.
pub(crate) fn cart(identity: &Identity, request: &Request<Incoming>) -> Reply {
    match request.uri().path() {
        "/" | "/total" => {
            let pieces = pieces(&query_value(request.uri(), "items").unwrap_or_default());
            let total_cents: u32 = pieces.iter().filter_map(|piece| price_cents(*piece)).sum();
            let body =
                json!({ "answered_by": answered_by(identity), "pieces": pieces.len(), "total_cents": total_cents });
            reply::json(StatusCode::OK, &body)
        }
        _ => reply::text(StatusCode::NOT_FOUND, "try /total?items=1,3"),
    }
}

/// The part of an identity that the page shows.
fn answered_by(identity: &Identity) -> Value {
    let Identity { pod, node, zone, version, .. } = identity;
    json!({ "pod": pod, "node": node, "zone": zone, "version": version })
}

/// The numbers in `1,3,3` that the shop sells, at most [`CART_PIECES_MAX`].
fn pieces(list: &str) -> Vec<u32> {
    list.split(',')
        .filter_map(|number| number.trim().parse().ok())
        .filter(|number| price_cents(*number).is_some())
        .take(CART_PIECES_MAX)
        .collect()
}

fn price_cents(number: u32) -> Option<u32> {
    GOODS.iter().find(|(it, _, _)| *it == number).map(|(_, _, cents)| *cents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cart_holds_only_what_is_sold_and_not_too_much() {
        assert_eq!(pieces("1,3, 3,99,x,,-1"), [1, 3, 3]);
        assert_eq!(pieces(&"1,".repeat(1_000)).len(), CART_PIECES_MAX);
        assert_eq!(pieces(""), [0_u32; 0]);
    }
}
