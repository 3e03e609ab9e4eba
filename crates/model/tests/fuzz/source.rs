//! Bytes as a source of JSON and text: every string of bytes stands for some value, so that no input is wasted on syntax.

use serde_json::{Map, Number, Value};

/// Words the code under test looks at.
const WORDS: &[&str] = &[
    "apiVersion",
    "apps/v1",
    "kind",
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "managedFields",
    "fieldsV1",
    "fieldsType",
    "FieldsV1",
    "operation",
    "Apply",
    "Update",
    "manager",
    "subresource",
    "time",
    "spec",
    "status",
    "replicas",
    "selector",
    "matchLabels",
    "template",
    "containers",
    "env",
    "ports",
    "containerPort",
    "protocol",
    "TCP",
    "image",
    "args",
    "volumes",
    "nodeSelector",
    "tolerations",
    "strategy",
    "rollingUpdate",
    "conditions",
    "type",
    "a",
    "b",
    "c",
    ".",
    "f:spec",
    "f:a",
    "k:{\"name\":\"a\"}",
    "k:{\"name\":\"b\"}",
    "v:\"a\"",
    "i:0",
    "k:{",
    "$patch",
    "replace",
    "delete",
    "merge",
    "$retainKeys",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "op",
    "path",
    "from",
    "value",
    "add",
    "remove",
    "copy",
    "move",
    "test",
    "/spec",
    "/spec/containers/0",
    "/spec/containers/-",
    "/a",
    "/a/b",
    "/metadata/labels/a",
    "",
    "kubectl.kubernetes.io/last-applied-configuration",
    "2026-01-01T00:00:00Z",
];

/// Deepest nesting of a value.
const DEPTH_MAX: usize = 8;

/// What is left of the bytes; nothing more gives zeroes.
pub(crate) struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> i64 {
        i64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// A word the code knows, or a few bytes as text.
    pub(crate) fn word(&mut self) -> String {
        match self.byte() {
            byte if byte < 240 => WORDS[usize::from(byte) % WORDS.len()].to_owned(),
            byte => self.text(usize::from(byte - 239)),
        }
    }

    /// So many bytes as text.
    pub(crate) fn text(&mut self, length: usize) -> String {
        let (text, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    /// All that is left, as text.
    pub(crate) fn rest(self) -> String {
        String::from_utf8_lossy(self.0).into_owned()
    }

    pub(crate) fn value(&mut self) -> Value {
        self.value_at(0)
    }

    fn value_at(&mut self, depth: usize) -> Value {
        let byte = self.byte();
        match byte % 16 {
            0 => Value::Null,
            1 => Value::Bool(byte > 127),
            2 => Value::from(self.number()),
            3 => Number::from_f64(f64::from_bits(self.number() as u64)).map_or(Value::Null, Value::Number),
            4 | 5 => Value::from(byte / 16),
            8..=10 if depth < DEPTH_MAX => (0..byte / 16 % 5).map(|_| self.value_at(depth + 1)).collect(),
            11.. if depth < DEPTH_MAX => Value::Object(
                (0..byte / 16 % 6).map(|_| (self.word(), self.value_at(depth + 1))).collect::<Map<_, _>>(),
            ),
            _ => Value::String(self.word()),
        }
    }

    /// An object, with an identity as stored ones have.
    pub(crate) fn object(&mut self, kind: &str) -> Value {
        let mut object = Map::new();
        for _ in 0..self.byte() % 6 {
            object.insert(self.word(), self.value_at(1));
        }
        object.insert("apiVersion".to_owned(), "apps/v1".into());
        object.insert("kind".to_owned(), kind.into());
        if !object.get("metadata").is_some_and(Value::is_object) {
            object.insert("metadata".to_owned(), serde_json::json!({"name": "a"}));
        }
        Value::Object(object)
    }
}
