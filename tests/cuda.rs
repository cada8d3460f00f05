//! Attention on GPUs, compared with the oracle in every type and with every option: on the emulator, which
//! runs the shipped PTX, and on a GPU where there is one.

#![allow(unsafe_code, reason = "slices of device memory are made from addresses")]
mod common;
mod cuda_common;

use chunkwise::cuda::{self, Buffer, Precision, Stream};
use chunkwise::{Config, Error, FeatureMap, Gate, Heads, Normaliser, Rule, Shape, Strides};
use common::*;
use cuda_common::{Emulator, Target, config, devices, explained, precise, targets, with_emulator};
use half::{bf16, f16};

/// A case on a device, in one type.
struct Run<E: Number> {
    target: Target,
    attention: cuda::Attention,
    config: Config,
    q: Buffer<E>,
    k: Buffer<E>,
    v: Buffer<E>,
    o: Buffer<E>,
    state: Buffer,
    workspace: Buffer,
}

impl<E: Number> Run<E> {
    fn new(target: &Target, case: &Case) -> Self {
        Self::cut(target, case, None)
    }

    fn cut(target: &Target, case: &Case, segments: Option<usize>) -> Self {
        let device = &target.device;
        let mut attention = target.attention(case.config);
        if let Some(segments) = segments {
            attention = attention.with_segments(segments);
        }
        let upload = |x: &[f32]| explained(Buffer::from_slice(device, &narrow::<E>(x)));
        Self {
            target: target.clone(),
            config: case.config,
            q: upload(&case.q),
            k: upload(&case.k),
            v: upload(&case.v),
            o: upload(&case.output()),
            state: explained(Buffer::from_slice(device, &vec![SENTINEL; attention.state_len()])),
            workspace: explained(Buffer::from_slice(device, &vec![f32::NAN; attention.workspace_len()])),
            attention,
        }
    }

    /// Computes all tokens from a state of zeros; returns o and the last state.
    fn whole(mut self) -> (Vec<f32>, Vec<f32>) {
        let args = cuda::Forward {
            q: self.q.slice(),
            k: self.k.slice(),
            v: self.v.slice(),
            state: cuda::State::Final(self.state.slice_mut()),
            o: self.o.slice_mut(),
            workspace: self.workspace.slice_mut(),
        };
        explained(self.attention.forward(args, Stream::DEFAULT));
        (self.outputs(), self.states())
    }

    fn outputs(&self) -> Vec<f32> {
        widen(&explained(self.o.read(Stream::DEFAULT)))
    }

    fn states(&self) -> Vec<f32> {
        explained(self.state.read(Stream::DEFAULT))
    }

    /// Computes some of the tokens on the current state, by forward or one by one.
    fn carry(&mut self, tokens: std::ops::Range<usize>, decode: bool) {
        let Shape { q_strides, k_strides, v_strides, o_strides, .. } = self.config.shape;
        let steps: Vec<_> = if decode { tokens.map(|t| t..t + 1).collect() } else { vec![tokens] };
        for tokens in steps {
            let config = with(self.config, |c| c.shape.len = tokens.len());
            let attention = self.target.attention(config).with_segments(1);
            let (q, k) = (self.q.slice(), self.k.slice());
            let (q, k) = (q.from(tokens.start * q_strides.token), k.from(tokens.start * k_strides.token));
            let v = self.v.slice().from(tokens.start * v_strides.token);
            let o = self.o.slice_mut().split_at(tokens.start * o_strides.token).1;
            let state = self.state.slice_mut();
            if decode {
                explained(attention.decode(cuda::DecodeStep { q, k, v, state, o }, Stream::DEFAULT));
            } else {
                let workspace = self.workspace.slice_mut();
                let state = cuda::State::Carried(state);
                let args = cuda::Forward { q, k, v, state, o, workspace };
                explained(attention.forward(args, Stream::DEFAULT));
            }
        }
    }
}

/// The same case with q, k and v rounded to a type.
fn rounded<E: Number>(case: &Case) -> Case {
    let round = |x: &[f32]| widen(&narrow::<E>(x));
    Case { q: round(&case.q), k: round(&case.k), v: round(&case.v), ..case.clone() }
}

