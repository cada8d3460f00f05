//! Every check finds the fault of a small kernel in all orders of warps, and accepts the correct version of the kernel.

mod common;

use common::{HEAD, ORDERS, fault, grid, module, with, words};
use cuda_emulator::launch::{Arg, Grid, Policy, run};

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn global_bounds() {
    words(64, "st.global.u32 [%d2], %r0;", &mut [0; 64]).unwrap();
    has(&fault(64, "st.global.u32 [%d2], %r0;", 63), &["outside", "[k, block (0,0,0), warp 1 lane 31, line"]);
    has(&fault(32, "ld.global.u32 %r1, [%d2+-8];", 32), &["outside"]);
    // An access that is only partly in bounds is a fault too.
    has(&fault(1, "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d2+16];", 7), &["outside"]);
}

#[test]
fn alignment() {
    has(&fault(1, "ld.global.u32 %r1, [%d2+2];", 4), &["misaligned", "global"]);
    has(&fault(1, "ld.global.v2.u32 {%r1, %r2}, [%d2+4];", 4), &["misaligned", "8 bytes"]);
    has(&fault(1, ".shared .b32 s[4]; st.shared.u32 [s+1], %r0;", 4), &["misaligned", "shared"]);
    has(&fault(1, ".local .b32 s[4]; st.local.u32 [s+1], %r0;", 4), &["misaligned", "local"]);
}

#[test]
fn bounds_of_other_spaces() {
    has(&fault(1, ".shared .b32 s[4]; st.shared.u32 [s+16], %r0;", 4), &["outside of shared memory"]);
    has(&fault(1, "mov.u32 %r1, 0; st.shared.u32 [%r1], %r0;", 4), &["outside of shared memory at 0x0"]);
    has(&fault(1, ".local .b32 s[4]; ld.local.u32 %r1, [s+16];", 4), &["outside of local memory"]);
    has(&fault(1, "ld.param.u64 %d3, [p0+8];", 4), &["outside of the parameters"]);
}

#[test]
fn unwritten_shared_memory() {
    has(&fault(32, ".shared .b32 s[32]; ld.shared.u32 %r1, [s];", 4), &["never written"]);
    // Writes of an earlier block do not count.
    let body = format!(
        "{HEAD} .shared .b32 s[1]; mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [s], 1;
         ld.shared.u32 %r2, [s];"
    );
    let many = Grid { blocks: [2, 1, 1], ..grid(1) };
    has(
        &run(&module("sm_80", 0, "", &body), "k", many, &mut [], with(Policy::Ascending)).unwrap_err(),
        &["never written", "block (1,0,0)"],
    );
}

/// Returns a body in which each thread writes its word and then reads the word `distance` places further on.
fn exchange(barriers: [&str; 2], distance: u32) -> String {
    let [before, after] = barriers;
    format!(
        ".shared .b32 s[64]; mov.u32 %r1, s; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2; st.shared.u32 [%r3], %r0;
         {before} add.u32 %r4, %r0, {distance}; and.b32 %r4, %r4, 63; shl.b32 %r4, %r4, 2; add.u32 %r4, %r1, %r4;
         ld.shared.u32 %r5, [%r4]; {after} st.shared.u32 [%r3], %r5; st.global.u32 [%d2], %r5;"
    )
}

#[test]
fn races() {
    let mut memory = [0; 64];
    words(64, &exchange(["bar.sync 0;"; 2], 32), &mut memory).unwrap();
    assert_eq!(memory[..2], [32, 33]);
    assert!(
        matches!(fault(64, &exchange(["", "bar.sync 0;"], 32), 64), t if t.contains("race") || t.contains("never"))
    );
    has(&fault(64, &exchange(["bar.sync 0;", ""], 32), 64), &["race", "no barrier between"]);
    // There are no races within a warp.
    words(32, &exchange([""; 2], 0), &mut memory).unwrap();
    // A barrier for a part of the block does not order the other warps.
    has(&fault(64, &exchange(["bar.sync 0;", "bar.sync 1, 32;"], 32), 64), &["race"]);
}

