//! wgmma against scalar code for all layouts of its operands, and the checks of wgmma.

mod common;

use common::{HEAD, ORDERS, Words, cut_sum, grid, module, with};
use cuda_emulator::launch::{Arg, run};

/// The number of columns of B.
const N: usize = 64;

/// The layout of an operand in shared memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// The number of bytes of a swizzled row, or 16 without swizzle.
    row: usize,
    /// Whether K is the slower dimension.
    trans: bool,
}

impl Layout {
    /// Returns the byte of element (mn, k) of 64 x 16, by a formula for each layout.
    fn byte(self, mn: usize, k: usize) -> usize {
        let (line, piece) = if self.trans { (k, mn / 8) } else { (mn, k / 8) };
        let inner = if self.trans { mn % 8 } else { k % 8 } * 2;
        // A row has `per` pieces of 16 bytes. Further pieces are in the next pattern.
        let per = self.row / 16;
        match self.row {
            16 => (mn / 8) * 256 + (k / 8) * 128 + if self.trans { k % 8 } else { mn % 8 } * 16 + inner,
            128 => line * 128 + ((piece % per) ^ (line % 8)) * 16 + piece / per * 2048 + inner,
            64 => line * 64 + ((piece % per) ^ (line / 2 % 4)) * 16 + piece / per * 2048 + inner,
            _ => line * 32 + ((piece % per) ^ (line / 4 % 2)) * 16 + piece / per * 2048 + inner,
        }
    }

    /// Returns the bits of the descriptor without the address.
    fn descriptor(self) -> u64 {
        let (leading, stride, mode) = match self.row {
            16 => (128, 256, 0u64),
            128 => (2048, 1024, 1),
            64 => (2048, 512, 2),
            _ => (2048, 256, 3),
        };
        (leading >> 4) << 16 | (stride >> 4) << 32 | mode << 62
    }
}

/// Returns a kernel for one warpgroup that copies 16 KiB to shared memory, multiplies, and stores 32 floats per thread.
fn kernel(a: Option<Layout>, b: Layout) -> String {
    let floats: Vec<String> = (10..10 + N / 2).map(|i| format!("%f{i}")).collect();
    let zero: String = floats.iter().map(|f| format!("mov.f32 {f}, 0f3F800000;")).collect();
    let store: String =
        floats.iter().enumerate().map(|(i, f)| format!("st.global.f32 [%d5+{}], {f};", 4 * i)).collect();
    let first = match a {
        Some(a) => format!("%d10, %d11, p, 1, 1, {}, {}", u32::from(a.trans), u32::from(b.trans)),
        None => format!("{{%r20, %r21, %r22, %r23}}, %d11, p, 1, 1, {}", u32::from(b.trans)),
    };
    let layout = a.unwrap_or(b);
    let body = format!(
        "{HEAD} .shared .align 1024 .b8 s[16384]; ld.param.u64 %d1, [p0]; ld.param.u64 %d2, [p1];
        mov.u32 %r1, s; shl.b32 %r2, %r0, 4; add.u32 %r3, %r1, %r2; mul.wide.u32 %d3, %r0, 16; add.u64 %d4, %d1, %d3;
        mov.u32 %r5, 0; COPY: ld.global.v4.u32 {{%r6, %r7, %r8, %r9}}, [%d4];
        st.shared.v4.u32 [%r3], {{%r6, %r7, %r8, %r9}}; add.u64 %d4, %d4, 2048; add.u32 %r3, %r3, 2048;
        add.u32 %r5, %r5, 1; setp.lt.u32 %p1, %r5, 8; @%p1 bra COPY;
        add.u64 %d4, %d1, %d3; ld.global.v4.u32 {{%r20, %r21, %r22, %r23}}, [%d4+16384];
        {zero} shr.u32 %r10, %r1, 4; cvt.u64.u32 %d9, %r10; or.b64 %d10, %d9, {}; add.u64 %d12, %d9, 512;
        or.b64 %d11, %d12, {}; fence.proxy.async; bar.sync 0; wgmma.fence.sync.aligned;
        {{ .reg .pred p; setp.ne.b32 p, %r1, 0;
        wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{}}}, {first}; }}
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
        mul.wide.u32 %d6, %r0, 128; add.u64 %d5, %d2, %d6; {store}",
        layout.descriptor(),
        b.descriptor(),
        floats.join(", ")
    );
    module("sm_90a", 2, "", &body)
}

