//! Structural OpenAPI v3 schemas: read once, then used for every object of the kind.
//!
//! Flow of a write: [`Schema::default`] → [`Schema::prune`] → [`Schema::validate`], which applies value rules, list types,
//! embedded objects and then the `x-kubernetes-validations` rules ([`crate::cel`]).
//!
//! Guarantees: never panics on any JSON; defaulting and pruning are idempotent; work is linear in the object, apart from
//! uniqueness of list items (a hash set) and rules (a cost budget).
//!
//! Deliberately absent: checks of the schema itself, which are in [`crate::definition`].
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>.

mod format;
mod lists;
mod rules;
mod transform;
mod validate;

use std::collections::BTreeMap;

use serde_json::{Number, Value};

pub(crate) use format::is_valid as is_format;

use crate::cel;
use crate::pattern::Pattern;
pub use rules::{COST_OF_OBJECT_MAX, COST_OF_RULE_MAX, Rule, RuleError};

/// Deepest nesting of a schema that is read; a definition deeper than this is refused.
pub const DEPTH_MAX: usize = 100;

/// The JSON types of OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `array`
    Array,
    /// `boolean`
    Boolean,
    /// `integer`
    Integer,
    /// `number`
    Number,
    /// `object`
    Object,
    /// `string`
    String,
}

impl Kind {
    /// From the word in a schema.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "array" => Self::Array,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "object" => Self::Object,
            "string" => Self::String,
            _ => return None,
        })
    }

    /// The word in a schema.
    pub fn word(self) -> &'static str {
        match self {
            Self::Array => "array",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Object => "object",
            Self::String => "string",
        }
    }
}

/// What a list is (`x-kubernetes-list-type`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// Its items are unique.
    Set,
    /// Its items are objects, unique by these keys.
    Map(Vec<String>),
}

/// `additionalProperties`.
#[derive(Debug)]
pub enum Additional {
    /// `true`: any value.
    Any,
    /// Values of this schema.
    Schema(Schema),
}

/// One node of a schema, ready for use.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)]
pub struct Schema {
    /// `type`; absent for int-or-string and where anything goes.
    pub kind: Option<Kind>,
    /// `format`, empty when absent.
    pub format: String,
    /// `nullable`
    pub nullable: bool,
    /// `x-kubernetes-int-or-string`
    pub int_or_string: bool,
    /// `x-kubernetes-preserve-unknown-fields`
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    /// `properties`
    pub properties: BTreeMap<String, Schema>,
    /// `additionalProperties`
    pub additional: Option<Box<Additional>>,
    /// `items`
    pub items: Option<Box<Schema>>,
    /// `default`
    pub default: Option<Value>,
    /// `x-kubernetes-list-type`
    pub list_type: ListType,
    /// `x-kubernetes-map-type: atomic`
    pub atomic_map: bool,
    /// Rules about the value itself, where there are any.
    pub(crate) limits: Option<Box<Limits>>,
    /// `x-kubernetes-validations`, in their order.
    pub(crate) rules: Vec<Rule>,
    /// Whether this node or one below has rules, so that all others are skipped.
    pub(crate) has_rules: bool,
}

/// Rules about a value that need no programs.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) pattern: Option<Pattern>,
    pub(crate) allowed: Option<Vec<Value>>,
    pub(crate) minimum: Option<Number>,
    pub(crate) maximum: Option<Number>,
    pub(crate) exclusive_minimum: bool,
    pub(crate) exclusive_maximum: bool,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) length_min: Option<u64>,
    pub(crate) length_max: Option<u64>,
    pub(crate) items_min: Option<u64>,
    pub(crate) items_max: Option<u64>,
    pub(crate) unique_items: bool,
    pub(crate) properties_min: Option<u64>,
    pub(crate) properties_max: Option<u64>,
    pub(crate) required: Vec<String>,
    pub(crate) all_of: Vec<Schema>,
    pub(crate) any_of: Vec<Schema>,
    pub(crate) one_of: Vec<Schema>,
    pub(crate) not: Option<Schema>,
}

/// Why a schema cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("{path}: the schema is nested deeper than {DEPTH_MAX} levels")]
    Depth {
        /// Where.
        path: String,
    },
    /// A `pattern` is not a regular expression.
    #[error("{path}.pattern: {reason}")]
    Pattern {
        /// Where.
        path: String,
        /// Why.
        reason: String,
    },
    /// A rule does not compile.
    #[error("{path}.x-kubernetes-validations[{index}]: {source}")]
    Rule {
        /// Where.
        path: String,
        /// Which of the rules.
        index: usize,
        /// Why.
        source: RuleError,
    },
}

impl Schema {
    /// Reads the schema of a version of a definition, which validation has accepted.
    ///
    /// # Errors
    /// The first pattern or rule that does not compile, or nesting that is too deep.
    pub fn compile(schema: &Value) -> Result<Self, SchemaError> {
        let mut root = Self::read(schema, "", 0)?;
        // The root is an object with `apiVersion`, `kind` and `metadata`, whether or not they are declared.
        root.embedded = true;
        Ok(root)
    }

    /// Reads a node without rules of programs: what is needed to look at the schema itself.
    pub(crate) fn outline(schema: &Value) -> Option<Self> {
        let mut root = Self::node(schema, "", 0, false).ok()?;
        root.embedded = true;
        Some(root)
    }

    fn read(schema: &Value, path: &str, depth: usize) -> Result<Self, SchemaError> {
        Self::node(schema, path, depth, true)
    }

