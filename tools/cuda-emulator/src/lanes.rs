//! The registers of a warp, and macros that turn an expression for one lane into a function for all 32.

/// The registers of a warp, in three files.
#[derive(Default)]
pub struct Regs {
    /// Registers of 8 to 32 bits, zero-extended.
    pub w: Vec<[u32; 32]>,
    /// Registers of 64 bits.
    pub x: Vec<[u64; 32]>,
    /// Predicates, with one bit per lane.
    pub p: Vec<u32>,
}

/// The indices of a destination and of up to four sources. The function that takes them knows their files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// The destination.
    pub d: u32,
    /// The sources.
    pub s: [u32; 4],
}

/// Iterates over the lanes of a mask in ascending order.
#[inline(always)]
pub fn each(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}

/// An operation on registers, whose last argument is the mask of the lanes that take part.
pub type Alu = fn(&mut Regs, &Args, u32);

/// Copies the lanes of `mask` from `v` to `d`.
#[inline(always)]
fn put_lanes<T: Copy>(d: &mut [T; 32], v: &[T; 32], mask: u32) {
    if mask == !0 {
        *d = *v;
    } else {
        for i in 0..32 {
            if mask >> i & 1 != 0 {
                d[i] = v[i];
            }
        }
    }
}

impl Regs {
    /// Writes the lanes of `mask` of a register of 32 bits.
    #[inline(always)]
    pub fn put_w(&mut self, d: u32, v: &[u32; 32], mask: u32) {
        put_lanes(&mut self.w[d as usize], v, mask);
    }

    /// Writes the lanes of `mask` of a register of 64 bits.
    #[inline(always)]
    pub fn put_x(&mut self, d: u32, v: &[u64; 32], mask: u32) {
        put_lanes(&mut self.x[d as usize], v, mask);
    }

    /// Writes the lanes of `mask` of a predicate.
    #[inline(always)]
    pub fn put_p(&mut self, d: u32, v: u32, mask: u32) {
        let d = &mut self.p[d as usize];
        *d = *d & !mask | v & mask;
    }
}

// The kinds of operands are: w for u32, s for i32, h for u16, i for i16 and f for f32, all in file W; x for u64, y for
// i64 and d for f64, in file X; p for bool, in the predicates.
macro_rules! file {
    (x, $r:ident, $s:ident) => {
        &$r.x[$s as usize]
    };
    (y, $r:ident, $s:ident) => {
        &$r.x[$s as usize]
    };
    (d, $r:ident, $s:ident) => {
        &$r.x[$s as usize]
    };
    (p, $r:ident, $s:ident) => {
        $r.p[$s as usize]
    };
    ($k:ident, $r:ident, $s:ident) => {
        &$r.w[$s as usize]
    };
}

macro_rules! at {
    (w, $s:ident, $i:ident) => {
        $s[$i]
    };
    (x, $s:ident, $i:ident) => {
        $s[$i]
    };
    (s, $s:ident, $i:ident) => {
        $s[$i] as i32
    };
    (y, $s:ident, $i:ident) => {
        $s[$i] as i64
    };
    (h, $s:ident, $i:ident) => {
        $s[$i] as u16
    };
    (i, $s:ident, $i:ident) => {
        $s[$i] as u16 as i16
    };
    (f, $s:ident, $i:ident) => {
        f32::from_bits($s[$i])
    };
    (d, $s:ident, $i:ident) => {
        f64::from_bits($s[$i])
    };
    (p, $s:ident, $i:ident) => {
        $s >> $i & 1 != 0
    };
}

macro_rules! blank {
    (x) => {
        [0u64; 32]
    };
    (y) => {
        [0u64; 32]
    };
    (d) => {
        [0u64; 32]
    };
    (p) => {
        0u32
    };
    ($k:ident) => {
        [0u32; 32]
    };
}

macro_rules! set {
    (w, $o:ident, $i:ident, $e:expr) => {
        $o[$i] = $e
    };
    (x, $o:ident, $i:ident, $e:expr) => {
        $o[$i] = $e
    };
    (s, $o:ident, $i:ident, $e:expr) => {
        $o[$i] = ($e) as u32
    };
    (y, $o:ident, $i:ident, $e:expr) => {
        $o[$i] = ($e) as u64
    };
    (h, $o:ident, $i:ident, $e:expr) => {
        $o[$i] = u32::from($e)
    };
    (i, $o:ident, $i:ident, $e:expr) => {
        $o[$i] = u32::from(($e) as u16)
    };
    (f, $o:ident, $i:ident, $e:expr) => {
        $o[$i] = ($e).to_bits()
    };
    (d, $o:ident, $i:ident, $e:expr) => {
        $o[$i] = ($e).to_bits()
    };
    (p, $o:ident, $i:ident, $e:expr) => {
        $o |= u32::from($e) << $i
    };
}

macro_rules! put {
    (x, $r:ident, $d:expr, $o:ident, $m:ident) => {
        $r.put_x($d, &$o, $m)
    };
    (y, $r:ident, $d:expr, $o:ident, $m:ident) => {
        $r.put_x($d, &$o, $m)
    };
    (d, $r:ident, $d:expr, $o:ident, $m:ident) => {
        $r.put_x($d, &$o, $m)
    };
    (p, $r:ident, $d:expr, $o:ident, $m:ident) => {
        $r.put_p($d, $o, $m)
    };
    ($k:ident, $r:ident, $d:expr, $o:ident, $m:ident) => {
        $r.put_w($d, &$o, $m)
    };
}

/// `lanes!(kind <- a: kind, b: kind => expression)` makes an [`Alu`] that computes the expression in every lane.
macro_rules! lanes {
    ($dk:ident <- $($s:ident : $sk:ident),+ => $e:expr) => {{
        fn run(r: &mut $crate::lanes::Regs, g: &$crate::lanes::Args, mask: u32) {
            let [$($s,)+ ..] = g.s;
            $(let $s = $crate::lanes::file!($sk, r, $s);)+
            let mut out = $crate::lanes::blank!($dk);
            for i in 0..32usize {
                $(let $s = $crate::lanes::at!($sk, $s, i);)+
                $crate::lanes::set!($dk, out, i, $e);
            }
            $crate::lanes::put!($dk, r, g.d, out, mask);
        }
        run as $crate::lanes::Alu
    }};
}

/// `compare!(kind, a, b => expression)` makes a function that returns the lanes where the expression holds.
macro_rules! compare {
    ($k:ident, $a:ident, $b:ident => $e:expr) => {{
        fn run(r: &$crate::lanes::Regs, $a: u32, $b: u32) -> u32 {
            let $a = $crate::lanes::file!($k, r, $a);
            let $b = $crate::lanes::file!($k, r, $b);
            let mut out = 0u32;
            for i in 0..32usize {
                let $a = $crate::lanes::at!($k, $a, i);
                let $b = $crate::lanes::at!($k, $b, i);
                out |= u32::from($e) << i;
            }
            out
        }
        run as fn(&$crate::lanes::Regs, u32, u32) -> u32
    }};
}

pub(crate) use {at, blank, compare, file, lanes, put, set};
