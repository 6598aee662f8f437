//! Data loader: worker threads decode and transform batches ahead of their use.

pub(crate) mod sampler;

use std::any::Any;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use candle_core::{Device, Tensor};
use stillhouse_core::data::{Batch, BatchSource, Dataset, Label, Labels, LoaderSpec, Position, Task};
use stillhouse_core::{Result, Rng};

use crate::transforms::pipeline::{Pair, Pipeline};
use crate::{Error, ImageBuffer};
use sampler::BatchSampler;

/// Batches prepared ahead of their use.
const PREFETCH: usize = 2;

/// Creates a loader with as many workers as rayon has threads; see [`loader_with_threads`].
///
/// # Errors
///
/// An invalid sampler or transform.
pub fn loader(dataset: Arc<dyn Dataset>, spec: &LoaderSpec) -> Result<Box<dyn BatchSource>> {
    loader_with_threads(dataset, spec, rayon::current_num_threads())
}

/// Creates a loader with its own `threads` workers (at least 1), which decode and transform the
/// images of a batch while earlier batches are used.
///
/// Images are `[B, 3, H, W]` f32 on the CPU. A batch depends on the specification and the position
/// only, not on the number of workers or on earlier batches. The random numbers of an image's
/// transforms are at the address (epoch, index of the image in the epoch) of the stream `augment`,
/// so an image that is drawn twice is transformed differently. Decoded images are cached, after the
/// leading deterministic steps, as long as they fit into `cache_bytes`.
///
/// An unreadable image is an error of its batch that names the file; the position stays before that
/// batch. Dropping the loader stops its threads.
///
/// # Errors
///
/// As [`loader`].
pub fn loader_with_threads(
    dataset: Arc<dyn Dataset>,
    spec: &LoaderSpec,
    threads: usize,
) -> Result<Box<dyn BatchSource>> {
    let sampler = BatchSampler::new(&*dataset, &spec.indices, &spec.sampler, spec.rng)?;
    let source = Source {
        pipeline: Pipeline::new(&spec.transforms)?,
        cache: (0..dataset.len()).map(|_| OnceLock::new()).collect(),
        cache_left: AtomicUsize::new(spec.cache_bytes),
        augment: spec.rng.stream("augment"),
        sampler,
        dataset,
        stopped: AtomicBool::new(false),
    };
    Ok(Box::new(Loader {
        source: Arc::new(source),
        threads: threads.max(1),
        next: Position::default(),
        worker: None,
    }))
}

/// State shared by the workers.
struct Source {
    dataset: Arc<dyn Dataset>,
    sampler: BatchSampler,
    pipeline: Pipeline,
    augment: Rng,
    /// By dataset index.
    cache: Vec<OnceLock<Cached>>,
    /// Free bytes of the cache.
    cache_left: AtomicUsize,
    stopped: AtomicBool,
}

/// A transformed image and its class.
type TransformedSample = (Pair, u32);

/// A decoded image after the deterministic steps.
struct Cached {
    pair: Pair,
    class: u32,
}

impl Source {
    fn decode(&self, index: usize) -> Result<Cached> {
        let sample = self.dataset.sample(index)?;
        let (class, mask) = match sample.label {
            Label::Class(class) => (class, None),
            Label::Mask(mask) => (0, Some(ImageBuffer::from(mask))),
        };
        Ok(Cached { pair: self.pipeline.fixed(Pair { image: sample.image.into(), mask }), class })
    }

