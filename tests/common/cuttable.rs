//! A hub whose links to its spokes can be cut, and who lets nobody back in while it is shut.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use iroh::{
    Endpoint,
    endpoint::Connection,
    protocol::{AcceptError, ProtocolHandler, Router},
};
use iroh_hub::{GOSSIP_ALPN, Hub, HubBuilder};

use super::{bind, init_logs, raw::NATIVE};

#[derive(Clone, Debug)]
pub struct Cuttable {
    pub hub: Hub,
    _router: Router,
    door: Arc<Door>,
}

#[derive(Debug)]
struct Door {
    shut: AtomicBool,
    connections: Mutex<Vec<Connection>>,
}

#[derive(Clone, Debug)]
struct Guard {
    hub: Hub,
    door: Arc<Door>,
}

impl ProtocolHandler for Guard {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        if self.door.shut.load(Ordering::Acquire) {
            connection.close(0u32.into(), b"not now");
            return Ok(());
        }
        self.door
            .connections
            .lock()
            .expect("no panic")
            .push(connection.clone());
        self.hub.accept(connection).await
    }
}

impl Cuttable {
    pub async fn start(builder: HubBuilder) -> Self {
        Self::start_on(builder, bind().await).await
    }

    pub async fn start_on(builder: HubBuilder, endpoint: Endpoint) -> Self {
        init_logs();
        let hub = builder.build(endpoint.clone()).expect("a fresh endpoint");
        let door = Arc::new(Door {
            shut: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let guard = Guard {
            hub: hub.clone(),
            door: door.clone(),
        };
        let router = Router::builder(endpoint)
            .accept(NATIVE, guard)
            .accept(GOSSIP_ALPN, hub.clone())
            .spawn();
        Self {
            hub,
            _router: router,
            door,
        }
    }

    /// Closes every direct connection with this code; says how many there were.
    pub fn cut(&self, code: u32) -> usize {
        let connections = std::mem::take(&mut *self.door.connections.lock().expect("no panic"));
        for connection in &connections {
            connection.close(code.into(), b"cut");
        }
        connections.len()
    }

    /// Lets nobody in, or everybody again.
    pub fn shut(&self, shut: bool) {
        self.door.shut.store(shut, Ordering::Release);
    }
}