/// Returns a body in which the first warp writes a word and the second one reads it, three times. `full` says that the
/// word is written, `free` that it has been read; each has an instruction that arrives and one that waits.
fn handed_over(full: [&str; 2], free: [&str; 2]) -> String {
    let round = format!(
        "@%p1 bra reads{{n}};
         {free_wait} st.shared.u32 [s], %r1; {full_arrive} bra next{{n}};
         reads{{n}}: {full_wait} ld.shared.u32 %r2, [s]; add.u32 %r1, %r1, %r2; {free_arrive}
         next{{n}}:",
        free_wait = free[1],
        full_arrive = full[0],
        full_wait = full[1],
        free_arrive = free[0],
    );
    let rounds: String = (0..3).map(|n| round.replace("{n}", &n.to_string())).collect();
    format!(
        ".shared .b32 s[1]; mov.u32 %r1, 7; setp.ge.u32 %p1, %r0, 32; {{ {} }}
         {rounds} @!%p1 bra last; bra end; last: {} end: st.global.u32 [%d2], %r1;",
        if free[0].is_empty() { String::new() } else { format!("@%p1 {}", free[0]) },
        free[1],
    )
}

#[test]
fn arrivals() {
    let (full, free) = (["bar.arrive 1, 64;", "bar.sync 1, 64;"], ["bar.arrive 2, 64;", "bar.sync 2, 64;"]);
    let mut memory = [0; 64];
    words(64, &handed_over(full, free), &mut memory).unwrap();
    assert_eq!((memory[0], memory[63]), (7, 28));
    // An arrival orders earlier work of the warp for the warps that wait, and orders nothing for the warp itself.
    let both_arrive = handed_over(full, [free[0], ""]).replace("st.global.u32 [%d2], %r1;", "");
    assert!(matches!(fault(64, &both_arrive, 64), t if t.contains("race") || t.contains("twice")));
    let nothing = handed_over(["", ""], free);
    assert!(matches!(fault(64, &nothing, 64), t if t.contains("race") || t.contains("never")));
    has(&fault(64, "bar.arrive 1, 96; bar.sync 0;", 64), &["no one waits for"]);
    has(
        &fault(
            64,
            "setp.ge.u32 %p1, %r0, 32; @%p1 bra o; bar.arrive 1, 64; bra e; o: bar.sync 1, 96; e:",
            64,
        ),
        &["different counts"],
    );
    has(&fault(32, "bar.arrive 1, 64; bar.arrive 1, 64;", 32), &["twice"]);
}

/// A word that warps read between barriers of their own has a list of readers, which the next block must not inherit.
#[test]
fn readers_of_an_earlier_block() {
    let body = format!(
        "{HEAD} .shared .b32 s[1]; setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [s], 3; bar.sync 0;
         ld.shared.u32 %r1, [s]; shr.u32 %r3, %r0, 5; add.u32 %r3, %r3, 1; bar.sync %r3, 32; ld.shared.u32 %r1, [s];"
    );
    for order in ORDERS {
        let many = Grid { blocks: [3, 1, 1], ..grid(96) };
        run(&module("sm_80", 0, "", &body), "k", many, &mut [], with(order)).unwrap();
    }
}

#[test]
fn neighbouring_bytes_are_no_race_and_atomics_are_not() {
    let bytes = ".shared .b8 s[64]; mov.u32 %r1, s; setp.eq.u32 %p1, %r0, 0; setp.eq.u32 %p2, %r0, 32;
        @%p1 st.shared.u8 [s], %r0; @%p2 st.shared.u8 [s+1], %r0; st.global.u32 [%d2], %r0;";
    words(64, bytes, &mut [0; 64]).unwrap();
    let atomics = ".shared .b32 s[1]; setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [s], 0; bar.sync 0;
        atom.shared.add.u32 %r1, [s], %r0; bar.sync 0; ld.shared.u32 %r2, [s]; st.global.u32 [%d2], %r2;";
    let mut memory = [0; 64];
    words(64, atomics, &mut memory).unwrap();
    assert_eq!(memory, [63 * 32; 64]);
    let mixed = atomics.replace("bar.sync 0; ld", "ld");
    has(&fault(64, &mixed, 64), &["race"]);
}

