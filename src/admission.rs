//! Who may connect to a hub.
//!
//! One decision guards both direct protocols; the gossip protocol is guarded by proof of membership
//! (its connections are authenticated with a key that only admitted spokes are told).

use std::{
    collections::BTreeSet,
    fmt,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use iroh::EndpointId;
use tokio::time::timeout;
use tracing::warn;

use crate::protocol::Protocol;

/// Whether a peer is let in.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Decision {
    /// It is.
    Allow,
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
}

#[derive(Default)]
struct Lists {
    allowed: BTreeSet<EndpointId>,
    denied: BTreeSet<EndpointId>,
}

/// Decides who may connect.
///
/// Cloning is cheap and clones are the same: lists can be changed while the hub runs. A change counts
/// for connections that are made afterwards.
///
/// The deny list goes before everything else, the allow list before a decision of your own.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

impl Admission {
    fn new(rule: Rule, lists: Lists) -> Self {
        Self(Arc::new(Inner {
            rule,
            lists: RwLock::new(lists),
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
        let mut lists = self.lists_mut();
        lists.denied.remove(&id);
        lists.allowed.insert(id);
    }

    /// Keeps a peer out from now on, and takes it off the allow list. Connections that it has already
    /// go on.
    pub fn deny(&self, id: EndpointId) {
        let mut lists = self.lists_mut();
        lists.allowed.remove(&id);
        lists.denied.insert(id);
    }

    fn lists_mut(&self) -> std::sync::RwLockWriteGuard<'_, Lists> {
        self.0.lists.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails closed: no decision is a refusal.
    pub(crate) async fn decide(&self, candidate: Candidate) -> Decision {
        let id = candidate.endpoint;
        let (allowed, denied) = {
            let lists = self.0.lists.read().unwrap_or_else(PoisonError::into_inner);
            (lists.allowed.contains(&id), lists.denied.contains(&id))
        };
        if denied {
            return Decision::refuse("this endpoint is not admitted");
        }
        if allowed {
            return Decision::Allow;
        }
        match &self.0.rule {
            Rule::Open => Decision::Allow,
            Rule::AllowList => Decision::refuse("this endpoint is not admitted"),
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
