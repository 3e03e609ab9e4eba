//! Label selectors and field selectors.
//!
//! Role: the two query languages of list and watch. A label selector comes as text in a query (`a=b,c!=d,e in (x,y)`)
//! or as a LabelSelector object in a spec; both become one [`LabelSelector`].
//!
//! Guarantees: text, objects and [`std::fmt::Display`] agree: parsing what was displayed gives the same selector.
//!
//! Source: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors> and
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/field-selectors/>.

mod field;
mod parse;

use std::fmt;

use serde_json::{Map, Value};

pub use field::{FieldSelector, supported_fields};

use crate::meta::names;

/// Longest selector text that is read, in bytes.
pub const TEXT_MAX: usize = 64 * 1024;

/// Why a selector was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text does not follow the grammar.
    #[error("unable to parse requirement: {0}")]
    Parse(String),
    /// A key or value breaks the rules of labels.
    #[error("{key}: Invalid value: {value:?}: {reason}")]
    Invalid {
        /// `key` or `values[0]`-like place.
        key: &'static str,
        /// What was refused.
        value: String,
        /// The rule.
        reason: String,
    },
    /// An operator of matchExpressions that does not exist.
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
    /// In and NotIn need values, Exists and DoesNotExist must have none.
    #[error(
        "values: Invalid value: for 'in', 'notin' operators, values set can't be empty; for exists, it must be empty"
    )]
    Values,
    /// The field cannot be selected on for this kind, though others can.
    #[error("field label not supported: {0}")]
    UnsupportedField(String),
    /// Objects of this kind can be selected on by nothing but name and namespace.
    #[error("{0:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")]
    UnknownField(String),
    /// The text of a field selector does not follow the grammar.
    #[error("invalid selector: '{text}'; can't understand '{term}'")]
    FieldParse {
        /// The whole selector.
        text: String,
        /// The part that could not be read.
        term: String,
    },
    /// The text is longer than [`TEXT_MAX`].
    #[error("the selector is longer than {TEXT_MAX} bytes")]
    TooLong,
}

/// What one requirement asks of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operator {
    /// The label is there with one of the values.
    In,
    /// The label is absent, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label is an integer above the value.
    GreaterThan,
    /// The label is an integer below the value.
    LessThan,
}

/// Whether a node selector's expression holds for the value found under its key, absent as `None`. Besides the operators of
/// label selectors it knows `Gt` and `Lt`; what cannot be understood does not hold.
///
/// Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#operators>.
pub fn node_expression(operator: &str, values: &[String], found: Option<&str>) -> bool {
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let bound = number(values.first().map(String::as_str));
    match operator {
        "In" => found.is_some_and(|found| values.iter().any(|value| value == found)),
        "NotIn" => found.is_none_or(|found| values.iter().all(|value| value != found)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => matches!((number(found), bound), (Some(found), Some(bound)) if found > bound),
        "Lt" => matches!((number(found), bound), (Some(found), Some(bound)) if found < bound),
        _ => false,
    }
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Condition.
    pub operator: Operator,
    /// Values, sorted and unique.
    pub values: Vec<String>,
}

impl Requirement {
    /// A requirement, checked against the rules of labels.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        if let Some(reason) = names::check_qualified_name(key).into_iter().next() {
            return Err(SelectorError::Invalid { key: "key", value: key.to_owned(), reason });
        }
        let wanted = match operator {
            Operator::In | Operator::NotIn => !values.is_empty(),
            Operator::Exists | Operator::DoesNotExist => values.is_empty(),
            Operator::GreaterThan | Operator::LessThan => values.len() == 1 && values[0].parse::<i64>().is_ok(),
        };
        if !wanted {
            return Err(SelectorError::Values);
        }
        for value in &values {
            if let Some(reason) = names::check_label_value(value).into_iter().next() {
                return Err(SelectorError::Invalid { key: "values", value: value.clone(), reason });
            }
        }
        values.sort();
        values.dedup();
        Ok(Self { key: key.to_owned(), operator, values })
    }

    /// Whether the label's value, absent as `None`, fulfils it.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let one_of = |value: &str| self.values.iter().any(|wanted| wanted == value);
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = || self.values.first().and_then(|text| number(text));
        match self.operator {
            Operator::In => value.is_some_and(one_of),
            Operator::NotIn => !value.is_some_and(one_of),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => value.and_then(number).zip(bound()).is_some_and(|(value, bound)| value > bound),
            Operator::LessThan => value.and_then(number).zip(bound()).is_some_and(|(value, bound)| value < bound),
        }
    }
}

