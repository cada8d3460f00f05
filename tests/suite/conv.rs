//! The causal convolution, compared with its definition in f64: every type, any strides, any cuts of a
//! stream, NaN and infinity. The modules below test the ONNX operator, ragged batches, states and errors.

#[cfg(feature = "files")]
mod onnx;
mod ragged;
mod refused;
mod states;

use chunkwise::conv::{Activation, CausalConv, Config, MAX_WIDTH, Strides, Tensors};
use chunkwise::{Isa, State};
use half::{bf16, f16};

use crate::common::*;

const ACTIVATIONS: [Activation; 2] = [Activation::None, Activation::Silu];

/// A configuration and dense tensors: x `[B, T, C]`, the weight, a bias, and the initial state.
#[derive(Clone)]
struct Conv {
    config: Config,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    initial: Vec<f32>,
}

/// The offset of an element.
fn offset(strides: Strides, [batch, token, channel]: [usize; 3]) -> usize {
    batch * strides.batch + token * strides.token + channel * strides.channel
}

/// The indices `[b, t, c]` of all elements, in order.
fn indices(config: &Config) -> impl Iterator<Item = [usize; 3]> + use<> {
    let Config { batch, len, channels, .. } = *config;
    (0..batch).flat_map(move |b| (0..len).flat_map(move |t| (0..channels).map(move |c| [b, t, c])))
}

/// A dense tensor in the layout of these strides, exactly as long as it must be, with `gap` between its
/// elements.
fn spread(config: &Config, strides: Strides, dense: &[f32], gap: f32) -> Vec<f32> {
    let Config { batch, len, channels, .. } = *config;
    if batch * len == 0 {
        return Vec::new();
    }
    let mut tensor = vec![gap; offset(strides, [batch - 1, len - 1, channels - 1]) + 1];
    for (at, x) in indices(config).zip(dense) {
        tensor[offset(strides, at)] = *x;
    }
    tensor
}

impl Conv {
    fn new(config: Config, seed: u64, bias: bool) -> Self {
        let Config { batch, len, channels, width, .. } = config;
        Self {
            config,
            x: normals(seed, batch * len * channels),
            weight: normals(seed + 1, channels * width),
            bias: bias.then(|| normals(seed + 2, channels)),
            initial: normals(seed + 3, batch * (width - 1) * channels),
        }
    }

    fn checked(&self) -> CausalConv {
        CausalConv::new(self.config).expect("a legal configuration")
    }

    /// Computes y from this state, in these types; returns it dense, after a check that nothing was written
    /// between its elements.
    #[track_caller]
    fn forward_in<X: Number, Y: Number>(&self, state: State<'_>) -> Vec<f32> {
        let Config { x_strides, y_strides, .. } = self.config;
        let x = narrow::<X>(&spread(&self.config, x_strides, &self.x, f32::NAN));
        let before = narrow::<Y>(&spread(&self.config, y_strides, &vec![SENTINEL; self.x.len()], SENTINEL));
        let mut y = before.clone();
        let tensors = self.with_bias(Tensors::new(&x[..], &self.weight, &mut y[..]));
        self.checked().forward(tensors, state).expect("legal arguments");
        let dense: Vec<f32> = indices(&self.config).map(|at| y[offset(y_strides, at)].widen()).collect();
        for at in indices(&self.config) {
            y[offset(y_strides, at)] = Y::narrow(SENTINEL);
        }
        assert!(untouched(&widen(&y), &widen(&before)), "written between elements of y: {:?}", self.config);
        dense
    }

    fn forward(&self, state: State<'_>) -> Vec<f32> {
        self.forward_in::<f32, f32>(state)
    }

    /// Computes y and the last state from the initial state.
    fn whole(&self) -> [Vec<f32>; 2] {
        let mut last = vec![SENTINEL; self.initial.len()];
        let y = self.forward(State::InitialFinal(&self.initial, &mut last));
        [y, last]
    }

    fn with_bias<'a>(&'a self, tensors: Tensors<'a>) -> Tensors<'a> {
        match &self.bias {
            Some(bias) => tensors.bias(bias),
            None => tensors,
        }
    }

    /// The same case with other strides.
    fn restrided(&self, x: Strides, y: Strides) -> Self {
        Self { config: self.config.strides(x, y), ..self.clone() }
    }

