//! JSON in which no object has a key twice. Most parsers silently keep one of the two values; here that could
//! be the wrong chunk length.

use core::fmt;
use std::collections::BTreeSet;
use std::format;
use std::string::{String, ToString};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Error, Result};

/// The bytes of the longest text that is parsed into values. Values take some twenty times as much memory as
/// their text, and more if the text is hostile.
const LONGEST: usize = 1 << 20;

/// Parses JSON; `what` names the text in an error.
pub(super) fn parse(text: &[u8], what: &'static str) -> Result<Value> {
    if text.len() > LONGEST {
        return Err(Error::Json { what, reason: format!("it is longer than {LONGEST} bytes") });
    }
    check(text, what)?;
    read(text, what)
}

/// Checks that the text is JSON in which no object has a key twice. Only the keys of objects that are not yet
/// closed take memory.
pub(super) fn check(text: &[u8], what: &'static str) -> Result<()> {
    read::<Unique>(text, what).map(|_| ())
}

fn read<'de, T: Deserialize<'de>>(text: &'de [u8], what: &'static str) -> Result<T> {
    serde_json::from_slice(text).map_err(|e| Error::Json { what, reason: e.to_string() })
}

/// Any value, of which nothing is kept.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> core::result::Result<Self, D::Error> {
        deserializer.deserialize_any(Unique)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> core::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> core::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> core::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> core::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> core::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> core::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> core::result::Result<Self, A::Error> {
        while items.next_element::<Unique>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> core::result::Result<Self, A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if keys.contains(&key) {
                return Err(A::Error::custom(format!("the key `{key}` is there twice")));
            }
            keys.insert(key);
            entries.next_value::<Unique>()?;
        }
        Ok(self)
    }
}
