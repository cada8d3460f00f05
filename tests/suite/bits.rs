//! Hashes of outputs and states, compared with constants: the bits are the same on every instruction set that
//! has a fused multiply-add, on every machine, and from one version to the next. Inputs are made from
//! integers, so that they too are the same everywhere.
//!
//! A test that fails prints its constants with the new values, for a change of the bits that is intended.

use chunkwise::backward::{Gradients, Inputs};
use chunkwise::conv::{self, Activation, CausalConv};
use chunkwise::gated_norm::{self, Gate, GatedNorm};
use chunkwise::nn::{AttentionKind, BlockWeights, Model, ModelConfig, OutputMode, Weights, init};
use chunkwise::{Config, Isa, Lightning, Normaliser, Rule, Shape, State, Tensors, isa, lightning};
use half::{bf16, f16};

use crate::common::*;

/// Hashes of attention in f32, bf16 and f16, for every pair of a map and a normaliser, in the order of
/// [`MAPS`] and [`NORMALISERS`].
const ATTENTION: [[u64; 3]; 18] = [
    [0x71f7_4efa_c626_0700, 0xf5ae_bc3b_b0e7_aaa8, 0x1fce_0cf4_7d2a_18e7],
    [0x235f_b716_998f_25fe, 0x5b1c_e628_758a_b82b, 0x6923_4125_389f_3cc9],
    [0xab92_b125_d995_c315, 0x0c34_ac04_3cf9_1d7c, 0x4bb8_5b96_c3d0_d435],
    [0x4263_0112_88da_5347, 0x95f0_46f3_75cf_e11d, 0x49cb_e755_f2fd_6c0f],
    [0x1d9f_1a8a_4c99_32a1, 0x765b_0931_d1c9_7655, 0x92d6_9c69_e0ee_164d],
    [0x2a66_0909_28f2_16b0, 0x6503_8729_27c9_ac23, 0x8efb_0b68_9d45_0965],
    [0x4aaf_5fc8_8917_f1a7, 0x4289_852a_b231_77cc, 0xda65_814b_4e5a_fc1f],
    [0x85d4_47b9_0ed5_90ba, 0x527c_45d3_e13c_5a03, 0x0baa_89c1_b755_1d1a],
    [0x2b83_0823_97b0_8b1a, 0x4bbc_450d_3be5_b141, 0x5e0e_b99b_077c_6f81],
    [0x3366_3479_e5d2_fb52, 0xb0a6_fea4_a52f_32ee, 0x1a5c_e55e_568e_d9db],
    [0xbfa6_799c_2020_dd54, 0x2806_78a3_36ea_68e2, 0x414a_3bf9_ca19_e01f],
    [0xb695_49b1_ca2b_e632, 0x5e82_9602_c9c3_bedb, 0x4dbe_4a8d_798a_482e],
    [0x4462_dcb4_cd21_f590, 0x5ca2_7097_b7ab_ac1a, 0x5c70_f640_7127_4e26],
    [0x6da3_94a6_4c21_a1d4, 0x22e4_b292_93dd_28e8, 0xc4c8_2cc6_9148_f257],
    [0xad94_7414_bd41_225c, 0x35e2_a2e4_7fc6_5bec, 0x3c0a_8653_25cb_7fad],
    [0x8898_bb91_648e_e5dc, 0xa13a_d90d_58cd_f20e, 0xcf82_aee3_6211_3b29],
    [0xf1eb_db2c_f986_8864, 0x947b_547e_eda1_06da, 0xf47b_de11_65f8_ecbb],
    [0xb76e_ce73_f514_8898, 0x55bf_114d_e5f3_1c0f, 0x550f_abbe_5ad8_e9a2],
];

