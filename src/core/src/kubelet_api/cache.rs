//! A bounded map whose entries end: verdicts of the API server about tokens and rights. Time is a parameter,
//! counted from any fixed point by a clock that is never set back.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// Values that count for a time. At most `capacity` of them; where it is full, what ends first goes first.
#[derive(Clone, Debug)]
pub struct TtlCache<K, V> {
    capacity: usize,
    entries: HashMap<K, (Duration, V)>,
}

impl<K: Eq + Hash + Clone, V: Clone> TtlCache<K, V> {
    /// `capacity` is 1 or more.
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), entries: HashMap::new() }
    }

    /// What was put in for a key and still counts.
    pub fn get(&self, key: &K, now: Duration) -> Option<V> {
        self.entries.get(key).filter(|(ends, _)| now < *ends).map(|(_, value)| value.clone())
    }

    /// Keeps a value for `ttl`; zero keeps nothing.
    pub fn put(&mut self, key: K, value: V, now: Duration, ttl: Duration) {
        if ttl.is_zero() {
            self.entries.remove(&key);
            return;
        }
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            self.make_room(now);
        }
        self.entries.insert(key, (now.saturating_add(ttl), value));
    }

    fn make_room(&mut self, now: Duration) {
        self.entries.retain(|_, (ends, _)| now < *ends);
        if self.entries.len() < self.capacity {
            return;
        }
        // A quarter at once, so that a flood of keys does not sort for each of them.
        let mut ends: Vec<Duration> = self.entries.values().map(|(ends, _)| *ends).collect();
        ends.sort_unstable();
        let last = ends[(self.capacity / 4).min(ends.len() - 1)];
        self.entries.retain(|_, (ends, _)| *ends > last);
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_value_counts_until_its_end() {
        let mut cache = TtlCache::new(8);
        cache.put("a", 1, s(100), s(10));
        cache.put("b", 2, s(100), s(0));
        assert_eq!(cache.get(&"a", s(109)), Some(1));
        assert_eq!(cache.get(&"a", s(110)), None);
        assert_eq!(cache.get(&"b", s(100)), None);
        cache.put("a", 3, s(111), s(10));
        cache.put("a", 4, s(112), s(0));
        assert_eq!(cache.get(&"a", s(113)), None, "taken back");
    }

    #[test]
    fn a_flood_of_keys_stays_bounded_and_spares_what_lasts() {
        let mut cache = TtlCache::new(100);
        cache.put(u64::MAX, "lasting", s(0), s(1_000_000));
        for key in 0..10_000 {
            cache.put(key, "flood", s(key / 100), s(30));
            assert!(cache.len() <= 100);
        }
        assert_eq!(cache.get(&u64::MAX, s(100)), Some("lasting"));
        // All of one age: still bounded.
        for key in 0..1000 {
            cache.put(key, "flood", s(200), s(30));
            assert!(cache.len() <= 100);
        }
        assert!(!cache.is_empty());
    }
}
