//! The causal convolution: against its definition in f64, in every type, under any strides, however a stream is cut, ragged or
//! not; what is refused; what NaN and infinity do.

use chunkwise::conv::{Activation, CausalConv, Config, MAX_WIDTH, Strides, Tensors};
use chunkwise::{Error, Isa, Result, State};
use half::{bf16, f16};

use crate::common::*;

const ACTIVATIONS: [Activation; 2] = [Activation::None, Activation::Silu];

/// A configuration, and dense tensors: x `[B, T, C]`, the weight, a bias, and a state to begin with.
#[derive(Clone)]
struct Conv {
    config: Config,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    initial: Vec<f32>,
}

/// Where an element lies.
fn offset(strides: Strides, [batch, token, channel]: [usize; 3]) -> usize {
    batch * strides.batch + token * strides.token + channel * strides.channel
}

/// Places `[B, T, C]`, in order.
fn indices(config: &Config) -> impl Iterator<Item = [usize; 3]> + use<> {
    let Config { batch, len, channels, .. } = *config;
    (0..batch).flat_map(move |b| (0..len).flat_map(move |t| (0..channels).map(move |c| [b, t, c])))
}

/// A dense tensor under these strides, and `gap` between its elements; exactly as long as it must be.
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

    /// y from these states, dense, after a check that nothing was written between its elements.
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
        assert!(untouched(&widen(&y), &widen(&before)), "between the elements of y: {:?}", self.config);
        dense
    }

    fn forward(&self, state: State<'_>) -> Vec<f32> {
        self.forward_in::<f32, f32>(state)
    }

    /// y and the last state, from the initial one.
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

    /// The same numbers under other strides.
    fn restrided(&self, x: Strides, y: Strides) -> Self {
        Self { config: self.config.strides(x, y), ..self.clone() }
    }

    /// Some of the tokens, dense, and this state before them.
    fn part(&self, tokens: std::ops::Range<usize>, initial: &[f32]) -> Self {
        let Config { len, channels, .. } = self.config;
        let rows = self.x.chunks(len * channels);
        let x = rows.flat_map(|x| &x[tokens.start * channels..tokens.end * channels]).copied().collect();
        let strides = Strides::token_major(tokens.len(), channels);
        let mut config = self.config.strides(strides, strides);
        config.len = tokens.len();
        Self { config, x, initial: initial.to_vec(), ..self.clone() }
    }

    /// The inputs of a channel, from the state's on.
    fn inputs(&self, batch: usize, channel: usize) -> Vec<f64> {
        let Config { len, channels, width, .. } = self.config;
        let before = (0..width - 1).map(|row| self.initial[(batch * (width - 1) + row) * channels + channel]);
        let x = (0..len).map(|t| self.x[(batch * len + t) * channels + channel]);
        before.chain(x).map(f64::from).collect()
    }

    /// The definition: y, and for each the sum of the sizes of its terms.
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

    /// What the state must be at the end.
    fn oracle_state(&self) -> Vec<f32> {
        let Config { batch, len, channels, width, .. } = self.config;
        let mut state = Vec::new();
        for (b, row) in (0..batch).flat_map(|b| (0..width - 1).map(move |row| (b, row))) {
            state.extend((0..channels).map(|c| self.inputs(b, c)[len + row] as f32));
        }
        state
    }
}

/// Every width; channels below, at and beyond vectors and blocks; tokens fewer than taps and more than a tile.
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
            // Half a unit for each fused operation, twice that for two roundings; SiLU's slope is below 1.1.
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
            // Zeros are the state before the first token.
            let zero = Conv { initial: vec![0.0; last.len()], ..conv };
            let [y, last] = zero.whole();
            assert_eq!(first_difference(&zero.forward(State::Zero), &y), None);
            let mut other = vec![SENTINEL; last.len()];
            assert_eq!(first_difference(&zero.forward(State::Final(&mut other)), &y), None);
            assert!(untouched(&other, &last), "{:?}", zero.config);
        }
    }
}

/// A tensor of 16 bits has the bits of its numbers in f32, and an output of 16 bits those of the f32 one, rounded.
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
        // The widths differ in nothing that has to do with types.
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

