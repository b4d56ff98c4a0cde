//! Any text as each kind of key, as it is and with the checksum made right: a key that is read is written back as the one
//! spelling it has, and no error or masked text has a secret in it.
#![no_main]

use bech32::{Bech32m, Fe32, Hrp, primitives::iter::Fe32IterExt};
use libfuzzer_sys::fuzz_target;
use tieline::keys::{KeyError, PresharedKey, PublicKey, SecretKey, mask_secrets};

fuzz_target!(|text: &str| {
    check(text);
    if let Some(mended) = mend(text) {
        check(&mended);
    }
});

/// The text with the checksum its last six characters should be, in lower case.
fn mend(text: &str) -> Option<String> {
    let (prefix, data) = text.trim().split_once('1')?;
    let hrp = Hrp::parse(&prefix.to_lowercase()).ok()?;
    let values = data.chars().map(Fe32::from_char).collect::<Result<Vec<_>, _>>().ok()?;
    let values = values.split_last_chunk::<6>()?.0;
    Some(values.iter().copied().with_checksum::<Bech32m>(&hrp).chars().collect())
}

fn check(text: &str) {
    let public = text.parse::<PublicKey>().map(|key| key.to_string());
    let secret = SecretKey::parse(text).map(|key| key.encode().to_string());
    let preshared = PresharedKey::parse(text).map(|key| key.encode().to_string());
    let kinds = [public, secret, preshared];
    assert!(kinds.iter().filter(|kind| kind.is_ok()).count() <= 1, "no text is two kinds of key");
    for kind in kinds {
        match kind {
            Ok(again) => check_key(&again, text),
            Err(error) => check_error(&error),
        }
    }
    let masked = mask_secrets(text);
    assert_eq!(mask_secrets(&masked), masked, "nothing is left to be masked");
    let is_secret = |word: &str| SecretKey::parse(word).is_ok() || PresharedKey::parse(word).is_ok();
    assert!(!masked.split(|c: char| !c.is_ascii_alphanumeric()).any(is_secret));
}

/// A key has one spelling, in one case; of a secret one no more is shown than what kind it is.
fn check_key(again: &str, text: &str) {
    let (text, masked) = (text.trim(), mask_secrets(text));
    assert!(again.eq_ignore_ascii_case(text));
    assert!(text == text.to_ascii_lowercase() || text == text.to_ascii_uppercase());
    let (kind, rest) = masked.trim().split_once('1').expect("what kind of key it is");
    assert!(rest.chars().all(|c| c == '*') != kind.eq_ignore_ascii_case("tlpub"));
}

fn check_error(error: &KeyError) {
    assert!(!error.to_string().is_empty() && !error.help().is_empty());
}
