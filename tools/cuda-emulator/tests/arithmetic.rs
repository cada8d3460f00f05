//! Integer and floating-point instructions against scalar code.

mod common;

use common::{Words, bf16, through_f16, words};

/// Runs a body in 32 threads and returns %r4 of each. The inputs of a thread are in %r1 to %r3, and in %f1 to %f3.
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

/// Checks the result of a body in all threads.
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

/// Returns inputs for float instructions, of which a quarter are special values.
fn float_inputs() -> impl Iterator<Item = [[u32; 3]; 32]> {
    let mut w = Words(2);
    let special =
        [0, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 1, 0x8000_0001, 0x7f7f_ffff, 0x0080_0000];
    let mut next =
        move |i: usize| if i % 4 == 3 { special[w.next() as usize % 9] } else { w.next() << 1 ^ w.next() };
    (0..30).map(move |_| std::array::from_fn(|i| [next(i), next(i + 1), next(i + 2)]))
}

fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

/// Returns the bits of a result, with the NaN that PTX specifies.
fn out(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

#[test]
fn floats() {
    for any in float_inputs() {
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
    }
}

#[test]
fn float_conversions() {
    for any in float_inputs() {
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
}

#[test]
fn rounding_modes_and_approximations() {
    // The added value is far less than half of the last place, so only the rounding mode decides.
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