/// Strides that nest the axes in any order, with gaps, and those that have names.
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
        // The last is longer than a tile along tokens.
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

/// Inputs may be read more than once.
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

/// Token by token where they lie in a longer tensor, of any layout.
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

/// Sequences of different lengths, some of none, are what they are alone.
#[test]
fn ragged_is_one_by_one() {
    let ends = [0, 0, 1, 40, 40, 43, 110, 110_u32];
    let (batch, len) = (ends.len() - 1, 110);
    for isa in Isa::available() {
        for (channels, width) in [(1, 4), (20, 1), (70, 4), (64, 8), (33, 2)] {
            for layout in 0..3 {
                let strides = [
                    Strides::packed(len, channels + 3),
                    Strides::channels_first(len, channels),
                    Strides { batch: 0, token: 2 * channels, channel: 2 },
                ][layout];
                // Whatever is said of the batch plays no part.
                let strides = Strides { batch: [0, 1, usize::MAX][layout], ..strides };
                let config = Config::new(batch, len, channels, width).activation(Activation::Silu).isa(isa);
                let mut conv = Conv::new(config.strides(strides, strides), 3, true);
                conv.x.truncate(len * channels);
                let one = |t, c| t * strides.token + c * strides.channel;
                let mut x = vec![f32::NAN; one(len - 1, channels - 1) + 1];
                (0..len * channels).for_each(|at| x[one(at / channels, at % channels)] = conv.x[at]);
                let (mut y, mut last) = (vec![SENTINEL; x.len()], vec![SENTINEL; conv.initial.len()]);
                let tensors = conv.with_bias(Tensors::new(&x[..], &conv.weight, &mut y[..])).sequences(&ends);
                let state = State::InitialFinal(&conv.initial, &mut last);
                conv.checked().forward(tensors, state).expect("legal arguments");
                let mut carried = conv.initial.clone();
                let mut again = vec![SENTINEL; x.len()];
                let tensors =
                    conv.with_bias(Tensors::new(&x[..], &conv.weight, &mut again[..])).sequences(&ends);
                conv.checked().forward(tensors, State::Carried(&mut carried)).expect("legal arguments");
                assert!(untouched(&again, &y) && untouched(&carried, &last), "{:?}", conv.config);
                let rows = (width - 1) * channels;
                for (b, ends) in ends.windows(2).enumerate() {
                    let tokens = ends[0] as usize..ends[1] as usize;
                    let dense = Strides::token_major(tokens.len(), channels);
                    let mut alone = conv.restrided(dense, dense);
                    (alone.config.batch, alone.config.len) = (1, tokens.len());
                    alone.x = conv.x[tokens.start * channels..tokens.end * channels].to_vec();
                    alone.initial = conv.initial[b * rows..][..rows].to_vec();
                    let [want, want_last] = alone.whole();
                    let got: Vec<f32> = (tokens.start * channels..tokens.end * channels)
                        .map(|at| y[one(at / channels, at % channels)])
                        .collect();
                    assert_eq!(first_difference(&got, &want), None, "{b}: {:?}", conv.config);
                    assert!(untouched(&last[b * rows..][..rows], &want_last), "{b}: {:?}", conv.config);
                }
                (0..len * channels).for_each(|at| y[one(at / channels, at % channels)] = SENTINEL);
                assert!(untouched(&y, &vec![SENTINEL; x.len()]), "{:?}", conv.config);
            }
        }
    }
}

/// A sequence without tokens may lie behind the last token, where no stride leads any more.
#[test]
fn ragged_of_one_token() {
    for isa in Isa::available() {
        let mut config = Config::new(3, 1, 300, 2).isa(isa);
        let strides = Strides { token: usize::MAX, ..config.x_strides };
        config = config.strides(strides, strides);
        let conv = CausalConv::new(config).expect("a legal configuration");
        let (x, weight, mut y) = (normals(1, 300), normals(2, 600), vec![SENTINEL; 300]);
        let mut state = vec![0.0; 900];
        let tensors = Tensors::new(&x[..], &weight, &mut y[..]).sequences(&[0, 0, 1, 1]);
        conv.forward(tensors, State::Carried(&mut state)).expect("legal arguments");
        assert!(untouched(&state, &[&[0.0; 300], &x[..], &[0.0; 300]].concat()));
        assert!(y.iter().zip(&x).zip(weight.chunks(2)).all(|((y, x), weight)| *y == weight[1] * x));
    }
}

