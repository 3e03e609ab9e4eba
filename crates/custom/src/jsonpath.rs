//! The part of Kubernetes' JSONPath that definitions of custom resources use: printer columns, scale paths and
//! selectable fields.
//!
//! Understood: `.a.b`, `['a.b']`, `["a"]`, `[0]`, `[-1]`, `[1:3]`, `[*]`, `.*`, `..name` is not, and filters
//! `[?(@.type=="Ready")]` with `==`, `!=`, `<`, `<=`, `>`, `>=` between a path below `@` and a literal, or a bare path
//! that must exist.
//!
//! Guarantees: never panics; a path is at most [`TEXT_MAX`] long; missing fields yield nothing.
//!
//! Source: <https://kubernetes.io/docs/reference/kubectl/jsonpath/>.

use serde_json::Value;

/// Longest path that is read.
pub const TEXT_MAX: usize = 4096;
/// Most values that one path yields.
const RESULTS_MAX: usize = 10_000;

/// Why a text is not a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonPathError {
    /// Over [`TEXT_MAX`].
    #[error("the path is longer than {TEXT_MAX} bytes")]
    TooLong,
    /// Not understood from this byte on.
    #[error("unexpected text at byte {at}: {rest:?}")]
    Syntax {
        /// Byte where reading stopped.
        at: usize,
        /// What stands there.
        rest: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    Index(i64),
    Slice(Option<i64>, Option<i64>, i64),
    Filter(Box<Filter>),
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    left: Operand,
    /// Without a comparison, the left side must yield something.
    comparison: Option<(Comparison, Operand)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(JsonPath),
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A path that was read once and is used often.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

impl JsonPath {
    /// Reads `.spec.replicas` and the like; braces around it are allowed.
    ///
    /// # Errors
    /// When the text is too long or not understood.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        if text.len() > TEXT_MAX {
            return Err(JsonPathError::TooLong);
        }
        let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
        let mut reader = Reader { text: inner, at: 0 };
        reader.eat("$");
        let steps = reader.steps()?;
        if reader.at < inner.len() { Err(reader.error()) } else { Ok(Self { steps }) }
    }

    /// All values it leads to, in document order.
    pub fn find<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![object];
        for step in &self.steps {
            found = found.into_iter().flat_map(|value| step.apply(value)).take(RESULTS_MAX).collect();
        }
        found
    }

    /// The first value it leads to.
    pub fn first<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        self.find(object).into_iter().next()
    }

    /// The field names, when the path is nothing but fields: what scale paths and selectable fields are.
    pub fn simple(&self) -> Option<Vec<&str>> {
        self.steps.iter().map(|step| if let Step::Field(name) = step { Some(name.as_str()) } else { None }).collect()
    }
}

impl Step {
    fn apply<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Self::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
            (Self::Wildcard, Value::Object(map)) => map.values().collect(),
            (Self::Wildcard, Value::Array(items)) => items.iter().collect(),
            (Self::Index(index), Value::Array(items)) => {
                position(*index, items.len()).map(|i| &items[i]).into_iter().collect()
            }
            (Self::Slice(from, to, step), Value::Array(items)) => {
                let bound = |given: &Option<i64>, otherwise: usize| match given {
                    None => otherwise,
                    Some(n) if *n < 0 => items.len().saturating_sub(n.unsigned_abs() as usize),
                    Some(n) => (*n as usize).min(items.len()),
                };
                let (from, to) = (bound(from, 0), bound(to, items.len()));
                if from >= to { Vec::new() } else { items[from..to].iter().step_by(*step as usize).collect() }
            }
            (Self::Filter(filter), Value::Array(items)) => items.iter().filter(|item| filter.matches(item)).collect(),
            _ => Vec::new(),
        }
    }
}

fn position(index: i64, len: usize) -> Option<usize> {
    let index = if index < 0 { len.checked_sub(index.unsigned_abs() as usize)? } else { index as usize };
    (index < len).then_some(index)
}

