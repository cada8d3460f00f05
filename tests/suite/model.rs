//! The model and its layers. Layers are compared with f64, and steps with a forward; the batch around a
//! sequence, threads and the contents of memory must not change a bit. `cli/tests/suite/golden.rs` compares
//! models with the reference.

use chunkwise::nn::{
    AttentionKind, Block, BlockWeights, LayerNorm, Linear, Model, ModelConfig, OutputMode, Weights, init,
};
use chunkwise::{Error, FeatureMap, Isa};

use crate::common::{norm_error, normals};

/// The norm error that is allowed between f32 and f64, or between two orders of summation, after a few
/// layers.
const TOLERANCE: f64 = 2e-6;

const MODES: [OutputMode; 3] = [OutputMode::LastTimestep, OutputMode::All, OutputMode::Mean];

/// A configuration with weights.
struct Built {
    config: ModelConfig,
    flat: Vec<f32>,
}

impl Built {
    fn new(config: ModelConfig) -> Self {
        let mut flat = vec![0.0; config.parameters_len()];
        init(&config, 7, &mut flat).unwrap();
        Self { config, flat }
    }

    /// Calls `then` with the model.
    fn with<R>(&self, isa: Isa, threads: usize, then: impl FnOnce(&Model) -> R) -> R {
        let mut blocks = vec![BlockWeights::default(); self.config.num_layers];
        let weights = Weights::from_flat(&self.config, &self.flat, &mut blocks).unwrap();
        then(&Model::new(self.config, weights, Some(isa), threads).unwrap())
    }

    fn input(&self, batch: usize, len: usize) -> Vec<f32> {
        normals(1, batch * len * self.config.embed_dim)
    }
}

fn forward_in(model: &Model, batch: usize, len: usize, input: &[f32], poison: f32) -> Vec<f32> {
    let mut output = vec![poison; model.output_len(batch, len)];
    let mut scratch = vec![poison; model.scratch_len(batch, len).unwrap()];
    model.forward(batch, len, input, &mut output, &mut scratch).unwrap();
    output
}

fn forward(model: &Model, batch: usize, len: usize, input: &[f32]) -> Vec<f32> {
    forward_in(model, batch, len, input, f32::NAN)
}

