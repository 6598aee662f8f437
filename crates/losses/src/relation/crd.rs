//! Contrastive representation distillation (`crd`): contrasts the student's embedding of an image with
//! the teacher's embeddings of the same and of other images, and vice versa.
//!
//! # Paper
//! Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv
//! 1910.10699, section 3: the critic's loss and its memory bank.
//!
//! # Equation
//! Two linear layers, trained with the student, map the pooled features of both networks to unit
//! vectors `g`. For an image with K negatives out of M training images, and the rows `m` of the other
//! network's memory bank (the image's own row first):
//!
//! ```text
//! p = exp(g . m / T) / Z          total: weight * (student + teacher)
//! student = mean over b of -ln(p_0 / (p_0 + K/M)) - sum over negatives of ln((K/M) / (p + K/M))
//! ```
//!
//! with 1e-7 added to both divisors; `teacher` is the same with the teacher's embedding and the
//! student's memory bank. Z is a constant: a setting, or `M * mean exp(g . m / T)` of the first batch.
//! After each step the rows of the batch's images are updated: `m = unit(momentum * m + (1 - momentum) *
//! g)`.
//!
//! # Inputs
//! `pooled [B, D]` of both; lengths may differ. Weights `embed_student.weight [F, D_S]`,
//! `embed_teacher.weight [F, D_T]` and biases. Buffers in checkpoints: the memory
//! banks `bank_s` and `bank_t [M, F]`, the image of each row `image [M]`, and `log_z_student`,
//! `log_z_teacher` (NaN until the first batch).
//!
//! Images get a row at their first occurrence, in the order of the batches, so datasets and splits are
//! arbitrary. Unassigned rows hold random vectors of similar length and are negatives too. Negatives
//! are drawn uniformly from all rows but the image's own. The scores of all M rows are one product of
//! `B * M * F` multiply-adds.
//!
//! # Defaults and their source
//! Weight 0.8, F 128, K 16384, T 0.07, momentum 0.5: the authors' collection RepDistiller, CIFAR-100.
//!
//! # Where code and paper differ
//! The paper draws negatives from the whole set, as here; RepDistiller excludes the image's class.
//! Public code stores exp(g . m / T), which overflows at low temperatures; here it stays a logarithm.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("crd")?;
//! let crd = (entry.build)(&toml::toml! { k = 4096 })?;
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

use crate::common::normalize::{EPS, l2_normalize};
use crate::common::softmax::log_sum_exp;
use crate::common::{checks, config};

