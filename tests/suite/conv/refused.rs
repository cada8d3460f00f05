//! Invalid configurations and calls return the error that describes them, and nothing is written.

use chunkwise::{Error, Result};

use super::*;

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
        assert_eq!(
            refused(Config::new(2, 3, 5, width)),
            Error::TooMany { what: "taps of a convolution", most: 8, got: width }
        );
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

/// The arguments of a call.
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

    /// The error of a call with these arguments after a change, after a check that the call has written
    /// nothing.
    #[track_caller]
    fn refused(&self, conv: &CausalConv, decode: bool, change: impl FnOnce(&mut Self)) -> Error {
        let mut given = self.clone();
        change(&mut given);
        let before = given.clone();
        let error = given.run(conv, decode).expect_err("invalid arguments must be refused");
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
        // The second sequence of a decode begins at the same element as in a forward.
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
        given.clone().run(&conv, decode).expect("slices of the required lengths");
        let short = |what| Error::TooShort { what, need: rows, got: rows - 1 };
        let refused = |change: fn(&mut Given)| given.refused(&conv, decode, change);
        assert_eq!(refused(|g| g.x.truncate(g.x.len() - 1)), short("x"));
        assert_eq!(refused(|g| g.y.truncate(g.y.len() - 1)), short("y"));
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
        assert_eq!(
            refused(|g| g.initial.truncate(g.initial.len() - 1)),
            Error::Length { what: "state", want: 30, got: 29 }
        );
        // In a ragged batch the two sequences have three tokens together.
        let mut ragged = given.clone();
        ragged.sequences = Some(vec![0, 1, 3]);
        ragged.x.truncate(15);
        ragged.y.truncate(15);
        ragged.clone().run(&conv, false).expect("slices of the required lengths");
        for wrong in [[1, 1, 3], [0, 1, 2], [0, 1, 4], [0, 4, 3], [3, 1, 0]] {
            let error = ragged.refused(&conv, false, |g| g.sequences = Some(wrong.to_vec()));
            assert_eq!(error, Error::Sequences, "{wrong:?}");
        }
        for wrong in [&[][..], &[0], &[0, 3], &[0, 1, 2, 3]] {
            let error = ragged.refused(&conv, false, |g| g.sequences = Some(wrong.to_vec()));
            assert_eq!(error, Error::Length { what: "sequences", want: 3, got: wrong.len() });
        }
        let error = ragged.refused(&conv, false, |g| g.x.truncate(g.x.len() - 1));
        assert_eq!(error, Error::TooShort { what: "x", need: 15, got: 14 });
        // Whether sequences overlap is only checked in a call, because a ragged batch does not use their
        // stride.
        let mut overlapping = config;
        overlapping.y_strides.batch = 14;
        let conv = CausalConv::new(overlapping).expect("a legal configuration");
        assert_eq!(given.refused(&conv, false, |_| ()), Error::Overlap { what: "y" });
        ragged.clone().run(&conv, false).expect("a ragged batch does not use the stride of the batch");
    }
}

#[test]
fn messages() {
    for (error, text) in [
        (
            Error::TooMany { what: "taps of a convolution", most: 8, got: 9 },
            "9 taps of a convolution: at most 8 are possible",
        ),
        (
            Error::Sequences,
            "the beginnings of sequences must start at 0, never decrease and end at the number of tokens, and are there for \
             the forward of a ragged batch alone",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}
