use std::fs;
use std::io::Write;

use super::*;

type Heard = Arc<Mutex<Vec<String>>>;

/// A watched temporary folder and what it told: `+a`, `-a` for pods.
struct World {
    dir: tempfile::TempDir,
    heard: Heard,
    manifests: Manifests,
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: \"{image}\"}}]}}\n"
    )
}

impl World {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("m");
        fs::create_dir(&folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        let heard = Heard::default();
        let ears = heard.clone();
        let sink: Sink = Arc::new(move |change| {
            if let Change::Pod(desired) = change {
                let sign = if desired.deletion.is_some() { '-' } else { '+' };
                let image = desired.pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
                ears.lock().unwrap().push(format!("{sign}{image}"));
            }
        });
        let options = ManifestOptions { folder, audit_period: Duration::from_secs(3600), memory: None };
        let manifests = Manifests::start(options, Vec::new(), sink);
        Self { dir, heard, manifests }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("m").join(name)
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            if done(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "never: {what}; heard {:?}, problems {:?}",
            self.heard.lock().unwrap(),
            self.manifests.problems()
        );
    }

    async fn hears(&self, expected: &[&str]) {
        self.until(&format!("{expected:?}"), |world| *world.heard.lock().unwrap() == expected).await;
    }
}

#[tokio::test]
async fn files_come_change_and_go() {
    let world =
        World::new(&[("a.yaml", &pod("a", "a:1")), (".hidden.yaml", &pod("h", "h:1")), ("b.yaml~", "x")]);
    world.manifests.synced().wait_for(|synced| *synced).await.unwrap();
    world.hears(&["+a:1"]).await;
    fs::write(world.path("a.yaml"), pod("a", "a:2")).unwrap();
    world.hears(&["+a:1", "-a:1", "+a:2"]).await;
    // An editor's way: a temporary file renamed over the old one.
    fs::write(world.path(".a.yaml.swp"), pod("a", "a:3")).unwrap();
    fs::rename(world.path(".a.yaml.swp"), world.path("a.yaml")).unwrap();
    world.hears(&["+a:1", "-a:1", "+a:2", "-a:2", "+a:3"]).await;
    fs::remove_file(world.path("a.yaml")).unwrap();
    world.hears(&["+a:1", "-a:1", "+a:2", "-a:2", "+a:3", "-a:3"]).await;
    assert!(world.manifests.problems().is_empty());
}

#[tokio::test]
async fn a_file_is_not_read_while_somebody_writes_it() {
    let world = World::new(&[("a.yaml", &pod("a", "a:1"))]);
    world.hears(&["+a:1"]).await;
    // A valid prefix of a longer file: were it read, the second pod would seem gone.
    let mut file = fs::File::create(world.path("a.yaml")).unwrap();
    file.write_all(pod("b", "b:1").as_bytes()).unwrap();
    file.flush().unwrap();
    tokio::time::sleep(SETTLE_AT_MOST + Duration::from_millis(300)).await;
    assert_eq!(*world.heard.lock().unwrap(), ["+a:1"]);
    file.write_all(format!("---\n{}", pod("a", "a:1")).as_bytes()).unwrap();
    drop(file);
    // The same life of a, now the second document of its file.
    world.hears(&["+a:1", "+a:1", "+b:1"]).await;
}

#[tokio::test]
async fn a_file_that_an_editor_moves_aside_and_writes_anew_was_never_gone() {
    let world = World::new(&[("a.yaml", &pod("a", "a:1"))]);
    world.hears(&["+a:1"]).await;
    // The same text comes back: nothing may be heard, above all no end.
    fs::rename(world.path("a.yaml"), world.path("a.yaml~")).unwrap();
    fs::write(world.path("other.yaml"), pod("o", "o:1")).unwrap();
    tokio::time::sleep(SETTLE / 4).await;
    fs::write(world.path("a.yaml"), pod("a", "a:1")).unwrap();
    fs::remove_file(world.path("a.yaml~")).unwrap();
    world.hears(&["+a:1", "+o:1"]).await;
}

#[tokio::test]
async fn a_folder_taken_away_and_brought_back_ends_nothing() {
    let world = World::new(&[("a.yaml", &pod("a", "a:1"))]);
    world.hears(&["+a:1"]).await;
    let away = world.dir.path().join("away");
    fs::rename(world.dir.path().join("m"), &away).unwrap();
    world.until("a problem", |world| !world.manifests.problems().is_empty()).await;
    assert!(world.manifests.problems()[0].message.contains("what runs goes on"));
    fs::rename(&away, world.dir.path().join("m")).unwrap();
    world.until("no problem", |world| world.manifests.problems().is_empty()).await;
    // It is watched again.
    fs::write(world.path("b.yaml"), pod("b", "b:1")).unwrap();
    world.hears(&["+a:1", "+b:1"]).await;
}

#[tokio::test]
async fn what_is_no_file_or_too_large_is_named_and_stops_nothing() {
    let world = World::new(&[]);
    nix::unistd::mkfifo(&world.path("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(world.path("dir.yaml")).unwrap();
    fs::write(world.path("large.yaml"), vec![b'#'; MAX_FILE_BYTES as usize + 1]).unwrap();
    fs::write(world.path("z.yaml"), pod("z", "z:1")).unwrap();
    world.hears(&["+z:1"]).await;
    // Problems are told a moment after the pods.
    world.until("three problems", |world| world.manifests.problems().len() == 3).await;
    let problems = world.manifests.problems();
    let of = |name: &str| {
        let found = problems.iter().find(|problem| problem.place.ends_with(name));
        found.map(|problem| problem.message.clone()).unwrap_or_default()
    };
    assert!(of("pipe.yaml").contains("not a regular file"), "{problems:?}");
    assert!(of("dir.yaml").contains("not a regular file"), "{problems:?}");
    assert!(of("large.yaml").contains("larger than 1048576 bytes"), "{problems:?}");
    assert!(world.manifests.summary().ends_with("4 files, 1 objects"), "{}", world.manifests.summary());
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("later");
    let options =
        ManifestOptions { folder: folder.clone(), audit_period: Duration::from_millis(50), memory: None };
    let manifests = Manifests::start(options, Vec::new(), Arc::new(|_| {}));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!*manifests.synced().borrow(), "nothing may be cleaned up before the folder was seen");
    fs::create_dir(&folder).unwrap();
    manifests.synced().wait_for(|synced| *synced).await.unwrap();
}

#[test]
fn the_examples_are_in_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let (scan, _) = list(&root, HashMap::new(), &[]);
    let mut folder = Folder::new(&root);
    let changes = folder.apply(scan, Timestamp::now());
    assert_eq!(folder.problems(), []);
    assert!(!changes.is_empty(), "{} holds manifests", root.display());
}
