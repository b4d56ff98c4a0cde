//! An error or warning as the user sees it: what, where, the line itself with a caret, and what to do.
//!
//! Everything shown goes through [`mask_secrets`] once, at the end: no path leads a secret from the file to the screen.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::keys::mask_secrets;

/// What is wrong with one value (`Display`) and what to do about it, before anyone knows where it stands.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Problem {
    what: String,
    help: String,
}

impl Problem {
    /// What to do about it, as one line.
    #[must_use]
    pub fn help(&self) -> &str {
        &self.help
    }

    pub(super) fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: what.into(), help: help.into() }
    }
}

/// The file's text, and what it is called.
pub(super) struct Source<'a> {
    pub path: &'a Path,
    pub text: &'a str,
}

impl Source<'_> {
    /// Puts a problem at a range of bytes of the text.
    pub fn at(&self, span: Range<usize>, problem: Problem) -> Report {
        let start = floor_char_boundary(self.text, span.start);
        let end = floor_char_boundary(self.text, span.end).max(start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |newline| start + newline);
        let (line, column) = self.place(start);
        let spot = Spot {
            line,
            column,
            width: self.text[start..end.min(line_end)].chars().count().max(1),
            text: self.text[line_start..line_end].trim_end().to_owned(),
        };
        Report { path: self.path.to_owned(), spot: Some(spot), problem }
    }

    /// Line and column of a byte of the text, both from 1.
    pub fn place(&self, at: usize) -> (usize, usize) {
        let at = floor_char_boundary(self.text, at);
        let line_start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        (self.text[..at].matches('\n').count() + 1, self.text[line_start..at].chars().count() + 1)
    }
}

fn floor_char_boundary(text: &str, mut index: usize) -> usize {
    index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

/// One line of the file and the part of it that is meant. Lines and columns count from 1, columns in characters.
#[derive(Debug)]
struct Spot {
    line: usize,
    column: usize,
    width: usize,
    text: String,
}

/// A problem in its place. `Display` gives all but the leading `error: ` or `warning: `.
pub(super) struct Report {
    path: PathBuf,
    spot: Option<Spot>,
    problem: Problem,
}

impl Report {
    /// A problem with the file as a whole.
    pub fn of_file(path: &Path, problem: Problem) -> Self {
        Self { path: path.to_owned(), spot: None, problem }
    }

    fn render(&self) -> String {
        let (path, Problem { what, help }) = (self.path.display(), &self.problem);
        let Some(Spot { line, column, width, text }) = &self.spot else {
            return format!("{what}\n  --> {path}\nhelp: {help}");
        };
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        // A tab stays a tab, so that the caret stands under its character however wide tabs are.
        let indent: String = text.chars().chain(std::iter::repeat(' ')).take(column - 1).map(blank).collect();
        let carets = "^".repeat(*width);
        format!(
            "{what}\n{gutter} --> {path}:{line}:{column}\n{gutter}  |\n{number}  | {text}\n{gutter}  | {indent}{carets}\nhelp: {help}"
        )
    }
}

fn blank(c: char) -> char {
    if c == '\t' { '\t' } else { ' ' }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is in a file must not be able to drive the terminal.
        let tame = |c: char| {
            if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }
        };
        f.write_str(&mask_secrets(&self.render()).chars().map(tame).collect::<String>())
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
