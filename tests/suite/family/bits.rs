//! Hashes of outputs and states of gates and delta rules, compared with constants as in [`crate::bits`].

use chunkwise::backward::{Gradients, Inputs};
use chunkwise::{
    Attention, BetaMap, Config, FeatureMap, Gate, GateMap, HeadOrder, Heads, Normaliser, Rule, Shape, Update,
};
use half::{bf16, f16};

use crate::bits::{Hash, Random, check, literal};
use crate::common::Number;
use crate::common::family::*;

/// Hashes of rules with gates or the delta rule in f32, bf16 and f16, in the order of `family::rules`. Each
/// includes all maps of the gate, with the maps of beta in turn, and the results of forward and of decode,
/// whose bits differ.
const FAMILY: [[u64; 3]; 7] = [
    [0x8117_9164_00f5_ddb5, 0x49e7_3c7d_0cad_4ee2, 0x2ecd_8d0a_382a_9104],
    [0x4a7a_a567_ae77_110b, 0x73cb_4d1a_b190_9914, 0xcd30_f23d_1c5e_3b8f],
    [0x63bd_93d2_d4f2_7e69, 0xd15f_ebca_23f4_20d5, 0x96ef_227d_c2a9_dd9e],
    [0x94e2_1745_329b_0fa0, 0xd993_4dd8_57e7_7c71, 0xe36f_b0d9_7460_9903],
    [0x8c57_d235_19d7_ce03, 0x0008_4945_38f6_67a6, 0x5582_2700_282c_68de],
    [0x310a_8753_4c2b_9cea, 0xad98_ed7e_7889_e9bf, 0x88c5_4e47_643e_7c5e],
    [0x02f6_68a6_b468_76e3, 0xd121_c611_bff0_32fe, 0xb440_2e2f_747e_19f2],
];

/// Hashes of the gradients in f32 of a scalar gate, without and with a normaliser.
const GATED_GRADIENTS: [u64; 2] = [0x69bc_f0d8_ea49_a062, 0x42ac_f3bf_c9f2_7261];

/// A case of numbers that are made from integers. Softplus, Bounded and the maps of beta are applied to
/// numbers of both signs; otherwise decays are at most 1, some of them 0, and betas are between 0 and 1.
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
fn hashes_of_the_family() {
    let hashes = |isa| {
        let mut all = [[0; 3]; 7];
        for ((_, rule), hashes) in rules().into_iter().zip(&mut all) {
            let mut three = [Hash::new(), Hash::new(), Hash::new()];
            let gate_maps = if rule.gate == Gate::None { &GATE_MAPS[..1] } else { &GATE_MAPS };
            for (i, gate_map) in gate_maps.iter().enumerate() {
                let beta_map = if rule.update == Update::Delta { BETA_MAPS[i % 3] } else { BetaMap::Given };
                let rule = rule.gate_map(*gate_map).beta_map(beta_map);
                // Less than a vector; more than two groups of K and more than a panel of V; more than the
                // four vectors that decode sweeps at once; whole vectors.
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

/// The gradients of a case, of its gates and of its initial state.
fn gradients(case: &FamilyCase, hash: &mut Hash) {
    let attention = Attention::new(case.config).expect("a legal case");
    let Shape { batch, len, groups, value, .. } = case.config.shape;
    let mut random = Random(99);
    let output = random.numbers(batch * len * groups.output() * value);
    let last = random.numbers(case.initial.len());
    let (mut dq, mut dk, mut dv) = (case.q.clone(), case.k.clone(), case.v.clone());
    let (mut dg, mut initial) = (case.g.clone(), case.initial.clone());
    let inputs = Inputs::new(&case.q[..], &case.k[..], &case.v[..], &output[..]);
    let inputs = inputs.gate(&case.g[..]).initial(&case.initial).last(&last);
    let gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]);
    let gradients = gradients.gate(&mut dg[..]).initial(&mut initial);
    let scratch = &mut vec![f32::NAN; attention.backward_scratch_len()];
    attention.backward(inputs, gradients, scratch).expect("a legal case");
    for gradient in [dq, dk, dv, dg, initial] {
        hash.add(&gradient);
    }
}

#[test]
fn hashes_of_gated_gradients() {
    let hashes = |isa| {
        let gated = Rule::gated(Gate::Scalar);
        let normalised = gated.feature_map(FeatureMap::Elu).normaliser(Normaliser::Global { eps: 1e-6 });
        [gated, normalised].map(|rule| {
            let mut hash = Hash::new();
            for (seed, groups, sizes) in [
                (1, Heads::new(4, 2, 1), [31, 5, 3]),
                (2, Heads::equal(1), [45, 35, 67]),
                (3, Heads::new(1, 1, 2).order(HeadOrder::Tiled), [18, 17, 129]),
            ] {
                let mut case = family_case(rule, groups, sizes, seed);
                case.config = case.config.isa(isa);
                gradients(&case, &mut hash);
            }
            hash.0
        })
    };
    check("GATED_GRADIENTS", &GATED_GRADIENTS, hashes, |all| {
        format!(": [u64; 2] = [{}];", all.map(literal).join(", "))
    });
}
