//! What the tests share: numbers to compute with, tensors under any strides, the oracle over whole tensors,
//! and the error measures.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod family;

use std::ops::Range;
use std::path::{Path, PathBuf};

use chunkwise::reference::Recurrence;
use chunkwise::{
    Attention, Config, Element, FeatureMap, Isa, Normaliser, Rule, Shape, State, Strides, Tensors, Update,
};
use half::{bf16, f16};

/// The documented accuracy of f32 up to 4096 tokens, `||got - want|| / ||want||`. A sum of n terms of one
/// size is off by about sqrt(n) 2^-24, which is 3.8e-6 for n = 4096; averaged over the tensor half of that is
/// left.
pub(crate) const NORM_ERROR: f64 = 2e-6;

/// The most tokens that the kernels prepare together. Results don't depend on it; sizes around it are worth a test.
pub(crate) const TILE: usize = 24;

/// A compensated stream has the bits of the whole only where it is cut at multiples of so many tokens.
pub(crate) const COMPENSATED_CUT: usize = 4;

/// What outputs hold before a call, and between their rows after it: a NaN with a mark.
pub(crate) const SENTINEL: f32 = f32::from_bits(0x7fc5_a5a5);

/// Every feature map.
pub(crate) const MAPS: [FeatureMap; 3] = [FeatureMap::Elu, FeatureMap::RELU, FeatureMap::Identity];

/// A configuration with some of it changed.
pub(crate) fn with(mut config: Config, change: impl FnOnce(&mut Config)) -> Config {
    change(&mut config);
    config
}

/// A configuration whose q, k, v and o lie in these orders with these gaps, see [`nested`].
pub(crate) fn with_layouts(config: Config, layouts: [(usize, [usize; 3]); 4]) -> Config {
    let Shape { key, value, .. } = config.shape;
    let [q, k, v, o] = layouts;
    let strides = |dim, (order, gaps)| nested(&config, dim, order, gaps);
    let inputs = config.shape.with_inputs(strides(key, q), strides(key, k), strides(value, v));
    with(config, |c| c.shape = inputs.with_output(strides(value, o)))
}

/// The instruction sets of this machine that fuse a multiplication and an addition: all of them give the same bits. The others
/// round twice, and give the same bits only as themselves.
pub(crate) fn fused() -> impl Iterator<Item = Isa> {
    Isa::available().filter(|isa| !["scalar", "simd128"].contains(&isa.name()))
}

/// What a run covers and what it does not is said even when the tests pass: past the harness, which would keep it.
pub(crate) fn report(line: &str) {
    use std::io::Write;
    // There is no one to tell where stderr is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A file that a test needs: in the folder that the variable CHUNKWISE_TEST_FILES names, for test binaries that were taken to
/// another machine, else where the build has it.
pub(crate) fn test_file(name: &str, built: impl Into<PathBuf>) -> PathBuf {
    std::env::var_os("CHUNKWISE_TEST_FILES")
        .map_or_else(|| built.into(), |folder| Path::new(&folder).join(name))
}

/// Numbers that look normal (sum of uniforms), the same for the same seed.
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

/// A type of element, with the half crate's conversions: the judge of ours.
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

/// Every number, rounded.
pub(crate) fn narrow<E: Number>(x: &[f32]) -> Vec<E> {
    x.iter().map(|x| E::narrow(*x)).collect()
}

/// Every number in f32.
pub(crate) fn widen<E: Number>(x: &[E]) -> Vec<f32> {
    x.iter().map(|x| x.widen()).collect()
}

/// Every normaliser, with the chunk lengths given.
pub(crate) fn normalisers(chunks: &[usize]) -> Vec<Normaliser> {
    let mut all = vec![Normaliser::None, Normaliser::Global { eps: 1e-6 }];
    all.extend(chunks.iter().map(|&chunk| Normaliser::per_chunk(chunk)));
    all
}

/// `||got - want|| / ||size||`; 0 where nothing differs. NaN anywhere is an error of infinity.
///
/// `size` is `want` for the documented measure, or what `want` would be if none of its terms cancelled
/// ([`Case::without_cancellation`]) for inputs that are not chosen to be harmless.
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

/// The worst element, `max |got - want| / size`, measured as [`norm_error_of`].
pub(crate) fn element_error(got: &[f32], want: &[f64], size: &[f64]) -> f64 {
    assert!(got.len() == want.len() && want.len() == size.len());
    let error = |((got, want), size): ((&f32, &f64), &f64)| {
        let difference = (f64::from(*got) - want).abs();
        let error = if difference == 0.0 { 0.0 } else { difference / size };
        if error.is_nan() { f64::INFINITY } else { error }
    };
    got.iter().zip(want).zip(size).map(error).fold(0.0, f64::max)
}

/// The worst element, as a part of what it would be if nothing cancelled: the first-order bound of a sum of n
/// products is n 2^-24; their errors are independent, so that sqrt(n) 2^-24 is what is seen. Twice that for
/// the worst of some 10^6 elements, and 16 more roundings for phi, the score, the norm and the quotient.
pub(crate) fn element_bound(config: &Config) -> f64 {
    let n = (config.shape.key + config.shape.len) as f64;
    (2.0 * n.sqrt() + 16.0) / f64::from(1 << 24)
}

/// Where the first bits differ. One NaN is as good as another: which operand's payload survives is not ours.
pub(crate) fn first_difference(a: &[f32], b: &[f32]) -> Option<usize> {
    assert_eq!(a.len(), b.len(), "lengths");
    a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()))
}