/// Hashes of the gradients of attention in f32, for the same pairs.
const GRADIENTS: [u64; 18] = [
    0xfb75_7287_3f07_5643,
    0xc172_d43b_248e_db84,
    0x0173_d8e9_5b63_ca8e,
    0xa151_183a_f012_3b39,
    0x99f4_f200_bb37_d664,
    0x8c79_33d6_487a_b2d6,
    0x12e3_707e_1839_58e7,
    0x81bf_a57d_ecbd_cf2e,
    0xe437_3f07_f9c9_282b,
    0x694c_9e2c_c789_25fa,
    0x87a5_7f0b_9b60_7b92,
    0x2aa2_a8ba_12c8_2f34,
    0x7144_9411_ccdd_a393,
    0xf578_8b78_d18e_5fe5,
    0xd08b_9628_2f1d_3051,
    0x0671_280d_e5d2_2dbb,
    0x6526_b0de_9c67_f966,
    0x660e_2984_a93e_814c,
];

/// Hashes of attention with the compensated state in f32, for the same pairs.
const COMPENSATED: [u64; 18] = [
    0x1114_6431_007a_1876,
    0x81c1_0eb4_8a6a_d122,
    0xdaec_0df2_6c28_dd99,
    0x13d3_6a0c_7e0e_04cf,
    0x6fda_c631_d3fb_3a1e,
    0xe9e2_5521_a0c8_4975,
    0x3831_b445_41b7_2d07,
    0x770d_ad26_5ea0_ee50,
    0x5500_f14b_cfff_176c,
    0xce43_14a8_6be1_cf09,
    0xde21_ffce_271e_208a,
    0x4c4c_3d15_bb14_6d73,
    0x753e_22a8_41fe_5626,
    0x23aa_c1f9_8b3a_4f70,
    0x224d_b036_bfad_2055,
    0x896f_b9b2_6aec_cedf,
    0x48ef_3d18_976c_f292,
    0x978e_b54a_df5b_feb1,
];

/// Hashes of lightning attention in f32, bf16 and f16, for each of [`CHUNKS`].
const LIGHTNING: [[u64; 3]; 4] = [
    [0x029a_ce5a_0e3e_ba59, 0x06d5_d075_2d86_0455, 0x179b_3257_4b4b_e3ff],
    [0x5837_ce64_1476_e822, 0x821e_f58a_08ab_a825, 0xf985_5177_4f58_288d],
    [0x043b_1ef4_1e8b_f852, 0x22d7_60ef_9cb9_d3fe, 0x1fc0_b2ba_c0a1_366f],
    [0xf380_7393_6050_418b, 0x17e2_7ad5_13e9_6b90, 0x7877_5bc5_3356_fdb8],
];

/// Hashes of a model of lightning attention with odd sizes, which returns the last time step or all time
/// steps.
const LIGHTNING_MODELS: [u64; 2] = [0x8522_fc55_3c74_0eec, 0x7cd4_e4de_915a_b231];

/// Hashes of a model with odd sizes in each output mode, and of the default model.
const MODELS: [u64; 4] =
    [0xb5e3_4ed5_c745_0a79, 0x8efb_fba2_7e5f_d1f1, 0xc147_5eb3_eb5a_c31f, 0xa732_487f_12b3_4050];

/// Hashes of the causal convolution of each width, without and with SiLU.
const CONV: [[u64; 2]; 8] = [
    [0xdf9f_0cfc_a30d_0659, 0x7312_364b_a1af_c9b1],
    [0x8873_77c9_0fad_ae30, 0x86bc_8130_f353_bb7c],
    [0x4017_92b8_a8c0_7b35, 0x09b1_f62e_42be_21bf],
    [0x45f9_7055_6f5e_bd87, 0xa5ce_bdc3_d3cc_3c59],
    [0x40b3_6344_49eb_0a20, 0x9fc0_af09_1eac_7341],
    [0xaaa9_9e72_8707_b261, 0xf20c_72d2_05cc_19bd],
    [0x70e3_7a91_75f9_557a, 0xe30f_ac28_05e0_8a65],
    [0x9b57_dea9_a5cc_c54a, 0x2fbd_70dd_220a_0ce6],
];

