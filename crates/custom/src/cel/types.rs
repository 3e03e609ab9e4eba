//! Types of expressions, what they are called, and how the schema of an object becomes one.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/#type-system-integration>,
//! <https://kubernetes.io/docs/reference/using-api/cel/#escaping>.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::schema::{Kind, ListType, Schema};

/// The type of an expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// Known only when evaluated.
    Dyn,
    /// `null`
    Null,
    /// `bool`
    Bool,
    /// `int`, 64 bits.
    Int,
    /// `uint`, 64 bits.
    Uint,
    /// `double`
    Double,
    /// `string`
    String,
    /// `bytes`
    Bytes,
    /// `google.protobuf.Duration`
    Duration,
    /// `google.protobuf.Timestamp`
    Timestamp,
    /// `list(T)`
    List(Arc<ListShape>),
    /// `map(K, V)`
    Map(Arc<(Type, Type)>),
    /// An object with declared fields.
    Object(Arc<ObjectType>),
    /// `optional_type(T)`
    Optional(Arc<Type>),
    /// An object that an expression makes, by the name it is made with: `Object.spec`, `JSONPatch`.
    Message(Arc<str>),
    /// The type of types.
    Type,
    /// A type of a library, for example `kubernetes.Quantity`.
    Opaque(&'static str),
    /// A type that a signature leaves open.
    Parameter(u8),
}

/// The type of the variable `authorizer`.
pub const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
/// The type of its field `requestResource`.
pub(super) const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";
/// The name of the object that a configuration is made as.
pub const OBJECT: &str = "Object";
/// The name of one operation of a JSON patch.
pub const JSON_PATCH: &str = "JSONPatch";

/// What a list holds, and how two of them are compared and joined.
#[derive(Debug, Clone, PartialEq)]
pub struct ListShape {
    /// Type of the items.
    pub item: Type,
    /// Lists that are sets or maps ignore the order of their items.
    pub kind: ListType,
}

/// The fields of an object by the names they have in expressions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObjectType {
    /// Fields by their escaped names.
    pub fields: BTreeMap<String, Field>,
}

/// One field.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name in the object.
    pub name: String,
    /// Its type.
    pub field_type: Type,
}

impl Type {
    /// `list(T)`, atomic.
    pub fn list(item: Type) -> Self {
        Self::List(Arc::new(ListShape { item, kind: ListType::Atomic }))
    }

    /// `map(K, V)`
    pub fn map(key: Type, value: Type) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    /// `optional_type(T)`
    pub fn optional(inner: Type) -> Self {
        Self::Optional(Arc::new(inner))
    }

    /// An object with these fields, by their plain names.
    pub fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Type)>) -> Self {
        let field = |(name, field_type): (&str, Type)| (name.to_owned(), Field { name: name.to_owned(), field_type });
        let fields = fields.into_iter().map(field);
        Self::Object(Arc::new(ObjectType { fields: fields.collect() }))
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dyn => "dyn",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "google.protobuf.Duration",
            Self::Timestamp => "google.protobuf.Timestamp",
            Self::Type => "type",
            Self::Object(_) => "object",
            Self::Opaque(name) => name,
            Self::Message(name) => name,
            Self::Parameter(number) => return write!(f, "{}", char::from(b'A' + number)),
            Self::List(shape) => return write!(f, "list({})", shape.item),
            Self::Map(entry) => return write!(f, "map({}, {})", entry.0, entry.1),
            Self::Optional(inner) => return write!(f, "optional_type({inner})"),
        })
    }
}

/// Words of the language, which as names of fields get underscores around them.
const WORDS: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
];

/// The name of a field in expressions, or none when it cannot be written as one.
pub(crate) fn escape(name: &str) -> Option<String> {
    if WORDS.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let first = name.chars().next()?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    if first.is_ascii_digit() || !name.chars().all(good) {
        return None;
    }
    let mut escaped = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let (word, used) = match c {
            '_' if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            _ => (&rest[..1], 1),
        };
        escaped.push_str(word);
        rest = &rest[used..];
    }
    Some(escaped)
}

