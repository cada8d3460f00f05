// One token, and what states need beside: a block of threads for a panel of a head's V, or for all panels of a head.
//
//   o = scale (phi(q)^T S + (phi(q) . phi(k)) v) / norm,   S = S + phi(k) v^T
//
// in one pass: S is read, takes part in o, and is written. Moving S is what takes time, so
// 1. S is asked for before anything else, 128 bytes by each thread; q, k, v and z are read and mapped while it is on its way;
// 2. it is moved by 16 bytes where its rows allow that, elsewhere by 4;
// 3. without a normaliser each panel is a block of its own. z and the count are read for every panel and written once, and
//    blocks have no order among them, so with a normaliser one block takes all panels of a head.
// Rows of S are dealt out to GROUPS groups of threads in turn. The order of every sum, and with it the result's bits, depends
// neither on the width of panels nor on how S is moved, which both differ among batches.
#include "element.cuh"

// As `DecodeArgs` in attention.rs.
struct Args {
  const void *q, *k, *v;
  void* o;
  float* state;                                     // [B, H, state_len]
  i64 q_batch, q_head, k_batch, k_head, v_batch, v_head, o_batch, o_head, state_len;
  int heads, key, value, chunk, feature_map, kind;
  int splits;                                       // blocks of a head, 1 with a normaliser
  float eps, map_eps, scale;
};

constexpr int GROUPS = 16, MOST_KEY = 256;

template <Normaliser N> struct Decode {
  // Of a block: a power of two, a quarter of the panel's columns in each group.
  static constexpr int MOST_THREADS = N == NONE ? 256 : 512, MOST_COLUMNS = MOST_THREADS / GROUPS * 4;
  // Of each group at once, in one matrix or in both.
  static constexpr int ROWS = N == PER_CHUNK ? 4 : 8;

  float2 qk[MOST_KEY];                              // phi(q), phi(k), and zeros up to a multiple of GROUPS
  float2 z[N == NONE ? 1 : MOST_KEY];               // before the token: of all, and of what it is added to
  float score, norm, chunk_norm;                    // phi(q) . phi(k), and phi(q) . z of both
  float v[MOST_COLUMNS];
  float out[N == PER_CHUNK ? 2 : 1][GROUPS][MOST_COLUMNS];
};

// What a thread takes of S: four columns of each row of its group. They are neighbours where S is moved by 16 bytes, elsewhere as
// far apart as a row has threads, so that what a warp asks for at once is together either way.
struct Place {
  int key, value, group, column, step;
  bool wide;
};

// Calls `move(i, address, left)` for the rows of a group from `first` on: so many columns are left at the address, none where the
// row is not there. Addresses are made again each time: kept from loads to stores they would take more registers than S.
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

// Where a head's row of q, k, v or o begins. The quotient is taken where it is asked for, neither before S is nor kept from then on.
DEVICE i64 row_of(const Args& a, int head, i64 batch_stride, i64 head_stride) {
  u32 row = head;
  asm volatile("" : "+r"(row));
  return row / (u32)a.heads * batch_stride + row % (u32)a.heads * head_stride;
}

// Over the lanes of a warp, for all of them.
DEVICE float sum_lanes(float x) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(~0u, x, by);
  return x;
}

// phi(q) and phi(k), and z, which the token is added to.
template <Normaliser N>
DEVICE void prepare(const Args& a, Decode<N>& shared, int head, float* all, int now, bool ends) {
  asm volatile("" : "+l"(all));
  float *all_z = all + a.key * a.value, *now_z = all_z + now;
  const i64 q_at = row_of(a, head, a.q_batch, a.q_head), k_at = row_of(a, head, a.k_batch, a.k_head);
#pragma unroll 1
  for (int i = threadIdx.x; i < (a.key + GROUPS - 1) / GROUPS * GROUPS; i += blockDim.x) {
    const bool inside = i < a.key;
    const u32 q_bits = inside ? bits_of(a.q, q_at + i, a.kind) : 0;
    const u32 k_bits = inside ? bits_of(a.k, k_at + i, a.kind) : 0;
    float2 z = {0.0f, 0.0f};
    if (N != NONE && inside) z = {all_z[i], now_z[i]};
    float both[2] = {widen(q_bits, a.kind), widen(k_bits, a.kind)};
    phi(both, a.feature_map, a.map_eps);
    shared.qk[i] = inside ? make_float2(both[0], both[1]) : make_float2(0.0f, 0.0f);
    if (N != NONE && inside) {
      shared.z[i] = z;
      now_z[i] = ends ? 0.0f : z.y + both[1];
      if (ends) all_z[i] = z.x + (z.y + both[1]);
    }
  }
}

// By a warp, once all of it is there.
template <Normaliser N> DEVICE void norms(const Args& a, Decode<N>& shared) {
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

template <Normaliser N> DEVICE void decode(const Args& a, Decode<N>& shared) {
  constexpr bool NORMALISED = N != NONE, PER = N == PER_CHUNK;
  constexpr int ROWS = Decode<N>::ROWS;
  const u32 splits = NORMALISED ? 1 : a.splits;
  const int head = blockIdx.x / splits, across = blockDim.x / GROUPS, columns = 4 * across;
  const int begin = blockIdx.x % splits * columns;
  const int thread = threadIdx.x, x = thread & (across - 1), group = thread >> __popc(across - 1);
  const int matrix = a.key * a.value, sums_len = matrix + (NORMALISED ? a.key : 0);
  float* all = a.state + head * a.state_len;
  float* now = PER ? all + sums_len : all;  // what the token is added to
  float* count_at = all + 2 * sums_len;
  const bool wide = a.value % 4 == 0 && ((u64)all | (u64)now) % 16 == 0;

  int count = 0;
  for (int first = begin; first < a.value; first += splits * columns) {
    const int mine = wide ? 4 * x : x, own = first + thread;
    const Place place = {a.key, a.value, group, first + mine, wide ? 1 : across, wide};
    const bool owns = thread < columns && own < a.value;
    float past[4] = {}, sums[4] = {}, v[4];
    for (int from = 0; from < a.key; from += ROWS * GROUPS) {
      float s[ROWS][4], all_s[PER ? ROWS : 1][4];
      load(s, now, place, from);
      if constexpr (PER) load(all_s, all, place, from);

      if (from == 0) {
        const u32 v_bits = owns ? bits_of(a.v, row_of(a, head, a.v_batch, a.v_head) + own, a.kind) : 0;
        if (first == begin) {
          // As in prefill.cu: what can't be a count is taken for the nearest that can.
          if (PER) count = (int)fminf(fmaxf(*count_at, 0.0f), (float)(a.chunk - 1)) + 1;
          prepare<N>(a, shared, head, all, PER ? sums_len : 0, PER && count == a.chunk);
        }
        if (thread < columns) shared.v[thread] = widen(v_bits, a.kind);
        __syncthreads();
        if (first == begin && thread < 32) norms<N>(a, shared);
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
      write(a.o, row_of(a, head, a.o_batch, a.o_head) + own, a.kind, o);
    }
  }
  // All have read it.
  if (PER && thread == 0) *count_at = (float)(count == a.chunk ? 0 : count);
}

#define ENTRY(NAME, N, THREADS, BLOCKS)                     \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) \
  NAME(const __grid_constant__ Args a) {                    \
    __shared__ Decode<N> shared;                            \
    decode<N>(a, shared);                                   \
  }
ENTRY(decode_none, NONE, 256, 4)
ENTRY(decode_global, GLOBAL, 512, 2)
ENTRY(decode_per_chunk, PER_CHUNK, 512, 1)

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
