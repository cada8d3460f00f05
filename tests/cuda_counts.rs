//! The work of the kernels, counted by the emulator: the bytes that are moved, and the time that an H200
//! would need for their instructions alone. The tests are a program of their own and run one after the other,
//! because the counters belong to the process.

mod common;
mod cuda_common;

use std::sync::{Mutex, PoisonError};

use chunkwise::Normaliser;
use chunkwise::cuda::{Attention, Buffer, DecodeStep, Device, Forward, Precision, State, Stream};
use common::*;
use cuda_common::{Counters, Emulator, config, emulated, explained};
use half::bf16;

/// The number of multiprocessors of an H200, and their clock in GHz.
const MULTIPROCESSORS: f64 = 132.0;
const CLOCK: f64 = 1.755;
/// The number of warp instructions that a multiprocessor issues in a clock.
const ISSUES: f64 = 4.0;
/// The number of products of 16 x 8 x 16, which are 2048 multiply-adds, that wgmma computes in a clock; and
/// the part of this rate that mma.sync is known to reach.
const PRODUCTS: f64 = 1.0;
const SYNC: f64 = 0.62;
/// The number of clocks in which a warp issues an instruction if it has a scheduler nearly for itself. This
/// is an assumption: most instructions wait for an earlier one, whose latency is four clocks or more.
const PACE: f64 = 2.0;
/// The number of wavefronts of shared memory that a multiprocessor reads or writes in a clock.
const WAVEFRONTS: f64 = 1.0;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The number of tokens for which one head is counted. The work is the same for all heads, and
/// proportional to the number of tokens.
const LEN: usize = 1024;

/// The counters of a forward of one head in bf16, without a state.
fn count(
    device: &Device,
    precision: Precision,
    (dim, normaliser): (usize, Normaliser),
    segments: usize,
) -> Counters {
    let emulator = Emulator::get();
    let config = config([1, LEN, 1, dim, dim], normaliser);
    let case = Case::new(config, 1);
    let attention =
        Attention::new(device, config, precision).expect("a configuration").with_segments(segments);
    assert_eq!(attention.segments(), segments, "segments");
    let upload = |x: &[f32]| Buffer::from_slice(device, &narrow::<bf16>(x)).expect("memory");
    let (q, k, v, mut o) = (upload(&case.q), upload(&case.k), upload(&case.v), upload(&case.output()));
    let mut workspace = Buffer::zeros(device, attention.workspace_len()).expect("memory");
    let (q, k, v, state) = (q.slice(), k.slice(), v.slice(), State::Zero);
    emulator.reset_counters();
    attention
        .forward(
            Forward { q, k, v, state, o: o.slice_mut(), workspace: workspace.slice_mut() },
            Stream::DEFAULT,
        )
        .expect("a launch");
    explained(device.synchronize(Stream::DEFAULT));
    emulator.counters()
}

/// The devices on which work is counted: one with the kernels of Hopper, and one with those of older GPUs.
fn counted_on() -> impl Iterator<Item = Device> {
    emulated().iter().rev().cloned()
}

/// The microseconds that the counted work takes at this rate for some heads of `len` tokens, if nothing else
/// takes time.
fn time(count: u64, heads: f64, len: f64, rate: f64) -> f64 {
    count as f64 * heads * len / LEN as f64 / rate / MULTIPROCESSORS / CLOCK / 1e3
}

fn report_times(what: &str, counted: &Counters, (heads, len): (f64, f64)) {
    report(&format!(
        "{what}, on an H200, by counts: issue {:.0} us, tensor cores {:.0} us, shared memory {:.0} us",
        time(counted.instructions, heads, len, ISSUES),
        time(counted.mma_k16, heads, len, SYNC * PRODUCTS) + time(counted.wgmma_k16, heads, len, PRODUCTS),
        time(counted.shared_wavefronts + counted.wgmma_read / 128, heads, len, WAVEFRONTS),
    ));
}

/// Reports the microseconds of each group of warps of a Hopper kernel. A group issues an instruction of each
/// warp in `PACE` clocks, and waits for its products. The groups run at the same time, so that the slowest
/// determines the time.
fn report_phases(counted: &Counters, [of_outputs, of_state]: [u64; 2], (heads, len): (f64, f64)) {
    // The four warps of a group are on four schedulers.
    let issued = |group: u64| time(group, heads, len, 4.0 / PACE);
    let products = |count: u64| time(count, heads, len, PRODUCTS);
    let groups = [
        issued(counted.group_0),
        issued(counted.group_1) + products(of_outputs),
        issued(counted.group_2) + products(of_state),
    ];
    let tiles = LEN as u64 / 64;
    report(&format!(
        "sums of phases: converter {:.0} us, outputs {:.0} us, state {:.0} us; {}, {} and {} instructions a tile",
        groups[0],
        groups[1],
        groups[2],
        counted.group_0 / tiles,
        counted.group_1 / tiles,
        counted.group_2 / tiles,
    ));
}

