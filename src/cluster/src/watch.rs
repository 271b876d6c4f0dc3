//! One watched collection: the whole set first (as a streaming list where the server can, else in
//! pages), then every change, resumed where it stopped, begun anew where the server has forgotten. What
//! an event means is decided by `Decoder`, a pure state; the loop around it only talks to the server.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use longshore_core::ids::{ObjectKey, ObjectUid};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::backoff::{Backoff, between};
use crate::client::ApiClient;
use crate::error::ApiError;
use crate::lines::Lines;
use crate::object;
use crate::path::Path;
use crate::version::is_older;

/// Longest line of a watch. etcd and the API server bound a request at 3 MiB; JSON can double it.
const MAX_EVENT: usize = 8 << 20;
/// Objects per page of a list.
const PAGE: &str = "500";
/// A watch is ended by the server after a time between these.
const WATCH_FOR: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(600));
/// Objects one watch may hold while its first list comes in.
const MAX_OBJECTS: usize = 500_000;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// News of a collection, in the server's order.
#[derive(Clone, Debug, PartialEq)]
pub enum News<T> {
    /// Everything there is; what is not in it is gone. The first news, and again after a gap.
    All(Vec<(ObjectKey, T)>),
    /// Added or changed.
    Set(ObjectKey, T),
    /// Deleted, with its last state.
    Gone(ObjectKey, T),
    /// An object that cannot be read; it is skipped.
    Unreadable(ObjectKey, String),
}

/// The same with lists told object by object as they are read, so that nobody holds one whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece<T> {
    /// A list begins; also where one broke off and is begun again. Its objects are told as set.
    Begins,
    /// Added, changed, or in the list.
    Set(ObjectKey, T),
    /// Deleted, with its last state where that can be read.
    Gone(ObjectKey, Option<T>),
    /// The list is whole: what is not among these is gone. Unreadable objects are among them.
    Listed(HashSet<ObjectKey>),
    /// An object that cannot be read; it is skipped.
    Unreadable(Unreadable),
}

/// An object that is not of its kind's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub key: ObjectKey,
    pub uid: Option<ObjectUid>,
    pub problem: String,
}

/// Puts the pieces of lists together.
#[derive(Debug)]
struct Whole<T>(Option<Vec<(ObjectKey, T)>>);

impl<T> Whole<T> {
    fn take(&mut self, piece: Piece<T>) -> Option<News<T>> {
        match (piece, &mut self.0) {
            (Piece::Begins, list) => *list = Some(Vec::new()),
            (Piece::Set(key, object), Some(list)) => list.push((key, object)),
            (Piece::Gone(key, _), Some(list)) => list.retain(|(known, _)| *known != key),
            (Piece::Listed(_), list) => return list.take().map(|list| News::All(newest(list))),
            (Piece::Set(key, object), None) => return Some(News::Set(key, object)),
            (Piece::Gone(key, Some(object)), None) => return Some(News::Gone(key, object)),
            (Piece::Gone(key, None), None) => {
                return Some(News::Unreadable(
                    key,
                    "it is deleted, and its last state cannot be read".into(),
                ));
            }
            (Piece::Unreadable(object), _) => {
                return Some(News::Unreadable(object.key, object.problem));
            }
        }
        None
    }
}

/// Of objects told twice the last. Only additions come in a list, but a proxy between may know better.
fn newest<T>(mut list: Vec<(ObjectKey, T)>) -> Vec<(ObjectKey, T)> {
    let last: HashMap<ObjectKey, usize> =
        list.iter().enumerate().map(|(place, (key, _))| (key.clone(), place)).collect();
    if last.len() < list.len() {
        let mut place = 0;
        list.retain(|(key, _)| {
            place += 1;
            last.get(key) == Some(&(place - 1))
        });
    }
    list.shrink_to_fit();
    list
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    pub path: Path,
    /// `spec.nodeName=a`; empty for all.
    pub fields: String,
    /// `!service.kubernetes.io/headless`; empty for all.
    pub labels: String,
}