/// ONNX's states, and those of transformers with a column more.
#[test]
fn states_of_others() {
    for [batch, _, channels, width] in sizes() {
        let conv = CausalConv::new(Config::new(batch, 1, channels, width)).expect("a legal configuration");
        let rows = width - 1;
        let full = normals(1, batch * channels * width);
        let want: Vec<f32> = (0..batch)
            .flat_map(|b| (0..rows).flat_map(move |row| (0..channels).map(move |c| (b, row, c))))
            .map(|(b, row, c)| full[(b * channels + c) * width + 1 + row])
            .collect();
        let mut state = vec![SENTINEL; conv.state_len()];
        conv.state_from_full(&full, &mut state).expect("states of their lengths");
        assert!(untouched(&state, &want), "{batch} {channels} {width}");
        let columns: Vec<f32> = full.chunks(width).flat_map(|columns| &columns[1..]).copied().collect();
        let mut back = vec![SENTINEL; columns.len()];
        conv.state_to_channels_first(&state, &mut back).expect("states of their lengths");
        assert!(untouched(&back, &columns), "{batch} {channels} {width}");
        let mut state = vec![SENTINEL; conv.state_len()];
        conv.state_from_channels_first(&columns, &mut state).expect("states of their lengths");
        assert!(untouched(&state, &want), "{batch} {channels} {width}");

        // Of other lengths: refused, and nothing written.
        let longer = [&full[..], &[0.0]].concat();
        let mut same = state.clone();
        let (want, got) = (full.len(), longer.len());
        let error = Error::Length { what: "the state to read", want, got };
        assert_eq!(conv.state_from_full(&longer, &mut same), Err(error));
        let error = Error::Length { what: "the state to read", want: columns.len(), got };
        assert_eq!(conv.state_from_channels_first(&longer, &mut same), Err(error));
        assert!(untouched(&same, &state));
        same.push(1.0);
        let (want, got) = (state.len(), same.len());
        let error = Error::Length { what: "state", want, got };
        assert_eq!(conv.state_from_full(&full, &mut same), Err(error));
        assert_eq!(conv.state_to_channels_first(&same, &mut back), Err(error));
        let error = Error::Length { what: "the state to write", want, got };
        assert_eq!(conv.state_to_channels_first(&state, &mut same), Err(error));
        assert!(untouched(&same, &[&state[..], &[1.0]].concat()) && untouched(&back, &columns));
    }
}

/// NaN and infinity reach the outputs of W tokens, and the bits of no other.
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
                        // SiLU of minus infinity is -0; all else that is infinite stays so.
                        let weight = conv.weight[c * width + width - 1 - (at[1] - t)];
                        let sum = poison * weight.signum();
                        let silu = conv.config.activation == Activation::Silu;
                        let want = if silu && sum < 0.0 { -0.0 } else { sum };
                        assert_eq!(got.to_bits(), want.to_bits(), "{at:?}: {:?}", conv.config);
                    }
                }
                // It has left the window.
                assert!(last.iter().all(|x| x.is_finite()));
            }
        }
    }
}

