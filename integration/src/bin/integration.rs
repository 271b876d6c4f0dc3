//! The command behind the Makefile: gates, tiers, nodes, demo and benches. Parsing only; the work is in the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use std::path::PathBuf;

use longshore_integration::report::Tally;
use longshore_integration::scenario::suite;
use longshore_integration::{bench, check, cluster, demo, guest, images, native, node, tiers, vm};

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
    /// Show the main job on a throwaway node.
    Demo,
    /// A shell on such a node.
    Shell,
    /// Figures of the release build: those named, or all.
    Bench(bench::Choice),
    /// Build the test images; prints the folder with the archives.
    Images,
    /// Build the node's root and unpack the images; prints containerd's state folder.
    Root,
    /// Build the programs of the control plane CONTROL_PLANE_VERSION names; prints their folder.
    ControlPlane,
    /// Play scenarios on native nodes; with a word, those that have it in their file name.
    Node { only: Option<String> },
    /// Play scenarios on nodes with the fake runtime; with a word, those that have it in their file name.
    Fake { only: Option<String> },
    /// Play scenarios in the node VM; with a word, those that have it in their file name.
    Vm { only: Option<String> },
    /// Play scenarios on a node joined to a real control plane; with a word, those that have it in their file name.
    Cluster { only: Option<String> },
    /// Run the kernel crate's `vm_*` tests in the kernel-only guest.
    Guest,
    /// Boot the bare node VM and run a shell line in it.
    VmRun { line: String },
    /// The first process of a native node; started by the harness alone.
    #[command(hide = true)]
    NodeInit { plan: PathBuf },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Sub::Check => check::run(),
        Sub::Test { tiers } => tiers::run(&tiers),
        Sub::Demo => demo::run(),
        Sub::Shell => demo::shell(),
        Sub::Bench(choice) => bench::run(&choice),
        Sub::Images => images::archives().map(|dir| println!("{}", dir.display())),
        Sub::Root => native::image_store().map(|dir| println!("{}", dir.display())),
        Sub::ControlPlane => cluster::assets::folder().map(|dir| println!("{}", dir.display())),
        Sub::Node { only } => suite::run_native(only.as_deref()).and_then(finish),
        Sub::Fake { only } => suite::run_fake(only.as_deref()).and_then(finish),
        Sub::Vm { only } => suite::run_vm(only.as_deref()).and_then(finish),
        Sub::Cluster { only } => suite::run_cluster(only.as_deref()).and_then(finish),
        Sub::Guest => guest::run_tests().and_then(finish),
        Sub::VmRun { line } => vm_run(&line),
        Sub::NodeInit { plan } => native::init::run(&plan),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn finish(tally: Tally) -> anyhow::Result<()> {
    println!("{tally}");
    anyhow::ensure!(tally.good(tiers::strict()), "not all passed");
    Ok(())
}

fn vm_run(line: &str) -> anyhow::Result<()> {
    let options = vm::Options {
        name: "vm-run".into(),
        binary: None,
        config: String::new(),
        cgroup_driver: vm::CgroupDriver::Systemd,
    };
    let machine = vm::NodeVm::start(&options)?;
    println!("{}", node::sh(&machine, line)?);
    Ok(())
}