/// Exactly the same bits, the NaNs' payloads too: for what must not have been touched.
pub(crate) fn untouched(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Where a row of a strided tensor begins.
pub(crate) fn at(strides: Strides, batch: usize, token: usize, head: usize) -> usize {
    batch * strides.batch + token * strides.token + head * strides.head
}

/// Elements from the first to the last one of a strided tensor.
pub(crate) fn reach(config: &Config, strides: Strides, dim: usize) -> usize {
    let Shape { batch, len, heads, .. } = config.shape;
    if batch * len * heads == 0 { 0 } else { at(strides, batch - 1, len - 1, heads - 1) + dim }
}

/// Strides that nest batch, token and head in one of six orders, with a gap behind each: all that is legal
/// for o. Order 0 without gaps is `[B, T, H, D]`, 1 is `[B, H, T, D]`.
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

/// All rows `[B, T, H]` of a configuration.
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

/// The oracle over whole tensors, from the zero state: o `[B, T, H, V]`, contiguous.
pub(crate) fn oracle(config: &Config, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    Oracle::new(config).run(q, k, v, 0..config.shape.len)
}

/// The oracle's sums of all heads.
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
    /// Before the first token.
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

    /// Some tokens more: their o `[B, tokens, H, V]`, contiguous.
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

    /// The sums as `chunkwise::state` lays them out.
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

/// A configuration and tensors that are exactly as long as it needs. The numbers in a row are the same under
/// any strides; between the rows is NaN.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) config: Config,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Case {
    /// Rows of normal numbers. Where the identity's products are divided by their sum, q and k are positive:
    /// else the sum may be anywhere near zero and no kernel has the accuracy that the oracle asks for.
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

    /// A case whose row (b, t, h) is this one's row `from(b, t, h)`: other strides, heads or sequences.
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

    /// The same sizes with all terms of all sums positive: the oracle's outputs are then the sizes that
    /// rounding errors are to be measured against.
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

    /// The oracle's outputs and its state after the last token.
    pub(crate) fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
        let mut oracle = Oracle::new(&self.config);
        let o = oracle.run(&self.q, &self.k, &self.v, 0..self.config.shape.len);
        (o, oracle.state())
    }

    /// Checked; the configurations of the tests are right unless the test is about that.
    pub(crate) fn attention(&self) -> Attention {
        Attention::new(self.config).expect("a legal configuration")
    }

    /// An output that nothing was written to.
    pub(crate) fn output(&self) -> Vec<f32> {
        vec![SENTINEL; reach(&self.config, self.config.shape.o_strides, self.config.shape.value)]
    }

    /// The state before the first token.
    pub(crate) fn zero_state(&self) -> Vec<f32> {
        vec![0.0; self.attention().state_len()]
    }

    /// The part of each tensor that begins with a token, and of o likewise.
    pub(crate) fn tensors<'a>(&'a self, token: usize, o: &'a mut [f32]) -> Tensors<'a> {
        let Shape { q_strides, k_strides, v_strides, o_strides, .. } = self.config.shape;
        let inputs = [(&self.q, q_strides), (&self.k, k_strides), (&self.v, v_strides)];
        // An empty piece may begin behind the end.
        let inputs = inputs.map(|(x, strides)| x.get(token.saturating_mul(strides.token)..).unwrap_or(&[]));
        let [q, k, v] = inputs;
        Tensors::new(q, k, v, o.get_mut(token.saturating_mul(o_strides.token)..).unwrap_or(&mut []))
    }

    /// Some of the tokens.
    pub(crate) fn forward(&self, tokens: Range<usize>, state: State<'_>, o: &mut [f32]) {
        let config = with(self.config, |c| c.shape.len = tokens.len());
        let attention = Attention::new(config).expect("a legal configuration");
        let scratch = &mut vec![f32::NAN; attention.scratch_len()];
        attention.forward(self.tensors(tokens.start, o), state, scratch).expect("legal arguments");
    }

    /// All tokens from the zero state.
    pub(crate) fn whole(&self) -> Vec<f32> {
        let mut o = self.output();
        self.forward(0..self.config.shape.len, State::Zero, &mut o);
        o
    }

    /// All tokens from the zero state: o and the state after them.
    pub(crate) fn whole_and_state(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut o, mut state) = (self.output(), vec![SENTINEL; self.attention().state_len()]);
        self.forward(0..self.config.shape.len, State::Final(&mut state), &mut o);
        (o, state)
    }

    /// Some of the tokens, one by one.
    pub(crate) fn decode(&self, tokens: Range<usize>, state: &mut [f32], o: &mut [f32]) {
        let attention = self.attention();
        let scratch = &mut vec![f32::NAN; attention.decode_scratch_len()];
        for token in tokens {
            attention.decode(self.tensors(token, o), state, scratch).expect("legal arguments");
        }
    }

    /// Whether the elements between the rows of o still hold the sentinel.
    pub(crate) fn gaps_are_untouched(&self, o: &[f32]) -> bool {
        let mut o = o.to_vec();
        for (b, t, h) in rows(&self.config) {
            o[at(self.config.shape.o_strides, b, t, h)..][..self.config.shape.value].fill(SENTINEL);
        }
        untouched(&o, &self.output())
    }
}
