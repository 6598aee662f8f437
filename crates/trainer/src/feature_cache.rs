//! Features of frozen teachers, kept by image and shared by the runs of a process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;

/// A view of an image: index in the dataset, and hash of its pixels.
pub(crate) type View = (u64, u64);

/// Features of frozen teachers by teacher, image and name. Clones share their contents.
///
/// A frozen network treats each image by itself, so kept features have the bits of computed ones.
#[derive(Debug, Clone, Default)]
pub struct FeatureCache(Arc<Mutex<Vec<Teacher>>>);

/// The features of one teacher on one dataset with one set of transforms.
#[derive(Debug, Default)]
struct Teacher {
    key: String,
    by_view: HashMap<View, BTreeMap<String, Tensor>>,
    bytes: usize,
}

/// The part of a cache that belongs to one teacher.
#[derive(Debug)]
pub(crate) struct TeacherFeatures {
    cache: FeatureCache,
    key: String,
    /// Maximum number of bytes of the whole cache.
    limit: usize,
}

impl FeatureCache {
    /// Returns the part of a teacher; `key` names everything that its features depend on.
    pub(crate) fn of_teacher(&self, key: String, limit: usize) -> TeacherFeatures {
        let mut teachers = self.lock();
        // The most recent teacher is the last.
        let found = teachers.iter().position(|teacher| teacher.key == key);
        let own = found.map(|at| teachers.remove(at));
        teachers.push(own.unwrap_or_else(|| Teacher { key: key.clone(), ..Teacher::default() }));
        drop(teachers);
        TeacherFeatures { cache: self.clone(), key, limit }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Teacher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TeacherFeatures {
    /// Returns the features of a view if all names are kept.
    pub(crate) fn get(&self, view: View, names: &[String]) -> Option<Vec<Tensor>> {
        let teachers = self.cache.lock();
        let own = teachers.iter().find(|teacher| teacher.key == self.key)?.by_view.get(&view)?;
        names.iter().map(|name| own.get(name).cloned()).collect()
    }

    /// Keeps the features of a view if there is room, once those of older teachers have been given up.
    pub(crate) fn insert(&self, view: View, names: &[String], features: &[Tensor]) {
        let mut teachers = self.cache.lock();
        let Some(own) = teachers.iter().position(|teacher| teacher.key == self.key) else { return };
        let kept = teachers[own].by_view.get(&view);
        let fresh =
            names.iter().zip(features).filter(|(name, _)| kept.is_none_or(|k| !k.contains_key(*name)));
        let fresh: Vec<(String, Tensor)> = fresh.map(|(name, t)| (name.clone(), t.clone())).collect();
        let bytes: usize = fresh.iter().map(|(_, t)| t.elem_count() * t.dtype().size_in_bytes()).sum();
        if teachers[own].bytes + bytes > self.limit {
            return;
        }
        while teachers.len() > 1 && teachers.iter().map(|t| t.bytes).sum::<usize>() + bytes > self.limit {
            let oldest = teachers.iter().position(|teacher| teacher.key != self.key).unwrap_or_default();
            teachers.remove(oldest);
        }
        if let Some(own) = teachers.iter_mut().find(|teacher| teacher.key == self.key) {
            own.bytes += bytes;
            own.by_view.entry(view).or_default().extend(fresh);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn older_teachers_make_room() {
        let tensor = || vec![Tensor::zeros(10, DType::F32, &Device::Cpu).unwrap()];
        let cache = FeatureCache::default();
        let names = |name: &str| vec![name.to_string()];
        let (f1, f2) = (names("F1"), names("F2"));
        let first = cache.of_teacher("first".into(), 100);
        first.insert((1, 1), &f1, &tensor());
        first.insert((1, 1), &f1, &tensor());
        first.insert((1, 2), &f1, &tensor());
        first.insert((1, 3), &f1, &tensor());
        assert!(first.get((1, 2), &f1).is_some() && first.get((1, 3), &f1).is_none(), "80 of 100 bytes");
        assert!(first.get((1, 1), &f2).is_none());
        let second = cache.of_teacher("second".into(), 100);
        assert!(second.get((1, 1), &f1).is_none(), "another teacher");
        assert!(first.get((1, 1), &f1).is_some());
        second.insert((1, 1), &f2, &tensor());
        assert!(first.get((1, 1), &f1).is_none() && second.get((1, 1), &f2).is_some());
        second.insert((1, 1), &f1, &tensor());
        assert_eq!(second.get((1, 1), &[f1, f2].concat()).unwrap().len(), 2);
        assert!(cache.of_teacher("second".into(), 100).get((1, 1), &names("F2")).is_some());
    }
}
