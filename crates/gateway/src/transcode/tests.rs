//! Descriptors are written by hand, field by field (`google/protobuf/descriptor.proto`), so that no compiler is needed.
#![allow(clippy::unwrap_used)]

use super::*;

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 128 {
        out.push((number % 128) as u8 | 128);
        number /= 128;
    }
    out.push(number as u8);
}

/// A field with bytes.
fn bytes(number: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(number << 3 | 2, &mut out);
    varint(value.len() as u64, &mut out);
    out.extend_from_slice(value);
    out
}

fn text(number: u64, value: &str) -> Vec<u8> {
    bytes(number, value.as_bytes())
}

/// A field with a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(value, &mut out);
    out
}

/// A field of a message: its label (1 optional, 3 repeated) and type.
fn field(name: &str, at: u64, label: u64, kind: u64, type_name: &str) -> Vec<u8> {
    let mut all = [text(1, name), number(3, at), number(4, label), number(5, kind)].concat();
    if !type_name.is_empty() {
        all.extend(text(6, type_name));
    }
    bytes(2, &all)
}

fn message(name: &str, fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(4, &[text(1, name), fields.concat()].concat())
}

/// A method of messages `Book` to `Book`; `rule` is its annotation.
fn method(name: &str, rule: &[u8], streams: bool) -> Vec<u8> {
    let mut all = [text(1, name), text(2, ".shop.Book"), text(3, ".shop.Book")].concat();
    if !rule.is_empty() {
        all.extend(bytes(4, &bytes(72_295_728, rule)));
    }
    all.extend(number(6, u64::from(streams)));
    bytes(2, &all)
}

