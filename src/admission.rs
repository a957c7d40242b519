//! Who may connect to a hub, and who may no more.
//!
//! One decision guards both direct protocols, and with them the gossip protocol: the hub has gossip
//! connections to its own spokes only, and these prove to have a key that only admitted spokes are told.
//!
//! Not for: what a hub does to end what somebody had who is revoked (that is the hub's, see [`Guards`]).

use std::{
    collections::BTreeSet,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
    time::Duration,
};

use iroh::EndpointId;
use tokio::time::timeout;
use tracing::warn;

use crate::protocol::Protocol;

/// What a peer is told that is not on the allow list, or is on the deny list.
pub(crate) const NOT_ADMITTED: &str = "this endpoint is not admitted";
/// What a peer is told whose links end because it was revoked.
pub(crate) const REVOKED: &str = "this endpoint is not admitted any more";

/// Whether a peer is let in.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Decision {
    /// It is.
    Allow,
    /// It is, and reads nothing that was broadcast before this connection, unless it goes on with a session
    /// that it has. It takes part in the topic once the topic's key has been changed for it, which happens
    /// every five seconds at most; of what was broadcast before, nothing is sent on the topic again then, but
    /// along the links of those that lack it.
    AllowFromNow,
    /// It is not.
    Refuse {
        /// What the peer is told. Cut at 512 bytes.
        reason: String,
    },
}

impl Decision {
    /// A refusal with words for the peer.
    pub fn refuse(reason: impl Into<String>) -> Self {
        Self::Refuse {
            reason: reason.into(),
        }
    }
}

/// Who asks to be let in.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// The peer's id, proven by the TLS handshake.
    pub endpoint: EndpointId,
    /// The protocol it asks for.
    pub protocol: Protocol,
}

type Deciding = Pin<Box<dyn Future<Output = Decision> + Send>>;

enum Rule {
    Open,
    AllowList,
    Custom {
        decide: Box<dyn Fn(Candidate) -> Deciding + Send + Sync>,
        limit: Duration,
    },
}

struct Inner {
    rule: Rule,
    lists: RwLock<Lists>,
    /// Held while a list is changed and the hubs do what follows from it, so that changes come one by one.
    guards: Mutex<Vec<Weak<dyn Guards>>>,
}

/// A hub that goes by an [`Admission`].
pub(crate) trait Guards: Send + Sync {
    /// These are on the deny list by now. When this returns, they can read nothing that is dispatched
    /// afterwards.
    fn revoked(&self, ids: &[EndpointId]);

    /// These are about to be admitted, and were not by the lists until now; they were denied, or not on any.
    fn admitted(&self, ids: &[EndpointId], were_denied: bool);
}

#[derive(Default)]
struct Lists {
    allowed: BTreeSet<EndpointId>,
    denied: BTreeSet<EndpointId>,
}

/// Decides who may connect.
///
/// Cloning is cheap and clones are the same: lists can be changed while hubs run. The deny list goes before
/// everything else, the allow list before a decision of your own.
///
/// To *deny* counts for connections that are made afterwards; to *revoke* ends those that there are as well.
/// With an [open](Self::open) hub, either keeps out a key and not a person: who wants to come back draws
/// another key. To keep people out, say who may come in ([`allow_list`](Self::allow_list)).
///
/// # What who is admitted later may read
///
/// Who is admitted while the hub runs ([`allow`](Self::allow)), and was not until then, reads nothing that was
/// broadcast before: so one that is revoked and admitted again cannot read what lay between, and is told that
/// it [missed](crate::Missed) it. [`HubBuilder::history`](crate::HubBuilder::history) lifts that. It is
/// remembered as long as the hub runs and its log has what was broadcast before; a hub that is started again
/// with a durable log takes all that are on its lists then for admitted all along. For a decision of your own,
/// [`Decision::AllowFromNow`] says the same of one connection; to `allow` somebody whom it would have let in all along,
/// and who is not here now, counts as admitting it then.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

impl Admission {
    fn new(rule: Rule, lists: Lists) -> Self {
        Self(Arc::new(Inner {
            rule,
            lists: RwLock::new(lists),
            guards: Mutex::default(),
        }))
    }