#[test]
fn bytes_and_instructions() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for device in counted_on() {
        let hopper = device.has_wgmma();
        for (dim, normaliser, floor) in [
            (64, Normaliser::None, 62.0),
            (64, Normaliser::Global { eps: 1e-6 }, 62.0),
            (128, Normaliser::None, 125.0),
            (128, Normaliser::Global { eps: 1e-6 }, 125.0),
        ] {
            let counted = count(&device, Precision::Bf16Dot, (dim, normaliser), 1);
            // With K = 128, a panel of Hopper's kernels has 128 columns of V.
            let panels = if hopper { 1 } else { dim.div_ceil(64) as u64 };
            let tensor = (2 * LEN * dim) as u64;
            // Each panel reads q, k and its columns of v, and nothing else. Only o is written.
            assert_eq!(counted.global_read, tensor * (2 * panels + 1), "bytes read, K = V = {dim}");
            assert_eq!(counted.global_written, tensor, "bytes written, K = V = {dim}");
            // These are the products of 16 x 8 x 16 for each tile and panel. On Hopper, Q K^T and A V are
            // computed completely; elsewhere only up to the diagonal, and Q K^T by each of two groups. Q S
            // and K^T V are computed for all rows. With a normaliser there are also the sums of the rows of
            // A, and those of Q and K by each group.
            let tiles = (LEN / 64) as u64;
            let (deep, wide) = (dim as u64 / 16, dim as u64 / panels / 8);
            let (of_scores, of_tril) = if hopper { (32, 16) } else { (2 * 20, 10) };
            let sums = match (normaliser, hopper) {
                (Normaliser::None, _) => [0, 0],
                (_, true) => [4 * deep + 16, 4 * deep],
                _ => [2 * 4 * deep + 2 * 10, 2 * 4 * deep],
            };
            let of_outputs = tiles * panels * (of_scores * deep + of_tril * wide + 4 * deep * wide + sums[0]);
            let of_state = tiles * panels * (4 * deep * wide + sums[1]);
            assert_eq!(counted.mma_k16 + counted.wgmma_k16, of_outputs + of_state, "products, K = V = {dim}");
            assert_eq!(if hopper { counted.mma_k16 } else { counted.wgmma_k16 }, 0, "the other products");
            // On GPUs other than Hopper, z is cleared once by stores of pairs, which conflict.
            let of_z = if normaliser == Normaliser::None || hopper { 0 } else { panels * dim as u64 / 16 };
            assert!(counted.shared_conflicts <= of_z, "bank conflicts, K = V = {dim}");
            let work = (128.0, 4096.0);
            report_times(
                &format!(
                    "{device:?}, bf16 dot, {normaliser:?}, K = V = {dim}, B=8 T=4096 H=16, memory's floor {floor} us"
                ),
                &counted,
                work,
            );
            report(&format!(
                "a tile and panel: {} instructions, {} products, {} ldmatrix and stmatrix, {} wavefronts, {} sectors",
                counted.instructions / tiles / panels,
                (of_outputs + of_state) / tiles / panels,
                counted.ldmatrix / tiles / panels,
                (counted.shared_wavefronts + counted.wgmma_read / 128) / tiles / panels,
                counted.global_sectors / tiles / panels,
            ));
            if hopper {
                // Rows of o are written in whole sectors. cp.async counts one sector for each 16 bytes.
                assert_eq!(counted.global_sectors, tensor / 32 + 3 * tensor / 16, "sectors, K = V = {dim}");
                report_phases(&counted, [of_outputs, of_state], work);
            }
        }
    }
}

/// The work of `Precision::F32` for tensors in bf16: phi, the scores and S are each represented by two
/// numbers of bf16, and Hopper runs the kernels of older GPUs.
#[test]
fn precise() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let device = counted_on().next().expect("the emulator");
    for dim in [64, 128] {
        let counted = count(&device, Precision::F32, (dim, Normaliser::None), 1);
        // A panel has 64 columns of V.
        let tensor = (2 * LEN * dim) as u64;
        assert_eq!(counted.global_read, tensor * (2 * dim as u64 / 64 + 1), "bytes read, K = V = {dim}");
        assert_eq!(counted.global_written, tensor, "bytes written, K = V = {dim}");
        assert_eq!(counted.wgmma_k16, 0, "wgmma");
        report_times(
            &format!("{device:?}, bf16 as precise as f32, K = V = {dim}, B=8 T=4096 H=16"),
            &counted,
            (128.0, 4096.0),
        );
    }
}

/// For a sequence in segments, k and v of all segments but the last are read once more, for their sums.
#[test]
fn segments() {
    const SEGMENTS: usize = 4;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for device in counted_on() {
        let (dim, all) = (64, SEGMENTS as u64);
        let counted = count(&device, Precision::Bf16Dot, (dim, Normaliser::None), SEGMENTS);
        let (tensor, state) = ((2 * LEN * dim) as u64, (4 * dim * dim) as u64);
        let again = 2 * tensor / all * (all - 1);
        // The sums are written, scanned in place, and read where the outputs of a segment begin.
        assert_eq!(counted.global_read, 3 * tensor + again + state * (all - 1 + all), "bytes read");
        assert_eq!(counted.global_written, tensor + state * (all - 1 + all), "bytes written");
        // The lower bound is the time to move the tensors once, at 4.3 TB/s.
        let floor = 16.0 * 16384.0 * dim as f64 * 2.0 * 4.0 / 4.3e6;
        let moved = 16.0 * (16384.0 / LEN as f64) * (4 * tensor + again) as f64 / 4.3e6;
        report_times(
            &format!(
                "{device:?}, bf16 dot, K = V = {dim}, B=1 T=16384 H=16 in segments, memory's floor {floor:.0} us, {moved:.0} us with what is \
                 read again"
            ),
            &counted,
            (16.0, 16384.0),
        );
    }
}

