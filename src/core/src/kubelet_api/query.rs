//! Queries of the kubelet's API: escapes, and the options of logs and streams as apimachinery reads them.

use jiff::{SignedDuration, Timestamp};

/// Pairs of one query, at most: a command line of exec is one pair per word.
const MAX_PAIRS: usize = 4096;

/// A query's pairs, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// # Errors
    /// Where an escape is none, what is escaped is no text, or there are too many pairs.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pairs = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            if pairs.len() == MAX_PAIRS {
                return Err(format!("the query has more than {MAX_PAIRS} parameters"));
            }
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let decoded = unescape(key, true).zip(unescape(value, true));
            pairs.push(
                decoded.ok_or_else(|| format!("{part:?} in the query is not escaped as it should be"))?,
            );
        }
        Ok(Self(pairs))
    }

    /// The first value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    /// All values of a key, in order.
    pub fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// As apimachinery converts: given and not plainly false is true.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    /// # Errors
    /// Where the value is no whole number; an empty one counts as none.
    pub fn number(&self, key: &str) -> Result<Option<i64>, String> {
        let read = |text: &str| text.parse().map_err(|_| format!("{key} is {text:?}, not a whole number"));
        self.get(key).filter(|text| !text.is_empty()).map(read).transpose()
    }
}

/// Percent escapes undone; `None` where one is broken or the bytes are no text.
pub(super) fn unescape(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Which streams of a container a log shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogStream {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// `PodLogOptions` as the kubelet is asked with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    /// Only lines at or after this.
    pub since: Option<Timestamp>,
    /// Only the last so many lines.
    pub tail: Option<u64>,
    /// Only so many bytes of the answer.
    pub limit_bytes: Option<u64>,
    pub stream: LogStream,
}

impl LogOptions {
    /// # Errors
    /// The option that is wrong and why, one line.
    pub fn parse(query: &Query, now: Timestamp) -> Result<Self, String> {
        let at_least = |key: &str, least: i64| match query.number(key)? {
            Some(number) if number < least => Err(format!("{key} is {number}, it must be {least} or more")),
            number => Ok(number.map(i64::unsigned_abs)),
        };
        let since_seconds = at_least("sinceSeconds", 1)?;
        let since_time = query.get("sinceTime").filter(|text| !text.is_empty());
        let since = match (since_seconds, since_time) {
            (Some(_), Some(_)) => return Err("at most one of sinceTime and sinceSeconds may be given".into()),
            (Some(seconds), None) => {
                let span = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                // Longer ago than there is time: everything.
                now.checked_sub(span).ok()
            }
            (None, Some(text)) => {
                Some(text.parse().map_err(|_| format!("sinceTime is {text:?}, not a time of RFC 3339"))?)
            }
            (None, None) => None,
        };
        // `tail` is what it was called before the options had a type.
        let legacy = query.get("tail").filter(|text| !text.is_empty() && *text != "all");
        let tail = match (at_least("tailLines", 0)?, legacy) {
            (None, Some(text)) => {
                Some(text.parse().map_err(|_| format!("tail is {text:?}, not a number of lines"))?)
            }
            (lines, _) => lines,
        };
        let stream = match query.get("stream") {
            None | Some("" | "All") => LogStream::All,
            Some("Stdout") => LogStream::Stdout,
            Some("Stderr") => LogStream::Stderr,
            Some(other) => return Err(format!("stream is {other:?}; it must be All, Stdout or Stderr")),
        };
        if stream != LogStream::All && tail.is_some() {
            return Err("tailLines may not be given with one stream only".into());
        }
        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            since,
            tail,
            limit_bytes: at_least("limitBytes", 1)?,
            stream,
        })
    }
}

