//! Code that the tests share: random numbers, tensors under any strides, the oracle for whole tensors, and
//! measures of errors.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod family;

use std::ops::Range;
use std::path::{Path, PathBuf};

use chunkwise::reference::Recurrence;
use chunkwise::{
    Attention, Config, Element, FeatureMap, Isa, Normaliser, Rule, Shape, State, Strides, Tensors, Update,
};
use half::{bf16, f16};

/// The documented norm error of f32 up to 4096 tokens, `||got - want|| / ||want||`. The error of a sum of n
/// terms of one size is about sqrt(n) 2^-24, which is 3.8e-6 for n = 4096; the average over the outputs, most
/// of which sum fewer terms, is about half of that.
pub(crate) const NORM_ERROR: f64 = 2e-6;

/// The largest number of tokens that the kernels prepare together. Results don't depend on it, but tests use
/// lengths around it.
pub(crate) const TILE: usize = 24;

/// A compensated stream has the bits of the whole only if it is cut at multiples of this number of tokens.
pub(crate) const COMPENSATED_CUT: usize = 4;

/// The content of outputs before a call, and between their rows after it: a NaN with a payload by which it
/// can be recognised.
pub(crate) const SENTINEL: f32 = f32::from_bits(0x7fc5_a5a5);

/// Every feature map.
pub(crate) const MAPS: [FeatureMap; 3] = [FeatureMap::Elu, FeatureMap::RELU, FeatureMap::Identity];

/// A configuration after a change.
pub(crate) fn with(mut config: Config, change: impl FnOnce(&mut Config)) -> Config {
    change(&mut config);
    config
}

/// A configuration with other strides, which are given as an order and gaps for each of q, k, v and o, see
/// [`nested`].
pub(crate) fn with_layouts(config: Config, layouts: [(usize, [usize; 3]); 4]) -> Config {
    let Shape { key, value, .. } = config.shape;
    let [q, k, v, o] = layouts;
    let strides = |dim, (order, gaps)| nested(&config, dim, order, gaps);
    let inputs = config.shape.with_inputs(strides(key, q), strides(key, k), strides(value, v));
    with(config, |c| c.shape = inputs.with_output(strides(value, o)))
}

/// The instruction sets of this machine that have a fused multiply-add, all of which give the same bits. The
/// others round a product before they add it, so that their bits are their own.
pub(crate) fn fused() -> impl Iterator<Item = Isa> {
    Isa::available().filter(|isa| !["scalar", "simd128"].contains(&isa.name()))
}

