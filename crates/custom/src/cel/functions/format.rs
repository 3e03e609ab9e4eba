//! `'%s has %d'.format([a, b])`, and values as text.
//!
//! Source: <https://pkg.go.dev/github.com/google/cel-go/ext#Strings>, section Format.

use super::super::value::Val;
use super::{EvalError, Meter, NO_OVERLOAD, Price, Row, method};
use mainstay_model::meta::format_time;

/// Longest text that is made.
const TEXT_MAX: usize = 1 << 20;
/// Most digits behind the point.
const PRECISION_MAX: usize = 100;

pub(super) const ROWS: &[Row] = &[method("format", &["string, list<dyn> -> string"], Price::Scan, format)];

fn format<'a>(args: &[Val<'a>], meter: &mut Meter) -> Result<Val<'a>, EvalError> {
    let [Val::Text(template), Val::List(values)] = args else { return Err(NO_OVERLOAD) };
    let mut text = String::with_capacity(template.len());
    let mut rest = &**template;
    let mut next = 0;
    while let Some(start) = rest.find('%') {
        text.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            text.push('%');
            rest = after;
            continue;
        }
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            precision = Some(after[..end].parse::<usize>().unwrap_or(6).min(PRECISION_MAX));
            rest = &after[end..];
        }
        let clause = rest.chars().next().ok_or_else(|| bad("could not parse formatting clause: missing conversion"))?;
        rest = &rest[clause.len_utf8()..];
        let value = values.get(next).ok_or_else(|| bad(format!("index {next} out of range")))?;
        next += 1;
        text.push_str(&clause_text(clause, precision, &value)?);
        if text.len() > TEXT_MAX {
            return Err(EvalError::CostLimit);
        }
    }
    text.push_str(rest);
    meter.charge(text.len() as u64 / 10)?;
    Ok(Val::text(text))
}

fn bad(message: impl Into<String>) -> EvalError {
    EvalError::Other(message.into())
}

fn clause_text(clause: char, precision: Option<usize>, value: &Val<'_>) -> Result<String, EvalError> {
    let precision = precision.unwrap_or(6);
    Ok(match (clause, value) {
        ('s', value) => shown(value),
        ('d', Val::Int(value)) => value.to_string(),
        ('d', Val::Uint(value)) => value.to_string(),
        ('f', value) => {
            let number = as_double(value).ok_or_else(|| wrong("fixed-point", value))?;
            if number.is_finite() { format!("{number:.precision$}") } else { double_text(number) }
        }
        ('e', value) => {
            let number = as_double(value).ok_or_else(|| wrong("scientific", value))?;
            let text = format!("{number:.precision$e}");
            // Go writes at least two digits of exponent, with its sign.
            match text.split_once('e') {
                Some((mantissa, exponent)) => {
                    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
                    format!("{mantissa}e{sign}{digits:0>2}")
                }
                None => text,
            }
        }
        ('b', Val::Bool(value)) => u8::from(*value).to_string(),
        ('b', Val::Int(value)) => signed(*value, |n| format!("{n:b}")),
        ('b', Val::Uint(value)) => format!("{value:b}"),
        ('o', Val::Int(value)) => signed(*value, |n| format!("{n:o}")),
        ('o', Val::Uint(value)) => format!("{value:o}"),
        ('x', Val::Int(value)) => signed(*value, |n| format!("{n:x}")),
        ('X', Val::Int(value)) => signed(*value, |n| format!("{n:X}")),
        ('x', Val::Uint(value)) => format!("{value:x}"),
        ('X', Val::Uint(value)) => format!("{value:X}"),
        ('x', Val::Text(text)) => hex(text.as_bytes(), false),
        ('X', Val::Text(text)) => hex(text.as_bytes(), true),
        ('x', Val::Bytes(bytes)) => hex(bytes, false),
        ('X', Val::Bytes(bytes)) => hex(bytes, true),
        ('d', value) => return Err(wrong("decimal", value)),
        ('b' | 'o' | 'x' | 'X', value) => return Err(wrong("integer", value)),
        (other, _) => {
            return Err(bad(format!("could not parse formatting clause: unrecognized formatting clause \"{other}\"")));
        }
    })
}

fn wrong(what: &str, value: &Val<'_>) -> EvalError {
    bad(format!("error during formatting: {what} clause cannot be used on {}", value.type_name()))
}

fn as_double(value: &Val<'_>) -> Option<f64> {
    match value {
        Val::Double(value) => Some(*value),
        Val::Int(value) => Some(*value as f64),
        Val::Uint(value) => Some(*value as f64),
        _ => None,
    }
}

fn signed(value: i64, digits: fn(u64) -> String) -> String {
    format!("{}{}", if value < 0 { "-" } else { "" }, digits(value.unsigned_abs()))
}

fn hex(bytes: &[u8], upper: bool) -> String {
    bytes.iter().map(|byte| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect()
}

/// A double as CEL writes it.
pub(super) fn double_text(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else if value != 0.0 && !(1e-4..1e21).contains(&value.abs()) {
        let text = format!("{value:e}");
        match text.split_once('e') {
            Some((mantissa, exponent)) => {
                let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
                format!("{mantissa}e{sign}{digits:0>2}")
            }
            None => text,
        }
    } else {
        value.to_string()
    }
}

/// A value as text, as `%s` shows it.
pub(in crate::cel) fn shown(value: &Val<'_>) -> String {
    match value {
        Val::Null => "null".to_owned(),
        Val::Bool(value) => value.to_string(),
        Val::Int(value) => value.to_string(),
        Val::Uint(value) => value.to_string(),
        Val::Double(value) => double_text(*value),
        Val::Text(text) => text.to_string(),
        Val::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Val::Duration(duration) => {
            let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
            if nanos == 0 {
                return format!("{seconds}s");
            }
            let sign = if duration.is_negative() { "-" } else { "" };
            let fraction = format!("{:09}", nanos.unsigned_abs());
            format!("{sign}{}.{}s", seconds.unsigned_abs(), fraction.trim_end_matches('0'))
        }
        Val::Timestamp(time) if time.subsec_nanosecond() == 0 => format_time(*time),
        Val::Timestamp(time) => time.to_string(),
        Val::List(list) => format!("[{}]", list.iter().map(|item| shown(&item)).collect::<Vec<_>>().join(", ")),
        Val::Map(map) => {
            let pairs =
                map.keys().into_iter().filter_map(|key| Some(format!("{}: {}", shown(&key), shown(&map.get(&key)?))));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        Val::Optional(None) => "optional.none()".to_owned(),
        Val::Optional(Some(inner)) => format!("optional({})", shown(inner)),
        Val::Type(name) => name.to_string(),
        Val::Quantity(quantity) => quantity.to_string(),
        Val::Url(url) => url.as_str().to_owned(),
        Val::Ip(ip) => ip.to_string(),
        Val::Cidr(cidr) => cidr.to_string(),
        Val::Semver(version) => version.to_string(),
        Val::Format(name) => (*name).to_owned(),
        Val::Check(_) | Val::Decision(_) => value.type_name().to_owned(),
    }
}