impl Filter {
    fn matches(&self, item: &Value) -> bool {
        let left = self.left.value(item);
        let Some((comparison, right)) = &self.comparison else { return left.is_some() };
        let (Some(left), Some(right)) = (left, right.value(item)) else { return false };
        match comparison {
            Comparison::Equal => equal(left, right),
            Comparison::NotEqual => !equal(left, right),
            _ => {
                let order = match (left, right) {
                    (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
                    (a, b) => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
                };
                order.is_some_and(|order| match comparison {
                    Comparison::Less => order.is_lt(),
                    Comparison::LessOrEqual => order.is_le(),
                    Comparison::Greater => order.is_gt(),
                    _ => order.is_ge(),
                })
            }
        }
    }
}

fn equal(left: &Value, right: &Value) -> bool {
    left == right || left.as_f64().is_some_and(|a| right.as_f64() == Some(a))
}

impl Operand {
    fn value<'a>(&'a self, item: &'a Value) -> Option<&'a Value> {
        match self {
            Self::Path(path) => path.first(item),
            Self::Literal(value) => Some(value),
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn error(&self) -> JsonPathError {
        JsonPathError::Syntax { at: self.at, rest: self.rest().chars().take(20).collect() }
    }

    fn eat(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn blanks(&mut self) {
        while self.eat(" ") {}
    }

    fn steps(&mut self) -> Result<Vec<Step>, JsonPathError> {
        let mut steps = Vec::new();
        loop {
            if self.rest().starts_with('[') {
                steps.push(self.bracket()?);
            } else if self.eat(".") {
                if self.eat("*") {
                    steps.push(Step::Wildcard);
                } else if self.rest().starts_with('[') || (self.rest().is_empty() && steps.is_empty()) {
                    // `.[0]` is `[0]`, and a dot alone is the whole object.
                } else {
                    steps.push(Step::Field(self.name()?));
                }
            } else {
                return Ok(steps);
            }
        }
    }

    fn name(&mut self) -> Result<String, JsonPathError> {
        let mut name = String::new();
        while let Some(c) = self.rest().chars().next() {
            match c {
                '\\' => {
                    self.at += 1;
                    let escaped = self.rest().chars().next().ok_or_else(|| self.error())?;
                    name.push(escaped);
                    self.at += escaped.len_utf8();
                    continue;
                }
                '.' | '[' | ']' | ')' | '(' | ' ' | '=' | '!' | '<' | '>' | '"' | '\'' | '@' | '?' | '*' | '{'
                | '}' | ',' => break,
                _ => name.push(c),
            }
            self.at += c.len_utf8();
        }
        if name.is_empty() { Err(self.error()) } else { Ok(name) }
    }

    fn bracket(&mut self) -> Result<Step, JsonPathError> {
        self.eat("[");
        let step = if self.eat("*") {
            Step::Wildcard
        } else if self.eat("?(") {
            Step::Filter(Box::new(self.filter()?))
        } else if self.rest().starts_with(['\'', '"']) {
            Step::Field(self.quoted()?)
        } else {
            self.numbers()?
        };
        if self.eat("]") { Ok(step) } else { Err(self.error()) }
    }

    fn numbers(&mut self) -> Result<Step, JsonPathError> {
        let first = self.number();
        if !self.eat(":") {
            return first.map(Step::Index).ok_or_else(|| self.error());
        }
        let second = self.number();
        let step = if self.eat(":") { self.number().unwrap_or(1) } else { 1 };
        if step < 1 { Err(self.error()) } else { Ok(Step::Slice(first, second, step)) }
    }

    fn number(&mut self) -> Option<i64> {
        let rest = self.rest();
        let digits = rest.strip_prefix('-').unwrap_or(rest);
        let sign = rest.len() - digits.len();
        let end = sign + digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let number = rest[..end].parse().ok()?;
        self.at += end;
        Some(number)
    }

    fn quoted(&mut self) -> Result<String, JsonPathError> {
        let Some(quote) = self.rest().chars().next() else { return Err(self.error()) };
        let (mut text, mut escaped) = (String::new(), false);
        for (i, c) in self.rest().char_indices().skip(1) {
            match c {
                _ if escaped => {
                    text.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                c if c == quote => {
                    self.at += i + 1;
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        Err(self.error())
    }

    fn filter(&mut self) -> Result<Filter, JsonPathError> {
        self.blanks();
        let left = self.operand()?;
        self.blanks();
        let words = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let comparison = words.into_iter().find(|(word, _)| self.eat(word));
        let comparison = match comparison {
            None => None,
            Some((_, comparison)) => {
                self.blanks();
                Some((comparison, self.operand()?))
            }
        };
        self.blanks();
        if self.eat(")") { Ok(Filter { left, comparison }) } else { Err(self.error()) }
    }

    fn operand(&mut self) -> Result<Operand, JsonPathError> {
        if self.eat("@") {
            return Ok(Operand::Path(JsonPath { steps: self.steps()? }));
        }
        if self.rest().starts_with(['\'', '"']) {
            return self.quoted().map(|text| Operand::Literal(Value::String(text)));
        }
        for (word, value) in [("true", Value::Bool(true)), ("false", Value::Bool(false))] {
            if self.eat(word) {
                return Ok(Operand::Literal(value));
            }
        }
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_digit() || matches!(c, '-' | '.'))).unwrap_or(rest.len());
        let number = serde_json::from_str::<serde_json::Number>(&rest[..end]).map_err(|_| self.error())?;
        self.at += end;
        Ok(Operand::Literal(Value::Number(number)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn find(path: &str, object: &Value) -> Vec<Value> {
        JsonPath::parse(path).unwrap().find(object).into_iter().cloned().collect()
    }

    #[test]
    fn paths_of_columns() {
        let object = json!({
            "spec": {"replicas": 3, "a.b": 1, "list": [1, 2, 3, 4]},
            "metadata": {"labels": {"app.kubernetes.io/name": "x"}},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "n": 1}, {"type": "Synced", "status": "False", "n": 5},
            ]},
        });
        for (path, expected) in [
            (".spec.replicas", json!([3])),
            ("{.spec.replicas}", json!([3])),
            (".spec['a.b']", json!([1])),
            (".spec.a\\.b", json!([1])),
            (".metadata.labels.app\\.kubernetes\\.io/name", json!(["x"])),
            (".spec.list[0]", json!([1])),
            (".spec.list[-1]", json!([4])),
            (".spec.list[1:3]", json!([2, 3])),
            (".spec.list[*]", json!([1, 2, 3, 4])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type == 'Synced')].status", json!(["False"])),
            (".status.conditions[?(@.n > 2)].type", json!(["Synced"])),
            (".status.conditions[?(@.missing)].type", json!([])),
            (".status.conditions[*].type", json!(["Ready", "Synced"])),
            (".spec.missing.more", json!([])),
            ("$.spec.replicas", json!([3])),
        ] {
            assert_eq!(json!(find(path, &object)), expected, "{path}");
        }
        assert_eq!(find(".", &object), vec![object.clone()]);
    }

    #[test]
    fn refused() {
        for path in ["spec", ".spec[", ".a[?(@.x==)]", ".a..", ".a[b]", ".a['x]", "{.a"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }

    #[test]
    fn simple_paths() {
        assert_eq!(JsonPath::parse(".spec.x").unwrap().simple(), Some(vec!["spec", "x"]));
        assert_eq!(JsonPath::parse(".spec[0]").unwrap().simple(), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "[.\\[\\]a-z0-9*?(@)='\"<>: \\\\{}$-]{0,40}") {
            if let Ok(path) = JsonPath::parse(&text) {
                path.find(&json!({"a": [{"b": 1}, 2], "c": {"d": "x"}}));
            }
        }
    }
}