#[test]
fn no_tokens() {
    for isa in Isa::available() {
        for (batch, len) in [(2, 0), (0, 3), (0, 0)] {
            for width in [1, 4] {
                let conv = Conv::new(Config::new(batch, len, 5, width).isa(isa), 1, true);
                assert_eq!(conv.checked().state_len(), batch * (width - 1) * 5);
                let [y, last] = conv.whole();
                assert!(y.is_empty() && untouched(&last, &conv.initial));
                let mut carried = conv.initial.clone();
                conv.forward(State::Carried(&mut carried));
                assert!(untouched(&carried, &conv.initial));
                let mut last = vec![SENTINEL; last.len()];
                conv.forward(State::Final(&mut last));
                assert!(untouched(&last, &vec![0.0; last.len()]));
            }
        }
    }
    // More sequences than could be walked through.
    let conv = CausalConv::new(Config::new(usize::MAX / 64, 0, 1, 2)).expect("a legal configuration");
    conv.forward(Tensors::new(&[0.0; 0], &[1.0, 2.0], &mut [0.0; 0]), State::Zero).expect("nothing to do");
    // Ragged ones without tokens.
    let conv = CausalConv::new(Config::new(2, 0, 1, 2)).expect("a legal configuration");
    let (mut last, tensors) = ([SENTINEL; 2], Tensors::new(&[0.0; 0], &[1.0, 2.0], &mut [0.0; 0]));
    conv.forward(tensors.sequences(&[0, 0, 0]), State::InitialFinal(&[3.0, 4.0], &mut last))
        .expect("nothing to do");
    assert_eq!(last, [3.0, 4.0]);
}

#[test]
fn configurations_that_are_refused() {
    let refused = |config: Config| CausalConv::new(config).err().unwrap_or_else(|| panic!("{config:?}"));
    let accepted = |config: Config| assert!(CausalConv::new(config).is_ok(), "{config:?}");
    let config = Config::new(2, 3, 5, 4);
    accepted(config);
    assert_eq!(refused(Config::new(2, 3, 0, 4)), Error::Zero { what: "channels" });
    assert_eq!(refused(Config::new(2, 3, 5, 0)), Error::Zero { what: "width" });
    accepted(Config::new(2, 3, 5, MAX_WIDTH));
    for width in [MAX_WIDTH + 1, usize::MAX] {
        assert_eq!(refused(Config::new(2, 3, 5, width)), Error::Width { width });
    }
    let strides = |batch, token, channel| Strides { batch, token, channel };
    let y = |y| config.strides(config.x_strides, y);
    for overlapping in [strides(15, 4, 1), strides(15, 1, 2), strides(15, 5, 0), strides(15, 0, 1)] {
        assert_eq!(refused(y(overlapping)), Error::Overlap { what: "y" });
    }
    accepted(y(strides(15, 1, 3)));
    accepted(config.strides(strides(0, 0, 0), config.y_strides));
    const MAX: usize = usize::MAX;
    assert_eq!(refused(y(strides(0, MAX / 2, 1))), Error::Overflow { what: "y" });
    assert_eq!(refused(config.strides(strides(0, 1, MAX), config.y_strides)), Error::Overflow { what: "x" });
    for n in [MAX, MAX / 2, MAX / 4 + 1, MAX / 8 + 1] {
        for [batch, len, channels, width] in
            [[n, 1, 1, 4], [1, 1, n, 4], [n, n, n, 4], [1, n, 2, 1], [0, n, n, 1]]
        {
            let error = refused(Config::new(batch, len, channels, width));
            assert!(matches!(error, Error::Overflow { .. }), "{error}: {batch} {len} {channels}");
        }
    }
    for isa in Isa::available() {
        let conv = CausalConv::new(config.isa(isa)).expect("a legal configuration");
        assert_eq!((conv.isa(), *conv.config()), (isa, config.isa(isa)));
    }
}

/// All that a call is given.
#[derive(Clone)]
struct Given {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    sequences: Option<Vec<u32>>,
    initial: Vec<f32>,
    last: Vec<f32>,
    y: Vec<f32>,
}

impl Given {
    fn run(&mut self, conv: &CausalConv, decode: bool) -> Result<()> {
        let Self { x, weight, bias, sequences, initial, last, y } = self;
        let mut tensors = Tensors::new(&x[..], weight, &mut y[..]).bias(bias);
        if let Some(sequences) = sequences {
            tensors = tensors.sequences(sequences);
        }
        if decode {
            conv.decode(tensors, last)
        } else {
            conv.forward(tensors, State::InitialFinal(initial, last))
        }
    }

