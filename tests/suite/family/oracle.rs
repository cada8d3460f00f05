//! Every rule is compared with the oracle, on harmless numbers and on distributions that are hard for gates.

use chunkwise::{Config, FeatureMap, Gate, GateMap, Heads, Normaliser, Rule, Shape, Strides};
use half::{bf16, f16};

use super::{check, same};
use crate::common::family::*;
use crate::common::*;

#[test]
fn every_rule_at_every_small_size() {
    for (name, rule) in rules() {
        for len in [0, 1, 2, 3, 4, 5, 8, 16, 17, 33, 70] {
            check(name, &FamilyCase::of(rule, [1, len, 2, 20, 12]));
        }
        for (key, value) in
            [(1, 1), (16, 16), (15, 33), (60, 80), (96, 20), (80, 60), (128, 64), (64, 128), (17, 300)]
        {
            check(name, &FamilyCase::of(rule, [2, 21, 1, key, value]));
        }
        // Whole tiles of 16 tokens and part of one, with K and V of real models.
        check(name, &FamilyCase::of(rule, [1, 150, 1, 96, 192]));
    }
}

#[test]
fn heads_that_differ_in_number() {
    use chunkwise::HeadOrder::{Interleaved, Tiled};
    for (name, rule) in rules().into_iter().chain([("linear", Rule::linear(Normaliser::None))]) {
        for (q, k, v) in [(4, 2, 2), (2, 2, 4), (1, 1, 3), (4, 2, 1), (2, 1, 6), (6, 2, 2), (1, 3, 1)] {
            for order in [Interleaved, Tiled] {
                let shape = Shape::grouped(1, 19, Heads::new(q, k, v).order(order), 8, 12);
                check(name, &FamilyCase::new(Config::new(rule, shape), 2));
            }
        }
    }
}

/// Sequences without tokens are first, last and in the middle; others have one token, or more than a tile.
#[test]
fn ragged_batches() {
    let linear = [
        ("linear", Rule::linear(Normaliser::None)),
        ("per head", Rule::linear(Normaliser::Global { eps: 1e-6 })),
    ];
    for (name, rule) in rules().into_iter().chain(linear) {
        for lens in [&[7, 0, 18, 5][..], &[0, 1, 40, 0], &[0, 0], &[3]] {
            check(name, &FamilyCase::ragged(rule, lens, [2, 8, 12], 3));
        }
    }
}

#[test]
fn not_causal() {
    for normaliser in [Normaliser::None, Normaliser::Global { eps: 1e-6 }] {
        let rule = Rule::linear(normaliser).causal(false);
        for (q, k, v) in [(2, 2, 2), (4, 2, 1)] {
            let shape = Shape::grouped(2, 61, Heads::new(q, k, v), 20, 12);
            check("not causal", &FamilyCase::new(Config::new(rule, shape), 4));
        }
        for len in [0, 1, 4, 24, 25] {
            check("not causal", &FamilyCase::of(rule, [1, len, 2, 20, 12]));
        }
        check("not causal, ragged", &FamilyCase::ragged(rule, &[7, 0, 30, 1], [2, 8, 12], 4));
        check("not causal, normed", &FamilyCase::of(rule.qk_norm(1e-6), [1, 30, 2, 20, 12]));
    }
}

/// The rules with a gate, whose g is the logarithm of the decay.
fn gated() -> impl Iterator<Item = (&'static str, Rule)> {
    rules().into_iter().filter(|(_, rule)| rule.gate != Gate::None)
}

/// The distributions of g in ggml's tests, and others: decays of 1, growth, and decays that are denormal or
/// 0.
#[test]
fn gates_of_any_size() {
    for (name, rule) in gated() {
        for len in [1, 5, 37, 70] {
            let case = FamilyCase::of(rule, [1, len, 2, 20, 12]);
            for (what, from, to) in [
                ("hard", -20.0, -1e-4),
                ("none", 0.0, 0.0),
                ("small", -1e-4, 0.0),
                ("growth", 0.0, 0.05),
                ("denormal decays", -103.0, -87.5),
                ("decays that are 0 or hardly more", -110.0, -95.0),
            ] {
                let hard = case.changed(|case| {
                    case.g = uniform(31, case.g.len(), from, to);
                    if rule.normaliser == Normaliser::None {
                        case.v = uniform(32, case.v.len(), -0.3, 5.0);
                    }
                });
                check(&format!("{name}, {what}"), &hard);
            }
        }
    }
}

