//! What callers of the node's own API send before anyone knows who they are: paths and queries.

use bolero::check;
use longshore_core::kubelet_api::node_log::NodeLogQuery;
use longshore_core::kubelet_api::query::{LogOptions, Query, StreamOptions, ports};
use longshore_core::kubelet_api::route::{Route, Verb, needed};

/// Paths that mostly look like those of the API.
fn path(bytes: &[u8]) -> String {
    const WORDS: [&str; 12] = [
        "/exec",
        "/logs",
        "/containerLogs",
        "/portForward",
        "/..",
        "/%2e%2e",
        "/a",
        "/%2f",
        "/",
        "%00",
        "/.",
        "/x%41",
    ];
    let mut path = String::new();
    for byte in bytes {
        match WORDS.get(usize::from(*byte)) {
            Some(word) => path.push_str(word),
            None => path.push(char::from(*byte)),
        }
    }
    path
}

/// A name that can be part of a path of files without leading anywhere else.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

#[test]
fn paths_of_any_bytes() {
    check!().for_each(|bytes: &[u8]| {
        for path in [path(bytes), String::from_utf8_lossy(bytes).into_owned()] {
            let route = Route::parse(&path);
            for verb in Verb::ALL {
                assert!(!needed(route.as_ref(), verb).subresources.is_empty(), "{path:?}");
            }
            let names: Vec<&str> = match &route {
                Some(Route::NodeLogs(parts)) => parts.iter().map(String::as_str).collect(),
                Some(
                    Route::ContainerLogs(target)
                    | Route::Exec(target)
                    | Route::Attach(target)
                    | Route::Run(target)
                    | Route::Checkpoint(target),
                ) => vec![&target.pod.namespace, &target.pod.pod, &target.container],
                Some(Route::PortForward(target)) => vec![&target.namespace, &target.pod],
                _ => Vec::new(),
            };
            assert!(names.iter().all(|name| is_plain(name)), "{path:?}: {names:?}");
        }
    });
}

#[test]
fn queries_of_any_bytes() {
    check!().for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        for query in [
            text.clone().into_owned(),
            format!("tailLines={text}&sinceTime={text}&port={text}&stdin=1"),
            format!("query={text}&pattern={text}"),
        ] {
            let Ok(query) = Query::parse(&query) else { continue };
            let _ = LogOptions::parse(&query, jiff::Timestamp::UNIX_EPOCH);
            match NodeLogQuery::parse(&query) {
                Ok(Some(NodeLogQuery::File(parts))) => {
                    assert!(parts.iter().all(|part| is_plain(part)), "{parts:?}")
                }
                Ok(Some(NodeLogQuery::Services { names, options })) => {
                    assert!(names.iter().all(|name| is_plain(name)), "{names:?}");
                    assert!(
                        options
                            .arguments(&names)
                            .iter()
                            .all(|word| word.starts_with("--") && !word.contains('\0'))
                    );
                }
                Ok(None) | Err(_) => {}
            }
            let _ = StreamOptions::parse(&query);
            if let Ok(ports) = ports(&query) {
                assert!(!ports.contains(&0));
            }
        }
    });
}
