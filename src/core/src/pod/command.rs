//! What a container runs: command, args and working folder after `$(VAR)` expansion.

use k8s_openapi::api::core::v1::Container;

use crate::pod::env::{Finished, MAX_BYTES, TooLong};
use crate::pod::refs::RefError;

/// `command` replaces the image's entrypoint, `args` its arguments; empty leaves the image's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
}

/// # Errors
/// Where the words come to more than a process can be started with.
pub fn command(container: &Container, env: &[(String, String)]) -> Result<Command, RefError> {
    let env = Finished::new(env);
    let mut left = MAX_BYTES;
    let mut expanded = |words: &Option<Vec<String>>| {
        let word = |word: &String| {
            let word = env.expand(word, left)?;
            left -= word.len();
            Ok(word)
        };
        words.iter().flatten().map(word).collect::<Result<Vec<String>, TooLong>>()
    };
    let too_long = |TooLong| RefError::too_long(format!("the command of container {}", container.name));
    Ok(Command {
        command: expanded(&container.command).map_err(too_long)?,
        args: expanded(&container.args).map_err(too_long)?,
        working_dir: container.working_dir.clone().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expands_words_from_the_environment() {
        let container: Container = serde_json::from_value(json!({"name": "a", "workingDir": "/w",
            "command": ["run", "$(A)", "$$(A)"], "args": ["--b=$(B)", "$(C)"]}))
        .unwrap();
        let env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x y".to_owned())];
        let made = command(&container, &env).unwrap();
        assert_eq!(made.command, ["run", "1", "$(A)"]);
        assert_eq!(made.args, ["--b=x y", "$(C)"]);
        assert_eq!(made.working_dir, "/w");
        assert!(command(&Container::default(), &env).unwrap().command.is_empty());
        let long = [("A".to_owned(), "x".repeat(MAX_BYTES / 2 + 1))];
        assert!(command(&container, &long).is_ok(), "once it fits");
        let twice = Container { args: Some(vec!["$(A)".to_owned()]), ..container };
        assert!(matches!(command(&twice, &long), Err(RefError::Invalid { .. })));
    }
}
