//! What toml and serde say about a file, in words for whoever wrote it: where the first of two is, which section a key belongs to,
//! what a word of WireGuard's is called here, and which values need quotes.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::report::{Problem, Report, Source};
use super::{choices, schema, wireguard};

/// Words of serde and toml, and what they are to someone who writes a config file.
const PLAIN_WORDS: [(&str, &str); 7] = [
    ("unknown field", "unknown key"),
    ("invalid type: sequence", "invalid type: list"),
    ("expected a sequence", "expected a list, as in [\"…\"]"),
    ("expected a string", "expected text between quotes"),
    ("wanted string or table", "invalid type, expected text between quotes"),
    ("expected a boolean", "expected true or false"),
    ("expected u32", "expected a whole number, at least 0"),
];

const SEE_EXAMPLES: &str = "see the comments in the files that `tieline init` writes";

/// Puts an error of toml's in its place and into plain words.
pub(super) fn report(source: &Source<'_>, error: &toml::de::Error) -> Report {
    let span = error.span().unwrap_or(0..0);
    let message = error.message();
    let known = match message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
        Some((key, rest)) => unknown_key(key, rest.trim_start_matches(", expected ")),
        None if message.starts_with("duplicate key") => Some(twice(source, &span)),
        None if message.starts_with("invalid type") => wants(source, &span, message),
        None => None,
    };
    if let Some(problem) = known {
        return source.at(span, problem);
    }
    // Syntax: where the value stands without quotes, what toml makes of it helps nobody.
    match is_syntax(message).then(|| Assignment::at(source.text, span.start)).flatten() {
        Some(line) => line.report(source, span, message),
        None => source.at(span, plain(message)),
    }
}

fn is_syntax(message: &str) -> bool {
    !["unknown ", "invalid type", "invalid value", "missing "].iter().any(|begin| message.starts_with(begin))
}

/// toml says `invalid this, expected that`: the first half is what is wrong, the second what to do.
fn plain(message: &str) -> Problem {
    let plain = |message: String, (theirs, ours): (&str, &str)| message.replace(theirs, ours);
    let message = PLAIN_WORDS.into_iter().fold(message.to_owned(), plain);
    match message.split_once(", expected ") {
        Some((what, expected)) => Problem::new(what, format!("expected {expected}")),
        None => Problem::new(message, SEE_EXAMPLES),
    }
}

/// A key that is not one of its section's, where more is known than the list `expected` of those.
fn unknown_key(key: &str, expected: &str) -> Option<Problem> {
    let lower = key.to_lowercase();
    let sections = sections();
    let homes = |key: &str| -> Vec<String> {
        let has = |(_, keys): &&(String, Vec<String>)| keys.iter().any(|known| known == key);
        sections.iter().filter(has).map(|(header, _)| header.clone()).filter(|header| !header.is_empty()).collect()
    };
    let here = homes(key);
    if !here.is_empty() {
        let what = format!("unknown key `{key}` in this section");
        return Some(Problem::new(what, format!("write it in {}; expected here: {expected}", here.join(" or "))));
    }
    if let Some(help) = wireguard::counterpart(&lower) {
        return Some(wireguard_word(key, help));
    }
    let known = key != lower && sections.iter().any(|(_, keys)| keys.contains(&lower));
    known.then(|| Problem::new(format!("unknown key `{key}`"), format!("write it in lower case: `{lower}`")))
}

fn wireguard_word(word: &str, help: &str) -> Problem {
    Problem::new(format!("`{word}` is a word of WireGuard"), help)
}

/// Each section's header and its keys, and those of the file itself under an empty header: as the schema has them.
fn sections() -> Vec<(String, Vec<String>)> {
    let keys_under = |header: &str| -> Vec<String> {
        let error = toml::from_str::<schema::File>(&format!("{header}\n\"?\" = 0\n")).err();
        let message = error.map(|error| error.message().to_owned()).unwrap_or_default();
        match message.split_once("unknown field `?`, expected ") {
            Some((_, expected)) => expected.split('`').skip(1).step_by(2).map(str::to_owned).collect(),
            None => Vec::new(),
        }
    };
    let own = keys_under("");
    let headers = own.iter().flat_map(|name| [format!("[{name}]"), format!("[[{name}]]")]);
    let mut all: Vec<_> = headers.map(|header| (header.clone(), keys_under(&header))).collect();
    all.retain(|(_, keys)| !keys.is_empty());
    all.push((String::new(), own));
    all
}

/// A value of another type than its key's, where that key has more to say than its type.
fn wants(source: &Source<'_>, span: &Range<usize>, message: &str) -> Option<Problem> {
    let what = || plain(message).to_string();
    match Assignment::at(source.text, span.start)?.key {
        "interval" => {
            Some(Problem::new(what(), "write a number and its unit between quotes, from \"50ms\" to \"60s\""))
        }
        _ => None,
    }
}