/// The counters of a decode of some heads in bf16, and the number of elements of the state.
fn count_decode(device: &Device, heads: usize, dim: usize, normaliser: Normaliser) -> (Counters, u64) {
    let emulator = Emulator::get();
    let config = config([1, 1, heads, dim, dim], normaliser);
    let attention = Attention::new(device, config, Precision::F32).expect("a configuration");
    let case = Case::new(config, 1);
    let upload = |x: &[f32]| Buffer::from_slice(device, &narrow::<bf16>(x)).expect("memory");
    let (q, k, v, mut o) = (upload(&case.q), upload(&case.k), upload(&case.v), upload(&case.output()));
    let mut state = Buffer::zeros(device, attention.state_len()).expect("memory");
    emulator.reset_counters();
    let (q, k, v, state) = (q.slice(), k.slice(), v.slice(), state.slice_mut());
    attention.decode(DecodeStep { q, k, v, state, o: o.slice_mut() }, Stream::DEFAULT).expect("a launch");
    explained(device.synchronize(Stream::DEFAULT));
    (emulator.counters(), attention.state_len() as u64)
}

/// A decode reads and writes the state once, in whole sectors, 16 bytes for each thread. Its instructions
/// take much less time than its accesses to memory.
#[test]
fn decode_reads_the_state_once() {
    /// Fewer heads than multiprocessors, so that heads without a normaliser are divided among more blocks.
    const FEW: usize = 16;
    /// More heads than multiprocessors.
    const MANY: usize = 136;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let device = Emulator::get().open().expect("the emulator's device");
    let lanes = |elements: u64| elements.div_ceil(32);
    for ((heads, dim), normaliser) in [FEW, MANY]
        .into_iter()
        .flat_map(|heads| [(heads, 64), (heads, 128)])
        .flat_map(|sizes| normalisers(&[16]).into_iter().map(move |normaliser| (sizes, normaliser)))
    {
        let (counted, state_len) = count_decode(&device, heads, dim, normaliser);
        let (rows, row) = (heads as u64, dim as u64);
        let name = format!("decode, B H = {heads}, K = V = {dim}, {normaliser:?}");
        let per_chunk = matches!(normaliser, Normaliser::PerChunk { .. });
        let columns = match normaliser {
            Normaliser::None => {
                if heads == FEW {
                    32
                } else {
                    64
                }
            }
            _ => row,
        };
        let blocks = row / columns;
        assert_eq!(counted.blocks, rows * blocks, "blocks, {name}");
        // Each block reads q, k and its columns of v.
        let (inputs, output) = (2 * (2 * blocks + 1) * row * rows, 2 * row * rows);
        if per_chunk {
            // Within a chunk, the sums of the finished chunks are not written. Each thread reads the count.
            let threads = counted.global_read - inputs - 4 * (state_len - rows);
            assert!([256, 512].map(|threads| 4 * threads * rows).contains(&threads), "bytes read, {name}");
            assert_eq!(counted.global_written, 2 * (state_len + rows) + output, "bytes written, {name}");
        } else {
            assert_eq!(counted.global_read, 4 * state_len + inputs, "bytes read, {name}");
            assert_eq!(counted.global_written, 4 * state_len + output, "bytes written, {name}");
            let whole = (counted.global_read + counted.global_written) / 32;
            assert_eq!(counted.global_sectors, whole, "sectors, {name}");
            let z = state_len / rows - row * row;
            let few = 2 * blocks * lanes(row) + 2 * row / 32 + 2 * lanes(z);
            assert_eq!(counted.global_requests, rows * (2 * row * row / 128 + few), "requests, {name}");
        }
        let moved = (counted.global_read + counted.global_written) as f64 / rows as f64;
        let instructions = counted.instructions as f64 / rows as f64;
        let (memory, issue) = (moved / 4.3e3, instructions / ISSUES / MULTIPROCESSORS / CLOCK);
        report(&format!(
            "{name}: a head is {blocks} blocks, {instructions:.0} instructions, {:.1} for each KB, {moved:.0} bytes, {} sectors, \
             {} requests, {} wavefronts of shared memory; on an H200 memory {memory:.1} ns, issue {issue:.1} ns",
            instructions * 1024.0 / moved,
            counted.global_sectors / rows,
            counted.global_requests / rows,
            counted.shared_wavefronts / rows,
        ));
        assert!(issue < 0.6 * memory, "{name}");
    }
}