/// Hashes of the gated RMS norm, with SiLU and with the logistic function.
const GATED_NORM: [u64; 2] = [0x7e2e_83c5_4445_08f0, 0x90a3_3349_35c5_4019];

/// No normaliser; the global one; chunks of one token, shorter than a tile, longer than a tile, and longer
/// than every sequence.
const NORMALISERS: [Normaliser; 6] = [
    Normaliser::None,
    Normaliser::Global { eps: 1e-6 },
    Normaliser::per_chunk(1),
    Normaliser::per_chunk(7),
    Normaliser::per_chunk(27),
    Normaliser::per_chunk(1000),
];

/// Chunks of one token, shorter than a vector, longer than a vector, and longer than every sequence.
const CHUNKS: [usize; 4] = [1, 7, 27, 1000];

/// B, T, H, K, V: less than a vector; more than two groups of K and more than a panel of V; one more than a
/// group of K and than the eight vectors of 16 lanes that decode sweeps at once, with more than four tiles of
/// tokens; whole vectors.
const SIZES: [[usize; 5]; 4] =
    [[2, 31, 3, 5, 3], [1, 53, 2, 35, 67], [1, 101, 1, 17, 129], [1, 30, 2, 32, 64]];

/// The 64-bit FNV-1a hash.
pub(crate) struct Hash(pub(crate) u64);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds the bits of some numbers; all NaNs count as the same one.
    pub(crate) fn add(&mut self, numbers: &[f32]) {
        for x in numbers {
            let bits = if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() };
            for byte in bits.to_le_bytes() {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    }
}

/// A generator of random integers (splitmix64), from which all other numbers are made.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of magnitude at most 4, mostly below 2. It is a sum of four integers of 20 bits, which is
    /// exact in f32.
    pub(crate) fn number(&mut self) -> f32 {
        let sum: u64 = (0..4).map(|_| self.next() >> 44).sum();
        (sum as i64 - (1 << 21)) as f32 / (1 << 19) as f32
    }

    pub(crate) fn numbers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.number()).collect()
    }
}

/// A case with random inputs, a few of which are special values if `special` is set.
fn case(config: Config, seed: u64, special: bool) -> Case {
    let Shape { batch, len, heads, key, value, .. } = config.shape;
    let mut random = Random(seed);
    let mut tensor = |dim| random.numbers(batch * len * heads * dim);
    let mut case = Case { config, q: tensor(key), k: tensor(key), v: tensor(value) };
    if special {
        // Values that are not finite are only in the second half, so that outputs of the first half remain
        // numbers.
        for tensor in [&mut case.q, &mut case.k, &mut case.v] {
            let half = tensor.len() / 2;
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                tensor[half + (random.next() % half as u64) as usize] = poison;
            }
            for small in [-0.0, 1e-40, -1e-40, f32::MIN_POSITIVE, -100.0, 3e38] {
                tensor[(random.next() % half as u64) as usize] = small;
            }
        }
    }
    case
}

/// Hashes the outputs and the last state of a forward, and checks that decoding token by token gives the
/// same.
fn attention<E: Number>(case: &Case, hash: &mut Hash) {
    let config = case.config;
    let Shape { len, q_strides, k_strides, v_strides, o_strides, .. } = config.shape;
    let (q, k, v) = (narrow::<E>(&case.q), narrow::<E>(&case.k), narrow::<E>(&case.v));
    let attention = case.attention();
    let scratch = &mut vec![f32::NAN; attention.scratch_len().max(attention.decode_scratch_len())];
    let (mut o, mut last) = (narrow::<E>(&case.output()), case.zero_state());
    let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]);
    attention.forward(tensors, State::Final(&mut last), scratch).expect("legal arguments");
    hash.add(&widen(&o));
    hash.add(&last);
    if config.rule.compensated {
        return;
    }
    let (mut decoded, mut state) = (narrow::<E>(&case.output()), case.zero_state());
    for t in 0..len {
        let (q, k) = (&q[t * q_strides.token..], &k[t * k_strides.token..]);
        let (v, o) = (&v[t * v_strides.token..], &mut decoded[t * o_strides.token..]);
        attention.decode(Tensors::new(q, k, v, o), &mut state, scratch).expect("legal arguments");
    }
    assert_eq!(first_difference(&widen(&decoded), &widen(&o)), None, "decode is forward: {config:?}");
    assert_eq!(first_difference(&state, &last), None, "decode is forward: {config:?}");
}

