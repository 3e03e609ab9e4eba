//! The grammar of label selector text.

use super::{Operator, Requirement, SelectorError};

/// Reads `text` from left to right: requirements separated by commas.
pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut reader = Reader { rest: text.trim_start() };
    let mut all = Vec::new();
    while !reader.rest.is_empty() {
        all.push(reader.requirement()?);
        if !reader.rest.is_empty() {
            reader.expect(",")?;
            if reader.rest.is_empty() {
                return Err(SelectorError::Parse("found '', expected: identifier after ','".to_owned()));
            }
        }
    }
    Ok(all)
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), SelectorError> {
        if self.take(token) {
            return Ok(());
        }
        let found: String = self.rest.chars().take(20).collect();
        Err(SelectorError::Parse(format!("found '{found}', expected: '{token}'")))
    }

    /// A run of characters that are neither white space nor punctuation; may be empty.
    fn word(&mut self) -> &'a str {
        let special = |c: char| c.is_whitespace() || matches!(c, ',' | '(' | ')' | '=' | '!' | '<' | '>');
        let (word, rest) = self.rest.split_at(self.rest.find(special).unwrap_or(self.rest.len()));
        self.rest = rest.trim_start();
        word
    }

    fn key(&mut self) -> Result<&'a str, SelectorError> {
        match self.word() {
            "" => {
                let found: String = self.rest.chars().take(1).collect();
                Err(SelectorError::Parse(format!("found '{found}', expected: !, identifier, or 'end of string'")))
            }
            key => Ok(key),
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.take("!") {
            return Requirement::new(self.key()?, Operator::DoesNotExist, Vec::new());
        }
        let key = self.key()?;
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let single = [
            ("==", Operator::In),
            ("=", Operator::In),
            ("!=", Operator::NotIn),
            (">", Operator::GreaterThan),
            ("<", Operator::LessThan),
        ];
        for (token, operator) in single {
            if self.take(token) {
                return Requirement::new(key, operator, vec![self.word().to_owned()]);
            }
        }
        let operator = match self.word() {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            other => {
                return Err(SelectorError::Parse(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")));
            }
        };
        Requirement::new(key, operator, self.set()?)
    }

    /// `(x, y)`; an empty item is the empty value.
    fn set(&mut self) -> Result<Vec<String>, SelectorError> {
        self.expect("(")?;
        let mut values = Vec::new();
        loop {
            values.push(self.word().to_owned());
            if self.take(")") {
                return Ok(values);
            }
            self.expect(",")?;
        }
    }
}
