//! The kernel's list of mounts (`/proc/<pid>/mountinfo`, proc(5)). Parsing takes any text; a line that
//! makes no sense is left out, so that one odd file system hides no other mount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::MountId;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Its number.
    pub id: MountId,
    /// The mount it lies on.
    pub parent: MountId,
    /// Which folder of its file system is its root; more than `/` for a bind mount.
    pub root: PathBuf,
    /// Where it is.
    pub path: PathBuf,
    /// Kind of file system.
    pub fs_type: String,
    /// Device, or what the file system calls its source.
    pub source: String,
    /// Whether writes through it fail.
    pub read_only: bool,
    /// Whether mounts below it propagate to its peers.
    pub shared: bool,
}

/// The mounts in the kernel's order: a parent before what lies on it.
pub fn parse_mountinfo(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut words = line.split(|byte| *byte == b' ');
    let mut word = || words.next();
    let (id, parent) = (number(word()?)?, number(word()?)?);
    word()?; // Device number.
    let (root, path) = (unescape(word()?), unescape(word()?));
    let options = word()?;
    let mut shared = false;
    loop {
        match word()? {
            b"-" => break,
            tag => shared |= tag.starts_with(b"shared:"),
        }
    }
    let fs_type = String::from_utf8_lossy(word()?).into_owned();
    let source = unescape(word()?).to_string_lossy().into_owned();
    let read_only = options.split(|byte| *byte == b',').any(|option| option == b"ro");
    Some(MountEntry {
        id: MountId(id),
        parent: MountId(parent),
        root,
        path,
        fs_type,
        source,
        read_only,
        shared,
    })
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// Blanks, tabs, newlines and backslashes are `\` and three octal digits.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The mounts at and below a folder, outermost first.
pub(super) fn below(mounts: Vec<MountEntry>, folder: &Path) -> Vec<MountEntry> {
    let mut found: Vec<MountEntry> =
        mounts.into_iter().filter(|mount| mount.path.starts_with(folder)).collect();
    found.sort_by_key(|mount| mount.path.components().count());
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mounts_are_read_with_their_odd_names() {
        let text = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            nonsense\n\
            90 22 0:41 /a/b /var/lib/kubelet/pods/x/with\\040blank ro,nosuid master:1 propagate_from:2 - tmpfs tmpfs rw,size=1k\n\
            91 90 0:42 / /var/lib/kubelet/pods/x/with\\040blank/in rw - overlay over\\134lay rw\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 3);
        assert!(mounts[0].shared && !mounts[0].read_only);
        assert_eq!(mounts[1].path, Path::new("/var/lib/kubelet/pods/x/with blank"));
        assert_eq!((mounts[1].id, mounts[1].parent), (MountId(90), MountId(22)));
        assert!(mounts[1].read_only && !mounts[1].shared);
        assert_eq!(mounts[1].root, Path::new("/a/b"));
        assert_eq!(mounts[2].source, "over\\lay");
        let inner = below(mounts, Path::new("/var/lib/kubelet/pods/x"));
        assert_eq!(inner.iter().map(|mount| mount.id.0).collect::<Vec<_>>(), [90, 91]);
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_mountinfo(&text);
        }
    }
}
