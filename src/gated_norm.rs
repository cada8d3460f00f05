//! The gated RMS norm after linear attention, over the rows of each head.
//!
//! ```text
//! y[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i] * act(z[i])        act(a) = a sigmoid(a), or sigmoid(a)
//! ```
//!
//! The norm is applied first, and to x alone. With [`Gate::Silu`] and eps 1e-6, the defaults, this is
//! `RMSNormGated` of Qwen3-Next, Qwen3.5 and OLMo-Hybrid; with [`Gate::Sigmoid`] it is that of Kimi Delta
//! Attention. ONNX Runtime's `GatedRMSNorm` has another default of eps, 1e-5. Mamba-2's gated norm has
//! another formula, which normalises `x silu(z)`; it is not offered. Rows are multiplied by the weight as it
//! is (some norms without a gate multiply by 1 + weight).
//!
//! x, z and y are f32, bf16 or f16, and are laid out like attention's output: `[B, T, H, D]` with strides,
//! each head's row contiguous. Thus z may be columns of a projection's output ([`Strides::packed`]), and x
//! may be normalised in place ([`Tensors::in_place`]). Nothing is rounded to 16 bits between x and y, whereas
//! PyTorch's modules round the normed row.
//!
//! # Numbers
//!
//! The sum of squares has the library's canonical order, sixteen partial sums and then a fixed tree, so
//! results have the same bits on every instruction set that has a fused multiply-add. For rows of up to 4096
//! normal numbers an output is within 1.5e-6 of the formula, relatively. The sum of squares must be finite in
//! f32: where it is not, with elements of more than about 1e19, outputs are 0. An infinity in x makes its own
//! output NaN and the other outputs of its row 0. A NaN in x makes the outputs of its row NaN, a NaN in z its
//! own output. No row depends on another.
//!
//! # Example
//!
//! ```
//! use chunkwise::gated_norm::{Config, Gate, GatedNorm, Tensors};
//!
//! // 1 sequence, 2 tokens, 1 head, rows of 2 elements.
//! let norm = GatedNorm::new(Config::new(1, 2, 1, 2).gate(Gate::Sigmoid))?;
//! let (x, z, weight) = ([3.0, -3.0, 5.0, 5.0], [0.0; 4], [1.0, 2.0]);
//! let mut y = [0.0; 4];
//! norm.forward(Tensors::new(&x, &z, &mut y).weight(&weight))?;
//! for (y, want) in y.iter().zip([0.5, -1.0, 0.5, 1.0]) {
//!     assert!((y - want).abs() < 1e-6);
//! }
//! # Ok::<(), chunkwise::Error>(())
//! ```

use pulp::{Simd, WithSimd};

use crate::axes::{self, Axis};
use crate::element::{Elements, ElementsMut, widen};
use crate::error::{Error, Result, check_len, check_room};
use crate::isa::{Isa, dispatch};
use crate::math::{GROUP, inverse_root, sigmoid, silu, sum_group};
use crate::scratch::round_up;
use crate::shape::Strides;

/// The sizes, strides and formula of a gated RMS norm.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The number of sequences, B.
    pub batch: usize,
    /// The number of tokens in each sequence, T.
    pub len: usize,
    /// The number of heads, H.
    pub heads: usize,
    /// Elements in a row, D, at least 1.
    pub size: usize,
    /// Strides of x `[B, T, H, D]`.
    pub x_strides: Strides,
    /// Strides of z `[B, T, H, D]`.
    pub z_strides: Strides,
    /// Strides of y `[B, T, H, D]`; rows must not overlap.
    pub y_strides: Strides,
    /// The function act that is applied to z; [`Gate::Silu`] by default.
    pub gate: Gate,
    /// Added to the mean of the squares; finite and above zero. 1e-6 by default.
    pub eps: f32,
    /// The instruction set; `None` selects [`Isa::choose`].
    pub isa: Option<Isa>,
}