/// The errors that are allowed for outputs and for states, relative to their sizes without cancellation. They
/// consist of the error of sums in f32 and, for outputs, their rounding. With dot products of bf16, operands
/// (phi, the scores, S and v) are rounded as well.
fn allowed<E: Number>(config: &Config, precision: Precision) -> (f64, f64) {
    let unit = match E::NAME {
        "bf16" => 2f64.powi(-8),
        "f16" => 2f64.powi(-11),
        _ => 0.0,
    };
    // A number that is represented by two terms of bf16 has an error of 2^-17; products of two such numbers,
    // and sums of these, have 2^-16. The bound is twice that.
    let terms = if E::NAME == "f32" { 0.0 } else { 2f64.powi(-15) };
    let dot = if precision == Precision::Bf16Dot { 6.0 / 512.0 } else { 0.0 };
    let f32s = element_bound(config);
    (f32s + unit + terms + dot, f32s + terms + dot)
}

/// The sizes with which errors are compared. They are limited from below for f16, whose numbers are multiples
/// of 2^-24.
fn sizes<E: Number>(size: Vec<f64>) -> Vec<f64> {
    let least = if E::NAME == "f16" { 2f64.powi(-14) } else { 0.0 };
    size.into_iter().map(|size| size.max(least)).collect()
}

/// Compares outputs and the state with the oracle, element by element.
fn check<E: Number>(target: &Target, config: Config, seed: u64, segments: Option<usize>) {
    let case = rounded::<E>(&Case::new(config, seed));
    let (want, want_state) = case.oracle();
    let (size, state_size) = case.without_cancellation().oracle();
    let (o, state) = Run::<E>::cut(target, &case, segments).whole();
    let name = format!("{}, {segments:?} segments, {target:?}, {config:?}", E::NAME);
    assert!(gaps_are_untouched::<E>(&case, &o), "wrote between the rows of o: {name}");
    let (most, most_state) = allowed::<E>(&config, target.precision);
    let worst = element_error(&gather(&config, &o), &want, &sizes::<E>(size));
    assert!(worst <= most, "an element is off by {worst:e}, allowed {most:e}: {name}");
    let worst = element_error(&state, &want_state, &state_size);
    assert!(worst <= most_state, "the state is off by {worst:e}, allowed {most_state:e}: {name}");
}

fn gaps_are_untouched<E: Number>(case: &Case, o: &[f32]) -> bool {
    let sentinel = E::narrow(SENTINEL).widen();
    let mut o = o.to_vec();
    for (b, t, h) in rows(&case.config) {
        o[at(case.config.shape.o_strides, b, t, h)..][..case.config.shape.value].fill(sentinel);
    }
    untouched(&o, &vec![sentinel; o.len()])
}

fn check_all_types(target: &Target, config: Config, seed: u64, segments: Option<usize>) {
    check::<f32>(target, config, seed, segments);
    check::<bf16>(target, config, seed, segments);
    check::<f16>(target, config, seed, segments);
}

/// Sizes below, at and above those of each kernel (tiles of 16, 32 and 64 tokens; K of 64, 128 and 256;
/// panels of 16, 32 and 64 columns of V), with aligned rows and others.
#[test]
fn all_sizes() {
    for target in targets() {
        for (at, (key, value)) in
            [(64, 64), (16, 16), (20, 9), (1, 1), (128, 128), (72, 40), (256, 64), (200, 33), (256, 256)]
                .into_iter()
                .enumerate()
        {
            for (more, normaliser) in normalisers(&[64, 7]).into_iter().enumerate() {
                let len = [100, 64, 17, 33][(at + more) % 4];
                let feature_map = MAPS[(at + more) % 3];
                let heads = 1 + (at + more) % 2;
                let config = config([1, len, heads, key, value], normaliser);
                let config = with(config, |c| c.rule.feature_map = feature_map);
                check_all_types(&target, config, at as u64, None);
            }
        }
    }
}

#[test]
fn lengths_and_chunks() {
    for target in targets() {
        for len in [0, 1, 15, 16, 63, 64, 65, 129] {
            for normaliser in normalisers(&[1, 16, 32, 64, 65, 100, 200]) {
                let config = config([1, len, 1, 24, 16], normaliser);
                check_all_types(&target, config, len as u64, None);
            }
        }
    }
}

