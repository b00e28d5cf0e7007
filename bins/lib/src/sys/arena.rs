//! The first memory of a process.
//!
//! Programs here live for a moment and allocate little. The C library asks the kernel for every few kilobytes
//! and gives them back as soon as they are free: a dozen calls and page faults a process, each of which costs more
//! on a virtual machine than what was done with the memory. So the first allocations come out of one piece of the
//! program's own data, untouched until used; when that is spent, or for something large, the C library takes over. What
//! is freed is used again only if it lies at the end.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More than most programs use in their life; pages never touched cost nothing.
const SIZE: usize = 256 * 1024;

/// From here on the C library does it: such pieces are few, and are worth giving back.
const LARGE: usize = 80 * 1024;

/// What every allocator gives, and code that casts bytes counts on: nix puts control messages into a vector of bytes.
const ALIGN: usize = 8;

#[repr(align(4096))]
struct Room(UnsafeCell<[u8; SIZE]>);

// SAFETY: the bytes are only reached through allocations, each of which has a range of its own.
unsafe impl Sync for Room {}

static ROOM: Room = Room(UnsafeCell::new([0; SIZE]));

/// Where what is free begins.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Behind this nothing was ever used, and is zero.
static FRESH: AtomicUsize = AtomicUsize::new(0);

struct Arena;

#[global_allocator]
static ARENA: Arena = Arena;

fn start() -> usize {
    ROOM.0.get() as usize
}

/// Where a piece of the room begins in it; None for memory of the C library.
fn within(pointer: *mut u8) -> Option<usize> {
    (pointer as usize).checked_sub(start()).filter(|at| *at < SIZE)
}

/// Moves the end of what is used, if it still is where the caller saw it.
fn advance(from: usize, to: usize) -> bool {
    to <= SIZE && NEXT.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// The beginning of a range that is the caller's.
fn take(layout: Layout) -> Option<usize> {
    if layout.size() >= LARGE || layout.align() > 4096 {
        return None;
    }
    loop {
        let from = NEXT.load(Ordering::Acquire);
        let at = from.checked_next_multiple_of(layout.align().max(ALIGN))?;
        let end = at.checked_add(layout.size()).filter(|end| *end <= SIZE)?;
        if advance(from, end) {
            return Some(at);
        }
    }
}

/// Notes that what is there may be written to.
fn use_up_to(end: usize) {
    FRESH.fetch_max(end, Ordering::AcqRel);
}

fn pointer(at: usize) -> *mut u8 {
    (start() + at) as *mut u8
}

// SAFETY: a range is given out once until it is freed: only who moved NEXT over it has it, and NEXT goes back only over
// the last range, by its owner. Everything else is System's.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            Some(at) => {
                use_up_to(at + layout.size());
                pointer(at)
            }
            // SAFETY: passed on as we got it.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            Some(at) => {
                let end = at + layout.size();
                let used = FRESH.load(Ordering::Acquire).clamp(at, end) - at;
                use_up_to(end);
                // SAFETY: ours alone, and so large.
                unsafe { pointer(at).write_bytes(0, used) };
                pointer(at)
            }
            // SAFETY: passed on as we got it; fresh pages are zero without being touched.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match within(pointer) {
            Some(at) => {
                advance(at + layout.size(), at);
            }
            // SAFETY: not from the room, so from System.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(at) = within(pointer) else {
            // SAFETY: as in dealloc.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        // The last one grows and shrinks where it is.
        if size < LARGE && at + size <= SIZE && advance(at + layout.size(), at + size) {
            use_up_to(at + size);
            return pointer;
        }
        if size <= layout.size() {
            return pointer;
        }
        // SAFETY: a new piece of its own, at least as large as what is copied; the caller asked for valid sizes.
        unsafe {
            let fresh = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !fresh.is_null() {
                std::ptr::copy_nonoverlapping(pointer, fresh, layout.size());
                self.dealloc(pointer, layout);
            }
            fresh
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests run in threads that allocate at will: what is asked of one range holds beside them.
    #[test]
    fn ranges_are_aligned_apart_and_keep_what_is_written() {
        let mut taken: Vec<(usize, usize)> = Vec::new();
        for (n, align) in [1usize, 2, 8, 16, 64, 4096].into_iter().cycle().take(60).enumerate() {
            let layout = Layout::from_size_align(100 + 37 * n, align).unwrap();
            // SAFETY: a layout that is not empty.
            let pointer = unsafe { ARENA.alloc(layout) };
            assert!(!pointer.is_null());
            assert_eq!(pointer as usize % align, 0);
            // SAFETY: ours, and so large.
            unsafe { pointer.write_bytes(n as u8, layout.size()) };
            taken.push((pointer as usize, layout.size()));
        }
        for (n, (at, size)) in taken.iter().enumerate() {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(*at as *const u8, *size) };
            assert!(bytes.iter().all(|b| *b == n as u8), "{n}");
        }
    }

    #[test]
    fn what_grows_keeps_its_bytes() {
        let mut text = vec![1u8, 2, 3];
        let mut others = Vec::new();
        for n in 0..20_000u32 {
            text.push(n as u8);
            if n % 100 == 0 {
                others.push(vec![0xff_u8; 50]);
            }
        }
        assert_eq!(&text[..3], [1, 2, 3]);
        assert!(text[3..].iter().enumerate().all(|(n, b)| *b == n as u8));
        assert!(others.iter().all(|other| other.iter().all(|b| *b == 0xff)));
    }

    #[test]
    fn zeroed_memory_is_zero_where_it_was_used_before() {
        for _ in 0..100 {
            let mut dirty = vec![0xaa_u8; 4000];
            dirty[0] = 1;
            drop(dirty);
            assert!(vec![0u8; 4000].iter().all(|b| *b == 0));
        }
    }
}
