//! Deterministic image operations, equal to those of Pillow and torchvision.
//!
//! Coordinates: x to the right, y down. Operations take 1 or 3 channels unless documented otherwise and
//! return a new image. The steps that a configuration names are in [`pipeline`].

mod color;
mod crop;
mod filter;
mod geometry;
mod joint;
pub mod pipeline;
mod resize;

pub use color::{
    Jitter, autocontrast, brightness, color_jitter, contrast, equalize, grayscale, hue, invert, normalize,
    normalize_into, posterize, saturation, solarize,
};
pub use crop::{PadMode, Padding, center_crop, crop, crop_with, pad};
pub use filter::{gaussian_blur, sharpness};
pub use geometry::{hflip, jigsaw, rot90, vflip};
pub use joint::{ScaleCrop, scale_crop_joint};
pub use resize::{Filter, resize, resize_short_side, resized_crop, short_side_size};
