//! `/debug/pprof/`: the pages a profiler of Go programs asks for. The daemon tells its command line and makes no
//! profiles: what walks a stack within a signal handler can block the program it measures. The answer says how `perf`
//! makes one from outside.

use std::fs;

use http::StatusCode;
use longshore_core::kubelet_api::query::Query;
use longshore_core::kubelet_api::route::Pprof;

use super::body::{self, Answer};

/// Answers for these pages.
pub(super) struct Profiles {
    /// `enableProfilingHandler`.
    pub(super) enabled: bool,
}

impl Profiles {
    pub(super) fn answer(&self, page: Pprof, query: &str) -> Answer {
        if !self.enabled {
            return body::text(StatusCode::METHOD_NOT_ALLOWED, "profiling endpoint is disabled.\n");
        }
        match page {
            Pprof::Index => body::text(StatusCode::OK, format!("/debug/pprof/\n\ncmdline\n\n{}", instead())),
            Pprof::Cmdline => cmdline(),
            Pprof::Profile(name) => match Query::parse(query).and_then(|query| query.number("seconds")) {
                Ok(_) => body::text(
                    StatusCode::NOT_IMPLEMENTED,
                    format!("/debug/pprof/{name} is not there: {}", instead()),
                ),
                Err(why) => body::text(StatusCode::BAD_REQUEST, format!("{why}\n")),
            },
        }
    }
}

fn instead() -> String {
    format!(
        "this daemon makes no profiles of itself. On its node, as root: \
         perf record -F 99 --call-graph dwarf -p {} -- sleep 30\n",
        std::process::id()
    )
}

/// The words, with a NUL between two of them.
fn cmdline() -> Answer {
    match fs::read("/proc/self/cmdline") {
        Ok(words) => {
            let words = words.strip_suffix(b"\0").unwrap_or(&words).to_vec();
            body::answer(StatusCode::OK, "text/plain; charset=utf-8", body::whole(words))
        }
        Err(error) => {
            let message = format!("cannot read /proc/self/cmdline: {error}\n");
            body::text(StatusCode::INTERNAL_SERVER_ERROR, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn ask(enabled: bool, page: Pprof, query: &str) -> (u16, String) {
        let (head, body) = Profiles { enabled }.answer(page, query).into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn profiles_are_not_there_and_the_answer_says_how_one_is_made() {
        let perf = format!("perf record -F 99 --call-graph dwarf -p {} -- sleep 30\n", std::process::id());
        for query in ["", "seconds=5", "seconds=", "debug=1"] {
            let (status, text) = ask(true, Pprof::Profile("profile"), query).await;
            assert_eq!(status, 501, "{query}");
            assert!(text.starts_with("/debug/pprof/profile is not there") && text.ends_with(&perf), "{text}");
        }
        let (status, text) = ask(true, Pprof::Index, "").await;
        assert!(status == 200 && text.contains("\ncmdline\n") && text.ends_with(&perf), "{status} {text}");
        let (status, text) = ask(true, Pprof::Cmdline, "").await;
        let own: Vec<String> = std::env::args().collect();
        assert_eq!((status, text.split('\0').collect::<Vec<_>>()), (200, own.iter().map(|s| &**s).collect()));
    }

    #[tokio::test]
    async fn a_query_that_is_none_is_told_and_a_page_that_is_off_says_so() {
        let page = Pprof::Profile("profile");
        let expected = (400, "seconds is \"abc\", not a whole number\n".to_owned());
        assert_eq!(ask(true, page, "seconds=abc").await, expected);
        assert_eq!(ask(true, page, "seconds=%zz").await.0, 400);
        for page in [Pprof::Index, Pprof::Cmdline, page] {
            let expected = (405, "profiling endpoint is disabled.\n".to_owned());
            assert_eq!(ask(false, page, "").await, expected, "{page:?}");
        }
    }
}