/// Checks that `hashes` returns `want` on every instruction set that has a fused multiply-add, and reports
/// which instruction sets were compared.
#[track_caller]
pub(crate) fn check<H: PartialEq + std::fmt::Debug>(
    name: &str,
    want: &H,
    hashes: impl Fn(Isa) -> H,
    print: impl Fn(&H) -> String,
) {
    for isa in isa::NAMES {
        match Isa::from_name(isa) {
            Ok(isa) if fused().any(|fused| fused == isa) => {
                report(&format!("bits: {name}: compared on {isa}"));
                let got = hashes(isa);
                assert!(
                    got == *want,
                    "{isa}: other bits. If they are meant to be:\nconst {name}{}\n",
                    print(&got)
                );
            }
            Ok(isa) => report(&format!("bits: {name}: NOT compared on {isa}, which rounds twice")),
            Err(_) => report(&format!("bits: {name}: NOT compared on {isa}, this machine does not have it")),
        }
    }
}

/// A hash as a literal of Rust.
pub(crate) fn literal(hash: u64) -> String {
    let digits = format!("{hash:016x}");
    format!("0x{}_{}_{}_{}", &digits[..4], &digits[4..8], &digits[8..12], &digits[12..])
}

fn rules() -> impl Iterator<Item = Rule> {
    MAPS.into_iter().flat_map(|map| NORMALISERS.map(|normaliser| Rule::linear(normaliser).feature_map(map)))
}

#[test]
fn hashes_of_attention() {
    let hashes = |isa| {
        let mut all = [[0; 3]; 18];
        for (rule, hashes) in rules().zip(&mut all) {
            let mut three = [Hash::new(), Hash::new(), Hash::new()];
            for (seed, [batch, len, heads, key, value]) in (1..).zip(SIZES) {
                let config = Config::new(rule, Shape::new(batch, len, heads, key, value)).isa(isa);
                for special in [false, true] {
                    let case = case(config, seed, special);
                    attention::<f32>(&case, &mut three[0]);
                    attention::<bf16>(&case, &mut three[1]);
                    attention::<f16>(&case, &mut three[2]);
                }
            }
            *hashes = three.map(|hash| hash.0);
        }
        all
    };
    check("ATTENTION", &ATTENTION, hashes, |all| {
        let rows = all.map(|row| format!("    [{}],\n", row.map(literal).join(", ")));
        format!(": [[u64; 3]; 18] = [\n{}];", rows.concat())
    });
}

/// The hash of the gradients of q, k, v and the initial state, where the gradient of o is v, that of the last
/// state is given, and the initial state is that after the same tokens.
fn gradients(case: &Case, hash: &mut Hash) {
    let Case { q, k, v, .. } = case;
    let attention = case.attention();
    let scratch = &mut vec![f32::NAN; attention.scratch_len().max(attention.backward_scratch_len())];
    let (mut o, mut initial) = (case.output(), case.zero_state());
    let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]);
    attention.forward(tensors, State::Final(&mut initial), scratch).expect("legal arguments");
    let last = Random(99).numbers(initial.len());
    let (mut dq, mut dk, mut dv, mut state) = (q.clone(), k.clone(), v.clone(), initial.clone());
    let inputs = Inputs::new(&q[..], &k[..], &v[..], &v[..]).initial(&initial).last(&last);
    let gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]).initial(&mut state);
    attention.backward(inputs, gradients, scratch).expect("legal arguments");
    for gradient in [dq, dk, dv, state] {
        hash.add(&gradient);
    }
}

