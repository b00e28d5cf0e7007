//! The first memory of a process.
//!
//! Programs here live for a moment and allocate little. The C library asks the kernel for every few kilobytes
//! and gives them back as soon as they are free: a dozen calls and page faults a process, each of which costs more
//! on a virtual machine than what was done with the memory. So allocations come out of one piece of the program's own
//! data, untouched until used: in blocks of a power of two, each of which, freed, waits for the next of its size. When
//! the piece is spent, or for something large, the C library takes over.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};

/// More than most programs use in their life; pages never touched cost nothing.
const SIZE: usize = 512 * 1024;

/// The smallest and the largest block. Beyond, the C library does it: such pieces are few, and worth giving back.
const SMALLEST: usize = 16;
const LARGEST: usize = 128 * 1024;
const CLASSES: usize = (LARGEST / SMALLEST).ilog2() as usize + 1;

#[repr(align(4096))]
struct Room(#[allow(dead_code)] [u8; SIZE]); // reached by address only

struct Arena {
    room: UnsafeCell<Room>,
    books: UnsafeCell<Books>,
    /// Our programs have one thread. Tests have more.
    busy: AtomicBool,
}

/// What is free.
struct Books {
    /// Behind this nothing was ever used, and is zero.
    next: usize,
    /// For each size the block freed last, which holds where the one before it is; 0 is none, and so the places
    /// are counted from 1.
    freed: [usize; CLASSES],
}

// SAFETY: the books are only reached while `busy` is held, the room only through allocations, each a range of its own.
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena {
    room: UnsafeCell::new(Room([0; SIZE])),
    books: UnsafeCell::new(Books { next: 0, freed: [0; CLASSES] }),
    busy: AtomicBool::new(false),
};

/// The class of a layout; None for what is not ours.
fn class(layout: Layout) -> Option<usize> {
    if layout.size() > LARGEST || layout.align() > SMALLEST {
        return None;
    }
    Some((layout.size().max(SMALLEST).next_power_of_two() / SMALLEST).ilog2() as usize)
}

fn size_of_class(class: usize) -> usize {
    SMALLEST << class
}

impl Arena {
    fn start(&self) -> *mut u8 {
        self.room.get().cast()
    }

    /// Where a block of ours begins; None for memory of the C library.
    fn place(&self, pointer: *mut u8) -> Option<usize> {
        (pointer as usize).checked_sub(self.start() as usize).filter(|at| *at < SIZE)
    }

    fn with_books<T>(&self, work: impl FnOnce(&mut Books) -> T) -> T {
        while self.busy.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::hint::spin_loop();
        }
        // SAFETY: `busy` is ours, so nobody else has this reference; `work` does not allocate.
        let result = work(unsafe { &mut *self.books.get() });
        self.busy.store(false, Ordering::Release);
        result
    }

    /// A block of this class, and whether it was never used.
    fn take(&self, class: usize) -> Option<(*mut u8, bool)> {
        let (at, fresh) = self.with_books(|books| {
            let freed = books.freed.get_mut(class)?;
            if let Some(at) = freed.checked_sub(1) {
                // SAFETY: a freed block of ours, aligned, which holds the place of the next one.
                *freed = unsafe { self.start().add(at).cast::<usize>().read() };
                return Some((at, false));
            }
            let (at, end) = (books.next, books.next + size_of_class(class));
            (end <= SIZE).then(|| {
                books.next = end;
                (at, true)
            })
        })?;
        // SAFETY: within the room.
        Some((unsafe { self.start().add(at) }, fresh))
    }

    fn give_back(&self, at: usize, class: usize) {
        self.with_books(|books| {
            if let Some(freed) = books.freed.get_mut(class) {
                // SAFETY: the block is free, aligned and large enough for one number.
                unsafe { self.start().add(at).cast::<usize>().write(*freed) };
                *freed = at + 1;
            }
        });
    }
}

// SAFETY: a block has one owner until it is freed: it is behind `next`, or was in the list of its class, and is in
// neither any more. All blocks begin at a multiple of SMALLEST and have the size of their class. The rest is System's.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(layout).and_then(|class| self.take(class)) {
            Some((pointer, _)) => pointer,
            // SAFETY: passed on as we got it.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match class(layout).and_then(|class| self.take(class)) {
            Some((pointer, fresh)) => {
                if !fresh {
                    // SAFETY: ours alone, and so large.
                    unsafe { pointer.write_bytes(0, layout.size()) };
                }
                pointer
            }
            // SAFETY: passed on as we got it; fresh pages are zero without being touched.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match (self.place(pointer), class(layout)) {
            (Some(at), Some(class)) => self.give_back(at, class),
            // SAFETY: not from the room, so from System.
            _ => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(_) = self.place(pointer) else {
            // SAFETY: as in dealloc.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        // SAFETY: the caller asked for a valid size with this alignment.
        let larger = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if class(larger) == class(layout) {
            return pointer;
        }
        // SAFETY: a block of its own, as large as the smaller of the two.
        unsafe {
            let fresh = self.alloc(larger);
            if !fresh.is_null() {
                std::ptr::copy_nonoverlapping(pointer, fresh, layout.size().min(size));
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
