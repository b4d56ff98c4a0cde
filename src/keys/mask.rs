//! Hiding secrets in text that is about to be shown. Not a parser: what merely looks like a secret is hidden too.

/// What secret strings begin with, in lower case.
const PREFIXES: [&str; 2] = ["tlsecret1", "tlpsk1"];

/// A run of letters and digits this long may be a key whose prefix was damaged, or somebody's base64.
const LONG_RUN: usize = 40;

/// Replaces each secret in `text` by as many stars as it has characters, so that columns stay where they were.
///
/// From `TLSECRET1` or `TLPSK1` (in any case) everything up to a quote or the end of the line goes, for a damaged key
/// may have a blank in it; `TLSECRET1…`, which only names the kind, stays. Runs of 40 letters and digits go as well unless they begin with `tlpub1`.
#[must_use]
pub fn mask_secrets(text: &str) -> String {
    text.split_inclusive('\n').map(mask_line).collect()
}

fn mask_line(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let (shown, hidden) = secret_at(rest);
        if shown + hidden > 0 {
            out.push_str(&rest[..shown]);
            out.extend(rest[shown..shown + hidden].chars().map(|_| '*'));
            rest = &rest[shown + hidden..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// How many bytes at the start of `text` may be shown, and how many after them must not. Both 0: nothing is known yet.
fn secret_at(text: &str) -> (usize, usize) {
    for prefix in PREFIXES {
        if text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix)) {
            if text[prefix.len()..].starts_with('…') {
                return (prefix.len(), 0);
            }
            let end = text.find(['"', '\'', '`', '\n']).unwrap_or(text.len());
            return (prefix.len(), end - prefix.len());
        }
    }
    let run = text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len());
    let is_public = text.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("tlpub1"));
    match run {
        _ if is_public => (run, 0),
        LONG_RUN.. => (0, run),
        _ => (0, 0),
    }
}
