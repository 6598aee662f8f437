//! Contrastive representation distillation (`crd`): an image's embedding by the student against its
//! own and many others' embeddings by the teacher, and the other way round.
//!
//! # Paper
//! Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv
//! 1910.10699, section 3: the critic's loss and its memory of all images.
//!
//! # Equation
//! Both networks' pooled features go through a linear layer of their own, trained with the student,
//! to unit vectors `g`. For an image with K negatives out of M training images, and `m` the rows of
//! the other network's memory (its own row first):
//!
//! ```text
//! p = exp(g . m / T) / Z          total: weight * (student + teacher)
//! student = mean over b of -ln(p_0 / (p_0 + K/M)) - sum over negatives of ln((K/M) / (p + K/M))
//! ```
//!
//! with 1e-7 added to both divisors; `teacher` is the same with the teacher's embedding and the
//! student's memory. Z is a constant: given, or `M * mean exp(g . m / T)` of the first batch.
//! After a step each image's rows move: `m = unit(momentum * m + (1 - momentum) * g)`.
//!
//! # Inputs
//! `pooled [B, D]` of both; lengths may differ. Weights `embed_student.weight [F, D_S]`,
//! `embed_teacher.weight [F, D_T]` and biases. Buffers, which stand in checkpoints: the memories
//! `bank_s` and `bank_t [M, F]`, the image of each row `image [M]`, and `log_z_student`,
//! `log_z_teacher` (NaN until the first batch).
//!
//! An image gets a row when it is first met, in the order of the batches, so any dataset and any
//! split will do; rows of images that were not met yet hold random vectors of about that length and serve as
//! negatives all the same. Negatives are drawn with equal probability from all rows but the image's
//! own. The scores of all M rows are found in one product, `B * M * F` multiply-adds.
//!
//! # Defaults and their source
//! Weight 0.8, F 128, K 16384, T 0.07, momentum 0.5: the authors' collection RepDistiller, CIFAR-100.
//!
//! # Where code and paper differ
//! The paper draws negatives from the whole set, as here; RepDistiller leaves out the image's class.
//! Public code holds exp(g . m / T), which overflows at low temperatures; here it stays a logarithm.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("crd")?;
//! let crd = (row.build)(&toml::toml! { k = 4096 })?;
//! assert_eq!(crd.term_weights(), [("student".to_string(), 0.8), ("teacher".to_string(), 0.8)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, ParamStore, Result};
use stillhouse_ops::{Init, ParamId};

use crate::softmax::log_sum_exp;
use crate::unit::{EPS, unit};
use crate::{fit, settings};

