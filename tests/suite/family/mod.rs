//! Rules with gates and the delta rule, grouped heads, ragged batches and attention that is not causal.

mod accuracy;
mod bits;
mod draft;
mod errors;
#[cfg(feature = "files")]
pub(crate) mod golden;
#[cfg(unix)]
mod guard;
mod heads;
mod layouts;
#[cfg(feature = "files")]
mod onnx;
mod oracle;
mod properties;

use chunkwise::{Isa, Normaliser, Rule};

use crate::common::family::*;
use crate::common::*;

/// Every rule, including linear attention without a gate, causal or not.
fn all_rules() -> Vec<(&'static str, Rule)> {
    let mut all = rules();
    let linear = Rule::linear(Normaliser::Global { eps: 1e-6 });
    all.extend([("linear", linear), ("not causal", linear.causal(false))]);
    all
}

/// Compares forward and, if the case can be decoded, decode with the oracle, on every instruction set.
#[track_caller]
fn check(name: &str, case: &FamilyCase) {
    let ((want, want_state), bound) = (case.oracle(), case.bound());
    for isa in Isa::available() {
        let case = case.on(isa);
        let compare = |call: &str, (o, state): (Vec<f32>, Vec<f32>)| {
            assert!(case.gaps_are_untouched(&o), "{name}, {isa}, {call}: written between the rows of o");
            let (of_o, of_state) = (norm_error(&case.gather(&o), &want), norm_error(&state, &want_state));
            assert!(of_o <= bound, "{name}, {isa}, {call}: o is off by {of_o:e}: {:?}", case.config);
            assert!(
                of_state <= bound,
                "{name}, {isa}, {call}: the state is off by {of_state:e}: {:?}",
                case.config
            );
        };
        compare("forward", case.forward());
        if case.decodes() {
            compare("decode", case.decode());
        }
    }
}

/// Checks that outputs and states have the same bits.
#[track_caller]
fn same(what: &str, got: &(Vec<f32>, Vec<f32>), want: &(Vec<f32>, Vec<f32>)) {
    assert_eq!(first_difference(&got.0, &want.0), None, "{what}: outputs");
    assert_eq!(first_difference(&got.1, &want.1), None, "{what}: states");
}