#[test]
fn many_readers_of_different_times() {
    // Warps 0 and 1 read in segments that a barrier of only these two warps separates. Then warp 2 writes.
    let body = ".shared .b32 s[1]; shr.u32 %r1, %r0, 5; setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [s], 7;
        bar.sync 0; setp.eq.u32 %p2, %r1, 2; @%p2 bra W; ld.shared.u32 %r2, [s]; bar.sync 1, 64;
        setp.eq.u32 %p1, %r1, 1; @%p1 ld.shared.u32 %r2, [s]; W: LAST setp.eq.u32 %p3, %r0, 64;
        @%p3 st.shared.u32 [s], 8;";
    words(96, &body.replace("LAST", "bar.sync 0;"), &mut [0; 96]).unwrap();
    has(&fault(96, &body.replace("LAST", ""), 96), &["race"]);
}

/// Each thread copies a word to shared memory, waits for the copy, and stores the word.
const COPY: &str = ".shared .b32 s[128]; mov.u32 %r1, s; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
    cp.async.ca.shared.global [%r3], [%d2], 4; cp.async.commit_group;
    cp.async.ca.shared.global [%r3+256], [%d2], 4, 0; cp.async.commit_group;
    cp.async.wait_group 1; ld.shared.u32 %r4, [%r3]; cp.async.wait_all; ld.shared.u32 %r5, [%r3+256];
    add.u32 %r4, %r4, %r5; add.u32 %r4, %r4, 1; st.global.u32 [%d2], %r4;";

#[test]
fn asynchronous_copies() {
    let mut memory: [u32; 64] = std::array::from_fn(|i| i as u32 * 3);
    words(64, COPY, &mut memory).unwrap();
    assert_eq!(memory, std::array::from_fn::<u32, 64, _>(|i| i as u32 * 3 + 1));
    has(
        &fault(64, &COPY.replace("cp.async.wait_group 1;", "cp.async.wait_group 2;"), 64),
        &["cp.async", "not waited"],
    );
    has(&fault(64, &COPY.replace("cp.async.wait_all;", ""), 64), &["cp.async", "not waited"]);
    let ends = ".shared .b32 s[64]; cp.async.ca.shared.global [s], [%d1], 4;";
    has(&fault(1, ends, 64), &["ends with a cp.async"]);
    has(&fault(1, &ends.replace("[%d1]", "[%d1+256]"), 64), &["outside of all allocations"]);
    has(&fault(1, &ends.replace("[%d1]", "[%d1+2]"), 64), &["misaligned source"]);
    // The copy overwrites a word that other warps may still read.
    let over = ".shared .b32 s[64]; mov.u32 %r1, s; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
        st.shared.u32 [%r3], %r0; bar.sync 0; ld.shared.u32 %r4, [s]; HERE setp.eq.u32 %p1, %r0, 32;
        @%p1 cp.async.ca.shared.global [s], [%d1], 4; cp.async.wait_all;";
    words(64, &over.replace("HERE", "bar.sync 0;"), &mut [0; 64]).unwrap();
    has(&fault(64, &over.replace("HERE", ""), 64), &["race"]);
}

#[test]
fn barriers_that_not_all_reach() {
    // A barrier does not wait for a warp that has ended, but it waits for a warp at another barrier.
    words(64, "setp.lt.u32 %p1, %r0, 32; @%p1 ret; bar.sync 0;", &mut [0; 64]).unwrap();
    let two = "setp.lt.u32 %p1, %r0, 32; @%p1 bra L; bar.sync 1; ret; L: bar.sync 2;";
    has(&fault(64, two, 64), &["deadlock", "barrier 1", "barrier 2"]);
    has(&fault(64, "setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1, 64;", 64), &["deadlock"]);
    has(&fault(32, "setp.lt.u32 %p1, %r0, 16; @%p1 bar.sync 0;", 64), &["a barrier by lanes 0x0000ffff"]);
    has(
        &fault(32, "setp.lt.u32 %p1, %r0, 16; @%p1 bra L; bar.sync 0; bra M; L: bar.sync 0; M:", 64),
        &["lanes"],
    );
}

