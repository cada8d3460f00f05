//! Rules with gates and the delta rule, grouped heads, ragged batches, attention that is not causal, and
//! drafts allocate nothing either.

use chunkwise::{Attention, Config, Gate, Heads, Isa, Normaliser, Rule, Shape, State};

use super::without_allocating;
use crate::common::family::{FamilyCase, GATE_MAPS, rules};

#[test]
fn every_rule() {
    let not_causal = Rule::linear(Normaliser::None).causal(false);
    for isa in Isa::available() {
        for (name, rule) in rules().into_iter().chain([("not causal", not_causal)]) {
            let maps = if rule.gate == Gate::None { &GATE_MAPS[..1] } else { &GATE_MAPS };
            for gate_map in maps {
                let rule = rule.gate_map(*gate_map);
                let grouped = Shape::grouped(2, 21, Heads::new(4, 2, 1), 20, 70);
                let plain = FamilyCase::new(Config::new(rule, grouped), 1);
                for case in [plain, FamilyCase::ragged(rule, &[5, 0, 17], [2, 20, 70], 1)] {
                    let case = case.on(isa);
                    let attention = without_allocating("new", || Attention::new(case.config))
                        .expect("a legal configuration");
                    let scratch = &mut vec![0.0; attention.scratch_len().max(attention.decode_scratch_len())];
                    let (o, initial) = (&mut case.output()[..], &mut case.initial.clone()[..]);
                    let last = &mut vec![0.0; initial.len()];
                    let mut forward = |what: &str, state: State<'_>| {
                        let run = || attention.forward(case.tensors(o), state, scratch);
                        without_allocating(&format!("{name}, {what}"), run).expect("legal arguments");
                    };
                    forward("Zero", State::Zero);
                    forward("InitialFinal", State::InitialFinal(initial, last));
                    forward("Carried", State::Carried(initial));
                    let run = || attention.decode(case.tensors(o), initial, scratch);
                    assert_eq!(without_allocating(name, run).is_ok(), rule.causal, "{name}");
                    let parts = || -> chunkwise::Result<()> {
                        let part = attention.forward_part(case.tensors(o), State::Carried(initial))?;
                        let (first, second) = part.split_at(1);
                        second.run(scratch)?;
                        first.run(scratch)
                    };
                    without_allocating(name, parts).expect("legal arguments");
                    let run = || attention.forward(case.tensors(o), State::Zero, &mut []);
                    without_allocating("an error", run).expect_err("no scratch");
                }
            }
        }
    }
}

#[test]
fn drafts() {
    for isa in Isa::available() {
        for (name, rule) in rules().into_iter().chain([("linear", Rule::linear(Normaliser::None))]) {
            let shape = Shape::grouped(2, 16, Heads::new(4, 2, 1), 20, 70);
            let case = FamilyCase::new(Config::new(rule, shape), 1).on(isa);
            let attention = case.attention();
            let (o, state) = (&mut case.output()[..], &mut case.initial.clone()[..]);
            let scratch = &mut vec![0.0; attention.scratch_len()];
            let record = &mut vec![0.0; without_allocating(name, || attention.record_len())];
            let verify = || attention.verify(case.tensors(o), state, record, scratch);
            without_allocating(name, verify).expect("legal arguments");
            without_allocating(name, || attention.commit(record, &[16, 7], state)).expect("legal arguments");
            without_allocating(name, || attention.commit(record, &[17, 7], state)).expect_err("too many");
        }
    }
}
