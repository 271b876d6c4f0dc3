//! Objects of one claim in little room: elements are kept as the bytes of their keys and values, where
//! `Objects` has more than 120 for each. What was put in comes out again equal; nothing is decided here.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::nft::{Data, ElementKey, ElementValue, Packed};
use super::object::{ObjectKey, ObjectValue, Objects, SetId};

/// A large node keeps tens of thousands of these, nearly all of elements alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// Ordered by kind; none is empty.
    runs: Box<[Run]>,
    /// What is no element, or one with a verdict, a range or a time-out of its own.
    rest: Option<Box<Objects>>,
}

/// Elements of one set, their keys of one length and their values too.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    kind: Kind,
    /// Keys in order, each followed by its value.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    set: SetId,
    ipv6: bool,
    key_len: u8,
    /// 0 in a set that is no map.
    value_len: u8,
}

/// An element as it is kept.
#[derive(Clone, Copy)]
struct Record<'a> {
    kind: Kind,
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Record<'a> {
    fn of(key: &'a ObjectKey, value: &'a ObjectValue) -> Option<Self> {
        let (ObjectKey::Element { set, ipv6, key }, ObjectValue::Element(value)) = (key, value) else {
            return None;
        };
        let data: &[u8] = match (&key.end, &value.timeout_ms, &value.data) {
            (None, None, None) => &[],
            (None, None, Some(Data::Fields(data))) if !data.as_bytes().is_empty() => data.as_bytes(),
            _ => return None,
        };
        let key = key.start.as_bytes();
        if key.is_empty() {
            // A dump may hold anything; a record without a size cannot be counted.
            return None;
        }
        // Both fit: `Packed` has 44 bytes at most.
        let kind = Kind { set: *set, ipv6: *ipv6, key_len: key.len() as u8, value_len: data.len() as u8 };
        Some(Record { kind, key, value: data })
    }
}

impl Run {
    fn size(&self) -> usize {
        usize::from(self.kind.key_len) + usize::from(self.kind.value_len)
    }

    fn len(&self) -> usize {
        self.bytes.len() / self.size()
    }

    fn key(&self, place: usize) -> &[u8] {
        let start = place * self.size();
        &self.bytes[start..start + usize::from(self.kind.key_len)]
    }