#[test]
fn layouts() {
    for target in targets() {
        for order in 0..6 {
            for (normaliser, gaps) in normalisers(&[20]).into_iter().zip([[0, 0, 0], [1, 2, 3], [8, 16, 8]]) {
                let (one, other) = ((order, gaps), (5 - order, gaps));
                let config = with_layouts(config([2, 37, 3, 32, 24], normaliser), [one, other, one, other]);
                let config = with(config, |c| c.rule.scale = -0.3);
                check_all_types(&target, config, order as u64, None);
            }
        }
        // All tokens, heads and sequences share one row of q.
        let mut config = config([2, 20, 2, 16, 16], Normaliser::None);
        config.shape.q_strides = Strides { batch: 0, token: 0, head: 0 };
        check_all_types(&target, config, 1, None);
    }
}

/// Segments of a sequence that are computed at the same time: their sums, the scan over segments, and the
/// outputs.
#[test]
fn segments() {
    for target in targets() {
        for normaliser in normalisers(&[16]) {
            for (segments, len) in [(2, 512), (3, 1000), (4, 1024 + 3)] {
                let config = config([1, len, 2, 32, 48], normaliser);
                let attention = target.attention(config).with_segments(segments);
                assert_eq!(attention.segments(), segments, "cut");
                check_all_types(&target, config, segments as u64, Some(segments));
            }
        }
    }
    for target in precise() {
        // The second piece is computed in segments on a carried state.
        for normaliser in normalisers(&[]) {
            let case = Case::new(config([1, 600, 1, 16, 80], normaliser), 5);
            let (o, state) = Run::<f32>::cut(&target, &case, Some(1)).whole();
            let mut run = Run::<f32>::cut(&target, &case, Some(2));
            let device = &target.device;
            run.state = explained(Buffer::zeros(device, run.attention.state_len()));
            run.carry(0..88, false);
            let config = with(case.config, |c| c.shape.len = 512);
            let attention = target.attention(config).with_segments(2);
            let mut workspace =
                explained(Buffer::from_slice(device, &vec![f32::NAN; attention.workspace_len()]));
            let (row, out) = (config.shape.q_strides.token, config.shape.o_strides.token);
            let args = cuda::Forward {
                q: run.q.slice().from(88 * row),
                k: run.k.slice().from(88 * row),
                v: run.v.slice().from(88 * out),
                state: cuda::State::Carried(run.state.slice_mut()),
                o: run.o.slice_mut().split_at(88 * out).1,
                workspace: workspace.slice_mut(),
            };
            explained(attention.forward(args, Stream::DEFAULT));
            close(&run.outputs(), &o, 2.0 * NORM_ERROR, &format!("{normaliser:?}"));
            close(&run.states(), &state, 2.0 * NORM_ERROR, &format!("{normaliser:?}, state"));
        }
    }
}

/// Checks that two results differ by no more than sums in different orders may.
fn close(a: &[f32], b: &[f32], most: f64, what: &str) {
    let b: Vec<f64> = b.iter().copied().map(f64::from).collect();
    let error = norm_error(a, &b);
    assert!(error <= most, "{what}: off by {error:e}");
}

