//! From words to a tree, macros included.
//!
//! Guarantees: nesting is limited to [`DEPTH_MAX`], the tree to [`NODES_MAX`] nodes; no input panics.
//!
//! Source: <https://github.com/google/cel-spec/blob/master/doc/langdef.md>; optional syntax and macros of two variables
//! from <https://pkg.go.dev/github.com/google/cel-go/cel> and <https://pkg.go.dev/github.com/google/cel-go/ext>.

use super::ast::{Expr, Literal, Loop, Node};
use super::lexer::{Token, tokens};
use super::{CompileError, functions, unescape};

/// Deepest nesting of an expression.
const DEPTH_MAX: usize = 160;
/// Most nodes of an expression.
const NODES_MAX: usize = 20_000;
/// Longest source, in bytes.
const SOURCE_MAX: usize = 100_000;

/// Words that can name neither a variable nor a function.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Binary operators with their strength; stronger binds tighter. `&&` and `||` are apart.
const OPERATORS: &[(&str, u8, &str)] = &[
    ("<", 3, "_<_"),
    ("<=", 3, "_<=_"),
    (">", 3, "_>_"),
    (">=", 3, "_>=_"),
    ("==", 3, "_==_"),
    ("!=", 3, "_!=_"),
    ("in", 3, "@in"),
    ("+", 4, "_+_"),
    ("-", 4, "_-_"),
    ("*", 5, "_*_"),
    ("/", 5, "_/_"),
    ("%", 5, "_%_"),
    ("||", 1, "_||_"),
    ("&&", 2, "_&&_"),
];

/// Reads an expression.
pub(super) fn parse(source: &str) -> Result<Expr, CompileError> {
    if source.len() > SOURCE_MAX {
        return Err(CompileError::at("", 0, format!("the expression is longer than {SOURCE_MAX} bytes")));
    }
    let mut parser = Parser { source, tokens: tokens(source)?, next: 0, depth: 0, nodes: 0 };
    let expr = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => Err(parser.unexpected()),
    }
}

/// `Object.spec`, when an expression is nothing but names with dots between.
fn dotted(expr: &Expr) -> Option<String> {
    match &expr.node {
        Node::Ident(name) => Some(name.clone()),
        Node::Select { operand, field, test: false, optional: false } => Some(format!("{}.{field}", dotted(operand)?)),
        _ => None,
    }
}

struct Parser<'a> {
    source: &'a str,
    tokens: Vec<(Token, u32)>,
    next: usize,
    depth: usize,
    nodes: usize,
}

type Parsed = Result<Expr, CompileError>;

