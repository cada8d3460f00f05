// One token, and what states need beside.
//
//   o = scale (phi(q)^T S + (phi(q) . phi(k)) v) / norm,   S = S + phi(k) v^T
//
// in one pass: S is read, takes part in o, and is written. Moving S is what takes time, so
// 1. a thread asks for 128 bytes of S before anything else; q, k, v and z are read and mapped while S is on its way;
// 2. S is moved by 16 bytes where its rows allow that, elsewhere by 4;
// 3. without a normaliser, each panel of a head's V is a block of its own. z and the count are read for every panel and written
//    once, and blocks are in no order, so with a normaliser one block takes all panels of a head.
// Rows of S are dealt out to GROUPS groups of threads in turn. So the order of every sum depends neither on the width of panels nor
// on how S is moved, which both differ among batches, and nor do the bits of the result.
#include "element.cuh"

constexpr int GROUPS = 16, MOST_KEY = 256;
// Threads that share a multiprocessor's registers: three blocks of 256, which have 96 KB of S on their way, or one of 512.
constexpr int SHARING = 768;

// What a block shares. It has four threads for each column of its panel, in GROUPS groups, so each thread of a group has four
// columns.
template <Normaliser N> struct Decode {
  static constexpr int MOST_COLUMNS = N == NONE ? 64 : 128;
  // Rows of a group that are taken at once, of one matrix or of both.
  static constexpr int ROWS = N == PER_CHUNK ? 4 : 8;

  float2 qk[MOST_KEY];                              // phi(q), phi(k), and zeros up to a multiple of GROUPS
  float2 z[N == NONE ? 1 : MOST_KEY];               // before the token: of all tokens, and what it is added to
  float score, norm, chunk_norm;                    // phi(q) . phi(k), phi(q) . z, and the same of the chunk's z
  float v[MOST_COLUMNS];
  float out[N == PER_CHUNK ? 2 : 1][GROUPS][MOST_COLUMNS];
};

// What a thread takes of S. Its four columns are neighbours where S is moved by 16 bytes. Elsewhere they are as far apart as a
// row has threads, so that what a warp asks for at once is together either way.
struct Place {
  int key, value, group, column, step;
  bool wide;
};

// Calls `move(i, address, left, step)` for the rows of a group from `first` on. `left` columns lie at the address and after it, none
// where K has no such row. The compiler must not keep addresses from loads to stores: they would take more registers than S.
template <int ROWS, class Move>
DEVICE void each_row(float* matrix, Place p, int first, const Move& move) {
  asm volatile("" : "+l"(matrix), "+r"(p.column), "+r"(p.step));
  float* at = matrix + (first + p.group) * p.value + p.column;
#pragma unroll
  for (int i = 0; i < ROWS; i++, at += GROUPS * p.value) {
    const int row = first + i * GROUPS;
    if (row >= p.key) break;
    move(i, at, row + p.group < p.key ? p.value - p.column : 0, p.step);
  }
}

template <int ROWS> DEVICE void load(float (&s)[ROWS][4], float* matrix, const Place& p, int first) {
  if (p.wide) {
    each_row<ROWS>(matrix, p, first, [&](int i, float* at, int left, int) { load_if(left > 0, at, s[i]); });
  } else {
    each_row<ROWS>(matrix, p, first, [&](int i, float* at, int left, int step) {
#pragma unroll
      for (int j = 0; j < 4; j++) s[i][j] = load_if(j * step < left, at + j * step);
    });
  }
}

template <int ROWS> DEVICE void store(const float (&s)[ROWS][4], float* matrix, const Place& p, int first) {
  if (p.wide) {
    each_row<ROWS>(matrix, p, first, [&](int i, float* at, int left, int) { store_if(left > 0, at, s[i]); });
  } else {
    each_row<ROWS>(matrix, p, first, [&](int i, float* at, int left, int step) {
#pragma unroll
      for (int j = 0; j < 4; j++) store_if(j * step < left, at + j * step, s[i][j]);
    });
  }
}

// `read` in two steps: several loads are on their way before the first is used.
DEVICE u32 bits_of(const void* at, i64 index, int kind) {
  return kind == KIND_F32 ? ((const u32*)at)[index] : ((const u16*)at)[index];
}
DEVICE float widen(u32 bits, int kind) {
  switch (kind) {
    case KIND_F32: return F32::widen(bits);
    case KIND_BF16: return Bf16::widen((u16)bits);
    default: return F16::widen((u16)bits);
  }
}

