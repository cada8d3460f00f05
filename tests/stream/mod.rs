//! A stream that is much longer than any tensor, computed in pieces on a carried state, and by the oracle.
//! The error of its last outputs shows how rounding has changed the state.

use chunkwise::{Config, Isa, Normaliser, Rule, Shape, State, Strides};

use crate::common::*;

/// The number of tokens: five hours at 60 a second.
pub(crate) const TOKENS: usize = 1 << 20;
/// The number of tokens, at the end of the stream, whose outputs are compared with the oracle.
pub(crate) const JUDGED: usize = 1024;
/// The number of tokens in memory at a time.
const PIECE: usize = 4096;
/// K and V. The error hardly depends on them, but the time does.
pub(crate) const DIM: usize = 16;

/// The tokens of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tokens {
    /// Normal numbers, whose roundings are independent and partly cancel.
    Normal,
    /// One token again and again, as from a sensor whose reading does not change. Over long times, all
    /// roundings then have the same direction.
    Same,
}

/// One head with the map Elu.
pub(crate) fn config(normaliser: Normaliser, tokens: Tokens) -> Config {
    let config = Config::new(Rule::linear(normaliser), Shape::new(1, PIECE, 1, DIM, DIM));
    let strides = match tokens {
        Tokens::Normal => config.shape.q_strides,
        Tokens::Same => Strides { token: 0, ..config.shape.q_strides },
    };
    with(config, |c| c.shape = c.shape.with_inputs(strides, strides, strides))
}

/// The kinds of state, with the change of a configuration that selects each.
pub(crate) const KINDS: [(&str, Ask); 2] =
    [("plain", |config| config), ("compensated", |config| with(config, |c| c.rule.compensated = true))];
type Ask = fn(Config) -> Config;

/// One way to compute the stream.
pub(crate) struct Stream {
    /// Which of [`KINDS`].
    pub(crate) kind: &'static str,
    /// The configuration, with a pinned instruction set.
    pub(crate) config: Config,
    /// Whether tokens are computed by forward, or else one by one.
    pub(crate) forward: bool,
    state: Vec<f32>,
    o: Vec<f32>,
    /// The norm error of the last [`JUDGED`] outputs.
    pub(crate) error: f64,
}

/// Computes the stream for a configuration from [`config`], with every kind of state, by forward and one by
/// one, on some instruction sets.
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