    /// The error of this with a change, of a call that has written nothing.
    #[track_caller]
    fn refused(&self, conv: &CausalConv, decode: bool, change: impl FnOnce(&mut Self)) -> Error {
        let mut given = self.clone();
        change(&mut given);
        let before = given.clone();
        let error = given.run(conv, decode).expect_err("what is wrong must be refused");
        assert!(untouched(&given.y, &before.y) && untouched(&given.last, &before.last), "{error}");
        error
    }
}

#[test]
fn calls_that_are_refused() {
    // B 2, T 3, C 5, W 4.
    let config = Config::new(2, 3, 5, 4);
    let conv = CausalConv::new(config).expect("a legal configuration");
    for decode in [false, true] {
        let tokens = if decode { 1 } else { 3 };
        // The second sequence of a decode begins where it does in a forward.
        let rows = 15 + 5 * tokens;
        let given = Given {
            x: normals(1, rows),
            weight: normals(2, 20),
            bias: normals(3, 5),
            sequences: None,
            initial: normals(4, 30),
            last: normals(5, 30),
            y: vec![SENTINEL; rows],
        };
        given.clone().run(&conv, decode).expect("as much as it must be");
        let short = |what| Error::TooShort { what, need: rows, got: rows - 1 };
        let refused = |change: fn(&mut Given)| given.refused(&conv, decode, change);
        assert_eq!(refused(|g| drop(g.x.pop())), short("x"));
        assert_eq!(refused(|g| drop(g.y.pop())), short("y"));
        for (what, want, lengthen) in [
            ("weight", 20, (|g: &mut Given, n| g.weight.resize(n, 0.0)) as fn(&mut Given, usize)),
            ("bias", 5, |g, n| g.bias.resize(n, 0.0)),
            ("state", 30, |g, n| g.last.resize(n, 0.0)),
        ] {
            for got in [want - 1, want + 1, 0] {
                let error = given.refused(&conv, decode, |g| lengthen(g, got));
                assert_eq!(error, Error::Length { what, want, got });
            }
        }
        if decode {
            assert_eq!(refused(|g| g.sequences = Some(vec![0, 1, 1])), Error::Sequences);
            continue;
        }
        assert_eq!(refused(|g| drop(g.initial.pop())), Error::Length { what: "state", want: 30, got: 29 });
        // Ragged: of the 3 tokens, for the 2 sequences.
        let mut ragged = given.clone();
        ragged.sequences = Some(vec![0, 1, 3]);
        (ragged.x.truncate(15), ragged.y.truncate(15));
        ragged.clone().run(&conv, false).expect("as much as it must be");
        for wrong in [[1, 1, 3], [0, 1, 2], [0, 1, 4], [0, 4, 3], [3, 1, 0]] {
            let error = ragged.refused(&conv, false, |g| g.sequences = Some(wrong.to_vec()));
            assert_eq!(error, Error::Sequences, "{wrong:?}");
        }
        for wrong in [&[][..], &[0], &[0, 3], &[0, 1, 2, 3]] {
            let error = ragged.refused(&conv, false, |g| g.sequences = Some(wrong.to_vec()));
            assert_eq!(error, Error::Length { what: "sequences", want: 3, got: wrong.len() });
        }
        let error = ragged.refused(&conv, false, |g| drop(g.x.pop()));
        assert_eq!(error, Error::TooShort { what: "x", need: 15, got: 14 });
        // Where sequences overlap is known when it is known that they are not ragged.
        let mut overlapping = config;
        overlapping.y_strides.batch = 14;
        let conv = CausalConv::new(overlapping).expect("of one sequence");
        assert_eq!(given.refused(&conv, false, |_| ()), Error::Overlap { what: "y" });
        ragged.clone().run(&conv, false).expect("the batch's stride plays no part");
    }
}

#[test]
fn messages() {
    for (error, text) in [
        (Error::Width { width: 9 }, "a convolution of 9 taps: at most 8 are possible"),
        (
            Error::Sequences,
            "the sequences must go from 0 to the number of tokens and never decrease; a decode has none",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}

/// Every instruction set that fuses gives the same bits; `bits.rs` says which.
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