/// Prints what a run covers and what it does not, also if the tests pass: the line goes to stderr directly,
/// because the test harness shows captured output only for tests that fail.
pub(crate) fn report(line: &str) {
    use std::io::Write;
    // If stderr is closed, the error cannot be reported either.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The path of a file that a test needs: in the folder that the environment variable CHUNKWISE_TEST_FILES
/// names, for test programs that were copied to another machine, or else the path in the build.
pub(crate) fn test_file(name: &str, built: impl Into<PathBuf>) -> PathBuf {
    std::env::var_os("CHUNKWISE_TEST_FILES")
        .map_or_else(|| built.into(), |folder| Path::new(&folder).join(name))
}

/// Approximately normal numbers (each is a sum of uniform ones), the same for the same seed.
pub(crate) fn normals(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut uniform = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// A type of element with the conversions of the crate `half`, with which the library's conversions are
/// compared.
pub(crate) trait Number: Element + PartialEq + std::fmt::Debug {
    const NAME: &str;
    fn narrow(x: f32) -> Self;
    fn widen(self) -> f32;
}

impl Number for f32 {
    const NAME: &str = "f32";
    fn narrow(x: f32) -> Self {
        x
    }
    fn widen(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    const NAME: &str = "bf16";
    fn narrow(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Number for f16 {
    const NAME: &str = "f16";
    fn narrow(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// All numbers, rounded to a type.
pub(crate) fn narrow<E: Number>(x: &[f32]) -> Vec<E> {
    x.iter().map(|x| E::narrow(*x)).collect()
}

/// All numbers, widened to f32.
pub(crate) fn widen<E: Number>(x: &[E]) -> Vec<f32> {
    x.iter().map(|x| x.widen()).collect()
}

/// Every normaliser, with the chunk lengths given.
pub(crate) fn normalisers(chunks: &[usize]) -> Vec<Normaliser> {
    let mut all = vec![Normaliser::None, Normaliser::Global { eps: 1e-6 }];
    all.extend(chunks.iter().map(|&chunk| Normaliser::per_chunk(chunk)));
    all
}

/// `||got - want|| / ||size||`, 0 if nothing differs, infinity if anything is NaN.
///
/// `size` is `want` for the documented measure. For inputs whose terms may cancel, it is what `want` would be
/// if none of them cancelled ([`Case::without_cancellation`]).
pub(crate) fn norm_error_of(got: &[f32], want: &[f64], size: &[f64]) -> f64 {
    assert!(got.len() == want.len() && want.len() == size.len());
    let difference: f64 = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).powi(2)).sum();
    let size: f64 = size.iter().map(|size| size.powi(2)).sum();
    let error = if difference == 0.0 { 0.0 } else { (difference / size).sqrt() };
    if error.is_nan() { f64::INFINITY } else { error }
}

/// `||got - want|| / ||want||`.
pub(crate) fn norm_error(got: &[f32], want: &[f64]) -> f64 {
    norm_error_of(got, want, want)
}

/// The error of the worst element, `max |got - want| / size`, with `size` as in [`norm_error_of`].
pub(crate) fn element_error(got: &[f32], want: &[f64], size: &[f64]) -> f64 {
    assert!(got.len() == want.len() && want.len() == size.len());
    let error = |((got, want), size): ((&f32, &f64), &f64)| {
        let difference = (f64::from(*got) - want).abs();
        let error = if difference == 0.0 { 0.0 } else { difference / size };
        if error.is_nan() { f64::INFINITY } else { error }
    };
    got.iter().zip(want).zip(size).map(error).fold(0.0, f64::max)
}

/// The bound of [`element_error`] relative to the element without cancellation. To first order, the error of
/// a sum of n products is at most n 2^-24; because the roundings are independent, it is typically sqrt(n)
/// 2^-24. The bound is twice that, for the worst of some 10^6 elements, plus 16 roundings for phi, the norm
/// and the quotient.
pub(crate) fn element_bound(config: &Config) -> f64 {
    let n = (config.shape.key + config.shape.len) as f64;
    (2.0 * n.sqrt() + 16.0) / f64::from(1 << 24)
}

/// The index of the first element whose bits differ. All NaNs count as equal, because the payload of a NaN is
/// not specified.
pub(crate) fn first_difference(a: &[f32], b: &[f32]) -> Option<usize> {
    assert_eq!(a.len(), b.len(), "lengths");
    a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()))
}

/// Whether all bits are the same, including the payloads of NaNs; for memory that must not have been written.
pub(crate) fn untouched(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// The element at which a row of a strided tensor begins.
pub(crate) fn at(strides: Strides, batch: usize, token: usize, head: usize) -> usize {
    batch * strides.batch + token * strides.token + head * strides.head
}

/// The number of elements that a strided tensor spans.
pub(crate) fn reach(config: &Config, strides: Strides, dim: usize) -> usize {
    let Shape { batch, len, heads, .. } = config.shape;
    if batch * len * heads == 0 { 0 } else { at(strides, batch - 1, len - 1, heads - 1) + dim }
}

/// Strides that nest batch, token and head in one of six orders, with a gap after each: all kinds of strides
/// that are legal for o. Order 0 without gaps is `[B, T, H, D]`, order 1 is `[B, H, T, D]`.
pub(crate) fn nested(config: &Config, dim: usize, order: usize, gaps: [usize; 3]) -> Strides {
    const ORDERS: [[usize; 3]; 6] = [[2, 1, 0], [1, 2, 0], [2, 0, 1], [0, 2, 1], [1, 0, 2], [0, 1, 2]];
    let sizes = [config.shape.batch, config.shape.len, config.shape.heads];
    let (mut strides, mut covered) = ([0; 3], dim);
    for (axis, gap) in ORDERS[order].into_iter().zip(gaps) {
        strides[axis] = covered + gap;
        covered += strides[axis] * (sizes[axis].max(1) - 1);
    }
    Strides { batch: strides[0], token: strides[1], head: strides[2] }
}

/// The indices (b, t, h) of all rows of a configuration.
pub(crate) fn rows(config: &Config) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
    let Shape { batch, len, heads, .. } = config.shape;
    (0..batch).flat_map(move |b| (0..len).flat_map(move |t| (0..heads).map(move |h| (b, t, h))))
}

/// A row of a strided output.
pub(crate) fn row<'a>(
    config: &Config,
    o: &'a [f32],
    (batch, token, head): (usize, usize, usize),
) -> &'a [f32] {
    &o[at(config.shape.o_strides, batch, token, head)..][..config.shape.value]
}

/// The rows of a strided output, contiguous `[B, T, H, V]`.
pub(crate) fn gather(config: &Config, o: &[f32]) -> Vec<f32> {
    rows(config).flat_map(|at| row(config, o, at)).copied().collect()
}

/// The oracle's o, `[B, T, H, V]`, contiguous, for whole tensors and a state of zeros.
pub(crate) fn oracle(config: &Config, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    Oracle::new(config).run(q, k, v, 0..config.shape.len)
}

/// The sums of all heads in f64.
pub(crate) struct Oracle {
    config: Config,
    heads: Vec<Sums>,
}

struct Sums {
    s: Vec<f64>,
    z: Vec<f64>,
    chunk_s: Vec<f64>,
    chunk_z: Vec<f64>,
    count: usize,
}

impl Oracle {
    /// The sums before the first token.
    pub(crate) fn new(config: &Config) -> Self {
        let Shape { batch, heads, key, value, .. } = config.shape;
        let zero = || Sums {
            s: vec![0.0; key * value],
            z: vec![0.0; key],
            chunk_s: vec![0.0; key * value],
            chunk_z: vec![0.0; key],
            count: 0,
        };
        Self { config: *config, heads: (0..batch * heads).map(|_| zero()).collect() }
    }

    /// Computes more tokens; returns their o, `[B, tokens, H, V]`, contiguous.
    pub(crate) fn run(&mut self, q: &[f32], k: &[f32], v: &[f32], tokens: Range<usize>) -> Vec<f64> {
        let Shape { batch, heads, key, value, .. } = self.config.shape;
        let Rule { feature_map, qk_norm, normaliser, scale, .. } = self.config.rule;
        let config = with(self.config, |c| c.shape.len = tokens.len());
        let mut o = vec![0.0; batch * tokens.len() * heads * value];
        for ((b, t, h), o) in rows(&config).zip(o.chunks_exact_mut(value)) {
            let Sums { s, z, chunk_s, chunk_z, count } = &mut self.heads[b * heads + h];
            let scale = f64::from(scale);
            let mut head = Recurrence {
                update: Update::Linear,
                qk_norm,
                feature_map,
                normaliser,
                scale,
                s,
                z,
                chunk_s,
                chunk_z,
                count: *count,
            };
            let t = tokens.start + t;
            let q = &q[at(config.shape.q_strides, b, t, h)..][..key];
            let k = &k[at(config.shape.k_strides, b, t, h)..][..key];
            let v = &v[at(config.shape.v_strides, b, t, h)..][..value];
            head.step(q, k, v, o);
            *count = head.count;
        }
        o
    }

    /// The sums in the layout of `chunkwise::state`.
    pub(crate) fn state(&self) -> Vec<f64> {
        let mut state = Vec::new();
        for Sums { s, z, chunk_s, chunk_z, count } in &self.heads {
            state.extend(s);
            if self.config.rule.normaliser != Normaliser::None {
                state.extend(z);
            }
            if let Normaliser::PerChunk { .. } = self.config.rule.normaliser {
                state.extend(chunk_s.iter().chain(chunk_z).chain(&[*count as f64]));
            }
        }
        state
    }
}

/// A configuration, and tensors of exactly the lengths that it requires. The numbers in a row do not depend
/// on the strides; elements between rows are NaN.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) config: Config,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Case {
    /// A case of normal numbers. With the identity map and a normaliser, q and k are positive: otherwise the
    /// sum by which outputs are divided might be arbitrarily close to zero, and no kernel would reach the
    /// required accuracy.
    pub(crate) fn new(config: Config, seed: u64) -> Self {
        let Config { rule, shape, .. } = config;
        let positive = rule.feature_map == FeatureMap::Identity && rule.normaliser != Normaliser::None;
        let tensor = |seed, strides, dim, positive: bool| {
            let mut numbers = normals(seed, shape.batch * shape.len * shape.heads * dim).into_iter();
            let mut tensor = vec![f32::NAN; reach(&config, strides, dim)];
            for (b, t, h) in rows(&config) {
                let row = &mut tensor[at(strides, b, t, h)..][..dim];
                row.fill_with(|| numbers.next().map_or(0.0, |x| if positive { x.abs() } else { x }));
            }
            tensor
        };
        Self {
            config,
            q: tensor(3 * seed, shape.q_strides, shape.key, positive),
            k: tensor(3 * seed + 1, shape.k_strides, shape.key, positive),
            v: tensor(3 * seed + 2, shape.v_strides, shape.value, false),
        }
    }

    /// A case with other strides, heads or sequences, in which row (b, t, h) is row `from(b, t, h)` of this
    /// case.
    pub(crate) fn rearranged(
        &self,
        config: Config,
        from: impl Fn(usize, usize, usize) -> (usize, usize, usize),
    ) -> Self {
        let tensor = |old: &[f32], old_strides, strides, dim| {
            let mut tensor = vec![f32::NAN; reach(&config, strides, dim)];
            for (b, t, h) in rows(&config) {
                let (old_b, old_t, old_h) = from(b, t, h);
                let row = &old[at(old_strides, old_b, old_t, old_h)..][..dim];
                tensor[at(strides, b, t, h)..][..dim].copy_from_slice(row);
            }
            tensor
        };
        let (old, new) = (self.config.shape, config.shape);
        Self {
            config,
            q: tensor(&self.q, old.q_strides, new.q_strides, new.key),
            k: tensor(&self.k, old.k_strides, new.k_strides, new.key),
            v: tensor(&self.v, old.v_strides, new.v_strides, new.value),
        }
    }

    /// The same case on another instruction set.
    pub(crate) fn on(&self, isa: Isa) -> Self {
        let mut case = self.clone();
        case.config.execution.isa = Some(isa);
        case
    }

    /// The same case with all terms of all sums made positive. The oracle's outputs are then the sizes with
    /// which rounding errors are compared.
    pub(crate) fn without_cancellation(&self) -> Self {
        let mut case = self.clone();
        let absolute = |x: &mut Vec<f32>| x.iter_mut().for_each(|x| *x = x.abs());
        absolute(&mut case.v);
        if case.config.rule.feature_map == FeatureMap::Identity {
            absolute(&mut case.q);
            absolute(&mut case.k);
        }
        case.config.rule.scale = case.config.rule.scale.abs();
        case
    }

    /// The oracle's outputs and its last state.
    pub(crate) fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
        let mut oracle = Oracle::new(&self.config);
        let o = oracle.run(&self.q, &self.k, &self.v, 0..self.config.shape.len);
        (o, oracle.state())
    }

    pub(crate) fn attention(&self) -> Attention {
        Attention::new(self.config).expect("a legal configuration")
    }

    /// An output before a call, filled with the sentinel.
    pub(crate) fn output(&self) -> Vec<f32> {
        vec![SENTINEL; reach(&self.config, self.config.shape.o_strides, self.config.shape.value)]
    }

    /// The state before the first token.
    pub(crate) fn zero_state(&self) -> Vec<f32> {
        vec![0.0; self.attention().state_len()]
    }

    /// The tensors from a token on, with the same part of this output.
    pub(crate) fn tensors<'a>(&'a self, token: usize, o: &'a mut [f32]) -> Tensors<'a> {
        let Shape { q_strides, k_strides, v_strides, o_strides, .. } = self.config.shape;
        let inputs = [(&self.q, q_strides), (&self.k, k_strides), (&self.v, v_strides)];
        // A piece without tokens may begin beyond the end.
        let inputs = inputs.map(|(x, strides)| x.get(token.saturating_mul(strides.token)..).unwrap_or(&[]));
        let [q, k, v] = inputs;
        Tensors::new(q, k, v, o.get_mut(token.saturating_mul(o_strides.token)..).unwrap_or(&mut []))
    }

    /// Computes some of the tokens.
    pub(crate) fn forward(&self, tokens: Range<usize>, state: State<'_>, o: &mut [f32]) {
        let config = with(self.config, |c| c.shape.len = tokens.len());
        let attention = Attention::new(config).expect("a legal configuration");
        let scratch = &mut vec![f32::NAN; attention.scratch_len()];
        attention.forward(self.tensors(tokens.start, o), state, scratch).expect("legal arguments");
    }

    /// Computes all tokens from a state of zeros; returns o.
    pub(crate) fn whole(&self) -> Vec<f32> {
        let mut o = self.output();
        self.forward(0..self.config.shape.len, State::Zero, &mut o);
        o
    }

    /// Computes all tokens from a state of zeros; returns o and the last state.
    pub(crate) fn whole_and_state(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut o, mut state) = (self.output(), vec![SENTINEL; self.attention().state_len()]);
        self.forward(0..self.config.shape.len, State::Final(&mut state), &mut o);
        (o, state)
    }

    /// Computes some of the tokens one by one.
    pub(crate) fn decode(&self, tokens: Range<usize>, state: &mut [f32], o: &mut [f32]) {
        let attention = self.attention();
        let scratch = &mut vec![f32::NAN; attention.decode_scratch_len()];
        for token in tokens {
            attention.decode(self.tensors(token, o), state, scratch).expect("legal arguments");
        }
    }

    /// Whether the elements between the rows of o are still the sentinel.
    pub(crate) fn gaps_are_untouched(&self, o: &[f32]) -> bool {
        let mut o = o.to_vec();
        for (b, t, h) in rows(&self.config) {
            o[at(self.config.shape.o_strides, b, t, h)..][..self.config.shape.value].fill(SENTINEL);
        }
        untouched(&o, &self.output())
    }
}
