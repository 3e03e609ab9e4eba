//! Whether an object that came from outside has the shape of its type, and the object in that shape.
//!
//! Flow: walk object and type together → a value of the wrong JSON type ends the walk with the sentence a Go decoder would
//! say → unknown fields are taken out and told → nulls are taken out, quantities become canonical text.
//!
//! Guarantees: what is left has only known fields of the right JSON types; a second walk changes nothing. Deliberately
//! absent: required fields and the rules of values, which [`crate::validate`] knows.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#field-validation>, and the observable answers of
//! kube-apiserver.

use serde_json::{Map, Value};

use crate::quantity::Quantity;
use crate::schema::{Field, Scalar, Shape, fields};

/// Most unknown fields that are told.
const UNKNOWN_MAX: usize = 100;

/// A value whose JSON type does not fit, in the words of a Go decoder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Mismatch(String);

/// Brings `object` into the shape of `type_name`; answers the unknown fields it had, with their paths.
///
/// Types that the schema does not know are left as they are.
///
/// # Errors
/// The first value of a wrong JSON type.
pub fn conform(type_name: &str, object: &mut Value) -> Result<Vec<String>, Mismatch> {
    let mut walk = Walk { unknown: Vec::new() };
    if let Some(fields) = fields(type_name) {
        let root = Place { parent: None, step: Step::Root };
        walk.object(type_name, fields, object, &root, type_name)?;
    }
    Ok(walk.unknown)
}

struct Walk {
    unknown: Vec<String>,
}

/// Where the walk is; made into text only when somebody must be told.
struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl Place<'_> {
    /// `spec.containers[0].image`.
    fn path(&self) -> String {
        let before = self.parent.map(Place::path).unwrap_or_default();
        match self.step {
            Step::Root => before,
            Step::Field(name) if before.is_empty() => name.to_owned(),
            Step::Field(name) => format!("{before}.{name}"),
            Step::Index(index) => format!("{before}[{index}]"),
            Step::Key(key) => format!("{before}.{key}"),
        }
    }

    /// The path as a Go decoder says it: without indexes and keys.
    fn fields(&self) -> String {
        let before = self.parent.map(Place::fields).unwrap_or_default();
        match self.step {
            Step::Field(name) if before.is_empty() => name.to_owned(),
            Step::Field(name) => format!("{before}.{name}"),
            _ => before,
        }
    }
}

impl Walk {
    fn object(
        &mut self,
        type_name: &str,
        fields: &'static [Field],
        value: &mut Value,
        place: &Place<'_>,
        owner: &str,
    ) -> Result<(), Mismatch> {
        let Value::Object(map) = value else { return Err(mismatch(value, place, owner, &go_name(type_name))) };
        let mut leave = false;
        for (name, value) in map.iter_mut() {
            let here = Place { parent: Some(place), step: Step::Field(name) };
            match fields.iter().find(|field| field.name == name) {
                Some(_) if value.is_null() => leave = true,
                Some(field) => self.value(&field.shape, value, &here, type_name)?,
                None => {
                    leave = true;
                    if self.unknown.len() < UNKNOWN_MAX {
                        self.unknown.push(here.path());
                    }
                }
            }
        }
        if leave {
            map.retain(|name, value| !value.is_null() && fields.iter().any(|field| field.name == name));
        }
        Ok(())
    }

    fn value(
        &mut self,
        shape: &'static Shape,
        value: &mut Value,
        place: &Place<'_>,
        owner: &str,
    ) -> Result<(), Mismatch> {
        match shape {
            Shape::Scalar(kind) => scalar(*kind, value, place, owner),
            Shape::Object(type_name) => match fields(type_name) {
                Some(fields) => self.object(type_name, fields, value, place, owner),
                None => Ok(()),
            },
            Shape::List(item) => {
                let Value::Array(list) = value else { return Err(mismatch(value, place, owner, &go_type(shape))) };
                for (index, entry) in list.iter_mut().enumerate() {
                    fill_null(item, entry);
                    self.value(item, entry, &Place { parent: Some(place), step: Step::Index(index) }, owner)?;
                }
                Ok(())
            }
            Shape::Map(item) => {
                let Value::Object(map) = value else { return Err(mismatch(value, place, owner, &go_type(shape))) };
                for (key, entry) in map.iter_mut() {
                    fill_null(item, entry);
                    self.value(item, entry, &Place { parent: Some(place), step: Step::Key(key) }, owner)?;
                }
                Ok(())
            }
        }
    }
}

/// In a list or map, null stands for the zero of the type, as in Go.
fn fill_null(shape: &Shape, value: &mut Value) {
    if !value.is_null() {
        return;
    }
    *value = match shape {
        Shape::Object(_) | Shape::Map(_) => Value::Object(Map::new()),
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Scalar(Scalar::String | Scalar::Bytes) => Value::from(""),
        Shape::Scalar(Scalar::Boolean) => Value::from(false),
        Shape::Scalar(Scalar::Quantity) => Value::from("0"),
        Shape::Scalar(Scalar::Integer32 | Scalar::Integer64 | Scalar::Number | Scalar::IntOrString) => Value::from(0),
        Shape::Scalar(Scalar::Time | Scalar::MicroTime | Scalar::Any) => Value::Null,
    };
}

