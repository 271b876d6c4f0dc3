//! Queries of a node's logs (KEP-2258): what `/logs/?query=` asks for, what may be asked, and with which
//! arguments the journal is read for it. Running it and opening files is the agent's.

use jiff::Timestamp;

use super::query::Query;
use super::route::is_log_part;

/// Services of one query, and bytes of a service's name, as with the kubelet.
const MAX_SERVICES: usize = 4;
const MAX_NAME: usize = 256;
/// Lines from the end that may be asked for, as with the kubelet.
const MAX_TAIL: u64 = 100_000;
/// Longest pattern, bytes: a long one can be made to take the journal long for each line.
const MAX_PATTERN: usize = 1024;

/// What a query asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeLogQuery {
    /// A file below the node's log folder, by the parts of its path.
    File(Vec<String>),
    /// Services, of the journal or of files named after them.
    Services { names: Vec<String>, options: JournalOptions },
}

/// Which entries of the journal; empty for all of this boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalOptions {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tail: Option<u64>,
    /// A PCRE2 expression.
    pattern: Option<String>,
    /// 0 is this boot, -1 the one before.
    boot: Option<i32>,
}

/// Why a query is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryFault {
    /// It is not written as it should be.
    #[error("{0}")]
    Malformed(String),
    /// It asks for what nobody gets.
    #[error("{0}")]
    NotAcceptable(String),
}

impl NodeLogQuery {
    /// `None` where nothing of a query is given: then the path counts.
    ///
    /// # Errors
    /// What is wrong, one line.
    pub fn parse(query: &Query) -> Result<Option<Self>, QueryFault> {
        let options = JournalOptions::parse(query)?;
        let asked: Vec<&str> = query.all("query").collect();
        if asked.is_empty() && options == JournalOptions::default() {
            return Ok(None);
        }
        let asked: Vec<&str> = asked.into_iter().filter(|one| !one.trim().is_empty()).collect();
        if asked.is_empty() {
            return Err(QueryFault::Malformed("query: it must name a service or a file".to_owned()));
        }
        options.check()?;
        // A slash of either kind is the sign of a file.
        let (files, services): (Vec<&str>, Vec<&str>) =
            asked.into_iter().partition(|one| one.contains(['/', '\\']));
        let refused = |why: &str| QueryFault::NotAcceptable(format!("query: {why}"));
        match (files.as_slice(), services.len()) {
            ([], 1..=MAX_SERVICES) => {}
            ([], _) => {
                return Err(refused(&format!("at most {MAX_SERVICES} services may be asked for at once")));
            }
            ([file], 0) if options == JournalOptions::default() => {
                let parts: Vec<String> =
                    file.split(['/', '\\']).filter(|part| !part.is_empty()).map(str::to_owned).collect();
                return match !parts.is_empty() && parts.iter().all(|part| is_log_part(part)) {
                    true => Ok(Some(Self::File(parts))),
                    false => Err(refused("that is no path of a file")),
                };
            }
            ([_], 0) => return Err(refused("a file is given whole, without other parameters")),
            (_, 0) => return Err(refused("only one file may be asked for at once")),
            _ => return Err(refused("files and services may not be asked for at once")),
        }
        if let Some(bad) = services.iter().find(|name| !is_service(name)) {
            return Err(refused(&format!("{bad:?} is no name of a service")));
        }
        Ok(Some(Self::Services { names: services.into_iter().map(str::to_owned).collect(), options }))
    }
}

impl JournalOptions {
    fn parse(query: &Query) -> Result<Self, QueryFault> {
        let given = |key: &str| query.get(key).filter(|text| !text.is_empty());
        let wrong =
            |key: &str, text: &str, what: &str| QueryFault::Malformed(format!("{key} is {text:?}, {what}"));
        let time = |key: &str| {
            let read = |text: &str| text.parse().map_err(|_| wrong(key, text, "not a time of RFC 3339"));
            given(key).map(read).transpose()
        };
        let tail = |text: &str| text.parse().map_err(|_| wrong("tailLines", text, "not a number of lines"));
        let boot = |text: &str| text.parse().map_err(|_| wrong("boot", text, "not a whole number"));
        Ok(Self {
            since: time("sinceTime")?,
            until: time("untilTime")?,
            tail: given("tailLines").map(tail).transpose()?,
            pattern: given("pattern").map(str::to_owned),
            boot: given("boot").map(boot).transpose()?,
        })
    }

    fn check(&self) -> Result<(), QueryFault> {
        let refused = |why: String| Err(QueryFault::NotAcceptable(why));
        if self.since.zip(self.until).is_some_and(|(since, until)| since > until) {
            return refused("untilTime must be after sinceTime".to_owned());
        }
        if let Some(boot) = self.boot.filter(|boot| *boot > 0) {
            return refused(format!("boot is {boot}; 0 is this boot, -1 the one before"));
        }
        if self.tail.is_some_and(|lines| lines > MAX_TAIL) {
            return refused(format!("tailLines must be {MAX_TAIL} or less"));
        }
        match &self.pattern {
            Some(pattern) if pattern.len() > MAX_PATTERN || pattern.contains('\0') => {
                refused(format!("pattern must be {MAX_PATTERN} bytes or less, without a zero byte"))
            }
            _ => Ok(()),
        }
    }