    /// Decodes and transforms an image.
    fn image(&self, epoch: u64, position: u64, index: usize) -> Result<TransformedSample> {
        let mut draw = self.augment.at(epoch, position);
        let slot = &self.cache[index];
        if let Some(cached) = slot.get() {
            return Ok((self.pipeline.random(cached.pair.clone(), &mut draw), cached.class));
        }
        let fresh = self.decode(index)?;
        let bytes = fresh.pair.image.pixels.len() + fresh.pair.mask.as_ref().map_or(0, |m| m.pixels.len());
        let room = self
            .cache_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        if room.is_err() {
            return Ok((self.pipeline.random(fresh.pair, &mut draw), fresh.class));
        }
        let result = (self.pipeline.random(fresh.pair.clone(), &mut draw), fresh.class);
        if slot.set(fresh).is_err() {
            // Another worker cached the same image first.
            self.cache_left.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(result)
    }

    /// Collates images into a batch; returns the first error in batch order.
    fn batch(&self, indices: &[usize], images: Vec<Result<TransformedSample>>) -> Result<Batch> {
        let images: Vec<TransformedSample> = images.into_iter().collect::<Result<_>>()?;
        let (height, width) = images.first().map_or((0, 0), |(p, _)| (p.image.height, p.image.width));
        let other = images.iter().position(|(p, _)| (p.image.height, p.image.width) != (height, width));
        if let Some(i) = other {
            let odd = &images[i].0.image;
            return Err(Error::setting(
                format!("{}: {}", self.dataset.info().name, self.dataset.key(indices[i])),
                format!(
                    "{}x{} pixels in a batch of {width}x{height} ({}); end the transforms with a crop or resize \
                     to one size",
                    odd.width,
                    odd.height,
                    self.dataset.key(indices[0])
                ),
            )
            .into());
        }
        let count = images.len();
        // Sequential: the buffer is written without being cleared first, and the other workers
        // continue with the next batch.
        let mut values = Vec::with_capacity(count * 3 * height * width);
        images.iter().for_each(|(pair, _)| self.pipeline.finish(&pair.image, &mut values));
        let labels = match self.dataset.info().task {
            Task::Classification => {
                Labels::Classes(Tensor::from_iter(images.iter().map(|(_, class)| *class), &Device::Cpu)?)
            }
            Task::Segmentation => {
                let labels = images.iter().filter_map(|(p, _)| p.mask.as_ref()).flat_map(|m| &m.pixels);
                let labels: Vec<u32> = labels.map(|&l| u32::from(l)).collect();
                Labels::Mask(Tensor::from_vec(labels, (count, height, width), &Device::Cpu)?)
            }
        };
        Ok(Batch {
            images: Tensor::from_vec(values, (count, 3, height, width), &Device::Cpu)?,
            labels,
            ids: indices.iter().map(|&i| i as u64).collect(),
            views: match self.pipeline.repeats_views() {
                true => images.iter().map(|(pair, _)| hash(&pair.image.pixels)).collect(),
                false => Vec::new(),
            },
        })
    }
}

/// A batch in preparation. Each image is a task, in first-in-first-out order, so no worker idles at
/// the end of a batch.
struct PendingBatch<'a> {
    source: &'a Source,
    position: Position,
    indices: Vec<usize>,
    images: Mutex<Vec<Option<Result<TransformedSample>>>>,
    /// Images in preparation.
    left: AtomicUsize,
    done: SyncSender<Result<Batch>>,
}

impl PendingBatch<'_> {
    /// Prepares one image, and the batch after the last one.
    fn image(&self, i: usize) {
        let position = self.position.batch * self.source.sampler.batch_size() as u64 + i as u64;
        let image = if self.source.stopped.load(Ordering::Relaxed) {
            Err(Error::LoaderPanic("stopped".to_string()).into())
        } else {
            self.source.image(self.position.epoch, position, self.indices[i])
        };
        let images = || self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images()[i] = Some(image);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let images = std::mem::take(&mut *images()).into_iter().flatten().collect();
            // Fails if the receiver is gone.
            let _ = self.done.send(self.source.batch(&self.indices, images));
        }
    }
}

struct Loader {
    source: Arc<Source>,
    threads: usize,
    next: Position,
    worker: Option<Worker>,
}

struct Worker {
    /// A receiver for each batch, in order.
    batches: Receiver<Receiver<Result<Batch>>>,
    thread: JoinHandle<()>,
}

