//! The page as HTML: what is sold, what is in the cart, and which pod of each service said so.

use std::fmt::Write as _;

use serde_json::Value;

/// Renders what `front` composed. Text from other services is escaped.
pub(crate) fn render(content: &Value) -> String {
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>The shop</title></head><body>\n\
         <h1>The shop</h1>\n<ul>\n",
    );
    for item in content["catalogue"]["items"].as_array().into_iter().flatten() {
        let number = item["number"].as_u64().unwrap_or_default();
        let (name, price) = (escaped(&item["name"]), euros(&item["price_cents"]));
        let _ = writeln!(
            page,
            "<li><form method=\"post\" action=\"/add?item={number}\">{name} – {price} <button>add</button></form></li>"
        );
    }
    let (pieces, total) = (content["cart"]["pieces"].as_u64().unwrap_or_default(), &content["cart"]["total_cents"]);
    let _ = writeln!(page, "</ul>\n<p>In the cart: {pieces} pieces, {}.</p>\n<pre>", euros(total));
    for service in ["front", "catalogue", "cart"] {
        let _ = writeln!(page, "{}", answered_by(service, &content[service]));
    }
    page.push_str("</pre></body></html>\n");
    page
}

/// One line such as `catalogue  catalogue-6d5f…-x2x8q on node-2`.
fn answered_by(service: &str, answer: &Value) -> String {
    if answer["error"].is_string() {
        return format!("{service:<10} unavailable: {}", escaped(&answer["error"]));
    }
    let from = &answer["answered_by"];
    let mut line = format!("{service:<10} {}", escaped(&from["pod"]));
    for (before, key) in [(" on ", "node"), (" in ", "zone"), (", version ", "version")] {
        if from[key].as_str().is_some_and(|it| !it.is_empty()) {
            let _ = write!(line, "{before}{}", escaped(&from[key]));
        }
    }
    line
}

fn euros(cents: &Value) -> String {
    let cents = cents.as_u64().unwrap_or_default();
    format!("€{}.{:02}", cents / 100, cents % 100)
}

fn escaped(text: &Value) -> String {
    text.as_str().unwrap_or_default().replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_names_who_answered_and_escapes_it() {
        let page = render(&json!({
            "front": { "answered_by": { "pod": "front-1", "node": "node-1", "zone": "", "version": "" } },
            "catalogue": { "items": [{ "number": 1, "name": "<rope>", "price_cents": 2490 }],
                           "answered_by": { "pod": "catalogue-1", "node": "node-2", "zone": "zone-b", "version": "2" } },
            "cart": { "error": "no connection" },
        }));
        for part in [
            "front      front-1 on node-1\n",
            "catalogue  catalogue-1 on node-2 in zone-b, version 2\n",
            "cart       unavailable: no connection\n",
            "&lt;rope> – €24.90",
        ] {
            assert!(page.contains(part), "{part:?} not in {page}");
        }
    }
}