/// The streams of exec and attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl StreamOptions {
    /// Reads what kubectl's way through the API server makes of the options: `input`, `output`, `error`,
    /// `tty` and `command` once per word; newer callers say `stdin`, `stdout` and `stderr`.
    ///
    /// # Errors
    /// Where no stream is asked for.
    pub fn parse(query: &Query) -> Result<Self, String> {
        let either = |one: &str, other: &str| query.flag(one) || query.flag(other);
        let tty = query.flag("tty");
        let options = Self {
            command: query.all("command").map(str::to_owned).collect(),
            stdin: either("input", "stdin"),
            stdout: either("output", "stdout"),
            // A terminal has one output.
            stderr: either("error", "stderr") && !tty,
            tty,
        };
        if !options.stdin && !options.stdout && !options.stderr {
            return Err("you must specify at least 1 of stdin, stdout, stderr".into());
        }
        Ok(options)
    }
}

/// Ports of a WebSocket's port-forward; a SPDY one names them in its streams.
///
/// # Errors
/// The port that is none.
pub fn ports(query: &Query) -> Result<Vec<u16>, String> {
    let port = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err(format!("port {text:?} is not a port")),
        Ok(port) => Ok(port),
    };
    query.all("port").flat_map(|list| list.split(',')).map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(query: &str) -> Result<LogOptions, String> {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        LogOptions::parse(&Query::parse(query).unwrap(), now)
    }

    #[test]
    fn log_options_as_clients_write_them() {
        let default = LogOptions::default;
        let at = |text: &str| Some(text.parse().unwrap());
        let cases = [
            ("", default()),
            ("follow=true&timestamps=1", LogOptions { follow: true, timestamps: true, ..default() }),
            ("follow=false&previous=", LogOptions { previous: true, ..default() }),
            ("tailLines=0", LogOptions { tail: Some(0), ..default() }),
            ("tail=7", LogOptions { tail: Some(7), ..default() }),
            ("tail=all&limitBytes=9", LogOptions { limit_bytes: Some(9), ..default() }),
            ("sinceSeconds=60", LogOptions { since: at("2026-01-01T00:00:00Z"), ..default() }),
            ("sinceSeconds=9223372036854775807", default()),
            (
                "sinceTime=2026-01-01T01%3A00%3A00%2B01%3A00",
                LogOptions { since: at("2026-01-01T00:00:00Z"), ..default() },
            ),
            ("stream=Stderr", LogOptions { stream: LogStream::Stderr, ..default() }),
        ];
        for (query, expected) in cases {
            assert_eq!(options(query), Ok(expected), "{query}");
        }
        for query in [
            "tailLines=-1",
            "tailLines=x",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
            "sinceTime=yesterday",
            "tail=-2",
            "stream=both",
            "stream=Stdout&tailLines=1",
        ] {
            assert!(options(query).is_err(), "{query}");
        }
    }

    #[test]
    fn commands_keep_their_words_and_terminals_have_one_output() {
        let query =
            Query::parse("command=sh&command=-c&command=echo+%26%20a%3Db&output=1&error=1&tty=1").unwrap();
        let expected = StreamOptions {
            command: vec!["sh".into(), "-c".into(), "echo & a=b".into()],
            stdout: true,
            tty: true,
            ..StreamOptions::default()
        };
        assert_eq!(StreamOptions::parse(&query), Ok(expected));
        assert!(StreamOptions::parse(&Query::parse("command=sh&error=1&tty=1").unwrap()).is_err());
        assert_eq!(ports(&Query::parse("port=80&port=443,53").unwrap()), Ok(vec![80, 443, 53]));
        for wrong in ["port=0", "port=65536", "port=", "port=x"] {
            assert!(ports(&Query::parse(wrong).unwrap()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn broken_and_endless_queries_are_refused() {
        assert!(Query::parse("a=%zz").is_err());
        assert!(Query::parse("a=%ff").is_err());
        assert!(Query::parse("a=%4").is_err());
        assert!(Query::parse(&"a&".repeat(MAX_PAIRS + 1)).is_err());
        assert!(Query::parse(&"a&".repeat(MAX_PAIRS)).is_ok());
    }
}
