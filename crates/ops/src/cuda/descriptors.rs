//! Owned cuDNN descriptors, destroyed on drop.

use candle_core::Result;
use candle_core::cuda_backend::cudarc::cudnn::{CudnnDataType, result, sys};

use super::{Number, sizes};

macro_rules! descriptor {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $create:path, $destroy:path) => {
        $(#[$doc])*
        pub(super) struct $name($raw);

        impl $name {
            fn make() -> Result<Self> {
                Ok(Self($create()?))
            }

            pub(super) fn raw(&self) -> $raw {
                self.0
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: created by this type and destroyed once. Errors cannot be reported from `drop`.
                let _ = unsafe { $destroy(self.0) };
            }
        }
    };
}

descriptor!(
    /// A map `[B, C, H, W]`.
    Map,
    sys::cudnnTensorDescriptor_t,
    result::create_tensor_descriptor,
    result::destroy_tensor_descriptor
);
descriptor!(
    /// A weight `[O, I, kh, kw]`.
    Filter,
    sys::cudnnFilterDescriptor_t,
    result::create_filter_descriptor,
    result::destroy_filter_descriptor
);
descriptor!(
    /// A convolution.
    Convolution,
    sys::cudnnConvolutionDescriptor_t,
    result::create_convolution_descriptor,
    result::destroy_convolution_descriptor
);
descriptor!(
    /// A pooling.
    Pooling,
    sys::cudnnPoolingDescriptor_t,
    result::create_pooling_descriptor,
    destroy_pooling
);

/// Missing in cudarc's safe API.
unsafe fn destroy_pooling(pooling: sys::cudnnPoolingDescriptor_t) -> result::CudnnResult<()> {
    // SAFETY: by the caller.
    unsafe { sys::cudnnDestroyPoolingDescriptor(pooling) }.result()
}

const PLANES: sys::cudnnTensorFormat_t = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;

impl Map {
    pub(super) fn new<T: Number>(dims: [i32; 4]) -> Result<Self> {
        let map = Self::make()?;
        // SAFETY: the descriptor is alive.
        unsafe { result::set_tensor4d_descriptor(map.0, PLANES, T::DATA_TYPE, dims) }?;
        Ok(map)
    }

    /// Describes the parameters of a batch norm over all pixels, for maps of type `T`.
    pub(super) fn of_channels<T: Number>(channels: i32) -> Result<Self> {
        Self::new::<T::Wide>([1, channels, 1, 1])
    }
}

impl Filter {
    pub(super) fn new<T: Number>(dims: [i32; 4]) -> Result<Self> {
        let filter = Self::make()?;
        // SAFETY: the descriptor is alive.
        unsafe { result::set_filter4d_descriptor(filter.0, T::DATA_TYPE, PLANES, dims) }?;
        Ok(filter)
    }
}

impl Convolution {
    pub(super) fn new<T: Number>(
        pad: [i32; 2],
        stride: i32,
        dilation: i32,
        groups: i32,
        math: sys::cudnnMathType_t,
    ) -> Result<Self> {
        let conv = Self::make()?;
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        // SAFETY: the descriptor is alive.
        unsafe {
            result::set_convolution2d_descriptor(
                conv.0,
                pad[0],
                pad[1],
                stride,
                stride,
                dilation,
                dilation,
                mode,
                <T::Wide as CudnnDataType>::DATA_TYPE,
            )?;
            result::set_convolution_group_count(conv.0, groups)?;
        }
        conv.set_math(math)?;
        Ok(conv)
    }

    /// Sets the math type.
    pub(super) fn set_math(&self, math: sys::cudnnMathType_t) -> Result<()> {
        // SAFETY: the descriptor is alive.
        Ok(unsafe { result::set_convolution_math_type(self.0, math) }?)
    }
}

impl Pooling {
    /// Describes max pooling with square windows.
    pub(super) fn max(kernel: usize, padding: usize, stride: usize) -> Result<Self> {
        let pooling = Self::make()?;
        let [kernel, padding, stride] = sizes([kernel, padding, stride])?;
        // SAFETY: the descriptor is alive; two sizes for two dimensions.
        unsafe {
            result::set_pooling_descriptor(
                pooling.0,
                sys::cudnnPoolingMode_t::CUDNN_POOLING_MAX_DETERMINISTIC,
                sys::cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN,
                2,
                &[kernel; 2],
                &[padding; 2],
                &[stride; 2],
            )
        }?;
        Ok(pooling)
    }
}
