//! Instructions against the same in scalar code of their own.

mod common;

use common::{HEAD, Words, cut_sum, grid, module, run_words, with, words};
use cuda_emulator::launch::{Arg, Policy, run};

/// Loads word i of three per thread into %r1, %r2, %r3 and %f1 to %f3, runs, stores %r4.
fn three(body: &str, inputs: &[[u32; 3]; 32]) -> [u32; 32] {
    let text = format!(
        "mul.wide.u32 %d3, %r0, 12; add.u64 %d3, %d1, %d3; ld.global.u32 %r1, [%d3]; ld.global.u32 %r2, [%d3+4];
         ld.global.u32 %r3, [%d3+8]; mov.b32 %f1, %r1; mov.b32 %f2, %r2; mov.b32 %f3, %r3;
         {body} bar.sync 0; st.global.u32 [%d3], %r4;"
    );
    let mut memory: Vec<u32> = inputs.iter().flatten().copied().collect();
    words(32, &text, &mut memory).unwrap_or_else(|e| panic!("{body}: {e}"));
    std::array::from_fn(|i| memory[3 * i])
}

fn check(body: &str, inputs: &[[u32; 3]; 32], want: impl Fn([u32; 3]) -> u32) {
    let got = three(body, inputs);
    for i in 0..32 {
        let [a, b, c] = inputs[i];
        assert_eq!(got[i], want(inputs[i]), "{body} of {a:#x} {b:#x} {c:#x}");
    }
}

#[test]
fn integers() {
    let mut w = Words(1);
    let any: [[u32; 3]; 32] =
        std::array::from_fn(|i| [w.next() << 1 ^ i as u32, w.next() >> (i % 31), w.next()]);
    check("mad.lo.s32 %r4, %r1, %r2, %r3;", &any, |[a, b, c]| a.wrapping_mul(b).wrapping_add(c));
    check("mul.hi.s32 %r4, %r1, %r2;", &any, |[a, b, _]| ((a as i32 as i64 * b as i32 as i64) >> 32) as u32);
    check("mul.wide.s32 %d4, %r1, %r2; cvt.u32.u64 %r4, %d4;", &any, |[a, b, _]| a.wrapping_mul(b));
    check("div.s32 %r4, %r1, %r2;", &any, |[a, b, _]| if b == 0 { !0 } else { (a as i32 / b as i32) as u32 });
    check("rem.u32 %r4, %r1, %r2;", &any, |[a, b, _]| if b == 0 { a } else { a % b });
    check("shr.s32 %r4, %r1, %r2;", &any, |[a, b, _]| (a as i32 >> b.min(31)) as u32);
    check("shl.b32 %r4, %r1, %r2;", &any, |[a, b, _]| a.checked_shl(b).unwrap_or(0));
    check("bfe.u32 %r4, %r1, 5, 7;", &any, |[a, ..]| a >> 5 & 127);
    check("bfe.s32 %r4, %r1, 28, 9;", &any, |[a, ..]| (a as i32 >> 28) as u32);
    check("bfi.b32 %r4, %r1, %r2, 8, 4;", &any, |[a, b, _]| b & !0xf00 | (a & 15) << 8);
    check("prmt.b32 %r4, %r1, %r2, 0x1054;", &any, |[a, b, _]| {
        b & 255 | (b & 0xff00) | (a & 255) << 16 | (a >> 8 & 255) << 24
    });
    check("lop3.b32 %r4, %r1, %r2, %r3, 0xe8;", &any, |[a, b, c]| a & b | a & c | b & c);
    check("shf.l.wrap.b32 %r4, %r1, %r2, 9;", &any, |[a, b, _]| b << 9 | a >> 23);
    check("popc.b32 %r4, %r1;", &any, |[a, ..]| a.count_ones());
    check("clz.b32 %r4, %r2;", &any, |[_, b, _]| b.leading_zeros());
    check("brev.b32 %r4, %r2;", &any, |[_, b, _]| b.reverse_bits());
    check("setp.lt.and.s32 %p1|%p2, %r1, %r2, %p0; selp.b32 %r4, 3, 4, %p1;", &any, |[a, b, _]| {
        if (a as i32) < b as i32 { 3 } else { 4 }
    });
    check("mov.b32 {%h1, %h2}, %r1; mov.b32 %r4, {%h2, %h1};", &any, |[a, ..]| a.rotate_left(16));
    check("cvt.u16.u32 %h1, %r1; cvt.s32.s16 %r4, %h1;", &any, |[a, ..]| a as i16 as u32);
    check("cvt.s32.s8 %r4, %r1;", &any, |[a, ..]| a as i8 as u32);
    check("cvt.sat.u8.u32 %r4, %r2;", &any, |[_, b, _]| b.min(255));
}