impl Config {
    /// Contiguous tensors `[B, T, H, D]`, with SiLU and eps 1e-6.
    pub const fn new(batch: usize, len: usize, heads: usize, size: usize) -> Self {
        let strides = Strides::bthd(len, heads, size);
        let (gate, eps) = (Gate::Silu, 1e-6);
        Self {
            batch,
            len,
            heads,
            size,
            x_strides: strides,
            z_strides: strides,
            y_strides: strides,
            gate,
            eps,
            isa: None,
        }
    }

    /// The same sizes with x, z and y of these strides.
    #[must_use]
    pub const fn strides(self, x: Strides, z: Strides, y: Strides) -> Self {
        Self { x_strides: x, z_strides: z, y_strides: y, ..self }
    }

    /// The same configuration with another gate.
    #[must_use]
    pub const fn gate(self, gate: Gate) -> Self {
        Self { gate, ..self }
    }

    /// The same configuration with another eps.
    #[must_use]
    pub const fn eps(self, eps: f32) -> Self {
        Self { eps, ..self }
    }

    /// The same configuration on a pinned instruction set.
    #[must_use]
    pub const fn isa(self, isa: Isa) -> Self {
        Self { isa: Some(isa), ..self }
    }

    fn axes(&self, strides: Strides) -> [Axis; 4] {
        [
            Axis { stride: strides.batch, count: self.batch },
            Axis { stride: strides.token, count: self.len },
            Axis { stride: strides.head, count: self.heads },
            Axis { stride: 1, count: self.size },
        ]
    }
}

/// The function act that is applied to z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gate {
    /// `z / (1 + exp(-z))`.
    #[default]
    Silu,
    /// `1 / (1 + exp(-z))`.
    Sigmoid,
}

/// The tensors of a call; the strides are in [`Config`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Tensors<'a> {
    /// x, or `None` where y contains it.
    x: Option<Elements<'a>>,
    z: Elements<'a>,
    weight: Option<&'a [f32]>,
    y: ElementsMut<'a>,
}

impl<'a> Tensors<'a> {
    /// x, z and y `[B, T, H, D]`. Elements of y between its rows are left untouched.
    pub fn new(
        x: impl Into<Elements<'a>>,
        z: impl Into<Elements<'a>>,
        y: impl Into<ElementsMut<'a>>,
    ) -> Self {
        Self { x: Some(x.into()), z: z.into(), weight: None, y: y.into() }
    }

    /// z and y `[B, T, H, D]`: y contains x and is overwritten. The strides of x are not used, and the bits
    /// are those of [`Tensors::new`].
    pub fn in_place(z: impl Into<Elements<'a>>, y: impl Into<ElementsMut<'a>>) -> Self {
        Self { x: None, z: z.into(), weight: None, y: y.into() }
    }

    /// The same tensors with a weight `[D]`; without one the weight is 1.
    #[must_use]
    pub fn weight(self, weight: &'a [f32]) -> Self {
        Self { weight: Some(weight), ..self }
    }
}

/// A checked configuration of a gated RMS norm.
#[derive(Clone, Copy, Debug)]
pub struct GatedNorm {
    config: Config,
    isa: Isa,
    /// Elements that x, z and y reach.
    reach: [usize; 3],
}

impl GatedNorm {
    /// Checks a configuration.
    ///
    /// # Errors
    /// Rows without elements; sizes that overflow; strides of y under which rows overlap; an eps that is not
    /// finite and above zero; an instruction set that is not available.
    pub fn new(config: Config) -> Result<Self> {
        if config.size == 0 {
            return Err(Error::Zero { what: "size" });
        }
        if !(config.eps.is_finite() && config.eps > 0.0) {
            return Err(Error::NotPositive { what: "eps" });
        }
        let reach = [
            axes::reach("x", config.axes(config.x_strides))?,
            axes::reach("z", config.axes(config.z_strides))?,
            axes::reach("y", config.axes(config.y_strides))?,
        ];
        axes::check_disjoint("y", config.axes(config.y_strides))?;
        let isa = Isa::resolve(config.isa)?;
        Ok(Self { config, isa, reach })
    }

    /// The configuration, as it was given.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The instruction set on which calls run.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Elements that x, z and y reach.
    #[cfg(feature = "cdylib")]
    pub(crate) fn reach(&self) -> [usize; 3] {
        self.reach
    }

