//! Typed access through serde: any [`Value`] can be read as a type of one's own, borrowed or owned,
//! and written to any format. It decodes what the type asks for and skips the rest.

use crate::text::{decimal, joined, push};
use crate::wire::{Entries, Error, Items, Kind, Number, Value};
use serde::de::{self, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};

/// serde's own texts would link the printing of floats into every rule with a configuration, which
/// is 20 kB; and they do not say where the value stands, which `Error::within` adds.
impl de::Error for Error {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Error::new(printed(&message))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        unexpected(expected, &[kind(found)])
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let (sign, number) = match found {
            Unexpected::Unsigned(number) => ("", number),
            Unexpected::Signed(number) if number < 0 => ("-", number.unsigned_abs()),
            Unexpected::Signed(number) => ("", number.unsigned_abs()),
            Unexpected::Str(text) => return unexpected(expected, &["`", text, "`"]),
            found => return unexpected(expected, &[kind(found)]),
        };
        unexpected(expected, &[sign, &decimal(number)])
    }

    fn invalid_length(len: usize, expected: &dyn Expected) -> Self {
        unexpected(expected, &[&decimal(len as u64)])
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Error::joined(&["unknown variant `", variant, "`", &known(expected)])
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Error::joined(&["unknown key `", field, "`", &known(expected)])
    }

    fn missing_field(field: &'static str) -> Self {
        Error::joined(&["the key `", field, "` is missing"])
    }

    fn duplicate_field(field: &'static str) -> Self {
        Error::joined(&["the key `", field, "` stands twice"])
    }
}

#[inline(never)]
fn unexpected(expected: &dyn Expected, found: &[&str]) -> Error {
    let expected = printed(&expected);
    Error::joined(&["expected ", &expected, ", found ", &joined(found)])
}

/// `to_string`, without what that says when `Display` fails, which is a kilobyte.
fn printed(value: &dyn std::fmt::Display) -> String {
    let mut text = String::new();
    let _ = std::fmt::write(&mut text, format_args!("{value}"));
    text
}

fn kind(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => Kind::Bool.name(),
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => Kind::Integer.name(),
        Unexpected::Float(_) => Kind::Float.name(),
        Unexpected::Str(_) => Kind::Str.name(),
        Unexpected::Unit | Unexpected::Option => Kind::Nil.name(),
        Unexpected::Seq => Kind::Array.name(),
        Unexpected::Map => Kind::Map.name(),
        _ => "something else",
    }
}

fn known(names: &[&str]) -> String {
    let mut list = String::new();
    for name in names {
        let before = if list.is_empty() {
            "; known: `"
        } else {
            "`, `"
        };
        push(&mut list, before);
        push(&mut list, name);
    }
    if !list.is_empty() {
        push(&mut list, "`");
    }
    list
}

impl Error {
    /// The same error, of a value further in.
    fn within(self, step: &str) -> Self {
        let (between, rest) = match self.message().strip_prefix("at /") {
            Some(rest) => ("/", rest),
            None => (": ", self.message()),
        };
        Error::joined(&["at /", step, between, rest])
    }

    fn too_deep() -> Self {
        Error::new("it nests too deep")
    }
}

impl<'de> Value<'de> {
    /// Not what the type asked for.
    fn mismatch(&self, expected: &dyn Expected) -> Error {
        match self.kind() {
            Kind::Other => Error::new("bytes are not allowed here"),
            kind => unexpected(expected, &[kind.name()]),
        }
    }

    fn deserialize_text<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.as_str() {
            Some(text) => visitor.visit_borrowed_str(text),
            None if self.kind() == Kind::Str => Err(Error::new("a string is not UTF-8")),
            None => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_integer<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.number() {
            Some(Number::Unsigned(value)) => visitor.visit_u64(value),
            Some(Number::Signed(value)) => visitor.visit_i64(value),
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.number() {
            Some(Number::Float(value)) => visitor.visit_f64(value),
            _ => self.deserialize_integer(visitor),
        }
    }

    fn deserialize_items<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_too_deep() {
            return Err(Error::too_deep());
        }
        if self.kind() != Kind::Array {
            return Err(self.mismatch(&visitor));
        }
        visitor.visit_seq(Seq {
            items: self.items(),
            given: 0,
        })
    }

    fn deserialize_entries<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_too_deep() {
            return Err(Error::too_deep());
        }
        if self.kind() != Kind::Map {
            return Err(self.mismatch(&visitor));
        }
        visitor.visit_map(Map {
            entries: self.entries(),
            entry: None,
        })
    }
}

/// Methods of one line, which take a visitor and nothing else.
macro_rules! deserialize {
    ($($method:ident)* => $with:ident) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.$with(visitor)
        }
    )*};
}

