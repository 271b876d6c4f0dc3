//! Volumes of a pod that is to run: all set up before the first container, their content followed.

use crate::pod::containers::spec;
use crate::pod::step::{Step, VolumeAction};
use crate::volume::{action, content_hash, published_action};

use super::draft::Draft;

/// The actions of all volumes once every one is set up; `None` while one is not.
pub(super) fn volumes(draft: &mut Draft<'_, '_>) -> Option<Vec<VolumeAction>> {
    let snapshot = draft.facts.snapshot;
    let mut actions = Vec::new();
    let mut all_there = true;
    for volume in spec(draft.facts.pod()).volumes.iter().flatten() {
        let published = snapshot.local.volumes.get(&volume.name).copied();
        let is_wanted = |hash| snapshot.contents.is_some_and(|contents| contents.is(&volume.name, hash));
        if let Some(stands) =
            published.filter(|hash| is_wanted(*hash)).and_then(|_| published_action(snapshot, volume))
        {
            actions.push(stands);
            continue;
        }
        match action(snapshot, volume) {
            Ok(wanted) => {
                follow(draft, &wanted, published);
                all_there &= published.is_some();
                actions.push(wanted);
            }
            // What was published stays as it is while its object is away: containers go on with it.
            Err(error) => {
                draft.wait("FailedMount", None, error.to_string(), None);
                match published.and_then(|_| published_action(snapshot, volume)) {
                    Some(kept) => actions.push(kept),
                    None => all_there = false,
                }
            }
        }
    }
    all_there.then_some(actions)
}

fn follow(draft: &mut Draft<'_, '_>, wanted: &VolumeAction, published: Option<u64>) {
    match published {
        None => {
            draft.want(Step::PrepareVolume(wanted.clone()));
        }
        Some(hash) if hash != content_hash(wanted) => {
            draft.want(Step::UpdateVolume(wanted.clone()));
        }
        Some(_) => {}
    }
}