impl Selector {
    pub fn all(path: Path) -> Self {
        Self { path, fields: String::new(), labels: String::new() }
    }

    #[must_use]
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.fields = selector.into();
        self
    }

    #[must_use]
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.labels = selector.into();
        self
    }

    fn selected(&self) -> Path {
        let mut path = self.path.clone();
        if !self.fields.is_empty() {
            path = path.with("fieldSelector", &self.fields);
        }
        if !self.labels.is_empty() {
            path = path.with("labelSelector", &self.labels);
        }
        path
    }
}

/// Hears why the server does not let a collection be watched.
type OnDenied = Box<dyn FnMut(&ApiError) + Send + Sync>;

/// A collection to watch.
pub struct Watch<T> {
    client: ApiClient,
    selector: Selector,
    /// The server refused a streaming list; pages are asked for instead.
    pages: bool,
    on_denied: Option<OnDenied>,
    of: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("selector", &self.selector).field("pages", &self.pages).finish()
    }
}

/// Why a watch has to be begun again.
#[derive(Debug)]
enum Ended {
    /// Resume from the version reached.
    Resume,
    /// The version is too old: list again.
    Relist,
}

impl<T: DeserializeOwned + Send> Watch<T> {
    pub fn new(client: ApiClient, selector: Selector) -> Self {
        Self { client, selector, pages: false, on_denied: None, of: PhantomData }
    }

    /// For a collection one can do without: hears of each answer that the server does not have it (404) or
    /// does not show it (403), instead of a warning in the log. The watch goes on asking.
    #[must_use]
    pub fn on_denied(mut self, hear: impl FnMut(&ApiError) + Send + Sync + 'static) -> Self {
        self.on_denied = Some(Box::new(hear));
        self
    }

    /// Watches for ever; `sink` gets the news in order. Ends only by being dropped.
    pub async fn run(self, mut sink: impl FnMut(News<T>) + Send) {
        let mut whole = Whole(None);
        let take = |piece| {
            if let Some(news) = whole.take(piece) {
                sink(news);
            }
        };
        self.run_by_piece(take).await;
    }