    /// Computes all rows.
    ///
    /// # Errors
    /// A slice shorter than its shape and strides reach, a weight of another length. y is left untouched
    /// then.
    pub fn forward(&self, tensors: Tensors<'_>) -> Result<()> {
        let [x, z, y] = self.reach;
        if let Some(given) = tensors.x {
            check_room("x", x, given.len())?;
        }
        check_room("z", z, tensors.z.len())?;
        if let Some(weight) = tensors.weight {
            check_len("weight", self.config.size, weight.len())?;
        }
        check_room("y", y, tensors.y.as_elements().len())?;
        // Without rows, one axis has no index, and the others may have any number.
        if y > 0 {
            dispatch(self.isa, Task { config: &self.config, tensors });
        }
        Ok(())
    }
}

/// Elements of a row that are widened at once.
const BLOCK: usize = 64;

/// A checked call.
struct Task<'a> {
    config: &'a Config,
    tensors: Tensors<'a>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Config { batch, len, heads, .. } = *self.config;
        for batch in 0..batch {
            for token in 0..len {
                for head in 0..heads {
                    self.row(simd, [batch, token, head]);
                }
            }
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn row<S: Simd>(&mut self, simd: S, row: [usize; 3]) {
        let Config { size, x_strides, z_strides, y_strides, gate, eps, .. } = *self.config;
        let Tensors { x, z, weight, y } = &mut self.tensors;
        let to = y_strides.index(row);
        let z = z.slice(z_strides.index(row)..z_strides.index(row) + size);
        let x = x.map(|x| x.slice(x_strides.index(row)..x_strides.index(row) + size));
        let mean = {
            let x = x.unwrap_or(y.as_elements().slice(to..to + size));
            sum_of_squares(simd, x) / size as f32
        };
        let scale = inverse_root(simd, simd.splat_f32s(mean + eps));
        for begin in (0..size).step_by(BLOCK) {
            let end = size.min(begin + BLOCK);
            let (result, z_space, w_space) = (&mut [0.0; BLOCK], &mut [0.0; BLOCK], &mut [1.0; BLOCK]);
            match x {
                Some(x) => widen(simd, x.slice(begin..end), result),
                None => widen(simd, y.as_elements().slice(to + begin..to + end), result),
            }
            widen(simd, z.slice(begin..end), z_space);
            if let Some(weight) = weight {
                w_space[..end - begin].copy_from_slice(&weight[begin..end]);
            }
            let factors = S::as_simd_f32s(z_space).0.iter().zip(S::as_simd_f32s(w_space).0);
            // Only vectors that contain elements of the row are computed.
            let vectors = round_up(end - begin, GROUP) / S::F32_LANES;
            for (x, (z, w)) in S::as_mut_simd_f32s(result).0.iter_mut().zip(factors).take(vectors) {
                let z = match gate {
                    Gate::Silu => silu(simd, *z),
                    Gate::Sigmoid => sigmoid(simd, *z),
                };
                *x = simd.mul_f32s(simd.mul_f32s(simd.mul_f32s(*x, scale), *w), z);
            }
            y.write(simd, to + begin, &result[..end - begin]);
        }
    }
}

/// The sum of the squares in the canonical order: sixteen partial sums, then a tree.
#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, x: Elements<'_>) -> f32 {
    // A group has at most this many vectors; the others are never used.
    let mut partial = [simd.splat_f32s(0.0); GROUP];
    let mut space = [0.0; BLOCK];
    for begin in (0..x.len()).step_by(BLOCK) {
        let block = x.slice(begin..x.len().min(begin + BLOCK));
        // The padding adds zeros.
        let padded = &mut space[..round_up(block.len(), GROUP)];
        widen(simd, block, padded);
        for group in padded.as_chunks::<GROUP>().0 {
            for (partial, x) in partial.iter_mut().zip(S::as_simd_f32s(group).0) {
                *partial = simd.mul_add_e_f32s(*x, *x, *partial);
            }
        }
    }
    let mut sums = [0.0; GROUP];
    sums.copy_from_slice(&bytemuck::cast_slice::<S::f32s, f32>(&partial)[..GROUP]);
    sum_group(&sums)
}
