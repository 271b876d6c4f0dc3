//! Watches against the fake server: whatever goes wrong on the way, what is known in the end is what the
//! server has.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore_core::ids::ObjectKey;
use serde::Deserialize;
use serde_json::json;

use super::{News, Piece, Selector, Watch};
use crate::fake::{FakeApi, Fault};
use crate::path::Path;

const MAPS: &str = "/api/v1/namespaces/d/configmaps";

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Thing {
    n: i64,
}

#[derive(Clone, Default)]
struct Known {
    things: Arc<Mutex<BTreeMap<String, i64>>>,
    lists: Arc<Mutex<u32>>,
}

impl Known {
    fn take(&self, news: News<Thing>) {
        let mut things = self.things.lock().unwrap();
        let name = |key: &ObjectKey| key.name.to_string();
        match news {
            News::All(all) => {
                *self.lists.lock().unwrap() += 1;
                *things = all.into_iter().map(|(key, thing)| (name(&key), thing.n)).collect();
            }
            News::Set(key, thing) => drop(things.insert(name(&key), thing.n)),
            News::Gone(key, _) => drop(things.remove(&name(&key))),
            News::Unreadable(key, _) => panic!("{key} is unreadable"),
        }
    }

    fn take_piece(&self, piece: Piece<Thing>) {
        match piece {
            Piece::Begins => {}
            Piece::Set(key, thing) => self.take(News::Set(key, thing)),
            Piece::Gone(key, thing) => self.take(News::Gone(key, thing.expect("it can be read"))),
            Piece::Listed(all) => {
                *self.lists.lock().unwrap() += 1;
                let names: HashSet<&str> = all.iter().map(|key| &*key.name).collect();
                self.things.lock().unwrap().retain(|name, _| names.contains(name.as_str()));
            }
            Piece::Unreadable(object) => panic!("{object:?} is unreadable"),
        }
    }

    fn shown(&self) -> String {
        let things = self.things.lock().unwrap();
        things.iter().map(|(name, n)| format!("{name}={n}")).collect::<Vec<_>>().join(" ")
    }

    fn lists(&self) -> u32 {
        *self.lists.lock().unwrap()
    }