    /// Some of the tokens, dense, with this state before them.
    fn part(&self, tokens: std::ops::Range<usize>, initial: &[f32]) -> Self {
        let Config { len, channels, .. } = self.config;
        let rows = self.x.chunks(len * channels);
        let x = rows.flat_map(|x| &x[tokens.start * channels..tokens.end * channels]).copied().collect();
        let strides = Strides::token_major(tokens.len(), channels);
        let mut config = self.config.strides(strides, strides);
        config.len = tokens.len();
        Self { config, x, initial: initial.to_vec(), ..self.clone() }
    }

    /// The inputs of a channel, from those in the state on.
    fn inputs(&self, batch: usize, channel: usize) -> Vec<f64> {
        let Config { len, channels, width, .. } = self.config;
        let before = (0..width - 1).map(|row| self.initial[(batch * (width - 1) + row) * channels + channel]);
        let x = (0..len).map(|t| self.x[(batch * len + t) * channels + channel]);
        before.chain(x).map(f64::from).collect()
    }

    /// y by the definition, and for each of its elements the sum of the absolute values of its terms.
    fn oracle(&self) -> [Vec<f64>; 2] {
        let Config { width, activation, .. } = self.config;
        let [mut y, mut size] = [vec![], vec![]];
        for [b, t, c] in indices(&self.config) {
            let inputs = &self.inputs(b, c)[t..t + width];
            let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[c]));
            let terms =
                inputs.iter().zip(&self.weight[c * width..]).map(|(x, weight)| x * f64::from(*weight));
            let sum = terms.clone().sum::<f64>() + bias;
            size.push(terms.map(f64::abs).sum::<f64>() + bias.abs());
            y.push(if activation == Activation::Silu { sum / (1.0 + (-sum).exp()) } else { sum });
        }
        [y, size]
    }

    /// The last state by the definition.
    fn oracle_state(&self) -> Vec<f32> {
        let Config { batch, len, channels, width, .. } = self.config;
        let mut state = Vec::new();
        for (b, row) in (0..batch).flat_map(|b| (0..width - 1).map(move |row| (b, row))) {
            state.extend((0..channels).map(|c| self.inputs(b, c)[len + row] as f32));
        }
        state
    }
}

/// Every width; numbers of channels below, at and above vectors and blocks; fewer tokens than taps, and more
/// than a tile.
fn sizes() -> impl Iterator<Item = [usize; 4]> {
    let sizes = [[1, 1, 1], [2, 3, 7], [1, 40, 16], [3, 37, 1], [2, 70, 70], [1, 9, 64], [1, 31, 300]];
    (1..=MAX_WIDTH).flat_map(move |width| sizes.map(|[batch, len, channels]| [batch, len, channels, width]))
}

/// Each size with and without bias and SiLU.
fn all(isa: Isa) -> impl Iterator<Item = Conv> {
    sizes().flat_map(move |[batch, len, channels, width]| {
        let options =
            ACTIVATIONS.into_iter().flat_map(|activation| [(activation, false), (activation, true)]);
        options.map(move |(activation, bias)| {
            let config = Config::new(batch, len, channels, width).activation(activation).isa(isa);
            Conv::new(config, (width * 10 + len) as u64, bias)
        })
    })
}

#[test]
fn against_the_definition() {
    for isa in Isa::available() {
        for conv in all(isa) {
            let [y, last] = conv.whole();
            let [want, size] = conv.oracle();
            // A fused operation rounds by at most half a unit, two separate operations by twice that. The
            // slope of SiLU is below 1.1.
            let bound = 1.1 * (2 * conv.config.width + 1) as f64 / f64::from(1 << 24);
            for ((y, want), size) in y.iter().zip(&want).zip(size) {
                let error = (f64::from(*y) - want).abs();
                let bound = bound * size + 5e-7 * want.abs();
                assert!(error <= bound, "{y} {want}: {:?}", conv.config);
            }
            assert!(untouched(&last, &conv.oracle_state()), "{:?}", conv.config);
        }
    }
}

#[test]
fn every_kind_of_state() {
    for isa in Isa::available() {
        for conv in all(isa) {
            let [y, last] = conv.whole();
            assert_eq!(first_difference(&conv.forward(State::Initial(&conv.initial)), &y), None);
            let mut carried = conv.initial.clone();
            assert_eq!(first_difference(&conv.forward(State::Carried(&mut carried)), &y), None);
            assert!(untouched(&carried, &last), "{:?}", conv.config);
            // A state of zeros is the state before the first token.
            let zero = Conv { initial: vec![0.0; last.len()], ..conv };
            let [y, last] = zero.whole();
            assert_eq!(first_difference(&zero.forward(State::Zero), &y), None);
            let mut other = vec![SENTINEL; last.len()];
            assert_eq!(first_difference(&zero.forward(State::Final(&mut other)), &y), None);
            assert!(untouched(&other, &last), "{:?}", zero.config);
        }
    }
}

