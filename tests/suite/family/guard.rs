//! No access is outside a slice: every buffer of a call, including g, beta, A_log, dt_bias and the beginnings
//! of sequences, lies next to pages that fault, as in `crate::guard`.

use chunkwise::{Attention, Config, Gate, GateMap, Heads, Isa, Normaliser, Rule, Shape, State, Tensors};
use half::{bf16, f16};

use crate::common::family::*;
use crate::common::*;
use crate::guard::{Fence, on_both_sides};

/// Fences for q, k, v, o, g and beta; for A_log, dt_bias, the two states and scratch; and for the beginnings.
struct Buffers {
    tensors: [Fence; 6],
    numbers: [Fence; 5],
    begins: Fence,
}

impl Buffers {
    fn new() -> Self {
        let (tensors, numbers) =
            (std::array::from_fn(|_| Fence::new()), std::array::from_fn(|_| Fence::new()));
        Self { tensors, numbers, begins: Fence::new() }
    }
}

type Types = fn(&mut Buffers, &FamilyCase);
const TYPES: [Types; 4] = [run::<f32, f32>, run::<bf16, bf16>, run::<f16, f32>, run::<f32, f16>];

/// Computes all tokens twice, the second time on the state after the first, then decodes one more. q, v and
/// beta have type A, the other tensors type B.
fn run<A: Number, B: Number>(buffers: &mut Buffers, case: &FamilyCase) {
    let attention = case.attention();
    let one = case.changed(|case| case.config.shape.len = case.config.shape.len.min(1));
    let decodes = case.decodes() && case.config.shape.len > 0;
    on_both_sides(|side| {
        let Buffers {
            tensors: [q, k, v, o, g, beta],
            numbers: [a_log, dt_bias, initial, last, scratch],
            begins,
        } = &mut *buffers;
        let a_log = &*a_log.place(side, &case.a_log);
        let dt_bias = &*dt_bias.place(side, &case.dt_bias);
        let initial = &*initial.place(side, &case.initial);
        let last = last.place(side, &vec![SENTINEL; initial.len()]);
        let begins = case.sequences.as_ref().map(|sequences| &*begins.place(side, sequences));
        let mut seen = Vec::new();
        let mut call =
            |case: &FamilyCase, state: Option<State<'_>>, attention: &Attention, carried: &mut [f32]| {
                let part = |tensor: &[f32], which| tensor[..case.reach(which).min(tensor.len())].to_vec();
                let q = &*q.place(side, &narrow::<A>(&part(&case.q, Which::Q)));
                let k = &*k.place(side, &narrow::<B>(&part(&case.k, Which::K)));
                let v = &*v.place(side, &narrow::<A>(&part(&case.v, Which::V)));
                let g = &*g.place(side, &narrow::<B>(&part(&case.g, Which::G)));
                let beta = &*beta.place(side, &narrow::<A>(&part(&case.beta, Which::Beta)));
                let o = o.place(side, &narrow::<B>(&case.output()));
                let mut tensors =
                    Tensors::new(q, k, v, &mut *o).gate(g).beta(beta).gate_parameters(a_log, dt_bias);
                if let Some(begins) = begins {
                    tensors = tensors.sequences(begins);
                }
                let len =
                    if state.is_some() { attention.scratch_len() } else { attention.decode_scratch_len() };
                let scratch = scratch.place(side, &vec![SENTINEL; len]);
                let done = match state {
                    Some(state) => attention.forward(tensors, state, scratch),
                    None => attention.decode(tensors, carried, scratch),
                };
                done.expect("legal arguments");
                seen.extend(widen(o));
            };
        call(case, Some(State::InitialFinal(initial, last)), &attention, &mut []);
        call(case, Some(State::Carried(last)), &attention, &mut []);
        if decodes {
            call(&one, None, &attention, last);
        }
        seen.extend(&*last);
        seen
    });
}