// Where a head's row of q, k, v or o begins. The compiler must not divide before S is asked for, nor keep the quotient.
DEVICE i64 row_of(const DecodeArgs& a, int head, const Strides& strides) {
  u32 row = head;
  asm volatile("" : "+r"(row));
  return row / (u32)a.heads * strides.batch + row % (u32)a.heads * strides.head;
}

// Over the lanes of a warp, for all of them.
DEVICE float sum_lanes(float x) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(~0u, x, by);
  return x;
}

// phi(q), phi(k) and z for the block. `now` is where what the token is added to begins in the state.
template <Normaliser N>
DEVICE void prepare(const DecodeArgs& a, Decode<N>& shared, int head, const float* all, int now) {
  const float *all_z = all + a.key * a.value, *now_z = all_z + now;
  const i64 q_at = row_of(a, head, a.q_strides), k_at = row_of(a, head, a.k_strides);
#pragma unroll 1
  for (int i = threadIdx.x; i < (a.key + GROUPS - 1) / GROUPS * GROUPS; i += blockDim.x) {
    const bool inside = i < a.key;
    const u32 q_bits = inside ? bits_of(a.q, q_at + i, a.kind) : 0;
    const u32 k_bits = inside ? bits_of(a.k, k_at + i, a.kind) : 0;
    const float2 z = N != NONE && inside ? make_float2(all_z[i], now_z[i]) : make_float2(0.0f, 0.0f);
    float both[2] = {widen(q_bits, a.kind), widen(k_bits, a.kind)};
    phi(both, a.feature_map, a.map_eps);
    shared.qk[i] = inside ? make_float2(both[0], both[1]) : make_float2(0.0f, 0.0f);
    if (N != NONE) shared.z[i] = z;
  }
}

// Products of what `prepare` left, by one warp.
template <Normaliser N> DEVICE void norms(const DecodeArgs& a, Decode<N>& shared) {
  float score = 0.0f, norm = 0.0f, chunk_norm = 0.0f;
#pragma unroll 1
  for (int i = threadIdx.x; i < a.key; i += 32) {
    const float2 qk = shared.qk[i];
    score += qk.x * qk.y;
    if (N != NONE) norm += qk.x * shared.z[i].x;
    if (N == PER_CHUNK) chunk_norm += qk.x * shared.z[i].y;
  }
  shared.score = sum_lanes(score);
  if (N != NONE) shared.norm = sum_lanes(norm);
  if (N == PER_CHUNK) shared.chunk_norm = sum_lanes(chunk_norm);
}

// z with the token. Where a chunk ends, its z goes to that of all tokens.
template <Normaliser N>
DEVICE void add_to_z(const DecodeArgs& a, const Decode<N>& shared, float* all, int now, bool ends) {
  float *all_z = all + a.key * a.value, *now_z = all_z + now;
#pragma unroll 1
  for (int i = threadIdx.x; i < a.key; i += blockDim.x) {
    const float next = shared.z[i].y + shared.qk[i].y;
    now_z[i] = ends ? 0.0f : next;
    if (ends) all_z[i] = shared.z[i].x + next;
  }
}

