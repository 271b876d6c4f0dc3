//! The one binary: which half is meant, by the name it was started with and by its first word.
//! Nothing else lives here.

mod names;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use longshore_ctl::CtlCommand;

/// A node agent for Kubernetes pods and Services: what the kubelet and kube-proxy do, in one daemon,
/// and the commands that show and explain what it does.
#[derive(Parser, Debug)]
#[command(name = "longshore", version, max_term_width = 100)]
#[command(after_help = "Start here:
  longshore doctor               can this node run pods?
  longshore ps                   what runs
  longshore why pod/NAME         why it does not, and what to do

Exit codes: 0 done, 1 the answer is no, 2 not understood; exec passes on the command's own.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    #[command(flatten)]
    Ctl(CtlCommand),
    /// Run the node agent: pods and Services of this node
    #[command(after_help = "Example:
  longshore agent --standalone --manifests /etc/longshore/manifests")]
    Agent(Box<longshore_agent::config::AgentArgs>),
    /// Join a Kubernetes cluster: write what the agent starts with
    #[command(after_help = "Example:
  longshore join 192.0.2.1:6443 --token abcdef.0123456789abcdef \\
    --discovery-token-ca-cert-hash sha256:...
  systemctl enable --now longshore

`kubeadm token create --print-join-command` on the control plane prints these options.")]
    Join(Box<longshore_agent::join::JoinArgs>),
    /// Print a completion script
    #[command(after_help = "Example:
  longshore completion bash > /etc/bash_completion.d/longshore")]
    Completion { shell: Shell },
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man { folder: PathBuf },
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(names::subcommand_for(std::env::args_os()));
    match cli.command {
        Command::Ctl(command) => longshore_ctl::main(command),
        Command::Agent(args) => longshore_agent::main(&args),
        Command::Join(args) => longshore_agent::join::main(&args),
        Command::Completion { shell } => {
            longshore_ctl::shell::completion(&mut Cli::command(), shell);
            ExitCode::SUCCESS
        }
        Command::Man { folder } => match longshore_ctl::shell::man_pages(Cli::command(), &folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: cannot write man pages to {}: {error}", folder.display());
                ExitCode::FAILURE
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_and_every_option_a_description() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let known = argument.get_help().is_some() || argument.get_id() == "shell";
                assert!(known, "{} {} has no description", command.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn commands_are_read_as_people_write_them() {
        let cases: [(&[&str], bool); 15] = [
            (&["ps"], true),
            (&["ps", "-o", "wide", "-n", "shop"], true),
            (&["get", "pod", "web", "-o", "yaml"], true),
            (&["get", "svc/web"], true),
            (&["describe", "pod", "web"], true),
            (&["logs", "-f", "web", "--tail", "5", "-c", "main"], true),
            (&["logs", "web", "-f", "--previous"], false),
            (&["exec", "-it", "web", "--", "sh", "-c", "echo -n x"], true),
            (&["exec", "web", "-i", "-c", "main", "--", "tar", "-x", "-C", "/data"], true),
            (&["exec", "web", "sh"], false),
            (&["exec", "web"], false),
            (&["why", "node"], true),
            (&["timeline", "pod/web", "-o", "wide"], true),
            (&["doctor", "-o", "json"], true),
            (&["frobnicate"], false),
        ];
        for (words, understood) in cases {
            let result = Cli::try_parse_from(["longshore"].iter().chain(words));
            assert_eq!(result.is_ok(), understood, "{words:?}: {:?}", result.err());
        }
    }

    #[test]
    fn completion_and_man_pages_cover_every_command() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "longshore", &mut script);
        let script = String::from_utf8(script).unwrap();
        let folder = tempfile::tempdir().unwrap();
        longshore_ctl::shell::man_pages(Cli::command(), folder.path()).unwrap();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            assert!(script.contains(&format!("longshore,{name})")), "{name}");
            assert!(folder.path().join(format!("longshore-{name}.1")).exists(), "{name}");
        }
    }
}