/// Returns memory for [`kernel`], and the operands A of 64 x 16 and B of N x 16 that it contains.
fn operands(a: Option<Layout>, b: Layout) -> (Vec<u8>, Vec<[f32; 16]>, Vec<[f32; 16]>) {
    let mut w = Words(11);
    let mut memory = vec![0u8; 16384 + 2048];
    let mut value = || f32::from_bits((((w.next() % 2001) as f32 / 1000.0 - 1.0).to_bits() >> 16) << 16);
    let mut make = || (0..64).map(|_| std::array::from_fn(|_| value())).collect::<Vec<[f32; 16]>>();
    let (am, bm) = (make(), make());
    let mut put = |at: usize, x: f32| memory[at..at + 2].copy_from_slice(&x.to_bits().to_le_bytes()[2..]);
    for mn in 0..64 {
        for k in 0..16 {
            put(8192 + b.byte(mn, k), bm[mn][k]);
            match a {
                Some(a) => put(a.byte(mn, k), am[mn][k]),
                None => {
                    let (warp, row) = (mn / 16, mn % 16);
                    let lane = row % 8 * 4 + k % 8 / 2;
                    put(16384 + (warp * 32 + lane) * 16 + (row / 8 + k / 8 * 2) * 4 + k % 2 * 2, am[mn][k]);
                }
            }
        }
    }
    (memory, am, bm)
}

#[test]
fn products_of_all_layouts() {
    let layouts =
        [16, 32, 64, 128].into_iter().flat_map(|row| [false, true].map(|trans| Layout { row, trans }));
    for b in layouts {
        for a in [Some(b), None] {
            let (start, am, bm) = operands(a, b);
            for order in ORDERS {
                let (mut memory, mut out) = (start.clone(), vec![0u8; 128 * 128]);
                run(
                    &kernel(a, b),
                    "k",
                    grid(128),
                    &mut [Arg::Memory(&mut memory), Arg::Memory(&mut out)],
                    with(order),
                )
                .unwrap_or_else(|e| panic!("{a:?} {b:?}: {e}"));
                for (i, bytes) in out.chunks_exact(4).enumerate() {
                    let (thread, i) = (i / 32, i % 32);
                    let row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
                    let column = i / 4 * 8 + thread % 4 * 2 + i % 2;
                    let pairs: Vec<_> = (0..16).map(|k| (am[row][k], bm[column][k])).collect();
                    let got = f32::from_le_bytes(bytes.try_into().unwrap());
                    assert_eq!(got, cut_sum(&pairs, 1.0), "{a:?} {b:?} {row} {column}");
                }
            }
        }
    }
}

/// Replaces a part of the kernel and returns the text of its fault.
fn mutant(from: &str, to: &str) -> String {
    let b = Layout { row: 128, trans: false };
    let mut last = String::new();
    for a in [Some(b), None] {
        let text = kernel(a, b);
        assert!(text.contains(from), "{from} is not there");
        let (mut memory, mut out) = (operands(a, b).0, vec![0u8; 128 * 128]);
        for order in ORDERS {
            let args = &mut [Arg::Memory(&mut memory), Arg::Memory(&mut out)];
            last = run(&text.replacen(from, to, 1), "k", grid(128), args, with(order)).expect_err(from);
        }
    }
    last
}

#[test]
fn checks() {
    let wait = "wgmma.wait_group.sync.aligned 0;";
    for (from, to, want) in [
        ("fence.proxy.async;", "", "fence.proxy.async"),
        ("fence.proxy.async; bar.sync 0;", "bar.sync 0; fence.proxy.async;", "wgmma of warp"),
        ("fence.proxy.async; bar.sync 0;", "fence.proxy.async;", "wgmma"),
        ("wgmma.fence.sync.aligned;", "", "no wgmma.fence"),
        ("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned; mov.f32 %f12, %f13;", "no wgmma.fence"),
        (wait, "", "an accumulator of a wgmma that is not waited for is read"),
        (wait, "wgmma.wait_group.sync.aligned 1;", "not waited for"),
        (wait, "mov.f32 %f12, %f1; wgmma.wait_group.sync.aligned 0;", "is written"),
        (wait, "st.shared.u32 [s+8192], %r0; wgmma.wait_group.sync.aligned 0;", "written while a wgmma"),
        // This warp has waited for its wgmma, but the other warps have not.
        (wait, "wgmma.wait_group.sync.aligned 0; st.shared.u32 [s+8192], 0;", "shared memory"),
        ("setp.ne.b32 p, %r1, 0;", "setp.lt.u32 p, %r0, 96; @p", "wgmma"),
        ("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;", "ret;", "ends with a wgmma"),
        ("wgmma.commit_group.sync.aligned;", "", "not waited for"),
    ] {
        let text = mutant(from, to);
        assert!(text.contains(want), "{want:?} is not in {text:?}");
    }
}

#[test]
fn a_register_of_a_in_flight() {
    let b = Layout { row: 128, trans: false };
    let wait = "wgmma.wait_group.sync.aligned 0;";
    let text = kernel(None, b).replacen(wait, &format!("mov.u32 %r20, 0; {wait}"), 1);
    let (mut memory, mut out) = (operands(None, b).0, vec![0u8; 128 * 128]);
    let args = &mut [Arg::Memory(&mut memory), Arg::Memory(&mut out)];
    let text = run(&text, "k", grid(128), args, with(ORDERS[0])).unwrap_err();
    assert!(text.contains("a part of A of a wgmma that is not waited for is written"), "{text}");
}
