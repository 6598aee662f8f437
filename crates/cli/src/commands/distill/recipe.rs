//! Experiment file of a distillation.

use std::path::{Path, PathBuf};

/// Where the teacher comes from.
#[derive(Debug, Clone)]
pub(crate) enum TeacherSource {
    /// A model that is fine-tuned on the images.
    Model(String),
    /// A weights file of a trained model, taken as it is.
    File {
        /// The file.
        file: PathBuf,
        /// The model.
        model: String,
    },
    /// The folder of a finished run.
    Run(PathBuf),
}

impl TeacherSource {
    /// Returns whether the teacher is trained here.
    pub(crate) fn is_trained_here(&self) -> bool {
        matches!(self, Self::Model(_))
    }

    /// Returns the model; that of a run is not known here.
    pub(crate) fn model(&self) -> Option<&str> {
        match self {
            Self::Model(model) | Self::File { model, .. } => Some(model),
            Self::Run(_) => None,
        }
    }
}

impl std::fmt::Display for TeacherSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Model(model) => f.write_str(model),
            Self::File { file, model } => write!(f, "{model} ({})", file.display()),
            Self::Run(folder) => write!(f, "{}", folder.display()),
        }
    }
}

/// Settings of a distillation.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) images: PathBuf,
    pub(crate) classes: usize,
    pub(crate) train_images: usize,
    pub(crate) teacher: TeacherSource,
    pub(crate) student: String,
    pub(crate) method: String,
    pub(crate) ratio: u32,
    pub(crate) seed: u64,
    pub(crate) epochs: u64,
    pub(crate) size: u64,
    /// Maximum number of training and test images per class.
    pub(crate) per_class: Option<[usize; 2]>,
}

impl Recipe {
    /// Returns the teacher's epochs.
    pub(crate) fn teacher_epochs(&self) -> u64 {
        self.epochs.div_ceil(2)
    }

    /// Returns classes per batch and images per class, for batches of 16 to 64 images.
    ///
    /// Small datasets get smaller batches, so that an epoch has enough steps for the running statistics
    /// of batch norm.
    pub(crate) fn batch(&self) -> [usize; 2] {
        let images = (self.train_images / 8).clamp(16, 64);
        let classes = self.classes.clamp(1, images / 2);
        [classes, (images / classes).max(2)]
    }

    /// Renders the experiment file.
    pub(crate) fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let [classes, each] = self.batch();
        let (size, short) = (self.size, self.size * 8 / 7);
        let path = |path: &Path| quoted(&path.display().to_string());
        let teacher = match &self.teacher {
            TeacherSource::Run(folder) => format!("run = {}\n", path(folder)),
            TeacherSource::File { file, model } => {
                format!("model = {}\nweights = {{ file = {} }}\n", quoted(model), path(file))
            }
            TeacherSource::Model(model) => format!(
                "model = {}\nweights = \"imagenet|scratch\"\n\n[teacher.train]\nepochs = {}\n\
                 sampler = {{ kind = \"shuffle\", batch = 32 }}\n\
                 optimizer = {{ kind = \"sgd\", lr = 0.01, momentum = 0.9, weight_decay = 5e-4 }}\n\
                 schedule = {{ kind = \"cosine\", warmup_epochs = 1 }}\n",
                quoted(model),
                self.teacher_epochs()
            ),
        };
        let methods = match self.method.as_str() {
            "baseline" => "[\"baseline\"]".to_string(),
            method => format!("[\"baseline\", {}]", quoted(method)),
        };
        let per_class = self.per_class.map_or_else(String::new, |[a, b]| format!("per_class = [{a}, {b}]\n"));
        format!(
            "title = {title}\n\n[data]\ndataset = \"folder\"\npath = {path}\nratio = {ratio}\n{per_class}\
             image_size = {size}\ntrain_transforms = [\n    {{ op = \"resize_short\", size = {short} }},\n    \
             {{ op = \"random_resized_crop\", size = {size}, scale = [0.5, 1.0] }},\n    {{ op = \"hflip\" }},\n]\n\
             test_transforms = [{{ op = \"resize_short\", size = {short} }}, {{ op = \"center_crop\", size = {size} }}]\n\n\
             [teacher]\n{teacher}\n[student]\nmodel = {student}\ninit = \"imagenet|scratch\"\n\n\
             [train]\nepochs = {epochs}\nseed = {seed}\n\
             sampler = {{ kind = \"class_balanced\", classes = {classes}, per_class = {each} }}\n\
             optimizer = {{ kind = \"sgd\", lr = 0.02, momentum = 0.9, weight_decay = 5e-4 }}\n\
             schedule = {{ kind = \"cosine\", warmup_epochs = 1 }}\n\n\
             [eval]\nevery_epochs = 1\nmetrics = [\"accuracy\"]\n\n\
             [matrix]\nmethod = {methods}\n\n[when.method.baseline]\nloss = []\n",
            title = quoted(&format!("Distilled: {} to {}", self.teacher, self.student)),
            path = path(&self.images),
            ratio = self.ratio,
            student = quoted(&self.student),
            epochs = self.epochs,
            seed = self.seed,
        )
    }
}