    /// Everyone may connect who is not denied.
    pub fn open() -> Self {
        Self::new(Rule::Open, Lists::default())
    }

    /// Only these may connect.
    pub fn allow_list(ids: impl IntoIterator<Item = EndpointId>) -> Self {
        let lists = Lists {
            allowed: ids.into_iter().collect(),
            ..Default::default()
        };
        Self::new(Rule::AllowList, lists)
    }

    /// Everyone but these may connect.
    pub fn deny_list(ids: impl IntoIterator<Item = EndpointId>) -> Self {
        let lists = Lists {
            denied: ids.into_iter().collect(),
            ..Default::default()
        };
        Self::new(Rule::Open, lists)
    }

    /// A decision of your own. It must come within `limit`, or the peer is refused; so it is if the
    /// decision panics.
    pub fn custom<F, Fut>(limit: Duration, decide: F) -> Self
    where
        F: Fn(Candidate) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Decision> + Send + 'static,
    {
        let decide = Box::new(move |candidate| -> Deciding { Box::pin(decide(candidate)) });
        Self::new(Rule::Custom { decide, limit }, Lists::default())
    }

    /// Lets a peer in from now on, and takes it off the deny list.
    pub fn allow(&self, id: EndpointId) {
        self.allow_all([id]);
    }

    /// As [`allow`](Self::allow), for many at once.
    pub fn allow_all(&self, ids: impl IntoIterator<Item = EndpointId>) {
        let guards = self.guards();
        let ids: Vec<_> = ids.into_iter().collect();
        let (denied, fresh): (Vec<_>, Vec<_>) = {
            let lists = self.lists();
            let fresh = |id: &EndpointId| !self.is_listed_in(&lists, id);
            let fresh = ids.iter().copied().filter(fresh);
            fresh.partition(|id| lists.denied.contains(id))
        };
        // First what they may read, and then that they may come.
        for (fresh, were_denied) in [(&denied, true), (&fresh, false)] {
            if !fresh.is_empty() {
                each(&guards, |hub| hub.admitted(fresh, were_denied));
            }
        }
        let mut lists = self.lists_mut();
        for id in ids {
            lists.denied.remove(&id);
            lists.allowed.insert(id);
        }
    }

    /// Keeps a peer out from now on, and takes it off the allow list. Connections that it has already
    /// go on; see [`revoke`](Self::revoke).
    pub fn deny(&self, id: EndpointId) {
        let _guards = self.guards();
        self.put_on_deny_list(&[id]);
    }

    /// Ends the membership of a peer: keeps it out from now on, closes the connections that it has to the hubs
    /// that go by this, forgets its sessions, and changes the key of their topics.
    ///
    /// When this returns, the peer can read nothing that is dispatched afterwards, on any path, through
    /// any other spoke, nor by coming back. It waits for no spoke: those that stay learn of the new key
    /// within a fraction of a second, in which broadcasts on the topic wait, and they cut off the one that was
    /// revoked. What the peer has not read of what was dispatched before, it may or may not get.
    pub fn revoke(&self, id: EndpointId) {
        self.revoke_all([id]);
    }

    /// As [`revoke`](Self::revoke), for many at once: the key is changed once.
    pub fn revoke_all(&self, ids: impl IntoIterator<Item = EndpointId>) {
        let guards = self.guards();
        let ids: Vec<_> = ids.into_iter().collect();
        if ids.is_empty() {
            return;
        }
        self.put_on_deny_list(&ids);
        each(&guards, |hub| hub.revoked(&ids));
    }

    fn put_on_deny_list(&self, ids: &[EndpointId]) {
        let mut lists = self.lists_mut();
        for id in ids {
            lists.allowed.remove(id);
            lists.denied.insert(*id);
        }
    }

    /// A hub goes by this from now on.
    pub(crate) fn guard(&self, hub: Weak<dyn Guards>) {
        let mut guards = self.guards();
        guards.retain(|other| other.strong_count() > 0);
        guards.push(hub);
    }