/// Inputs of 16 bits give the bits that the same numbers in f32 give, and outputs of 16 bits are those of
/// f32, rounded.
#[test]
fn types() {
    fn check<X: Number, Y: Number>(conv: &Conv) {
        let conv = &Conv { x: widen(&narrow::<X>(&conv.x)), ..conv.clone() };
        let (mut want_last, mut last) = (conv.initial.clone(), conv.initial.clone());
        let want = widen(&narrow::<Y>(&conv.forward(State::Carried(&mut want_last))));
        let got = conv.forward_in::<X, Y>(State::Carried(&mut last));
        assert_eq!(first_difference(&got, &want), None, "{} to {}: {:?}", X::NAME, Y::NAME, conv.config);
        assert!(untouched(&last, &want_last), "{}: {:?}", X::NAME, conv.config);
    }
    for isa in Isa::available() {
        // The width has no influence on how types are converted.
        for conv in all(isa).filter(|conv| matches!(conv.config.width, 1 | 4)) {
            let Config { len, channels, .. } = conv.config;
            let gaps = Strides { batch: len * (3 * channels + 2), token: 3 * channels + 2, channel: 3 };
            let first = Strides::channels_first(len, channels);
            for conv in [conv.clone(), conv.restrided(first, first), conv.restrided(gaps, gaps)] {
                check::<bf16, bf16>(&conv);
                check::<f16, f16>(&conv);
                check::<bf16, f32>(&conv);
                check::<f32, f16>(&conv);
                check::<f16, bf16>(&conv);
            }
        }
    }
}

/// Strides that nest the axes in any order, with and without gaps, and those that have constructors.
fn layouts(config: &Config) -> Vec<Strides> {
    let Config { batch, len, channels, .. } = *config;
    let mut all = vec![
        Strides::token_major(len, channels),
        Strides::channels_first(len, channels),
        Strides::packed(len, channels + 5),
    ];
    let sizes = [batch, len, channels];
    for order in [[2, 1, 0], [1, 2, 0], [0, 1, 2], [2, 0, 1], [0, 2, 1]] {
        for gap in [1, 3] {
            let (mut strides, mut covered) = ([0; 3], 1);
            for axis in order {
                strides[axis] = covered + gap - 1;
                covered += strides[axis] * (sizes[axis] - 1);
            }
            all.push(Strides { batch: strides[0], token: strides[1], channel: strides[2] });
        }
    }
    all
}

#[test]
fn any_strides_give_the_same_bits() {
    for isa in Isa::available() {
        // The last one has more tokens than a tile.
        for [batch, len, channels] in [[2, 7, 5], [2, 40, 70], [1, 1, 20], [3, 31, 1], [1, 4500, 3]] {
            for width in [1, 3, 4, 8] {
                let config = Config::new(batch, len, channels, width).activation(Activation::Silu).isa(isa);
                let conv = Conv::new(config, 5, true);
                let [want, want_last] = conv.whole();
                let layouts = layouts(&config);
                for (at, x) in layouts.iter().enumerate() {
                    for y in [*x, layouts[at % 2], layouts[(at * 5 + 3) % layouts.len()]] {
                        let other = conv.restrided(*x, y);
                        let [got, last] = other.whole();
                        assert_eq!(first_difference(&got, &want), None, "{:?}", other.config);
                        assert!(untouched(&last, &want_last), "{:?}", other.config);
                    }
                }
            }
        }
    }
}

/// Elements of x may overlap; here all sequences are the same.
#[test]
fn inputs_may_share_elements() {
    let mut config = Config::new(3, 20, 9, 4);
    config.x_strides = Strides { batch: 0, token: 9, channel: 1 };
    let conv = CausalConv::new(config).expect("a legal configuration");
    let (x, weight, mut y) = (normals(1, 20 * 9), normals(2, 9 * 4), vec![0.0; 3 * 20 * 9]);
    conv.forward(Tensors::new(&x[..], &weight, &mut y[..]), State::Zero).expect("legal arguments");
    let (first, others) = y.split_at(20 * 9);
    assert!(others.chunks(20 * 9).all(|other| untouched(first, other)));
    assert!(first.iter().any(|y| *y != 0.0));
}

