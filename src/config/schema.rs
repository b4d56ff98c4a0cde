//! The shape of the file: which keys there are and of what type, each with its place. Nothing is judged here.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use toml::{Spanned, Value};

/// The whole file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct File {
    pub link: Option<Spanned<Link>>,
    pub local: Option<Spanned<Local>>,
    pub peer: Option<Spanned<Peer>>,
    pub crypto: Crypto,
    pub liveness: Liveness,
    pub path: Vec<Spanned<Path>>,
    pub hooks: Hooks,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Link {
    pub interface: Option<Spanned<String>>,
    pub address: Vec<Spanned<String>>,
    pub routes: Vec<Spanned<String>>,
    pub mtu: Option<Spanned<Value>>,
    pub layer: super::Layer,
    pub mss_clamp: bool,
    pub bridge: Option<Spanned<String>>,
    pub carrier: Option<super::Carrier>,
    pub metric: Option<u32>,
    pub routes_follow: Option<bool>,
    pub duplicate: Option<Spanned<bool>>,
    pub fallback: super::Fallback,
    pub coalesce_udp: bool,
    pub source_filter: Option<Spanned<bool>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Local {
    pub private_key: Option<Spanned<String>>,
    pub listen: Option<Spanned<String>>,
    pub bind: Option<Spanned<String>>,
    pub fwmark: Option<Spanned<u32>>,
    pub dscp: Option<Spanned<Value>>,
    pub user: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Peer {
    pub public_key: Option<Spanned<Texts>>,
    pub endpoint: Option<Spanned<String>>,
    pub preshared_key: Option<Spanned<Texts>>,
}

/// One text, or a list of them.
pub(super) enum Texts {
    One(String),
    List(Vec<Spanned<String>>),
}

impl Texts {
    /// Each with its place.
    pub fn each(texts: &Spanned<Texts>) -> Vec<Spanned<String>> {
        match texts.get_ref() {
            Texts::One(text) => vec![Spanned::new(texts.span(), text.clone())],
            Texts::List(list) => list.clone(),
        }
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Texts, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text between quotes, or a list of it")
            }

            fn visit_str<E>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Texts::List(texts))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Crypto {
    pub cipher: super::CipherChoice,
    pub post_quantum: bool,
    pub checksum: super::Checksum,
}

impl Default for Crypto {
    fn default() -> Self {
        Self { cipher: super::CipherChoice::Auto, post_quantum: true, checksum: super::Checksum::Partial }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Liveness {
    pub interval: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Path {
    pub name: Option<Spanned<String>>,
    pub interface: Option<Spanned<String>>,
    pub local: Option<Spanned<String>>,
    pub endpoint: Option<Spanned<String>>,
    pub priority: u32,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Hooks {
    pub up: Option<Spanned<Vec<String>>>,
    pub down: Option<Spanned<Vec<String>>>,
}