    fn guards(&self) -> MutexGuard<'_, Vec<Weak<dyn Guards>>> {
        self.0.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a peer is on the deny list now.
    pub(crate) fn is_denied(&self, id: &EndpointId) -> bool {
        self.lists().denied.contains(id)
    }

    /// Whether the lists alone say that a peer is admitted.
    fn is_listed_in(&self, lists: &Lists, id: &EndpointId) -> bool {
        let by_rule = matches!(self.0.rule, Rule::Open) && !lists.denied.contains(id);
        by_rule || lists.allowed.contains(id)
    }

    fn lists(&self) -> RwLockReadGuard<'_, Lists> {
        self.0.lists.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lists_mut(&self) -> RwLockWriteGuard<'_, Lists> {
        self.0.lists.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails closed: no decision is a refusal.
    pub(crate) async fn decide(&self, candidate: Candidate) -> Decision {
        let id = candidate.endpoint;
        let (allowed, denied) = {
            let lists = self.lists();
            (lists.allowed.contains(&id), lists.denied.contains(&id))
        };
        if denied {
            return Decision::refuse(NOT_ADMITTED);
        }
        if allowed {
            return Decision::Allow;
        }
        match &self.0.rule {
            Rule::Open => Decision::Allow,
            Rule::AllowList => Decision::refuse(NOT_ADMITTED),
            Rule::Custom { decide, limit } => {
                // On a task of its own, so that a panic in it ends there.
                let mut deciding = n0_future::task::AbortOnDropHandle::new(n0_future::task::spawn(
                    decide(candidate),
                ));
                match timeout(*limit, &mut deciding).await {
                    Ok(Ok(decision)) => decision,
                    Ok(Err(error)) => {
                        warn!(remote = %id.fmt_short(), %error, "the admission decision failed");
                        Decision::refuse("admission could not be decided")
                    }
                    Err(_) => {
                        warn!(remote = %id.fmt_short(), ?limit, "no admission decision in time");
                        Decision::refuse("admission was not decided in time")
                    }
                }
            }
        }
    }
}

/// Has every hub that there still is do something.
fn each(guards: &[Weak<dyn Guards>], act: impl Fn(&dyn Guards)) {
    for hub in guards.iter().filter_map(Weak::upgrade) {
        act(&*hub);
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self::open()
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = match self.0.rule {
            Rule::Open => "open",
            Rule::AllowList => "allow list",
            Rule::Custom { .. } => "custom",
        };
        f.debug_tuple("Admission").field(&rule).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> EndpointId {
        iroh::SecretKey::from_bytes(&[n; 32]).public()
    }

    async fn is_let_in(admission: &Admission, n: u8) -> bool {
        let candidate = Candidate {
            endpoint: id(n),
            protocol: Protocol::Native,
        };
        admission.decide(candidate).await == Decision::Allow
    }

    #[tokio::test]
    async fn lists_say_who_gets_in_and_change_while_running() {
        let allow = Admission::allow_list([id(1)]);
        assert!(is_let_in(&allow, 1).await && !is_let_in(&allow, 2).await);
        allow.allow(id(2));
        allow.deny(id(1));
        assert!(!is_let_in(&allow, 1).await && is_let_in(&allow, 2).await);

        let deny = Admission::deny_list([id(1)]);
        assert!(!is_let_in(&deny, 1).await && is_let_in(&deny, 2).await);
        deny.allow(id(1));
        assert!(is_let_in(&deny, 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_decision_that_hangs_or_panics_is_a_refusal() {
        let limit = Duration::from_secs(1);
        let hangs = Admission::custom(limit, |_| std::future::pending());
        assert!(!is_let_in(&hangs, 1).await);
        let panics = Admission::custom(limit, |_| async { panic!("no") });
        assert!(!is_let_in(&panics, 1).await);
        let decides = Admission::custom(limit, |c| async move {
            if c.endpoint == id(1) {
                Decision::Allow
            } else {
                Decision::refuse("who are you?")
            }
        });
        assert!(is_let_in(&decides, 1).await && !is_let_in(&decides, 2).await);
    }
}