/// A conjunction of requirements on labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSelector {
    /// Sorted by key; `None` selects nothing.
    requirements: Option<Vec<Requirement>>,
}

impl LabelSelector {
    /// Selects every object.
    pub const fn everything() -> Self {
        Self { requirements: Some(Vec::new()) }
    }

    /// Selects no object.
    pub const fn nothing() -> Self {
        Self { requirements: None }
    }

    /// From requirements; none selects everything.
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort();
        Self { requirements: Some(requirements) }
    }

    /// From the text of a `labelSelector` query parameter; empty selects everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > TEXT_MAX {
            return Err(SelectorError::TooLong);
        }
        parse::requirements(text).map(Self::new)
    }

    /// From a LabelSelector object (`matchLabels`, `matchExpressions`).
    ///
    /// An absent (`null`) selector selects nothing, an empty one everything, as everywhere in the Kubernetes API.
    pub fn from_object(object: &Value) -> Result<Self, SelectorError> {
        if object.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Self::from_map(&object["matchLabels"])?.requirements.unwrap_or_default();
        for expression in object["matchExpressions"].as_array().into_iter().flatten() {
            let word = expression["operator"].as_str().unwrap_or_default();
            let operator = match word {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return Err(SelectorError::Operator(word.to_owned())),
            };
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(|value| value.as_str().map(str::to_owned)).collect();
            requirements.push(Requirement::new(expression["key"].as_str().unwrap_or_default(), operator, values)?);
        }
        Ok(Self::new(requirements))
    }

    /// From a plain map of labels, as in a Service's `spec.selector`; an empty or absent map selects everything here,
    /// so callers for whom it means nothing (Services) check first.
    pub fn from_map(map: &Value) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in map.as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::In, vec![value])?);
        }
        Ok(Self::new(requirements))
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether it selects nothing at all.
    pub fn is_nothing(&self) -> bool {
        self.requirements.is_none()
    }

    /// Its requirements.
    pub fn requirements(&self) -> &[Requirement] {
        self.requirements.as_deref().unwrap_or_default()
    }

    /// Whether it selects an object with these labels (`metadata.labels`, absent as `None`).
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str))
    }

    /// Whether it selects an object whose labels are found by `label`.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        match &self.requirements {
            Some(all) => all.iter().all(|requirement| requirement.matches(label(&requirement.key))),
            None => false,
        }
    }

    /// Whether it selects this object.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(crate::meta::labels(object))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match (self.operator, self.values.as_slice()) {
            (Operator::In, [value]) => write!(f, "{key}={value}"),
            (Operator::NotIn, [value]) => write!(f, "{key}!={value}"),
            (Operator::In, values) => write!(f, "{key} in ({})", values.join(",")),
            (Operator::NotIn, values) => write!(f, "{key} notin ({})", values.join(",")),
            (Operator::Exists, _) => f.write_str(key),
            (Operator::DoesNotExist, _) => write!(f, "!{key}"),
            (Operator::GreaterThan, values) => write!(f, "{key}>{}", values.join("")),
            (Operator::LessThan, values) => write!(f, "{key}<{}", values.join("")),
        }
    }
}

impl fmt::Display for LabelSelector {
    /// As in a query. A selector of nothing is shown as `<none>`, which does not parse.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(requirements) = &self.requirements else { return f.write_str("<none>") };
        for (i, requirement) in requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