/// Every way of passing a state. An initial state is not changed, and a last state is only written where one
/// is given.
#[test]
fn states() {
    for target in precise() {
        let device = &target.device;
        for (key, value) in [(24, 16), (64, 80)] {
            for normaliser in normalisers(&[16, 64, 100]) {
                let first = Case::new(config([1, 40, 2, key, value], normaliser), 1);
                let case = Case::new(config([1, 50, 2, key, value], normaliser), 2);
                let (from_zero, _) = Run::<f32>::new(&target, &case).whole();
                let (_, before) = Run::<f32>::new(&target, &first).whole();
                let mut carried = Run::<f32>::new(&target, &case);
                carried.state = explained(Buffer::from_slice(device, &before));
                carried.carry(0..50, false);
                for (initial, last) in [(false, false), (true, false), (true, true)] {
                    let mut run = Run::<f32>::new(&target, &case);
                    let given = explained(Buffer::from_slice(device, &before));
                    let state = match (initial, last) {
                        (false, _) => cuda::State::Zero,
                        (true, false) => cuda::State::Initial(given.slice()),
                        (true, true) => cuda::State::InitialFinal(given.slice(), run.state.slice_mut()),
                    };
                    let (q, k, v) = (run.q.slice(), run.k.slice(), run.v.slice());
                    let (o, workspace) = (run.o.slice_mut(), run.workspace.slice_mut());
                    explained(
                        run.attention
                            .forward(cuda::Forward { q, k, v, state, o, workspace }, Stream::DEFAULT),
                    );
                    let name = format!("{normaliser:?}, initial {initial}, final {last}");
                    let want = if initial { carried.outputs() } else { from_zero.clone() };
                    assert_eq!(first_difference(&run.outputs(), &want), None, "{name}");
                    assert!(untouched(&explained(given.read(Stream::DEFAULT)), &before), "{name}");
                    if last {
                        assert_eq!(first_difference(&run.states(), &carried.states()), None, "{name}");
                    } else {
                        assert!(untouched(&run.states(), &vec![SENTINEL; before.len()]), "{name}");
                    }
                }
            }
        }
    }
}

/// Streams in pieces, by forward and token by token, agree with the whole.
#[test]
fn streams() {
    let cuts: [(&[usize], _); 5] = [
        (&[64, 128], usize::MAX),
        (&[16, 32, 48], 2),
        (&[77], usize::MAX),
        (&[1, 2, 40, 41], usize::MAX),
        (&[1, 2, 40, 41], 2),
    ];
    for target in targets() {
        // With operands rounded to bf16, other tiles round other numbers, so that the bound is larger. Only
        // the cuts that find most errors are used there.
        let (cuts, most) = match target.precision {
            Precision::F32 => (&cuts[..], 2.0 * NORM_ERROR),
            _ => (&cuts[4..], 6.0 / 512.0),
        };
        for (key, value) in [(24, 70), (64, 64), (130, 20)] {
            for normaliser in normalisers(&[16, 30, 64, 100]) {
                let config = config([1, 150, 2, key, value], normaliser);
                let case = Case::new(config, 7);
                let (o, state) = Run::<f32>::new(&target, &case).whole();
                for &(cuts, decode_every) in cuts {
                    let mut run = Run::<f32>::new(&target, &case);
                    run.state = explained(Buffer::zeros(&target.device, state.len()));
                    let mut from = 0;
                    for (at, to) in cuts.iter().copied().chain([config.shape.len]).enumerate() {
                        run.carry(from..to, (at + 1).is_multiple_of(decode_every));
                        from = to;
                    }
                    let name = format!("{target:?}, {config:?}, cut at {cuts:?}, decode {decode_every}");
                    close(&run.outputs(), &o, most, &name);
                    close(&run.states(), &state, most, &format!("state, {name}"));
                }
            }
        }
    }
}

/// Decodes all tokens, in every type, and compares with the oracle. Rows of S are accessed by 16 bytes at a
/// time, by 4, or, if the state of a head has an odd length, by 16 for some heads only. Some cases have
/// several panels of V, or more rows than a block loads at once.
#[test]
fn decodes() {
    for target in precise() {
        for (key, value) in [(64, 64), (20, 9), (256, 300), (1, 1), (33, 4), (130, 6)] {
            for normaliser in normalisers(&[1, 7]) {
                for feature_map in MAPS {
                    let config = config([1, 15, 2, key, value], normaliser);
                    let config = with(config, |c| c.rule.feature_map = feature_map);
                    decode_in::<f32>(&target, config);
                    decode_in::<bf16>(&target, config);
                    decode_in::<f16>(&target, config);
                }
            }
        }
    }
}

