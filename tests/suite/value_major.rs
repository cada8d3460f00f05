//! States in the layout of other libraries, in which each head is transposed, and errors of these
//! conversions.

use chunkwise::Error;
use chunkwise::state::{from_value_major, to_value_major};

use crate::common::*;

#[test]
fn every_element_is_where_the_other_layout_has_it() {
    for [heads, key, value] in [[1, 1, 1], [1, 2, 3], [3, 16, 5], [2, 5, 16], [2, 64, 64]] {
        let state = normals(1, heads * key * value);
        let (mut there, mut back) = (vec![SENTINEL; state.len()], vec![SENTINEL; state.len()]);
        to_value_major(key, value, &state, &mut there).expect("legal sizes");
        for (h, i, j) in
            (0..heads).flat_map(|h| (0..key).flat_map(move |i| (0..value).map(move |j| (h, i, j))))
        {
            let (ours, theirs) = (state[(h * key + i) * value + j], there[(h * value + j) * key + i]);
            assert_eq!(ours.to_bits(), theirs.to_bits(), "head {h}, row {i}, column {j} of {key} x {value}");
        }
        from_value_major(key, value, &there, &mut back).expect("legal sizes");
        assert!(untouched(&state, &back), "{key} x {value}");
    }
    to_value_major(2, 3, &[], &mut []).expect("no heads");
}

#[test]
fn what_is_no_state_is_refused() {
    let overflow = Error::Overflow { what: "the state" };
    for transpose in [to_value_major, from_value_major] {
        let mut to = [SENTINEL; 12];
        let mut refuse = |key, value, from: usize, len: usize, want| {
            assert_eq!(transpose(key, value, &[1.0; 24][..from], &mut to[..len]), Err(want));
            assert!(to.iter().all(|x| x.to_bits() == SENTINEL.to_bits()));
        };
        refuse(0, 3, 12, 12, Error::Zero { what: "key" });
        refuse(2, 0, 12, 12, Error::Zero { what: "value" });
        refuse(usize::MAX, 2, 12, 12, overflow);
        refuse(1, usize::MAX, 12, 12, Error::Length { what: "the state", want: usize::MAX, got: 12 });
        refuse(2, 3, 11, 11, Error::Length { what: "the state", want: 12, got: 11 });
        refuse(2, 3, 12, 6, Error::Length { what: "the transposed state", want: 12, got: 6 });
        refuse(2, 3, 6, 12, Error::Length { what: "the transposed state", want: 6, got: 12 });
    }
}
