//! Hashes of outputs and states of gates and delta rules, as in [`crate::bits`].

use chunkwise::{BetaMap, Config, Gate, GateMap, HeadOrder, Heads, Rule, Shape, Update};
use half::{bf16, f16};

use crate::bits::{Hash, Random, check, literal};
use crate::common::Number;
use crate::common::family::*;

/// Of rules with gates or the delta in f32, bf16 and f16, in the order of `family::rules`: of each with every map of its gate and
/// every map of beta in turn, forward and decode, which have bits of their own.
const FAMILY: [[u64; 3]; 7] = [
    [0xea82_6f14_83d4_589d, 0xf4eb_d2a2_5c43_fb31, 0x1ce1_0f99_4b3e_7a6b],
    [0x8cbe_8410_d272_6e3b, 0xdb44_ce69_88a4_807f, 0xe5cf_d462_1d0d_bdb7],
    [0xfdbd_e34f_be8a_d5e1, 0x79b9_e0f7_7971_186d, 0xa490_7ac6_e8ba_8bc6],
    [0x89c6_d195_312a_241a, 0xc41f_621c_8d4d_998e, 0x8615_5ec3_eb04_e7e2],
    [0xf635_309b_ccae_ae9e, 0x3bc5_bd92_945b_87be, 0x4dd2_3db2_c739_2939],
    [0x0f19_1a36_2e17_0834, 0x3afa_b2b7_23d1_25b3, 0xeed9_bc5f_4c6d_aac7],
    [0xb4fa_bf41_3974_003d, 0x4118_ae06_ea37_b0bf, 0x91e3_165b_f183_0fb0],
];

/// A case of numbers that are made of whole ones: maps of gates and of beta get numbers on both sides of zero, else decays are
/// below 1, some of them 0, and betas between 0 and 1.
fn family_case(rule: Rule, groups: Heads, [len, key, value]: [usize; 3], seed: u64) -> FamilyCase {
    let mut random = Random(seed);
    let mut case = FamilyCase::new(Config::new(rule, Shape::grouped(2, len, groups, key, value)), 0);
    let parameters = [&mut case.a_log, &mut case.dt_bias];
    for x in parameters.into_iter().flatten().chain(&mut case.q).chain(&mut case.k).chain(&mut case.v) {
        *x = random.number();
    }
    for x in case.g.iter_mut().chain(&mut case.beta) {
        *x = random.number();
    }
    case.initial.iter_mut().for_each(|x| *x = random.number().abs());
    match rule.gate_map {
        GateMap::Log => case.g.iter_mut().for_each(|g| *g = -g.abs()),
        GateMap::Linear => case.g.iter_mut().for_each(|g| *g = g.abs() / 4.0),
        _ => {}
    }
    if rule.beta_map == BetaMap::Given {
        case.beta.iter_mut().for_each(|beta| *beta = beta.abs() / 4.0);
    }
    for g in case.g.iter_mut().skip(7).step_by(31) {
        *g = if rule.gate_map == GateMap::Linear { 0.0 } else { -120.0 };
    }
    case
}

fn family_bits<E: Number>(case: &FamilyCase, hash: &mut Hash) {
    let len = case.config.shape.len;
    let tokens = (0..len).map(|token| (token..token + 1, true));
    for (o, state) in [case.pieces_in::<E>([(0..len, false)]), case.pieces_in::<E>(tokens)] {
        hash.add(&o);
        hash.add(&state);
    }
}

#[test]
fn of_the_family() {
    let hashes = |isa| {
        let mut all = [[0; 3]; 7];
        for ((_, rule), hashes) in rules().into_iter().zip(&mut all) {
            let mut three = [Hash::new(), Hash::new(), Hash::new()];
            let gate_maps = if rule.gate == Gate::None { &GATE_MAPS[..1] } else { &GATE_MAPS };
            for (i, gate_map) in gate_maps.iter().enumerate() {
                let beta_map = if rule.update == Update::Delta { BETA_MAPS[i % 3] } else { BetaMap::Given };
                let rule = rule.gate_map(*gate_map).beta_map(beta_map);
                // Below every vector; above one and two groups of K and a panel of V; beyond decode's four vectors; whole ones.
                for (seed, groups, sizes) in [
                    (1, Heads::new(4, 2, 1), [31, 5, 3]),
                    (2, Heads::equal(1), [45, 35, 67]),
                    (3, Heads::new(1, 1, 2).order(HeadOrder::Tiled), [18, 17, 129]),
                    (4, Heads::equal(2), [32, 32, 64]),
                ] {
                    let mut case = family_case(rule, groups, sizes, seed);
                    case.config = case.config.isa(isa);
                    family_bits::<f32>(&case, &mut three[0]);
                    family_bits::<bf16>(&case, &mut three[1]);
                    family_bits::<f16>(&case, &mut three[2]);
                }
            }
            *hashes = three.map(|hash| hash.0);
        }
        all
    };
    check("FAMILY", &FAMILY, hashes, |all| {
        let rows = all.map(|row| format!("    [{}],\n", row.map(literal).join(", ")));
        format!(": [[u64; 3]; 7] = [\n{}];", rows.concat())
    });
}
