//! `longshore mounts`: what is mounted for pods below the agent's root folder, volume by volume, and
//! mounts that no pod of this node accounts for. Reads the kernel's list; changes nothing.

use std::path::Path;

use longshore_core::ids::PodUid;
use longshore_kernel::mount::MountEntry;
use longshore_kernel::mount::table::parse_mountinfo;
use serde::Serialize;

use crate::error::CliError;
use crate::output::{Format, Paint, Rows, Screen, mood, print, structured};
use crate::pods::{Node, NodePod};
use crate::target::PodName;

/// One mount, or a volume that is a plain folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MountLine {
    /// `namespace/name`; the uid where no pod of this node has it.
    pub pod: String,
    /// No pod of this node accounts for it.
    pub orphan: bool,
    pub volume: String,
    /// `empty-dir`, `secret`, ...; `subpath` for a bind of a part.
    pub kind: String,
    /// File system, or `folder` where nothing is mounted.
    pub file_system: String,
    pub read_only: bool,
    pub path: String,
}

/// Shows the mounts of one pod, or of all.
pub async fn run(node: &Node, screen: &Screen, name: Option<&PodName>, root: &Path) -> Result<(), CliError> {
    let pods = node.pods().await?;
    let only = name.map(|name| name.choose(pods.iter().map(NodePod::key))).transpose()?;
    let text = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| CliError::new(format!("cannot read /proc/self/mountinfo: {error}")))?;
    let folders = folders(&root.join("pods"));
    let mut lines = lines(&pods, &parse_mountinfo(&text), &folders, root);
    if let Some(key) = &only {
        lines.retain(|line| line.pod == key.to_string());
    }
    if structured(screen, &lines)? {
        return Ok(());
    }
    if lines.is_empty() {
        eprintln!("no mounts or volumes below {}", root.join("pods").display());
        return Ok(());
    }
    print(&table(&lines, screen))
}

/// Volumes on disk: uid, kind and name.
type VolumeFolder = (String, String, String);

fn folders(pods: &Path) -> Vec<VolumeFolder> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let mut found = Vec::new();
    for uid in names(pods) {
        let volumes = pods.join(&uid).join("volumes");
        for kind in names(&volumes) {
            found.extend(
                names(&volumes.join(&kind)).into_iter().map(|name| (uid.clone(), kind.clone(), name)),
            );
        }
    }
    found
}

fn lines(pods: &[NodePod], mounts: &[MountEntry], folders: &[VolumeFolder], root: &Path) -> Vec<MountLine> {
    let base = root.join("pods");
    let owner = |uid: &str| pods.iter().find(|pod| pod.observed.uid == PodUid::from(uid));
    let mut lines = Vec::new();
    for mount in mounts {
        let Ok(below) = mount.path.strip_prefix(&base) else { continue };
        let parts: Vec<&str> = below.iter().filter_map(|part| part.to_str()).collect();
        let (uid, kind, volume) = match parts.as_slice() {
            [uid, "volumes", kind, volume, ..] => (*uid, short(kind), (*volume).to_owned()),
            [uid, "volume-subpaths", volume, ..] => (*uid, "subpath".to_owned(), (*volume).to_owned()),
            [uid, rest @ ..] => (*uid, "other".to_owned(), rest.join("/")),
            [] => continue,
        };
        lines.push(line(
            owner(uid),
            uid,
            (kind, volume),
            (mount.fs_type.as_str(), mount.read_only),
            &mount.path,
        ));
    }
    for (uid, kind, volume) in folders {
        let path = base.join(uid).join("volumes").join(kind).join(volume);
        if !mounts.iter().any(|mount| mount.path == path) {
            let of = (short(kind), volume.clone());
            lines.push(line(owner(uid), uid, of, ("folder", false), &path));
        }
    }
    lines.sort_by(|a, b| (a.orphan, &a.pod, &a.path).cmp(&(b.orphan, &b.pod, &b.path)));
    lines
}

fn short(kind: &str) -> String {
    kind.trim_start_matches("kubernetes.io~").to_owned()
}

fn line(
    owner: Option<&NodePod>,
    uid: &str,
    (kind, volume): (String, String),
    (file_system, read_only): (&str, bool),
    path: &Path,
) -> MountLine {
    MountLine {
        pod: owner.map_or_else(|| uid.to_owned(), |pod| pod.key().to_string()),
        orphan: owner.is_none(),
        volume,
        kind,
        file_system: file_system.to_owned(),
        read_only,
        path: path.display().to_string(),
    }
}

fn table(lines: &[MountLine], screen: &Screen) -> String {
    let wide = screen.format == Format::Wide;
    let mut headings = vec!["POD", "VOLUME", "KIND", "MOUNT", "MODE"];
    if wide {
        headings.push("PATH");
    }
    let mut rows = Rows::new(&headings);
    for line in lines {
        let pod = if line.orphan { format!("{} (no pod)", line.pod) } else { line.pod.clone() };
        let mode = if line.read_only { "ro" } else { "rw" };
        let mut row =
            vec![pod, line.volume.clone(), line.kind.clone(), line.file_system.clone(), mode.into()];
        if wide {
            row.push(line.path.clone());
        }
        rows.push(row);
    }
    rows.render(
        screen,
        // Each word of a cell is painted by itself.
        |index, word| if matches!(word, "(no" | "pod)") { Paint::Warn } else { mood(index, word) },
    )
}

#[cfg(test)]
mod tests {
    use longshore_core::ids::PodKey;
    use longshore_core::pod::observed::ObservedPod;

    use super::*;

    #[test]
    fn volumes_are_told_with_their_pods_and_orphans_stand_out() {
        let observed = ObservedPod {
            uid: PodUid::from("u1"),
            key: PodKey::new("default", "web"),
            sandboxes: Vec::new(),
            containers: Vec::new(),
            observed_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let pods = [NodePod { observed, view: None }];
        let text = b"1 0 8:1 / / rw - ext4 /dev/sda rw\n\
            2 1 0:9 / /r/pods/u1/volumes/kubernetes.io~secret/tls rw - tmpfs tmpfs rw\n\
            3 1 8:1 /x /r/pods/u1/volume-subpaths/data/app/0 ro - ext4 /dev/sda rw\n\
            4 1 0:9 / /r/pods/u2/volumes/kubernetes.io~empty-dir/ram rw - tmpfs tmpfs rw\n";
        let folder = |uid: &str, kind: &str, name: &str| {
            (uid.to_owned(), format!("kubernetes.io~{kind}"), name.to_owned())
        };
        let folders = [folder("u1", "secret", "tls"), folder("u1", "empty-dir", "data")];
        let lines = lines(&pods, &parse_mountinfo(text), &folders, Path::new("/r"));
        let screen = Screen { format: Format::Table, colour: false, width: None };
        assert_eq!(
            table(&lines, &screen),
            "POD          VOLUME  KIND       MOUNT   MODE\n\
             default/web  data    subpath    ext4    ro\n\
             default/web  data    empty-dir  folder  rw\n\
             default/web  tls     secret     tmpfs   rw\n\
             u2 (no pod)  ram     empty-dir  tmpfs   rw\n"
        );
        let painted = table(&lines, &Screen { colour: true, ..screen });
        let line = painted.lines().last().unwrap();
        assert!(line.contains("\u{1b}[") && line.contains("(no"), "{line:?}");
    }
}