impl Parser<'_> {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].0
    }

    fn at(&self) -> u32 {
        self.tokens[self.next].1
    }

    fn advance(&mut self) -> Token {
        let token = self.tokens[self.next].0.clone();
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
        token
    }

    fn eat(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(next) if *next == sign);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), CompileError> {
        if self.eat(sign) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn error(&self, at: u32, message: impl Into<String>) -> CompileError {
        CompileError::at(self.source, at, message)
    }

    fn unexpected(&self) -> CompileError {
        let what = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Sign(sign) => (*sign).to_owned(),
            Token::Ident(name) | Token::Quoted(name) => name.clone(),
            Token::Literal(Literal::Text(text)) => format!("{text:?}"),
            Token::Literal(literal) => format!("{literal:?}"),
        };
        self.error(self.at(), format!("Syntax error: mismatched input '{what}' expecting an expression or operator"))
    }

    fn make(&mut self, at: u32, node: Node) -> Parsed {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(self.error(at, format!("the expression has more than {NODES_MAX} parts")));
        }
        Ok(Expr { at, node })
    }

    fn expression(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error(self.at(), format!("expression recursion limit exceeded: {DEPTH_MAX}")));
        }
        let test = self.binary(1)?;
        let at = self.at();
        let result = if self.eat("?") {
            let yes = self.binary(1)?;
            self.expect(":")?;
            let no = self.expression()?;
            self.make(at, Node::Conditional(Box::new(test), Box::new(yes), Box::new(no)))
        } else {
            Ok(test)
        };
        self.depth -= 1;
        result
    }

    /// Operators at least this strong, from left to right.
    fn binary(&mut self, weakest: u8) -> Parsed {
        let mut left = self.unary()?;
        loop {
            let Token::Sign(sign) = self.peek() else { return Ok(left) };
            let Some((_, strength, name)) =
                OPERATORS.iter().find(|(word, strength, _)| word == sign && *strength >= weakest)
            else {
                return Ok(left);
            };
            let at = self.at();
            self.advance();
            let right = self.binary(strength + 1)?;
            let (left_box, right) = (Box::new(left), Box::new(right));
            left = match *name {
                "_&&_" => self.make(at, Node::And(left_box, right))?,
                "_||_" => self.make(at, Node::Or(left_box, right))?,
                name => self.call(at, name, None, vec![*left_box, *right])?,
            };
        }
    }

    fn call(&mut self, at: u32, function: &str, target: Option<Expr>, args: Vec<Expr>) -> Parsed {
        self.make(at, Node::Call { function: function.to_owned(), target: target.map(Box::new), args })
    }

    fn unary(&mut self) -> Parsed {
        let at = self.at();
        let sign = match self.peek() {
            Token::Sign(sign @ ("!" | "-")) => *sign,
            _ => return self.member(),
        };
        let mut count = 0;
        while self.eat(sign) {
            count += 1;
        }
        if sign == "-"
            && count == 1
            && let Token::Literal(literal @ (Literal::Int(_) | Literal::Double(_))) = self.peek().clone()
        {
            // A negative number is one literal, so that the smallest int can be written.
            self.advance();
            let negative = match literal {
                Literal::Int(value) => Literal::Int(value.wrapping_neg()),
                Literal::Double(value) => Literal::Double(-value),
                other => other,
            };
            let literal = self.make(at, Node::Literal(negative))?;
            return self.suffixes(literal);
        }
        let operand = self.member()?;
        let name = if sign == "!" { "!_" } else { "-_" };
        // Pairs cancel out.
        if count % 2 == 0 { Ok(operand) } else { self.call(at, name, None, vec![operand]) }
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.suffixes(primary)
    }

    fn suffixes(&mut self, mut expr: Expr) -> Parsed {
        loop {
            let at = self.at();
            if self.eat(".") {
                let optional = self.eat("?");
                let quoted = matches!(self.peek(), Token::Quoted(_));
                let name = match self.advance() {
                    Token::Ident(name) | Token::Quoted(name) => name,
                    Token::Sign("in") => "in".to_owned(),
                    _ => {
                        self.next = self.next.saturating_sub(1);
                        return Err(self.unexpected());
                    }
                };
                expr = if !optional && !quoted && self.eat("(") {
                    let args = self.arguments(")")?;
                    self.method(at, expr, &name, args)?
                } else {
                    let operand = Box::new(expr);
                    self.make(at, Node::Select { operand, field: name, test: false, optional })?
                };
            } else if self.eat("[") {
                let optional = self.eat("?");
                let index = self.expression()?;
                self.expect("]")?;
                expr = self.make(at, Node::Index { operand: Box::new(expr), index: Box::new(index), optional })?;
            } else if matches!(self.peek(), Token::Sign("{"))
                && let Some(name) = dotted(&expr)
            {
                self.advance();
                let fields = self.fields()?;
                expr = self.make(expr.at, Node::Message { name, fields })?;
            } else {
                return Ok(expr);
            }
        }
    }

    fn arguments(&mut self, end: &str) -> Result<Vec<Expr>, CompileError> {
        let mut args = Vec::new();
        while !self.eat(end) {
            args.push(self.expression()?);
            if !self.eat(",") {
                self.expect(end)?;
                break;
            }
        }
        Ok(args)
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        match self.peek().clone() {
            Token::Literal(Literal::Int(i64::MIN)) => Err(self.error(at, "Syntax error: invalid int literal")),
            Token::Literal(literal) => {
                self.advance();
                self.make(at, Node::Literal(literal))
            }
            Token::Sign("(") => {
                self.advance();
                let expr = self.expression()?;
                self.expect(")")?;
                Ok(expr)
            }
            Token::Sign("[") => {
                self.advance();
                self.list(at)
            }
            Token::Sign("{") => {
                self.advance();
                self.map(at)
            }
            // A leading dot asks for the outermost name, which is what all names are here.
            Token::Sign(".") => {
                self.advance();
                self.primary()
            }
            Token::Ident(name) => {
                self.advance();
                self.named(at, name)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn named(&mut self, at: u32, name: String) -> Parsed {
        if RESERVED.contains(&name.as_str()) {
            return Err(self.error(at, format!("Syntax error: reserved identifier: {name}")));
        }
        if self.eat("(") {
            let args = self.arguments(")")?;
            if name == "has" {
                return self.has(at, args);
            }
            return self.call(at, &name, None, args);
        }
        self.make(at, Node::Ident(name))
    }

    /// The fields between the braces of a message.
    fn fields(&mut self) -> Result<Vec<(String, Expr, bool)>, CompileError> {
        let mut fields = Vec::new();
        while !self.eat("}") {
            let optional = self.eat("?");
            let name = match self.peek().clone() {
                Token::Ident(name) => unescape(&name),
                Token::Quoted(name) => name,
                Token::Sign("in") => "in".to_owned(),
                _ => return Err(self.unexpected()),
            };
            self.advance();
            self.expect(":")?;
            fields.push((name, self.expression()?, optional));
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(fields)
    }

    fn list(&mut self, at: u32) -> Parsed {
        let mut items = Vec::new();
        while !self.eat("]") {
            let optional = self.eat("?");
            items.push((self.expression()?, optional));
            if !self.eat(",") {
                self.expect("]")?;
                break;
            }
        }
        self.make(at, Node::List(items))
    }

    fn map(&mut self, at: u32) -> Parsed {
        let mut entries = Vec::new();
        while !self.eat("}") {
            let optional = self.eat("?");
            let key = self.expression()?;
            self.expect(":")?;
            entries.push((key, self.expression()?, optional));
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        self.make(at, Node::Map(entries))
    }

    fn has(&mut self, at: u32, args: Vec<Expr>) -> Parsed {
        match <[Expr; 1]>::try_from(args) {
            Ok([Expr { node: Node::Select { operand, field, test: false, optional: false }, .. }]) => {
                self.make(at, Node::Select { operand, field, test: true, optional: false })
            }
            _ => Err(self.error(at, "invalid argument to has() macro")),
        }
    }

    /// A method, or one of the macros that look like one.
    fn method(&mut self, at: u32, target: Expr, name: &str, mut args: Vec<Expr>) -> Parsed {
        let one = match (name, args.len()) {
            ("all", 2 | 3) => Some(Loop::All),
            ("exists", 2 | 3) => Some(Loop::Exists),
            ("exists_one" | "existsOne", 2) | ("existsOne", 3) => Some(Loop::ExistsOne),
            ("filter", 2) => Some(Loop::Filter),
            ("map", 2 | 3) | ("transformList", 3 | 4) => Some(Loop::Map),
            ("transformMap", 3 | 4) => Some(Loop::TransformMap),
            ("transformMapEntry", 3 | 4) => Some(Loop::TransformMapEntry),
            _ => None,
        };
        if let Some(kind) = one {
            return self.comprehension(at, kind, name, target, args);
        }
        match (name, args.len(), &target.node) {
            ("optMap" | "optFlatMap", 2, _) => {
                let Some(body) = args.pop() else { return Err(self.unexpected()) };
                let variable = self.variable(&args[0])?;
                let (target, body, flat) = (Box::new(target), Box::new(body), name == "optFlatMap");
                self.make(at, Node::OptionalMap { target, variable, body, flat })
            }
            ("bind", 3, Node::Ident(namespace)) if namespace == "cel" => {
                let (Some(body), Some(value)) = (args.pop(), args.pop()) else { return Err(self.unexpected()) };
                let variable = self.variable(&args[0])?;
                self.make(at, Node::Bind { variable, value: Box::new(value), body: Box::new(body) })
            }
            // Functions with a dot in their name, such as `optional.of(x)`.
            (_, _, Node::Ident(namespace)) if functions::find(&format!("{namespace}.{name}"), false).is_some() => {
                let function = format!("{namespace}.{name}");
                self.call(at, &function, None, args)
            }
            _ => self.call(at, name, Some(target), args),
        }
    }

    fn comprehension(&mut self, at: u32, kind: Loop, name: &str, range: Expr, mut args: Vec<Expr>) -> Parsed {
        // The last argument is the body; the three-argument forms of `map` and the four-argument ones have a filter.
        let Some(body) = args.pop() else { return Err(self.unexpected()) };
        let two = name.starts_with("transform") || (name != "map" && args.len() == 2);
        let filter = if args.len() > 1 + usize::from(two) { args.pop() } else { None };
        let first = self.variable(&args[0])?;
        let second = if two { Some(self.variable(&args[1])?) } else { None };
        if second.as_ref() == Some(&first) {
            return Err(self.error(args[1].at, "duplicate variable name: ".to_owned() + &first));
        }
        let (range, body, filter) = (Box::new(range), Box::new(body), filter.map(Box::new));
        self.make(at, Node::Loop { kind, range, first, second, filter, body })
    }

    fn variable(&self, expr: &Expr) -> Result<String, CompileError> {
        match &expr.node {
            Node::Ident(name) => Ok(name.clone()),
            _ => Err(self.error(expr.at, "argument must be a simple name")),
        }
    }
}