    /// Where the key is or belongs; what comes in order is found at once.
    fn place(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        if high > 0 && self.key(high - 1) < key {
            return Err(high);
        }
        while low < high {
            let middle = low + (high - low) / 2;
            match self.key(middle).cmp(key) {
                Ordering::Equal => return Ok(middle),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// The key is not there and belongs at `place`.
    fn insert(&mut self, place: usize, record: Record<'_>) {
        let size = self.size();
        if self.bytes.len() == self.bytes.capacity() {
            // By a quarter, as `Objects` grows.
            self.bytes.reserve_exact((self.len() / 4 + 1) * size);
        }
        let at = place * size;
        self.bytes.splice(at..at, record.key.iter().chain(record.value).copied());
    }

    fn set(&mut self, place: usize, value: &[u8]) {
        let end = (place + 1) * self.size();
        self.bytes[end - value.len()..end].copy_from_slice(value);
    }

    fn remove(&mut self, place: usize) {
        let size = self.size();
        self.bytes.drain(place * size..(place + 1) * size);
    }

    fn value(&self, place: usize) -> Option<ObjectValue> {
        let end = (place + 1) * self.size();
        let value = &self.bytes[end - usize::from(self.kind.value_len)..end];
        let data = match value {
            [] => None,
            bytes => Some(Data::Fields(Packed::from_bytes(bytes)?)),
        };
        Some(ObjectValue::Element(ElementValue { data, timeout_ms: None }))
    }

    fn objects(&self) -> impl Iterator<Item = (ObjectKey, ObjectValue)> + '_ {
        let Kind { set, ipv6, .. } = self.kind;
        (0..self.len()).filter_map(move |place| {
            let key = ElementKey { start: Packed::from_bytes(self.key(place))?, end: None };
            Some((ObjectKey::Element { set, ipv6, key }, self.value(place)?))
        })
    }
}

impl Stored {
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.rest.is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.runs.iter().map(Run::len).sum::<usize>() + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    /// Put an object in; whether its key is new.
    pub(super) fn insert(&mut self, key: ObjectKey, value: ObjectValue) -> bool {
        let record = Record::of(&key, &value);
        match (self.find(&key), record) {
            (Some((index, place)), Some(record)) if self.runs[index].kind == record.kind => {
                self.runs[index].set(place, record.value);
                false
            }
            // It may be there with a value of another shape.
            (_, Some(record)) => {
                let replaced = self.remove(&key);
                let run = self.run(record.kind);
                if let Err(place) = run.place(record.key) {
                    run.insert(place, record);
                }
                !replaced
            }
            (found, None) => {
                if let Some((index, place)) = found {
                    self.remove_from(index, place);
                }
                let rest = self.rest.get_or_insert_default();
                rest.insert(key, value).is_none() && found.is_none()
            }
        }
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> bool {
        if let Some((index, place)) = self.find(key) {
            self.remove_from(index, place);
            return true;
        }
        let Some(rest) = &mut self.rest else { return false };
        let removed = rest.remove(key).is_some();
        if rest.is_empty() {
            self.rest = None;
        }
        removed
    }

    fn remove_from(&mut self, index: usize, place: usize) {
        self.runs[index].remove(place);
        if self.runs[index].bytes.is_empty() {
            let mut runs = std::mem::take(&mut self.runs).into_vec();
            runs.remove(index);
            self.runs = runs.into();
        }
    }

    /// The run of a kind, made where there is none.
    fn run(&mut self, kind: Kind) -> &mut Run {
        let index = self.runs.binary_search_by(|run| run.kind.cmp(&kind)).unwrap_or_else(|index| {
            let mut runs = std::mem::take(&mut self.runs).into_vec();
            runs.reserve_exact(1);
            runs.insert(index, Run { kind, bytes: Vec::new() });
            self.runs = runs.into();
            index
        });
        &mut self.runs[index]
    }

    /// Run and place of an element.
    fn find(&self, key: &ObjectKey) -> Option<(usize, usize)> {
        let ObjectKey::Element { set, ipv6, key: ElementKey { start, end: None } } = key else { return None };
        let bytes = start.as_bytes();
        let fits =
            |kind: &Kind| (kind.set, kind.ipv6, usize::from(kind.key_len)) == (*set, *ipv6, bytes.len());
        let runs = self.runs.iter().enumerate().filter(|(_, run)| fits(&run.kind));
        runs.filter_map(|(index, run)| Some((index, run.place(bytes).ok()?))).next()
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<Cow<'_, ObjectValue>> {
        match self.find(key) {
            Some((index, place)) => self.runs[index].value(place).map(Cow::Owned),
            None => self.rest.as_ref()?.get(key).map(Cow::Borrowed),
        }
    }

    /// What is no element.
    pub(super) fn others(&self) -> impl Iterator<Item = (&ObjectKey, &ObjectValue)> {
        let rest = self.rest.iter().flat_map(|rest| rest.iter());
        rest.filter(|(key, _)| !matches!(key, ObjectKey::Element { .. }))
    }

    /// All of them.
    pub(super) fn objects(&self) -> Cow<'_, Objects> {
        match &self.rest {
            Some(rest) if self.runs.is_empty() => Cow::Borrowed(rest),
            rest => {
                let rest = rest.iter().flat_map(|rest| rest.iter());
                let rest = rest.map(|(key, value)| (key.clone(), value.clone()));
                Cow::Owned(self.runs.iter().flat_map(Run::objects).chain(rest).collect())
            }
        }
    }
}

impl FromIterator<(ObjectKey, ObjectValue)> for Stored {
    fn from_iter<T: IntoIterator<Item = (ObjectKey, ObjectValue)>>(objects: T) -> Self {
        let mut stored = Stored::default();
        for (key, value) in objects {
            stored.insert(key, value);
        }
        stored
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::nft::{Value, Verdict};
    use super::*;

    /// An element of one of a few sets, or an address.
    fn object(set: usize, number: u32, shape: u8) -> (ObjectKey, ObjectValue) {
        let port = [Value::Addr([10, 0, 0, 1].into()), Value::Port(80)];
        let data = match shape {
            0 => None,
            1 => Some(Data::Fields(Packed::of(&[Value::Index(number * 7)]))),
            2 => Some(Data::Fields(Packed::of(&port))),
            _ => Some(Data::Verdict(Verdict::Goto(format!("n{number}")))),
        };
        let timeout_ms = (shape == 4).then_some(1000);
        let start = Packed::of(&[port[0], Value::Index(number)]);
        let end = (shape == 5).then(|| Box::new(Packed::of(&[port[0], Value::Index(number + 1)])));
        match [SetId::Endpoints, SetId::Members, SetId::Services].get(set) {
            Some(set) => (
                ObjectKey::Element { set: *set, ipv6: false, key: ElementKey { start, end } },
                ObjectValue::Element(ElementValue { data, timeout_ms }),
            ),
            None => (ObjectKey::Address([10, 0, 0, number as u8].into()), ObjectValue::Address),
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_in_little_room_is_what_a_list_would_hold(
            steps in proptest::collection::vec((0..4_usize, 0..6_u32, 0..6_u8, any::<bool>()), 0..60)
        ) {
            let (mut stored, mut list) = (Stored::default(), Objects::new());
            for (set, number, shape, put) in steps {
                let (key, value) = object(set, number, shape);
                if put {
                    let new = list.insert(key.clone(), value.clone()).is_none();
                    prop_assert_eq!(stored.insert(key, value), new);
                } else {
                    prop_assert_eq!(stored.remove(&key), list.remove(&key).is_some());
                }
                prop_assert_eq!(&*stored.objects(), &list);
                prop_assert_eq!((stored.len(), stored.is_empty()), (list.len(), list.is_empty()));
                for (key, value) in list.iter() {
                    let kept = stored.get(key);
                    prop_assert_eq!(kept.as_deref(), Some(value));
                }
            }
            // However it came to be: equal contents are equal.
            prop_assert_eq!(list.into_iter().collect::<Stored>(), stored);
        }
    }

    #[test]
    fn an_element_without_a_key_is_kept_too() {
        let (_, value) = object(0, 1, 0);
        let key = ElementKey { start: Packed::of(&[]), end: None };
        let key = ObjectKey::Element { set: SetId::Members, ipv6: false, key };
        let mut stored = Stored::default();
        assert!(stored.insert(key.clone(), value.clone()));
        assert_eq!((stored.len(), stored.get(&key).as_deref()), (1, Some(&value)));
        assert!(stored.remove(&key) && stored.is_empty());
    }

    #[test]
    fn ten_endpoints_take_the_bytes_of_their_keys_and_values() {
        let stored: Stored = (0..10).map(|number| object(0, number, 2)).collect();
        assert_eq!(stored.runs.len(), 1);
        let bytes = &stored.runs[0].bytes;
        assert_eq!(bytes.len(), 10 * (8 + 8));
        assert!(bytes.capacity() <= bytes.len() * 5 / 4 + 16, "{}", bytes.capacity());
    }
}
