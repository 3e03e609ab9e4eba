//! Conversions: `int(x)`, `string(x)` and the like.

use super::super::value::Val;
use super::format::{double_text, shown};
use super::time::{parse_date_time, parse_duration};
use super::{EvalError, NO_OVERLOAD, Price, Row, function};

pub(super) const ROWS: &[Row] = &[
    function(
        "int",
        &["int -> int", "uint -> int", "double -> int", "string -> int", "timestamp -> int", "duration -> int"],
        Price::Scan,
        |args, _| match args {
            [Val::Int(value)] => Ok(Val::Int(*value)),
            [Val::Uint(value)] => i64::try_from(*value).map(Val::Int).map_err(|_| EvalError::Overflow),
            [Val::Double(value)] if value.abs() < 9.2e18 => Ok(Val::Int(*value as i64)),
            [Val::Double(_)] => Err(EvalError::Overflow),
            [Val::Text(text)] => text.parse().map(Val::Int).map_err(|_| cannot(text, "int")),
            [Val::Timestamp(time)] => Ok(Val::Int(time.as_second())),
            [Val::Duration(duration)] => {
                i64::try_from(duration.as_nanos()).map(Val::Int).map_err(|_| EvalError::Overflow)
            }
            _ => Err(NO_OVERLOAD),
        },
    ),
    function("uint", &["uint -> uint", "int -> uint", "double -> uint", "string -> uint"], Price::Scan, |args, _| {
        match args {
            [Val::Uint(value)] => Ok(Val::Uint(*value)),
            [Val::Int(value)] => u64::try_from(*value).map(Val::Uint).map_err(|_| EvalError::Overflow),
            [Val::Double(value)] if (0.0..1.8e19).contains(value) => Ok(Val::Uint(*value as u64)),
            [Val::Double(_)] => Err(EvalError::Overflow),
            [Val::Text(text)] => text.parse().map(Val::Uint).map_err(|_| cannot(text, "uint")),
            _ => Err(NO_OVERLOAD),
        }
    }),
    function(
        "double",
        &["double -> double", "int -> double", "uint -> double", "string -> double"],
        Price::Scan,
        |args, _| match args {
            [Val::Double(value)] => Ok(Val::Double(*value)),
            [Val::Int(value)] => Ok(Val::Double(*value as f64)),
            [Val::Uint(value)] => Ok(Val::Double(*value as f64)),
            [Val::Text(text)] => text.parse().map(Val::Double).map_err(|_| cannot(text, "double")),
            _ => Err(NO_OVERLOAD),
        },
    ),
    function(
        "string",
        &[
            "string -> string",
            "int -> string",
            "uint -> string",
            "double -> string",
            "bool -> string",
            "bytes -> string",
            "timestamp -> string",
            "duration -> string",
            "IP -> string",
            "CIDR -> string",
            "Quantity -> string",
            "URL -> string",
            "Semver -> string",
        ],
        Price::Scan,
        |args, _| match args {
            [value @ Val::Text(_)] => Ok(value.clone()),
            [Val::Bytes(bytes)] => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Val::text(text)),
                Err(_) => Err(EvalError::Other("invalid UTF-8 in bytes, cannot convert to string".to_owned())),
            },
            [Val::Double(value)] => Ok(Val::text(double_text(*value))),
            [Val::Null | Val::List(_) | Val::Map(_) | Val::Optional(_)] => Err(NO_OVERLOAD),
            [value] => Ok(Val::text(shown(value))),
            _ => Err(NO_OVERLOAD),
        },
    ),
    function("bytes", &["bytes -> bytes", "string -> bytes"], Price::Scan, |args, _| match args {
        [value @ Val::Bytes(_)] => Ok(value.clone()),
        [Val::Text(text)] => Ok(Val::Bytes(text.as_bytes().into())),
        _ => Err(NO_OVERLOAD),
    }),
    function("bool", &["bool -> bool", "string -> bool"], Price::Step, |args, _| match args {
        [value @ Val::Bool(_)] => Ok(value.clone()),
        [Val::Text(text)] => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Val::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Val::Bool(false)),
            text => Err(cannot(text, "bool")),
        },
        _ => Err(NO_OVERLOAD),
    }),
    function("duration", &["duration -> duration", "string -> duration", "int -> duration"], Price::Step, |args, _| {
        match args {
            [value @ Val::Duration(_)] => Ok(value.clone()),
            [Val::Int(nanos)] => Ok(Val::Duration(jiff::SignedDuration::from_nanos(*nanos))),
            [Val::Text(text)] => parse_duration(text).map(Val::Duration).ok_or_else(|| cannot(text, "duration")),
            _ => Err(NO_OVERLOAD),
        }
    }),
    function(
        "timestamp",
        &["timestamp -> timestamp", "string -> timestamp", "int -> timestamp"],
        Price::Step,
        |args, _| match args {
            [value @ Val::Timestamp(_)] => Ok(value.clone()),
            [Val::Int(seconds)] => {
                jiff::Timestamp::from_second(*seconds).map(Val::Timestamp).map_err(|_| EvalError::Overflow)
            }
            [Val::Text(text)] => parse_date_time(text).map(Val::Timestamp).ok_or_else(|| cannot(text, "timestamp")),
            _ => Err(NO_OVERLOAD),
        },
    ),
];

fn cannot(text: &str, wanted: &str) -> EvalError {
    EvalError::Other(format!("type conversion error from {text:?} to '{wanted}'"))
}
