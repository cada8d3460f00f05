//! A model on a GPU, where the program has that feature.

use std::time::Duration;

use chunkwise::files::{self, Tensor};
use chunkwise::nn::Model;

/// An output, how long it took, and where it was computed.
pub(crate) type Ran = (Tensor<'static>, Duration, String);

/// Twice, for the first time compiles the kernels.
#[cfg(feature = "cuda")]
pub(crate) fn on_gpu(model: &Model<'_>, input: &Tensor<'_>, number: usize) -> files::Result<Ran> {
    use std::time::Instant;

    use chunkwise::cuda;

    let device = cuda::Device::open(number)?;
    let model = cuda::Model::new(&device, model, cuda::Precision::F32)?;
    files::forward_on_gpu(&model, input)?;
    let begin = Instant::now();
    let output = files::forward_on_gpu(&model, input)?;
    Ok((output, begin.elapsed(), format!("{}, copies to it and back included", device.name())))
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn on_gpu(_: &Model<'_>, _: &Tensor<'_>, _: usize) -> files::Result<Ran> {
    unreachable!("refused with the arguments")
}