/// Registry entry of `crd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "crd",
    summary: "embeddings contrasted with a memory bank of all images",
    source: "Tian et al. 2020, section 3",
    defaults: || {
        config::document::<CrdConfig>(&[
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
    build: |table| Ok(Box::new(Crd::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `crd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrdConfig {
    /// Length of the embeddings.
    pub feature_dim: usize,
    /// Rows of the memory banks. Unset: the number of training images.
    pub n_data: Option<usize>,
    /// Negatives per image.
    pub k: usize,
    /// Temperature of the cosines.
    pub temperature: f64,
    /// Weight of the old row in its update.
    pub momentum: f64,
    /// Normalizer of the student's scores. Unset: from the first batch.
    pub z_student: Option<f64>,
    /// Normalizer of the teacher's scores. Unset: from the first batch.
    pub z_teacher: Option<f64>,
    /// Weight of both terms.
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
const EPSILON: f64 = 1e-7;

/// Negative log-likelihood of the positives against the negatives for one network, a scalar in f64.
///
/// `embeddings [B, F]` are unit vectors, `bank [M, F]` is the other network's memory bank, `indices
/// [B, K + 1]` (u32) holds the row of each image followed by its negatives' rows. `log_z` is the
/// logarithm of the normalizer; `None` estimates it from this batch. Returns the loss and `log_z`. Tian et
/// al. 2020, section 3.
///
/// # Errors
/// If the shapes do not match or an index is out of range.
pub fn crd_loss(
    embeddings: &Tensor,
    bank: &Tensor,
    indices: &Tensor,
    temperature: f64,
    log_z: Option<f64>,
) -> Result<(Tensor, f64)> {
    let (b, columns) = indices.dims2()?;
    let scores = embeddings.matmul(&bank.t()?)?; // [B, M]
    let log_p = (scores.gather(indices, 1)?.to_dtype(DType::F64)? / temperature)?; // [B, K + 1]
    let rows = bank.dim(0)? as f64;
    let log_z = match log_z {
        Some(log_z) => log_z,
        None => {
            let all = log_sum_exp(&log_p.detach().flatten_all()?.unsqueeze(0)?)?.to_vec1::<f64>()?[0];
            all - ((b * columns) as f64).ln() + rows.ln()
        }
    };
    let log_p = (log_p - log_z)?;
    // ln(p + K / M + 1e-7)
    let noise = (columns - 1) as f64 / rows;
    let constant = (noise + EPSILON).ln();
    let max = log_p.detach().maximum(constant)?;
    let log_divisor = ((log_p.sub(&max)?.exp()? + max.affine(-1.0, constant)?.exp()?)?.log()? + max)?;
    let positive = log_p.narrow(1, 0, 1)?.sum_all()?;
    let value = ((log_divisor.sum_all()? - positive)? / b as f64)?;
    Ok(((value - (columns - 1) as f64 * noise.ln())?, log_z))
}

/// Contrastive representation distillation.
#[derive(Debug)]
pub struct Crd {
    config: CrdConfig,
    /// Set by `connect`.
    banks: Option<Banks>,
    /// Buffer updates of the last training step.
    pending: RefCell<Option<Pending>>,
}

#[derive(Debug)]
struct Banks {
    params: ParamStore,
    rows: usize,
    /// Dataset index of the image of each row, -1 if unassigned.
    image: ParamId,
    student: Side,
    teacher: Side,
}

/// Embedding layer, memory bank and normalizer of one network.
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
    /// Validates the settings.
    pub fn new(config: CrdConfig) -> Result<Self> {
        for (key, count) in [("feature_dim", config.feature_dim), ("k", config.k)] {
            if count == 0 {
                return Err(config::invalid(ENTRY.name, key, 0, "1 or more"));
            }
        }
        config::require_positive(ENTRY.name, "temperature", config.temperature)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        for (key, z) in [("z_student", config.z_student), ("z_teacher", config.z_teacher)] {
            config::require_positive(ENTRY.name, key, z.unwrap_or(1.0))?;
        }
        config::require_fraction(ENTRY.name, "momentum", config.momentum)?;
        Ok(Self { config, banks: None, pending: RefCell::new(None) })
    }

    fn banks(&self) -> Result<&Banks> {
        self.banks.as_ref().ok_or_else(|| {
            Error::incompatible(ENTRY.name, "expected memory banks, found none: call connect first")
        })
    }

    /// Rows of the batch's images, and the row of each image followed by its negatives' rows.
    fn indices(&self, context: &LossContext, images: usize) -> Result<(Vec<u32>, Tensor)> {
        let banks = self.banks()?;
        let device = banks.params.device();
        let overridden =
            |name| context.overrides.get(name).and_then(|t| Ok(t.to_dtype(DType::U32)?.to_device(device)?));
        if let (Ok(rows), Ok(indices)) = (overridden("index"), overridden("contrast_idx")) {
            return Ok((rows.to_vec1()?, indices.contiguous()?));
        }
        let own = banks.rows_of(context.ids)?;
        if own.len() != images {
            let found = own.len();
            return Err(Error::incompatible(
                ENTRY.name,
                format!("expected an id for each of {images} images, found {found}"),
            ));
        }
        let mut indices = Vec::with_capacity(images * (self.config.k + 1));
        for (image, own) in own.iter().enumerate() {
            let mut draw = context.rng.at(context.step, image as u64);
            indices.push(*own);
            indices.extend((0..self.config.k).map(|_| {
                let other = draw.below(banks.rows as u64 - 1) as u32;
                other + u32::from(other >= *own)
            }));
        }
        Ok((own, Tensor::from_vec(indices, (images, self.config.k + 1), device)?))
    }
}

impl Banks {
    fn buffer(&self, id: ParamId) -> Tensor {
        self.params.get(id).var().as_detached_tensor()
    }

    /// Rows of images; new images are assigned the next unassigned rows.
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
                        "expected at most {next} training images, the rows of the memory banks; raise n_data"
                    ),
                ));
            }
            // The index is stored in the dtype of the parameters.
            if self.params.dtype() == DType::F32 && id >= 1 << f32::MANTISSA_DIGITS {
                return Err(Error::incompatible(
                    ENTRY.name,
                    format!("expected image indices below 16777216, found {id}"),
                ));
            }
            rows.insert(id, next as u32);
            Ok(next as u32)
        };
        ids.iter().map(|id| row_of(*id)).collect()
    }

    fn side(
        side: &str,
        bank: &str,
        length: usize,
        z: Option<f64>,
        n: (usize, usize),
        p: &ParamBuilder,
    ) -> Result<Side> {
        let (rows, features) = n;
        let (layer, init) = (p.pp(format!("embed_{side}")), Init::fan_in_uniform(length));
        let z = z.map_or(f64::NAN, f64::ln);
        Ok(Side {
            weight: layer.var("weight", &[features, length], init)?,
            bias: layer.var("bias", &[features], init)?,
            bank: p.buffer(bank, &[rows, features], Init::Uniform((3.0 / features as f64).sqrt()))?,
            log_z: p.buffer(&format!("log_z_{side}"), &[], Init::Constant(z))?,
        })
    }
}