/// The outputs of all steps, `[T, B, hidden]`.
fn steps(model: &Model, batch: usize, len: usize, input: &[f32]) -> Vec<Vec<f32>> {
    let embed = model.config().embed_dim;
    let mut state = vec![0.0; model.state_len(batch).unwrap()];
    let mut scratch = vec![f32::NAN; model.step_scratch_len(batch).unwrap()];
    let mut step = |t: usize| {
        let rows = (0..batch).flat_map(|b| &input[(b * len + t) * embed..][..embed]);
        let mut output = vec![f32::NAN; batch * model.config().output_size()];
        model.step(batch, &rows.copied().collect::<Vec<_>>(), &mut state, &mut output, &mut scratch).unwrap();
        output
    };
    (0..len).map(&mut step).collect()
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Small models that differ in every option.
fn configs() -> Vec<ModelConfig> {
    let small = ModelConfig { hidden_size: 32, num_layers: 2, ..ModelConfig::new(8) };
    vec![
        small,
        // No projection and no final norm.
        ModelConfig { embed_dim: 32, final_norm: false, ..small },
        // Three heads in 50 columns, so that two columns of each of q, k and v are not used; sizes that fill
        // no whole vectors.
        ModelConfig { hidden_size: 50, num_heads: 3, chunk_size: 20, ..ModelConfig::new(7) },
        ModelConfig { feature_map: FeatureMap::RELU, chunk_size: 1, layer_norm_clip: true, ..small },
        // Heads of one element, one layer, and chunks that the sequence length limits.
        ModelConfig { hidden_size: 5, num_heads: 5, num_layers: 1, seq_len: 9, ..ModelConfig::new(1) },
        // Lightning attention, with chunks that end within a tile of rows and within a block of tokens.
        ModelConfig { attention: AttentionKind::Lightning, chunk_size: 22, ..small },
        ModelConfig {
            attention: AttentionKind::Lightning,
            hidden_size: 50,
            num_heads: 3,
            chunk_size: 1,
            ..ModelConfig::new(7)
        },
    ]
}

#[test]
fn step_is_forward() {
    for isa in Isa::available() {
        for config in configs() {
            for output_mode in MODES {
                let built = Built::new(ModelConfig { output_mode, ..config });
                // One token; one tile of fewer than 256 rows; tiles of several sequences, the last with fewer
                // sequences; tiles of one sequence, the last of which has 18 tokens, or 4, which are too few
                // to compute the last one separately.
                for (batch, len) in [(1, 1), (3, 5), (2, 64), (1, 150), (90, 3), (1, 530), (2, 260)] {
                    let input = built.input(batch, len);
                    built.with(isa, 1, |model| {
                        let whole = forward(model, batch, len, &input);
                        let steps = steps(model, batch, len, &input);
                        let hidden = config.hidden_size;
                        let stepped = match output_mode {
                            OutputMode::All => (0..batch)
                                .flat_map(|b| {
                                    steps.iter().flat_map(move |row| row[b * hidden..][..hidden].to_vec())
                                })
                                .collect(),
                            _ => steps[len - 1].clone(),
                        };
                        let what = format!("{isa} {config:?} {output_mode:?} {batch}x{len}");
                        if output_mode == OutputMode::Mean {
                            // A forward adds the means of tiles and a step updates a running mean, so the
                            // order of additions differs.
                            let error = norm_error(&stepped, &widen(&whole));
                            assert!(error <= TOLERANCE, "{what}: {error}");
                        } else {
                            assert_eq!(bits(&stepped), bits(&whole), "{what}");
                        }
                    });
                }
            }
        }
    }
}

#[test]
fn the_mean_is_the_mean_of_all() {
    let config = configs()[0];
    // Each sequence has two tiles and a part of one.
    let (batch, len) = (2, 530);
    for isa in Isa::available() {
        let all = Built::new(ModelConfig { output_mode: OutputMode::All, ..config });
        let mean = Built::new(ModelConfig { output_mode: OutputMode::Mean, ..config });
        let input = all.input(batch, len);
        let rows = all.with(isa, 1, |model| forward(model, batch, len, &input));
        let got = mean.with(isa, 1, |model| forward(model, batch, len, &input));
        let want: Vec<f64> = rows
            .chunks(len * 32)
            .flat_map(|rows| {
                (0..32)
                    .map(|j| rows.iter().skip(j).step_by(32).map(|x| f64::from(*x)).sum::<f64>() / len as f64)
            })
            .collect();
        assert!(norm_error(&got, &want) <= TOLERANCE, "{isa}");
    }
}

#[test]
fn neither_poison_nor_threads_change_a_bit() {
    // The model is large enough that dense layers and heads are divided among threads.
    let built =
        Built::new(ModelConfig { num_layers: 2, output_mode: OutputMode::All, ..ModelConfig::new(96) });
    for isa in Isa::available() {
        for (batch, len) in [(1, 100), (3, 40), (1, 260)] {
            let input = built.input(batch, len);
            let want = built.with(isa, 1, |model| forward_in(model, batch, len, &input, 0.0));
            for threads in [1, 2, 5] {
                for poison in [f32::NAN, 1e30] {
                    let got = built.with(isa, threads, |model| forward_in(model, batch, len, &input, poison));
                    assert_eq!(bits(&got), bits(&want), "{isa}, {threads} threads, {poison}");
                }
            }
            let want = built.with(isa, 1, |model| steps(model, batch, len, &input));
            let got = built.with(isa, 5, |model| steps(model, batch, len, &input));
            assert_eq!(bits(&got.concat()), bits(&want.concat()), "{isa}, steps");
        }
    }
}

#[test]
fn sequences_are_independent() {
    for config in configs() {
        let built = Built::new(config);
        let len = 70;
        let input = built.input(3, len);
        for isa in Isa::available() {
            built.with(isa, 1, |model| {
                let together = forward(model, 3, len, &input);
                let alone =
                    input.chunks(len * config.embed_dim).flat_map(|input| forward(model, 1, len, input));
                assert_eq!(bits(&together), bits(&alone.collect::<Vec<_>>()), "{isa} {config:?}");
            });
        }
    }
}

#[test]
fn blocks_make_the_model() {
    let config = ModelConfig { final_norm: false, output_mode: OutputMode::All, ..configs()[1] };
    let built = Built::new(config);
    let (batch, len) = (2, 40);
    let input = built.input(batch, len);
    for isa in Isa::available() {
        built.with(isa, 1, |model| {
            let mut x = input.clone();
            for weights in model.weights().blocks {
                let block = Block::new(&config, *weights, isa, 1).unwrap();
                let mut scratch = vec![f32::NAN; block.scratch_len(batch, len).unwrap()];
                block.forward(batch, len, &mut x, &mut scratch).unwrap();
            }
            assert_eq!(bits(&x), bits(&forward(model, batch, len, &input)), "{isa}");
        });
    }
}

/// Weights that are packed for one instruction set; other instruction sets use them as they are stored.
#[test]
fn packed_weights_are_the_same_weights() {
    // In the mode LastTimestep, the last block computes only keys and values for most tokens, and their
    // columns may begin within a panel.
    let modes = |config| [OutputMode::All, OutputMode::LastTimestep].map(|mode| (config, mode));
    for (config, output_mode) in configs().into_iter().flat_map(modes) {
        let built = Built::new(ModelConfig { output_mode, ..config });
        let config = built.config;
        let (batch, len) = (2, 40);
        let input = built.input(batch, len);
        let mut stored_blocks = vec![BlockWeights::default(); config.num_layers];
        let mut stored = Weights::from_flat(&config, &built.flat, &mut stored_blocks).unwrap();
        let (kernel, bias) = (normals(8, config.hidden_size * 3), normals(9, 3));
        stored.head = Some(Linear::new(&kernel[..], &bias[..]));
        for isa in Isa::available() {
            let mut memory = vec![f32::NAN; stored.packed_len(isa)];
            let mut blocks = vec![BlockWeights::default(); config.num_layers];
            let packed = stored.pack(isa, &mut blocks, &mut memory).unwrap();
            for other in Isa::available() {
                let [stored, packed] =
                    [stored, packed].map(|weights| Model::new(config, weights, Some(other), 3).unwrap());
                let results = |model: &Model| {
                    let whole = forward(model, batch, len, &input);
                    let rows = whole.len() / config.hidden_size;
                    let mut logits = vec![f32::NAN; rows * 3];
                    let mut scratch = vec![f32::NAN; model.head_scratch_len(rows)];
                    model.apply_head(&whole, &mut logits, &mut scratch).unwrap();
                    [whole, logits, steps(model, batch, len, &input).concat()]
                };
                for (got, want) in results(&packed).iter().zip(results(&stored)) {
                    assert_eq!(bits(got), bits(&want), "{isa} on {other}, {config:?}");
                }
            }
            let need = memory.len();
            let mut blocks = vec![BlockWeights::default(); config.num_layers];
            let error = stored.pack(isa, &mut blocks, &mut memory[1..]).unwrap_err();
            assert_eq!(error, Error::TooShort { what: "memory", need, got: need - 1 });
            let mut blocks = vec![BlockWeights::default(); config.num_layers + 1];
            let error = stored.pack(isa, &mut blocks, &mut memory).unwrap_err();
            let (want, got) = (config.num_layers, config.num_layers + 1);
            assert_eq!(error, Error::Length { what: "blocks", want, got });
        }
    }
}

#[test]
fn linear_is_x_w_plus_b() {
    for isa in Isa::available() {
        // The numbers of inputs are below, at and above the eight rows that are read together, those of
        // outputs around one and two vectors of all instruction sets. Small numbers of rows are streamed, the
        // others fill tiles of all heights.
        for (inputs, outputs) in
            [(1, 1), (7, 15), (8, 16), (9, 17), (33, 31), (64, 100), (300, 33), (260, 600)]
        {
            for rows in [0, 1, 2, 5, 6, 7, 8, 13, 64] {
                for threads in [1, 3] {
                    let (x, kernel) = (normals(1, rows * inputs), normals(2, inputs * outputs));
                    let bias = normals(3, outputs);
                    let layer = Linear::new(&kernel[..], &bias[..]);
                    let product = |r: usize, c: usize| -> f64 {
                        (0..inputs)
                            .map(|i| f64::from(x[r * inputs + i]) * f64::from(kernel[i * outputs + c]))
                            .sum()
                    };
                    let want: Vec<f64> = (0..rows * outputs)
                        .map(|at| product(at / outputs, at % outputs) + f64::from(bias[at % outputs]))
                        .collect();
                    let mut memory = vec![f32::NAN; layer.packed_len(isa)];
                    let packed = layer.pack(isa, &mut memory).unwrap();
                    for (layer, how) in [(layer, "stored"), (packed, "packed")] {
                        let mut y = vec![f32::NAN; rows * outputs];
                        let mut scratch = vec![f32::NAN; layer.scratch_len(isa, threads, rows)];
                        layer.forward(isa, threads, &x, &mut y, &mut scratch).unwrap();
                        let error = norm_error(&y, &want);
                        let name = format!("{isa} {rows} x {inputs} x {outputs}, {threads}, {how}");
                        assert!(error <= TOLERANCE, "{name}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn layer_norm_is_its_formula() {
    let eps = 1e-5;
    for isa in Isa::available() {
        for size in [1, 2, 7, 8, 16, 33, 64, 257] {
            // With the second spread the variance is below eps, so that the clip has an effect.
            for (spread, clip) in [(1.0, false), (1.0, true), (1e-3, false), (1e-3, true)] {
                let x: Vec<f32> = normals(1, 3 * size).iter().map(|x| spread * x).collect();
                let (gamma, beta) = (normals(2, size), normals(3, size));
                let mut y = vec![f32::NAN; 3 * size];
                LayerNorm { gamma: (&gamma[..]).into(), beta: (&beta[..]).into(), eps, clip }
                    .forward(isa, &x, &mut y)
                    .unwrap();
                let mut want = Vec::new();
                for row in widen(&x).chunks(size) {
                    let mean = row.iter().sum::<f64>() / size as f64;
                    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / size as f64;
                    let eps = f64::from(eps);
                    let under = if clip && variance < eps { eps } else { variance + eps };
                    for (i, x) in row.iter().enumerate() {
                        want.push((x - mean) / under.sqrt() * f64::from(gamma[i]) + f64::from(beta[i]));
                    }
                }
                assert!(norm_error(&y, &want) <= TOLERANCE, "{isa} {size} {spread} {clip}");
            }
        }
    }
}

#[test]
fn initialisers_are_the_reference_s() {
    let built = Built::new(ModelConfig::new(100));
    let mut rest = &built.flat[..];
    for parameter in built.config.parameters() {
        let (data, after) = rest.split_at(parameter.len());
        rest = after;
        let most = data.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let spread = (data.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / data.len() as f64).sqrt();
        let bound = match parameter.field {
            "kernel" => (6.0 / (parameter.shape[0] + parameter.shape[1]) as f64).sqrt(),
            "gamma" => 3f64.sqrt(),
            _ => 0.0,
        };
        // A uniform distribution reaches its bound and has the standard deviation bound / sqrt 3.
        assert!(
            f64::from(most) <= bound * (1.0 + 1e-6) && f64::from(most) >= 0.95 * bound,
            "{parameter}: {most}"
        );
        assert!((spread - bound / 3f64.sqrt()).abs() <= 0.1 * bound, "{parameter}: {spread}");
    }
    assert!(rest.is_empty());
    assert!(built.flat.iter().all(|x| *x != 0.0 || x.is_sign_positive()), "-0");
    let mut other = built.flat.clone();
    init(&built.config, 7, &mut other).unwrap();
    assert_eq!(bits(&other), bits(&built.flat));
    init(&built.config, 8, &mut other).unwrap();
    assert_ne!(bits(&other), bits(&built.flat));
}

#[test]
fn names_are_the_reference_s() {
    let config = ModelConfig { hidden_size: 32, num_heads: 3, num_layers: 1, ..ModelConfig::new(8) };
    let names: Vec<String> = config.parameters().map(|p| format!("{p} {:?}", p.dims())).collect();
    assert_eq!(names[..2], ["input_projection.kernel [8, 32]", "input_projection.bias [32]"]);
    assert_eq!(names[2..4], ["fla_block_1_attn_norm.gamma [32]", "fla_block_1_attn_norm.beta [32]"]);
    assert_eq!(names[4], "fla_block_1_attn_qkv.kernel [32, 96]");
    assert_eq!(names[6], "fla_block_1_attn_out.kernel [30, 32]");
    assert_eq!(names[10], "fla_block_1_ffn_up.kernel [32, 128]");
    assert_eq!(names[12], "fla_block_1_ffn_down.kernel [128, 32]");
    assert_eq!(names[14..], ["final_norm.gamma [32]", "final_norm.beta [32]"]);
    let bare = ModelConfig { embed_dim: 32, final_norm: false, ..config };
    assert_eq!(bare.parameters().count(), 12);
    assert_eq!((config.head_dim(), config.attention_width(), config.output_size()), (10, 30, 32));
}

#[test]
fn configurations_that_cannot_be() {
    let good = ModelConfig::new(8);
    good.check().unwrap();
    type Set = fn(&mut ModelConfig);
    let zeros: [(Set, &str); 6] = [
        (|c| c.embed_dim = 0, "embed_dim"),
        (|c| c.hidden_size = 0, "hidden_size"),
        (|c| c.num_heads = 0, "num_heads"),
        (|c| c.num_layers = 0, "num_layers"),
        (|c| c.chunk_size = 0, "chunk_size"),
        (|c| c.seq_len = 0, "seq_len"),
    ];
    for (set, what) in zeros {
        let mut config = good;
        set(&mut config);
        assert_eq!(config.check(), Err(Error::Zero { what }));
    }
    let check = |config: ModelConfig| config.check().unwrap_err();
    let crowded = ModelConfig { num_heads: 300, ..good };
    assert_eq!(check(crowded), Error::Zero { what: "head_dim (hidden_size / num_heads)" });
    let long = ModelConfig { chunk_size: usize::MAX, seq_len: (1 << 24) + 1, ..good };
    assert_eq!(check(long), Error::TooMany { what: "tokens of a chunk", most: 1 << 24, got: (1 << 24) + 1 });
    for eps in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
        let config = ModelConfig { layer_norm_eps: eps, ..good };
        assert_eq!(check(config), Error::NotPositive { what: "layer_norm_eps" });
    }
    for huge in [
        ModelConfig { hidden_size: usize::MAX, ..good },
        ModelConfig { embed_dim: usize::MAX, ..good },
        ModelConfig { num_layers: usize::MAX, ..good },
    ] {
        assert_eq!(check(huge), Error::Overflow { what: "the model" });
    }
}

/// The sizes of a configuration that has not been checked saturate and do not panic.
#[test]
fn sizes_of_configurations_that_cannot_be() {
    let good = ModelConfig::new(8);
    let sum: usize = good.parameters().map(|parameter| parameter.len()).sum();
    assert_eq!(good.parameters_len(), sum);
    let none = ModelConfig { num_layers: 0, ..good };
    assert_eq!(none.parameters_len(), 8 * 256 + 256 + 2 * 256);
    let headless = ModelConfig { num_heads: 0, ..good };
    assert_eq!((headless.head_dim(), headless.attention_width()), (0, 0));
    // Without heads the kernels of attn_out are empty.
    assert_eq!(headless.parameters_len(), sum - 4 * 256 * 256);
    let hidden = usize::MAX / 2;
    for huge in [
        ModelConfig { hidden_size: hidden, num_heads: hidden, ..good },
        ModelConfig { hidden_size: usize::MAX, ..good },
        ModelConfig { embed_dim: usize::MAX, ..good },
        ModelConfig { num_layers: usize::MAX, ..good },
    ] {
        assert_eq!(huge.parameters_len(), usize::MAX);
        assert!(huge.inner_size() >= huge.hidden_size && huge.attention_width() <= huge.hidden_size);
        assert!(huge.parameters().take(20).all(|parameter| parameter.len() > 0));
    }
}

#[test]
fn weights_that_do_not_fit() {
    let config = ModelConfig { hidden_size: 12, num_heads: 2, num_layers: 1, ..ModelConfig::new(8) };
    let built = Built::new(config);
    let flat = &built.flat;
    let mut blocks = [BlockWeights::default()];
    let good = Weights::from_flat(&config, flat, &mut blocks).unwrap();
    fn refused(config: ModelConfig, weights: Weights<'_>) -> Error {
        Model::new(config, weights, Some(Isa::Scalar), 1).unwrap_err()
    }

    let zero_threads = Model::new(config, good, Some(Isa::Scalar), 0).unwrap_err();
    assert_eq!(zero_threads, Error::Zero { what: "threads" });
    assert_eq!(Block::new(&config, good.blocks[0], Isa::Scalar, 0).unwrap_err(), zero_threads);
    let missing = Weights { input_projection: None, ..good };
    assert_eq!(refused(config, missing), Error::Part { name: "input_projection", present: false });
    let extra = ModelConfig { final_norm: false, ..config };
    assert_eq!(refused(extra, good), Error::Part { name: "final_norm", present: true });
    let none = Weights { blocks: &[], ..good };
    assert_eq!(refused(config, none), Error::Length { what: "blocks", want: 1, got: 0 });

    // Each layer, with a parameter that is too short or too long.
    let narrow = [Linear::new(&flat[..8 * 11], &flat[..11])];
    let projection = Weights { input_projection: Some(narrow[0]), ..good };
    let wrong = |name, block, want, got| Error::Parameter { name, block, want, got };
    assert_eq!(refused(config, projection), wrong("input_projection", 0, [8, 12], [8, 11]));
    let block = good.blocks[0];
    let cases = [
        (
            BlockWeights { attn_norm: LayerNorm { beta: (&flat[..11]).into(), ..block.attn_norm }, ..block },
            "attn_norm",
        ),
        (BlockWeights { attn_qkv: Linear::new(&flat[..5 * 36], block.attn_qkv.bias()), ..block }, "attn_qkv"),
        (
            BlockWeights { attn_out: Linear::new(&flat[..11 * 12], block.attn_out.bias()), ..block },
            "attn_out",
        ),
        (
            BlockWeights { ffn_norm: LayerNorm { gamma: (&flat[..13]).into(), ..block.ffn_norm }, ..block },
            "ffn_norm",
        ),
        (BlockWeights { ffn_up: Linear::new(block.ffn_up.kernel(), &flat[..47]), ..block }, "ffn_up"),
        (
            BlockWeights { ffn_down: Linear::new(&flat[..47 * 12], block.ffn_down.bias()), ..block },
            "ffn_down",
        ),
    ];
    for (block, layer) in cases {
        let blocks = [block];
        let error = refused(config, Weights { blocks: &blocks, ..good });
        assert!(
            matches!(error, Error::Parameter { name, block: 1, .. } if name == layer),
            "{layer}: {error}"
        );
        assert!(Block::new(&config, block, Isa::Scalar, 1).is_err(), "{layer}");
    }
    let head = Linear::new(&flat[..13 * 3], &flat[..3]);
    let error = refused(config, Weights { head: Some(head), ..good });
    assert_eq!(error, wrong("head", 0, [12, 3], [13, 3]));

    // A kernel with one element more than its shape, which has the right number of whole rows and a part of
    // one.
    fn longer<'w>(layer: Linear<'w>, flat: &'w [f32]) -> Linear<'w> {
        Linear::new(&flat[..layer.kernel().len() + 1], layer.bias())
    }
    let cases = [
        (BlockWeights { attn_qkv: longer(block.attn_qkv, flat), ..block }, "attn_qkv", [12, 36]),
        (BlockWeights { attn_out: longer(block.attn_out, flat), ..block }, "attn_out", [12, 12]),
        (BlockWeights { ffn_up: longer(block.ffn_up, flat), ..block }, "ffn_up", [12, 48]),
        (BlockWeights { ffn_down: longer(block.ffn_down, flat), ..block }, "ffn_down", [48, 12]),
    ];
    for (block, layer, want) in cases {
        let error = wrong(layer, 1, want, [1, want[0] * want[1] + 1]);
        assert_eq!(refused(config, Weights { blocks: &[block], ..good }), error);
    }
    let projection = longer(Linear::new(&flat[..8 * 12], &flat[..12]), flat);
    let error = refused(config, Weights { input_projection: Some(projection), ..good });
    assert_eq!(error, wrong("input_projection", 0, [8, 12], [1, 97]));
    let head = longer(Linear::new(&flat[..12 * 3], &flat[..3]), flat);
    let error = refused(config, Weights { head: Some(head), ..good });
    assert_eq!(error, wrong("head", 0, [12, 3], [1, 37]));

    let mut blocks = [BlockWeights::default()];
    let want = config.parameters_len();
    let error = Weights::from_flat(&config, &flat[1..], &mut blocks).unwrap_err();
    assert_eq!(error, Error::Length { what: "the flat model", want, got: want - 1 });
    assert_eq!(init(&config, 1, &mut vec![0.0; want + 1]).unwrap_err(), {
        Error::Length { what: "the flat model", want, got: want + 1 }
    });
    let error = Weights::from_flat(&config, flat, &mut []).unwrap_err();
    assert_eq!(error, Error::Length { what: "blocks", want: 1, got: 0 });
}

#[test]
fn wrong_lengths_write_nothing() {
    let built = Built::new(ModelConfig { output_mode: OutputMode::Mean, ..configs()[0] });
    let (batch, len) = (2, 70);
    let sentinel = f32::from_bits(0x7fc0_1234);
    built.with(Isa::best(), 1, |model| {
        let sizes = [batch * len * 8, model.output_len(batch, len), model.scratch_len(batch, len).unwrap()];
        let step_sizes =
            [batch * 8, batch * 32, model.step_scratch_len(batch).unwrap(), model.state_len(batch).unwrap()];
        let untouched = |x: &[f32]| x.iter().all(|x| x.to_bits() == sentinel.to_bits());
        // Scratch may be longer than necessary.
        for (at, by) in [(0, -1), (0, 1), (1, -1), (1, 1), (2, -1)] {
            let mut sizes = sizes;
            sizes[at] = sizes[at].wrapping_add_signed(by);
            let (input, mut output, mut scratch) =
                (vec![0.5; sizes[0]], vec![sentinel; sizes[1]], vec![sentinel; sizes[2]]);
            model.forward(batch, len, &input, &mut output, &mut scratch).unwrap_err();
            assert!(untouched(&output) && untouched(&scratch), "forward {at} {by}");
        }
        for (at, by) in [(0, -1), (0, 1), (1, -1), (1, 1), (2, -1), (3, -1), (3, 1)] {
            let mut sizes = step_sizes;
            sizes[at] = sizes[at].wrapping_add_signed(by);
            let (input, mut output) = (vec![0.5; sizes[0]], vec![sentinel; sizes[1]]);
            let (mut scratch, mut state) = (vec![sentinel; sizes[2]], vec![0.0; sizes[3]]);
            model.step(batch, &input, &mut state, &mut output, &mut scratch).unwrap_err();
            assert!(untouched(&output) && untouched(&scratch), "step {at} {by}");
            assert!(state.iter().all(|x| *x == 0.0), "step {at} {by}");
        }
        // The state of the last layer has an impossible count of 0.5 tokens. The state of the first layer is
        // left untouched as well.
        let mut state = vec![0.0; step_sizes[3]];
        let last_count = step_sizes[3] - batch * (1 + 32) - 1;
        state[last_count] = 0.5;
        let (mut output, mut scratch) = (vec![sentinel; step_sizes[1]], vec![sentinel; step_sizes[2]]);
        let error = model.step(batch, &vec![0.5; step_sizes[0]], &mut state, &mut output, &mut scratch);
        assert_eq!(error, Err(Error::BadState));
        assert!(untouched(&output) && untouched(&scratch));
        assert!(state.iter().enumerate().all(|(at, x)| *x == if at == last_count { 0.5 } else { 0.0 }));

        let error = model.forward(usize::MAX, 2, &[], &mut [], &mut []).unwrap_err();
        assert_eq!(error, Error::Overflow { what: "input" });
        let error = model.forward(1, 0, &[], &mut [0.0; 32], &mut []).unwrap_err();
        assert_eq!(error, Error::Zero { what: "T, for an output of one row" });
        assert!(model.state_len(usize::MAX).is_err());
        assert!(model.step_scratch_len(usize::MAX).is_err());
        let error = model.apply_head(&[0.0; 32], &mut [0.0; 3], &mut []).unwrap_err();
        assert_eq!(error, Error::Part { name: "head", present: false });
    });
}

#[test]
fn no_tokens_and_no_sequences() {
    let built = Built::new(ModelConfig { output_mode: OutputMode::All, ..configs()[0] });
    built.with(Isa::best(), 1, |model| {
        for (batch, len) in [(0, 0), (0, 5), (3, 0)] {
            assert_eq!(forward(model, batch, len, &[]), [0.0; 0]);
        }
        assert_eq!(steps(model, 0, 2, &[]), [[0.0; 0], [0.0; 0]]);
    });
}

/// A state of lightning attention with an impossible count, in any layer, is refused before anything is
/// written.
#[test]
fn a_state_that_lightning_attention_did_not_make() {
    let attention = AttentionKind::Lightning;
    let built =
        Built::new(ModelConfig { attention, chunk_size: 4, output_mode: OutputMode::All, ..configs()[0] });
    built.with(Isa::best(), 1, |model| {
        let input = built.input(1, 1);
        let state = vec![0.0; model.state_len(1).unwrap()];
        let scratch = &mut vec![0.0; model.step_scratch_len(1).unwrap()];
        // The model has two layers of four heads.
        let head = state.len() / 8;
        for at in 0..8 {
            let (mut bad, mut output) = (state.clone(), vec![f32::NAN; 32]);
            bad[(at + 1) * head - 16] = 4.0;
            let before = bad.clone();
            assert_eq!(model.step(1, &input, &mut bad, &mut output, scratch), Err(Error::BadState), "{at}");
            assert!(bits(&bad) == bits(&before) && output.iter().all(|x| x.is_nan()), "{at}: written");
            bad[(at + 1) * head - 16] = 3.0;
            assert_eq!(model.step(1, &input, &mut bad, &mut output, scratch), Ok(()), "{at}");
        }
    });
}

#[test]
fn layers_refuse_wrong_lengths() {
    let (kernel, bias) = ([1.0; 12], [0.0; 4]);
    let layer = Linear::new(&kernel[..], &bias[..]);
    let mut scratch = vec![0.0; layer.scratch_len(Isa::Scalar, 1, 2)];
    let mut run = |layer: Linear, x: usize, y: usize, less: usize| {
        let keep = scratch.len() - less;
        layer.forward(Isa::Scalar, 1, &vec![1.0; x], &mut vec![9.0; y], &mut scratch[..keep])
    };
    assert_eq!(run(layer, 6, 8, 0), Ok(()));
    assert_eq!(run(layer, 5, 8, 0), Err(Error::Length { what: "x", want: 6, got: 5 }));
    assert_eq!(run(layer, 6, 7, 0), Err(Error::Length { what: "y", want: 8, got: 7 }));
    let error = run(layer, 6, 8, 1).unwrap_err();
    assert!(matches!(error, Error::TooShort { what: "scratch", .. }), "{error}");
    let need = layer.packed_len(Isa::Scalar);
    let error = layer.pack(Isa::Scalar, &mut vec![0.0; need - 1]).unwrap_err();
    assert_eq!(error, Error::TooShort { what: "memory", need, got: need - 1 });
    let torn = Linear::new(&kernel[1..], &bias);
    assert!(matches!(torn.pack(Isa::Scalar, &mut [0.0; 99]), Err(Error::Parameter { name: "kernel", .. })));
    assert!(matches!(run(torn, 6, 8, 0), Err(Error::Parameter { name: "kernel", .. })));
    assert!(matches!(run(Linear::default(), 6, 8, 0), Err(Error::Parameter { name: "kernel", .. })));
    // The product has 2^32 outputs, a number that wraps to 0 in 32 bits.
    let rows = vec![0.0; 1 << 16];
    let error = match (1usize << 16).checked_mul(1 << 16) {
        Some(want) => Error::Length { what: "y", want, got: 0 },
        None => Error::Overflow { what: "y" },
    };
    assert_eq!(run(Linear::new(&rows[..], &rows[..]), 1 << 16, 0, 0), Err(error));

    let norm = LayerNorm { gamma: (&bias).into(), beta: (&bias).into(), eps: 1e-5, clip: false };
    let run =
        |norm: LayerNorm, x: usize, y: usize| norm.forward(Isa::Scalar, &vec![1.0; x], &mut vec![9.0; y]);
    assert_eq!(run(norm, 8, 8), Ok(()));
    assert_eq!(run(norm, 7, 7), Err(Error::Length { what: "x", want: 8, got: 7 }));
    assert_eq!(run(norm, 8, 7), Err(Error::Length { what: "y", want: 8, got: 7 }));
    let uneven = LayerNorm { beta: (&bias[1..]).into(), ..norm };
    assert_eq!(run(uneven, 8, 8), Err(Error::Length { what: "beta", want: 4, got: 3 }));
    assert_eq!(run(LayerNorm::default(), 8, 8), Err(Error::Zero { what: "the layer norm's size" }));
}