    /// The same for collections too large to be held whole by whoever watches.
    pub async fn run_by_piece(mut self, mut sink: impl FnMut(Piece<T>) + Send) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut version: Option<String> = None;
        loop {
            let before = version.clone();
            match self.once(&mut version, &mut sink).await {
                Ok(Ended::Resume) => {}
                Ok(Ended::Relist) => version = None,
                Err(error) => {
                    let first = backoff.tries() == 0;
                    self.refused(&error, &mut version, first);
                    // A refusal of streaming lists is an answer, not a failure.
                    if !(error.code().is_some_and(is_refusal_of_streaming) && version.is_none()) {
                        let pause = error.retry_after().unwrap_or_default().max(backoff.pause());
                        tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
                        continue;
                    }
                }
            }
            if version.is_some() && version != before {
                backoff.reset();
            } else {
                // A server that ends every watch at once must not be asked in a tight loop.
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }

    fn refused(&mut self, error: &ApiError, version: &mut Option<String>, first: bool) {
        if error.is_gone() {
            *version = None;
        }
        if version.is_none() && error.code().is_some_and(is_refusal_of_streaming) {
            self.pages = true;
        }
        let denied = matches!(error.code(), Some(403 | 404));
        if let Some(hear) = self.on_denied.as_mut().filter(|_| denied) {
            hear(error);
        } else if first {
            tracing::warn!(path = self.selector.path.plain(), "watch: {}", error.one_line());
        } else {
            tracing::debug!(path = self.selector.path.plain(), "watch: {}", error.one_line());
        }
    }

    async fn once(
        &self,
        version: &mut Option<String>,
        sink: &mut (impl FnMut(Piece<T>) + Send),
    ) -> Result<Ended, ApiError> {
        if version.is_none() {
            sink(Piece::Begins);
        }
        if self.pages && version.is_none() {
            let (all, at) = self.list(sink).await?;
            sink(Piece::Listed(all));
            *version = Some(at);
        }
        let streaming = version.is_none();
        let seconds = between(WATCH_FOR.0, WATCH_FOR.1).as_secs().to_string();
        let mut path = self
            .selector
            .selected()
            .with("watch", "true")
            .with("allowWatchBookmarks", "true")
            .with("timeoutSeconds", &seconds);
        path = match version {
            Some(version) => path.with("resourceVersion", version),
            None => path
                .with("sendInitialEvents", "true")
                .with("resourceVersionMatch", "NotOlderThan")
                .with("resourceVersion", ""),
        };
        let mut decoder = Decoder::new(self.selector.path.plain(), streaming, version.clone());
        let mut body = self.client.stream(&path).await?;
        let mut lines = Lines::new(MAX_EVENT);
        loop {
            let broken = |source| ApiError::Broken { call: format!("GET {}", path.plain()), source };
            let Some(frame) = body.frame().await else { break };
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            lines.push(&data);
            let too_long = |_| ApiError::TooLarge { call: format!("GET {}", path.plain()), limit: MAX_EVENT };
            while let Some(line) = lines.next_line().map_err(too_long)? {
                let ended = decoder.line(&line, sink)?;
                // Before the first list is whole there is no place to resume from.
                if decoder.is_live() {
                    version.clone_from(&decoder.version);
                }
                if let Some(ended) = ended {
                    return Ok(ended);
                }
            }
        }
        Ok(Ended::Resume)
    }

    async fn list(
        &self,
        sink: &mut (impl FnMut(Piece<T>) + Send),
    ) -> Result<(HashSet<ObjectKey>, String), ApiError> {
        let mut all = HashSet::new();
        let mut next = String::new();
        loop {
            let mut path = self.selector.selected().with("limit", PAGE);
            if !next.is_empty() {
                path = path.with("continue", &next);
            }
            let page: Page = self.client.get(&path).await?;
            for item in page.items.unwrap_or_default() {
                let (key, piece) = match read_object::<T>(&item) {
                    Ok((head, object)) => (head.key(), Piece::Set(head.key(), object)),
                    Err(object) => (object.key.clone(), Piece::Unreadable(object)),
                };
                all.insert(key);
                sink(piece);
            }
            if all.len() > MAX_OBJECTS {
                return Err(ApiError::TooLarge { call: format!("GET {}", path.plain()), limit: MAX_OBJECTS });
            }
            next = page.metadata.next.unwrap_or_default();
            if next.is_empty() {
                return Ok((all, page.metadata.resource_version.unwrap_or_default()));
            }
        }
    }
}

/// How servers before 1.34, and those with the gate off, refuse `sendInitialEvents`.
fn is_refusal_of_streaming(code: u16) -> bool {
    matches!(code, 400 | 422)
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMetadata,
    items: Option<Vec<Box<RawValue>>>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(rename = "continue")]
    next: Option<String>,
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What every object has, read beside its own type.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    metadata: HeadMetadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HeadMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    annotations: Option<HeadAnnotations>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HeadAnnotations {
    #[serde(rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<String>,
}

impl Head {
    fn key(&self) -> ObjectKey {
        let metadata = &self.metadata;
        ObjectKey::new(
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
        )
    }
}

fn read_object<T: DeserializeOwned>(raw: &RawValue) -> Result<(Head, T), Unreadable> {
    let head: Head = serde_json::from_str(raw.get()).unwrap_or_default();
    match object::read(raw.get()) {
        Ok(object) => Ok((head, object)),
        Err(error) => Err(Unreadable {
            key: head.key(),
            uid: head.metadata.uid.as_deref().and_then(ObjectUid::parse),
            problem: error.to_string(),
        }),
    }
}

/// Lines of a watch -> news.
struct Decoder<T> {
    path: String,
    /// Of a streaming list that is not whole yet.
    initial: Option<HashSet<ObjectKey>>,
    version: Option<String>,
    of: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Decoder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("path", &self.path).field("version", &self.version).finish()
    }
}

