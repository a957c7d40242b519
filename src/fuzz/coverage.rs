//! Hears which code is reached, if the compiler was told to say so (`tests/fuzz/instrument`).
//!
//! Each edge of the program has a guard, a number in memory; the compiler puts a call before it. One thread at a time.

use std::sync::atomic::{
    AtomicBool, AtomicPtr,
    Ordering::{Acquire, Relaxed, Release},
};

static FIRST: AtomicPtr<u32> = AtomicPtr::new(std::ptr::null_mut());
static LAST: AtomicPtr<u32> = AtomicPtr::new(std::ptr::null_mut());
static FOUND: AtomicBool = AtomicBool::new(false);

/// Called once before `main`, with all guards.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_trace_pc_guard_init(first: *mut u32, last: *mut u32) {
    FIRST.store(first, Release);
    LAST.store(last, Release);
}

/// Called at every edge. The compiler does not put calls into functions whose names begin like this.
#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_cov_trace_pc_guard(guard: *mut u32) {
    // SAFETY: a guard of ours; one of another thread's calls may be lost.
    unsafe {
        if guard.read_volatile() != 0 {
            guard.write_volatile(0);
            FOUND.store(true, Relaxed);
        }
    }
}

/// Whether the compiler was told.
pub(super) fn is_there() -> bool {
    !FIRST.load(Acquire).is_null()
}

/// From now on everything is new.
pub(super) fn forget() {
    let (mut guard, last) = (FIRST.load(Acquire), LAST.load(Acquire));
    while guard < last {
        // SAFETY: between the two are the guards, and nothing else.
        unsafe {
            guard.write_volatile(1);
            guard = guard.add(1);
        }
    }
}

/// Whether it reached code that nothing had reached.
pub(super) fn finds(run: impl FnOnce()) -> bool {
    FOUND.store(false, Relaxed);
    run();
    FOUND.load(Relaxed)
}
