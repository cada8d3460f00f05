//! The model on GPUs, compared with the reference's outputs and with the CPU's: on the emulator, and on a GPU
//! where there is one.

mod common;
mod cuda_common;
mod weights;

use std::path::{Path, PathBuf};

use chunkwise::FeatureMap;
use chunkwise::cuda::{self, Device, Precision};
use chunkwise::files::{self, ModelFile, Tensors};
use chunkwise::nn::{AttentionKind, BlockWeights, Model, ModelConfig, OutputMode, Weights, init};
use common::*;
use cuda_common::{devices, explained};
use half::{bf16, f16};

/// The number of golden files that hold a whole model.
const FILES: usize = 14;

/// The golden files that hold a whole model of FlashLinearAttention.
fn files() -> Vec<PathBuf> {
    let folder = test_file("golden", Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"));
    let entries = std::fs::read_dir(folder).expect("the folder of golden files");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("fla_")));
    files.sort();
    assert_eq!(files.len(), FILES);
    files
}

/// The norm error that is allowed against the reference. Where the model is ill-conditioned, twice the CPU's
/// error is allowed.
const ALLOWED: f64 = 2e-5;

#[test]
fn the_references_answers() {
    for device in devices() {
        for path in files() {
            let name = path.file_stem().expect("a name").to_string_lossy();
            let bytes = files::read(&path).expect("a golden file");
            let tensors = Tensors::parse(&bytes).expect("safetensors");
            let options = tensors.options().expect("options");
            let other = options
                .weights_from
                .as_ref()
                .map(|file| files::read(path.with_file_name(file)).expect("the file with the parameters"));
            let file = ModelFile::parse(other.as_ref().unwrap_or(&bytes), &options).expect("a model");
            let mut blocks = Vec::new();
            let model = file.model(&mut blocks, None, 1).expect("a model");
            let input = tensors.tensor("input").expect("an input");
            let stored = tensors.tensor("output").expect("an output");
            let want: Vec<f64> = stored.data.iter().copied().map(f64::from).collect();
            let on_cpu = norm_error(&files::forward(&model, &input).expect("the CPU's").data, &want);
            let model = explained(cuda::Model::new(&device, &model, Precision::F32));
            let got = explained(files::forward_on_gpu(&model, &input));
            assert_eq!(got.shape, stored.shape, "{name}");
            let error = norm_error(&got.data, &want);
            report(&format!("{name}: off by {error:.1e}, the CPU by {on_cpu:.1e}"));
            assert!(error <= ALLOWED.max(2.0 * on_cpu), "{name}: off by {error:e}, the CPU by {on_cpu:e}");
        }
    }
}

/// Calls `run` with a model of random weights in a type.
fn with_model<E: Number, R>(config: &ModelConfig, run: impl FnOnce(&Model<'_>) -> R) -> R {
    let mut flat = vec![0.0; config.parameters_len()];
    init::init(config, 3, &mut flat).expect("a configuration");
    let flat = narrow::<E>(&flat);
    let mut blocks = vec![BlockWeights::EMPTY; config.num_layers];
    let weights = Weights::from_flat(config, &flat, &mut blocks).expect("a flat model");
    run(&Model::new(*config, weights, None, 1).expect("a model"))
}

/// Compares a model with the CPU's, whose types and options have tests of their own.
fn beside_the_cpu<E: Number>(device: &Device, config: &ModelConfig, batch: usize, len: usize) {
    with_model::<E, _>(config, |model| {
        let input = normals(1, batch * len * config.embed_dim);
        let mut want = vec![f32::NAN; model.output_len(batch, len)];
        let scratch = &mut vec![0.0; model.scratch_len(batch, len).expect("sizes")];
        model.forward(batch, len, &input, &mut want, scratch).expect("the CPU's");
        let want: Vec<f64> = want.into_iter().map(f64::from).collect();
        for (precision, most) in [(Precision::F32, 5e-6), (Precision::Bf16Dot, 2e-2)] {
            let on_gpu = explained(cuda::Model::new(device, model, precision));
            let got = explained(on_gpu.run(batch, len, &input));
            let error = norm_error(&got, &want);
            assert!(error <= most, "{} {precision:?} {batch} x {len}: off by {error:e}, {config:?}", E::NAME);
        }
    });
}

#[test]
fn options_types_and_sizes() {
    for device in devices() {
        for (at, output_mode) in
            [OutputMode::LastTimestep, OutputMode::All, OutputMode::Mean].into_iter().enumerate()
        {
            for final_norm in [false, true] {
                let mut config =
                    ModelConfig { hidden_size: 48, num_heads: 3, num_layers: 2, ..ModelConfig::new(10) };
                (config.output_mode, config.final_norm) = (output_mode, final_norm);
                config.feature_map = if final_norm { FeatureMap::Elu } else { FeatureMap::RELU };
                (config.chunk_size, config.layer_norm_clip) = (16 + 48 * at, final_norm);
                beside_the_cpu::<f32>(&device, &config, 2, 33);
                // There is no projection, and the heads do not use all columns of hidden_size.
                let config = ModelConfig { embed_dim: 48, num_heads: 5, ..config };
                beside_the_cpu::<bf16>(&device, &config, 1, 70);
                beside_the_cpu::<f16>(&device, &config, 3, 1);
            }
        }
    }
}

#[test]
fn lightning_attention_is_refused() {
    let attention = AttentionKind::Lightning;
    let config =
        ModelConfig { attention, hidden_size: 8, num_heads: 2, num_layers: 1, ..ModelConfig::new(4) };
    with_model::<f32, _>(&config, |model| {
        let error = cuda::Model::new(&devices()[0], model, Precision::F32).err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), Some("not on the GPU: models of lightning attention"));
    });
}

#[test]
fn refused_input() {
    let device = &devices()[0];
    let config = ModelConfig { hidden_size: 8, num_heads: 2, num_layers: 1, ..ModelConfig::new(4) };
    with_model::<f32, _>(&config, |model| {
        let model = explained(cuda::Model::new(device, model, Precision::F32));
        let error = |batch, len, input: &[f32]| model.run(batch, len, input).err().map(|e| e.to_string());
        assert_eq!(error(1, 3, &[0.0; 11]).as_deref(), Some("input holds 11 elements, expected 12"));
        assert_eq!(error(1, 0, &[]).as_deref(), Some("T, for an output of one row must be at least 1"));
        let all = usize::MAX / 8;
        assert!(error(all, 2, &[]).is_some_and(|text| text.contains("too large")));
        assert_eq!(model.run(0, 3, &[]), Ok(vec![]));
    });
}
