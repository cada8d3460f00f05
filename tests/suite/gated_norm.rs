//! The gated RMS norm, compared with its formula in f64: every type, any strides, in place, NaN and infinity,
//! and errors.

use chunkwise::gated_norm::{Config, Gate, GatedNorm, Tensors};
use chunkwise::{Error, Isa, Result, Strides};
use half::{bf16, f16};

use crate::common::*;

const GATES: [Gate; 2] = [Gate::Silu, Gate::Sigmoid];

/// The documented relative error, for rows of normal numbers.
const ERROR: f64 = 1.5e-6;

/// Lengths of rows: one element; below, at and above groups, vectors and blocks; those of models; a very long
/// row.
const SIZES: [usize; 12] = [1, 2, 15, 16, 17, 63, 64, 65, 128, 192, 200, 4096];

/// A configuration and dense tensors `[B, T, H, D]`.
#[derive(Clone)]
struct Norm {
    config: Config,
    x: Vec<f32>,
    z: Vec<f32>,
    weight: Option<Vec<f32>>,
}

/// The elements at which the rows `[B, T, H]` begin, in order.
fn begins(config: &Config, strides: Strides) -> impl Iterator<Item = usize> + use<> {
    let Config { batch, len, heads, .. } = *config;
    (0..batch).flat_map(move |b| (0..len).flat_map(move |t| (0..heads).map(move |h| at(strides, b, t, h))))
}

/// A dense tensor in the layout of these strides, exactly as long as it must be, with `gap` between its rows.
fn spread(config: &Config, strides: Strides, dense: &[f32], gap: f32) -> Vec<f32> {
    let len = begins(config, strides).max().map_or(0, |last| last + config.size);
    let mut tensor = vec![gap; len];
    for (begin, row) in begins(config, strides).zip(dense.chunks(config.size)) {
        tensor[begin..begin + config.size].copy_from_slice(row);
    }
    tensor
}

impl Norm {
    fn new(config: Config, seed: u64, weight: bool) -> Self {
        let len = config.batch * config.len * config.heads * config.size;
        Self {
            config,
            x: normals(seed, len),
            z: normals(seed + 1, len).into_iter().map(|z| 3.0 * z).collect(),
            weight: weight.then(|| normals(seed + 2, config.size)),
        }
    }

    fn checked(&self) -> GatedNorm {
        GatedNorm::new(self.config).expect("a legal configuration")
    }

    /// Computes y, from x in a tensor of its own or in place; returns it dense, after a check that nothing
    /// was written between its rows.
    #[track_caller]
    fn run<X: Number, Z: Number, Y: Number>(&self, in_place: bool) -> Vec<f32> {
        let Config { x_strides, z_strides, y_strides, size, .. } = self.config;
        let x = narrow::<X>(&spread(&self.config, x_strides, &self.x, f32::NAN));
        let z = narrow::<Z>(&spread(&self.config, z_strides, &self.z, f32::NAN));
        let nothing = vec![SENTINEL; self.x.len()];
        let before = if in_place { &self.x } else { &nothing };
        let mut y = narrow::<Y>(&spread(&self.config, y_strides, before, SENTINEL));
        let tensors = if in_place {
            Tensors::in_place(&z[..], &mut y[..])
        } else {
            Tensors::new(&x[..], &z[..], &mut y[..])
        };
        let tensors = match &self.weight {
            Some(weight) => tensors.weight(weight),
            None => tensors,
        };
        self.checked().forward(tensors).expect("legal arguments");
        let mut dense = Vec::new();
        for begin in begins(&self.config, y_strides) {
            dense.extend(widen(&y[begin..begin + size]));
            y[begin..begin + size].fill(Y::narrow(SENTINEL));
        }
        let sentinel = vec![Y::narrow(SENTINEL); y.len()];
        assert!(untouched(&widen(&y), &widen(&sentinel)), "written between rows of y: {:?}", self.config);
        dense
    }

    fn forward(&self) -> Vec<f32> {
        self.run::<f32, f32, f32>(false)
    }