    /// Whether entries are chosen at all; files know no entries.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Arguments of `journalctl` for these units. Each is one argument with its name, so that none is ever taken for
    /// another option.
    pub fn arguments(&self, units: &[String]) -> Vec<String> {
        let mut all =
            ["--quiet", "--utc", "--no-pager", "--output=short-precise"].map(str::to_owned).to_vec();
        // Seconds since 1970: times as text count in the node's own zone.
        all.extend(self.since.map(|at| format!("--since=@{}", at.as_second())));
        all.extend(self.until.map(|at| format!("--until=@{}", at.as_second())));
        all.extend(self.tail.map(|lines| format!("--lines={lines}")));
        all.extend(units.iter().map(|unit| format!("--unit={unit}")));
        all.extend(self.pattern.as_ref().map(|pattern| format!("--grep={pattern}")));
        all.push(format!("--boot={}", self.boot.unwrap_or(0)));
        all
    }
}

/// Arguments of `journalctl` that list the units it knows.
pub const LIST_UNITS: [&str; 2] = ["--quiet", "--field=_SYSTEMD_UNIT"];

/// Whether a service is among the units the journal lists, one a line.
pub fn is_listed(name: &str, listed: &str) -> bool {
    listed
        .lines()
        .any(|unit| unit.trim().strip_prefix(name).is_some_and(|rest| matches!(rest, "" | ".service")))
}

/// Files that may be a service's log, below the node's log folder; the first that is there counts.
pub fn files_of(name: &str) -> [String; 3] {
    [name.to_owned(), format!("{name}.log"), format!("{name}/{name}.log")]
}

/// Letters, digits and what units' names are joined with: nothing a pattern of units or a path is made of.
fn is_service(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '@' | '.' | ':');
    name.len() <= MAX_NAME && name.chars().all(plain) && !name.starts_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Option<NodeLogQuery>, QueryFault> {
        NodeLogQuery::parse(&Query::parse(query).unwrap())
    }

    #[test]
    fn what_is_asked_is_read() {
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("other=1"), Ok(None));
        let parts = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        for (query, path) in [
            ("query=/syslog", &["syslog"][..]),
            ("query=pods/a/0.log", &["pods", "a", "0.log"]),
            ("query=%5Cpods%5Ca.log", &["pods", "a.log"]),
        ] {
            assert_eq!(parse(query), Ok(Some(NodeLogQuery::File(parts(path)))), "{query}");
        }
        let options = JournalOptions::default();
        let names = parts(&["kubelet", "getty@tty1"]);
        let expected = NodeLogQuery::Services { names, options };
        assert_eq!(parse("query=kubelet&query=+&query=getty%40tty1"), Ok(Some(expected)));
    }

    #[test]
    fn what_nobody_may_ask_is_refused_with_its_reason() {
        let long = format!("query={}", "a".repeat(257));
        let pattern = format!("query=a&pattern={}", "a".repeat(1025));
        for (query, says) in [
            ("query=", "must name"),
            ("query=++", "must name"),
            ("tailLines=3", "must name"),
            ("query=a&tailLines=-1", "not a number of lines"),
            ("query=a&sinceTime=yesterday", "not a time"),
            ("query=a&untilTime=1", "not a time"),
            ("query=a&boot=last", "not a whole number"),
        ] {
            let fault = parse(query).unwrap_err();
            assert!(matches!(&fault, QueryFault::Malformed(why) if why.contains(says)), "{query}: {fault:?}");
        }
        for (query, says) in [
            ("query=a&query=b&query=c&query=d&query=e", "at most 4"),
            ("query=a&query=/b", "at once"),
            ("query=/a&query=/b", "only one file"),
            ("query=/a&boot=0", "without other parameters"),
            ("query=a&boot=1", "0 is this boot"),
            ("query=a&tailLines=100001", "100000 or less"),
            ("query=a&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z", "after sinceTime"),
            ("query=/../etc/shadow", "no path"),
            ("query=..%5C..%5Cetc", "no path"),
            ("query=/", "no path"),
            ("query=/a%00b", "no path"),
            ("query=-x", "no name of a service"),
            ("query=..", "no name of a service"),
            ("query=a*", "no name of a service"),
            ("query=a;reboot", "no name of a service"),
            ("query=$(reboot)", "no name of a service"),
            ("query=a%00b", "no name of a service"),
            ("query=a%0Ab", "no name of a service"),
            (&long, "no name of a service"),
            (&pattern, "1024 bytes"),
            ("query=a&pattern=%00", "zero byte"),
        ] {
            let fault = parse(query).unwrap_err();
            assert!(
                matches!(&fault, QueryFault::NotAcceptable(why) if why.contains(says)),
                "{query}: {fault:?}"
            );
        }
    }

    #[test]
    fn every_argument_carries_its_name() {
        let query = "query=a&sinceTime=2026-01-01T01:00:00%2B01:00&untilTime=2026-01-01T00:01:00Z&tailLines=7\
                     &pattern=--since%20x&boot=-1";
        let Ok(Some(NodeLogQuery::Services { names, options })) = parse(query) else { panic!("it is one") };
        let expected = [
            "--quiet",
            "--utc",
            "--no-pager",
            "--output=short-precise",
            "--since=@1767225600",
            "--until=@1767225660",
            "--lines=7",
            "--unit=a",
            "--grep=--since x",
            "--boot=-1",
        ];
        assert_eq!(options.arguments(&names), expected);
        assert!(!options.is_empty());
    }

    #[test]
    fn units_are_known_by_their_whole_name() {
        let listed = "init.scope\nkubelet.service\ngetty@tty1.service\n";
        for (name, known) in [
            ("kubelet", true),
            ("kubelet.service", true),
            ("getty@tty1", true),
            ("init.scope", true),
            ("kube", false),
            ("init", false),
            ("let", false),
        ] {
            assert_eq!(is_listed(name, listed), known, "{name}");
        }
    }
}
