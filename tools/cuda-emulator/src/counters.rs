//! Counts of what launches execute and access.

use crate::isa::{CLASSES, Class};
use crate::lanes::each;

/// The counts of one launch or of several. The layout is that of C, and all fields have 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// The number of launches.
    pub launches: u64,
    /// The number of blocks.
    pub blocks: u64,
    /// The number of warp-instructions of all classes.
    pub instructions: u64,
    /// Arithmetic, moves, comparisons and conversions. This field and the next ones up to `wgmma` count
    /// warp-instructions by class.
    pub alu: u64,
    /// Branches and returns.
    pub control: u64,
    /// mma with k = 16.
    pub mma_k16: u64,
    /// mma with k = 8.
    pub mma_k8: u64,
    /// mma with k = 4.
    pub mma_k4: u64,
    /// ldmatrix and stmatrix.
    pub ldmatrix: u64,
    /// Loads, stores and atomics of shared memory.
    pub shared: u64,
    /// Loads, stores and atomics of global memory, and those with generic addresses.
    pub global: u64,
    /// Accesses to parameters and local memory, shuffles, votes, fences and everything else.
    pub other: u64,
    /// cp.async, and its commits and waits.
    pub cp_async: u64,
    /// Barriers of the block, including arrivals.
    pub barrier: u64,
    /// wgmma, and its fences, commits and waits.
    pub wgmma: u64,
    /// The number of bytes of global memory that lanes have read, including cp.async.
    pub global_read: u64,
    /// The number of bytes of global memory that lanes have written.
    pub global_written: u64,
    /// The number of 32-byte sectors that requests have accessed. Each request is counted by itself.
    pub global_sectors: u64,
    /// The number of requests of global memory. An atomic of a warp counts as two, other accesses as one.
    pub global_requests: u64,
    /// The number of wavefronts of shared memory beyond those that the width of the accesses needs.
    pub shared_conflicts: u64,
    /// The number of wavefronts of shared memory, without those of wgmma.
    pub shared_wavefronts: u64,
    /// The work of wgmma as a number of products of 16 x 8 x 16, comparable with `mma_k16`.
    pub wgmma_k16: u64,
    /// The number of bytes of shared memory that wgmma reads. Each operand is counted once.
    pub wgmma_read: u64,
    /// The number of warp-instructions of warps 0 to 3 of each block.
    pub group_0: u64,
    /// The number of warp-instructions of warps 4 to 7 of each block.
    pub group_1: u64,
    /// The number of warp-instructions of warps 8 to 11 of each block.
    pub group_2: u64,
}

impl Counters {
    /// Adds numbers of instructions by class. `k8` and `k4` are the numbers of mma with these k.
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

    /// Adds all fields of other counts.
    pub fn add(&mut self, o: &Counters) {
        macro_rules! sum {
            ($($f:ident),+) => { $(self.$f += o.$f;)+ };
        }
        sum!(launches, blocks, instructions, alu, control, mma_k16, mma_k8, mma_k4, ldmatrix, shared, global);
        sum!(other, cp_async, barrier, wgmma, global_read, global_written, global_sectors, global_requests);
        sum!(shared_conflicts, shared_wavefronts, wgmma_k16, wgmma_read, group_0, group_1, group_2);
    }

    /// Counts a request of global memory.
    pub(crate) fn sectors(&mut self, addrs: &[u64; 32], mask: u32) {
        let (mut seen, mut n, mut most) = ([0u64; 32], 0, 0);
        for i in each(mask) {
            // An access is aligned, so it lies in one sector. Addresses mostly increase from lane to lane, in which
            // case no search is needed.
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

    /// Counts a request of shared memory. The lanes are served in as many phases as the width of their accesses needs.
    /// In a wavefront, each bank gives one word.
    pub(crate) fn banks(&mut self, addrs: &[u64; 32], mask: u32, bytes: u32) {
        let (width, part) = match bytes {
            16 => (8, 0xff),
            8 => (16, 0xffff),
            _ => (32, u32::MAX),
        };
        for phase in (0..32).step_by(width) {
            // If all lanes access different banks, one wavefront is enough. This is the most frequent case.
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
