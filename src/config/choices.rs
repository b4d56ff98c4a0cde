//! Values that are one of a few words: each is read by its list, and whoever writes another is shown the list.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, Visitor};

use super::{Carrier, Checksum, CipherChoice, Fallback, Layer};

/// A value that is one of a few words.
trait Choice: Copy + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

/// `"peer" or "always"`.
fn listed<T: Choice>() -> String {
    let words: Vec<String> = T::WORDS.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

struct Words<T>(PhantomData<T>);

impl<T: Choice> Visitor<'_> for Words<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&listed::<T>())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        let found = T::WORDS.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            // In serde's form, which is made into a report like all of serde's.
            E::custom(format_args!("unknown value `{text}`, expected {}", listed::<T>()))
        })
    }
}

macro_rules! choices {
    ($($key:literal: $choice:ident { $($word:literal => $value:ident),+ })+) => {
        $(
            impl Choice for $choice {
                const WORDS: &'static [(&'static str, Self)] = &[$(($word, $choice::$value)),+];
            }

            impl<'de> serde::Deserialize<'de> for $choice {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$choice, D::Error> {
                    // Not `deserialize_enum`: toml would say that it wants a string or a table.
                    deserializer.deserialize_any(Words(PhantomData))
                }
            }
        )+

        /// What the key of this name may be, where that is one of a few words.
        pub(super) fn of_key(key: &str) -> Option<String> {
            match key {
                $($key => Some(listed::<$choice>()),)+
                _ => None,
            }
        }
    };
}

choices! {
    "carrier": Carrier { "peer" => Peer, "always" => Always }
    "layer": Layer { "ip" => Ip, "ethernet" => Ethernet }
    "fallback": Fallback { "block" => Block, "clear" => Clear }
    "cipher": CipherChoice {
        "auto" => Auto, "aes-256-gcm" => Aes256Gcm, "chacha20-poly1305" => ChaCha20Poly1305
    }
    "checksum": Checksum { "partial" => Partial, "full" => Full }
}
