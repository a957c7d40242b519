//! Puts the parts of events together that come one event after the other, each part in its turn: what
//! a spoke publishes, and what a hub sends to one spoke. (Broadcasts come in any order, along two
//! paths; their parts are the inbox's business.)

use bytes::{Bytes, BytesMut};

use super::native::PartOf;

/// The event that is being put together, if any.
#[derive(Debug, Default)]
pub(crate) struct Assembly(Option<Partial>);

#[derive(Debug)]
struct Partial {
    seq: u64,
    next: PartOf,
    body: BytesMut,
}

/// A part that cannot be taken; the link is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadPart {
    /// It is not the next one.
    OutOfOrder,
    /// With it, the event has this many bytes, which are over the limit.
    TooLarge { len: usize },
}

impl Assembly {
    /// Whether an event has begun and is not whole.
    pub(crate) fn is_partial(&self) -> bool {
        self.0.is_some()
    }

    /// Takes a part, and gives the event once it is whole. An event of one part is passed through as it
    /// is: its size is for the caller to check.
    pub(crate) fn push(
        &mut self,
        seq: u64,
        of: PartOf,
        body: Bytes,
        limit: usize,
    ) -> Result<Option<Bytes>, BadPart> {
        if of.parts == 1 && self.0.is_none() {
            return Ok(Some(body));
        }
        let partial = self.0.get_or_insert_with(|| Partial {
            seq,
            next: PartOf { part: 0, ..of },
            body: BytesMut::new(),
        });
        if partial.seq != seq || partial.next != of {
            return Err(BadPart::OutOfOrder);
        }
        partial.next.part += 1;
        partial.body.extend_from_slice(&body);
        let len = partial.body.len();
        if len > limit {
            return Err(BadPart::TooLarge { len });
        }
        if partial.next.part < of.parts {
            return Ok(None);
        }
        Ok(self.0.take().map(|partial| partial.body.freeze()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(
        assembly: &mut Assembly,
        seq: u64,
        part: u16,
        parts: u16,
    ) -> Result<Option<Bytes>, BadPart> {
        let of = PartOf { part, parts };
        assembly.push(seq, of, Bytes::from_static(b"ab"), 5)
    }

    #[test]
    fn parts_in_their_turn_make_up_the_event() {
        let mut assembly = Assembly::default();
        assert_eq!(push(&mut assembly, 1, 0, 2), Ok(None));
        assert_eq!(push(&mut assembly, 1, 1, 2), Ok(Some("abab".into())));
        assert_eq!(push(&mut assembly, 2, 0, 1), Ok(Some("ab".into())));
    }

    #[test]
    fn a_part_out_of_its_turn_or_over_the_limit_is_refused() {
        for (seq, part, parts) in [(1, 0, 3), (1, 2, 3), (1, 1, 2), (2, 1, 3), (2, 0, 1)] {
            let mut assembly = Assembly::default();
            assert_eq!(push(&mut assembly, 1, 0, 3), Ok(None));
            let refused = push(&mut assembly, seq, part, parts);
            assert_eq!(refused, Err(BadPart::OutOfOrder), "{seq} {part}/{parts}");
        }
        let mut assembly = Assembly::default();
        assert_eq!(push(&mut assembly, 1, 0, 3), Ok(None));
        assert_eq!(push(&mut assembly, 1, 1, 3), Ok(None));
        let refused = push(&mut assembly, 1, 2, 3);
        assert_eq!(refused, Err(BadPart::TooLarge { len: 6 }));
    }
    crate::fuzz::machine! {
        /// As if every part had been kept.
        fn an_event_is_given_whole_or_the_first_wrong_part_is_refused(
            pushes in prop::collection::vec((0u64..3, 0u16..4, 1u16..4, 0usize..4), 1..60)
        ) {
            let mut assembly = Assembly::default();
            let mut begun: Vec<(u64, PartOf, usize)> = Vec::new();
            for (seq, part, parts, len) in pushes {
                let of = PartOf { part: part % parts, parts };
                let given = assembly.push(seq, of, Bytes::from(vec![0; len]), 5);
                if begun.is_empty() && parts == 1 {
                    prop_assert_eq!(given.unwrap().unwrap().len(), len);
                    continue;
                }
                let fits = begun.iter().all(|(s, o, _)| *s == seq && o.parts == parts)
                    && usize::from(of.part) == begun.len();
                begun.push((seq, of, len));
                let sum: usize = begun.iter().map(|(_, _, len)| len).sum();
                let expected = if !fits {
                    Err(BadPart::OutOfOrder)
                } else if sum > 5 {
                    Err(BadPart::TooLarge { len: sum })
                } else if begun.len() == usize::from(parts) {
                    begun.clear();
                    Ok(Some(sum))
                } else {
                    Ok(None)
                };
                let given = given.map(|whole| whole.map(|whole| whole.len()));
                prop_assert_eq!(&given, &expected);
                if given.is_err() {
                    // The link ends.
                    return Ok(());
                }
            }
        }
    }
}
