//! nginx's language: directives of words, each ended by `;` or followed by a block.

use std::path::{Path, PathBuf};

use crate::import::words::Worded;
use crate::import::{ImportError, plan, read};

/// Files that include each other are followed so deep.
const DEPTH_MAX: usize = 8;
/// Blocks within blocks, so deep.
const NESTED_MAX: usize = 32;

/// A directive.
#[derive(Debug, Clone)]
pub(super) struct Directive {
    pub(super) path: PathBuf,
    pub(super) line: usize,
    pub(super) words: Vec<String>,
    pub(super) block: Vec<Directive>,
}

impl Worded for Directive {
    fn words(&self) -> &[String] {
        &self.words
    }
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    End,
    Open,
    Close,
}

/// Reads a file's directives, included files in the places of their `include`.
pub(super) fn parse(path: &Path, text: &str, depth: usize) -> Result<Vec<Directive>, ImportError> {
    let tokens = tokens(path, text)?;
    let mut tokens = tokens.into_iter();
    let found = block(path, &mut tokens, 0, depth)?;
    Ok(found)
}

fn broken(path: &Path, line: usize, message: &str) -> ImportError {
    ImportError::Broken { path: path.to_owned(), line, message: message.to_owned() }
}

/// Directives up to the end of the block; of the file if `nested` is 0.
fn block(
    path: &Path,
    tokens: &mut std::vec::IntoIter<(usize, Token)>,
    nested: usize,
    depth: usize,
) -> Result<Vec<Directive>, ImportError> {
    let mut found = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut begun = 0;
    let mut last = 0;
    while let Some((line, token)) = tokens.next() {
        last = line;
        match token {
            Token::Word(word) => {
                if words.is_empty() {
                    begun = line;
                }
                words.push(word);
            }
            Token::End | Token::Open if words.is_empty() => {
                return Err(broken(path, line, "there is no directive before this"));
            }
            Token::Open if nested >= NESTED_MAX => return Err(broken(path, line, "too many blocks in one another")),
            Token::End | Token::Open => {
                let inner = if token == Token::Open { block(path, tokens, nested + 1, depth)? } else { Vec::new() };
                let words = std::mem::take(&mut words);
                if words[0] == "include" {
                    found.extend(include(path, begun, words.get(1).map_or("", String::as_str), depth)?);
                } else {
                    found.push(Directive { path: path.to_owned(), line: begun, words, block: inner });
                }
            }
            Token::Close if nested == 0 => return Err(broken(path, line, "this } closes nothing")),
            Token::Close if words.is_empty() => return Ok(found),
            Token::Close => return Err(broken(path, begun, "this directive has no ; at its end")),
        }
    }
    match (nested, words.is_empty()) {
        (0, true) => Ok(found),
        (_, false) => Err(broken(path, begun, "this directive has no ; at its end")),
        (_, true) => Err(broken(path, last, "a block is never closed")),
    }
}

/// The directives of included files. One that is not there is an error in nginx, and no more than a missing part here: what
/// matters is usually not in `mime.types`.
fn include(path: &Path, line: usize, pattern: &str, depth: usize) -> Result<Vec<Directive>, ImportError> {
    if depth >= DEPTH_MAX {
        return Err(broken(path, line, "too many files include one another"));
    }
    let wanted = plan::beside(path, pattern);
    let mut found = Vec::new();
    for file in matching(&wanted) {
        if file.file_name().is_some_and(|it| it == "mime.types") {
            continue;
        }
        match read(&file) {
            Ok(text) => found.extend(parse(&file, &text, depth + 1)?),
            Err(_) => found.push(Directive {
                path: path.to_owned(),
                line,
                words: vec!["include".to_owned(), pattern.to_owned()],
                block: Vec::new(),
            }),
        }
    }
    Ok(found)
}

/// The files of a pattern with `*` in its last part, sorted.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((before, after)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let folder = pattern.parent().unwrap_or(Path::new("."));
    let fits = |name: &str| {
        name.len() >= before.len() + after.len()
            && name.starts_with(before)
            && name.ends_with(after)
            && !name.starts_with('.')
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter(|it| fits(&it.file_name().to_string_lossy()))
        .map(|it| it.path())
        .filter(|it| it.is_file())
        .collect();
    files.sort();
    files
}

fn tokens(path: &Path, text: &str) -> Result<Vec<(usize, Token)>, ImportError> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    let mut line = 1;
    while let Some(char) = chars.next() {
        match char {
            '\n' => line += 1,
            it if it.is_whitespace() => {}
            '#' => while chars.next_if(|it| *it != '\n').is_some() {},
            ';' => found.push((line, Token::End)),
            '{' => found.push((line, Token::Open)),
            '}' => found.push((line, Token::Close)),
            '"' | '\'' => {
                let begun = line;
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some(it) if it == char => break,
                        Some('\\') => match chars.next() {
                            Some(it) if it == char || it == '\\' => word.push(it),
                            Some(it) => word.extend(['\\', it]),
                            None => {}
                        },
                        Some(it) => {
                            line += usize::from(it == '\n');
                            word.push(it);
                        }
                        None => return Err(broken(path, begun, "a quotation is never closed")),
                    }
                }
                found.push((begun, Token::Word(word)));
            }
            first => {
                let mut word = String::from(first);
                loop {
                    let next = chars.next_if(|it| !it.is_whitespace() && !matches!(it, ';' | '{'));
                    // `${name}` is a variable, not a block.
                    let next = match next {
                        None if word.ends_with('$') => chars.next_if(|it| *it == '{'),
                        next => next,
                    };
                    match next {
                        Some('\\') => word.extend(['\\'].into_iter().chain(chars.next())),
                        Some(it) => word.push(it),
                        None => break,
                    }
                }
                found.push((line, Token::Word(word)));
            }
        }
    }
    Ok(found)
}
