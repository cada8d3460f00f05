//! How the kernels for many tokens divide their work, which a launch depends on. It matches the entries of
//! prefill.cu and hopper.cu.

use super::kernels::{Division, Kind, Products};

/// The parameters of one of those entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variant {
    /// K, rounded up to 64, 128 or 256.
    pub key: usize,
    /// The number of tokens in a tile.
    pub tokens: usize,
    /// The number of columns of V in a panel.
    pub columns: usize,
    /// The number of threads in a block.
    pub threads: u32,
    /// Bytes of shared memory without stages.
    pub shared: usize,
    /// The bytes of a stage, which is a tile as it is in memory; 0 where the number of stages is fixed.
    pub stage: usize,
    /// The number of blocks for which a multiprocessor has registers.
    blocks: usize,
}

impl Variant {
    pub(super) fn new(kind: Kind, products: Products, key: usize, division: Division) -> Self {
        let key = if key <= 64 { 64 } else { key.next_power_of_two() };
        if products == Products::WarpgroupDot {
            return Self::hopper(key, division);
        }
        // How many bf16 numbers sum to an element of phi(q), phi(k), the scores and the state, and how many
        // to one of v.
        let (phi, v) = match (products, kind) {
            (Products::Dot | Products::WarpgroupDot, _) => (1, 1),
            (Products::Exact, Kind::Bf16) => (2, 1),
            (Products::Exact, Kind::F16) => (2, 2),
            (Products::Exact, Kind::F32) => (3, 3),
        };
        // Warps along a tile's rows, 16 rows each; warps along V; and the columns of V of each warp, in
        // eights.
        let (rows, groups, eights) = match (phi, key) {
            (1, 64 | 128) | (2, 64) => (4, 2, 4),
            (1, _) => (4, 2, 2),
            (2, 128) => (2, 4, 2),
            (2, _) => (2, 2, 1),
            (_, 64) => (2, 4, 2),
            (_, 128) => (2, 4, 1),
            _ => (1, 2, 1),
        };
        let (tokens, columns) = (16 * rows, 8 * eights * groups);
        // q, k, v, the state and z as bf16; z twice as f32; and a row index for each column of v.
        let operands = tokens * (phi * 2 * key + v * columns) + phi * key * (columns + 1);
        let shared = 2 * operands + 4 * (2 * key + columns);
        let stage = tokens * (2 * key + columns) * kind.size();
        let blocks = if key == 64 && phi == 1 && division != Division::PerChunk { 2 } else { 1 };
        Self { key, tokens, columns, threads: 32 * (rows * groups) as u32, shared, stage, blocks }
    }

    /// The number of stages, at most two, that fit the shared memory that a block may have. With `many`,
    /// which means that there are more blocks than multiprocessors, two blocks share a multiprocessor if
    /// there is room for a stage of each.
    pub(super) fn stages(&self, shared_memory: usize, many: bool) -> usize {
        let of = |bytes: usize| bytes.saturating_sub(self.shared).checked_div(self.stage).unwrap_or(0).min(2);
        // On all GPUs a multiprocessor has 1 KiB more than a block may have, and reserves 1 KiB of it for
        // each block.
        let half = (shared_memory + 1024) / 2 - 1024;
        match of(half) {
            stages @ 1.. if many && self.blocks == 2 => stages,
            _ => of(shared_memory),
        }
    }

    fn hopper(key: usize, division: Division) -> Self {
        let (tokens, tiles, columns) = match key {
            64 => (64, 4, 64),
            128 => (64, 3, 128),
            _ => (64, 2, 64),
        };
        let (normalised, per_chunk) =
            (usize::from(division != Division::None), usize::from(division == Division::PerChunk));
        // Each tile consists of q, k and v and, for each of the four warps that convert rows, a row index for
        // each column of v and a flag.
        let tile = 2 * tokens * (2 * key + columns) + 4 * 4 * columns + 4 * 4;
        // S and z, S and z of the finished chunks, and ones.
        let state = (1 + per_chunk) * 2 * key * columns + (normalised + per_chunk) * 16 * key + 256;
        Self { key, tokens, columns, threads: 384, shared: tiles * tile + state, stage: 0, blocks: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of shared memory that a block may have, by GPU.
    const AMPERE: usize = 166_912;
    const CONSUMER: usize = 101_376;

    #[test]
    fn two_blocks_share_a_multiprocessor_where_there_is_room() {
        let stages = |kind, key, division, shared_memory, many| {
            Variant::new(kind, Products::Dot, key, division).stages(shared_memory, many)
        };
        let (none, per_chunk) = (Division::None, Division::PerChunk);
        // Half of 164 KiB has room for two stages of bf16, and for one of f32.
        assert_eq!(stages(Kind::Bf16, 64, none, AMPERE, true), 2);
        assert_eq!(stages(Kind::F32, 64, none, AMPERE, true), 1);
        assert_eq!(stages(Kind::F32, 64, none, AMPERE, false), 2);
        // Half of 100 KiB has room for none, so a block has the multiprocessor for itself, as where registers
        // suffice for only one.
        assert_eq!(stages(Kind::Bf16, 64, none, CONSUMER, true), 2);
        assert_eq!(stages(Kind::F32, 64, per_chunk, AMPERE, true), 2);
        assert_eq!(stages(Kind::F32, 128, none, AMPERE, true), stages(Kind::F32, 128, none, AMPERE, false));
        // Hopper's own kernels have a fixed number of stages.
        assert_eq!(Variant::new(Kind::Bf16, Products::WarpgroupDot, 64, none).stages(232_448, true), 0);
    }
}
