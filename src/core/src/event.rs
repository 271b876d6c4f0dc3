//! Events on their way to the API: the same one again counts up instead of being stored again, many
//! similar ones become one, and an object that has too much to say is bounded (client-go's
//! tools/record/events_cache.go). A state that takes one event and says what to write.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::pod::events::Severity;

/// Events that differ in their message only are summed up from this many on, within [`SIMILAR_FOR`].
const SIMILAR: u32 = 10;
const SIMILAR_FOR: SignedDuration = SignedDuration::from_mins(10);
/// An object may say so much at once, and one more every five minutes.
const BURST: f64 = 25.0;
const SECONDS_PER_EVENT: f64 = 300.0;
/// Things remembered of each kind; the ones longest unused go first.
const REMEMBERED: usize = 4096;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct About {
    pub kind: &'static str,
    /// Empty for objects of the whole cluster.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// `spec.containers{web}`; empty for the object as a whole.
    pub field_path: String,
}

impl About {
    /// A Node; its uid in events is its name, as clients look for it.
    pub fn node(name: &str) -> Self {
        About {
            kind: "Node",
            namespace: String::new(),
            name: name.to_owned(),
            uid: name.to_owned(),
            field_path: String::new(),
        }
    }
}

/// One event as it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub about: About,
    pub severity: Severity,
    pub reason: String,
    pub message: String,
    pub at: Timestamp,
}

/// What to write of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A new event object of this name.
    New { name: String, event: Event },
    /// The object of this name, seen so often by now.
    Again { name: String, count: u32, event: Event },
    /// Nothing: the object has said too much.
    Nothing,
}

type Key = (About, Severity, String, String);
type SimilarKey = (About, Severity, String);

#[derive(Debug)]
struct Seen {
    name: String,
    count: u32,
    last: Timestamp,
}

#[derive(Debug)]
struct Similar {
    count: u32,
    since: Timestamp,
    last: Timestamp,
}

#[derive(Debug)]
struct Budget {
    left: f64,
    last: Timestamp,
}

/// What was said lately.
#[derive(Debug, Default)]
pub struct Correlator {
    seen: BTreeMap<Key, Seen>,
    similar: BTreeMap<SimilarKey, Similar>,
    budgets: BTreeMap<About, Budget>,
    named: u64,
}

impl Correlator {
    /// Takes one event further.
    pub fn take(&mut self, mut event: Event) -> Write {
        let now = event.at;
        if self.is_similar_to_many(&event) {
            event.message = format!("(combined from similar events): {}", event.message);
        }
        if !self.is_affordable(&event.about, now) {
            return Write::Nothing;
        }
        // Those summed up count as one, whatever their messages are.
        let text = if event.message.starts_with('(') { String::new() } else { event.message.clone() };
        let key = (event.about.clone(), event.severity, event.reason.clone(), text);
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.count = seen.count.saturating_add(1);
            seen.last = now;
            return Write::Again { name: seen.name.clone(), count: seen.count, event };
        }
        self.named += 1;
        // Unique among all events of the object, also after a restart of the daemon.
        let name = format!("{}.{:x}{:02x}", event.about.name, now.as_nanosecond(), self.named % 256);
        bound(&mut self.seen, |seen| seen.last);
        self.seen.insert(key, Seen { name: name.clone(), count: 1, last: now });
        Write::New { name, event }
    }

    /// The object of an event is gone from the server: the next of its kind is a new one.
    pub fn forget(&mut self, name: &str) {
        self.seen.retain(|_, seen| seen.name != name);
    }

    fn is_similar_to_many(&mut self, event: &Event) -> bool {
        let key = (event.about.clone(), event.severity, event.reason.clone());
        bound(&mut self.similar, |similar| similar.last);
        let similar =
            self.similar.entry(key).or_insert(Similar { count: 0, since: event.at, last: event.at });
        if event.at.duration_since(similar.last) > SIMILAR_FOR {
            *similar = Similar { count: 0, since: event.at, last: event.at };
        }
        let same_text = (event.about.clone(), event.severity, event.reason.clone(), event.message.clone());
        // Only different messages make a crowd.
        if !self.seen.contains_key(&same_text) {
            similar.count += 1;
        }
        similar.last = event.at;
        similar.count > SIMILAR && event.at.duration_since(similar.since) >= SignedDuration::ZERO
    }

    fn is_affordable(&mut self, about: &About, now: Timestamp) -> bool {
        bound(&mut self.budgets, |budget| budget.last);
        let budget = self.budgets.entry(about.clone()).or_insert(Budget { left: BURST, last: now });
        let passed = now.duration_since(budget.last).as_secs_f64().max(0.0);
        budget.left = (budget.left + passed / SECONDS_PER_EVENT).min(BURST);
        budget.last = now;
        if budget.left < 1.0 {
            return false;
        }
        budget.left -= 1.0;
        true
    }
}

/// Keeps a map small: where it is full, the older half goes.
fn bound<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, last: impl Fn(&V) -> Timestamp) {
    if map.len() < REMEMBERED {
        return;
    }
    let mut times: Vec<Timestamp> = map.values().map(&last).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    map.retain(|_, value| last(value) > middle);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(message: &str, second: i64) -> Event {
        let about = About {
            kind: "Pod",
            namespace: "d".into(),
            name: "p".into(),
            uid: "u".into(),
            field_path: String::new(),
        };
        Event {
            about,
            severity: Severity::Warning,
            reason: "BackOff".into(),
            message: message.into(),
            at: Timestamp::from_second(second).unwrap(),
        }
    }

    #[test]
    fn the_same_again_counts_up() {
        let mut correlator = Correlator::default();
        let Write::New { name, .. } = correlator.take(event("a", 1)) else { panic!("not new") };
        let again = correlator.take(event("a", 2));
        assert!(matches!(&again, Write::Again { name: same, count: 2, .. } if *same == name), "{again:?}");
        correlator.forget(&name);
        assert!(matches!(correlator.take(event("a", 3)), Write::New { .. }));
    }

    #[test]
    fn a_crowd_of_similar_ones_becomes_one() {
        let mut correlator = Correlator::default();
        let mut new = 0;
        for n in 0..20 {
            match correlator.take(event(&n.to_string(), n)) {
                Write::New { .. } => new += 1,
                Write::Again { event, .. } => assert!(event.message.starts_with("(combined"), "{event:?}"),
                Write::Nothing => panic!("too early"),
            }
        }
        assert_eq!(new, 11);
    }

    #[test]
    fn an_object_that_talks_too_much_is_cut_off_and_may_talk_again() {
        let mut correlator = Correlator::default();
        let written = |correlator: &mut Correlator, second| {
            (0..100).filter(|_| correlator.take(event("a", second)) != Write::Nothing).count()
        };
        assert_eq!(written(&mut correlator, 1), 25);
        assert_eq!(written(&mut correlator, 301), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let mut correlator = Correlator::default();
        for n in 0..10_000 {
            let mut one = event("a", n);
            one.about.name = format!("p{n}");
            correlator.take(one);
        }
        assert!(correlator.seen.len() <= REMEMBERED && correlator.budgets.len() <= REMEMBERED);
        assert!(correlator.similar.len() <= REMEMBERED);
    }
}
