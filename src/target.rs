//! [`EventTarget`]: dispatch and listen, without knowing where events go.
//!
//! A hub dispatches to its spokes, a spoke to its hub, a [`LocalTarget`] to the listeners in its own
//! process. Code that is written against the trait runs over any of them.

use std::{pin::Pin, sync::Arc, time::Duration};

use n0_error::{AnyError, e, stack_error};

use crate::{
    event::{Envelope, EnvelopeError, TypedEvent},
    listen::{Event, Incoming, ListenOptions, Listener, Listeners, Source, TypedListener},
    pattern::Pattern,
};

/// An event was not dispatched.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum DispatchError {
    /// The value is not an event.
    #[error("the event could not be put into an envelope")]
    Envelope {
        /// Why not.
        source: EnvelopeError,
    },
    /// The target did not take it.
    #[error("the target did not take the event")]
    Target {
        /// Why not; the error of the target's own operation.
        source: AnyError,
    },
}

/// What [`EventTarget::dispatch`] returns: a boxed future, so that the trait can be an object.
pub type Dispatching<'a> = Pin<Box<dyn Future<Output = Result<(), DispatchError>> + Send + 'a>>;

/// Somewhere to send events to and to hear events from.
///
/// Implemented by [`Hub`](crate::Hub) (dispatch broadcasts), [`Spoke`](crate::Spoke) (dispatch sends
/// to the hub) and [`LocalTarget`]. See [`EventTargetExt`] for typed events.
pub trait EventTarget: Send + Sync {
    /// Sends an event, waiting while the target cannot take more.
    ///
    /// # Errors
    ///
    /// If the target is closed or refuses the event.
    fn dispatch(&self, event: Envelope) -> Dispatching<'_>;

    /// Listens to the events whose type matches the pattern.
    fn listen_with(&self, pattern: Pattern, options: ListenOptions) -> Listener;
}

/// Typed events and defaults over any [`EventTarget`].
pub trait EventTargetExt: EventTarget {
    /// Sends a typed event.
    ///
    /// # Errors
    ///
    /// As [`EventTarget::dispatch`], and if the value does not serialise.
    fn emit<T: TypedEvent>(
        &self,
        value: &T,
    ) -> impl Future<Output = Result<(), DispatchError>> + Send {
        let envelope = value.to_envelope();
        async move {
            let envelope = envelope.map_err(|source| e!(DispatchError::Envelope, source))?;
            self.dispatch(envelope).await
        }
    }

    /// Listens to the events of one type as values.
    fn listen_typed<T: TypedEvent>(&self) -> TypedListener<T> {
        self.listen_with(Pattern::new(T::TYPE), ListenOptions::default())
            .typed()
    }
}

impl<E: EventTarget + ?Sized> EventTargetExt for E {}

/// An event target within one process: what is dispatched goes to its own listeners.
///
/// Cloning is cheap: clones are the same target. Listeners end when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct LocalTarget {
    listeners: Arc<Listeners>,
}

impl LocalTarget {
    /// Makes a target without listeners.
    pub fn new() -> Self {
        Self {
            listeners: Arc::new(Listeners::new(Duration::ZERO)),
        }
    }

    /// Listens with the default options.
    pub fn listen(&self, pattern: impl Into<Pattern>) -> Listener {
        self.listeners.add(pattern.into(), ListenOptions::default())
    }
}

impl Default for LocalTarget {
    fn default() -> Self {
        Self::new()
    }
}

impl EventTarget for LocalTarget {
    fn dispatch(&self, event: Envelope) -> Dispatching<'_> {
        Box::pin(async move {
            let event = Event::new(event, Source::Local);
            self.listeners.dispatch(Incoming::Event(event)).await;
            Ok(())
        })
    }

    fn listen_with(&self, pattern: Pattern, options: ListenOptions) -> Listener {
        self.listeners.add(pattern, options)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::listen::TypedListenError;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Price {
        cents: u64,
    }

    impl TypedEvent for Price {
        const TYPE: &'static str = "price";
    }

    #[tokio::test]
    async fn a_payload_of_another_shape_is_an_error_value_and_the_listening_goes_on() {
        let target: Box<dyn EventTarget> = Box::new(LocalTarget::new());
        let mut prices = target.listen_typed::<Price>();
        let mut raw = target.listen_with("price".into(), ListenOptions::default());
        target
            .dispatch(Envelope::new("price", &"soon").unwrap())
            .await
            .unwrap();
        target.emit(&Price { cents: 5 }).await.unwrap();
        let first = prices.recv().await.unwrap();
        assert!(matches!(first, Err(TypedListenError::Decode { .. })));
        let second = prices.recv().await.unwrap().unwrap();
        assert_eq!(second.value, Price { cents: 5 });
        assert_eq!(second.event.source, Source::Local);
        assert!(matches!(raw.recv().await, Some(Incoming::Event(_))));
        assert!(matches!(raw.recv().await, Some(Incoming::Event(_))));
    }
}
