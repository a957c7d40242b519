use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::wire::broadcast::{Frame, Packer};

const MS: Duration = Duration::from_millis(1);

fn endpoint(n: u8) -> EndpointId {
    iroh::SecretKey::from_bytes(&[n + 1; 32]).public()
}

struct Bed {
    keys: Keys<u8>,
    now: Instant,
    rng: StdRng,
}

impl Bed {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(7);
        let now = Instant::now();
        let context = Context::new(endpoint(99), [1; 32]);
        let keys = Keys::new(now, context, Epoch::from_u64(3), &mut rng);
        Self { keys, now, rng }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.keys.look(self.now, 0);
    }

    fn asked(&mut self, ids: impl IntoIterator<Item = u8>) {
        let newest = self.keys.newest();
        self.keys.asked(self.now, newest, ids);
    }

    fn admit(&mut self, floor: u64, sent: u64) -> bool {
        self.keys.admit(self.now, floor, sent)
    }

    fn revoke(&mut self, spokes: &[u8]) {
        let ids: Vec<_> = spokes.iter().map(|n| endpoint(*n)).collect();
        self.keys.revoke(self.now, &ids, &mut self.rng);
    }

    fn rotate(&mut self, from: u64) -> bool {
        self.keys.rotate(self.now, from, &mut self.rng)
    }

    /// Seals one event, and says under which generation and counter.
    fn seal(&mut self, first: u64, again: bool) -> Result<(u32, u64), NotSealed> {
        let mut packer = Packer::default();
        assert!(packer.push(b"event", 100));
        let content = packer.take();
        let frame = self
            .keys
            .seal(self.now, (first, 1, PartOf::WHOLE), &content, again)?;
        let header = Frame::decode(&frame).unwrap().header;
        Ok((header.generation, header.counter))
    }
}

#[test]
fn after_a_revocation_frames_wait_until_nearly_all_have_the_new_key() {
    let mut bed = Bed::new();
    bed.keys.give();
    assert_eq!(bed.seal(0, false), Ok((0, 0)));
    bed.revoke(&[5]);
    assert_eq!(bed.seal(1, false), Err(NotSealed::Held));
    let rekey = bed.keys.tell().unwrap();
    assert_eq!((rekey.keys.generation, rekey.evict), (1, vec![endpoint(5)]));
    assert!(bed.keys.tell().is_none());
    bed.asked(0..100);
    for n in 0..97 {
        bed.keys.confirmed(bed.now, n, 1);
    }
    assert_eq!(bed.seal(1, false), Err(NotSealed::Held));
    // Of another generation.
    bed.keys.confirmed(bed.now, 97, 0);
    assert_eq!(bed.seal(1, false), Err(NotSealed::Held));
    bed.keys.gone(bed.now, 97);
    assert_eq!(bed.seal(1, false), Ok((1, 0)));
}

#[test]
fn after_a_revocation_frames_wait_no_longer_than_a_quarter_of_a_second() {
    let mut bed = Bed::new();
    bed.keys.give();
    bed.revoke(&[5]);
    bed.keys.tell().unwrap();
    bed.asked(0..10);
    let due = bed.keys.deadline().unwrap();
    assert_eq!(due, bed.now + REVOKED_WAIT);
    bed.pass(REVOKED_WAIT - MS);
    assert_eq!(bed.seal(0, false), Err(NotSealed::Held));
    bed.pass(MS);
    assert_eq!(bed.seal(0, false), Ok((1, 0)));
    assert_eq!(bed.keys.deadline(), None);
}

#[test]
fn a_rotation_lets_frames_go_on_under_the_key_before() {
    let mut bed = Bed::new();
    bed.keys.give();
    assert!(bed.rotate(0));
    assert!(!bed.rotate(0), "one at a time");
    assert_eq!(bed.seal(0, false), Ok((0, 0)));
    assert_eq!(bed.keys.tell().unwrap().keys.generation, 1);
    bed.asked(0..10);
    assert_eq!(bed.seal(1, false), Ok((0, 1)));
    let (current, next) = bed.keys.give();
    assert_eq!((current.generation, next.unwrap().keys.generation), (0, 1));
    for n in 0..10 {
        bed.keys.confirmed(bed.now, n, 1);
    }
    // What is sent again does not switch the key, which has a place to begin.
    assert_eq!(bed.seal(0, true), Ok((0, 2)));
    assert_eq!(bed.seal(2, false), Ok((1, 0)));
    assert_eq!(bed.seal(0, true), Ok((1, 1)), "all may read that");
    assert!(bed.keys.give().1.is_none());
}

