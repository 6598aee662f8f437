//! The losses as functions of tensors.
//!
//! Every function returns scalars of one batch, unweighted, in the student's dtype. Teachers get no
//! gradient.

pub use crate::common::mmd::{Groups, grouped_mmd2};
pub use crate::feature::at::at_loss;
pub use crate::feature::class_centric::class_centric_loss;
pub use crate::feature::fitnet::fitnet_loss;
pub use crate::feature::nst::nst_loss;
pub use crate::feature::nst_all::nst_all_loss;
pub use crate::feature::reviewkd::reviewkd_loss;
pub use crate::feature::vid::vid_loss;
pub use crate::relation::cc::{cc_delta_loss, cc_loss};
pub use crate::relation::crd::crd_loss;
pub use crate::relation::kdsvd::kdsvd_loss;
pub use crate::relation::pkt::pkt_loss;
pub use crate::relation::rkd::{rkd_angle_loss, rkd_distance_loss};
pub use crate::relation::sp::sp_loss;
pub use crate::response::ce::ce_loss;
pub use crate::response::dkd::dkd_loss;
pub use crate::response::kd::kd_loss;
pub use crate::response::kl_cosine::cosine_loss;
pub use crate::segmentation::cwd::cwd_loss;
pub use crate::segmentation::frkd::{FrkdTerms, frkd_loss};
pub use crate::segmentation::ifvd::ifvd_loss;
pub use crate::segmentation::skd_affinity::{adaptation_loss, affinity_loss};
pub use crate::segmentation::skd_holistic::{discriminator_loss, generator_loss, gradient_penalty_loss};
pub use crate::segmentation::skd_pairwise::skd_pairwise_loss;
pub use crate::segmentation::skd_pixelwise::skd_pixelwise_loss;
pub use crate::self_distillation::byot::{byot_hint_loss, byot_soft_loss};
pub use crate::self_distillation::self_kl::{self_kl_loss, self_mse_loss};
