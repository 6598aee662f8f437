//! A small dataset for unit tests.

use stillhouse_core::data::{Dataset, DatasetInfo, Image, Label, Mask, Sample, Task};

/// Images of different sizes whose values depend on their index.
pub(crate) struct Fake {
    info: DatasetInfo,
    classes: Vec<u32>,
    /// Index that fails to decode.
    pub(crate) broken: Option<usize>,
}

impl Fake {
    /// Creates a dataset with the given image count per class.
    pub(crate) fn new(counts: &[usize]) -> Self {
        let classes =
            counts.iter().enumerate().flat_map(|(c, &n)| std::iter::repeat_n(c as u32, n)).collect();
        let info = DatasetInfo {
            name: "fake".to_string(),
            title: "fake".to_string(),
            classes: (0..counts.len()).map(|c| format!("c{c}")).collect(),
            task: Task::Classification,
            synthetic: true,
        };
        Self { info, classes, broken: None }
    }

    /// Replaces the class labels by masks.
    pub(crate) fn without_classes(mut self) -> Self {
        self.info.task = Task::Segmentation;
        self
    }
}

impl Dataset for Fake {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn len(&self) -> usize {
        self.classes.len()
    }

    fn key(&self, index: usize) -> String {
        format!("c{}/{index:03}.png", self.classes[index])
    }

    fn class(&self, index: usize) -> Option<u32> {
        (self.info.task == Task::Classification).then(|| self.classes[index])
    }

    fn sample(&self, index: usize) -> stillhouse_core::Result<Sample> {
        if self.broken == Some(index) {
            return Err(crate::Error::setting(self.key(index), "broken").into());
        }
        let (width, height) = (20 + index % 3, 18 + index % 2);
        let pixels = (0..width * height * 3).map(|i| (i * 7 + index * 13) as u8).collect();
        let label = match self.class(index) {
            Some(class) => Label::Class(class),
            None => {
                let labels = (0..width * height).map(|i| (i % 5) as u8).collect();
                Label::Mask(Mask { width, height, labels })
            }
        };
        Ok(Sample { id: index as u64, image: Image { width, height, pixels }, label })
    }

    fn fingerprint(&self) -> stillhouse_core::Result<String> {
        Ok("fake".to_string())
    }
}

/// A PNG of 2x2 pixels of one value.
pub(crate) fn png_bytes(value: u8) -> Vec<u8> {
    crate::stats::png(&crate::ImageBuffer::filled(2, 2, 3, value)).unwrap()
}
