//! Memory that is used again.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Free vectors by length. A forward and backward pass of the same shapes finds all its memory
/// here after the first time.
#[derive(Debug, Default)]
pub(crate) struct Pool<T> {
    free: Mutex<HashMap<usize, Vec<Vec<T>>>>,
    /// Values of all vectors, in use and free.
    owned: AtomicUsize,
}

impl<T: Copy + Default> Pool<T> {
    /// A buffer of that length with unspecified (but initialised) values.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Buf<T> {
        let found = self.free.lock().ok().and_then(|mut f| f.get_mut(&len).and_then(Vec::pop));
        let values = found.unwrap_or_else(|| {
            self.owned.fetch_add(len, Ordering::Relaxed);
            vec![T::default(); len]
        });
        Buf { values, pool: Arc::clone(self) }
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
    pool: Arc<Pool<T>>,
}

impl<T> Deref for Buf<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<T> DerefMut for Buf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values
    }
}

impl<T> Drop for Buf<T> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        if let Ok(mut free) = self.pool.free.lock() {
            free.entry(values.len()).or_default().push(values);
        }
    }
}
