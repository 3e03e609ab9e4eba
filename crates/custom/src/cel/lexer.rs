//! From source text to words.
//!
//! Source: <https://github.com/google/cel-spec/blob/master/doc/langdef.md#syntax>.

use super::CompileError;
use super::ast::Literal;

/// One word of the source.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Literal(Literal),
    Ident(String),
    /// A name in backquotes, which may only name a field.
    Quoted(String),
    /// Operators and punctuation.
    Sign(&'static str),
    End,
}

/// Longest first, so that `<=` is not read as `<`.
const SIGNS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}",
];

/// All words with the byte they begin at.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, u32)>, CompileError> {
    let mut lexer = Lexer { source, at: 0 };
    let mut all = Vec::new();
    loop {
        lexer.blanks();
        let at = lexer.at as u32;
        let token = lexer.next()?;
        let end = token == Token::End;
        all.push((token, at));
        if end {
            return Ok(all);
        }
    }
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn error(&self, at: usize, message: impl Into<String>) -> CompileError {
        CompileError::at(self.source, at as u32, format!("Syntax error: {}", message.into()))
    }

    fn blanks(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']);
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn next(&mut self) -> Result<Token, CompileError> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if first.is_ascii_digit() || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            return self.number();
        }
        if let Some(prefix) = string_prefix(rest) {
            return self.string(prefix);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.at += end;
            return Ok(match &rest[..end] {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                "in" => Token::Sign("in"),
                name => Token::Ident(name.to_owned()),
            });
        }
        if first == '`' {
            let name = rest[1..].split('`').next().unwrap_or_default();
            self.at += name.len() + 2;
            return if self.at <= self.source.len() && !name.is_empty() {
                Ok(Token::Quoted(name.to_owned()))
            } else {
                self.at = self.source.len();
                Err(self.error(self.source.len() - rest.len(), "unterminated quoted identifier"))
            };
        }
        match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(sign) => {
                self.at += sign.len();
                Ok(Token::Sign(sign))
            }
            None => Err(self.error(self.at, format!("token recognition error at: '{first}'"))),
        }
    }

    fn number(&mut self) -> Result<Token, CompileError> {
        let (start, rest) = (self.at, self.rest());
        let take = |from: usize, good: fn(char) -> bool| {
            from + rest[from..].find(|c: char| !good(c)).unwrap_or(rest.len() - from)
        };
        let unsigned = |rest: &str, end: usize| rest[end..].starts_with(['u', 'U']);
        let bad = |lexer: &Self, what: &str| lexer.error(start, format!("invalid {what} literal"));
        if rest.starts_with("0x") || rest.starts_with("0X") {
            let end = take(2, |c| c.is_ascii_hexdigit());
            let value = u64::from_str_radix(&rest[2..end], 16).map_err(|_| bad(self, "int"))?;
            return self.whole(value, end, unsigned(rest, end), start);
        }
        let mut end = take(0, |c| c.is_ascii_digit());
        let mut double = false;
        if rest[end..].starts_with('.') && rest[end + 1..].starts_with(|c: char| c.is_ascii_digit()) {
            (end, double) = (take(end + 1, |c| c.is_ascii_digit()), true);
        }
        let exponent = rest[end..].strip_prefix(['e', 'E']).map(|rest| rest.trim_start_matches(['+', '-']));
        if exponent.is_some_and(|digits| digits.starts_with(|c: char| c.is_ascii_digit())) {
            let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
            (end, double) = (take(end + 1 + sign, |c| c.is_ascii_digit()), true);
        }
        if double {
            self.at += end;
            let value = rest[..end].parse().map_err(|_| bad(self, "double"))?;
            return Ok(Token::Literal(Literal::Double(value)));
        }
        let value = rest[..end].parse().map_err(|_| bad(self, "int"))?;
        self.whole(value, end, unsigned(rest, end), start)
    }

    fn whole(&mut self, value: u64, end: usize, unsigned: bool, start: usize) -> Result<Token, CompileError> {
        self.at += end + usize::from(unsigned);
        if unsigned {
            return Ok(Token::Literal(Literal::Uint(value)));
        }
        // 2^63 is only good behind a minus, which the parser puts together.
        match i64::try_from(value) {
            Ok(value) => Ok(Token::Literal(Literal::Int(value))),
            Err(_) if value == 1 << 63 => Ok(Token::Literal(Literal::Int(i64::MIN))),
            Err(_) => Err(self.error(start, "invalid int literal")),
        }
    }

    fn string(&mut self, prefix: Prefix) -> Result<Token, CompileError> {
        let start = self.at;
        let body = &self.rest()[prefix.len..];
        let quote = if body.starts_with("\"\"\"") || body.starts_with("'''") { &body[..3] } else { &body[..1] };
        let content = &body[quote.len()..];
        let mut end = None;
        let mut escaped = false;
        for (i, c) in content.char_indices() {
            if escaped {
                escaped = false;
            } else if c == '\\' && !prefix.raw {
                escaped = true;
            } else if content[i..].starts_with(quote) {
                end = Some(i);
                break;
            } else if quote.len() == 1 && matches!(c, '\n' | '\r') {
                break;
            }
        }
        let end = end.ok_or_else(|| self.error(start, "unterminated string literal"))?;
        self.at += prefix.len + quote.len() * 2 + end;
        let content = &content[..end];
        let bytes = if prefix.raw { content.as_bytes().to_vec() } else { self.unescape(content, prefix.bytes, start)? };
        if prefix.bytes {
            return Ok(Token::Literal(Literal::Bytes(bytes)));
        }
        let text = String::from_utf8(bytes).map_err(|_| self.error(start, "invalid string literal"))?;
        Ok(Token::Literal(Literal::Text(text)))
    }

    fn unescape(&self, text: &str, bytes: bool, start: usize) -> Result<Vec<u8>, CompileError> {
        let bad = || self.error(start, "invalid escape sequence");
        let mut out = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            if c != '\\' {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            let escape = rest.chars().next().ok_or_else(bad)?;
            let (digits, radix, skip) = match escape {
                'x' | 'X' => (2, 16, 1),
                'u' if !bytes => (4, 16, 1),
                'U' if !bytes => (8, 16, 1),
                '0'..='3' => (3, 8, 0),
                _ => {
                    out.push(match escape {
                        'a' => 7,
                        'b' => 8,
                        'f' => 12,
                        'n' => b'\n',
                        'r' => b'\r',
                        't' => b'\t',
                        'v' => 11,
                        '\\' | '\'' | '"' | '`' | '?' => escape as u8,
                        _ => return Err(bad()),
                    });
                    rest = &rest[1..];
                    continue;
                }
            };
            let code = rest.get(skip..skip + digits).ok_or_else(bad)?;
            let code = u32::from_str_radix(code, radix).map_err(|_| bad())?;
            rest = &rest[skip + digits..];
            if bytes {
                out.push(u8::try_from(code).map_err(|_| bad())?);
            } else {
                let c = char::from_u32(code).ok_or_else(bad)?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(out)
    }
}

#[derive(Clone, Copy)]
struct Prefix {
    len: usize,
    raw: bool,
    bytes: bool,
}

/// The letters before a quote, if a string begins here.
fn string_prefix(rest: &str) -> Option<Prefix> {
    let len = rest.bytes().take(2).take_while(|b| matches!(b, b'r' | b'R' | b'b' | b'B')).count();
    let letters = rest[..len].to_ascii_lowercase();
    let known = matches!(letters.as_str(), "" | "r" | "b" | "rb" | "br");
    (known && rest[len..].starts_with(['"', '\''])).then(|| Prefix {
        len,
        raw: letters.contains('r'),
        bytes: letters.contains('b'),
    })
}