#[test]
fn lanes_that_are_missing() {
    let shuffle = "GUARD shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1; st.global.u32 [%d2], %r1;";
    words(32, &shuffle.replace("GUARD", ""), &mut [0; 32]).unwrap();
    let half = shuffle.replace("GUARD", "setp.lt.u32 %p1, %r0, 16; @%p1");
    has(&fault(32, &half, 32), &["shfl by lanes 0x0000ffff"]);
    let ended = shuffle.replace("GUARD", "setp.lt.u32 %p1, %r0, 15; @%p1 ret;");
    has(&fault(32, &ended, 32), &["shfl from lane 14, which takes no part"]);
    let matrix =
        ".shared .align 16 .b8 s[512]; st.shared.u32 [s], %r0; setp.lt.u32 %p1, %r0, 16; @%p1 bra L; bra M;
        L: ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [s]; M:";
    has(&fault(32, matrix, 32), &["ldmatrix", "lanes"]);
    // Lanes that branch back to a lower address are waited for there.
    let meet = "setp.lt.u32 %p1, %r0, 16; @%p1 bra FAR; NEAR: shfl.sync.bfly.b32 %r1, %r0, 16, 31, -1;
        st.global.u32 [%d2], %r1; ret; FAR: add.u32 %r0, %r0, 100; bra NEAR;";
    let mut memory = [0; 32];
    words(32, meet, &mut memory).unwrap();
    assert_eq!((memory[0], memory[16]), (16, 100));
}

#[test]
fn endless_loops() {
    has(&fault(32, "L: bra L;", 1), &["budget"]);
    has(&fault(32, "trap;", 1), &["trap"]);
}

#[test]
fn what_is_not_known_is_an_error_of_the_load() {
    let load =
        |body: &str| cuda_emulator::parse::module(&module("sm_90a", 0, "", &format!("{HEAD}\n{body}"))).err();
    assert_eq!(load("add.u32 %r1, %r0, 1;"), None);
    for (body, part) in [
        ("frob.u32 %r1, %r0;", "line 9: frob.u32: unknown instruction"),
        ("add.cc.u32 %r1, %r0, 1;", "unknown suffix .cc"),
        ("add.u32 %r1, %q, 1;", "%q is not declared"),
        ("add.u32 %d1, %r0, 1;", "not of 32 bits"),
        ("add.u32 %r1, %r0;", "3 operands"),
        ("bra NOWHERE;", "no label"),
        ("mbarrier.init.shared::cta.b64 [%r0], 1;", "unknown instruction"),
        ("cp.async.bulk.commit_group;", "unknown suffix"),
        (".func f;", "not known here"),
        ("add.u32 %r1, %r0, 1", "';' expected"),
    ] {
        let text = load(body).unwrap_or_else(|| panic!("{body} loads"));
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_mutation_of_the_text_is_found() {
    // One statement is removed, as in the mutation tests of real kernels.
    let text = exchange(["bar.sync 0;"; 2], 32);
    for (i, _) in text.match_indices("bar.sync 0;") {
        let mutant = format!("{}{}", &text[..i], &text[i + 11..]);
        fault(64, &mutant, 64);
    }
    let mut memory = [0u8; 256];
    let text =
        module("sm_80", 1, "", &format!("{HEAD} ld.param.u64 %d1, [p0]; add.u64 %d2, %d1, %d0; {text}"));
    run(&text, "k", grid(64), &mut [Arg::Memory(&mut memory)], with(Policy::Random)).unwrap();
}