    fn oracle(&self) -> Vec<f64> {
        let Config { size, gate, eps, .. } = self.config;
        let mut y = Vec::new();
        for (x, z) in self.x.chunks(size).zip(self.z.chunks(size)) {
            let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let scale = 1.0 / (squares / size as f64 + f64::from(eps)).sqrt();
            for i in 0..size {
                let weight = self.weight.as_ref().map_or(1.0, |weight| f64::from(weight[i]));
                let z = f64::from(z[i]);
                let sigmoid = 1.0 / (1.0 + (-z).exp());
                let gate = if gate == Gate::Silu { z * sigmoid } else { sigmoid };
                y.push(f64::from(x[i]) * scale * weight * gate);
            }
        }
        y
    }
}

/// Each size with both gates, with and without a weight.
fn all(isa: Isa) -> impl Iterator<Item = Norm> {
    SIZES.into_iter().flat_map(move |size| {
        let options = GATES.into_iter().flat_map(|gate| [(gate, false), (gate, true)]);
        options.map(move |(gate, weight)| {
            let [batch, len, heads] = if size > 1000 { [1, 2, 1] } else { [2, 3, 2] };
            let config = Config::new(batch, len, heads, size).gate(gate).isa(isa);
            Norm::new(config, size as u64, weight)
        })
    })
}

#[test]
fn against_the_formula() {
    for isa in Isa::available() {
        for norm in all(isa) {
            for eps in [1e-6, 1e-5, 0.5] {
                let norm = Norm { config: norm.config.eps(eps), ..norm.clone() };
                for (y, want) in norm.forward().iter().zip(norm.oracle()) {
                    let error = (f64::from(*y) - want).abs();
                    assert!(error <= ERROR * want.abs(), "{y} {want}: {:?}", norm.config);
                }
            }
        }
    }
}

/// Rows of zeros, of tiny and of large numbers, for which eps and the range of f32 matter.
#[test]
fn small_and_large_rows() {
    for isa in Isa::available() {
        for (scale, bound) in [(0.0, 0.0), (1e-30, 1e-6), (1e-3, ERROR), (1e15, ERROR)] {
            let mut norm = Norm::new(Config::new(1, 2, 2, 100).isa(isa), 1, true);
            norm.x.iter_mut().for_each(|x| *x *= scale);
            for (y, want) in norm.forward().iter().zip(norm.oracle()) {
                assert!((f64::from(*y) - want).abs() <= bound * want.abs(), "{y} {want}: {scale}");
            }
        }
        // The sum of the squares of these numbers is not finite in f32.
        let mut norm = Norm::new(Config::new(1, 1, 1, 100).isa(isa), 1, true);
        norm.x.fill(1e20);
        assert!(norm.forward().iter().all(|y| *y == 0.0));
    }
}

/// Inputs of 16 bits give the bits that the same numbers in f32 give, and outputs of 16 bits are those of
/// f32, rounded.
#[test]
fn types() {
    fn check<X: Number, Z: Number, Y: Number>(norm: &Norm) {
        let x = widen(&narrow::<X>(&norm.x));
        let norm = &Norm { x, z: widen(&narrow::<Z>(&norm.z)), ..norm.clone() };
        let want = widen(&narrow::<Y>(&norm.forward()));
        let got = norm.run::<X, Z, Y>(false);
        assert_eq!(first_difference(&got, &want), None, "{} {} {}", X::NAME, Z::NAME, Y::NAME);
        // In place, x has the type of y.
        let norm = &Norm { x: widen(&narrow::<Y>(&norm.x)), ..norm.clone() };
        let want = widen(&narrow::<Y>(&norm.forward()));
        assert_eq!(first_difference(&norm.run::<Y, Z, Y>(true), &want), None, "{} {}", Z::NAME, Y::NAME);
    }
    for isa in Isa::available() {
        for norm in all(isa) {
            check::<bf16, bf16, bf16>(&norm);
            check::<f16, f16, f16>(&norm);
            check::<f32, bf16, f16>(&norm);
            check::<bf16, f16, f32>(&norm);
            check::<f16, f32, bf16>(&norm);
        }
    }
}