fn scalar(kind: Scalar, value: &mut Value, place: &Place<'_>, owner: &str) -> Result<(), Mismatch> {
    let fits = match kind {
        Scalar::String => value.is_string(),
        Scalar::Boolean => value.is_boolean(),
        Scalar::Number => value.is_number(),
        Scalar::Integer32 => return integer(value, place, owner, "int32", |n| i32::try_from(n).is_ok()),
        Scalar::Integer64 => return integer(value, place, owner, "int64", |_| true),
        Scalar::IntOrString if value.is_string() => true,
        Scalar::IntOrString if value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => true,
        // Types that read themselves do not know in which field they stand.
        Scalar::IntOrString => return Err(misfit(value, "int32")),
        Scalar::Quantity => return quantity(value),
        Scalar::Time | Scalar::MicroTime => match value {
            Value::Null => true,
            Value::String(text) => return time(text, kind),
            _ => return Err(misfit(value, "string")),
        },
        Scalar::Bytes => match value.as_str() {
            Some(text) => return base64(text),
            None => false,
        },
        Scalar::Any => true,
    };
    if fits { Ok(()) } else { Err(mismatch(value, place, owner, &go_type(&Shape::Scalar(kind)))) }
}

/// A whole number, written without fraction and exponent.
fn integer(
    value: &mut Value,
    place: &Place<'_>,
    owner: &str,
    go: &str,
    fits: impl Fn(i64) -> bool,
) -> Result<(), Mismatch> {
    match value.as_i64() {
        Some(number) if fits(number) => Ok(()),
        _ if value.is_number() => {
            Err(Mismatch(format!("json: cannot unmarshal number {value} into {} of type {go}", target(place, owner))))
        }
        _ => Err(mismatch(value, place, owner, go)),
    }
}

/// Quantities may be numbers, and are kept in the form in which Kubernetes writes them.
fn quantity(value: &mut Value) -> Result<(), Mismatch> {
    let text = match &*value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let parsed: Quantity = text.parse().map_err(|_| Mismatch(quantity_fault(&text).to_owned()))?;
    // Plain and decimal-thousands whole numbers stay as they were written; everything else becomes canonical.
    let plain = text.trim_end_matches(['k', 'M', 'G', 'T', 'P', 'E']);
    let stays = plain.len() + 1 >= text.len() && !plain.is_empty() && plain.bytes().all(|b| b.is_ascii_digit());
    *value = Value::from(if stays { text } else { parsed.to_string() });
    Ok(())
}

/// What is wrong with a text that is no quantity: its form, or only what it ends with.
fn quantity_fault(text: &str) -> &'static str {
    let number = text.trim_start_matches(['+', '-']).trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let suffix = number.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let exponent = suffix.trim_start_matches(['+', '-']);
    if number.len() < text.len() && exponent.bytes().all(|b| b.is_ascii_digit()) {
        "unable to parse quantity's suffix"
    } else {
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    }
}

fn time(text: &str, kind: Scalar) -> Result<(), Mismatch> {
    let layout = if kind == Scalar::Time { "2006-01-02T15:04:05Z07:00" } else { "2006-01-02T15:04:05.000000Z07:00" };
    match text.parse::<jiff::Timestamp>() {
        Ok(_) => Ok(()),
        Err(_) => Err(Mismatch(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""))),
    }
}

fn base64(text: &str) -> Result<(), Mismatch> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let good = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'=' | b'\n' | b'\r');
    if STANDARD.decode(text).is_ok() || STANDARD.decode(text.replace(['\n', '\r'], "")).is_ok() {
        return Ok(());
    }
    let at = text.bytes().position(|c| !good(&c)).unwrap_or_else(|| text.len().saturating_sub(1));
    Err(Mismatch(format!("illegal base64 data at input byte {at}")))
}

fn mismatch(value: &Value, place: &Place<'_>, owner: &str, go: &str) -> Mismatch {
    Mismatch(format!("json: cannot unmarshal {} into {} of type {go}", found(value), target(place, owner)))
}

fn misfit(value: &Value, go: &str) -> Mismatch {
    Mismatch(format!("json: cannot unmarshal {} into Go value of type {go}", found(value)))
}

fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn target(place: &Place<'_>, owner: &str) -> String {
    let fields = place.fields();
    if fields.is_empty() { "Go value".to_owned() } else { format!("Go struct field {}.{fields}", own_name(owner)) }
}

/// A type as Go calls it, without the package: types of one name in several packages have a prefix in the schema.
fn own_name(type_name: &str) -> &str {
    const PREFIXES: &[&str] = &["Apiextensions", "AuthenticationToken", "DiscoveryEndpoint", "EventsEvent"];
    if !PREFIXES.iter().any(|prefix| type_name.starts_with(prefix)) {
        return type_name;
    }
    // The prefix is the first word; the name begins at the second capital.
    type_name[1..].find(|c: char| c.is_ascii_uppercase()).map_or(type_name, |at| &type_name[at + 1..])
}