/// The row of `crd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "crd",
    summary: "embeddings contrasted with a memory of all images",
    source: "Tian et al. 2020, section 3",
    defaults: || {
        settings::describe::<CrdConfig>(&[
            ("feature_dim", "RepDistiller"),
            ("n_data", "the number of training images"),
            ("k", "RepDistiller"),
            ("temperature", "RepDistiller"),
            ("momentum", "RepDistiller"),
            ("z_student", "from the first batch, as RepDistiller"),
            ("z_teacher", "from the first batch, as RepDistiller"),
            ("weight", "RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Crd::new(settings::read(table, "crd")?)?)),
};

/// Settings of `crd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrdConfig {
    /// Length of the embeddings.
    pub feature_dim: usize,
    /// Rows of the memories. Unset: one for each training image.
    pub n_data: Option<usize>,
    /// Negatives of each image.
    pub k: usize,
    /// Divides the cosines.
    pub temperature: f64,
    /// Part of a row that stays when its image is met.
    pub momentum: f64,
    /// Normalizer of the student's scores. Unset: from the first batch.
    pub z_student: Option<f64>,
    /// Normalizer of the teacher's scores. Unset: from the first batch.
    pub z_teacher: Option<f64>,
    /// Weight of each of the two terms.
    pub weight: f64,
}

impl Default for CrdConfig {
    fn default() -> Self {
        Self {
            feature_dim: 128,
            n_data: None,
            k: 16384,
            temperature: 0.07,
            momentum: 0.5,
            z_student: None,
            z_teacher: None,
            weight: 0.8,
        }
    }
}

/// Added to p + K / M.
const TINY: f64 = 1e-7;

/// Contrastive representation distillation.
#[derive(Debug)]
pub struct Crd {
    config: CrdConfig,
    /// Made by `connect`.
    parts: Option<Parts>,
    /// What the last training step has to leave in the buffers.
    pending: RefCell<Option<Pending>>,
}

#[derive(Debug)]
struct Parts {
    params: ParamStore,
    rows: usize,
    /// The dataset's index of the image of each row; -1 while there is none.
    image: ParamId,
    student: Side,
    teacher: Side,
}

/// One network: its embedding layer, its memory, and the normalizer of its scores.
#[derive(Debug)]
struct Side {
    weight: Tensor, // [F, D]
    bias: Tensor,   // [F]
    bank: ParamId,  // [M, F]
    log_z: ParamId, // []
}

/// Embeddings are `[B, F]`.
#[derive(Debug)]
struct Pending {
    rows: Vec<u32>,
    embeddings: [Tensor; 2],
    log_z: [f64; 2],
}

impl Crd {
    /// Checks the settings.
    pub fn new(config: CrdConfig) -> Result<Self> {
        for (key, count) in [("feature_dim", config.feature_dim), ("k", config.k)] {
            if count == 0 {
                return Err(settings::wrong(ENTRY.name, key, 0, "1 or more"));
            }
        }
        settings::above_zero(ENTRY.name, "temperature", config.temperature)?;
        settings::not_negative(ENTRY.name, "weight", config.weight)?;
        for (key, z) in [("z_student", config.z_student), ("z_teacher", config.z_teacher)] {
            settings::above_zero(ENTRY.name, key, z.unwrap_or(1.0))?;
        }
        if !(0.0..=1.0).contains(&config.momentum) {
            return Err(settings::wrong(ENTRY.name, "momentum", config.momentum, "a number in [0, 1]"));
        }
        Ok(Self { config, parts: None, pending: RefCell::new(None) })
    }

    fn parts(&self) -> Result<&Parts> {
        self.parts.as_ref().ok_or_else(|| {
            Error::incompatible(ENTRY.name, "the memories were not made: connect() comes first")
        })
    }

    /// Negative log likelihood of one side's embeddings `[B, F]` against the other side's memory,
    /// a scalar in f64, and ln Z.
    fn contrast(
        &self,
        embedding: &Tensor,
        own: &Side,
        other: &Side,
        places: &Tensor,
    ) -> Result<(Tensor, f64)> {
        let parts = self.parts()?;
        let (b, columns) = places.dims2()?;
        let scores = embedding.matmul(&parts.buffer(other.bank).t()?)?; // [B, M]
        let log_p = (scores.gather(places, 1)?.to_dtype(DType::F64)? / self.config.temperature)?; // [B, K + 1]
        let rows = parts.rows as f64;
        let known = parts.buffer(own.log_z).to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let log_z = if known.is_nan() {
            let all = log_sum_exp(&log_p.detach().flatten_all()?.unsqueeze(0)?)?.to_vec1::<f64>()?[0];
            all - ((b * columns) as f64).ln() + rows.ln()
        } else {
            known
        };
        let log_p = (log_p - log_z)?;
        // ln(p + K / M + 1e-7)
        let noise = (columns - 1) as f64 / rows;
        let constant = (noise + TINY).ln();
        let max = log_p.detach().maximum(constant)?;
        let below = ((log_p.sub(&max)?.exp()? + max.affine(-1.0, constant)?.exp()?)?.log()? + max)?;
        let positive = log_p.narrow(1, 0, 1)?.sum_all()?;
        let value = ((below.sum_all()? - positive)? / b as f64)?;
        Ok(((value - (columns - 1) as f64 * noise.ln())?, log_z))
    }

    /// The rows of the batch's images and, for each image, its own row before its negatives' rows.
    fn places(&self, context: &LossContext, images: usize) -> Result<(Vec<u32>, Tensor)> {
        let parts = self.parts()?;
        let device = parts.params.device();
        let given =
            |name| context.overrides.get(name).and_then(|t| Ok(t.to_dtype(DType::U32)?.to_device(device)?));
        if let (Ok(index), Ok(places)) = (given("index"), given("contrast_idx")) {
            return Ok((index.to_vec1()?, places.contiguous()?));
        }
        let own = parts.rows_of(context.ids)?;
        if own.len() != images {
            let found = own.len();
            return Err(Error::incompatible(
                ENTRY.name,
                format!("needs an id for each of {images} images, got {found}"),
            ));
        }
        let mut places = Vec::with_capacity(images * (self.config.k + 1));
        for (image, own) in own.iter().enumerate() {
            let mut draw = context.rng.at(context.step, image as u64);
            places.push(*own);
            places.extend((0..self.config.k).map(|_| {
                let other = draw.below(parts.rows as u64 - 1) as u32;
                other + u32::from(other >= *own)
            }));
        }
        Ok((own, Tensor::from_vec(places, (images, self.config.k + 1), device)?))
    }
}

impl Parts {
    fn buffer(&self, id: ParamId) -> Tensor {
        self.params.get(id).var().as_detached_tensor()
    }

    /// The rows of images; those that were not met before take the next free ones.
    fn rows_of(&self, ids: &[u64]) -> Result<Vec<u32>> {
        let images = self.buffer(self.image).to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let taken = images.iter().take_while(|image| **image >= 0.0);
        let mut rows: HashMap<u64, u32> = taken.zip(0..).map(|(image, row)| (*image as u64, row)).collect();
        let mut row_of = |id: u64| {
            let next = rows.len();
            if let Some(row) = rows.get(&id) {
                return Ok(*row);
            }
            if next == self.rows {
                return Err(Error::incompatible(
                    ENTRY.name,
                    format!(
                        "the memories have {next} rows, but there are more training images; raise n_data"
                    ),
                ));
            }
            // Rows keep their image's index as a number of the store.
            if self.params.dtype() == DType::F32 && id >= 1 << f32::MANTISSA_DIGITS {
                return Err(Error::incompatible(
                    ENTRY.name,
                    format!("image {id} is beyond the 16777216 it can tell apart"),
                ));
            }
            rows.insert(id, next as u32);
            Ok(next as u32)
        };
        ids.iter().map(|id| row_of(*id)).collect()
    }

    fn side(
        who: &str,
        bank: &str,
        length: usize,
        z: Option<f64>,
        n: (usize, usize),
        p: &ParamBuilder,
    ) -> Result<Side> {
        let (rows, features) = n;
        let (layer, init) = (p.pp(format!("embed_{who}")), Init::fan_in_uniform(length));
        let z = z.map_or(f64::NAN, f64::ln);
        Ok(Side {
            weight: layer.var("weight", &[features, length], init)?,
            bias: layer.var("bias", &[features], init)?,
            bank: p.buffer(bank, &[rows, features], Init::Uniform((3.0 / features as f64).sqrt()))?,
            log_z: p.buffer(&format!("log_z_{who}"), &[], Init::Constant(z))?,
        })
    }
}

impl Side {
    /// Unit embeddings, `[B, D] -> [B, F]`.
    fn embed(&self, features: &Tensor) -> Result<Tensor> {
        unit(&features.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?, EPS)
    }
}

impl Distiller for Crd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec!["pooled".into()], teacher: vec!["pooled".into()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let (student, teacher) = fit::vector_lengths(shapes, "pooled", ENTRY.name)?;
        let rows = self.config.n_data.unwrap_or(shapes.samples);
        if rows < shapes.samples.max(2) {
            let images = shapes.samples;
            return Err(Error::incompatible(
                ENTRY.name,
                format!(
                    "needs a row for each training image and two or more, found {rows} rows for {images} images"
                ),
            ));
        }
        let n = (rows, self.config.feature_dim);
        let parts = Parts {
            params: params.params().clone(),
            rows,
            student: Parts::side("student", "bank_s", student, self.config.z_student, n, params)?,
            teacher: Parts::side("teacher", "bank_t", teacher, self.config.z_teacher, n, params)?,
            image: params.buffer("image", &[rows], Init::Constant(-1.0))?,
        };
        self.parts = Some(parts);
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let parts = self.parts()?;
        let (student, teacher) = fit::vector_pair(context, "pooled", ENTRY.name)?;
        let (own, places) = self.places(context, student.dim(0)?)?;
        let (student, teacher) = (parts.student.embed(&student)?, parts.teacher.embed(&teacher)?);
        let (of_student, log_z_student) = self.contrast(&student, &parts.student, &parts.teacher, &places)?;
        let (of_teacher, log_z_teacher) = self.contrast(&teacher, &parts.teacher, &parts.student, &places)?;
        if context.train {
            *self.pending.borrow_mut() = Some(Pending {
                rows: own,
                embeddings: [student.detach(), teacher.detach()],
                log_z: [log_z_student, log_z_teacher],
            });
        }
        let weight = self.config.weight;
        Ok(vec![
            Term::new("student", of_student.to_dtype(student.dtype())?, weight),
            Term::new("teacher", of_teacher.to_dtype(student.dtype())?, weight),
        ])
    }

    /// Moves the rows of the batch's images and keeps what the first batch has set.
    fn after_step(&mut self, context: &LossContext, _params: &ParamStore) -> Result<()> {
        let Some(pending) = self.pending.borrow_mut().take() else { return Ok(()) };
        let parts = self.parts()?;
        let (params, momentum) = (&parts.params, self.config.momentum);
        let rows = Tensor::new(pending.rows.as_slice(), params.device())?;
        let sides = [&parts.student, &parts.teacher];
        for ((side, embedding), log_z) in sides.into_iter().zip(pending.embeddings).zip(pending.log_z) {
            let bank = params.get(side.bank);
            let old = bank.var().as_detached_tensor().index_select(&rows, 0)?;
            let new = unit(&((old * momentum)? + (embedding * (1.0 - momentum))?)?, EPS)?
                .to_dtype(params.dtype())?;
            for (i, row) in pending.rows.iter().enumerate() {
                // Row by row: the memory may be large.
                bank.var().slice_set(&new.narrow(0, i, 1)?.contiguous()?, 0, *row as usize)?;
            }
            params.import(side.log_z, &Tensor::full(log_z, (), params.device())?)?;
        }
        if context.ids.len() == pending.rows.len() {
            let image = params.get(parts.image);
            for (id, row) in context.ids.iter().zip(&pending.rows) {
                let id = Tensor::full(*id as f64, 1, params.device())?.to_dtype(params.dtype())?;
                image.var().slice_set(&id, 0, *row as usize)?;
            }
        }
        Ok(())
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("student".into(), self.config.weight), ("teacher".into(), self.config.weight)]
    }
}