#[test]
fn floats() {
    let mut w = Words(2);
    let special =
        [0, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 1, 0x8000_0001, 0x7f7f_ffff, 0x0080_0000];
    let mut next =
        |i: usize| if i % 4 == 3 { special[w.next() as usize % 9] } else { w.next() << 1 ^ w.next() };
    for _ in 0..30 {
        let any: [[u32; 3]; 32] = std::array::from_fn(|i| [next(i), next(i + 1), next(i + 2)]);
        let f = f32::from_bits;
        let out = |x: f32| if x.is_nan() { 0x7fff_ffff } else { x.to_bits() };
        let ftz = |x: f32| if x.is_subnormal() { 0.0 * x.signum() } else { x };
        check("fma.rn.f32 %f4, %f1, %f2, %f3; mov.b32 %r4, %f4;", &any, |[a, b, c]| {
            out(f(a).mul_add(f(b), f(c)))
        });
        check("fma.rn.ftz.f32 %f4, %f1, %f2, %f3; mov.b32 %r4, %f4;", &any, |[a, b, c]| {
            out(ftz(ftz(f(a)).mul_add(ftz(f(b)), ftz(f(c)))))
        });
        check("add.rn.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", &any, |[a, b, _]| out(f(a) + f(b)));
        check("div.rn.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", &any, |[a, b, _]| out(f(a) / f(b)));
        check("max.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", &any, |[a, b, _]| {
            match (f(a).is_nan(), f(b).is_nan()) {
                (true, true) => 0x7fff_ffff,
                (true, _) => b,
                (_, true) => a,
                _ if f(a) == f(b) => a & b,
                _ => f(a).max(f(b)).to_bits(),
            }
        });
        check("setp.ltu.f32 %p1, %f1, %f2; selp.b32 %r4, 1, 0, %p1;", &any, |[a, b, _]| {
            u32::from(f(a).partial_cmp(&f(b)).is_none_or(|o| o.is_lt()))
        });
        check("setp.ne.f32 %p1, %f1, %f2; selp.b32 %r4, 1, 0, %p1;", &any, |[a, b, _]| {
            u32::from(f(a) != f(b) && !f(a).is_nan() && !f(b).is_nan())
        });
        check("cvt.rzi.s32.f32 %r4, %f1;", &any, |[a, ..]| f(a) as i32 as u32);
        check("cvt.rni.f32.f32 %f4, %f1; mov.b32 %r4, %f4;", &any, |[a, ..]| out(f(a).round_ties_even()));
        check("cvt.rn.bf16x2.f32 %r4, %f1, %f2;", &any, |[a, b, _]| bf16(f(a)) << 16 | bf16(f(b)));
        check("cvt.rn.f16.f32 %h1, %f1; cvt.f32.f16 %f4, %h1; mov.b32 %r4, %f4;", &any, |[a, ..]| {
            match through_f16(f(a)) {
                x if x.is_nan() => 0x7fff_e000,
                x => x.to_bits(),
            }
        });
        check("cvt.rna.tf32.f32 %r4, %f1;", &any, |[a, ..]| match f(a) {
            x if x.is_nan() => 0x7fff_e000,
            x if x.is_infinite() => a,
            _ => (a + 0x1000) & !0x1fff,
        });
    }
    // Directions: what is added is far less than half of the last place.
    let few: [[u32; 3]; 32] = std::array::from_fn(|i| [(i as f32 + 1.0).to_bits(), 0, 0]);
    for (round, tiny, want) in
        [("rz", "B2000000", -1i32), ("rz", "32000000", 0), ("rm", "B2000000", -1), ("rp", "32000000", 1)]
    {
        let body = format!("add.{round}.f32 %f4, %f1, 0f{tiny}; mov.b32 %r4, %f4;");
        check(&body, &few, |[a, ..]| a.wrapping_add_signed(want));
        let body = format!("fma.{round}.f32 %f4, %f1, 0f3F800000, 0f{tiny}; mov.b32 %r4, %f4;");
        check(&body, &few, |[a, ..]| a.wrapping_add_signed(want));
    }
    check("ex2.approx.ftz.f32 %f4, %f1; mov.b32 %r4, %f4;", &few, |[a, ..]| {
        f32::from_bits(a).exp2().to_bits()
    });
}