/// Every rule, with the parameters of a map where it has a key gate; linear attention with a norm, causal or
/// not.
fn all_rules() -> Vec<Rule> {
    let mut all: Vec<Rule> = rules().into_iter().map(|(_, rule)| rule).collect();
    for rule in all.iter_mut().filter(|rule| rule.gate == Gate::Key) {
        rule.gate_map = GateMap::Softplus;
    }
    all.push(Rule::delta(Gate::Scalar).gate_map(GateMap::Bounded { lower: -5.0 }));
    let linear = Rule::linear(Normaliser::Global { eps: 1e-6 }).qk_norm(1e-6);
    all.extend([linear, linear.causal(false)]);
    all
}

/// Runs a case on every instruction set and with every combination of types.
fn check(buffers: &mut Buffers, case: &FamilyCase) {
    for isa in Isa::available() {
        for types in TYPES {
            types(buffers, &case.on(isa));
        }
    }
}

#[test]
fn every_tail_of_a_row() {
    let buffers = &mut Buffers::new();
    for rule in all_rules() {
        let mut check = |key, value| check(buffers, &FamilyCase::of(rule, [1, 18, 1, key, value]));
        for key in (1..=18).chain([31, 32, 33, 65]) {
            check(key, 3);
        }
        for value in (1..=34).chain([63, 64, 65, 127, 129]) {
            check(5, value);
        }
    }
}

#[test]
fn every_tail_of_a_sequence() {
    let buffers = &mut Buffers::new();
    for rule in all_rules() {
        for len in (0..=2 * 16 + 5).chain([63, 65]) {
            check(buffers, &FamilyCase::of(rule, [1, len, 1, 7, 19]));
        }
    }
}

#[test]
fn layouts_and_heads() {
    let buffers = &mut Buffers::new();
    for rule in all_rules() {
        for groups in [Heads::new(4, 2, 2), Heads::new(1, 2, 4), Heads::new(4, 1, 2)] {
            let case = FamilyCase::new(Config::new(rule, Shape::grouped(2, 6, groups, 9, 18)), 1);
            check(buffers, &case);
            for order in 0..6 {
                let layouts = [0, 1, 2, 3, 4, 5].map(|more| ((order + more) % 6, [1, 0, 3]));
                check(buffers, &case.laid_out(layouts));
            }
        }
    }
}

#[test]
fn ragged_batches() {
    let buffers = &mut Buffers::new();
    for rule in all_rules() {
        for lens in [&[7, 0, 18, 1][..], &[0, 5, 0], &[0, 0]] {
            let case = FamilyCase::ragged(rule, lens, [2, 9, 18], 1);
            check(buffers, &case);
            check(buffers, &case.laid_out([1, 0, 2, 3, 4, 5].map(|order| (order, [1, 0, 3]))));
        }
    }
}

#[test]
fn drafts() {
    let buffers = &mut Buffers::new();
    for rule in all_rules().into_iter().filter(|rule| rule.causal) {
        for (len, key, value) in [(1, 1, 1), (3, 5, 17), (16, 18, 35), (9, 16, 64), (5, 7, 129)] {
            for isa in Isa::available() {
                let case = FamilyCase::of(rule, [2, len, 2, key, value]).on(isa);
                let attention = case.attention();
                on_both_sides(|side| {
                    let Buffers {
                        tensors: [.., o, g, beta],
                        numbers: [record, _, state, _, scratch],
                        begins,
                    } = &mut *buffers;
                    let state = state.place(side, &case.initial);
                    let record = record.place(side, &vec![SENTINEL; attention.record_len()]);
                    let scratch = scratch.place(side, &vec![SENTINEL; attention.scratch_len()]);
                    let o = o.place(side, &case.output());
                    let tensors = Tensors::new(&case.q[..], &case.k[..], &case.v[..], &mut *o)
                        .gate(&*g.place(side, &case.g))
                        .beta(&*beta.place(side, &case.beta))
                        .gate_parameters(&case.a_log, &case.dt_bias);
                    attention.verify(tensors, state, record, scratch).expect("legal arguments");
                    let accepted = begins.place(side, &[len as u32, len as u32 / 2]);
                    attention.commit(record, accepted, state).expect("legal arguments");
                    [o, record, state].into_iter().flat_map(|x| x.to_vec()).collect()
                });
            }
        }
    }
}
