//! A file that seems to be written and is not.
//!
//! The database mends a file that was not closed as soon as it opens it, before anyone can look
//! whether it is ours. So it is first opened over this: reads come from the file, writes stay in memory.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::StorageBackend;

const PAGE: u64 = 4096;

/// What mending writes is a small part of a file. More than this is no log of ours.
const MAX_PAGES: usize = 16_384;

#[derive(Debug)]
pub(super) struct Overlay(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    /// Up to here the file shows through.
    shown: u64,
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self(Mutex::new(Inner {
            file,
            shown: len,
            len,
            pages: BTreeMap::new(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// What lies in the file itself; zeros beyond it.
    fn read_below(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = self.shown.saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(out.len());
        let (file, beyond) = out.split_at_mut(there);
        beyond.fill(0);
        if !file.is_empty() {
            self.file.seek(SeekFrom::Start(offset))?;
            self.file.read_exact(file)?;
        }
        Ok(())
    }

    /// Splits `[offset, offset + len)` into the parts that lie in one page each: number, place in the page.
    fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let end = offset.saturating_add(len as u64);
        (offset / PAGE..end.div_ceil(PAGE)).map(move |page| {
            let start = page * PAGE;
            let from = offset.max(start) - start;
            let to = end.min(start + PAGE) - start;
            (page, from as usize..to as usize)
        })
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = &mut *self.inner();
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > inner.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        inner.read_below(offset, out)?;
        let mut rest = out;
        for (number, place) in Inner::parts(offset, rest.len()) {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(place.len());
            if let Some(page) = inner.pages.get(&number).and_then(|page| page.get(place)) {
                part.copy_from_slice(page);
            }
            rest = after;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let inner = &mut *self.inner();
        inner.shown = inner.shown.min(len);
        inner.len = len;
        let last = len / PAGE;
        inner.pages.split_off(&len.div_ceil(PAGE));
        if let Some(page) = inner.pages.get_mut(&last)
            && let Some(beyond) = page.get_mut((len % PAGE) as usize..)
        {
            beyond.fill(0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let inner = &mut *self.inner();
        let mut rest = data;
        for (number, place) in Inner::parts(offset, data.len()) {
            let (part, after) = rest.split_at(place.len());
            if !inner.pages.contains_key(&number) {
                if inner.pages.len() >= MAX_PAGES {
                    return Err(io::Error::other("too much of the file has to be mended"));
                }
                let mut page = vec![0; PAGE as usize].into_boxed_slice();
                inner.read_below(number * PAGE, &mut page)?;
                inner.pages.insert(number, page);
            }
            if let Some(page) = inner.pages.get_mut(&number)
                && let Some(page) = page.get_mut(place)
            {
                page.copy_from_slice(part);
            }
            rest = after;
        }
        inner.len = inner.len.max(offset.saturating_add(data.len() as u64));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Read(u64, usize),
        Write(u64, Vec<u8>),
        SetLen(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let at = || 0u64..20_000;
        prop_oneof![
            (at(), 0usize..9000).prop_map(|(at, len)| Op::Read(at, len)),
            (at(), prop::collection::vec(any::<u8>(), 0..6000))
                .prop_map(|(at, v)| Op::Write(at, v)),
            at().prop_map(Op::SetLen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn it_reads_as_if_it_had_been_written_and_the_file_stays(
            first in prop::collection::vec(any::<u8>(), 0..15_000),
            ops in prop::collection::vec(op(), 1..30),
        ) {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&first).unwrap();
            let overlay = Overlay::new(file.try_clone().unwrap()).unwrap();
            let mut model = first.clone();
            for op in ops {
                match op {
                    Op::Read(at, len) => {
                        let mut out = vec![1; len];
                        let read = overlay.read(at, &mut out);
                        match model.get(at as usize..at as usize + len) {
                            Some(expected) => {
                                read.unwrap();
                                prop_assert_eq!(&out[..], expected);
                            }
                            None => prop_assert!(read.is_err()),
                        }
                    }
                    Op::Write(at, data) => {
                        overlay.write(at, &data).unwrap();
                        let end = at as usize + data.len();
                        model.resize(model.len().max(end), 0);
                        model[at as usize..end].copy_from_slice(&data);
                    }
                    Op::SetLen(len) => {
                        overlay.set_len(len).unwrap();
                        model.resize(len as usize, 0);
                    }
                }
                prop_assert_eq!(overlay.len().unwrap(), model.len() as u64);
            }
            let mut left = Vec::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut left).unwrap();
            prop_assert_eq!(left, first);
        }
    }
}