#[test]
fn hashes_of_gradients() {
    let hashes = |isa| {
        let mut all = [0; 18];
        for (rule, hash) in rules().zip(&mut all) {
            let mut one = Hash::new();
            for (seed, [batch, len, heads, key, value]) in (1..).zip(SIZES) {
                let shape = Shape::new(batch, len, heads, key, value);
                gradients(&case(Config::new(rule, shape).isa(isa), seed, false), &mut one);
            }
            *hash = one.0;
        }
        all
    };
    check("GRADIENTS", &GRADIENTS, hashes, |all| {
        let rows = all.map(|hash| format!("    {},\n", literal(hash)));
        format!(": [u64; 18] = [\n{}];", rows.concat())
    });
}

#[test]
fn hashes_of_compensated_attention() {
    let hashes = |isa| {
        let mut all = [0; 18];
        for (rule, hash) in rules().zip(&mut all) {
            let mut one = Hash::new();
            for (seed, [batch, len, heads, key, value]) in (1..).zip(SIZES) {
                let shape = Shape::new(batch, len, heads, key, value);
                attention::<f32>(
                    &case(Config::new(rule.compensated(true), shape).isa(isa), seed, false),
                    &mut one,
                );
            }
            *hash = one.0;
        }
        all
    };
    check("COMPENSATED", &COMPENSATED, hashes, |all| {
        let rows = all.map(|hash| format!("    {},\n", literal(hash)));
        format!(": [u64; 18] = [\n{}];", rows.concat())
    });
}

/// The hash of the outputs of a forward and of every step, and of the last state, which must be the same with
/// packed weights.
fn model(isa: Isa, config: ModelConfig, batch: usize, steps: usize) -> u64 {
    const LEN: usize = 70;
    let mut flat = vec![0.0; config.parameters_len()];
    init(&config, 7, &mut flat).expect("a flat model");
    let mut random = Random(1);
    // The biases of a fresh model are zero, so that the hash would not depend on whether they are added.
    flat.iter_mut().for_each(|x| *x += random.number() / 64.0);
    let input = random.numbers(batch * LEN * config.embed_dim);
    let mut blocks = vec![BlockWeights::default(); config.num_layers];
    let stored = Weights::from_flat(&config, &flat, &mut blocks).expect("a flat model");
    let mut memory = vec![f32::NAN; stored.packed_len(isa)];
    let mut packed_blocks = vec![BlockWeights::default(); config.num_layers];
    let packed = stored.pack(isa, &mut packed_blocks, &mut memory).expect("enough memory");
    let [stored, packed] = [stored, packed].map(|weights| {
        let model = Model::new(config, weights, Some(isa), 1).expect("a legal model");
        let mut hash = Hash::new();
        let mut output = vec![f32::NAN; model.output_len(batch, LEN)];
        let scratch = &mut vec![f32::NAN; model.scratch_len(batch, LEN).expect("a legal size")];
        model.forward(batch, LEN, &input, &mut output, scratch).expect("legal arguments");
        hash.add(&output);
        let mut state = vec![0.0; model.state_len(batch).expect("a legal size")];
        let mut output = vec![f32::NAN; batch * config.output_size()];
        let scratch = &mut vec![f32::NAN; model.step_scratch_len(batch).expect("a legal size")];
        for t in 0..steps {
            let rows = input
                .chunks(LEN * config.embed_dim)
                .map(|rows| &rows[t * config.embed_dim..][..config.embed_dim]);
            model
                .step(batch, &rows.collect::<Vec<_>>().concat(), &mut state, &mut output, scratch)
                .expect("legal arguments");
            hash.add(&output);
        }
        hash.add(&state);
        hash.0
    });
    assert_eq!(stored, packed, "{isa}: packed weights are the same weights");
    stored
}

