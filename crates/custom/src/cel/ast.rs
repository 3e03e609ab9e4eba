//! The tree of an expression. Macros are nodes of their own, so that evaluating and costing them is plain to read.

/// A node and the byte of the source it begins at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expr {
    pub(crate) at: u32,
    pub(crate) node: Node,
}

/// A constant.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
}

/// What a loop makes of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loop {
    All,
    Exists,
    ExistsOne,
    Filter,
    /// `map`, and of two variables `transformList`.
    Map,
    TransformMap,
    TransformMapEntry,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Literal(Literal),
    Ident(String),
    /// `a.b`, `a.?b`, and `has(a.b)` with `test`.
    Select {
        operand: Box<Expr>,
        field: String,
        test: bool,
        optional: bool,
    },
    /// `a[b]` and `a[?b]`.
    Index {
        operand: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    /// A function, an operator by its name (`_+_`), or with `target` a method.
    Call {
        function: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// Operators that do not always look at all operands.
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Conditional(Box<Expr>, Box<Expr>, Box<Expr>),
    /// Items, with `?` before them or not.
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    /// An object made of its type's name and fields, with `?` before their names or not: `Object.spec{replicas: 3}`.
    Message {
        name: String,
        fields: Vec<(String, Expr, bool)>,
    },
    Loop {
        kind: Loop,
        range: Box<Expr>,
        first: String,
        second: Option<String>,
        filter: Option<Box<Expr>>,
        body: Box<Expr>,
    },
    /// `optMap` and, with `flat`, `optFlatMap`.
    OptionalMap {
        target: Box<Expr>,
        variable: String,
        body: Box<Expr>,
        flat: bool,
    },
    /// `cel.bind`.
    Bind {
        variable: String,
        value: Box<Expr>,
        body: Box<Expr>,
    },
}

impl Expr {
    /// The names this node and those below use that are bound nowhere inside of it.
    pub(crate) fn free_names<'a>(&'a self, bound: &mut Vec<&'a str>, found: &mut Vec<&'a str>) {
        match &self.node {
            Node::Literal(_) => {}
            Node::Message { fields, .. } => {
                for (_, value, _) in fields {
                    value.free_names(bound, found);
                }
            }
            Node::Ident(name) => {
                if !bound.contains(&name.as_str()) && !found.contains(&name.as_str()) {
                    found.push(name);
                }
            }
            Node::Select { operand, .. } => operand.free_names(bound, found),
            Node::Index { operand, index, .. } => {
                operand.free_names(bound, found);
                index.free_names(bound, found);
            }
            Node::Call { target, args, .. } => {
                for expr in target.as_deref().into_iter().chain(args) {
                    expr.free_names(bound, found);
                }
            }
            Node::And(left, right) | Node::Or(left, right) => {
                left.free_names(bound, found);
                right.free_names(bound, found);
            }
            Node::Conditional(test, yes, no) => {
                for expr in [test, yes, no] {
                    expr.free_names(bound, found);
                }
            }
            Node::List(items) => items.iter().for_each(|(item, _)| item.free_names(bound, found)),
            Node::Map(entries) => {
                for (key, value, _) in entries {
                    key.free_names(bound, found);
                    value.free_names(bound, found);
                }
            }
            Node::Loop { range, first, second, filter, body, .. } => {
                range.free_names(bound, found);
                let depth = bound.len();
                bound.push(first);
                bound.extend(second.as_deref());
                for expr in filter.as_deref().into_iter().chain([&**body]) {
                    expr.free_names(bound, found);
                }
                bound.truncate(depth);
            }
            Node::OptionalMap { target: value, variable, body, .. } | Node::Bind { variable, value, body } => {
                value.free_names(bound, found);
                bound.push(variable);
                body.free_names(bound, found);
                bound.pop();
            }
        }
    }
}
