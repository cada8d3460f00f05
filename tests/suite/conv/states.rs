//! The state in other libraries' layouts, and calls without tokens.

use chunkwise::Error;

use super::*;

/// The states of ONNX, and those of transformers, which have one more column.
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

        // States of other lengths are refused, and nothing is written.
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
    // There are more sequences than a loop could visit.
    let conv = CausalConv::new(Config::new(usize::MAX / 64, 0, 1, 2)).expect("a legal configuration");
    conv.forward(Tensors::new(&[0.0; 0], &[1.0, 2.0], &mut [0.0; 0]), State::Zero).expect("nothing to do");
    // A ragged batch without tokens.
    let conv = CausalConv::new(Config::new(2, 0, 1, 2)).expect("a legal configuration");
    let (mut last, tensors) = ([SENTINEL; 2], Tensors::new(&[0.0; 0], &[1.0, 2.0], &mut [0.0; 0]));
    conv.forward(tensors.sequences(&[0, 0, 0]), State::InitialFinal(&[3.0, 4.0], &mut last))
        .expect("nothing to do");
    assert_eq!(last, [3.0, 4.0]);
}