/// The nearest of all that there are.
fn bf16(x: f32) -> u32 {
    let low = x.to_bits() >> 16;
    if x.is_nan() {
        return 0x7fff;
    }
    if x.to_bits() & 0xffff == 0 {
        return low;
    }
    let (down, up) = (f64::from(f32::from_bits(low << 16)), next_bf16(low));
    let (a, b) = ((f64::from(x) - down).abs(), (up - f64::from(x)).abs());
    if a < b || a == b && low.is_multiple_of(2) { low } else { low + 1 }
}

fn next_bf16(low: u32) -> f64 {
    let next = f32::from_bits((low + 1) << 16);
    if next.is_infinite() { 2f64.powi(128).copysign(next.into()) } else { next.into() }
}

fn through_f16(x: f32) -> f32 {
    if x.is_nan() || x.is_infinite() {
        return x;
    }
    let unit = if x.abs() < 2f32.powi(-14) {
        2f64.powi(-24)
    } else {
        2f64.powi(f64::from(x).abs().log2().floor() as i32 - 10)
    };
    let y = (f64::from(x) / unit).round_ties_even() * unit;
    if y.abs() > 65504.0 { f32::INFINITY.copysign(x) } else { (y as f32).copysign(x) }
}

#[test]
fn loops_diverge_and_meet() {
    // Each lane counts to its number; then all vote.
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
fn matrix_products() {
    // A, B, C by lane in memory as fragments; what they mean is computed here.
    for (kind, k, na, nb, per) in [
        ("m16n8k16.row.col.f32.bf16.bf16.f32", 16, 4, 2, 2),
        ("m16n8k8.row.col.f32.bf16.bf16.f32", 8, 2, 1, 2),
        ("m16n8k8.row.col.f32.tf32.tf32.f32", 8, 4, 2, 1),
        ("m16n8k16.row.col.f32.f16.f16.f32", 16, 4, 2, 2),
    ] {
        let mut w = Words(3);
        for round in 0..12u32 {
            let mut value = || {
                let wild = round % 3 == 2;
                let x = (w.next() % 2001) as f32 / 1000.0 - 1.0;
                if wild { x * 2f32.powi((w.next() % 28) as i32 - 14) } else { x }
            };
            let half = kind.contains(".f16");
            let mut a = vec![[0f32; 16]; 16];
            let mut b = vec![[0f32; 8]; 16];
            let mut c = vec![[0f32; 8]; 16];
            let cut = |x: f32| {
                if per == 1 {
                    f32::from_bits(x.to_bits() & !0x1fff)
                } else if half {
                    through_f16(x)
                } else {
                    f32::from_bits(bf16(x) << 16)
                }
            };
            a.iter_mut().flatten().for_each(|x| *x = cut(value()));
            b.iter_mut().flatten().for_each(|x| *x = cut(value()));
            c.iter_mut().flatten().for_each(|x| *x = value());
            let bits = |x: f32| {
                if per == 1 {
                    x.to_bits() | 0x123
                } else if half {
                    f16_bits(x)
                } else {
                    x.to_bits() >> 16
                }
            };
            let mut memory = vec![0u32; 32 * 16];
            for lane in 0..32 {
                let (g, t) = (lane / 4, lane % 4);
                for i in 0..na {
                    let (row, col) = (g + i % 2 * 8, t * per + i / 2 * 4 * per);
                    memory[lane * 16 + i] =
                        bits(a[row][col]) | if per == 2 { bits(a[row][col + 1]) << 16 } else { 0 };
                }
                for i in 0..nb {
                    let row = t * per + i * 4 * per;
                    memory[lane * 16 + 4 + i] =
                        bits(b[row][g]) | if per == 2 { bits(b[row + 1][g]) << 16 } else { 0 };
                }
                for i in 0..4 {
                    memory[lane * 16 + 8 + i] = c[g + i / 2 * 8][t * 2 + i % 2].to_bits();
                }
            }
            let list = |p: &str, from: usize, n: usize| {
                (from..from + n).map(|i| format!("%{p}{i}")).collect::<Vec<_>>().join(", ")
            };
            let body = format!(
                "mul.wide.u32 %d3, %r0, 64; add.u64 %d3, %d1, %d3; ld.global.v4.u32 {{{}}}, [%d3]; ld.global.v2.u32 {{{}}}, [%d3+16];
                 ld.global.v4.f32 {{{}}}, [%d3+32]; mma.sync.aligned.{kind} {{{}}}, {{{}}}, {{{}}}, {{{}}}; st.global.v4.f32 [%d3], {{{}}};",
                list("r", 10, 4), list("r", 20, 2), list("f", 1, 4), list("f", 5, 4), list("r", 10, na), list("r", 20, nb), list("f", 1, 4), list("f", 5, 4)
            );
            words(32, &body, &mut memory).unwrap();
            for lane in 0..32 {
                for i in 0..4 {
                    let (row, col) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                    let pairs: Vec<_> = (0..k).map(|k| (a[row][k], b[k][col])).collect();
                    let (got, want) = (f32::from_bits(memory[lane * 16 + i]), cut_sum(&pairs, c[row][col]));
                    assert_eq!(got, want, "{kind} {row} {col}");
                }
            }
        }
    }
}

fn f16_bits(x: f32) -> u32 {
    // Exact: x has been through f16.
    let sign = x.to_bits() >> 16 & 0x8000;
    let y = x.abs();
    if y < 2f32.powi(-14) {
        return sign | (y * 2f32.powi(24)) as u32;
    }
    sign | ((y.to_bits() >> 13) - (112 << 10))
}

#[test]
fn ldmatrix_and_stmatrix() {
    // Tiles of known elements: element e of row r of tile t is 64 t + 8 r + e.
    let head = ".shared .align 16 .b8 s[512]; mov.u32 %r1, s; shl.b32 %r2, %r0, 4; add.u32 %r3, %r1, %r2;
        shl.b32 %r5, %r0, 3; mul.lo.u32 %r6, %r5, 65537; add.u32 %r6, %r6, 65536; add.u32 %r7, %r6, 131074;
        add.u32 %r8, %r7, 131074; add.u32 %r9, %r8, 131074; st.shared.v4.u32 [%r3], {%r6, %r7, %r8, %r9}; bar.sync 0;
        mul.wide.u32 %d3, %r0, 16; add.u64 %d3, %d1, %d3;";
    let store = "st.global.v4.u32 [%d3], {%r10, %r11, %r12, %r13};";
    for trans in ["", ".trans"] {
        let load =
            format!("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r3];");
        let mut memory = [0; 128];
        words(32, &format!("{head} {load} {store}"), &mut memory).unwrap();
        for lane in 0..32 {
            for tile in 0..4 {
                let (g, t) = (lane / 4, lane % 4 * 2);
                let at = |r: usize, e: usize| (64 * tile + 8 * r + e) as u32;
                let (low, high) =
                    if trans.is_empty() { (at(g, t), at(g, t + 1)) } else { (at(t, g), at(t + 1, g)) };
                assert_eq!(memory[lane * 4 + tile], high << 16 | low, "{lane} {tile}");
            }
        }
        // Stored the same way, it is there again.
        let back = format!(
            "stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r3], {{%r10, %r11, %r12, %r13}};
            ld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r3];"
        );
        let text = module(
            "sm_90",
            1,
            "",
            &format!("{HEAD} ld.param.u64 %d1, [p0]; {head} {load} bar.sync 0; {back} {store}"),
        );
        let mut bytes = [0u8; 512];
        let counters =
            run(&text, "k", grid(32), &mut [Arg::Memory(&mut bytes)], with(Policy::Ascending)).unwrap();
        for (i, b) in bytes.chunks_exact(2).enumerate() {
            assert_eq!(u16::from_le_bytes([b[0], b[1]]) as usize, i);
        }
        assert_eq!(counters.shared_conflicts, 0);
    }
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
