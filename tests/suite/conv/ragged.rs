//! Ragged batches: sequences of different lengths, one after the other.

use super::*;

/// Each sequence of a ragged batch has the results that it has alone; some have no tokens.
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
                // The stride of the batch is not used.
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

/// A sequence without tokens may begin after the last token, whose offset would overflow.
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
