//! The limits of the machine: multiply-adds a second, and bytes a second at a footprint, on as many threads
//! as the work.

use std::sync::{Barrier, Mutex};
use std::time::Instant;

use chunkwise::Isa;
use chunkwise::bench_support::{multiply_adds, on_threads, read, update};

use super::machine::Caches;

/// What a ceiling measures.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    /// Independent multiply-adds in registers.
    Fma,
    /// Reading, changing and writing this many bytes in place; bytes read and bytes written both count.
    Update { of: String, bytes: usize },
    /// Reading this many bytes.
    Read { of: String, bytes: usize },
}

impl What {
    pub(super) fn name(&self) -> String {
        match self {
            What::Fma => "FMA".into(),
            What::Update { of, .. } => format!("update {of}"),
            What::Read { of, .. } => format!("read {of}"),
        }
    }

    pub(super) fn unit(&self) -> &'static str {
        if *self == What::Fma { "GFLOP/s" } else { "GB/s" }
    }

    /// The footprint of all threads in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            What::Fma => 0,
            What::Update { bytes, .. } | What::Read { bytes, .. } => *bytes,
        }
    }
}

/// A level of the memory hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Level {
    pub(super) what: What,
    /// The most bytes that the level has room for, of all threads together.
    room: usize,
}

/// The levels, fastest first. A footprint of half a cache stays in the cache, whatever else runs.
pub(super) fn levels(caches: &Caches, threads: usize) -> Vec<Level> {
    let level = |of: &str, bytes, room| Level { what: What::Update { of: of.into(), bytes }, room };
    let Caches { l1, l2, l3, .. } = *caches;
    vec![
        level("L1", l1 / 2 * threads, l1 * threads),
        level("L2", l2 / 2 * threads, l2 * threads),
        // L3 is shared with everything else on the chip, so the footprint is a smaller part of it.
        level("L3", (l3 / 4).max(l2 * threads), l3),
        level("DRAM", (4 * l3).clamp(64 << 20, 512 << 20), usize::MAX),
    ]
}

/// The fastest level that has room for this many bytes.
pub(super) fn level_of(levels: &[Level], bytes: f64) -> What {
    let fits = levels.iter().find(|level| bytes <= level.room as f64);
    fits.unwrap_or(&levels[levels.len() - 1]).what.clone()
}

/// A ceiling and its readings, in GFLOP/s or GB/s.
pub(super) struct Ceiling {
    pub(super) isa: Isa,
    pub(super) threads: usize,
    pub(super) what: What,
    /// The number of steps or passes in a reading.
    times: usize,
    pub(super) readings: Vec<f64>,
}

/// Seconds that a reading of multiply-adds takes.
const FMA_TIME: f64 = 1e-3;
/// The bytes that a reading touches, by one pass if the footprint is larger. A shared cache needs several
/// passes before it keeps memory that is read repeatedly: when a reading touched 32 MiB, a footprint of
/// 12 MiB was read at 22 GB/s, while a model's steps read it at 27 GB/s.
const TOUCHED: usize = 256 << 20;
/// The number of elements that [`update`] takes at a time on any instruction set; parts are whole multiples
/// of it.
const BLOCK: usize = 128;

impl Ceiling {
    pub(super) fn new(isa: Isa, threads: usize, what: What) -> Self {
        const TRIAL: usize = 10_000;
        let times = if what == What::Fma {
            let begin = Instant::now();
            multiply_adds(isa, TRIAL);
            (TRIAL as f64 * FMA_TIME / begin.elapsed().as_secs_f64()) as usize
        } else {
            TOUCHED / what.bytes().max(1)
        };
        Self { isa, threads, what, times: times.max(1), readings: Vec::new() }
    }

    /// The elements of one thread's part, which is never empty.
    fn part(&self) -> usize {
        self.what.bytes().div_ceil(self.threads * size_of::<f32>()).next_multiple_of(BLOCK).max(BLOCK)
    }

    /// Elements of memory that a reading needs.
    pub(super) fn memory(&self) -> usize {
        self.threads * self.part()
    }

    /// Takes a reading.
    pub(super) fn measure(&mut self, memory: &mut [f32]) {
        let (isa, part) = (self.isa, self.part());
        let work = |part: &mut [f32], times: usize| match self.what {
            What::Fma => multiply_adds(isa, times),
            What::Update { .. } => {
                update(isa, part, times);
                (2 * size_of_val(part) * times) as f64
            }
            What::Read { .. } => {
                read(isa, part, times);
                (size_of_val(part) * times) as f64
            }
        };
        let barrier = Barrier::new(self.threads);
        let all = Mutex::new(Vec::new());
        on_threads(self.threads, memory, part, |part| {
            // A reading includes neither what other work left in the caches nor the time until the last
            // thread has begun.
            work(part, 1);
            barrier.wait();
            let begin = Instant::now();
            let done = work(part, self.times);
            let one = (done, begin, Instant::now());
            all.lock().expect("ceilings don't panic").push(one);
        });
        self.readings.push(1e-9 * rate(&all.into_inner().expect("ceilings don't panic")));
    }
}

/// The work of all threads per second, from the beginning of the first thread to the end of the last.
fn rate(all: &[(f64, Instant, Instant)]) -> f64 {
    let done: f64 = all.iter().map(|(done, ..)| done).sum();
    let first = all.iter().map(|(_, begin, _)| begin).min().expect("at least one thread");
    let last = all.iter().map(|(.., end)| end).max().expect("at least one thread");
    done / (*last - *first).as_secs_f64()
}