/// A key, or a table, that is there twice.
fn twice(source: &Source<'_>, second: &Range<usize>) -> Problem {
    let name = source.text.get(second.clone()).unwrap_or("?").to_owned();
    let line_start = start_of_line(source.text, second.start);
    let header = source.text[line_start..].trim_start().starts_with('[');
    let first = first_of(source.text, line_start, second, header);
    let first_is_list = first.is_some_and(|at| source.text[..at].ends_with("[["));
    let place = match first.map(|at| source.place(at)) {
        Some((line, column)) => format!(": first in line {line}, column {column}"),
        None => String::new(),
    };
    match header {
        true if first_is_list => {
            Problem::new(format!("table `{name}` is there twice{place}"), format!("write [[{name}]] for each of them"))
        }
        true => Problem::new(
            format!("table `{name}` is there twice{place}"),
            format!("put the lines of both under one [{name}]"),
        ),
        false => Problem::new(format!("`{name}` is set twice{place}"), "keep one of the two lines"),
    }
}

/// Where the first of two keys is: what comes before the line of the second is a file without the fault.
fn first_of(text: &str, line_start: usize, second: &Range<usize>, header: bool) -> Option<usize> {
    const HERE: &str = "the-second-is-here";
    let before = format!("{}{HERE} = 0\n", &text[..line_start]);
    let (root, _errors) = DeTable::parse_recoverable(&before);
    let mut table = match header {
        true => root.get_ref(),
        false => table_with(root.get_ref(), HERE)?,
    };
    let path = text.get(line_start..second.end)?.trim_start().trim_start_matches('[');
    let mut parts = path.split('.').map(|part| part.trim().trim_matches(['"', '\''])).peekable();
    while let Some(part) = parts.next() {
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == part)?;
        if parts.peek().is_none() {
            return Some(key.span().start);
        }
        table = last_table(value.get_ref())?;
    }
    None
}

/// The table that a value is, or the last of a list of tables.
fn last_table<'a, 'i>(value: &'a DeValue<'i>) -> Option<&'a DeTable<'i>> {
    match value {
        DeValue::Table(table) => Some(table),
        DeValue::Array(list) => last_table(list.get(list.len().checked_sub(1)?)?.get_ref()),
        _ => None,
    }
}

/// The table that has this key, wherever it is.
fn table_with<'a, 'i>(table: &'a DeTable<'i>, wanted: &str) -> Option<&'a DeTable<'i>> {
    if table.iter().any(|(key, _)| key.get_ref() == wanted) {
        return Some(table);
    }
    table.iter().find_map(|(_, value)| table_with(last_table(value.get_ref())?, wanted))
}

fn start_of_line(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// A line `key = value` of the file.
struct Assignment<'a> {
    key: &'a str,
    value: &'a str,
    /// Where each begins in the file.
    key_at: usize,
    value_at: usize,
}

impl<'a> Assignment<'a> {
    /// The one around a place, if there is one.
    fn at(text: &'a str, place: usize) -> Option<Assignment<'a>> {
        let mut place = place.min(text.len());
        while !text.is_char_boundary(place) {
            place -= 1;
        }
        let start = start_of_line(text, place);
        let line = text[start..].lines().next()?;
        let (key, value) = line.split_once('=')?;
        let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let name = key.trim();
        if name.is_empty() || !name.chars().all(is_bare) {
            return None;
        }
        let value_at = start + key.len() + 1 + (value.len() - value.trim_start().len());
        let value = value.split('#').next().unwrap_or_default().trim();
        Some(Assignment { key: name, value, key_at: start + (key.len() - key.trim_start().len()), value_at })
    }

    /// Whether the value is meant as text and has no quotes.
    fn is_bare_text(&self) -> bool {
        let quoted = self.value.starts_with(['"', '\'', '[', '{']);
        let other = self.value.parse::<f64>().is_ok() || matches!(self.value, "" | "true" | "false");
        !quoted && !other
    }

    /// What is wrong with this line, of which toml says `message` at `span`.
    fn report(&self, source: &Source<'_>, span: Range<usize>, message: &str) -> Report {
        let lower = self.key.to_lowercase();
        if lower != self.key
            && let Some(help) = wireguard::counterpart(&lower)
        {
            let place = self.key_at..self.key_at + self.key.len();
            return source.at(place, wireguard_word(self.key, help));
        }
        if !self.is_bare_text() {
            return source.at(span, plain(message));
        }
        let help = match self.key {
            "address" | "routes" => format!("write a list of texts between quotes: [\"{}\"]", self.value),
            key => match choices::of_key(key) {
                Some(words) => format!("write {words}"),
                None => format!("write it between quotes: \"{}\"", self.value),
            },
        };
        let place = self.value_at..self.value_at + self.value.len();
        source.at(place, Problem::new("this value needs quotes", help))
    }
}
