//! The maps of gates and of beta, on vectors of f32. Each is one sequence of operations on every instruction
//! set.

use pulp::Simd;

use crate::math::{exp, sigmoid, softplus};
use crate::rule::{BetaMap, GateMap};
use crate::vector::first_lane;

/// The map of a gate for one head, with its `exp(A_log)`.
#[derive(Clone, Copy)]
pub(crate) struct Decay {
    map: GateMap,
    rate: f32,
}

impl Decay {
    /// `a_log` is A_log of the head, 0 where it is not given.
    #[inline(always)]
    pub(crate) fn new<S: Simd>(simd: S, map: GateMap, a_log: f32) -> Self {
        Self { map, rate: first_lane::<S>(exp(simd, simd.splat_f32s(a_log))) }
    }

    /// Replaces elements of g, which have these dt_bias, by their decays a.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, simd: S, g: &mut [f32], bias: &[f32]) {
        let rate = simd.splat_f32s(self.rate);
        let pairs = S::as_mut_simd_f32s(g).0.iter_mut().zip(S::as_simd_f32s(bias).0);
        // Each map has a loop of its own: a choice for each vector would cost half as much as an exponential.
        match self.map {
            GateMap::Log => {
                for (x, _) in pairs {
                    *x = exp(simd, *x);
                }
            }
            GateMap::Linear => {}
            GateMap::Softplus => {
                for (x, bias) in pairs {
                    let g = simd.mul_f32s(rate, softplus(simd, simd.add_f32s(*x, *bias)));
                    *x = exp(simd, simd.sub_f32s(simd.splat_f32s(0.0), g));
                }
            }
            GateMap::Bounded { lower } => {
                for (x, bias) in pairs {
                    let g = sigmoid(simd, simd.mul_f32s(rate, simd.add_f32s(*x, *bias)));
                    *x = exp(simd, simd.mul_f32s(simd.splat_f32s(lower), g));
                }
            }
        }
    }
}

/// Replaces elements of the tensor of beta by their betas.
#[inline(always)]
pub(crate) fn map_betas<S: Simd>(simd: S, map: BetaMap, betas: &mut [f32]) {
    let twice = match map {
        BetaMap::Given => return,
        BetaMap::Sigmoid => 1.0,
        BetaMap::TwiceSigmoid => 2.0,
    };
    for x in S::as_mut_simd_f32s(betas).0 {
        *x = simd.mul_f32s(simd.splat_f32s(twice), sigmoid(simd, *x));
    }
}