#[test]
fn hashes_of_models() {
    let odd =
        ModelConfig { hidden_size: 50, num_heads: 3, num_layers: 2, chunk_size: 20, ..ModelConfig::new(7) };
    let modes = [OutputMode::LastTimestep, OutputMode::All, OutputMode::Mean];
    let hashes = |isa| {
        let [last, all, mean] =
            modes.map(|output_mode| model(isa, ModelConfig { output_mode, ..odd }, 3, 70));
        [last, all, mean, model(isa, ModelConfig::new(256), 1, 5)]
    };
    check("MODELS", &MODELS, hashes, |all| {
        format!(": [u64; 4] = [\n{}];", all.map(|hash| format!("    {},\n", literal(hash))).concat())
    });
}

/// Hashes the outputs and states of two calls of a convolution, in one type.
fn convolution<E: Number>(config: conv::Config, random: &mut Random, hash: &mut Hash) {
    let conv::Config { batch, len, channels, width, .. } = config;
    let mut x = random.numbers(batch * len * channels);
    x[3] = f32::NAN;
    // Special values; SiLU underflows for -1e4 and minus infinity.
    (x[7], x[9], x[11], x[13]) = (-1e4, f32::NEG_INFINITY, 1e-40, -30.0);
    let x = narrow::<E>(&x);
    let (weight, bias) = (random.numbers(channels * width), random.numbers(channels));
    let mut state = random.numbers(batch * (width - 1) * channels);
    let conv = CausalConv::new(config).expect("a legal configuration");
    let mut y = vec![E::narrow(SENTINEL); x.len()];
    for _ in 0..2 {
        let tensors = conv::Tensors::new(&x[..], &weight, &mut y[..]).bias(&bias);
        conv.forward(tensors, State::Carried(&mut state)).expect("legal arguments");
        hash.add(&widen(&y));
        hash.add(&state);
    }
}

#[test]
fn hashes_of_convolutions() {
    let hashes = |isa| {
        let mut all = [[0; 2]; 8];
        for (width, hashes) in (1..).zip(&mut all) {
            *hashes = [Activation::None, Activation::Silu].map(|activation| {
                let (mut hash, mut random) = (Hash::new(), Random(width as u64));
                for [batch, len, channels] in [[2, 40, 5], [1, 33, 70], [1, 3, 16]] {
                    let config = conv::Config::new(batch, len, channels, width).isa(isa);
                    let first = conv::Strides::channels_first(len, channels);
                    for config in [config, config.strides(first, first)] {
                        let config = config.activation(activation);
                        convolution::<f32>(config, &mut random, &mut hash);
                        convolution::<bf16>(config, &mut random, &mut hash);
                        convolution::<f16>(config, &mut random, &mut hash);
                    }
                }
                hash.0
            });
        }
        all
    };
    check("CONV", &CONV, hashes, |all| {
        let rows = all.map(|row| format!("    [{}],\n", row.map(literal).join(", ")));
        format!(": [[u64; 2]; 8] = [\n{}];", rows.concat())
    });
}

/// Hashes the outputs and the last state of a forward, and checks that decoding token by token gives the
/// same.
fn lightning_attention<E: Number>(case: &Case, chunk: usize, hash: &mut Hash) {
    let Config { shape, execution, .. } = case.config;
    let mut config = lightning::Config::new(chunk, shape);
    config.execution = execution;
    let lightning = Lightning::new(config).expect("a legal configuration");
    let (q, k, v) = (narrow::<E>(&case.q), narrow::<E>(&case.k), narrow::<E>(&case.v));
    let scratch = &mut vec![f32::NAN; lightning.scratch_len().max(lightning.decode_scratch_len())];
    let (mut o, mut last) = (narrow::<E>(&case.output()), vec![0.0; lightning.state_len()]);
    let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]);
    lightning.forward(tensors, State::Final(&mut last), scratch).expect("legal arguments");
    hash.add(&widen(&o));
    hash.add(&last);
    let (mut decoded, mut state) = (narrow::<E>(&case.output()), vec![0.0; last.len()]);
    for t in 0..shape.len {
        let (q, k) = (&q[t * shape.q_strides.token..], &k[t * shape.k_strides.token..]);
        let (v, o) = (&v[t * shape.v_strides.token..], &mut decoded[t * shape.o_strides.token..]);
        lightning.decode(Tensors::new(q, k, v, o), &mut state, scratch).expect("legal arguments");
    }
    assert_eq!(first_difference(&widen(&decoded), &widen(&o)), None, "decode is forward: {config:?}");
    assert_eq!(first_difference(&state, &last), None, "decode is forward: {config:?}");
}