/// Where a decay is exactly 0, all earlier tokens are forgotten and do not cause NaN, provided that the state
/// was finite.
#[test]
fn resets() {
    for (name, rule) in gated() {
        for map in [GateMap::Log, GateMap::Linear] {
            let zero = if map == GateMap::Log { f32::NEG_INFINITY } else { 0.0 };
            let rule = rule.gate_map(map);
            // All rows of the state are reset at once, so that nothing of the past remains: at the first
            // token, at the first and at the second token of a block, in several blocks, and at many tokens
            // in a row.
            for tokens in [&[0][..], &[6], &[7], &[8], &[3, 4, 30], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 36]] {
                let mut case = FamilyCase::of(rule, [1, 37, 2, 20, 12]);
                let row = case.g.len() / 37;
                for token in tokens {
                    case.g[token * row..][..row].fill(zero);
                }
                check(&format!("{name}, reset at {tokens:?}"), &case);
                // No bit from the last reset on depends on the state before it.
                let other = case.changed(|case| case.initial.iter_mut().for_each(|x| *x *= 3e30));
                let last = tokens[tokens.len() - 1];
                let [o, other_o] = [&case, &other].map(|case| case.forward());
                let row = o.0.len() / 37;
                let tail = |o: &(Vec<f32>, Vec<f32>)| (o.0[last * row..].to_vec(), o.1.clone());
                same(&format!("{name}, from {tokens:?} on"), &tail(&other_o), &tail(&o));
            }
            // Only some rows of the state are reset.
            let case = FamilyCase::of(rule, [1, 37, 2, 20, 12])
                .changed(|case| case.g.iter_mut().step_by(3).for_each(|g| *g = zero));
            check(&format!("{name}, some reset"), &case);
        }
    }
}

/// Every map of g and of beta, with and without A_log and dt_bias, on numbers of all sizes.
#[test]
fn every_map() {
    for (name, rule) in rules() {
        let gate_maps = if rule.gate == Gate::None { &GATE_MAPS[..1] } else { &GATE_MAPS[..] };
        let beta_maps =
            if rule.update == chunkwise::Update::Delta { &BETA_MAPS[..] } else { &BETA_MAPS[..1] };
        for (gate_map, beta_map) in
            gate_maps.iter().flat_map(|gate| beta_maps.iter().map(move |beta| (*gate, *beta)))
        {
            let case = FamilyCase::of(rule.gate_map(gate_map).beta_map(beta_map), [1, 37, 3, 20, 12]);
            let name = format!("{name}, {gate_map:?}, {beta_map:?}");
            check(&name, &case);
            if has_parameters(gate_map) {
                check(&format!("{name}, no A_log"), &case.changed(|case| case.a_log.clear()));
                check(&format!("{name}, no dt_bias"), &case.changed(|case| case.dt_bias.clear()));
                let neither = case.changed(|case| {
                    case.a_log.clear();
                    case.dt_bias.clear();
                });
                check(&format!("{name}, neither"), &neither);
                let large = case.changed(|case| {
                    case.g = uniform(33, case.g.len(), -30.0, 30.0);
                    case.a_log = uniform(34, case.a_log.len(), -4.0, 3.0);
                });
                check(&format!("{name}, large g"), &large);
                let far = case.changed(|case| {
                    for (g, x) in case.g.iter_mut().zip([-1e4, 1e4, -100.0, 100.0, 0.0].into_iter().cycle()) {
                        *g = x;
                    }
                });
                check(&format!("{name}, far g"), &far);
            }
            if beta_map != chunkwise::BetaMap::Given {
                let far = case.changed(|case| case.beta = uniform(35, case.beta.len(), -120.0, 120.0));
                check(&format!("{name}, far beta"), &far);
            }
        }
    }
}