#[test]
fn any_strides_and_in_place() {
    for isa in Isa::available() {
        for norm in all(isa) {
            let Config { batch, len, heads, size, .. } = norm.config;
            let want = norm.forward();
            assert_eq!(first_difference(&norm.run::<f32, f32, f32>(true), &want), None, "{:?}", norm.config);
            let layouts = [
                Strides::bthd(len, heads, size),
                Strides::bhtd(len, heads, size),
                Strides::packed(len, heads * size + 7, size),
                Strides { batch: size + 1, token: batch * (size + 1), head: batch * len * (size + 1) + 3 },
            ];
            for x in layouts {
                for z in layouts {
                    for y in layouts {
                        let norm = Norm { config: norm.config.strides(x, z, y), ..norm.clone() };
                        for in_place in [false, true] {
                            let got = norm.run::<f32, f32, f32>(in_place);
                            assert_eq!(first_difference(&got, &want), None, "{in_place}: {:?}", norm.config);
                        }
                    }
                }
            }
        }
    }
}

/// No row depends on another, and a norm without a weight is that with weights of 1.
#[test]
fn rows_alone() {
    for isa in Isa::available() {
        for norm in all(isa) {
            let size = norm.config.size;
            let ones = Norm { weight: Some(vec![1.0; size]), ..norm.clone() };
            let bare = Norm { weight: None, ..norm.clone() };
            assert_eq!(first_difference(&ones.forward(), &bare.forward()), None);
            for (row, want) in norm.forward().chunks(size).enumerate() {
                let rows = row * size..(row + 1) * size;
                let config = Config::new(1, 1, 1, size).gate(norm.config.gate).isa(isa);
                let (x, z) = (norm.x[rows.clone()].to_vec(), norm.z[rows].to_vec());
                let alone = Norm { config, x, z, weight: norm.weight.clone() };
                assert_eq!(first_difference(&alone.forward(), want), None, "{row}: {:?}", norm.config);
            }
        }
    }
}

#[test]
fn special_values() {
    for isa in Isa::available() {
        for norm in all(isa).filter(|norm| norm.config.size > 15 && norm.weight.is_some()) {
            let (size, want) = (norm.config.size, norm.forward());
            let (row, i) = (1, size / 2);
            let special = row * size + i;
            let changed = |change: &dyn Fn(&mut Norm)| {
                let mut norm = norm.clone();
                change(&mut norm);
                norm.forward()
            };
            // Whether all other rows have the same bits.
            let outside = |got: &[f32]| {
                (0..got.len()).all(|at| at / size == row || got[at].to_bits() == want[at].to_bits())
            };
            let got = changed(&|norm| norm.x[special] = f32::NAN);
            assert!(outside(&got) && got[row * size..][..size].iter().all(|y| y.is_nan()));
            let got = changed(&|norm| norm.x[special] = f32::NEG_INFINITY);
            let of_row =
                |at: usize| if at == i { got[special].is_nan() } else { got[row * size + at] == 0.0 };
            assert!(outside(&got) && (0..size).all(of_row), "{:?}", norm.config);
            for (z, silu, sigmoid) in [
                (f32::NAN, f32::NAN, f32::NAN),
                (f32::INFINITY, f32::INFINITY, 1.0),
                (f32::NEG_INFINITY, -0.0, 0.0),
            ] {
                let got = changed(&|norm| norm.z[special] = z);
                assert!((0..got.len()).all(|at| at == special || got[at].to_bits() == want[at].to_bits()));
                // With a gate of 1 the output is the factor by which the gate is multiplied.
                let factor = changed(&|norm| {
                    norm.config.gate = Gate::Sigmoid;
                    norm.z[special] = 100.0;
                })[special];
                let gate = if norm.config.gate == Gate::Silu { silu } else { sigmoid };
                let same = got[special].to_bits() == (factor * gate).to_bits();
                assert!(same || z.is_nan() && got[special].is_nan(), "{z}: {:?}", norm.config);
            }
        }
    }
}