impl<T: DeserializeOwned> Decoder<T> {
    /// `version` is what the watch goes on from.
    fn new(path: &str, streaming: bool, version: Option<String>) -> Self {
        Self { path: path.to_owned(), initial: streaming.then(HashSet::new), version, of: PhantomData }
    }

    /// The whole set was told: `version` is a place to resume from.
    fn is_live(&self) -> bool {
        self.initial.is_none() && self.version.is_some()
    }

    fn line(&mut self, line: &Bytes, sink: &mut impl FnMut(Piece<T>)) -> Result<Option<Ended>, ApiError> {
        let call = || format!("GET {}", self.path);
        let event: Event<'_> =
            serde_json::from_slice(line).map_err(|source| ApiError::Decode { call: call(), source })?;
        match event.kind {
            "ERROR" => return self.error(event.object),
            "BOOKMARK" => self.bookmark(event.object, sink),
            "ADDED" | "MODIFIED" | "DELETED" => {
                let (head, object) = match read_object::<T>(event.object) {
                    Ok(read) => read,
                    Err(object) if event.kind == "DELETED" => {
                        if let Some(all) = &mut self.initial {
                            all.remove(&object.key);
                        }
                        sink(Piece::Gone(object.key, None));
                        return Ok(None);
                    }
                    Err(object) => {
                        if let Some(all) = &mut self.initial {
                            all.insert(object.key.clone());
                        }
                        sink(Piece::Unreadable(object));
                        return Ok(None);
                    }
                };
                let key = head.key();
                if self.initial.is_none()
                    && is_older(head.metadata.resource_version.as_deref(), self.version.as_deref())
                {
                    // Told already, or out of order: a watch tells its changes in the order of their versions.
                    return Ok(None);
                }
                self.version = head.metadata.resource_version.or_else(|| self.version.take());
                let gone = event.kind == "DELETED";
                match &mut self.initial {
                    Some(all) if all.len() >= MAX_OBJECTS => {
                        return Err(ApiError::TooLarge { call: call(), limit: MAX_OBJECTS });
                    }
                    Some(all) if gone => drop(all.remove(&key)),
                    Some(all) => drop(all.insert(key.clone())),
                    None => {}
                }
                sink(if gone { Piece::Gone(key, Some(object)) } else { Piece::Set(key, object) });
            }
            // Kinds of events to come say nothing we know how to use.
            _ => {}
        }
        Ok(None)
    }

    fn bookmark(&mut self, raw: &RawValue, sink: &mut impl FnMut(Piece<T>)) {
        let head: Head = serde_json::from_str(raw.get()).unwrap_or_default();
        let is_end =
            head.metadata.annotations.and_then(|all| all.initial_events_end).as_deref() == Some("true");
        if head.metadata.resource_version.is_some()
            && (self.initial.is_some()
                || !is_older(head.metadata.resource_version.as_deref(), self.version.as_deref()))
        {
            self.version = head.metadata.resource_version;
        }
        if is_end && let Some(all) = self.initial.take() {
            sink(Piece::Listed(all));
        }
    }

