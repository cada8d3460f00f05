//! The machine that a report is about.

use chunkwise::Isa;
use serde::{Deserialize, Serialize};

use super::super::info;

/// The machine, as far as it describes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) arch: String,
    pub(super) os: String,
    /// The number of threads that the machine runs at once. None is pinned to a core.
    pub(super) threads: usize,
    pub(super) isas: Vec<String>,
    pub(super) caches: Caches,
}

/// The bytes of the caches: L1 and L2 of one core, and all of L3.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Caches {
    pub(super) l1: usize,
    pub(super) l2: usize,
    pub(super) l3: usize,
    /// Whether the machine reports all sizes; common sizes are assumed for the others.
    pub(super) known: bool,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            cpu: info::cpu(),
            arch: std::env::consts::ARCH.into(),
            os: std::env::consts::OS.into(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            isas: Isa::available().map(|isa| isa.name().into()).collect(),
            caches: Caches::new(),
        }
    }
}

impl Caches {
    fn new() -> Self {
        match [1, 2, 3].map(linux) {
            [Some(l1), Some(l2), Some(l3)] => Self { l1, l2, l3, known: true },
            [l1, l2, l3] => Self {
                l1: l1.unwrap_or(32 << 10),
                l2: l2.unwrap_or(512 << 10),
                l3: l3.unwrap_or(8 << 20),
                known: false,
            },
        }
    }
}

/// The bytes of a level's data cache, where Linux reports them.
fn linux(level: usize) -> Option<usize> {
    for index in 0..8 {
        let file = |name: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}");
            std::fs::read_to_string(path).ok().map(|text| text.trim().to_string())
        };
        if file("level")? == level.to_string() && file("type")? != "Instruction" {
            let size = file("size")?;
            let kib: usize = size.strip_suffix('K')?.parse().ok()?;
            return Some(kib << 10);
        }
    }
    None
}