#[test]
fn configurations_that_are_refused() {
    let refused = |config: Config| GatedNorm::new(config).err().unwrap_or_else(|| panic!("{config:?}"));
    let accepted = |config: Config| assert!(GatedNorm::new(config).is_ok(), "{config:?}");
    let config = Config::new(2, 3, 2, 5);
    accepted(config);
    assert_eq!(refused(Config::new(2, 3, 2, 0)), Error::Zero { what: "size" });
    for eps in [0.0, -0.0, -1e-6, f32::NAN, f32::INFINITY] {
        assert_eq!(refused(config.eps(eps)), Error::NotPositive { what: "eps" });
    }
    accepted(config.eps(f32::MIN_POSITIVE));
    let dense = config.x_strides;
    let strides = |batch, token, head| Strides { batch, token, head };
    for y in [strides(30, 10, 4), strides(30, 9, 5), strides(29, 10, 5), strides(0, 10, 5)] {
        assert_eq!(refused(config.strides(dense, dense, y)), Error::Overlap { what: "y" });
    }
    let shared = strides(0, 0, 0);
    accepted(config.strides(shared, shared, dense));
    const MAX: usize = usize::MAX;
    let far = strides(MAX, 0, 0);
    assert_eq!(refused(config.strides(far, dense, dense)), Error::Overflow { what: "x" });
    assert_eq!(refused(config.strides(dense, far, dense)), Error::Overflow { what: "z" });
    assert_eq!(refused(config.strides(dense, dense, far)), Error::Overflow { what: "y" });
    for n in [MAX, MAX / 2, MAX / 4 + 1, MAX / 8 + 1] {
        for [batch, len, heads, size] in
            [[n, 1, 1, 1], [1, n, 1, 1], [1, 1, n, 1], [1, 1, 1, n], [n, n, n, n]]
        {
            let error = refused(Config::new(batch, len, heads, size));
            assert!(matches!(error, Error::Overflow { .. }), "{error}");
        }
    }
    for isa in Isa::available() {
        let norm = GatedNorm::new(config.isa(isa)).expect("a legal configuration");
        assert_eq!((norm.isa(), *norm.config()), (isa, config.isa(isa)));
    }
}

#[test]
fn calls_that_are_refused() {
    let mut config = Config::new(2, 3, 2, 5);
    config.z_strides = Strides::packed(3, 20, 5);
    let norm = GatedNorm::new(config).expect("a legal configuration");
    // z ends with its last row, without the gap after it.
    let (x, z, weight) = (normals(1, 60), normals(2, 110), normals(3, 5));
    let call = |x: &[f32], z: &[f32], weight: &[f32], y: &mut [f32]| -> [Result<()>; 2] {
        let before = y.to_vec();
        let one = norm.forward(Tensors::new(x, z, &mut *y).weight(weight));
        assert!(one.is_ok() || untouched(y, &before));
        y.copy_from_slice(&before);
        let two = norm.forward(Tensors::in_place(z, &mut *y).weight(weight));
        assert!(two.is_ok() || untouched(y, &before));
        [one, two]
    };
    let y = || vec![SENTINEL; 60];
    assert_eq!(call(&x, &z, &weight, &mut y()), [Ok(()); 2]);
    let short = |what, need| Err(Error::TooShort { what, need, got: need - 1 });
    assert_eq!(call(&x[1..], &z, &weight, &mut y()), [short("x", 60), Ok(())]);
    assert_eq!(call(&x, &z[1..], &weight, &mut y()), [short("z", 110); 2]);
    assert_eq!(call(&x, &z, &weight, &mut y()[1..]), [short("y", 60); 2]);
    for got in [0, 4, 6] {
        let error = Err(Error::Length { what: "weight", want: 5, got });
        assert_eq!(call(&x, &z, &vec![1.0; got], &mut y()), [error; 2]);
    }
}

#[test]
fn no_rows() {
    let many = usize::MAX / 64;
    for [batch, len, heads] in [[0, 3, 2], [2, 0, 3], [2, 3, 0], [many, 0, 1], [0, 0, 0]] {
        let norm = GatedNorm::new(Config::new(batch, len, heads, 4)).expect("a legal configuration");
        let mut y = [SENTINEL; 4];
        let nothing: &[f32] = &[];
        norm.forward(Tensors::new(nothing, nothing, &mut y)).expect("nothing to do");
        assert!(untouched(&y, &[SENTINEL; 4]));
    }
}

/// All instruction sets that have a fused multiply-add give the same bits; the hashes in `bits.rs` fix these
/// bits.
#[test]
fn instruction_sets_agree() {
    let Some(first) = fused().next() else { return report("gated norm: no instruction set that fuses") };
    for isa in fused() {
        for (norm, other) in all(first).zip(all(isa)) {
            assert_eq!(first_difference(&norm.forward(), &other.forward()), None, "{isa}: {:?}", norm.config);
        }
    }
}
