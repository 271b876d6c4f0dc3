//! A serde deserializer over a placed tree. It adds to any type's own `Deserialize` what plain serde
//! cannot give: the path and place of an error, and the list of fields the type did not know.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{DocumentError, Field, Node, Place, Value};

/// A typed value and what was left over.
#[derive(Clone, Debug)]
pub struct Reading<T> {
    pub value: T,
    /// One entry per field the type does not have.
    pub unknown: Vec<DocumentError>,
}

/// Reads a `T` out of a tree. `null` fields count as absent, as in the API.
///
/// # Errors
/// The first value of a wrong type, with its path and place.
pub fn read<T: DeserializeOwned>(node: &Node) -> Result<Reading<T>, DocumentError> {
    let unknown = RefCell::new(Vec::new());
    let nulls = Nulls::default();
    let reader = NodeReader { node, path: &Path::Root, unknown: &unknown, nulls: &nulls };
    match T::deserialize(reader) {
        Ok(value) => {
            let mut unknown = unknown.into_inner();
            unknown.extend(unknown_nulls::<T>(node, nulls.met.get()));
            Ok(Reading { value, unknown })
        }
        Err(error) => {
            let (place, path) = error.at.unwrap_or_else(|| (node.place.clone(), String::new()));
            Err(DocumentError { place, path, message: error.message })
        }
    }
}

/// Fields that are null: absent to the type that is read, and yet they may be misspelt. Each one is
/// shown to the type once more, alone, to learn whether the type has a field of its name.
#[derive(Debug, Default)]
struct Nulls {
    /// Null fields met so far in this reading.
    met: Cell<usize>,
    /// The one that is shown, counted from 0.
    shown: Option<usize>,
    /// Set where the type asked for its value.
    known: Cell<bool>,
}

/// More null fields than this are not looked at: each costs a reading of the whole document.
const MAX_NULLS: usize = 64;

fn unknown_nulls<T: DeserializeOwned>(node: &Node, met: usize) -> Vec<DocumentError> {
    let mut found = Vec::new();
    for shown in 0..met.min(MAX_NULLS) {
        let unknown = RefCell::new(Vec::new());
        let nulls = Nulls { shown: Some(shown), ..Nulls::default() };
        let reader = NodeReader { node, path: &Path::Root, unknown: &unknown, nulls: &nulls };
        // A type that knows the field refuses its value, which ends this reading early.
        let _ = T::deserialize(reader);
        if !nulls.known.get() {
            found.extend(unknown.into_inner().into_iter().filter(|field| field.message == NULL_FIELD));
        }
    }
    found.iter_mut().for_each(|field| field.message = UNKNOWN_FIELD.to_owned());
    found
}

const UNKNOWN_FIELD: &str = "unknown field";
const NULL_FIELD: &str = "unknown null field";

/// The way from the root to a node, kept on the stack: no allocation until it is shown.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Debug)]
struct ReadError {
    message: String,
    at: Option<(Place, String)>,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReadError {}

impl serde::de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), at: None }
    }
}

#[derive(Clone, Copy)]
struct NodeReader<'de, 'p> {
    node: &'de Node,
    path: &'p Path<'p>,
    unknown: &'p RefCell<Vec<DocumentError>>,
    nulls: &'p Nulls,
}

impl<'de> NodeReader<'de, '_> {
    /// Gives an error its place, unless a deeper value already did.
    fn placed<T>(&self, result: Result<T, ReadError>) -> Result<T, ReadError> {
        result.map_err(|mut error| {
            error.at.get_or_insert_with(|| (self.node.place.clone(), self.path.to_string()));
            error
        })
    }

    fn visit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Int(int) => visitor.visit_i64(*int),
            Value::Uint(uint) => visitor.visit_u64(*uint),
            Value::Float(float) => visitor.visit_f64(*float),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items { reader: self, items, next: 0 }),
            Value::Map(fields) => visitor.visit_map(Fields { reader: self, fields, next: 0 }),
        }
    }
}

impl<'de> Deserializer<'de> for NodeReader<'de, '_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.placed(self.visit(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => self.placed(visitor.visit_some(self)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.placed(visitor.visit_newtype_struct(self))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let result = match &self.node.value {
            Value::Text(text) => visitor.visit_enum(BorrowedStrDeserializer::<ReadError>::new(text)),
            _ => self.visit(visitor),
        };
        self.placed(result)
    }

    /// Types ask for this where they do not know a field.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.unknown.borrow_mut().push(DocumentError {
            place: self.node.place.clone(),
            path: self.path.to_string(),
            message: UNKNOWN_FIELD.to_owned(),
        });
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier
    }
}

struct Items<'de, 'p> {
    reader: NodeReader<'de, 'p>,
    items: &'de [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some(node) = self.items.get(self.next) else { return Ok(None) };
        let path = Path::Index(self.reader.path, self.next);
        self.next += 1;
        let reader = NodeReader { node, path: &path, ..self.reader };
        // Here too: a type may refuse a value after it was read (a duration, say).
        reader.placed(seed.deserialize(reader)).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.next)
    }
}

struct Fields<'de, 'p> {
    reader: NodeReader<'de, 'p>,
    fields: &'de [Field],
    /// Index of the field whose key is read next; its value is at `next - 1` after that.
    next: usize,
}

impl<'de> MapAccess<'de> for Fields<'de, '_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        while self.fields.get(self.next).is_some_and(|field| field.node.value == Value::Null) {
            let nulls = self.reader.nulls;
            let met = nulls.met.get();
            nulls.met.set(met + 1);
            if nulls.shown == Some(met) {
                break;
            }
            self.next += 1;
        }
        let Some(field) = self.fields.get(self.next) else { return Ok(None) };
        self.next += 1;
        seed.deserialize(BorrowedStrDeserializer::new(&field.name)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ReadError> {
        let field = &self.fields[self.next - 1];
        let path = Path::Field(self.reader.path, &field.name);
        if field.node.value == Value::Null {
            return seed.deserialize(NullField { reader: self.reader, path, place: &field.place });
        }
        let reader = NodeReader { node: &field.node, path: &path, ..self.reader };
        reader.placed(seed.deserialize(reader))
    }
}

/// A null field that is shown to the type: whoever asks for any value of it knows it.
struct NullField<'de, 'p> {
    reader: NodeReader<'de, 'p>,
    path: Path<'p>,
    place: &'de Place,
}

impl<'de> Deserializer<'de> for NullField<'de, '_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, ReadError> {
        self.reader.nulls.known.set(true);
        Err(serde::de::Error::custom("the field is known"))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.reader.unknown.borrow_mut().push(DocumentError {
            place: self.place.clone(),
            path: self.path.to_string(),
            message: NULL_FIELD.to_owned(),
        });
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}
