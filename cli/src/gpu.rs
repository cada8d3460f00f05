//! A model on a GPU, where the program has the feature `cuda`.

use std::time::Duration;

use chunkwise::files::{self, Tensor};
use chunkwise::nn::Model;

/// An output, the time that it took, and the device that computed it.
pub(crate) type Ran = (Tensor<'static>, Duration, String);

/// Runs the model twice, because the first run compiles the kernels, and times the second run.
#[cfg(feature = "cuda")]
pub(crate) fn on_gpu(model: &Model<'_>, input: &Tensor<'_>, number: usize) -> files::Result<Ran> {
    use std::time::Instant;

    use chunkwise::cuda;

    let device = cuda::Device::open(number)?;
    let model = cuda::Model::new(&device, model, cuda::Precision::F32)?;
    files::forward_on_gpu(&model, input)?;
    let begin = Instant::now();
    let output = files::forward_on_gpu(&model, input)?;
    Ok((output, begin.elapsed(), format!("{}, including copies to it and back", device.name())))
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn on_gpu(_: &Model<'_>, _: &Tensor<'_>, _: usize) -> files::Result<Ran> {
    unreachable!("the parser of arguments refuses GPUs in this build")
}
