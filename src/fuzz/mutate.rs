//! Makes inputs out of the corpus: mostly a real one with a few things wrong.

use rand::{Rng, RngExt, rngs::StdRng};

/// No input gets longer, in bytes.
const LONGEST: usize = 4096;

/// Numbers at which something changes.
const EDGES: [u64; 12] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX - 1,
    u64::MAX,
];

pub(super) struct Mutator {
    rng: StdRng,
    pool: Vec<Vec<u8>>,
    input: Vec<u8>,
}

impl Mutator {
    pub(super) fn new(rng: StdRng, pool: Vec<Vec<u8>>) -> Self {
        Self {
            rng,
            pool,
            input: Vec::new(),
        }
    }

    pub(super) fn pool(&self) -> &[Vec<u8>] {
        &self.pool
    }

    /// The last input was worth making others of.
    pub(super) fn keep(&mut self) {
        self.pool.push(self.input.clone());
    }

    /// The next input.
    pub(super) fn next(&mut self) -> &[u8] {
        self.input.clear();
        if self.pool.is_empty() || self.rng.random_ratio(1, 16) {
            // Mostly short ones.
            let most = 1 << self.rng.random_range(0..=LONGEST.ilog2());
            let len = self.rng.random_range(0..=most);
            self.input.resize(len, 0);
            self.rng.fill_bytes(&mut self.input);
        } else {
            let base = self.rng.random_range(0..self.pool.len());
            self.input.extend_from_slice(&self.pool[base]);
            // One change more often than two, and so on.
            for _ in 0..8 {
                self.change();
                if self.rng.random() {
                    break;
                }
            }
        }
        self.input.truncate(LONGEST);
        &self.input
    }

    fn change(&mut self) {
        let len = self.input.len();
        let at = self.rng.random_range(0..=len);
        match self.rng.random_range(0..10) {
            0 => self.input.truncate(at),
            1 => {
                let end = self.end(at);
                self.input.drain(at..end);
            }
            2 => {
                let end = self.end(at);
                let again = self.input[at..end].to_vec();
                self.put(at, at, &again);
            }
            3 => {
                let other = self.rng.random_range(0..self.pool.len());
                let other = &self.pool[other];
                let from = self.rng.random_range(0..=other.len());
                let to = self.rng.random_range(from..=other.len());
                self.input.splice(at..at, other[from..to].iter().copied());
            }
            4 => {
                let byte = self.rng.random();
                self.put(at, at, &[byte]);
            }
            5 | 6 => self.put_number(at),
            7 if at < len => self.input[at] = self.rng.random(),
            _ if at < len => self.input[at] ^= 1u8 << self.rng.random_range(0..8),
            _ => {}
        }
    }

    /// A place somewhat behind another.
    fn end(&mut self, at: usize) -> usize {
        (at + self.rng.random_range(0..64)).min(self.input.len())
    }

    /// A number at an edge, as one of our formats writes it, in the place of what is there or before it.
    fn put_number(&mut self, at: usize) {
        let edge = EDGES[self.rng.random_range(0..EDGES.len())];
        let wide = edge.to_be_bytes();
        let mut varint = Vec::new();
        let mut rest = edge;
        while rest >= 0x80 {
            varint.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        varint.push(rest as u8);
        let text = edge.to_string();
        let bytes = match self.rng.random_range(0..6) {
            0 => &wide[7..],
            1 => &wide[6..],
            2 => &wide[4..],
            3 => &wide[..],
            4 => text.as_bytes(),
            _ => &varint,
        }
        .to_vec();
        let over = if self.rng.random() { bytes.len() } else { 0 };
        self.put(at, at + over, &bytes);
    }

    fn put(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let to = to.min(self.input.len());
        self.input.splice(from..to, bytes.iter().copied());
    }
}
