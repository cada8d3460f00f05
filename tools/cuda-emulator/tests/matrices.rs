//! Matrix operations against scalar code.

mod common;

use common::{HEAD, Words, bf16, cut_sum, f16_bits, grid, module, through_f16, with, words};
use cuda_emulator::launch::{Arg, Policy, run};

/// A shape and type of `mma`.
struct Kind {
    suffixes: &'static str,
    k: usize,
    /// The numbers of registers of A and B.
    registers: (usize, usize),
    /// The number of elements per register.
    per: usize,
}

const fn kind(suffixes: &'static str, k: usize, registers: (usize, usize), per: usize) -> Kind {
    Kind { suffixes, k, registers, per }
}

const KINDS: [Kind; 4] = [
    kind("m16n8k16.row.col.f32.bf16.bf16.f32", 16, (4, 2), 2),
    kind("m16n8k8.row.col.f32.bf16.bf16.f32", 8, (2, 1), 2),
    kind("m16n8k8.row.col.f32.tf32.tf32.f32", 8, (4, 2), 1),
    kind("m16n8k16.row.col.f32.f16.f16.f32", 16, (4, 2), 2),
];

impl Kind {
    fn half(&self) -> bool {
        self.suffixes.contains(".f16")
    }

    /// Rounds a value to the element type.
    fn cut(&self, x: f32) -> f32 {
        if self.per == 1 {
            f32::from_bits(x.to_bits() & !0x1fff)
        } else if self.half() {
            through_f16(x)
        } else {
            f32::from_bits(bf16(x) << 16)
        }
    }

    /// Returns the bits of an element. For tf32, low bits are set that the hardware ignores.
    fn bits(&self, x: f32) -> u32 {
        if self.per == 1 {
            x.to_bits() | 0x123
        } else if self.half() {
            f16_bits(x)
        } else {
            x.to_bits() >> 16
        }
    }

    /// Returns the fragments of A, B and C, as 16 words for each lane.
    fn fragments(&self, a: &[[f32; 16]], b: &[[f32; 8]], c: &[[f32; 8]]) -> Vec<u32> {
        let (per, (na, nb)) = (self.per, self.registers);
        let mut memory = vec![0u32; 32 * 16];
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for i in 0..na {
                let (row, col) = (g + i % 2 * 8, t * per + i / 2 * 4 * per);
                memory[lane * 16 + i] =
                    self.bits(a[row][col]) | if per == 2 { self.bits(a[row][col + 1]) << 16 } else { 0 };
            }
            for i in 0..nb {
                let row = t * per + i * 4 * per;
                memory[lane * 16 + 4 + i] =
                    self.bits(b[row][g]) | if per == 2 { self.bits(b[row + 1][g]) << 16 } else { 0 };
            }
            for i in 0..4 {
                memory[lane * 16 + 8 + i] = c[g + i / 2 * 8][t * 2 + i % 2].to_bits();
            }
        }
        memory
    }

    /// Returns a kernel that loads the fragments of each lane, multiplies them and stores the result.
    fn body(&self) -> String {
        let list = |p: &str, from: usize, n: usize| {
            (from..from + n).map(|i| format!("%{p}{i}")).collect::<Vec<_>>().join(", ")
        };
        let (na, nb) = self.registers;
        format!(
            "mul.wide.u32 %d3, %r0, 64; add.u64 %d3, %d1, %d3; ld.global.v4.u32 {{{}}}, [%d3];
             ld.global.v2.u32 {{{}}}, [%d3+16]; ld.global.v4.f32 {{{}}}, [%d3+32];
             mma.sync.aligned.{} {{{}}}, {{{}}}, {{{}}}, {{{}}}; st.global.v4.f32 [%d3], {{{}}};",
            list("r", 10, 4),
            list("r", 20, 2),
            list("f", 1, 4),
            self.suffixes,
            list("f", 5, 4),
            list("r", 10, na),
            list("r", 20, nb),
            list("f", 1, 4),
            list("f", 5, 4)
        )
    }
}

#[test]
fn matrix_products() {
    for kind in KINDS {
        let mut w = Words(3);
        for round in 0..12u32 {
            let mut value = || {
                let wild = round % 3 == 2;
                let x = (w.next() % 2001) as f32 / 1000.0 - 1.0;
                if wild { x * 2f32.powi((w.next() % 28) as i32 - 14) } else { x }
            };
            let mut a = vec![[0f32; 16]; 16];
            let mut b = vec![[0f32; 8]; 16];
            let mut c = vec![[0f32; 8]; 16];
            a.iter_mut().flatten().for_each(|x| *x = kind.cut(value()));
            b.iter_mut().flatten().for_each(|x| *x = kind.cut(value()));
            c.iter_mut().flatten().for_each(|x| *x = value());
            let mut memory = kind.fragments(&a, &b, &c);
            words(32, &kind.body(), &mut memory).unwrap();
            for lane in 0..32 {
                for i in 0..4 {
                    let (row, col) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                    let pairs: Vec<_> = (0..kind.k).map(|k| (a[row][k], b[k][col])).collect();
                    let (got, want) = (f32::from_bits(memory[lane * 16 + i]), cut_sum(&pairs, c[row][col]));
                    assert_eq!(got, want, "{} {row} {col}", kind.suffixes);
                }
            }
        }
    }
}

#[test]
fn ldmatrix_and_stmatrix() {
    // Element e of row r of tile t has the value 64 t + 8 r + e.
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
        // A store with the same layout must restore the tiles.
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