#[test]
fn a_rotation_does_not_wait_for_ever() {
    let mut bed = Bed::new();
    bed.keys.give();
    assert!(bed.rotate(0));
    bed.keys.tell().unwrap();
    bed.asked(0..10);
    bed.pass(ROTATION_WAIT);
    assert_eq!(bed.seal(0, false), Ok((1, 0)));
}

#[test]
fn many_revocations_before_anyone_is_told_change_the_key_once() {
    let mut bed = Bed::new();
    bed.keys.give();
    for n in 0..10 {
        bed.revoke(&[n]);
    }
    let rekey = bed.keys.tell().unwrap();
    assert_eq!((rekey.keys.generation, rekey.evict.len()), (1, 10));
    bed.revoke(&[10]);
    let rekey = bed.keys.tell().unwrap();
    assert_eq!((rekey.keys.generation, rekey.evict.len()), (2, 1));
}

#[test]
fn a_revocation_in_the_middle_of_a_rotation_uses_neither_key() {
    let mut bed = Bed::new();
    bed.keys.give();
    assert!(bed.rotate(0));
    bed.keys.tell().unwrap();
    bed.asked([1, 2]);
    bed.revoke(&[1]);
    assert_eq!(bed.keys.tell().unwrap().keys.generation, 2);
    bed.asked([2]);
    bed.keys.confirmed(bed.now, 2, 2);
    assert_eq!(bed.seal(0, false), Ok((2, 0)));
}

#[test]
fn a_newcomer_waits_for_a_key_that_seals_nothing_it_may_not_read() {
    let mut bed = Bed::new();
    assert!(bed.admit(0, 0));
    bed.keys.give();
    bed.seal(0, false).unwrap();
    let floor = 10;
    assert!(!bed.admit(floor, 20), "older events are under it");
    assert!(bed.rotate(floor));
    bed.keys.tell().unwrap();
    bed.asked([]);
    assert_eq!(bed.seal(9, false), Ok((0, 1)), "not new enough");
    assert_eq!(bed.seal(10, false), Ok((1, 0)));
    assert!(!bed.admit(12, 11), "the cursor is not there yet");
    assert!(bed.admit(floor, 11));
    assert_eq!(bed.seal(9, true), Err(NotSealed::TooOld));
    assert_eq!(bed.seal(10, true), Ok((1, 1)));
}

#[test]
fn a_topic_to_which_nothing_is_said_goes_over_too() {
    let mut bed = Bed::new();
    bed.keys.give();
    bed.seal(0, false).unwrap();
    assert!(bed.rotate(10));
    bed.keys.tell().unwrap();
    bed.asked([]);
    assert!(!bed.admit(10, 9));
    assert!(
        bed.admit(10, 10),
        "under keys that nothing was sealed under"
    );
    assert_eq!(bed.keys.generation(), 1);
    assert!(bed.rotate(0), "another may begin");
}

#[test]
fn however_often_somebody_is_revoked_frames_go_on_for_most_of_the_time() {
    let mut bed = Bed::new();
    bed.keys.give();
    let (mut held, mut longest, mut in_a_row) = (0u32, 0u32, 0u32);
    for tick in 0..1000 {
        if tick % 5 == 0 {
            bed.revoke(&[1]);
            bed.keys.tell();
            // One never answers.
            bed.asked([2]);
        }
        if bed.seal(0, false) == Err(NotSealed::Held) {
            held += 1;
            in_a_row += 1;
            longest = longest.max(in_a_row);
        } else {
            in_a_row = 0;
        }
        bed.pass(10 * MS);
    }
    assert!(longest <= 25, "{longest}");
    assert!((100..=300).contains(&held), "{held}");
}

#[test]
fn what_was_asked_about_a_former_generation_counts_for_nothing() {
    let mut bed = Bed::new();
    bed.keys.give();
    bed.revoke(&[1]);
    bed.keys.tell().unwrap();
    bed.revoke(&[2]);
    bed.keys.asked(bed.now, 1, []);
    assert_eq!(bed.seal(0, false), Err(NotSealed::Held));
    bed.keys.tell().unwrap();
    bed.asked([]);
    assert_eq!(bed.seal(0, false), Ok((2, 0)));
}

#[test]
fn a_topic_that_is_over_seals_nothing() {
    let mut bed = Bed::new();
    bed.keys.give();
    bed.keys.close();
    assert_eq!(bed.seal(0, false), Err(NotSealed::Over));
}