/// The name of a field in the object for its name in an expression.
pub(crate) fn unescape(name: &str) -> String {
    if let Some(word) =
        name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__")).filter(|word| WORDS.contains(word))
    {
        return word.to_owned();
    }
    let pairs = [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")];
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    'next: while !rest.is_empty() {
        for (word, character) in pairs {
            if let Some(after) = rest.strip_prefix(word) {
                plain.push_str(character);
                rest = after;
                continue 'next;
            }
        }
        let end = rest.chars().next().map_or(1, char::len_utf8);
        plain.push_str(&rest[..end]);
        rest = &rest[end..];
    }
    plain
}

/// The type of values of a schema; none where nothing is known of them, so that expressions cannot reach them.
///
/// `root` adds `apiVersion`, `kind` and `metadata` (name and generateName), as embedded objects have them.
pub(crate) fn schema_type(schema: &Schema, root: bool) -> Option<Type> {
    if schema.int_or_string {
        return Some(Type::Dyn);
    }
    let plain = match schema.kind? {
        Kind::Boolean => Type::Bool,
        Kind::Integer => Type::Int,
        Kind::Number => Type::Double,
        Kind::String => match schema.format.as_str() {
            "byte" => Type::Bytes,
            "duration" => Type::Duration,
            "date" | "date-time" => Type::Timestamp,
            _ => Type::String,
        },
        Kind::Array => {
            let item = schema_type(schema.items.as_deref()?, false)?;
            Type::List(Arc::new(ListShape { item, kind: schema.list_type.clone() }))
        }
        Kind::Object if schema.additional.is_some() => {
            Type::map(Type::String, schema_type(schema.additional_schema()?, false)?)
        }
        Kind::Object => return Some(object_type(schema, root || schema.embedded)),
    };
    Some(plain)
}

fn object_type(schema: &Schema, resource: bool) -> Type {
    let mut object = ObjectType::default();
    let mut add = |name: &str, field_type: Type| {
        if let Some(escaped) = escape(name) {
            object.fields.insert(escaped, Field { name: name.to_owned(), field_type });
        }
    };
    for (name, property) in &schema.properties {
        if let Some(field_type) = schema_type(property, false) {
            add(name, field_type);
        }
    }
    if resource {
        add("apiVersion", Type::String);
        add("kind", Type::String);
        add("metadata", Type::object([("name", Type::String), ("generateName", Type::String)]));
    }
    Type::Object(Arc::new(object))
}

/// Reads a type in a signature: `int`, `list<A>`, `map<string, B>`, `optional<A>`, `Quantity`.
pub(super) fn parse_type(text: &str) -> Type {
    let text = text.trim();
    let inner = |prefix: &str| text.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('>'));
    if let Some(item) = inner("list<") {
        return Type::list(parse_type(item));
    }
    if let Some(item) = inner("optional<") {
        return Type::optional(parse_type(item));
    }
    if let Some((key, value)) = inner("map<").and_then(|entry| entry.split_once(',')) {
        return Type::map(parse_type(key), parse_type(value));
    }
    match text {
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "type" => Type::Type,
        "A" => Type::Parameter(0),
        "B" => Type::Parameter(1),
        "Quantity" => Type::Opaque("kubernetes.Quantity"),
        "URL" => Type::Opaque("kubernetes.URL"),
        "IP" => Type::Opaque("net.IP"),
        "CIDR" => Type::Opaque("net.CIDR"),
        "Semver" => Type::Opaque("kubernetes.Semver"),
        "Authorizer" => Type::Opaque(AUTHORIZER),
        "PathCheck" => Type::Opaque("kubernetes.authorization.PathCheck"),
        "GroupCheck" => Type::Opaque("kubernetes.authorization.GroupCheck"),
        "ResourceCheck" => Type::Opaque(RESOURCE_CHECK),
        "Decision" => Type::Opaque("kubernetes.authorization.Decision"),
        "Format" => Type::Opaque("kubernetes.NamedFormat"),
        _ => Type::Dyn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_as_documented() {
        for (plain, escaped) in [
            ("namespace", "__namespace__"),
            ("x-prop", "x__dash__prop"),
            ("redact__d", "redact__underscores__d"),
            ("string", "string"),
            ("a.b/c", "a__dot__b__slash__c"),
        ] {
            assert_eq!(escape(plain).as_deref(), Some(escaped));
            assert_eq!(unescape(escaped), plain);
        }
        assert_eq!(escape("1a"), None);
        assert_eq!(escape("a b"), None);
    }
}