fn decode_in<E: Number>(target: &Target, config: Config) {
    let case = rounded::<E>(&Case::new(config, 3));
    let (want, want_state) = case.oracle();
    let (size, state_size) = case.without_cancellation().oracle();
    let mut run = Run::<E>::new(target, &case);
    run.state = explained(Buffer::zeros(&target.device, run.attention.state_len()));
    run.carry(0..config.shape.len, true);
    // A decode does not use tensor cores, whatever the precision.
    let (most, _) = allowed::<E>(&config, Precision::F32);
    let worst = element_error(&run.outputs(), &want, &sizes::<E>(size));
    assert!(worst <= most, "an element is off by {worst:e}, allowed {most:e}: {} {config:?}", E::NAME);
    let worst = element_error(&run.states(), &want_state, &state_size);
    assert!(worst <= element_bound(&config), "the state is off by {worst:e}: {} {config:?}", E::NAME);
}

/// Decodes all tokens on a state that begins some elements after an aligned address; returns o and the state.
fn decode_at<E: Number>(
    Target { device, precision, .. }: &Target,
    case: &Case,
    shift: usize,
) -> (Vec<f32>, Vec<f32>) {
    let config = with(case.config, |c| c.shape.len = 1);
    let attention = explained(cuda::Attention::new(device, config, *precision));
    let upload = |x: &[f32]| explained(Buffer::from_slice(device, &narrow::<E>(x)));
    let (q, k, v, mut o) = (upload(&case.q), upload(&case.k), upload(&case.v), upload(&case.output()));
    let len = attention.state_len();
    let around = |state: &[f32]| [&vec![SENTINEL; shift][..], state, &[SENTINEL; 4]].concat();
    let mut state = explained(Buffer::from_slice(device, &around(&vec![0.0; len])));
    let Shape { q_strides, k_strides, v_strides, o_strides, .. } = config.shape;
    for token in 0..case.config.shape.len {
        // SAFETY: this is memory of `state`, which nothing else accesses during the call.
        let state = unsafe { cuda::SliceMut::from_raw(state.slice_mut().address() + 4 * shift as u64, len) };
        let args = cuda::DecodeStep {
            q: q.slice().from(token * q_strides.token),
            k: k.slice().from(token * k_strides.token),
            v: v.slice().from(token * v_strides.token),
            state,
            o: o.slice_mut().split_at(token * o_strides.token).1,
        };
        explained(attention.decode(args, Stream::DEFAULT));
    }
    let all = explained(state.read(Stream::DEFAULT));
    let states = all[shift..][..len].to_vec();
    assert!(untouched(&all, &around(&states)), "wrote beside the state, {config:?}");
    (widen(&explained(o.read(Stream::DEFAULT))), states)
}

/// A head has the same bits in any batch, with any strides and any alignment of its state, which determine
/// how V is divided among blocks and by how many bytes S is accessed at a time.
#[test]
fn decode_bits() {
    for target in precise() {
        // States of an odd length, so that the alignment differs between heads; panels of different widths,
        // also with a last panel of fewer columns.
        for (key, value) in [(33, 72), (17, 128), (130, 40)] {
            for normaliser in normalisers(&[2]) {
                let (batch, heads) = (target.device.multiprocessors().div_ceil(2) + 1, 2);
                let case = Case::new(config([batch, 3, heads, key, value], normaliser), 6);
                let (o, states) = decode_at::<f32>(&target, &case, 0);
                let len = states.len() / batch / heads;
                for (b, h) in [(0, 0), (0, 1), (1, 0), (1, 1), (batch - 1, 1)] {
                    let one = config([1, 3, 1, key, value], normaliser);
                    let layouts = [(1, [8, 0, 0]), (2, [0, 3, 0]), (1, [1, 2, 3]), (0, [0, 0, 5])];
                    for (shift, layouts) in [None, Some(layouts)].into_iter().enumerate() {
                        let one = layouts.map_or(one, |layouts| with_layouts(one, layouts));
                        let single = case.rearranged(one, |_, t, _| (b, t, h));
                        let (alone, state) = decode_at::<f32>(&target, &single, shift);
                        let name = format!("{:?}, at {b}, {h}, state shifted by {shift}", case.config);
                        for t in 0..3 {
                            let (alone, all) =
                                (row(&one, &alone, (0, t, 0)), row(&case.config, &o, (b, t, h)));
                            assert_eq!(first_difference(alone, all), None, "token {t}: {name}");
                        }
                        let mine = &states[(b * heads + h) * len..][..len];
                        assert_eq!(first_difference(&state, mine), None, "state: {name}");
                    }
                }
            }
        }
    }
}

