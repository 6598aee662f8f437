//! Buffer pool: memory that is reused from pass to pass.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut, Range, RangeBounds};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Smallest size class.
const MIN_SIZE: usize = 64;

/// Free memory in size classes of powers of two, so that maps of different layers share a buffer. After
/// the first forward and backward pass, later passes of the same shapes allocate nothing. The unused tail
/// of a buffer is never touched, so it takes no physical memory.
#[derive(Debug, Default)]
pub(crate) struct Pool<T> {
    free: Mutex<BTreeMap<usize, Vec<Vec<T>>>>,
    /// Values of all vectors, in use and free.
    owned: AtomicUsize,
}

fn size(len: usize) -> usize {
    len.next_power_of_two().max(MIN_SIZE)
}

impl<T: Copy + Default> Pool<T> {
    /// Returns a buffer of `len` unspecified (but initialized) values, aligned to a cache line: a vector
    /// load that crosses two lines takes twice as long.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Buf<T> {
        self.take_of(len, size(len)..=size(len))
    }

    /// Like [`Self::take`], but accepts a free buffer of a larger size class. For short-lived buffers
    /// only, such as the maps of a network without a backward pass: a long-lived one would keep the
    /// memory from larger maps.
    pub(crate) fn borrow(self: &Arc<Self>, len: usize) -> Buf<T> {
        self.take_of(len, size(len)..)
    }

    /// Returns zeros in a buffer of exactly `len` values, for long-lived data such as weights. It does
    /// not return to the pool, since its capacity is no size class.
    pub(crate) fn keep(self: &Arc<Self>, len: usize) -> Buf<T> {
        self.aligned(len, None, Vec::with_capacity(len + CACHE_LINE / size_of::<T>()))
    }

    fn take_of(self: &Arc<Self>, len: usize, sizes: impl RangeBounds<usize>) -> Buf<T> {
        let found = self.free.lock().ok().and_then(|mut free| {
            free.range_mut(sizes).find_map(|(size, values)| Some((*size, values.pop()?)))
        });
        let (size, values) = found.unwrap_or_else(|| {
            let size = size(len);
            (size, Vec::with_capacity(size + CACHE_LINE / size_of::<T>()))
        });
        self.aligned(len, Some(size), values)
    }

    fn aligned(self: &Arc<Self>, len: usize, size: Option<usize>, mut values: Vec<T>) -> Buf<T> {
        let line = CACHE_LINE / size_of::<T>();
        // Always counts one extra line, so that the total does not depend on where the vector begins.
        if values.len() < len + line {
            self.owned.fetch_add(len + line - values.len(), Ordering::Relaxed);
            values.resize(len + line, T::default());
        }
        let first = values.as_ptr().align_offset(CACHE_LINE);
        Buf { values, range: first..first + len, size, pool: Arc::clone(self) }
    }
}

impl<T> Pool<T> {
    /// Returns the bytes of all vectors, in use and free.
    pub(crate) fn bytes(&self) -> usize {
        self.owned.load(Ordering::Relaxed) * size_of::<T>()
    }
}

/// Pools of all element types; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pools {
    pub(crate) f32: Arc<Pool<f32>>,
    pub(crate) f64: Arc<Pool<f64>>,
    pub(crate) bytes: Arc<Pool<u8>>,
}

impl Pools {
    /// Returns the bytes of all vectors, in use and free.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.f32.bytes() + self.f64.bytes() + self.bytes.bytes()
    }
}

/// A vector that returns to its pool when dropped.
#[derive(Debug)]
pub(crate) struct Buf<T> {
    values: Vec<T>,
    range: Range<usize>,
    /// Size class to which it returns; `None` for a buffer that is freed.
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
    fn buffers_are_aligned_and_reused() {
        let pool = Arc::new(Pool::<f32>::default());
        for len in [0, 1, 15, 16, 17, 4096, 1 << 20] {
            let (first, second) = (pool.take(len), pool.take(len));
            for buffer in [&first, &second] {
                assert_eq!((buffer.len(), buffer.as_ptr().align_offset(CACHE_LINE)), (len, 0));
            }
            let address = second.as_ptr();
            drop(second);
            assert_eq!(pool.take(len).as_ptr(), address);
        }
    }

    #[test]
    fn same_size_class_shares_a_buffer() {
        let pool = Arc::new(Pool::<f64>::default());
        let address = pool.take(700).as_ptr();
        let held = pool.bytes();
        let longer = pool.take(1024);
        assert_eq!(longer.as_ptr(), address);
        assert!(longer.iter().all(|x| *x == 0.0));
        assert!(pool.bytes() > held && pool.bytes() < 8 * 1024 + 2 * CACHE_LINE, "{}", pool.bytes());
        assert_ne!(pool.take(700).as_ptr(), address, "in use");
        drop(longer);
        assert_ne!(pool.take(100).as_ptr(), address, "only a borrowed buffer may be larger");
        let borrowed = pool.borrow(70);
        assert_ne!(borrowed.as_ptr(), address, "the smallest size class that fits");
        let second = pool.borrow(70);
        assert_eq!((second.len(), second.as_ptr()), (70, address), "the next larger size class");
        drop(second);
        assert_eq!(pool.take(1000).as_ptr(), address, "it returns to its own size class");
        drop(borrowed);
        // Weights that are refolded after each epoch leave nothing behind.
        let held = pool.bytes();
        drop(pool.keep(70));
        assert_eq!((pool.bytes(), pool.take(1000).as_ptr()), (held, address));
    }
}