/// A type with its package, whose last word is the version.
fn go_name(type_name: &str) -> String {
    let second = ["HorizontalPodAutoscaler", "HPAScaling", "CrossVersionObjectReference", "Metric"];
    let second = second.iter().any(|prefix| type_name.starts_with(prefix))
        || ["MetricSource", "MetricStatus"].iter().any(|suffix| type_name.ends_with(suffix));
    format!("{}.{}", if second { "v2" } else { "v1" }, own_name(type_name))
}

fn go_type(shape: &Shape) -> String {
    match shape {
        Shape::List(item) => format!("[]{}", go_type(item)),
        Shape::Map(item) => format!("map[string]{}", go_type(item)),
        Shape::Object(name) => go_name(name),
        Shape::Scalar(scalar) => match scalar {
            Scalar::String => "string",
            Scalar::Boolean => "bool",
            Scalar::Integer32 | Scalar::IntOrString => "int32",
            Scalar::Integer64 => "int64",
            Scalar::Number => "float64",
            Scalar::Quantity => "resource.Quantity",
            Scalar::Time => "v1.Time",
            Scalar::MicroTime => "v1.MicroTime",
            Scalar::Bytes => "[]uint8",
            Scalar::Any => "interface {}",
        }
        .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_are_named_with_their_path() {
        let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "labels": {"x": null}},
            "spec": {"containers": [{"name": "c", "imagee": "x", "env": [{"name": "A", "value": null}]}], "extra": 1}});
        assert_eq!(conform("Pod", &mut pod).unwrap(), ["spec.containers[0].imagee", "spec.extra"]);
        assert_eq!(pod["spec"], json!({"containers": [{"name": "c", "env": [{"name": "A"}]}]}));
        assert_eq!(pod["metadata"]["labels"], json!({"x": ""}));
    }

    #[test]
    fn wrong_types_in_the_words_of_go() {
        let say = |kind: &str, mut object: Value| conform(kind, &mut object).unwrap_err().to_string();
        assert_eq!(
            say("Deployment", json!({"spec": {"replicas": "three"}})),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
        assert_eq!(
            say("Deployment", json!({"spec": {"replicas": 1.5}})),
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
        assert_eq!(
            say("Pod", json!({"spec": {"containers": [{"env": [{"name": "a", "value": 1}]}]}})),
            "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string"
        );
        assert_eq!(
            say("Pod", json!({"spec": {"containers": {}}})),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"
        );
        assert_eq!(
            say("HorizontalPodAutoscaler", json!({"spec": {"metrics": {}}})),
            "json: cannot unmarshal object into Go struct field HorizontalPodAutoscalerSpec.spec.metrics of type []v2.MetricSpec"
        );
        assert_eq!(
            say("EndpointSlice", json!({"ports": [{"port": "http"}]})),
            "json: cannot unmarshal string into Go struct field EndpointPort.ports.port of type int32"
        );
        assert_eq!(
            say("Service", json!({"spec": {"ports": [{"targetPort": true}]}})),
            "json: cannot unmarshal bool into Go value of type int32"
        );
        let requests = |text: &str| json!({"spec": {"hard": {"cpu": text}}});
        assert_eq!(say("ResourceQuota", requests("1MM")), "unable to parse quantity's suffix");
        assert!(say("ResourceQuota", requests("lots")).starts_with("quantities must match"));
        assert!(say("Secret", json!({"data": {"a": "not base64!"}})).contains("illegal base64 data at input byte 3"));
        assert!(say("Pod", json!([])).starts_with("json: cannot unmarshal array into Go value"));
    }

    #[test]
    fn quantities_become_canonical() {
        let of = |text: Value| {
            let mut object = json!({"spec": {"hard": {"cpu": text}}});
            conform("ResourceQuota", &mut object).unwrap();
            object["spec"]["hard"]["cpu"].as_str().unwrap().to_owned()
        };
        for (given, kept) in [("0.5", "500m"), ("100m", "100m"), ("1000m", "1"), ("1024Mi", "1Gi"), ("2000", "2000")] {
            assert_eq!(of(json!(given)), kept, "{given}");
        }
        assert_eq!(of(json!(1)), "1");
        assert_eq!(of(json!(0.5)), "500m");
    }

    #[test]
    fn numbers_or_text_pass_unchanged() {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8081}]}});
        let mut checked = object.clone();
        assert!(conform("Service", &mut checked).unwrap().is_empty());
        assert_eq!(checked, object);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z0-9.]{0,8}".prop_map(Value::from),
        ];
        let name = prop_oneof![Just("metadata"), Just("spec"), Just("containers"), Just("labels"), Just("x")];
        leaf.prop_recursive(6, 64, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(name.clone().prop_map(str::to_owned), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn twice_is_once(object in any_json()) {
            for kind in ["Pod", "Deployment", "Event", "Status"] {
                let mut once = object.clone();
                if conform(kind, &mut once).is_ok() {
                    let mut twice = once.clone();
                    prop_assert!(conform(kind, &mut twice).unwrap().is_empty());
                    prop_assert_eq!(twice, once);
                }
            }
        }
    }
}