#[test]
fn any_cut_gives_the_same_bits() {
    for isa in Isa::available() {
        for conv in all(isa) {
            let Config { batch, len, channels, .. } = conv.config;
            let [want, want_last] = conv.whole();
            for piece in [1, 2, 5, 30] {
                let mut y = vec![vec![]; batch];
                let mut state = conv.initial.clone();
                for begin in (0..len).step_by(piece) {
                    let part = conv.part(begin..len.min(begin + piece), &state);
                    let got = part.forward(State::Carried(&mut state));
                    y.iter_mut()
                        .zip(got.chunks(part.config.len * channels))
                        .for_each(|(y, got)| y.extend(got));
                }
                assert_eq!(first_difference(&y.concat(), &want), None, "{piece}: {:?}", conv.config);
                assert!(untouched(&state, &want_last), "{piece}: {:?}", conv.config);
            }
        }
    }
}

/// The tokens are decoded one by one from a longer tensor, in different layouts.
#[test]
fn decode_is_forward() {
    for isa in Isa::available() {
        for conv in all(isa) {
            let Config { len, channels, .. } = conv.config;
            let first = Strides::channels_first(len, channels);
            for conv in
                [conv.clone(), conv.restrided(first, first), conv.restrided(first, conv.config.y_strides)]
            {
                let Config { x_strides, y_strides, .. } = conv.config;
                let [want, want_last] = conv.whole();
                let x = spread(&conv.config, x_strides, &conv.x, f32::NAN);
                let mut y = spread(&conv.config, y_strides, &vec![SENTINEL; want.len()], SENTINEL);
                let mut state = conv.initial.clone();
                let checked = conv.checked();
                for t in 0..len {
                    let (x, y) = (&x[t * x_strides.token..], &mut y[t * y_strides.token..]);
                    let tensors = conv.with_bias(Tensors::new(x, &conv.weight, y));
                    checked.decode(tensors, &mut state).expect("legal arguments");
                }
                let got: Vec<f32> = indices(&conv.config).map(|at| y[offset(y_strides, at)]).collect();
                assert_eq!(first_difference(&got, &want), None, "{:?}", conv.config);
                assert!(untouched(&state, &want_last), "{:?}", conv.config);
            }
        }
    }
}

/// NaN and infinity reach the outputs of W tokens, and change no bit of other outputs.
#[test]
fn nan_is_causal() {
    for isa in Isa::available() {
        for conv in all(isa).filter(|conv| conv.config.len > 20) {
            let Config { batch, len, channels, width, .. } = conv.config;
            let [want, _] = conv.whole();
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let (b, t, c) = (batch - 1, 17, channels / 2);
                let mut poisoned = conv.clone();
                poisoned.x[(b * len + t) * channels + c] = poison;
                let [got, last] = poisoned.whole();
                for (at, (got, want)) in indices(&conv.config).zip(got.iter().zip(&want)) {
                    let hit = at[0] == b && (t..t + width).contains(&at[1]) && at[2] == c;
                    if !hit {
                        assert_eq!(got.to_bits(), want.to_bits(), "{at:?}: {:?}", conv.config);
                    } else if poison.is_nan() {
                        assert!(got.is_nan(), "{at:?}: {:?}", conv.config);
                    } else {
                        // SiLU of minus infinity is -0; other infinities remain infinite.
                        let weight = conv.weight[c * width + width - 1 - (at[1] - t)];
                        let sum = poison * weight.signum();
                        let silu = conv.config.activation == Activation::Silu;
                        let want = if silu && sum < 0.0 { -0.0 } else { sum };
                        assert_eq!(got.to_bits(), want.to_bits(), "{at:?}: {:?}", conv.config);
                    }
                }
                // The state no longer contains the value.
                assert!(last.iter().all(|x| x.is_finite()));
            }
        }
    }
}

/// All instruction sets that have a fused multiply-add give the same bits; the hashes in `bits.rs` fix these
/// bits.
#[test]
fn instruction_sets_agree() {
    let Some(first) = fused().next() else { return report("conv: no instruction set that fuses") };
    for isa in fused() {
        for (conv, other) in all(first).zip(all(isa)) {
            assert_eq!(
                first_difference(&conv.whole()[0], &other.whole()[0]),
                None,
                "{isa}: {:?}",
                conv.config
            );
        }
    }
}
