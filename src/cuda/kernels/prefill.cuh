// What both kernels of many tokens share: a block's part of the work, the tiles of a sequence, and how rows become operands.
#pragma once
#include "matrix.cuh"

// Which tokens a tile takes: none beyond the end, nor beyond a chunk's end.
struct Cursor {
  i64 token, end;
  int fill, chunk, most;  // tokens of the chunk that came before; 0 for no chunks; rows of a whole tile

  __device__ __forceinline__ bool more() const { return token < end; }
  __device__ __forceinline__ int rows() const {
    int rows = end - token < most ? (int)(end - token) : most;
    if (chunk && chunk - fill < rows) rows = chunk - fill;
    return rows;
  }
  __device__ __forceinline__ void advance(int rows) {
    token += rows;
    fill = chunk && fill + rows == chunk ? 0 : fill + rows;
  }
};

// A block's part of the work: a segment of a head's sequence, and VP columns of V. The panels of a head are neighbours in the
// grid, so that they read the same q and k at about the same time.
template <class E, int C, int VP, Normaliser N> struct Part {
  typedef typename E::Bits Bits;
  static constexpr bool NORMALISED = N != NONE, CHUNKED = N == PER_CHUNK;

  const PrefillArgs& a;
  int heads, head, panel, segment, first_column, columns;  // heads of B H; columns that are in V, at most VP
  int matrix, sums_len;                                    // elements of S, and of S and z
  const Bits *q, *k, *v;                                   // this head's rows
  Bits* o;
  const float *initial, *all_z, *chunk_z, *count;          // the state before, or null; its parts before any block wrote them
  float *last, *sums, *finished;                           // the state after, or null; a segment's; S of the finished chunks

  __device__ __forceinline__ Part(const PrefillArgs& args) : a(args) {
    const int panels = (a.value + VP - 1) / VP;
    heads = gridDim.x / panels, head = blockIdx.x / panels, panel = blockIdx.x % panels, segment = blockIdx.z;
    first_column = panel * VP, columns = a.value - first_column < VP ? a.value - first_column : VP;
    const int batch = head / a.heads, of_batch = head % a.heads;
    q = (const Bits*)a.q + batch * a.q_strides.batch + of_batch * a.q_strides.head;
    k = (const Bits*)a.k + batch * a.k_strides.batch + of_batch * a.k_strides.head;
    v = (const Bits*)a.v + batch * a.v_strides.batch + of_batch * a.v_strides.head + first_column;
    o = (Bits*)a.o + batch * a.o_strides.batch + of_batch * a.o_strides.head + first_column;
    matrix = a.key * a.value, sums_len = matrix + (NORMALISED ? a.key : 0);
    initial = a.initial ? a.initial + head * a.state_len : 0;
    all_z = initial + matrix, chunk_z = initial + sums_len + matrix, count = initial + 2 * sums_len;
    if (a.sums) all_z = a.sums + (i64)head * (2 * a.key + 1), chunk_z = all_z + a.key, count = chunk_z + a.key;
    last = a.last ? a.last + head * a.state_len : 0;
    sums = a.segments ? a.segments + ((i64)segment * heads + head) * sums_len : 0;
    finished = last ? last : a.finished + (i64)head * matrix;
  }

  __device__ __forceinline__ Cursor begin() const {
    Cursor now;
    now.token = segment * a.segment_len;
    now.end = now.token + a.segment_len < a.len ? now.token + a.segment_len : a.len;
    now.chunk = CHUNKED ? a.chunk : 0, now.most = C, now.fill = 0;
    // What no state of this configuration has as its count, NaN among it, is taken for the nearest that one may have.
    if (CHUNKED && initial) now.fill = (int)fminf(fmaxf(*count, 0.0f), (float)(a.chunk - 1));
    return now;
  }
  // Whether the sums of the current chunk are kept apart from those of the finished ones: not where each chunk is one tile,
  // since the first are zero then whenever a tile begins.
  __device__ __forceinline__ bool begins_apart(const Cursor& now) const { return CHUNKED && (a.chunk > C || now.fill > 0); }
  // Whether a tile is the last, of a chunk that will not end: what it adds is kept apart.
  __device__ __forceinline__ bool is_tail(int rows) const { return CHUNKED && last && rows < a.chunk; }

  // Calls f(two neighbours, where they lie in S, how many of them are in S) for a thread's part of S: fragments STEP rows apart,
  // of which `row` and `column` are its first.
  template <int STEP, int M, int NT, class F>
  __device__ __forceinline__ void each_pair(float (&s)[M][NT][4], int row, int column, float* at, F f) const {
    at += row * a.value + first_column + column;
    // What does not change from tile to tile would be kept in registers for all of them.
    asm volatile("" : "+l"(at), "+r"(row));
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
      const int below = i / 2 * STEP + i % 2 * 8, left = row + below < a.key ? columns - column : 0;
#pragma unroll
      for (int n = 0; n < NT; n++)
        f(s[i / 2][n][i % 2 * 2], s[i / 2][n][i % 2 * 2 + 1], at + below * a.value + n * 8, left - n * 8);
    }
  }
  template <int STEP, int M, int NT>
  __device__ __forceinline__ void add_from(float (&s)[M][NT][4], int row, int column, const float* from) const {
    each_pair<STEP>(s, row, column, (float*)from, [](float& x, float& y, const float* at, int left) {
      float more[2];
      load_pair_if(left, at, more);
      x += more[0], y += more[1];
    });
  }
  template <int STEP, int M, int NT>
  __device__ __forceinline__ void store(float (&s)[M][NT][4], int row, int column, float* to) const {
    each_pair<STEP>(s, row, column, to, [](float& x, float& y, float* at, int left) { store_pair_if(left, at, x, y); });
  }

  // Where the state that this block leaves goes, or null.
  __device__ __forceinline__ float* destination(const Cursor& now, bool apart) const {
    return !a.outputs ? sums : !last || now.end < a.len ? 0 : apart ? last + sums_len : last;
  }
};