/// The documented accuracy: the norm error is at most 2e-6 in f32, and in bf16 and f16 at most 1.5 times the
/// error of rounding the inputs and outputs.
#[test]
fn accuracy() {
    fn over_rounding<E: Number>(target: &Target, config: Config) {
        let case = Case::new(config, 1);
        let want = oracle(&config, &case.q, &case.k, &case.v);
        let narrow_case = rounded::<E>(&case);
        let exact = oracle(&config, &narrow_case.q, &narrow_case.k, &narrow_case.v);
        let rounding =
            norm_error(&widen(&narrow::<E>(&exact.iter().map(|x| *x as f32).collect::<Vec<_>>())), &want);
        let dot = Target { precision: Precision::Bf16Dot, ..target.clone() };
        let error = norm_error(&Run::<E>::new(target, &case).whole().0, &want);
        let of_dot = norm_error(&Run::<E>::new(&dot, &case).whole().0, &want);
        report(&format!(
            "{:?}, {} {:?} {:?} K {}: {error:.2e}, {:.2} of rounding; with dot products of bf16 {:.2}",
            target.device,
            E::NAME,
            config.rule.feature_map,
            config.rule.normaliser,
            config.shape.key,
            error / rounding,
            of_dot / rounding
        ));
        assert!(error <= 1.5 * rounding);
    }
    for target in precise() {
        for normaliser in normalisers(&[64]) {
            for key in [64, 128] {
                let config = config([1, 1024, 1, key, 64], normaliser);
                let case = Case::new(config, 1);
                let (want, want_state) = case.oracle();
                let (o, state) = Run::<f32>::new(&target, &case).whole();
                let (error, of_state) = (norm_error(&o, &want), norm_error(&state, &want_state));
                report(&format!(
                    "{:?}, f32 {normaliser:?} K {key}: {error:.2e}, state {of_state:.2e}",
                    target.device
                ));
                assert!(error <= NORM_ERROR && of_state <= NORM_ERROR, "{error:e} {of_state:e}: {config:?}");
                over_rounding::<bf16>(&target, config);
                over_rounding::<f16>(&target, config);
            }
        }
    }
}

