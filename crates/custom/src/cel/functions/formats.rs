//! Named formats: `format.dns1123Label().validate(x)` gives the broken rules, if any.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-format-library>.

use mainstay_model::meta::names;

use super::super::value::Val;
use super::{NO_OVERLOAD, Price, Row, function, method};

const FORMAT: &[&str] = &[" -> Format"];

pub(super) const ROWS: &[Row] = &[
    function("format.named", &["string -> optional<Format>"], Price::Step, |args, _| match args {
        [Val::Text(name)] => {
            Ok(Val::optional(NAMES.iter().find(|known| **known == &**name).map(|known| Val::Format(known))))
        }
        _ => Err(NO_OVERLOAD),
    }),
    function("format.dns1123Label", FORMAT, Price::Step, |_, _| Ok(Val::Format("dns1123Label"))),
    function("format.dns1123Subdomain", FORMAT, Price::Step, |_, _| Ok(Val::Format("dns1123Subdomain"))),
    function("format.dns1035Label", FORMAT, Price::Step, |_, _| Ok(Val::Format("dns1035Label"))),
    function("format.qualifiedName", FORMAT, Price::Step, |_, _| Ok(Val::Format("qualifiedName"))),
    function("format.dns1123LabelPrefix", FORMAT, Price::Step, |_, _| Ok(Val::Format("dns1123LabelPrefix"))),
    function("format.dns1123SubdomainPrefix", FORMAT, Price::Step, |_, _| Ok(Val::Format("dns1123SubdomainPrefix"))),
    function("format.dns1035LabelPrefix", FORMAT, Price::Step, |_, _| Ok(Val::Format("dns1035LabelPrefix"))),
    function("format.labelValue", FORMAT, Price::Step, |_, _| Ok(Val::Format("labelValue"))),
    function("format.uri", FORMAT, Price::Step, |_, _| Ok(Val::Format("uri"))),
    function("format.uuid", FORMAT, Price::Step, |_, _| Ok(Val::Format("uuid"))),
    function("format.byte", FORMAT, Price::Step, |_, _| Ok(Val::Format("byte"))),
    function("format.date", FORMAT, Price::Step, |_, _| Ok(Val::Format("date"))),
    function("format.datetime", FORMAT, Price::Step, |_, _| Ok(Val::Format("datetime"))),
    method("validate", &["Format, string -> optional<list<string>>"], Price::Scan, |args, _| match args {
        [Val::Format(name), Val::Text(text)] => {
            let faults: Vec<Val<'_>> = check(name, text).into_iter().map(Val::text).collect();
            Ok(Val::optional((!faults.is_empty()).then(|| Val::list(faults))))
        }
        _ => Err(NO_OVERLOAD),
    }),
];

const NAMES: &[&str] = &[
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

fn check(name: &str, text: &str) -> Vec<String> {
    // A prefix may end in a dash, as something will follow it.
    let prefix = || text.strip_suffix('-').map_or_else(|| text.to_owned(), |rest| format!("{rest}a"));
    match name {
        "dns1123Label" => names::check_label(text),
        "dns1123Subdomain" => names::check_subdomain(text),
        "dns1035Label" => names::check_label_1035(text),
        "qualifiedName" => names::check_qualified_name(text),
        "dns1123LabelPrefix" => names::check_label(&prefix()),
        "dns1123SubdomainPrefix" => names::check_subdomain(&prefix()),
        "dns1035LabelPrefix" => names::check_label_1035(&prefix()),
        "labelValue" => names::check_label_value(text),
        other if crate::schema::is_format(other, text) => Vec::new(),
        "uri" => vec!["invalid URI".to_owned()],
        "uuid" => vec!["does not match the UUID format".to_owned()],
        "byte" => vec!["invalid base64".to_owned()],
        "date" => vec!["invalid date".to_owned()],
        _ => vec!["invalid datetime".to_owned()],
    }
}