    async fn becomes(&self, expected: &str) {
        for _ in 0..10_000 {
            if self.shown() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("expected `{expected}`, known is `{}`", self.shown());
    }
}

fn put(api: &FakeApi, name: &str, n: i64) {
    api.put(&format!("{MAPS}/{name}"), json!({"n": n}));
}

fn watched(api: &FakeApi) -> Known {
    let known = Known::default();
    let watch = Watch::new(api.client(), Selector::all(Path::core_in("d", "configmaps")));
    let sink = known.clone();
    tokio::spawn(watch.run(move |news| sink.take(news)));
    known
}

/// The same, told object by object.
fn watched_by_piece(api: &FakeApi) -> Known {
    let known = Known::default();
    let watch = Watch::new(api.client(), Selector::all(Path::core_in("d", "configmaps")));
    let sink = known.clone();
    tokio::spawn(watch.run_by_piece(move |piece| sink.take_piece(piece)));
    known
}

#[tokio::test(start_paused = true)]
async fn a_watch_follows_and_resumes_where_it_stopped() {
    let api = FakeApi::default();
    put(&api, "a", 1);
    api.put("/api/v1/namespaces/other/configmaps/x", json!({"n": 9}));
    let known = watched(&api);
    known.becomes("a=1").await;
    put(&api, "b", 2);
    put(&api, "a", 3);
    known.becomes("a=3 b=2").await;
    api.break_connections();
    api.remove(&format!("{MAPS}/a"));
    put(&api, "c", 4);
    known.becomes("b=2 c=4").await;
    assert_eq!(known.lists(), 1, "{:?}", api.calls("WATCH"));
}

#[tokio::test(start_paused = true)]
async fn a_version_too_old_is_listed_again() {
    let api = FakeApi::default();
    put(&api, "a", 1);
    let (known, by_piece) = (watched(&api), watched_by_piece(&api));
    known.becomes("a=1").await;
    by_piece.becomes("a=1").await;
    api.set_down(true);
    api.remove(&format!("{MAPS}/a"));
    put(&api, "b", 2);
    api.compact();
    api.set_down(false);
    known.becomes("b=2").await;
    by_piece.becomes("b=2").await;
    assert_eq!((known.lists(), by_piece.lists()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_bookmark_saves_the_list_after_a_gap() {
    let api = FakeApi::default();
    put(&api, "a", 1);
    let known = watched(&api);
    known.becomes("a=1").await;
    // Others' changes will be forgotten; the bookmark tells that nothing of ours was among them.
    api.put("/api/v1/namespaces/other/configmaps/x", json!({"n": 9}));
    api.bookmark();
    tokio::time::sleep(Duration::from_secs(1)).await;
    api.compact();
    api.break_connections();
    put(&api, "b", 2);
    known.becomes("a=1 b=2").await;
    assert_eq!(known.lists(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_older_server_is_read_in_pages() {
    let api = FakeApi::default();
    api.refuse_streaming_lists();
    put(&api, "a", 1);
    let known = watched(&api);
    known.becomes("a=1").await;
    put(&api, "b", 2);
    known.becomes("a=1 b=2").await;
    assert_eq!(api.calls("limit=500").len(), 1);
    // It is asked once whether it can, and never again, also where it has forgotten what was.
    api.set_down(true);
    api.remove(&format!("{MAPS}/a"));
    api.compact();
    api.set_down(false);
    known.becomes("b=2").await;
    assert_eq!((api.calls("sendInitialEvents").len(), api.calls("limit=500").len()), (1, 2));
    assert_eq!(known.lists(), 2);
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_the_end_is_what_the_server_has() {
    for watched in [watched, watched_by_piece] {
        through_faults(watched).await;
    }
}

async fn through_faults(watched: fn(&FakeApi) -> Known) {
    let api = FakeApi::default();
    let known = watched(&api);
    for round in 0..40_i64 {
        let fault = match round % 8 {
            0 => Some(Fault::Refuse(500, None)),
            1 => Some(Fault::Refuse(429, Some(1))),
            2 => Some(Fault::Break),
            3 => Some(Fault::Garbage),
            4 => Some(Fault::Refuse(410, None)),
            5 => Some(Fault::Refuse(403, None)),
            _ => None,
        };
        if let Some(fault) = fault {
            api.order("WATCH", MAPS, 1, fault);
        }
        put(&api, &format!("m{}", round % 5), round);
        if round % 3 == 0 {
            api.break_connections();
        }
        if round % 7 == 0 {
            api.remove(&format!("{MAPS}/m{}", (round + 2) % 5));
            api.compact();
        }
        tokio::time::sleep(Duration::from_millis(u64::try_from(round).unwrap() * 37)).await;
    }
    let expected: Vec<String> = (0..5)
        .filter_map(|n| api.object(&format!("{MAPS}/m{n}")).map(|object| format!("m{n}={}", object["n"])))
        .collect();
    known.becomes(&expected.join(" ")).await;
}

#[tokio::test(start_paused = true)]
async fn changes_told_twice_and_out_of_order_end_where_the_server_is() {
    let api = FakeApi::default();
    api.repeat_events();
    let (known, by_piece) = (watched(&api), watched_by_piece(&api));
    for n in 0..20_i64 {
        put(&api, &format!("m{}", n % 3), n);
        if n % 5 == 0 {
            api.remove(&format!("{MAPS}/m{}", n % 3));
        }
        if n % 7 == 0 {
            api.break_connections();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    api.remove(&format!("{MAPS}/m0"));
    for known in [known, by_piece] {
        known.becomes("m1=19 m2=17").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!((known.shown().as_str(), known.lists()), ("m1=19 m2=17", 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_is_not_asked_in_a_tight_loop() {
    let api = FakeApi::default();
    api.order("WATCH", MAPS, u32::MAX, Fault::Refuse(503, None));
    let _known = watched(&api);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let asked = api.calls("WATCH").len();
    assert!((4..=20).contains(&asked), "{asked}");
}