/// A NaN or an infinity at a token changes no bit of earlier outputs, of the other head and, for v, of other
/// columns.
#[test]
fn nan_stays_in_its_future() {
    for target in targets() {
        // The last number is finite in f32, but not in bf16.
        for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
            for normaliser in normalisers(&[64, 20]) {
                for (key, value) in [(64, 64), (128, 40)] {
                    let config = config([1, 100, 2, key, value], normaliser);
                    let case = Case::new(config, 2);
                    let (clean, _) = Run::<f32>::new(&target, &case).whole();
                    // v is tried at more tokens than q and k, because its numbers reach earlier rows of a
                    // tile unless they are masked.
                    for (tensor, tokens) in
                        [&[5, 64][..], &[0, 37], &[0, 5, 37, 64, 99]].into_iter().enumerate()
                    {
                        for &token in tokens {
                            let mut broken = case.clone();
                            let (data, dim) = match tensor {
                                0 => (&mut broken.q, key),
                                1 => (&mut broken.k, key),
                                _ => (&mut broken.v, value),
                            };
                            data[token * 2 * dim + 3] = bad;
                            let (o, _) = Run::<f32>::new(&target, &broken).whole();
                            let name = format!(
                                "{bad} in {} at {token}, {target:?}, {:?}",
                                ["q", "k", "v"][tensor],
                                case.config
                            );
                            for (b, t, h) in rows(&case.config) {
                                let (got, want) =
                                    (row(&case.config, &o, (b, t, h)), row(&case.config, &clean, (b, t, h)));
                                let reached = h == 0 && if tensor == 0 { t == token } else { t >= token };
                                for (column, (got, want)) in got.iter().zip(want).enumerate() {
                                    let mine = reached && (tensor < 2 || column == 3);
                                    // phi may map an infinity to a finite number, and a sum may absorb
                                    // f32::MAX. Only NaN must reach all outputs that depend on it.
                                    if mine && bad.is_nan() {
                                        let kept = normaliser == Normaliser::None || t == token;
                                        assert!(got.is_nan() || !kept, "not NaN at {t}: {name}");
                                    } else if !mine {
                                        assert_eq!(
                                            got.to_bits(),
                                            want.to_bits(),
                                            "column {column} at {t}, head {h}: {name}"
                                        );
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A sequence has the same bits in any batch, with any strides, and in pieces that are cut at tiles.
#[test]
fn bits() {
    for target in targets() {
        for normaliser in normalisers(&[64]) {
            let case = Case::new(config([2, 150, 2, 64, 40], normaliser), 9);
            let (o, _) = Run::<f32>::cut(&target, &case, Some(1)).whole();
            let one = config([1, 150, 1, 64, 40], normaliser);
            for (b, h) in [(0, 1), (1, 0)] {
                let single = case.rearranged(one, |_, t, _| (b, t, h));
                let (alone, _) = Run::<f32>::cut(&target, &single, Some(1)).whole();
                let mine: Vec<f32> =
                    (0..150).flat_map(|t| row(&case.config, &o, (b, t, h)).to_vec()).collect();
                assert_eq!(first_difference(&alone, &mine), None, "{normaliser:?}");
                let mut run = Run::<f32>::cut(&target, &single, Some(1));
                run.state = explained(Buffer::zeros(&target.device, run.attention.state_len()));
                run.carry(0..64, false);
                run.carry(64..128, false);
                run.carry(128..150, false);
                assert_eq!(first_difference(&run.outputs(), &mine), None, "in pieces, {normaliser:?}");
            }
        }
    }
}

/// Results have the same bits in whatever order warps and blocks run. The order is a setting of the process,
/// so that other tests also run in it, and must pass as well.
#[test]
fn any_order_gives_the_same_bits() {
    if !with_emulator() {
        report(
            "NOT covered: orders of warps and blocks that a test chooses; the GPU's own is seen four times",
        );
    }
    let schedule = |policy: i32| {
        if with_emulator() {
            Emulator::get().schedule(policy, policy as u64);
        }
    };
    let normalisers = normalisers(&[30, 64, 100]);
    let all = targets().into_iter().flat_map(|target| normalisers.iter().map(move |n| (target.clone(), *n)));
    for (target, normaliser) in all {
        // With two panels of V, two blocks read a state that one of them overwrites.
        let case = Case::new(config([1, 150, 2, 24, 70], normaliser), 11);
        let run = |policy: i32| {
            schedule(policy);
            let mut run = Run::<f32>::new(&target, &case);
            run.state = explained(Buffer::zeros(&target.device, run.attention.state_len()));
            run.carry(0..77, false);
            run.carry(77..79, true);
            run.carry(79..150, false);
            (run.outputs(), run.states())
        };
        let (o, state) = run(0);
        for policy in 1..4 {
            let (other, other_state) = run(policy);
            assert_eq!(first_difference(&other, &o), None, "schedule {policy}, {normaliser:?}");
            assert_eq!(first_difference(&other_state, &state), None, "schedule {policy}, {normaliser:?}");
        }
    }
    schedule(0);
}

/// Errors; a refused call writes nothing.
#[test]
fn errors() {
    let target = Target { device: devices()[0].clone(), precision: Precision::F32 };
    let good = config([1, 8, 2, 4, 4], Normaliser::per_chunk(4));
    let refused = |config| cuda::Attention::new(&target.device, config, target.precision).err();
    assert_eq!(refused(with(good, |c| c.shape.heads = 0)), Some(Error::Zero { what: "heads" }.into()));
    assert!(matches!(
        refused(with(good, |c| c.rule.compensated = true)),
        Some(cuda::Error::Unsupported { what: "the compensated state" })
    ));
    for rule in [
        Rule::gated(Gate::Scalar),
        Rule::gated(Gate::Key),
        Rule::delta(Gate::None),
        Rule::linear(Normaliser::None).qk_norm(1e-6),
        Rule::linear(Normaliser::None).causal(false),
    ] {
        let refused = refused(Config::new(rule, good.shape));
        assert!(matches!(refused, Some(cuda::Error::Unsupported { .. })), "{rule:?}: {refused:?}");
    }
    for shape in [
        Shape::grouped(1, 8, Heads::new(4, 2, 2), 4, 4),
        Shape::grouped(1, 8, Heads::new(2, 1, 2), 4, 4),
        Shape::grouped(1, 8, Heads::new(2, 2, 1), 4, 4),
        good.shape.with_sequences(3),
    ] {
        let refused = refused(Config::new(good.rule, shape));
        assert!(matches!(refused, Some(cuda::Error::Unsupported { .. })), "{shape:?}: {refused:?}");
    }
    let too_wide = config([1, 8, 2, 257, 4], Normaliser::None);
    assert!(matches!(refused(too_wide), Some(cuda::Error::Unsupported { .. })));
    let huge = with(good, |c| (c.shape.batch, c.shape.len) = (1 << 31, 0));
    assert_eq!(refused(huge), Some(Error::Overflow { what: "batch x heads" }.into()));
    // Each head takes two blocks, and a grid has at most 2^31 - 1.
    let blocks = config([1 << 30, 0, 1, 1, 65], Normaliser::None);
    assert_eq!(refused(blocks), Some(Error::Overflow { what: "batch x heads x panels of V" }.into()));

    let case = Case::new(good, 1);
    let need = 8 * 2 * 4;
    for (short, what) in ["q", "k", "v", "o"].into_iter().enumerate() {
        let mut run = Run::<f32>::new(&target, &case);
        let cut = |tensor: usize| if tensor == short { need - 1 } else { need };
        // SAFETY: the slices are no longer than their buffers.
        let (q, k, v) = unsafe {
            let slice = |buffer: &Buffer, at| cuda::Slice::from_raw(buffer.slice().address(), cut(at));
            (slice(&run.q, 0), slice(&run.k, 1), slice(&run.v, 2))
        };
        let state = cuda::State::Zero;
        let o = run.o.slice_mut().split_at(cut(3)).0;
        let args = cuda::Forward { q, k, v, state, o, workspace: run.workspace.slice_mut() };
        let error = run.attention.forward(args, Stream::DEFAULT);
        assert_eq!(error, Err(Error::TooShort { what, need, got: need - 1 }.into()));
        assert!(untouched(&run.outputs(), &case.output()), "written in spite of a short {what}");
    }
    let mut run = Run::<f32>::new(&target, &case);
    let (q, k, v) = (run.q.slice(), run.k.slice(), run.v.slice());
    let state = cuda::State::Final(run.state.slice_mut().split_at(3).0);
    let args = cuda::Forward { q, k, v, state, o: run.o.slice_mut(), workspace: run.workspace.slice_mut() };
    let want = run.attention.state_len();
    assert_eq!(
        run.attention.forward(args, Stream::DEFAULT),
        Err(Error::Length { what: "state", want, got: 3 }.into())
    );
    let args = cuda::Forward {
        q,
        k,
        v,
        state: cuda::State::Zero,
        o: run.o.slice_mut(),
        workspace: run.workspace.slice_mut().split_at(5).0,
    };
    let need = run.attention.workspace_len();
    assert_eq!(
        run.attention.forward(args, Stream::DEFAULT),
        Err(Error::TooShort { what: "workspace", need, got: 5 }.into())
    );
    let args = cuda::DecodeStep { q, k, v, state: run.state.slice_mut().split_at(5).0, o: run.o.slice_mut() };
    assert_eq!(
        run.attention.decode(args, Stream::DEFAULT),
        Err(Error::Length { what: "state", want, got: 5 }.into())
    );
    assert!(untouched(&run.outputs(), &case.output()));
}

/// The chunk length, the scale and all eps have an effect in the kernels.
#[test]
fn options_reach_the_kernels() {
    for target in targets() {
        for normaliser in [Normaliser::Global { eps: 2.0 }, Normaliser::PerChunk { chunk: 10, eps: 3.0 }] {
            let feature_map = FeatureMap::Relu { eps: 0.5 };
            let config = with(config([1, 40, 1, 8, 8], normaliser), |c| {
                (c.rule.feature_map, c.rule.scale) = (feature_map, 1.5);
            });
            check_all_types(&target, config, 4, None);
            decode_in::<f32>(&target, config);
        }
    }
}
