//! What a launch did, in numbers.

use crate::isa::{CLASSES, Class};
use crate::lanes::each;

/// Counts of one launch or of several. The layout is that of C; all fields are 64-bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Launches.
    pub launches: u64,
    /// Blocks that ran.
    pub blocks: u64,
    /// Warp-instructions of all classes.
    pub instructions: u64,
    /// Arithmetic, moves, comparisons, conversions.
    pub alu: u64,
    /// Branches and returns.
    pub control: u64,
    /// mma of k = 16, 8 and 4.
    pub mma_k16: u64,
    /// See `mma_k16`.
    pub mma_k8: u64,
    /// See `mma_k16`.
    pub mma_k4: u64,
    /// ldmatrix and stmatrix.
    pub ldmatrix: u64,
    /// Loads, stores and atomics of shared memory.
    pub shared: u64,
    /// Loads, stores and atomics of global memory, and by generic addresses.
    pub global: u64,
    /// Parameters, local memory, shuffles, votes, fences.
    pub other: u64,
    /// cp.async with its commits and waits.
    pub cp_async: u64,
    /// Barriers of the block.
    pub barrier: u64,
    /// wgmma with its fences, commits and waits, per warp.
    pub wgmma: u64,
    /// Bytes of global memory that lanes read, cp.async included.
    pub global_read: u64,
    /// Bytes of global memory that lanes wrote.
    pub global_written: u64,
    /// 32-byte sectors that the requests touched, each request by itself.
    pub global_sectors: u64,
    /// Global requests of a warp.
    pub global_requests: u64,
    /// Wavefronts of shared memory beyond what the width of the accesses needs.
    pub shared_conflicts: u64,
    /// Wavefronts of shared memory, without those of wgmma.
    pub shared_wavefronts: u64,
    /// wgmma in products of 16 x 8 x 16, as `mma_k16`.
    pub wgmma_k16: u64,
    /// Bytes of shared memory that wgmma takes, each operand once.
    pub wgmma_read: u64,
    /// Warp-instructions of the first four warps of each block, of the next four, and of the four after those.
    pub group_0: u64,
    /// See `group_0`.
    pub group_1: u64,
    /// See `group_0`.
    pub group_2: u64,
}

impl Counters {
    /// Takes the instructions counted by class; of mma, `k8` and `k4` were of those shapes.
    pub(crate) fn take(&mut self, classes: &[u64; CLASSES], k8: u64, k4: u64) {
        let of = |class: Class| classes[class as usize];
        self.instructions += classes.iter().sum::<u64>();
        self.alu += of(Class::Alu);
        self.control += of(Class::Control);
        self.mma_k16 += of(Class::Mma) - k8 - k4;
        self.mma_k8 += k8;
        self.mma_k4 += k4;
        self.ldmatrix += of(Class::Ldmatrix);
        self.shared += of(Class::Shared);
        self.global += of(Class::Global);
        self.other += of(Class::Other);
        self.cp_async += of(Class::CpAsync);
        self.barrier += of(Class::Barrier);
        self.wgmma += of(Class::Wgmma);
    }

    /// Adds all fields of another.
    pub fn add(&mut self, o: &Counters) {
        macro_rules! sum {
            ($($f:ident),+) => { $(self.$f += o.$f;)+ };
        }
        sum!(launches, blocks, instructions, alu, control, mma_k16, mma_k8, mma_k4, ldmatrix, shared, global);
        sum!(other, cp_async, barrier, wgmma, global_read, global_written, global_sectors, global_requests);
        sum!(shared_conflicts, shared_wavefronts, wgmma_k16, wgmma_read, group_0, group_1, group_2);
    }

    /// One request of global memory.
    pub(crate) fn sectors(&mut self, addrs: &[u64; 32], mask: u32) {
        let (mut seen, mut n, mut most) = ([0u64; 32], 0, 0);
        for i in each(mask) {
            // Aligned as it is, an access lies within one sector. Mostly addresses rise with the lanes.
            let sector = addrs[i] >> 5;
            if n == 0 || sector > most || sector != most && !seen[..n].contains(&sector) {
                seen[n] = sector;
                n += 1;
                most = most.max(sector);
            }
        }
        self.global_sectors += n as u64;
        self.global_requests += 1;
    }

    /// One request of shared memory: lanes go in as many phases as their width needs, and in each every bank gives one
    /// word.
    pub(crate) fn banks(&mut self, addrs: &[u64; 32], mask: u32, bytes: u32) {
        let (width, part) = match bytes {
            16 => (8, 0xff),
            8 => (16, 0xffff),
            _ => (32, u32::MAX),
        };
        for phase in (0..32).step_by(width) {
            // Lanes that all have banks of their own need one wavefront.
            let here = mask & part << phase;
            let groups =
                each(here).fold(0u32, |m, i| m | 1 << (addrs[i] / u64::from(bytes.max(4)) % width as u64));
            if groups.count_ones() == here.count_ones() {
                self.shared_wavefronts += u64::from(here != 0);
                continue;
            }
            let (mut first, mut count, mut most) = ([0u64; 32], [0u8; 32], 0);
            let (mut extra, mut extras) = ([0u64; 64], 0);
            for i in each(here) {
                for word in 0..u64::from(bytes.div_ceil(4)) {
                    let at = addrs[i] / 4 + word;
                    let bank = (at % 32) as usize;
                    if count[bank] == 0 {
                        first[bank] = at;
                    } else if first[bank] == at || extra[..extras].contains(&at) {
                        continue;
                    } else {
                        extra[extras] = at;
                        extras += 1;
                    }
                    count[bank] += 1;
                    most = most.max(count[bank]);
                }
            }
            self.shared_wavefronts += u64::from(most);
            self.shared_conflicts += u64::from(most.saturating_sub(1));
        }
    }
}
