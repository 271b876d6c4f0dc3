//! The command behind the Makefile: gates, tiers, nodes, demo and benches. Parsing only; the work is in the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use longshore_integration::{check, tiers};

#[derive(Debug, Parser)]
#[command(about = "Tests and throwaway nodes of longshore")]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Format, lints, tidy, licences.
    Check,
    /// Run test tiers: those named, or every one this machine can run.
    Test { tiers: Vec<tiers::Tier> },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Sub::Check => check::run(),
        Sub::Test { tiers } => tiers::run(&tiers),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