    fn node(schema: &Value, path: &str, depth: usize, with_rules: bool) -> Result<Self, SchemaError> {
        if depth > DEPTH_MAX {
            return Err(SchemaError::Depth { path: path.to_owned() });
        }
        let flag = |name: &str| schema[name].as_bool().unwrap_or(false);
        let child = |schema: &Value, step: &str| Self::node(schema, &format!("{path}.{step}"), depth + 1, with_rules);
        let mut properties = BTreeMap::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            properties.insert(name.clone(), child(property, &format!("properties[{name}]"))?);
        }
        let additional = match &schema["additionalProperties"] {
            Value::Bool(true) => Some(Box::new(Additional::Any)),
            value @ Value::Object(_) => Some(Box::new(Additional::Schema(child(value, "additionalProperties")?))),
            _ => None,
        };
        let items = match &schema["items"] {
            value @ Value::Object(_) => Some(Box::new(child(value, "items")?)),
            _ => None,
        };
        let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
        let mut node = Self {
            kind: schema["type"].as_str().and_then(Kind::parse),
            format: schema["format"].as_str().unwrap_or_default().to_owned(),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            properties,
            additional,
            items,
            default: schema.get("default").cloned(),
            list_type: match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListType::Set,
                Some("map") => ListType::Map(keys.filter_map(Value::as_str).map(str::to_owned).collect()),
                _ => ListType::Atomic,
            },
            atomic_map: schema["x-kubernetes-map-type"] == "atomic",
            limits: Limits::read(schema, path, depth, with_rules)?.map(Box::new),
            rules: Vec::new(),
            has_rules: false,
        };
        if with_rules {
            node.add_rules(schema, path, depth)?;
        }
        node.has_rules = !node.rules.is_empty()
            || node.properties.values().any(|property| property.has_rules)
            || node.items.as_ref().is_some_and(|items| items.has_rules)
            || node.additional_schema().is_some_and(|values| values.has_rules);
        Ok(node)
    }

    fn add_rules(&mut self, schema: &Value, path: &str, depth: usize) -> Result<(), SchemaError> {
        let given = schema["x-kubernetes-validations"].as_array().map_or(&[][..], Vec::as_slice);
        if given.is_empty() {
            return Ok(());
        }
        let own_type = self.rule_type(depth == 0);
        for (index, rule) in given.iter().enumerate() {
            let rule = Rule::compile(rule, &own_type).map_err(|source| SchemaError::Rule {
                path: path.to_owned(),
                index,
                source,
            })?;
            self.rules.push(rule);
        }
        Ok(())
    }

    /// The type `self` has in rules of this node.
    pub(crate) fn rule_type(&self, root: bool) -> cel::Type {
        cel::schema_type(self, root).unwrap_or(cel::Type::Dyn)
    }

    /// The schema of values that are no declared properties.
    pub fn additional_schema(&self) -> Option<&Schema> {
        match self.additional.as_deref() {
            Some(Additional::Schema(schema)) => Some(schema),
            _ => None,
        }
    }

    /// The schema of a field of an object of this schema.
    pub fn field(&self, name: &str) -> Option<&Schema> {
        self.properties.get(name).or_else(|| self.additional_schema())
    }

    /// The node a chain of field names leads to.
    pub fn at(&self, names: &[&str]) -> Option<&Schema> {
        names.iter().try_fold(self, |schema, name| schema.field(name))
    }
}

impl Limits {
    fn read(schema: &Value, path: &str, depth: usize, with_rules: bool) -> Result<Option<Self>, SchemaError> {
        const WORDS: &[&str] = &[
            "pattern",
            "enum",
            "minimum",
            "maximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "uniqueItems",
            "minProperties",
            "maxProperties",
            "required",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
        ];
        if !WORDS.iter().any(|word| schema.get(word).is_some_and(|value| !value.is_null())) {
            return Ok(None);
        }
        let flag = |name: &str| schema[name].as_bool().unwrap_or(false);
        let count = |name: &str| schema[name].as_u64();
        let number = |name: &str| schema[name].as_number().cloned();
        let several = |name: &str| -> Result<Vec<Schema>, SchemaError> {
            let all = schema[name].as_array().into_iter().flatten().enumerate();
            all.map(|(i, one)| Schema::node(one, &format!("{path}.{name}[{i}]"), depth + 1, with_rules)).collect()
        };
        let pattern = match schema["pattern"].as_str() {
            None | Some("") => None,
            Some(text) => {
                crate::pattern::check(text).map_err(|reason| SchemaError::Pattern { path: path.to_owned(), reason })?;
                Some(Pattern::new(text))
            }
        };
        let not = match &schema["not"] {
            value @ Value::Object(_) => Some(Schema::node(value, &format!("{path}.not"), depth + 1, with_rules)?),
            _ => None,
        };
        Ok(Some(Self {
            pattern,
            allowed: schema["enum"].as_array().cloned(),
            minimum: number("minimum"),
            maximum: number("maximum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            multiple_of: schema["multipleOf"].as_f64(),
            length_min: count("minLength"),
            length_max: count("maxLength"),
            items_min: count("minItems"),
            items_max: count("maxItems"),
            unique_items: flag("uniqueItems"),
            properties_min: count("minProperties"),
            properties_max: count("maxProperties"),
            required: schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            all_of: several("allOf")?,
            any_of: several("anyOf")?,
            one_of: several("oneOf")?,
            not,
        }))
    }
}

#[cfg(test)]
mod tests;