impl Loader {
    /// Starts preparing batches from `next`, which is not the end of an epoch.
    fn start(&self) -> Result<Worker> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .thread_name(|i| format!("loader-{i}"))
            .build()
            .map_err(stillhouse_core::Error::other)?;
        let (sender, batches) = sync_channel(PREFETCH - 1);
        let source = Arc::clone(&self.source);
        let mut position = self.next;
        let run = move || {
            // Returns when every started image is finished.
            pool.in_place_scope_fifo(|scope| {
                loop {
                    let epoch = source.sampler.epoch(position.epoch);
                    for indices in &epoch[(position.batch as usize).min(epoch.len())..] {
                        let (done, batch) = sync_channel(1);
                        let pending = Arc::new(PendingBatch {
                            source: &source,
                            position,
                            indices: indices.clone(),
                            images: Mutex::new(indices.iter().map(|_| None).collect()),
                            left: AtomicUsize::new(indices.len()),
                            done,
                        });
                        for i in 0..indices.len() {
                            let pending = Arc::clone(&pending);
                            scope.spawn_fifo(move |_| pending.image(i));
                        }
                        if sender.send(batch).is_err() {
                            return;
                        }
                        position.batch += 1;
                    }
                    position = Position { epoch: position.epoch + 1, batch: 0 };
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("loader".to_string())
            .spawn(run)
            .map_err(stillhouse_core::Error::io("the loader thread"))?;
        Ok(Worker { batches, thread })
    }

    /// Stops the worker; returns the message if it panicked.
    fn stop(&mut self) -> Option<String> {
        let Worker { batches, thread } = self.worker.take()?;
        self.source.stopped.store(true, Ordering::Relaxed);
        drop(batches);
        let result = thread.join();
        self.source.stopped.store(false, Ordering::Relaxed);
        result.err().map(|panic| reason(&*panic))
    }
}

/// Returns a hash of pixels for comparisons within a process.
fn hash(pixels: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(pixels);
    hasher.finish()
}

fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".to_string())
}

impl BatchSource for Loader {
    fn batches_per_epoch(&self) -> u64 {
        self.source.sampler.batches_per_epoch()
    }

    fn next_batch(&mut self) -> Result<Option<Batch>> {
        if self.next.batch >= self.batches_per_epoch() {
            self.next = Position { epoch: self.next.epoch + 1, batch: 0 };
            return Ok(None);
        }
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => self.start()?,
        };
        // Both channels close without a batch if a thread panicked.
        let received = self.worker.insert(worker).batches.recv().and_then(|batch| batch.recv());
        match received {
            Ok(Ok(batch)) => {
                self.next.batch += 1;
                Ok(Some(batch))
            }
            Ok(Err(error)) => {
                self.stop();
                Err(error)
            }
            Err(_) => Err(Error::LoaderPanic(self.stop().unwrap_or_default()).into()),
        }
    }

    fn position(&self) -> Position {
        self.next
    }

    fn seek(&mut self, position: Position) -> Result<()> {
        let batches = self.batches_per_epoch();
        if position.batch > batches {
            return Err(Error::setting(
                "loader",
                format!(
                    "expected a batch up to {batches} in an epoch, found {}; the checkpoint has other settings",
                    position.batch
                ),
            )
            .into());
        }
        if position != self.next {
            self.stop();
            self.next = position;
        }
        Ok(())
    }

    fn repeats_views(&self) -> bool {
        self.source.pipeline.repeats_views()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use stillhouse_core::data::Sampler;

    fn spec(set: &Fake, sampler: Sampler, transforms: &str) -> LoaderSpec {
        let table: toml::Table = toml::from_str(&format!("t = [{transforms}]")).unwrap();
        LoaderSpec {
            indices: (0..set.len()).collect(),
            sampler,
            transforms: table["t"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_table().unwrap().clone())
                .collect(),
            rng: Rng::new(3),
            cache_bytes: 5000,
        }
    }

    #[test]
    fn ends_each_epoch_and_continues() {
        let set = Fake::new(&[3, 2]);
        let spec = spec(&set, Sampler::Sequential { batch: 2 }, r#"{op="center_crop", size=8}"#);
        let mut loader = loader_with_threads(Arc::new(set), &spec, 2).unwrap();
        assert_eq!(loader.batches_per_epoch(), 3);
        assert!(loader.repeats_views());
        for epoch in 0..3 {
            assert_eq!(loader.position(), Position { epoch, batch: 0 });
            let first = loader.next_batch().unwrap().unwrap();
            assert_eq!(first.images.dims(), [2, 3, 8, 8]);
            assert!(first.images.is_contiguous());
            assert_eq!(first.ids, [0, 1]);
            loader.next_batch().unwrap().unwrap();
            let last = loader.next_batch().unwrap().unwrap();
            assert_eq!((last.images.dim(0).unwrap(), &last.ids[..]), (1, &[4][..]));
            assert_eq!(last.labels.classes("test").unwrap().to_vec1::<u32>().unwrap(), [1]);
            assert!(loader.next_batch().unwrap().is_none());
        }
        loader.seek(Position { epoch: 1, batch: 3 }).unwrap();
        assert!(loader.next_batch().unwrap().is_none());
        assert_eq!(loader.position(), Position { epoch: 2, batch: 0 });
        assert!(loader.seek(Position { epoch: 1, batch: 4 }).is_err());
    }

    #[test]
    fn names_an_unreadable_image_and_keeps_the_position() {
        let mut set = Fake::new(&[6]);
        set.broken = Some(3);
        let spec = spec(&set, Sampler::Sequential { batch: 2 }, r#"{op="center_crop", size=8}"#);
        let mut loader = loader(Arc::new(set), &spec).unwrap();
        loader.next_batch().unwrap().unwrap();
        for _ in 0..2 {
            assert!(loader.next_batch().unwrap_err().to_string().contains("c0/003.png"));
            assert_eq!(loader.position().batch, 1);
        }
        loader.seek(Position { epoch: 0, batch: 2 }).unwrap();
        assert_eq!(loader.next_batch().unwrap().unwrap().ids, [4, 5]);
    }

    /// A dataset whose third image panics.
    struct Panicking(Fake);

    impl Dataset for Panicking {
        fn info(&self) -> &stillhouse_core::data::DatasetInfo {
            self.0.info()
        }
        fn len(&self) -> usize {
            self.0.len()
        }
        fn key(&self, index: usize) -> String {
            self.0.key(index)
        }
        fn class(&self, index: usize) -> Option<u32> {
            self.0.class(index)
        }
        fn sample(&self, index: usize) -> Result<stillhouse_core::data::Sample> {
            assert!(index != 2, "the third image");
            self.0.sample(index)
        }
        fn fingerprint(&self) -> Result<String> {
            self.0.fingerprint()
        }
    }

    #[test]
    fn reports_worker_panic() {
        let set = Fake::new(&[6]);
        let spec = spec(&set, Sampler::Sequential { batch: 2 }, r#"{op="center_crop", size=8}"#);
        let mut loader = loader_with_threads(Arc::new(Panicking(set)), &spec, 2).unwrap();
        assert_eq!(loader.next_batch().unwrap().unwrap().ids, [0, 1]);
        let e = loader.next_batch().unwrap_err().to_string();
        assert!(e.contains("the third image"), "{e}");
    }

    #[test]
    fn rejects_different_image_sizes() {
        let set = Fake::new(&[4]);
        let spec = spec(&set, Sampler::Sequential { batch: 4 }, r#"{op="hflip"}"#);
        let e = loader(Arc::new(set), &spec).unwrap().next_batch().unwrap_err().to_string();
        assert!(e.contains("c0/001.png") && e.contains("21x19") && e.contains("20x18"), "{e}");
    }

    #[test]
    fn collates_masks() {
        let set = Fake::new(&[4]).without_classes();
        let spec =
            spec(&set, Sampler::Shuffle { batch: 4, drop_last: true }, r#"{op="random_crop", size=24}"#);
        let batch = loader(Arc::new(set), &spec).unwrap().next_batch().unwrap().unwrap();
        let mask = batch.labels.mask("test").unwrap();
        assert_eq!(mask.dims(), [4, 24, 24]);
        let labels = mask.flatten_all().unwrap().to_vec1::<u32>().unwrap();
        assert!(labels.contains(&255) && labels.iter().all(|&l| l < 5 || l == 255));
    }

    /// Dropping a loader with a blocked worker must not hang.
    #[test]
    fn stops_its_threads_on_drop() {
        for wanted in 0..4 {
            let set = Fake::new(&[20]);
            let spec = spec(&set, Sampler::Sequential { batch: 1 }, r#"{op="center_crop", size=8}"#);
            let mut loader = loader(Arc::new(set), &spec).unwrap();
            for _ in 0..wanted {
                loader.next_batch().unwrap();
            }
        }
    }
}