    fn error(&self, raw: &RawValue) -> Result<Option<Ended>, ApiError> {
        let status: Status = serde_json::from_str(raw.get()).unwrap_or_default();
        let code = status.code.and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
        if code == 410 {
            return Ok(Some(Ended::Relist));
        }
        Err(ApiError::refused(format!("GET {}", self.path), code, raw.get().as_bytes(), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    struct Thing {
        n: i64,
    }

    fn object(name: &str, version: &str, n: i64) -> Value {
        json!({"metadata": {"name": name, "namespace": "d", "resourceVersion": version}, "n": n})
    }

    fn pieces(decoder: &mut Decoder<Thing>, events: &[(&str, Value)]) -> Vec<Piece<Thing>> {
        let mut pieces = Vec::new();
        for (kind, object) in events {
            let line = json!({"type": kind, "object": object}).to_string();
            decoder.line(&Bytes::from(line), &mut |said| pieces.push(said)).unwrap();
        }
        pieces
    }

    fn put_together(whole: &mut Whole<Thing>, pieces: Vec<Piece<Thing>>) -> Vec<News<Thing>> {
        pieces.into_iter().filter_map(|piece| whole.take(piece)).collect()
    }

    fn end(version: &str) -> (&'static str, Value) {
        let annotations = json!({"k8s.io/initial-events-end": "true"});
        ("BOOKMARK", json!({"metadata": {"resourceVersion": version, "annotations": annotations}}))
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("d", name)
    }

    #[test]
    fn a_streaming_list_is_told_once_it_is_whole() {
        let mut decoder = Decoder::new("/x", true, None);
        let mut whole = Whole(None);
        assert_eq!(whole.take(Piece::Begins), None);
        let first = pieces(&mut decoder, &[("ADDED", object("a", "1", 1)), ("ADDED", object("b", "2", 2))]);
        assert!(put_together(&mut whole, first).is_empty() && !decoder.is_live());
        let then = pieces(&mut decoder, &[end("9"), ("MODIFIED", object("a", "10", 3))]);
        let news = put_together(&mut whole, then);
        let all = vec![(key("a"), Thing { n: 1 }), (key("b"), Thing { n: 2 })];
        assert_eq!(news, [News::All(all), News::Set(key("a"), Thing { n: 3 })]);
        assert_eq!(decoder.version.as_deref(), Some("10"));
    }

    #[test]
    fn by_piece_nobody_holds_a_list_and_its_end_says_what_is_there() {
        let mut decoder = Decoder::new("/x", true, None);
        let bad = json!({"metadata": {"name": "bad", "namespace": "d"}, "n": "x"});
        let told = pieces(
            &mut decoder,
            &[
                ("ADDED", object("a", "1", 1)),
                ("ADDED", object("b", "2", 2)),
                ("ADDED", bad.clone()),
                ("DELETED", object("b", "3", 2)),
                end("9"),
                ("DELETED", bad),
            ],
        );
        let [
            Piece::Set(a, _),
            Piece::Set(..),
            Piece::Unreadable(..),
            Piece::Gone(b, Some(_)),
            Piece::Listed(all),
            Piece::Gone(c, None),
        ] = told.as_slice()
        else {
            panic!("{told:?}");
        };
        assert_eq!((a, b, c), (&key("a"), &key("b"), &key("bad")));
        assert_eq!(*all, HashSet::from([key("a"), key("bad")]), "what cannot be read is there");
    }

    #[test]
    fn a_list_that_broke_off_is_forgotten_and_of_an_object_told_twice_the_last_counts() {
        let set = |name: &str, n| Piece::Set(key(name), Thing { n });
        let gone = |name: &str| Piece::Gone(key(name), Some(Thing { n: 0 }));
        let listed = || Piece::Listed(HashSet::new());
        let told = vec![
            Piece::Begins,
            set("a", 1),
            Piece::Begins,
            set("b", 2),
            set("c", 3),
            set("b", 4),
            gone("c"),
            listed(),
            set("d", 5),
        ];
        let all = News::All(vec![(key("b"), Thing { n: 4 })]);
        let news = put_together(&mut Whole(None), told);
        assert_eq!(news, [all, News::Set(key("d"), Thing { n: 5 })]);
    }

    #[test]
    fn changes_bookmarks_and_bad_objects() {
        let mut decoder = Decoder::new("/x", false, None);
        let bad = json!({"metadata": {"name": "bad", "namespace": "d", "resourceVersion": "4"}, "n": "x"});
        let told = pieces(
            &mut decoder,
            &[
                ("ADDED", object("a", "3", 1)),
                ("ADDED", bad),
                ("DELETED", object("a", "5", 1)),
                ("BOOKMARK", json!({"metadata": {"resourceVersion": "8"}})),
                ("NEWKIND", json!({})),
            ],
        );
        let news = put_together(&mut Whole(None), told);
        assert!(matches!(&news[1], News::Unreadable(bad, _) if *bad == key("bad")), "{news:?}");
        assert_eq!(news[2], News::Gone(key("a"), Thing { n: 1 }));
        assert_eq!((news.len(), decoder.version.as_deref()), (3, Some("8")));
    }

    #[test]
    fn what_is_too_old_is_listed_again_and_other_errors_are_told() {
        let mut decoder: Decoder<Thing> = Decoder::new("/x", false, None);
        let mut line = |code: i32| {
            let line = json!({"type": "ERROR", "object": {"code": code, "message": "m"}}).to_string();
            decoder.line(&Bytes::from(line), &mut |_| {})
        };
        assert!(matches!(line(410), Ok(Some(Ended::Relist))));
        assert_eq!(line(500).err().and_then(|error| error.code()), Some(500));
    }

    #[test]
    fn what_is_older_than_what_was_told_is_no_news() {
        let mut decoder = Decoder::new("/x", false, Some("9".into()));
        let told = pieces(
            &mut decoder,
            &[
                ("MODIFIED", object("a", "8", 8)),
                ("MODIFIED", object("a", "10", 10)),
                ("MODIFIED", object("a", "9", 9)),
                ("DELETED", object("b", "12", 1)),
                ("ADDED", object("b", "11", 1)),
                ("BOOKMARK", json!({"metadata": {"resourceVersion": "3"}})),
                ("MODIFIED", object("a", "12", 12)),
            ],
        );
        let set = |n| Piece::Set(key("a"), Thing { n });
        assert_eq!(told, [set(10), Piece::Gone(key("b"), Some(Thing { n: 1 })), set(12)]);
        assert_eq!(decoder.version.as_deref(), Some("12"));
        // A server whose versions are no numbers is believed as it is.
        let told =
            pieces(&mut decoder, &[("MODIFIED", object("a", "x1", 1)), ("MODIFIED", object("a", "2", 2))]);
        assert_eq!(told, [set(1), set(2)]);
    }

    #[test]
    fn a_storm_of_bookmarks_is_no_news_and_leaves_nothing_but_its_last_version() {
        let mut decoder: Decoder<Thing> = Decoder::new("/x", false, Some("1".into()));
        let mut told = 0;
        for version in 2..200_000 {
            let line =
                format!(r#"{{"type":"BOOKMARK","object":{{"metadata":{{"resourceVersion":"{version}"}}}}}}"#);
            decoder.line(&Bytes::from(line), &mut |_| told += 1).unwrap();
        }
        assert_eq!((told, decoder.version.as_deref()), (0, Some("199999")));
    }

    #[test]
    fn lines_that_are_cut_or_nested_without_end_are_errors_and_nothing_worse() {
        let deep = "[".repeat(1 << 20);
        for line in [
            "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\"".to_owned(),
            format!("{{\"type\":\"ADDED\",\"object\":{deep}"),
            format!("{{\"type\":\"ADDED\",\"object\":{deep}{}}}", "]".repeat(1 << 20)),
            deep.clone(),
        ] {
            let mut decoder: Decoder<Thing> = Decoder::new("/x", true, None);
            let mut unread = 0;
            let read = decoder.line(&Bytes::from(line), &mut |piece| {
                assert!(matches!(piece, Piece::Unreadable(..)));
                unread += 1;
            });
            assert!(matches!(read, Err(ApiError::Decode { .. })) || unread == 1, "{read:?}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in ".{0,200}") {
            let mut decoder: Decoder<Thing> = Decoder::new("/x", true, None);
            let _ = decoder.line(&Bytes::from(line), &mut |_| {});
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod against_a_server;