#[test]
fn hashes_of_lightning_attention() {
    let hashes = |isa| {
        CHUNKS.map(|chunk| {
            let mut three = [Hash::new(), Hash::new(), Hash::new()];
            for (seed, [batch, len, heads, key, value]) in (1..).zip(SIZES) {
                let rule = Rule::linear(Normaliser::None);
                let config = Config::new(rule, Shape::new(batch, len, heads, key, value)).isa(isa);
                for special in [false, true] {
                    let case = case(config, seed, special);
                    lightning_attention::<f32>(&case, chunk, &mut three[0]);
                    lightning_attention::<bf16>(&case, chunk, &mut three[1]);
                    lightning_attention::<f16>(&case, chunk, &mut three[2]);
                }
            }
            three.map(|hash| hash.0)
        })
    };
    check("LIGHTNING", &LIGHTNING, hashes, |all| {
        let rows = all.map(|row| format!("    [{}],\n", row.map(literal).join(", ")));
        format!(": [[u64; 3]; 4] = [\n{}];", rows.concat())
    });
}

#[test]
fn hashes_of_gated_norms() {
    fn norm<E: Number>(config: gated_norm::Config, random: &mut Random, hash: &mut Hash) {
        let len = config.batch * config.len * config.heads * config.size;
        let mut z = random.numbers(len);
        // Special values; the gates underflow for -1e4 and minus infinity.
        (z[0], z[1], z[2], z[3], z[4]) = (f32::NAN, f32::NEG_INFINITY, -1e4, 1e-40, -30.0);
        let (x, z, weight) =
            (narrow::<E>(&random.numbers(len)), narrow::<E>(&z), random.numbers(config.size));
        let mut y = vec![E::narrow(SENTINEL); len];
        let norm = GatedNorm::new(config).expect("a legal configuration");
        let tensors = gated_norm::Tensors::new(&x[..], &z[..], &mut y[..]);
        norm.forward(tensors.weight(&weight)).expect("legal arguments");
        hash.add(&widen(&y));
    }
    let hashes = |isa| {
        [Gate::Silu, Gate::Sigmoid].map(|gate| {
            let (mut hash, mut random) = (Hash::new(), Random(1));
            for size in [1, 15, 16, 17, 64, 100, 128, 1000] {
                let config = gated_norm::Config::new(1, 5, 2, size).gate(gate).isa(isa);
                norm::<f32>(config, &mut random, &mut hash);
                norm::<bf16>(config, &mut random, &mut hash);
                norm::<f16>(config, &mut random, &mut hash);
            }
            hash.0
        })
    };
    check("GATED_NORM", &GATED_NORM, hashes, |all| {
        format!(": [u64; 2] = [\n{}];", all.map(|hash| format!("    {},\n", literal(hash))).concat())
    });
}

#[test]
fn hashes_of_lightning_models() {
    let odd = ModelConfig {
        attention: AttentionKind::Lightning,
        hidden_size: 50,
        num_heads: 3,
        num_layers: 2,
        chunk_size: 20,
        ..ModelConfig::new(7)
    };
    let modes = [OutputMode::LastTimestep, OutputMode::All];
    let hashes = |isa| modes.map(|output_mode| model(isa, ModelConfig { output_mode, ..odd }, 3, 70));
    check("LIGHTNING_MODELS", &LIGHTNING_MODELS, hashes, |all| {
        format!(": [u64; 2] = [\n{}];", all.map(|hash| format!("    {},\n", literal(hash))).concat())
    });
}
