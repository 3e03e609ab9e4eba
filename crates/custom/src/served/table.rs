//! Tables of custom resources: the columns their definition asks for.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#additional-printer-columns>.

use jiff::Timestamp;
use mainstay_model::meta;
use serde_json::{Value, json};

use super::Version;
use crate::jsonpath::JsonPath;

/// A column of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    path: JsonPath,
}

/// The columns of a version; the age when it names none.
pub(super) fn columns(version: &Value) -> Vec<Column> {
    let given = version["additionalPrinterColumns"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |column: &Value, field: &str| column[field].as_str().unwrap_or_default().to_owned();
    let read = |column: &Value| {
        let path = text(column, "jsonPath");
        let description = text(column, "description");
        let otherwise = || format!("Custom resource definition column (in JSONPath format): {path}");
        Some(Column {
            name: text(column, "name"),
            kind: text(column, "type"),
            format: text(column, "format"),
            description: if description.is_empty() { otherwise() } else { description },
            priority: column["priority"].as_i64().unwrap_or(0),
            path: JsonPath::parse(&path).ok()?,
        })
    };
    if given.is_empty() {
        let age = json!({
            "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
            "description": "Time since the object was created.",
        });
        return read(&age).into_iter().collect();
    }
    given.iter().filter_map(read).collect()
}

impl Version {
    /// `columnDefinitions` of a table.
    pub fn column_definitions(&self) -> Vec<Value> {
        let name = json!({
            "name": "Name", "type": "string", "format": "name", "priority": 0,
            "description": "Name of the object, unique in its namespace.",
        });
        let others = self.columns.iter().map(|column| {
            json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        });
        std::iter::once(name).chain(others).collect()
    }

    /// The cells of one object at `now`, one for each column.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let others = self.columns.iter().map(|column| column.cell(object, now));
        std::iter::once(json!(meta::name(object))).chain(others).collect()
    }
}

impl Column {
    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let found = self.path.find(object);
        let Some(first) = found.first().filter(|value| !value.is_null()) else { return Value::Null };
        match self.kind.as_str() {
            "integer" => match first.as_i64() {
                Some(whole) => json!(whole),
                None => first.as_f64().map_or(Value::Null, |number| json!(number as i64)),
            },
            "number" if first.is_number() => (*first).clone(),
            "boolean" if first.is_boolean() => (*first).clone(),
            "string" => {
                let texts = found.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
                json!(texts.collect::<Vec<_>>().join(" "))
            }
            "date" => match first.as_str().map(meta::parse_time) {
                Some(Some(time)) => json!(meta::age(time, now)),
                Some(None) => json!("<invalid>"),
                None => Value::Null,
            },
            _ => Value::Null,
        }
    }
}
