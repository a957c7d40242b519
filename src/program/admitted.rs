//! Whom a hub lets in: the ids on its command line, and those in files that may change while it runs.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use iroh::EndpointId;
use iroh_hub::{Admission, Hub};
use tokio::time::sleep;

use super::{
    args::AdmissionArgs,
    id_file::{IdFile, Ids, News, Purpose},
    say::say,
};

/// How often the files are looked at. A change counts when it is seen twice.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The lists of a hub.
#[derive(Debug)]
pub(super) struct Admitted {
    allow: Vec<EndpointId>,
    deny: Vec<EndpointId>,
    allow_file: Option<IdFile>,
    deny_file: Option<IdFile>,
}

/// Who is let in at one time.
#[derive(Clone, Default, Debug)]
struct Rule {
    /// `None`: everyone.
    allowed: Option<Ids>,
    denied: Ids,
}

impl Rule {
    fn admits(&self, id: &EndpointId) -> bool {
        !self.denied.contains(id) && self.allowed.as_ref().is_none_or(|ids| ids.contains(id))
    }

    /// Whom another rule lets in and this one does not, of those whom either names.
    fn turned_away_by<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = EndpointId> + 'a {
        let named = [self, other].into_iter().flat_map(|rule| {
            let allowed = rule.allowed.iter().flatten();
            allowed.chain(&rule.denied)
        });
        let turned_away: Ids = named
            .filter(|id| !self.admits(id) && other.admits(id))
            .copied()
            .collect();
        turned_away.into_iter()
    }
}

impl Admitted {
    /// Reads the files; one that is of no use is an error.
    pub(super) async fn read(args: &AdmissionArgs) -> anyhow::Result<Self> {
        let args = args.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let open = |path: Option<PathBuf>, purpose| {
                path.map(|path| IdFile::open(&path, purpose)).transpose()
            };
            Ok(Self {
                allow_file: open(args.allow_file, Purpose::Allow)?,
                deny_file: open(args.deny_file, Purpose::Deny)?,
                allow: args.allow,
                deny: args.deny,
            })
        });
        reading.await.context("the lists of spokes are not read")?
    }

    /// What the lists say now.
    pub(super) fn admission(&self) -> Admission {
        let rule = self.rule();
        let admission = match rule.allowed {
            Some(allowed) => Admission::allow_list(allowed),
            None => Admission::open(),
        };
        for id in rule.denied {
            admission.deny(id);
        }
        admission
    }

    fn rule(&self) -> Rule {
        let in_file = |file: &Option<IdFile>| file.as_ref().map(IdFile::ids).cloned();
        let (allow_file, deny_file) = (in_file(&self.allow_file), in_file(&self.deny_file));
        let guarded = !self.allow.is_empty() || allow_file.is_some();
        let all = |ids: &[EndpointId], file: Option<Ids>| {
            let mut all = file.unwrap_or_default();
            all.extend(ids);
            all
        };
        Rule {
            allowed: guarded.then(|| all(&self.allow, allow_file)),
            denied: all(&self.deny, deny_file),
        }
    }

    /// Has the hub follow the files for as long as it is polled.
    pub(super) async fn follow(mut self, hub: Hub) {
        if self.allow_file.is_none() && self.deny_file.is_none() {
            return;
        }
        let mut rule = self.rule();
        loop {
            sleep(LOOK_EVERY).await;
            let looked = tokio::task::spawn_blocking(move || {
                let changed = self.look();
                (self, changed)
            });
            let changed;
            (self, changed) = match looked.await {
                Ok(looked) => looked,
                Err(error) => {
                    return say(format_args!(
                        "the lists of spokes are followed no more: {error}"
                    ));
                }
            };
            if changed {
                let new = self.rule();
                apply(&rule, &new, &hub);
                rule = new;
            }
        }
    }

    /// Whether a list has changed.
    fn look(&mut self) -> bool {
        let mut changed = false;
        for file in [&mut self.allow_file, &mut self.deny_file]
            .into_iter()
            .flatten()
        {
            match file.look() {
                News::None => {}
                News::List => {
                    changed = true;
                    say(format_args!("{} has changed", file.name()));
                }
                News::Fault(fault) => say(format_args!(
                    "warning: {} is not taken over, what it was before holds: {fault}",
                    file.name()
                )),
                News::Mended => say(format_args!("{} is as it was before", file.name())),
            }
        }
        changed
    }
}

/// Those who lose come first: nobody is let in before others are out.
fn apply(old: &Rule, new: &Rule, hub: &Hub) {
    let revoked: Vec<_> = new.turned_away_by(old).collect();
    let allowed: Vec<_> = old.turned_away_by(new).collect();
    hub.admission().revoke_all(revoked.iter().copied());
    hub.admission().allow_all(allowed.iter().copied());
    say(format_args!(
        "let in from now on: {}; cut off: {}",
        allowed.len(),
        revoked.len()
    ));
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;
    use proptest::prelude::*;

    use super::*;

    fn id(n: u8) -> EndpointId {
        SecretKey::from_bytes(&[n; 32]).public()
    }

    fn ids() -> impl Strategy<Value = Ids> {
        proptest::collection::btree_set((0..6u8).prop_map(id), 0..6)
    }

    fn rules() -> impl Strategy<Value = Rule> {
        (proptest::option::of(ids()), ids()).prop_map(|(allowed, denied)| Rule { allowed, denied })
    }

    proptest! {
        #[test]
        fn a_change_turns_away_and_lets_in_whom_it_concerns_and_nobody_else(
            old in rules(), mut new in rules(),
        ) {
            // Whether there is a list of allowed ones is settled on the command line.
            if old.allowed.is_some() != new.allowed.is_some() {
                new.allowed = old.allowed.clone();
            }
            for n in 0..6 {
                let id = id(n);
                let (before, after) = (old.admits(&id), new.admits(&id));
                prop_assert_eq!(new.turned_away_by(&old).any(|x| x == id), before && !after);
                prop_assert_eq!(old.turned_away_by(&new).any(|x| x == id), !before && after);
            }
        }
    }

    #[test]
    fn the_denied_go_before_the_allowed_and_the_command_line_beside_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name, ids: &[u8], purpose| {
            let path = dir.path().join(name);
            let text: String = ids.iter().map(|n| format!("{}\n", id(*n))).collect();
            std::fs::write(&path, text).unwrap();
            Some(IdFile::open(&path, purpose).unwrap())
        };
        let mut lists = Admitted {
            allow: vec![id(1), id(2)],
            deny: vec![id(2)],
            allow_file: file("allowed", &[3, 4], Purpose::Allow),
            deny_file: file("denied", &[4], Purpose::Deny),
        };
        let admitted = |lists: &Admitted| -> Vec<u8> {
            let rule = lists.rule();
            (0..6).filter(|n| rule.admits(&id(*n))).collect()
        };
        assert_eq!(admitted(&lists), [1, 3]);
        lists.allow.clear();
        assert_eq!(admitted(&lists), [3]);
        lists.allow_file = file("nobody", &[], Purpose::Allow);
        assert_eq!(admitted(&lists), [0u8; 0]);
        lists.allow_file = None;
        assert_eq!(admitted(&lists), [0, 1, 3, 5]);
    }
}
