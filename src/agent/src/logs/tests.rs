//! Logs of a fake runtime's containers on a temporary disk.

use std::io::Read;

use longshore_cri::Operation;
use longshore_cri::fake::{FakeOptions, FakeRuntime, Fault, specs};

use std::fs::File;

use super::*;

struct World {
    disk: tempfile::TempDir,
    fake: FakeRuntime,
    logs: ContainerLogs,
    log: PathBuf,
    id: ContainerId,
}

const LIMITS: LogLimits = LogLimits { max_bytes: 1000, max_files: 3 };

impl World {
    async fn new() -> Self {
        let disk = tempfile::tempdir().unwrap();
        let fake = FakeRuntime::new(FakeOptions { write_logs: true, ..FakeOptions::default() });
        let runtime = fake.runtime();
        fake.add_image("web:1");
        let mut sandbox = specs::sandbox_spec("web", 0);
        sandbox.log_directory = disk.path().join("pods/default_web_u").display().to_string();
        let made = runtime.sandboxes.run_sandbox(&sandbox).await.unwrap();
        let mut spec = specs::container_spec("web", "app", 0);
        spec.log_path = "app/0.log".to_owned();
        let id = runtime.containers.create_container(&made, &spec, &sandbox).await.unwrap();
        runtime.containers.start_container(&id).await.unwrap();
        let settings = LogSettings { limits: LIMITS, workers: 1, interval: Duration::from_secs(10) };
        let logs = ContainerLogs {
            settings: watch::Sender::new(settings).subscribe(),
            pods: PodsView::default(),
            upkeep: runtime.upkeep,
            clock: Clock::following_tokio("2026-01-01T00:00:00Z".parse().unwrap()),
            folder: disk.path().join("pods"),
        };
        let log = disk.path().join("pods/default_web_u/app/0.log");
        Self { disk, fake, logs, log, id }
    }

    async fn rotate(&self) -> Result<(), RotateError> {
        self.logs.rotate_where_large(&self.log, &self.id, LIMITS).await
    }

    fn names(&self) -> Vec<String> {
        let mut names = files::beside(&self.log).unwrap();
        names.sort();
        names
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_grew_is_rotated_compressed_and_in_the_end_removed() {
    let world = World::new().await;
    world.rotate().await.unwrap();
    assert_eq!(world.names(), ["0.log"], "small enough");
    for round in 0..3 {
        std::fs::write(&world.log, format!("round {round} {}", "x".repeat(2000))).unwrap();
        world.rotate().await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let expected = ["0.log", "0.log.20260101-000100.gz", "0.log.20260101-000200"];
    assert_eq!(world.names(), expected);
    let mut text = String::new();
    let old = File::open(world.log.with_file_name(expected[1])).unwrap();
    flate2::read::GzDecoder::new(old).read_to_string(&mut text).unwrap();
    assert!(text.starts_with("round 1 "), "{text}");
    assert_eq!(world.fake.calls(Operation::ReopenContainerLog), 3);
    remove_with_rotated(&world.log).unwrap();
    assert!(world.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_log_the_runtime_does_not_reopen_goes_back() {
    let world = World::new().await;
    std::fs::write(&world.log, "x".repeat(2000)).unwrap();
    world.fake.add_fault(Fault::nth(Operation::ReopenContainerLog, 1, tonic::Code::Internal, "no"));
    let error = world.rotate().await.unwrap_err();
    assert!(error.to_string().contains("0.log"), "{error}");
    assert_eq!(world.names(), ["0.log"]);
    assert_eq!(std::fs::read(&world.log).unwrap().len(), 2000);
    world.rotate().await.unwrap();
    assert_eq!(world.names().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn links_follow_the_logs_and_foreign_ones_stay() {
    let world = World::new().await;
    let folder = world.disk.path().join("containers");
    let target = |name: &str| std::fs::read_link(folder.join(name)).ok();
    link(&folder, "gone.log", &world.disk.path().join("pods/old/0.log")).unwrap();
    link(&folder, "web.log", &world.disk.path().join("pods/wrong/0.log")).unwrap();
    link(&folder, "foreign.log", Path::new("/elsewhere/0.log")).unwrap();
    let wanted = [
        ("web.log".to_owned(), world.log.clone()),
        ("no.log".to_owned(), world.disk.path().join("pods/none")),
    ];
    files::keep_links(&folder, &world.logs.folder, &wanted).unwrap();
    assert_eq!(target("web.log"), Some(world.log.clone()));
    assert_eq!((target("gone.log"), target("no.log")), (None, None));
    assert!(target("foreign.log").is_some());
    unlink(&folder, "web.log").unwrap();
    unlink(&folder, "web.log").unwrap();
    assert_eq!(target("web.log"), None);
}
