//! What an inbox refuses.

use n0_error::stack_error;

/// Something from the hub that breaks the protocol or a bound.
///
/// Nothing of it is kept. An event that is refused remains a gap and will be wanted again, so close the
/// link, or give the offset up with [`Inbox::on_missed`](super::Inbox::on_missed).
#[stack_error(derive, add_meta)]
pub(crate) enum InboxError {
    #[error("event {offset} comes in no parts; the hub breaks the protocol, close the link")]
    NoParts { offset: u64 },
    #[error("part {part} of the {parts} parts of event {offset} cannot be; close the link")]
    PartOutOfRange { offset: u64, part: u16, parts: u16 },
    #[error(
        "event {offset} comes in {parts} parts, {max} are allowed; raise the limit or close the link"
    )]
    TooManyParts { offset: u64, parts: u16, max: u16 },
    #[error(
        "event {offset} came in {before} parts and now in {parts}; its parts are dropped and wanted again"
    )]
    PartsDiffer {
        offset: u64,
        before: u16,
        parts: u16,
    },
    #[error("event {offset} is larger than {max} bytes; raise the limit or give it up as missed")]
    TooLarge { offset: u64, max: usize },
    #[error("offset {offset} is beyond every log; the hub breaks the protocol, close the link")]
    NoSuchOffset { offset: u64 },
    #[error("targeted event {seq} is larger than {max} bytes; raise the limit or close the link")]
    TargetedTooLarge { seq: u64, max: usize },
    #[error("no room for targeted event {seq}; the hub overran its window, close the link")]
    TargetedFull { seq: u64 },
}
