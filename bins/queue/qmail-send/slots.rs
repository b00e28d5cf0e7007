//! The slots of one way: which delivery has which, and which is free.
#![forbid(unsafe_code)]

use crate::channel::Delivery;
use qmail::spawn::{Slot, Width};
use std::collections::BTreeSet;

/// As many as were ever taken at once have a place here: most queues need few of them.
pub struct Slots {
    places: Vec<Option<Delivery>>,
    free: BTreeSet<usize>,
    most: usize,
}

impl Slots {
    /// At most this many.
    pub fn new(most: usize) -> Slots {
        Slots { places: Vec::new(), free: BTreeSet::new(), most }
    }

    pub fn taken(&self) -> usize {
        self.places.len().saturating_sub(self.free.len())
    }

    pub fn free(&self) -> usize {
        self.most.saturating_sub(self.taken())
    }

    /// Gives the delivery the lowest that is free.
    pub fn take(&mut self, delivery: Delivery, width: Width) -> Option<(Slot, &Delivery)> {
        let at = match self.free.first() {
            Some(at) => *at,
            None if self.places.len() < self.most => self.places.len(),
            None => return None,
        };
        let slot = Slot::of(at, width)?;
        self.free.remove(&at);
        if at == self.places.len() {
            self.places.push(None);
        }
        self.places.get_mut(at).map(|place| (slot, &*place.insert(delivery)))
    }

    pub fn get(&self, at: usize) -> Option<&Delivery> {
        self.places.get(at).and_then(Option::as_ref)
    }

    /// Frees one that was taken.
    pub fn give_back(&mut self, at: usize) -> Option<Delivery> {
        let delivery = self.places.get_mut(at).and_then(Option::take)?;
        self.free.insert(at);
        Some(delivery)
    }

    /// What runs.
    pub fn all(&mut self) -> impl Iterator<Item = &mut Delivery> {
        self.places.iter_mut().flatten()
    }
}
