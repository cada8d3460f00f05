//! Which heads of the tensors belong together. The order of heads, tiled or interleaved heads, and grouped
//! heads or tensors that repeat them all give the same bits.

use chunkwise::{Config, HeadOrder, Heads, Isa, Rule, Shape};

use super::{all_rules, same};
use crate::common::family::*;

const GROUPS: [(usize, usize, usize); 7] =
    [(4, 2, 2), (2, 2, 4), (1, 1, 3), (4, 2, 1), (2, 1, 6), (6, 3, 3), (12, 2, 6)];

fn config(rule: Rule, groups: Heads, isa: Isa) -> Config {
    Config::new(rule, Shape::grouped(2, 18, groups, 9, 20)).isa(isa)
}

/// Outputs and states with their heads in another order: head `h` of the result is head `of(h)`.
fn reordered(
    case: &FamilyCase,
    (o, state): &(Vec<f32>, Vec<f32>),
    output_of: impl Fn(usize) -> usize,
    state_of: impl Fn(usize) -> usize,
) -> (Vec<f32>, Vec<f32>) {
    let value = case.config.shape.value;
    let heads = case.config.shape.groups.output();
    let rows = o.chunks_exact(heads * value);
    let o = rows.flat_map(|row| {
        (0..heads).flat_map(|h| row[output_of(h) * value..][..value].to_vec()).collect::<Vec<_>>()
    });
    let o: Vec<f32> = o.collect();
    let Shape { batch, heads, .. } = case.config.shape;
    let state = (0..batch)
        .flat_map(|b| (0..heads).map(move |h| (b, h)))
        .flat_map(|(b, h)| case.state_of(state, b, state_of(h)).to_vec())
        .collect();
    (o, state)
}

/// Heads are independent: if they are rotated, each has the same bits.
#[test]
fn turned_round() {
    for (name, rule) in all_rules().into_iter().filter(|(_, rule)| rule.causal) {
        for isa in Isa::available() {
            let case = FamilyCase::new(config(rule, Heads::equal(5), isa), 11);
            for turn in 1..5 {
                let of = |h: usize| (h + turn) % 5;
                let turned = case.rearranged(case.config, |_, [b, t, h]| [b, t, of(h)]);
                let name = format!("{name}, {isa}, {turn}");
                let want = |results| reordered(&case, &results, of, of);
                same(&name, &turned.forward(), &want(case.forward()));
                same(&format!("{name}, decode"), &turned.decode(), &want(case.decode()));
            }
        }
    }
}

/// Tiled heads are interleaved heads in another order: with groups of n, tiled head `j few + i` is
/// interleaved head `i n + j`.
#[test]
fn tiled_and_interleaved() {
    for (name, rule) in all_rules().into_iter().filter(|(_, rule)| rule.causal) {
        for isa in Isa::available() {
            for (q, k, v) in GROUPS {
                let groups = Heads::new(q, k, v);
                let (state, output) = (groups.state(), groups.output());
                // A tensor of `many` heads shares those of the tensor with the fewest heads, which keep their
                // order.
                let fewest = q.min(k).min(v);
                let of = move |many: usize| move |h: usize| (h % fewest) * (many / fewest) + h / fewest;
                // With three different numbers of heads the one in the middle shares heads and is itself
                // shared, so that one permutation does not describe it.
                let middle =
                    q.max(k).max(v) == output && [q, k, v].iter().any(|n| *n > fewest && *n < output);
                if middle {
                    continue;
                }
                let case = FamilyCase::new(config(rule, groups, isa), 12);
                let tiled = config(rule, groups.order(HeadOrder::Tiled), isa);
                let tiled = case.rearranged(tiled, |which, [b, t, h]| {
                    let [many, _] = case.row_sizes(which);
                    [b, t, of(many)(h)]
                });
                let name = format!("{name}, {isa}, {groups:?}");
                let want = |results| reordered(&case, &results, of(output), of(state));
                same(&name, &tiled.forward(), &want(case.forward()));
                same(&format!("{name}, decode"), &tiled.decode(), &want(case.decode()));
            }
        }
    }
}

/// Grouped heads give the bits of tensors in which heads are repeated, so that each has as many heads as o.
#[test]
fn grouped_and_repeated() {
    for (name, rule) in all_rules().into_iter().filter(|(_, rule)| rule.causal) {
        for isa in Isa::available() {
            for ((q, k, v), order) in GROUPS
                .into_iter()
                .flat_map(|groups| [HeadOrder::Interleaved, HeadOrder::Tiled].map(|order| (groups, order)))
            {
                let groups = Heads::new(q, k, v).order(order);
                let (state, output) = (groups.state(), groups.output());
                let case = FamilyCase::new(config(rule, groups, isa), 13);
                let repeated =
                    case.rearranged(config(rule, Heads::equal(output), isa), |which, [b, t, h]| {
                        let of_state = share(groups, h, output, state);
                        let h = match which {
                            Which::Q => share(groups, h, output, q),
                            Which::K => share(groups, of_state, state, k),
                            Which::V => share(groups, of_state, state, v),
                            _ => of_state,
                        };
                        [b, t, h]
                    });
                for (call, grouped, repeated_results) in [
                    ("forward", case.forward(), repeated.forward()),
                    ("decode", case.decode(), repeated.decode()),
                ] {
                    let name = format!("{name}, {isa}, {groups:?}, {call}");
                    // The repeated heads have the state of the head that they share.
                    let states: Vec<f32> = (0..2)
                        .flat_map(|b| (0..output).map(move |h| (b, h)))
                        .flat_map(|(b, h)| {
                            case.state_of(&grouped.1, b, share(groups, h, output, state)).to_vec()
                        })
                        .collect();
                    same(&name, &repeated_results, &(grouped.0, states));
                }
            }
        }
    }
}