/// The norm of q and k can be combined with every rule and map.
#[test]
fn norms_of_q_and_k() {
    let linear = [
        ("linear", Rule::linear(Normaliser::None)),
        ("linear, normalised", Rule::linear(Normaliser::Global { eps: 1e-6 })),
    ];
    for (name, rule) in rules().into_iter().chain(linear) {
        for map in MAPS {
            for (eps, key) in [(0.0, 16), (1e-6, 20), (0.5, 3)] {
                let case = FamilyCase::of(rule.feature_map(map).qk_norm(eps), [1, 26, 2, key, 12]);
                check(&format!("{name}, {map:?}, eps {eps}"), &case);
            }
        }
    }
    // A row of zeros has no direction; eps prevents NaN.
    let zeros = FamilyCase::of(Rule::delta(Gate::Scalar).qk_norm(1e-6), [1, 9, 1, 20, 12])
        .changed(|case| case.k[3 * 20..4 * 20].fill(0.0));
    check("a row of zeros", &zeros);
}

/// Every feature map and scale on gated rules.
#[test]
fn maps_and_scales() {
    for (name, rule) in rules() {
        for map in MAPS {
            for scale in [1.0, 0.125, -3.7] {
                let rule = rule.feature_map(map).qk_norm(1e-6).scale(scale);
                check(&format!("{name}, {map:?}, {scale}"), &FamilyCase::of(rule, [1, 26, 2, 20, 12]));
            }
        }
        let zero = FamilyCase::of(rule.scale(0.0), [1, 9, 2, 20, 12]);
        assert!(zero.forward().0.iter().all(|o| o.to_bits() == 0), "{name}");
    }
}

/// Constant decays `[H]`, as RetNet's, whose strides of batch and token are 0. They give the bits of a
/// repeated g.
#[test]
fn constant_decays() {
    for (update, rule) in
        [("linear", Rule::gated(Gate::Scalar)), ("delta", Rule::delta(Gate::Scalar).qk_norm(1e-6))]
    {
        for normaliser in [Normaliser::None, Normaliser::Global { eps: 1e-6 }] {
            if update == "delta" && normaliser != Normaliser::None {
                continue;
            }
            let rule = rule.normaliser(normaliser).feature_map(FeatureMap::Elu);
            let repeated = FamilyCase::of(rule, [2, 70, 5, 20, 12]).changed(|case| {
                let mut decays = [0.0; 5];
                chunkwise::rule::retention(&mut decays);
                case.g = decays.repeat(2 * 70);
                case.beta.iter_mut().zip((0..5).cycle()).for_each(|(beta, h)| *beta = 0.2 * h as f32);
            });
            let constant = repeated.changed(|case| {
                case.config.shape = case.config.shape.with_gates(Strides::PER_HEAD, Strides::PER_HEAD);
                case.g.truncate(5);
                case.beta.truncate(5);
            });
            check(update, &constant);
            same(update, &constant.forward(), &repeated.forward());
        }
    }
}

/// Tensors in bf16 and f16, including g and beta, give the bits of f32 on the widened numbers, rounded once.
#[test]
fn other_types() {
    fn check<E: Number>(name: &str, case: &FamilyCase) {
        let len = case.config.shape.len;
        let wide = case.rounded::<E>();
        let rounded = |(o, state): (Vec<f32>, Vec<f32>)| (widen(&narrow::<E>(&o)), state);
        for isa in chunkwise::Isa::available() {
            let (case, wide) = (case.on(isa), wide.on(isa));
            let name = format!("{name}, {}, {isa}", E::NAME);
            same(&name, &case.pieces_in::<E>([(0..len, false)]), &rounded(wide.forward()));
            if case.decodes() {
                let tokens = (0..len).map(|token| (token..token + 1, true));
                same(&format!("{name}, decode"), &case.pieces_in::<E>(tokens), &rounded(wide.decode()));
            }
        }
    }
    let linear = [("not causal", Rule::linear(Normaliser::None).causal(false))];
    for (name, rule) in rules().into_iter().chain(linear) {
        for map in GATE_MAPS {
            if map != GateMap::Log && rule.gate == Gate::None {
                continue;
            }
            for (key, value) in [(3, 5), (20, 33), (32, 64)] {
                let case = FamilyCase::of(rule.gate_map(map), [2, 22, 2, key, value]);
                check::<bf16>(name, &case);
                check::<f16>(name, &case);
            }
        }
    }
}
