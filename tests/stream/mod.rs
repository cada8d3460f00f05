//! A stream much longer than any tensor: in pieces, the state carried along, with the oracle beside it. How far
//! its last outputs are off says what rounding has done to the state.

use chunkwise::{Config, Isa, Normaliser, Rule, Shape, State, Strides};

use crate::common::*;

/// Tokens: five hours at 60 a second.
pub(crate) const TOKENS: usize = 1 << 20;
/// Of which the outputs of so many, the last ones, are judged.
pub(crate) const JUDGED: usize = 1024;
/// Tokens in memory at a time.
const PIECE: usize = 4096;
/// K and V: the error hardly depends on them, the time does.
pub(crate) const DIM: usize = 16;

/// What the stream consists of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tokens {
    /// Normal numbers: roundings are independent and partly cancel.
    Normal,
    /// One token again and again, as a sensor at rest gives it: all roundings of a long time go the same way.
    Same,
}

/// One head, Elu.
pub(crate) fn config(normaliser: Normaliser, tokens: Tokens) -> Config {
    let config = Config::new(Rule::linear(normaliser), Shape::new(1, PIECE, 1, DIM, DIM));
    let strides = match tokens {
        Tokens::Normal => config.shape.q_strides,
        Tokens::Same => Strides { token: 0, ..config.shape.q_strides },
    };
    with(config, |c| c.shape = c.shape.with_inputs(strides, strides, strides))
}

/// Kinds of state, and how to ask for them.
pub(crate) const KINDS: [(&str, Ask); 2] =
    [("plain", |config| config), ("compensated", |config| with(config, |c| c.rule.compensated = true))];
type Ask = fn(Config) -> Config;

/// One way through the stream.
pub(crate) struct Stream {
    /// Which of [`KINDS`].
    pub(crate) kind: &'static str,
    /// As asked for, the instruction set pinned.
    pub(crate) config: Config,
    /// Many tokens at once, or one by one.
    pub(crate) forward: bool,
    state: Vec<f32>,
    o: Vec<f32>,
    /// Norm error of the outputs that are judged.
    pub(crate) error: f64,
}

/// Every kind of state both ways on some instruction sets, for a configuration like [`config`]'s.
pub(crate) fn streams(config: Config, isas: &[Isa]) -> Vec<Stream> {
    let same = config.shape.k_strides.token == 0;
    let case = |piece| Case::new(config, if same { 0 } else { piece });
    let mut streams = Vec::new();
    for (isa, (kind, ask)) in isas.iter().flat_map(|isa| KINDS.map(|kind| (*isa, kind))) {
        for forward in [true, false] {
            let config = ask(config).isa(isa);
            let case = Case { config, ..case(0) };
            let (state, o) = (case.zero_state(), case.output());
            streams.push(Stream { kind, config, forward, state, o, error: f64::INFINITY });
        }
    }
    let mut oracle = Oracle::new(&config);
    for piece in 0..TOKENS / PIECE {
        let mut case = case(piece as u64);
        let want = oracle.run(&case.q, &case.k, &case.v, 0..PIECE);
        let judged = want.len() - JUDGED * config.shape.value..;
        for Stream { config, forward, state, o, error, .. } in &mut streams {
            case.config = *config;
            if *forward {
                case.forward(0..PIECE, State::Carried(state), o);
            } else {
                case.decode(0..PIECE, state, o);
            }
            *error = norm_error(&o[judged.clone()], &want[judged.clone()]);
        }
    }
    streams
}
