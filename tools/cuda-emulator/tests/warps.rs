//! Behaviour of warps: divergence, shuffles, accesses to all state spaces, and bank conflicts.

mod common;

use common::{HEAD, grid, module, run_words, with, words};
use cuda_emulator::launch::{Policy, run};

#[test]
fn loops_diverge_and_meet() {
    // Each lane runs its own number of iterations, and then all lanes vote.
    let body = "mov.u32 %r1, 0; mov.u32 %r2, 0; L: setp.ge.u32 %p1, %r1, %r0; @%p1 bra D; add.u32 %r2, %r2, %r1;
        add.u32 %r1, %r1, 1; bra L; D: vote.sync.ballot.b32 %r3, %p1, -1; popc.b32 %r3, %r3; mad.lo.u32 %r2, %r3, 1000, %r2;
        st.global.u32 [%d2], %r2;";
    let mut memory = [0; 64];
    words(64, body, &mut memory).unwrap();
    assert_eq!(memory, std::array::from_fn(|i| 32000 + (i * i.saturating_sub(1) / 2) as u32));
}

#[test]
fn shuffles() {
    for (mode, b, c, want) in [
        ("up", 3u32, 0u32, (|i| if i >= 3 { i - 3 } else { i }) as fn(u32) -> u32),
        ("down", 1, 0x181f, |i| if i % 8 < 7 { i + 1 } else { i }),
        ("idx", 5, 0x1c1f, |i| i / 4 * 4 + 1),
        ("bfly", 16, 31, |i| i ^ 16),
    ] {
        let mut memory = [0; 32];
        words(
            32,
            &format!("shfl.sync.{mode}.b32 %r1|%p1, %r0, {b}, {c}, -1; st.global.u32 [%d2], %r1;"),
            &mut memory,
        )
        .unwrap();
        assert_eq!(memory, std::array::from_fn(|i| want(i as u32)), "{mode}");
    }
}

#[test]
fn memory_of_all_kinds() {
    let text = module(
        "sm_80",
        1,
        "",
        &format!(
            "{HEAD} ld.param.u64 %d1, [p0]; .local .align 8 .b8 l[16]; .shared .align 8 .b8 s[512];
         mov.u64 %d3, l; cvta.local.u64 %d4, %d3; st.local.u32 [l+4], %r0; ld.u32 %r1, [%d4+4];
         mov.u64 %d5, s; cvta.shared.u64 %d6, %d5; add.u64 %d6, %d6, %d0; st.u32 [%d6], %r1;
         cvta.to.shared.u64 %d7, %d6; ld.shared.s8 %r2, [%d7];
         mov.u64 %d8, table; and.b32 %r3, %r0, 3; mul.wide.u32 %d9, %r3, 4; add.u64 %d8, %d8, %d9;
         ld.const.u32 %r4, [%d8]; add.u32 %r2, %r2, %r4; atom.global.add.u32 %r5, [total], %r0;
         add.u64 %d2, %d1, %d0; st.global.u32 [%d2], %r2;"
        ),
    )
    .replace(
        ".visible",
        ".const .align 4 .u32 table[4] = {10, 20, 30, 40};\n.global .u32 total = 0;\n.visible",
    );
    let mut memory = [0; 64];
    run_words(&text, 64, &mut memory).unwrap();
    assert_eq!(memory, std::array::from_fn(|i| i as u32 + (i as u32 % 4 + 1) * 10));
}

#[test]
fn conflicts_are_counted() {
    let count = |shift: u32| {
        let body = format!(
            "{HEAD} .shared .b32 s[1024]; mov.u32 %r1, s; shl.b32 %r2, %r0, {shift}; add.u32 %r1, %r1, %r2; st.shared.u32 [%r1], %r0;"
        );
        run(&module("sm_80", 0, "", &body), "k", grid(32), &mut [], with(Policy::Ascending))
            .unwrap()
            .shared_conflicts
    };
    assert_eq!((count(2), count(3), count(7)), (0, 1, 31));
}
