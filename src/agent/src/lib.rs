//! longshore-agent: the daemon. Sources, pod workers, volumes, probes, dataplane and admin socket,
//! put together in `wiring`. Decisions live in `longshore-core`; here they are carried out.

pub mod admin;
pub mod certificates;
pub mod cgroups;
mod children;
pub mod config;
mod connections;
pub mod dataplane;
pub mod document;
pub mod empty_dirs;
pub mod hooks;
pub mod image_gc;
pub mod images;
pub mod join;
pub mod joined;
pub mod journal;
pub mod kept;
pub mod leftovers;
pub mod lock;
pub mod logging;
pub mod logs;
pub mod metrics;
pub mod node;
mod plain_http;
pub mod pods;
pub mod probes;
pub mod process;
pub mod proxy;
pub mod reads;
pub mod registry;
pub mod reload;
pub mod server;
pub mod services;
pub mod sources;
pub mod sourcing;
pub mod supervisor;
pub mod text;
pub mod volumes;
pub mod wiring;

use std::process::ExitCode;

use config::AgentArgs;

/// Threads for async work: the daemon waits far more than it computes.
const WORKERS: usize = 2;
/// Threads for work on disks, at most.
const BLOCKING_THREADS: usize = 8;

/// `longshore agent`: reads the configuration, then runs until SIGTERM.
pub fn main(args: &AgentArgs) -> ExitCode {
    let settings = match config::load(args) {
        Ok(settings) => settings,
        Err(error) => return fail(&text::error_chain(&error)),
    };
    if let Some(path) = &args.write_config_to {
        return match proxy::write_config(&settings, path) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("{error:#}")),
        };
    }
    logging::init(&settings.logging);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(async {
                match (args.cleanup, args.init_only) {
                    (true, _) => proxy::cleanup::run(&settings, args.dry_run).await,
                    (_, true) => proxy::init_only(&settings).await,
                    _ => wiring::run(args, settings).await,
                }
            });
            // Steps under way are left to the journal and the next start.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::FAILURE
}
