//! The functions, operators and methods of expressions: one table, row by row in the files of the libraries.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/#cel-options-language-features-and-libraries>.

pub(super) mod authz;
mod conversions;
pub(super) mod format;
mod formats;
mod lists;
pub(super) mod net;
mod operators;
mod optional;
mod quantity;
mod semver;
mod strings;
pub(super) mod time;

use std::collections::HashMap;
use std::sync::LazyLock;

use super::types::{Type, parse_type};
use super::value::Val;
use super::{EvalError, Meter};

/// What a function does with its arguments, the target of a method being the first.
pub(super) type Run = for<'a, 'b> fn(&'b [Val<'a>], &'b mut Meter) -> Result<Val<'a>, EvalError>;

/// What a call costs beyond its own step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Price {
    /// Nothing.
    Step,
    /// A tenth of the sizes of all arguments.
    Scan,
    /// A tenth of the product of the sizes of the first two.
    Product,
}

impl Price {
    pub(super) fn of(self, args: &[Val<'_>]) -> u64 {
        match (self, args) {
            (Self::Step, _) => 0,
            (Self::Product, [a, b, ..]) => a.size().saturating_mul(b.size().max(1)) / 10,
            _ => args.iter().map(Val::size).sum::<u64>() / 10,
        }
    }
}

/// A row of the table as it is written.
pub(super) struct Row {
    name: &'static str,
    member: bool,
    signatures: &'static [&'static str],
    price: Price,
    run: Run,
}

/// A function `name(…)`.
const fn function(name: &'static str, signatures: &'static [&'static str], price: Price, run: Run) -> Row {
    Row { name, member: false, signatures, price, run }
}

/// A method `x.name(…)`.
const fn method(name: &'static str, signatures: &'static [&'static str], price: Price, run: Run) -> Row {
    Row { name, member: true, signatures, price, run }
}

/// Types of arguments and of the result.
pub(super) struct Signature {
    pub(super) args: Vec<Type>,
    pub(super) result: Type,
}

/// A function ready to be called.
pub(super) struct Function {
    pub(super) signatures: Vec<Signature>,
    pub(super) price: Price,
    pub(super) run: Run,
}

const LIBRARIES: &[&[Row]] = &[
    operators::ROWS,
    conversions::ROWS,
    strings::ROWS,
    lists::ROWS,
    time::ROWS,
    net::ROWS,
    quantity::ROWS,
    semver::ROWS,
    formats::ROWS,
    optional::ROWS,
    format::ROWS,
    authz::ROWS,
];

/// Functions and, second, methods by their names.
static TABLE: LazyLock<HashMap<&'static str, [Option<Function>; 2]>> = LazyLock::new(|| {
    let mut table: HashMap<&'static str, [Option<Function>; 2]> = HashMap::new();
    for row in LIBRARIES.iter().copied().flatten() {
        let signatures = row.signatures.iter().map(|text| Signature::parse(text)).collect();
        let function = Function { signatures, price: row.price, run: row.run };
        table.entry(row.name).or_default()[usize::from(row.member)] = Some(function);
    }
    table
});

impl Signature {
    /// From `string, int -> string`.
    fn parse(text: &str) -> Self {
        let (args, result) = text.split_once("->").unwrap_or((text, "dyn"));
        let mut parts = Vec::new();
        let (mut depth, mut start) = (0, 0);
        for (i, c) in args.char_indices() {
            match c {
                '<' => depth += 1,
                '>' => depth -= 1,
                ',' if depth == 0 => {
                    parts.push(&args[start..i]);
                    start = i + 1;
                }
                _ => {}
            }
        }
        parts.push(&args[start..]);
        let args = parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).map(parse_type).collect();
        Self { args, result: parse_type(result) }
    }
}

/// The function or method of a name.
pub(super) fn find(name: &str, member: bool) -> Option<&'static Function> {
    TABLE.get(name)?[usize::from(member)].as_ref()
}

/// The name of a type as a value.
pub(super) fn type_named<'a>(name: &str) -> Option<Val<'a>> {
    let known = [
        "bool",
        "bytes",
        "double",
        "dyn",
        "int",
        "list",
        "map",
        "null_type",
        "optional_type",
        "string",
        "type",
        "uint",
        "net.IP",
        "net.CIDR",
        "kubernetes.Quantity",
        "kubernetes.URL",
        "kubernetes.Semver",
    ];
    known.contains(&name).then(|| Val::Type(name.into()))
}

const NO_OVERLOAD: EvalError = EvalError::NoOverload;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_the_table_once() {
        let rows = LIBRARIES.iter().map(|rows| rows.len()).sum::<usize>();
        assert_eq!(TABLE.values().flatten().flatten().count(), rows);
    }
}
