//! The node's certificates as the doctor sees them: read from where the daemon keeps them, so that an
//! expired one is told while nothing runs. A node that has none runs alone, and nothing is said.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use longshore_core::certificates::{CertificateFacts, Purpose, Standing, read_certificate, standing};

use super::{Finding, Level};

/// One certificate that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFact {
    pub purpose: Purpose,
    pub path: PathBuf,
    /// As read, or why it is of no use.
    pub facts: Result<CertificateFacts, String>,
}

/// Reads those of a folder (`--cert-dir`).
pub fn read(folder: &Path) -> Vec<CertificateFact> {
    let one = |purpose: Purpose| {
        let path = folder.join(format!("{}-current.pem", purpose.stem()));
        let facts = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
                return None;
            }
            Err(error) => Err(error.to_string()),
            Ok(bytes) => read_certificate(&bytes),
        };
        Some(CertificateFact { purpose, path, facts })
    };
    [Purpose::Client, Purpose::Serving].into_iter().filter_map(one).collect()
}

/// What a certificate means for the node.
pub fn finding(fact: &CertificateFact, now: Timestamp) -> Finding {
    let check = fact.purpose.to_string();
    let path = fact.path.display();
    let means = match fact.purpose {
        Purpose::Client => "the API server does not know this node; its pods run on, and nothing new comes",
        Purpose::Serving => "kubectl logs and exec do not reach this node",
    };
    let mend = match fact.purpose {
        Purpose::Client => "longshore join ... --force with a new token, then systemctl restart longshore",
        Purpose::Serving => "kubectl get csr; kubectl certificate approve NAME",
    };
    let facts = match &fact.facts {
        Ok(facts) => facts,
        Err(problem) => return Finding::bad(Level::Fail, &check, format!("{path} {problem}"), means, mend),
    };
    let standing = standing(Some(facts), now);
    let says = format!("{path}: {}", standing.sentence(now));
    match standing {
        Standing::Valid { overdue: false, .. } => Finding::ok(&check, says),
        Standing::Valid { overdue: true, .. } => Finding::bad(
            Level::Warn,
            &check,
            says,
            "it is not renewed, and when it ends the node is cut off",
            "set rotateCertificates: true; journalctl -u longshore says why it is not renewed",
        ),
        Standing::NotYetValid { .. } => {
            Finding::bad(Level::Fail, &check, says, means, "timedatectl set-ntp true")
        }
        Standing::Expired { .. } | Standing::Missing => Finding::bad(Level::Fail, &check, says, means, mend),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_judged_by_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let pki = folder.path();
        assert_eq!(read(pki), []);
        let pem = include_bytes!("../../../core/src/certificates/example.pem");
        std::fs::write(pki.join("kubelet-client-current.pem"), pem).unwrap();
        let fact = read(pki).remove(0);
        let facts = fact.facts.clone().unwrap();
        let after = |percent: i32| {
            let life = facts.not_after.duration_since(facts.not_before);
            facts.not_before.checked_add(life / 100 * percent).unwrap()
        };
        let cases = [
            (after(50), Level::Ok, "valid for", ""),
            (after(95), Level::Warn, "overdue for renewal", "rotateCertificates"),
            (after(101), Level::Fail, "expired", "longshore join"),
            (after(-1), Level::Fail, "is this node's clock right?", "timedatectl"),
        ];
        for (now, level, says, mend) in cases {
            let found = finding(&fact, now);
            assert_eq!(found.level, level, "{found:?}");
            assert!(found.says.contains(says) && found.mend.contains(mend), "{found:?}");
        }
        std::fs::write(pki.join("kubelet-server-current.pem"), "hello").unwrap();
        let broken = finding(&read(pki)[1], after(50));
        assert_eq!((broken.level, broken.check.as_str()), (Level::Fail, "serving certificate"));
        assert!(broken.says.contains("holds no certificate"), "{}", broken.says);
        // A link to nothing is a certificate that was lost.
        std::fs::remove_file(pki.join("kubelet-server-current.pem")).unwrap();
        std::os::unix::fs::symlink("/nowhere", pki.join("kubelet-server-current.pem")).unwrap();
        assert!(read(pki)[1].facts.is_err());
    }
}