// How the pieces of eight columns of a tile of C rows are spread over THREADS: each has one column of pieces, and every STEP-th
// row. Along the rows of one block of columns, so that eight threads that store at the same time do so to different banks.
template <class M, int C, int THREADS> struct Spread {
  static constexpr int ACROSS = M::BLOCK_COLUMNS / 8, STEP = THREADS / ACROSS / M::BLOCKS, COUNT = (C + STEP - 1) / STEP;
  int first, eight;
  __device__ __forceinline__ explicit Spread(int thread)
      : first(thread / ACROSS % STEP), eight(thread % ACROSS + thread / (ACROSS * STEP) * ACROSS) {}
  // Where piece i lies in an operand, of where the first does: STEP divides the eight rows of the pattern, or they divide it.
  DEVICE u32 below(u32 at, int i) {
    static_assert(M::ROW == 128, "the pattern of 128 bytes");
    return (at ^ i * STEP % 8 * 16) + i * STEP * M::ROW;
  }
};

// The causal mask multiplies by zero, which does not stop a NaN or an infinity in a later v. Those are taken out of the
// operand, and for each column the first row that has one is kept: from there on outputs, and the whole column of S, are NaN.
//
// Of a piece of an operand of TERMS bf16: zero in place of what is not finite.
template <int TERMS, class M> DEVICE void take_out(M operand, int row, int eight, u32 rows_of_columns) {
  const u32 at = operand.at(row, eight);
  u32 pairs[4], bad = 0;
  load_shared4(pairs, at);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const u32 bits = pairs[i / 2] >> (i % 2 * 16) & 0x7f80u;
    if (bits == 0x7f80u) bad |= 1u << i, min_shared(rows_of_columns + (eight * 8 + i) * 4, row);
  }
  if (!bad) return;
#pragma unroll
  for (int term = 0; term < TERMS; term++) {
    load_shared4(pairs, operand.term(term).at(row, eight));
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (bad >> i & 1) pairs[i / 2] &= i % 2 ? 0xffffu : 0xffff0000u;
    store_shared(operand.term(term).at(row, eight), make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
  }
}