#[derive(Clone, Debug)]
enum Op {
    Seal { events: u64 },
    Again(prop::sample::Index),
    Join(u8),
    Leave(u8),
    Revoke(Vec<u8>),
    Rotate,
    Tell,
    Confirm(u8),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let spoke = 0..8u8;
    prop_oneof![
        6 => (1..4u64).prop_map(|events| Op::Seal { events }),
        2 => any::<prop::sample::Index>().prop_map(Op::Again),
        4 => spoke.clone().prop_map(Op::Join),
        1 => spoke.clone().prop_map(Op::Leave),
        2 => prop::collection::vec(spoke.clone(), 1..3).prop_map(Op::Revoke),
        2 => Just(Op::Rotate),
        4 => Just(Op::Tell),
        4 => spoke.prop_map(Op::Confirm),
        2 => (0..400u64).prop_map(Op::Pass),
    ]
}

/// What a spoke has been told, and may read.
#[derive(Default)]
struct Knows {
    generations: HashSet<u32>,
    member: bool,
    /// Of its admission now.
    floor: u64,
    /// It is not admitted since the log stood here.
    revoked_at: Option<u64>,
}

proptest! {
    /// Whoever keeps every key it was ever told, and every frame that was ever sent, can read just what was
    /// dispatched while it was admitted.
    #[test]
    fn nobody_can_read_what_was_not_for_it(ops in prop::collection::vec(op(), 1..150)) {
        let mut bed = Bed::new();
        let mut spokes: BTreeMap<u8, Knows> = BTreeMap::new();
        // Of each frame: its generation, and the log's tip when it was sealed.
        let mut frames: Vec<(u32, u64)> = Vec::new();
        // Of each spoke, what it may not read: `[from, to)`.
        let mut forbidden: Vec<(u8, u64, u64)> = Vec::new();
        let mut counters = HashSet::new();
        let (mut tip, mut sent) = (0u64, 0u64);
        for op in ops {
            match op {
                Op::Seal { events } => {
                    tip += events;
                    while sent < tip {
                        let Ok(used) = bed.seal(sent, false) else { break };
                        prop_assert!(counters.insert(used), "a nonce twice");
                        frames.push((used.0, sent));
                        sent += 1;
                    }
                }
                Op::Again(at) => {
                    if sent == 0 { continue }
                    let first = at.index(sent as usize) as u64;
                    if let Ok(used) = bed.seal(first, true) {
                        prop_assert!(counters.insert(used), "a nonce twice");
                        frames.push((used.0, first));
                    }
                }
                Op::Join(n) => {
                    let spoke = spokes.entry(n).or_default();
                    if let Some(at) = spoke.revoked_at.take() {
                        forbidden.push((n, at, tip));
                        spoke.floor = tip;
                    }
                    if !spoke.member && bed.admit(spoke.floor, sent) {
                        let (current, next) = bed.keys.give();
                        spoke.member = true;
                        spoke.generations.insert(current.generation);
                        spoke.generations.extend(next.map(|next| next.keys.generation));
                    }
                }
                Op::Leave(n) => {
                    if let Some(spoke) = spokes.get_mut(&n) {
                        spoke.member = false;
                        bed.keys.gone(bed.now, n);
                    }
                }
                Op::Revoke(some) => {
                    for n in &some {
                        let spoke = spokes.entry(*n).or_default();
                        spoke.member = false;
                        spoke.revoked_at.get_or_insert(tip);
                        bed.keys.gone(bed.now, *n);
                    }
                    bed.revoke(&some);
                }
                Op::Rotate => {
                    bed.rotate(sent);
                }
                Op::Tell => {
                    if let Some(rekey) = bed.keys.tell() {
                        let members = spokes.iter_mut().filter(|(_, spoke)| spoke.member);
                        let mut asked = Vec::new();
                        for (n, spoke) in members {
                            spoke.generations.insert(rekey.keys.generation);
                            asked.push(*n);
                        }
                        bed.asked(asked);
                    }
                }
                Op::Confirm(n) => {
                    let newest = bed.keys.newest();
                    bed.keys.confirmed(bed.now, n, newest);
                }
                Op::Pass(ms) => bed.pass(u32::try_from(ms).unwrap() * MS),
            }
            let revoked = spokes.iter().filter_map(|(n, spoke)| Some((*n, spoke.revoked_at?, tip)));
            for (n, from, to) in forbidden.iter().copied().chain(revoked.collect::<Vec<_>>()) {
                let knows = &spokes[&n].generations;
                let read = frames.iter().find(|(generation, first)| {
                    (from..to).contains(first) && knows.contains(generation)
                });
                prop_assert_eq!(read, None, "spoke {} reads of {}..{}", n, from, to);
            }
        }
        // Nothing waits for ever, whoever is told or answers.
        bed.pass(REVOKED_WAIT);
        prop_assert!(bed.seal(sent, false).is_ok());
    }
}