fn descriptors() -> Vec<u8> {
    let strings = |names: &[(&str, u64)]| names.iter().map(|(name, at)| field(name, *at, 1, 9, "")).collect::<Vec<_>>();
    let rule = [
        strings(&[("selector", 1), ("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 6), ("body", 7)]),
        vec![field("additional_bindings", 11, 3, 11, ".google.api.HttpRule")],
        strings(&[("response_body", 12)]),
    ];
    let http = [
        text(1, "google/api/http.proto"),
        text(2, "google.api"),
        message("HttpRule", &rule.concat()),
        text(12, "proto3"),
    ];
    let extension = [
        text(1, "http"),
        text(2, ".google.protobuf.MethodOptions"),
        number(3, 72_295_728),
        number(4, 1),
        number(5, 11),
        text(6, ".google.api.HttpRule"),
    ];
    let annotations = [
        text(1, "google/api/annotations.proto"),
        text(2, "google.api"),
        text(3, "google/api/http.proto"),
        text(3, "google/protobuf/descriptor.proto"),
        bytes(7, &extension.concat()),
        text(12, "proto3"),
    ];
    let book = [
        field("id", 1, 1, 3, ""),
        field("book_title", 2, 1, 9, ""),
        field("tags", 3, 3, 9, ""),
        field("sold", 4, 1, 8, ""),
        field("author", 5, 1, 11, ".shop.Author"),
    ];
    let create = [text(4, "/v1/books"), text(7, "*")].concat();
    let get = [text(2, "/v1/books/{id}"), bytes(11, &text(2, "/v1/{author.name=authors/*}/book"))].concat();
    let author = [text(6, "/v1/books/{id}/author"), text(7, "author"), text(12, "author")].concat();
    let service = [
        text(1, "Books"),
        method("Create", &create, false),
        method("Get", &get, false),
        method("SetAuthor", &author, false),
        method("List", &text(2, "/v1/books"), true),
    ];
    let shop = [
        text(1, "shop.proto"),
        text(2, "shop"),
        text(3, "google/api/annotations.proto"),
        message("Author", &[field("name", 1, 1, 9, "")]),
        message("Book", &book),
        bytes(6, &service.concat()),
        text(12, "proto3"),
    ];
    let known = DescriptorPool::global().get_file_by_name("google/protobuf/descriptor.proto").unwrap();
    let known = known.file_descriptor_proto().encode_to_vec();
    [known, http.concat(), annotations.concat(), shop.concat()].iter().flat_map(|file| bytes(1, file)).collect()
}

/// The message of a request, read back as JSON, and its gRPC path.
fn asked(method: &Method, path: &str, query: Option<&str>, body: &str) -> Result<(String, Value), TranscodeError> {
    let transcoder = Transcoder::new(&descriptors()).unwrap();
    let call = transcoder.find(method, path).unwrap();
    let message = call.request(query, body.as_bytes())?;
    assert_eq!(message.len(), PREFIX_BYTES + u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize);
    let book = DynamicMessage::decode(call.binding.target.input(), &message[PREFIX_BYTES..]).unwrap();
    Ok((call.path(), serde_json::to_value(&book).unwrap()))
}

#[test]
fn requests_become_messages() {
    let book = json!({"id": "7", "bookTitle": "T", "tags": ["a", "b"], "sold": true, "author": {"name": "N"}});
    let (path, seen) = asked(&Method::POST, "/v1/books", None, &book.to_string()).unwrap();
    assert_eq!((path.as_str(), &seen), ("/shop.Books/Create", &book));
    let (path, seen) = asked(&Method::POST, "/shop.Books/Get", None, r#"{"id": 7}"#).unwrap();
    assert_eq!((path.as_str(), seen), ("/shop.Books/Get", json!({"id": "7"})));
    let query = Some("bookTitle=a%20b+c&tags=x&tags=y&sold=true&author.name=N");
    let (_, seen) = asked(&Method::GET, "/v1/books/9", query, "").unwrap();
    let wanted = json!({"id": "9", "bookTitle": "a b c", "tags": ["x", "y"], "sold": true, "author": {"name": "N"}});
    assert_eq!(seen, wanted);
    let (_, seen) = asked(&Method::GET, "/v1/authors/5/book", None, "").unwrap();
    assert_eq!(seen, json!({"author": {"name": "authors/5"}}));
    let (_, seen) = asked(&Method::PATCH, "/v1/books/9/author", None, r#"{"name": "M"}"#).unwrap();
    assert_eq!(seen, json!({"id": "9", "author": {"name": "M"}}));
}

#[test]
fn what_does_not_fit_is_refused_with_a_reason() {
    for (path, query, body, wanted) in [
        ("/v1/books", None, "{", "EOF"),
        ("/v1/books", None, "[]", "no JSON object"),
        ("/v1/books", None, r#"{"nothing": 1}"#, "nothing"),
        ("/v1/books", None, r#"{"id": "x"}"#, "invalid digit"),
    ] {
        let error = asked(&Method::POST, path, query, body).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains("shop.Book"), "{body}: {error}");
    }
    for query in ["sold=maybe", "nothing=1", "id.x=1"] {
        assert!(asked(&Method::GET, "/v1/books/1", Some(query), "").is_err(), "{query}");
    }
    let transcoder = Transcoder::new(&descriptors()).unwrap();
    assert!(transcoder.find(&Method::DELETE, "/v1/books").is_none());
    for broken in [b"".as_slice(), b"x", &descriptors()[..100]] {
        assert!(Transcoder::new(broken).is_err());
    }
}

#[test]
fn messages_become_answers() {
    let transcoder = Transcoder::new(&descriptors()).unwrap();
    let message = |id: u8| [0, 0, 0, 0, 2, 8, id];
    let answer = |method: &Method, path: &str, body: &[u8]| {
        let call = transcoder.find(method, path).unwrap();
        call.answer(body).map(|it| String::from_utf8(it).unwrap()).map_err(|error| error.to_string())
    };
    assert_eq!(answer(&Method::GET, "/v1/books/1", &message(1)).unwrap(), r#"{"id":"1"}"#);
    let two = [message(1), message(2)].concat();
    assert_eq!(answer(&Method::GET, "/v1/books", &two).unwrap(), r#"[{"id":"1"},{"id":"2"}]"#);
    assert_eq!(answer(&Method::GET, "/v1/books", &[]).unwrap(), "[]");
    let named = [0, 0, 0, 0, 5, 42, 3, 10, 1, b'N'];
    assert_eq!(answer(&Method::PATCH, "/v1/books/1/author", &named).unwrap(), r#"{"name":"N"}"#);
    for (body, wanted) in [
        (&two[..], "2 messages"),
        (&[][..], "0 messages"),
        (&two[..6], "cut off"),
        (&[1, 0, 0, 0, 0][..], "compressed"),
    ] {
        assert!(answer(&Method::GET, "/v1/books/1", body).unwrap_err().contains(wanted), "{wanted}");
    }
}

#[test]
fn errors_have_their_status() {
    let headers: HeaderMap = [("grpc-status", "5"), ("grpc-message", "no%20book")]
        .into_iter()
        .map(|(name, value)| (http::header::HeaderName::from_static(name), value.parse().unwrap()))
        .collect();
    let (code, message) = status(&headers).unwrap();
    assert_eq!((http_status(code), message.as_str()), (StatusCode::NOT_FOUND, "no book"));
    assert_eq!(error_json(code, &message), br#"{"code":5,"message":"no book"}"#);
    assert!(status(&HeaderMap::new()).is_none());
}
