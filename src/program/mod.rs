//! The parts of the `iroh-hub` program.

pub(crate) mod compare;
