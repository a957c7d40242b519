//! What the benches need of the inside. Not part of the API, and free to change.

mod driver;
mod order;

use bytes::Bytes;
use iroh::EndpointId;

pub use self::{driver::DriverMesh, order::Order};

use crate::{
    event::Envelope,
    position::Epoch,
    seal::{Context, Opened, Opener, Sealer},
    wire::{
        broadcast::Packer,
        compat,
        framing::Deframer,
        native::{self, PartOf, ToSpoke},
    },
};

/// Encodes an event as `iroh-hub/1` sends it.
pub fn native_encode(offset: u64, envelope: &Envelope) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    native::put_event(&mut chunks, offset, envelope.body(), false);
    chunks
}

/// Decodes the events of one chunk of a stream of `iroh-hub/1`; returns how many.
pub fn native_decode(chunk: Bytes) -> usize {
    let mut deframer = Deframer::new(native::MAX_FRAME);
    deframer.push(chunk);
    let mut events = 0;
    while let Ok(Some(frame)) = deframer.next() {
        let is_event = |body| Envelope::from_body(body).is_ok();
        events += match ToSpoke::decode(frame) {
            Ok(Some(ToSpoke::Event { body, .. })) => usize::from(is_event(body)),
            Ok(Some(ToSpoke::Events { bodies, .. })) => bodies
                .into_iter()
                .filter(|body| is_event(body.clone()))
                .count(),
            _ => 0,
        };
    }
    events
}

/// Encodes an event as `alkpubsub/1` sends it.
pub fn compat_encode(envelope: &Envelope) -> Bytes {
    compat::encode(envelope)
}

/// Decodes a frame of `alkpubsub/1`, its length prefix included.
pub fn compat_decode(frame: &[u8]) -> Option<Envelope> {
    compat::decode(frame.get(4..)?).ok()
}

/// Both ends of a topic.
pub struct Topic {
    sealer: Sealer,
    opener: Opener,
    packer: Packer,
}

impl Topic {
    /// A topic of this hub.
    pub fn new(hub: EndpointId) -> Option<Self> {
        let context = Context::new(hub, [0; 32]);
        let epoch = Epoch::from_u64(1);
        let sealer = Sealer::new(context.clone(), epoch, 0);
        let mut opener = Opener::new(context, epoch);
        opener.add(&sealer.keys()).ok()?;
        Some(Self {
            sealer,
            opener,
            packer: Packer::default(),
        })
    }

    /// Packs as many of the events as a frame takes and seals it; returns how many.
    pub fn seal(&mut self, first: u64, events: &[Envelope]) -> Option<(Bytes, usize)> {
        for event in events {
            if !self.packer.push(event.body(), native::MAX_PART) {
                break;
            }
        }
        let count = self.packer.count();
        let content = self.packer.take();
        let whole = PartOf::WHOLE;
        let frame = self.sealer.seal(first, count, whole, &content).ok()?;
        Some((frame, count.into()))
    }

    /// Opens a frame; returns how many events it has.
    pub fn open(&mut self, frame: &Bytes) -> Option<usize> {
        match self.opener.open(frame).ok()? {
            Opened::Events { bodies, .. } => Some(bodies.len()),
            _ => None,
        }
    }
}

/// The file of a durable log, without a hub.
#[cfg(feature = "durable")]
#[derive(Debug)]
pub struct LogOnDisk {
    file: crate::log::file::LogFile,
    kept: u64,
}

#[cfg(feature = "durable")]
impl LogOnDisk {
    /// Opens or begins a log of this hub, and reads what is in it; it will keep so many events. `None` if it
    /// cannot be opened.
    pub fn open(path: &std::path::Path, hub: EndpointId, kept: u64) -> Option<Self> {
        let each = |_, body| {
            let event = Envelope::from_body(Bytes::from(body));
            event.map(drop).map_err(|error| error.to_string())
        };
        let file = crate::log::file::LogFile::open(path, hub, each).ok()?;
        Some(Self { file, kept })
    }

    /// Appends an event so many times, and syncs once.
    pub fn commit(&mut self, event: &Envelope, times: usize) -> std::io::Result<()> {
        let tip = self.file.tip() + times as u64;
        self.file.commit(&crate::log::file::Commit {
            head: tip.saturating_sub(self.kept),
            bodies: vec![event.body().clone(); times],
            begin: None,
        })
    }
}
