//! What a container runs: command, args and working folder after `$(VAR)` expansion.

use k8s_openapi::api::core::v1::Container;

use crate::pod::env::expand_with;

/// `command` replaces the image's entrypoint, `args` its arguments; empty leaves the image's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
}

pub fn command(container: &Container, env: &[(String, String)]) -> Command {
    let expanded = |words: &Option<Vec<String>>| {
        words.iter().flatten().map(|word| expand_with(word, env)).collect::<Vec<String>>()
    };
    Command {
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
    }
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
        let made = command(&container, &env);
        assert_eq!(made.command, ["run", "1", "$(A)"]);
        assert_eq!(made.args, ["--b=x y", "$(C)"]);
        assert_eq!(made.working_dir, "/w");
        assert!(command(&Container::default(), &env).command.is_empty());
    }
}
