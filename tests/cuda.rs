//! Attention on a GPU against the oracle, in every type, with every option: on the emulator, which runs the PTX that is
//! shipped, and on a GPU where there is one.

mod common;
mod cuda_common;

use chunkwise::cuda::{self, Buffer, Device, Stream};
use chunkwise::{Config, FeatureMap, Normaliser, Precision, Strides};
use common::*;
use cuda_common::{Emulator, devices};
use half::{bf16, f16};

/// What went wrong, with the emulator's words.
fn explained<T>(result: cuda::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}: {}", Emulator::get().fault()))
}

/// Forward from the zero state: outputs and final state.
fn forward<E: Number>(device: &Device, case: &Case, segments: Option<usize>) -> (Vec<f32>, Vec<f32>) {
    let mut attention = explained(cuda::Attention::new(device, case.config));
    if let Some(segments) = segments {
        attention = attention.with_segments(segments);
    }
    let upload = |x: &[f32]| explained(Buffer::from_slice(device, &narrow::<E>(x)));
    let (q, k, v) = (upload(&case.q), upload(&case.k), upload(&case.v));
    let mut o = upload(&case.output());
    let mut state = explained(Buffer::from_slice(device, &vec![SENTINEL; attention.state_len()]));
    let mut workspace = explained(Buffer::from_slice(device, &vec![f32::NAN; attention.workspace_len()]));
    let args = cuda::Forward {
        q: q.slice(),
        k: k.slice(),
        v: v.slice(),
        state: cuda::State::Final(state.slice_mut()),
        o: o.slice_mut(),
        workspace: workspace.slice_mut(),
    };
    explained(attention.forward(args, Stream::DEFAULT));
    (widen(&explained(o.read(Stream::DEFAULT))), explained(state.read(Stream::DEFAULT)))
}

#[test]
fn first() {
    for device in devices() {
        let config = Config::new(1, 100, 1, 64, 64, Normaliser::None);
        let case = Case::new(config, 1);
        let (o, state) = forward::<f32>(&device, &case, None);
        let (want, want_state) = case.oracle();
        eprintln!("{:e} {:e}", norm_error(&gather(&config, &o), &want), norm_error(&state, &want_state));
    }
}