impl Side {
    /// Unit embeddings, `[B, D] -> [B, F]`.
    fn embed(&self, features: &Tensor) -> Result<Tensor> {
        l2_normalize(&features.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?, EPS)
    }
}

impl Distiller for Crd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&["pooled"])
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let (student, teacher) = checks::require_vectors(shapes, "pooled", ENTRY.name)?;
        let rows = self.config.n_data.unwrap_or(shapes.samples);
        if rows < shapes.samples.max(2) {
            let images = shapes.samples;
            return Err(Error::incompatible(
                ENTRY.name,
                format!(
                    "expected a row for each training image and at least 2, found {rows} rows for {images} images"
                ),
            ));
        }
        let n = (rows, self.config.feature_dim);
        let banks = Banks {
            params: params.params().clone(),
            rows,
            student: Banks::side("student", "bank_s", student, self.config.z_student, n, params)?,
            teacher: Banks::side("teacher", "bank_t", teacher, self.config.z_teacher, n, params)?,
            image: params.buffer("image", &[rows], Init::Constant(-1.0))?,
        };
        self.banks = Some(banks);
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let banks = self.banks()?;
        let (student, teacher) = checks::vector_pair(context, "pooled", ENTRY.name)?;
        let (rows, indices) = self.indices(context, student.dim(0)?)?;
        let (student, teacher) = (banks.student.embed(&student)?, banks.teacher.embed(&teacher)?);
        let CrdConfig { temperature, weight, .. } = self.config;
        let contrast = |embeddings: &Tensor, own: &Side, other: &Side| {
            let log_z = banks.buffer(own.log_z).to_dtype(DType::F64)?.to_scalar::<f64>()?;
            let log_z = (!log_z.is_nan()).then_some(log_z);
            crd_loss(embeddings, &banks.buffer(other.bank), &indices, temperature, log_z)
        };
        let (of_student, log_z_student) = contrast(&student, &banks.student, &banks.teacher)?;
        let (of_teacher, log_z_teacher) = contrast(&teacher, &banks.teacher, &banks.student)?;
        if context.train {
            *self.pending.borrow_mut() = Some(Pending {
                rows,
                embeddings: [student.detach(), teacher.detach()],
                log_z: [log_z_student, log_z_teacher],
            });
        }
        Ok(vec![
            Term::new("student", of_student.to_dtype(student.dtype())?, weight),
            Term::new("teacher", of_teacher.to_dtype(student.dtype())?, weight),
        ])
    }

    /// Updates the rows of the batch's images, and stores the normalizers of the first batch.
    fn after_step(&mut self, context: &LossContext, _params: &ParamStore) -> Result<()> {
        let Some(pending) = self.pending.borrow_mut().take() else { return Ok(()) };
        let banks = self.banks()?;
        let (params, momentum) = (&banks.params, self.config.momentum);
        let rows = Tensor::new(pending.rows.as_slice(), params.device())?;
        let sides = [&banks.student, &banks.teacher];
        for ((side, embedding), log_z) in sides.into_iter().zip(pending.embeddings).zip(pending.log_z) {
            let bank = params.get(side.bank);
            let old = bank.var().as_detached_tensor().index_select(&rows, 0)?;
            let new = l2_normalize(&((old * momentum)? + (embedding * (1.0 - momentum))?)?, EPS)?
                .to_dtype(params.dtype())?;
            for (i, row) in pending.rows.iter().enumerate() {
                // Per row, because the bank may be large.
                bank.var().slice_set(&new.narrow(0, i, 1)?.contiguous()?, 0, *row as usize)?;
            }
            params.import(side.log_z, &Tensor::full(log_z, (), params.device())?)?;
        }
        if context.ids.len() == pending.rows.len() {
            let image = params.get(banks.image);
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