template <Normaliser N> DEVICE void decode(const DecodeArgs& a, Decode<N>& shared) {
  constexpr bool NORMALISED = N != NONE, PER = N == PER_CHUNK;
  constexpr int ROWS = Decode<N>::ROWS;
  const u32 splits = NORMALISED ? 1 : a.splits;
  const int head = blockIdx.x / splits, across = blockDim.x / GROUPS, columns = 4 * across;
  const int thread = threadIdx.x, x = thread & (across - 1), group = thread >> __popc(across - 1);
  const int matrix = a.key * a.value, sums_len = matrix + (NORMALISED ? a.key : 0);
  float* all = a.state + head * a.state_len;
  float* now = PER ? all + sums_len : all;  // what the token is added to
  float* count_at = all + 2 * sums_len;
  const bool wide = a.value % 4 == 0 && ((u64)all | (u64)now) % 16 == 0;

  float counted = 0.0f;  // tokens of the chunk, without this one and with it
  int count = 0;
  bool prepared = false;
  for (int first = blockIdx.x % splits * columns; first < a.value; first += splits * columns) {
    const int mine = wide ? 4 * x : x, own = first + thread;
    const Place place = {a.key, a.value, group, first + mine, wide ? 1 : across, wide};
    const bool owns = thread < columns && own < a.value;
    float past[4] = {}, sums[4] = {}, v[4];
    for (int from = 0; from < a.key; from += ROWS * GROUPS) {
      float s[ROWS][4], all_s[PER ? ROWS : 1][4];
      load(s, now, place, from);
      if constexpr (PER) load(all_s, all, place, from);

      if (from == 0) {
        const u32 v_bits = owns ? bits_of(a.v, row_of(a, head, a.v_strides) + own, a.kind) : 0;
        if (!prepared) {
          if (PER) counted = *count_at;
          prepare<N>(a, shared, head, all, PER ? sums_len : 0);
        }
        if (thread < columns) shared.v[thread] = widen(v_bits, a.kind);
        __syncthreads();
        // As in prefill.cu: what can't be a count is taken for the nearest that can.
        if (PER) count = (int)fminf(fmaxf(counted, 0.0f), (float)(a.chunk - 1)) + 1;
        if (!prepared && thread < 32) norms<N>(a, shared);
        prepared = true;
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = shared.v[mine + j * place.step];
      }

#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        if (from + i * GROUPS >= a.key) break;
        const float2 qk = shared.qk[from + i * GROUPS + group];
#pragma unroll
        for (int j = 0; j < 4; j++) {
          sums[j] += qk.x * s[i][j], s[i][j] += qk.y * v[j];
          if constexpr (PER) past[j] += qk.x * all_s[i][j];
        }
      }
      if constexpr (PER) {
        if (count == a.chunk) {
#pragma unroll
          for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) all_s[i][j] += s[i][j], s[i][j] = 0.0f;
          store(all_s, all, place, from);
        }
      }
      store(s, now, place, from);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      shared.out[0][group][mine + j * place.step] = sums[j];
      if constexpr (PER) shared.out[1][group][mine + j * place.step] = past[j];
    }
    __syncthreads();

    if (owns) {
      const float score = shared.score;
      float of_now = score * shared.v[thread], of_past = 0.0f;
#pragma unroll
      for (int i = 0; i < GROUPS; i++) {
        of_now += shared.out[0][i][thread];
        if constexpr (PER) of_past += shared.out[1][i][thread];
      }
      float o = of_now * a.scale;
      if (N == GLOBAL) o = of_now * (a.scale / (shared.norm + score + a.eps));
      if (PER)
        o = of_past * (a.scale / (shared.norm + a.eps)) + of_now * (a.scale / (shared.chunk_norm + score + a.eps));
      write(a.o, row_of(a, head, a.o_strides) + own, a.kind, o);
    }
  }
  // All have read them.
  if (NORMALISED) add_to_z<N>(a, shared, all, PER ? sums_len : 0, PER && count == a.chunk);
  if (PER && thread == 0) *count_at = (float)(count == a.chunk ? 0 : count);
}

#define ENTRY(NAME, N)                                                                              \
  extern "C" __global__ void __launch_bounds__(SHARING) NAME(const __grid_constant__ DecodeArgs a) { \
    __shared__ Decode<N> shared;                                                                    \
    decode<N>(a, shared);                                                                           \
  }
ENTRY(decode_none, NONE)
ENTRY(decode_global, GLOBAL)
ENTRY(decode_per_chunk, PER_CHUNK)

constexpr int THREADS = 256;

// [segments, heads, len]: sums of each segment, into the sums before it; from `initial` [heads, state_len] on, or from zero.
// The last segment's are not needed, and not there.
extern "C" __global__ void __launch_bounds__(THREADS)
scan(float* sums, const float* initial, i64 state_len, int segments, int len) {
  const int at = blockIdx.y * THREADS + threadIdx.x;
  if (at >= len) return;
  float running = initial ? initial[blockIdx.x * state_len + at] : 0.0f;
  for (int i = 0; i < segments; i++) {
    float* here = sums + ((i64)i * gridDim.x + blockIdx.x) * len + at;
    const float of_segment = i + 1 < segments ? *here : 0.0f;
    *here = running;
    running += of_segment;
  }
}

// z, the chunk's z and count (0 where there are none) of states, [heads, 2 key + 1]: for prefill.cu's `sums`.
extern "C" __global__ void __launch_bounds__(THREADS)
snapshot(float* to, const float* state, i64 state_len, int key, int matrix, int per_chunk) {
  state += blockIdx.x * state_len, to += (i64)blockIdx.x * (2 * key + 1);
  const float* chunk = state + matrix + key;
  for (int i = threadIdx.x; i < key; i += THREADS) {
    to[i] = state[matrix + i];
    to[key + i] = per_chunk ? chunk[matrix + i] : 0.0f;
  }
  if (threadIdx.x == 0) to[2 * key] = per_chunk ? chunk[matrix + key] : 0.0f;
}