/// A type that says what it wants gets that or an error, and links nothing for what it does not want.
impl<'de> de::Deserializer<'de> for Value<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.kind() {
            Kind::Nil => visitor.visit_unit(),
            Kind::Bool => self.deserialize_bool(visitor),
            Kind::Integer | Kind::Float => self.deserialize_number(visitor),
            Kind::Str => self.deserialize_text(visitor),
            Kind::Array => self.deserialize_items(visitor),
            Kind::Map => self.deserialize_entries(visitor),
            Kind::Other => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.as_bool() {
            Some(value) => visitor.visit_bool(value),
            None => Err(self.mismatch(&visitor)),
        }
    }

    deserialize!(deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        => deserialize_integer);
    deserialize!(deserialize_f32 deserialize_f64 => deserialize_number);
    deserialize!(deserialize_char deserialize_str deserialize_string deserialize_identifier
        => deserialize_text);
    deserialize!(deserialize_seq => deserialize_items);
    deserialize!(deserialize_map => deserialize_entries);

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_items(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_items(visitor)
    }

    /// From a map alone: by position nobody writes a configuration, and reading it costs code.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_entries(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_nil() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.kind() {
            Kind::Str => match self.as_str() {
                Some(name) => visitor.visit_enum(Variant { name, value: None }),
                None => Err(Error::new("a string is not UTF-8")),
            },
            Kind::Map if self.len() == 1 => match self.entries().next() {
                Some((name, value)) => visitor.visit_enum(Variant {
                    name,
                    value: Some(value),
                }),
                None => Err(Error::new("a map key is not a string")),
            },
            _ => Err(Error::new(
                "expected a variant's name, or a map of one entry",
            )),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! { bytes byte_buf unit unit_struct }
}

struct Seq<'de> {
    items: Items<'de>,
    given: u64,
}

impl<'de> de::SeqAccess<'de> for Seq<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(value) = self.items.next() else {
            return Ok(None);
        };
        let read = seed.deserialize(value);
        let read = read.map_err(|error| error.within(&decimal(self.given)))?;
        self.given += 1;
        Ok(Some(read))
    }
}

struct Map<'de> {
    entries: Entries<'de>,
    /// The entry whose key was read.
    entry: Option<(&'de str, Value<'de>)>,
}

impl<'de> de::MapAccess<'de> for Map<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.entry = self.entries.next();
        let Some((key, _)) = self.entry else {
            return Ok(None);
        };
        seed.deserialize(de::value::BorrowedStrDeserializer::new(key))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        match self.entry.take() {
            Some((key, value)) => {
                let read = seed.deserialize(value);
                read.map_err(|error| error.within(key))
            }
            None => Err(Error::new("a map's value was read before its key")),
        }
    }
}

struct Variant<'de> {
    name: &'de str,
    value: Option<Value<'de>>,
}

impl<'de> de::EnumAccess<'de> for Variant<'de> {
    type Error = Error;
    type Variant = VariantValue<'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self::Variant), Error> {
        let name: de::value::StrDeserializer<'_, Error> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, VariantValue(self.value)))
    }
}

struct VariantValue<'de>(Option<Value<'de>>);

impl<'de> de::VariantAccess<'de> for VariantValue<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.0 {
            None => Ok(()),
            Some(_) => Err(Error::new("a variant has a value where none belongs")),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        match self.0 {
            Some(value) => seed.deserialize(value),
            None => Err(Error::new("a variant lacks its value")),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Some(value) => de::Deserializer::deserialize_seq(value, visitor),
            None => Err(Error::new("a variant lacks its value")),
        }
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Some(value) => de::Deserializer::deserialize_map(value, visitor),
            None => Err(Error::new("a variant lacks its value")),
        }
    }
}

impl serde::Serialize for Value<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.is_too_deep() {
            return Err(serde::ser::Error::custom("it nests too deep"));
        }
        match self.kind() {
            Kind::Nil | Kind::Other => to.serialize_unit(),
            Kind::Bool => to.serialize_bool(self.as_bool().unwrap_or_default()),
            Kind::Integer => match self.as_u64() {
                Some(value) => to.serialize_u64(value),
                None => to.serialize_i64(self.as_i64().unwrap_or_default()),
            },
            Kind::Float => to.serialize_f64(self.as_f64().unwrap_or_default()),
            Kind::Str => to.serialize_str(self.as_str().unwrap_or_default()),
            Kind::Array => {
                let mut seq = to.serialize_seq(Some(self.len()))?;
                for item in self.items() {
                    seq.serialize_element(&item)?;
                }
                seq.end()
            }
            Kind::Map => {
                let mut map = to.serialize_map(Some(self.len()))?;
                for (key, value) in self.entries() {
                    map.serialize_entry(key, &value)?;
                }
                map.end()
            }
        }
    }
}
