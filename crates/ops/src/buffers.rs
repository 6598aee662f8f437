//! Memory that is used again.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut, Range, RangeBounds};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Smallest size that is told apart.
const SMALLEST: usize = 64;

/// Free memory by size, in powers of two: maps of different layers take turns in one buffer. A forward
/// and backward pass of the same shapes finds all its memory here after the first time. What of a buffer
/// was never asked for is never touched, so the system need not find memory for it.
#[derive(Debug, Default)]
pub(crate) struct Pool<T> {
    free: Mutex<BTreeMap<usize, Vec<Vec<T>>>>,
    /// Values of all vectors, in use and free.
    owned: AtomicUsize,
}

fn size(len: usize) -> usize {
    len.next_power_of_two().max(SMALLEST)
}

impl<T: Copy + Default> Pool<T> {
    /// A buffer of that length with unspecified (but initialized) values. It begins with a line of the
    /// cache: a vector or a row of a tile that lies across two lines is read in twice the time.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Buf<T> {
        self.take_of(len, size(len)..=size(len))
    }

    /// The same in a larger size, if only there is one free: for what goes back before long, such as the
    /// maps of a network that records nothing. What stays would keep it from larger maps.
    pub(crate) fn borrow(self: &Arc<Self>, len: usize) -> Buf<T> {
        self.take_of(len, size(len)..)
    }

    /// Zeros for what stays, such as weights: of just that length, so that it fits where another one
    /// was given up. It does not come back: none of the sizes here is its own.
    pub(crate) fn keep(self: &Arc<Self>, len: usize) -> Buf<T> {
        self.aligned(len, None, Vec::with_capacity(len + LINE / size_of::<T>()))
    }

    fn take_of(self: &Arc<Self>, len: usize, sizes: impl RangeBounds<usize>) -> Buf<T> {
        let found = self.free.lock().ok().and_then(|mut free| {
            free.range_mut(sizes).find_map(|(size, values)| Some((*size, values.pop()?)))
        });
        let (size, values) = found.unwrap_or_else(|| {
            let size = size(len);
            (size, Vec::with_capacity(size + LINE / size_of::<T>()))
        });
        self.aligned(len, Some(size), values)
    }

    fn aligned(self: &Arc<Self>, len: usize, size: Option<usize>, mut values: Vec<T>) -> Buf<T> {
        let line = LINE / size_of::<T>();
        // A line more wherever the vector begins, so that the count does not depend on it.
        if values.len() < len + line {
            self.owned.fetch_add(len + line - values.len(), Ordering::Relaxed);
            values.resize(len + line, T::default());
        }
        let first = values.as_ptr().align_offset(LINE);
        Buf { values, range: first..first + len, size, pool: Arc::clone(self) }
    }
}

impl<T> Pool<T> {
    /// Gives all free memory back to the system.
    pub(crate) fn clear(&self) {
        if let Ok(mut free) = self.free.lock() {
            let values = free.values().flatten().map(Vec::len).sum();
            self.owned.fetch_sub(values, Ordering::Relaxed);
            free.clear();
        }
    }

    /// Bytes of all vectors, in use and free.
    pub(crate) fn bytes(&self) -> usize {
        self.owned.load(Ordering::Relaxed) * size_of::<T>()
    }
}

/// A vector that returns to its pool.
#[derive(Debug)]
pub(crate) struct Buf<T> {
    values: Vec<T>,
    range: Range<usize>,
    /// The size under which it is kept when it is free, if it is.
    size: Option<usize>,
    pool: Arc<Pool<T>>,
}

impl<T> Deref for Buf<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.values[self.range.clone()]
    }
}

impl<T> DerefMut for Buf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.range.clone()]
    }
}

impl<T> Drop for Buf<T> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        let Some(size) = self.size else {
            self.pool.owned.fetch_sub(values.len(), Ordering::Relaxed);
            return;
        };
        if let Ok(mut free) = self.pool.free.lock() {
            free.entry(size).or_default().push(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_with_a_line_and_come_back() {
        let pool = Arc::new(Pool::<f32>::default());
        for len in [0, 1, 15, 16, 17, 4096, 1 << 20] {
            let (first, second) = (pool.take(len), pool.take(len));
            for buffer in [&first, &second] {
                assert_eq!((buffer.len(), buffer.as_ptr().align_offset(LINE)), (len, 0));
            }
            let place = second.as_ptr();
            drop(second);
            assert_eq!(pool.take(len).as_ptr(), place);
        }
    }

    #[test]
    fn what_fits_the_same_size_takes_turns() {
        let pool = Arc::new(Pool::<f64>::default());
        let place = pool.take(700).as_ptr();
        let held = pool.bytes();
        let longer = pool.take(1024);
        assert_eq!(longer.as_ptr(), place);
        assert!(longer.iter().all(|x| *x == 0.0));
        assert!(pool.bytes() > held && pool.bytes() < 8 * 1024 + 2 * LINE, "{}", pool.bytes());
        assert_ne!(pool.take(700).as_ptr(), place, "it is in use");
        drop(longer);
        assert_ne!(pool.take(100).as_ptr(), place, "only what is lent may be larger");
        let lent = pool.borrow(70);
        assert_ne!(lent.as_ptr(), place, "the smallest that will do");
        let second = pool.borrow(70);
        assert_eq!((second.len(), second.as_ptr()), (70, place), "the next larger one");
        drop(second);
        assert_eq!(pool.take(1000).as_ptr(), place, "it is kept under its own size");
        drop(lent);
        // Weights that are folded anew after each epoch leave nothing behind.
        let held = pool.bytes();
        drop(pool.keep(70));
        assert_eq!((pool.bytes(), pool.take(1000).as_ptr()), (held, place));
        pool.clear();
        assert_eq!(pool.take(1).len(), 1);
    }
}
