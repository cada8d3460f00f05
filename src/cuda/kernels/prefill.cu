// Many tokens: a block of threads walks through a sequence of one head, tile by tile, with a panel of the state's columns
// in registers.
//
//   tile of C rows, once in shared memory:   Q = phi(q), K = phi(k), V, each a sum of bf16 terms
//   A     = tril(Q K^T)                      in registers, 16 rows to a warp
//   intra = A V,  inter = Q S                S of all earlier tiles, an operand in shared memory
//   o     = scale (inter + intra) / (their sums + eps), or each by its own sum
//   S    += K^T V                            in registers, f32
//
// What is worth knowing:
// 1. Sums for the normaliser are products too, of A's rows and K's columns with ones, of Q with z: fragments of B whose
//    columns are all the same, so that every lane gets the sum of its row. They take the operands that the outputs take.
// 2. Rows of the next tiles are copied while this one is computed (cp.async), each piece by the thread that will convert
//    it: no barrier is needed between copy and conversion. Where rows are not aligned, they are read when they are converted.
// 3. The causal mask multiplies by zero, which does not stop a NaN or an infinity in a later v. In a tile that has one they
//    are left out of the 16 x 16 on the diagonal, and added to what is on and below it.
// 4. S is added to in f32, from products over one tile: tensor cores truncate, and a sum over a long sequence would drift.
//
// PerChunk keeps the sums of the current chunk apart from those of the finished ones. Where each chunk is one tile, the first
// are zero whenever a tile begins. Otherwise (`apart`) registers hold the current chunk's, and memory the others.
#include "matrix.cuh"

enum Normaliser { NONE, GLOBAL, PER_CHUNK };

struct Strides {
  i64 batch, token, head;
};

// As `PrefillArgs` in attention.rs.
struct Args {
  const void *q, *k, *v;
  void* o;
  const float* initial;  // [B, H, state_len], or none: zero
  const float* sums;     // [B, H, 2 K + 1]: z, the chunk's z and count of `initial`, for where `last` may overwrite them
  float* last;           // [B, H, state_len], or none
  float* finished;       // [B, H, K V]: for `apart` where there is no `last`
  float* segments;       // [segments, B, H, K V + K]: sums of each, then the sums before each; or none
  Strides q_strides, k_strides, v_strides, o_strides;
  i64 state_len, len, segment_len;
  int heads, key, value, chunk, normaliser, feature_map;
  int outputs;           // whether o is asked for, or only the segments' sums
  int aligned;           // rows of q, k and v are whole, aligned pieces of eight
  int paired;            // rows of o are whole, aligned pairs
  int stages;            // tiles that are copied ahead
  float eps, map_eps, scale;
};

// Which tokens a tile takes: none beyond the end, nor beyond a chunk's end.
struct Cursor {
  i64 token, end;
  int fill, chunk, most;  // tokens of the chunk that came before; 0 for no chunks; rows of a whole tile

  __device__ __forceinline__ int rows() const {
    int rows = end - token < most ? (int)(end - token) : most;
    if (chunk && chunk - fill < rows) rows = chunk - fill;
    return rows;
  }
  __device__ __forceinline__ void advance() {
    const int n = rows();
    token += n;
    fill = chunk && fill + n == chunk ? 0 : fill + n;
  }
};

template <int N> DEVICE void clear(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = 0.0f;
}
template <int M, int N> DEVICE void clear(float (&x)[M][N]) {
#pragma unroll
  for (int i = 0; i < M; i++) clear(x[i]);
}
template <int N> DEVICE void move(float (&to)[N], float (&from)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = from[i], from[i] = 0.0f;
}
template <int M, int N> DEVICE void move(float (&to)[M][N], float (&from)[M][N]) {
#pragma unroll
  for (int i = 0; i < M; i++) move(to[i], from[i]);
}

template <class E, int TA, int TV, int KT, int R, int G, int NT> struct Prefill {
  typedef typename E::Bits Bits;
  static constexpr int C = 16 * R, VP = 8 * NT * G, THREADS = 32 * R * G, MT = KT / 16 / R;
  static constexpr u32 ONES = 0x3f803f80;
  typedef Matrix<C, KT> Keys;
  typedef Matrix<C, VP> Values;
  typedef Matrix<KT, VP> State;

  // Shared memory, in bytes from its beginning: as `Variant::shared_len` in attention.rs.
  static constexpr int K_AT = TA * Keys::BYTES, V_AT = K_AT + TA * Keys::BYTES, S_AT = V_AT + TV * Values::BYTES,
                       Z_AT = S_AT + TA * State::BYTES, SUMS_AT = Z_AT + TA * KT * 2, STAGES_AT = SUMS_AT + 2 * KT * 4;
  static constexpr int K_STAGE = C * KT * (int)sizeof(Bits), STAGE = 2 * K_STAGE + C * VP * (int)sizeof(Bits);

  // S as warps hold it: m-tiles of 16 rows of K, n-tiles of 8 columns of V.
  typedef float Sums[MT][NT][4];

  const Args& a;
  const u32 shared;
  const int lane, g, t;   // the lane, its row of a fragment, its pair of columns
  int group, row;         // which n-tiles, and which 16 rows of a tile and m-tiles of the state, are this warp's
  int head;               // of B H
  int first_column;
  float *z, *finished_z;  // [KT] in shared memory: sums of phi(k), as those of S
  const Bits *q, *k, *v;  // this head's rows
  Bits* o;

  __device__ __forceinline__ Prefill(const Args& args, unsigned char* memory)
      : a(args), shared(shared_address(memory)), lane(threadIdx.x % 32), g(threadIdx.x % 32 / 4), t(threadIdx.x % 4) {
    const int warp = threadIdx.x / 32;
    group = warp / R;
    // Every other group takes them from the end: warps share a tensor core by their number, and the last rows take most.
    row = group % 2 ? R - 1 - warp % R : warp % R;
    z = (float*)(memory + SUMS_AT), finished_z = z + KT;
    head = blockIdx.x, first_column = blockIdx.y * VP;
    const int batch = head / a.heads, of_batch = head % a.heads;
    q = (const Bits*)a.q + batch * a.q_strides.batch + of_batch * a.q_strides.head;
    k = (const Bits*)a.k + batch * a.k_strides.batch + of_batch * a.k_strides.head;
    v = (const Bits*)a.v + batch * a.v_strides.batch + of_batch * a.v_strides.head + first_column;
    o = (Bits*)a.o + batch * a.o_strides.batch + of_batch * a.o_strides.head + first_column;
  }

  __device__ __forceinline__ Keys q_operand() const { return Keys{shared}; }
  __device__ __forceinline__ Keys k_operand() const { return Keys{shared + K_AT}; }
  __device__ __forceinline__ Values v_operand() const { return Values{shared + V_AT}; }
  __device__ __forceinline__ State s_operand() const { return State{shared + S_AT}; }
  __device__ __forceinline__ bool normalised() const { return a.normaliser != NONE; }

  // --- rows: from memory to stages to operands

  // How the pieces of eight columns of a tile are spread over the threads: each has one column of pieces, and every STEP-th row.
  template <int COLUMNS> struct Spread {
    static constexpr int ACROSS = COLUMNS / 8, STEP = THREADS / ACROSS, COUNT = (C + STEP - 1) / STEP;
    const u32 eight = threadIdx.x % ACROSS, first = threadIdx.x / ACROSS;
  };

  template <int COLUMNS>
  __device__ __forceinline__ void copy(u32 to, const Bits* from, i64 stride, int rows, int columns) const {
    const Spread<COLUMNS> by;
    const uint4* at = (const uint4*)(from + by.first * stride + by.eight * 8);
    to += threadIdx.x * Piece<E>::BYTES;
    if ((int)by.eight * 8 >= columns) rows = 0;
#pragma unroll
    for (int i = 0; i < by.COUNT; i++) {
#pragma unroll
      for (int j = 0; j < Piece<E>::BYTES / 16; j++) copy_async_if((int)by.first + i * by.STEP < rows, to + j * 16, at + j);
      at = (const uint4*)((const Bits*)at + by.STEP * stride), to += THREADS * Piece<E>::BYTES;
    }
  }

  __device__ __forceinline__ void copy_tile(const Cursor& at, int stage) const {
    const int rows = at.rows();
    const u32 to = shared + STAGES_AT + stage * STAGE;
    if (a.outputs) copy<KT>(to, q + at.token * a.q_strides.token, a.q_strides.token, rows, a.key);
    copy<KT>(to + K_STAGE, k + at.token * a.k_strides.token, a.k_strides.token, rows, a.key);
    copy<VP>(to + 2 * K_STAGE, v + at.token * a.v_strides.token, a.v_strides.token, rows, a.value - first_column);
    // Also where there was nothing to copy: the waits count.
    copy_commit();
  }

  // From a stage, or from memory where there are none, into an operand; rows and columns beyond the tensor's are zero. Says
  // whether a number was not finite.
  template <int COLUMNS, int TERMS, bool MAP>
  __device__ __forceinline__ bool convert(Matrix<C, COLUMNS> to, u32 stage, const Bits* from, i64 stride, int rows,
                                          int columns) const {
    const Spread<COLUMNS> by;
    const int left = columns - (int)by.eight * 8;
    const Bits* at = from + by.first * stride + by.eight * 8;
    stage += threadIdx.x * Piece<E>::BYTES;
    // Not a number as soon as one of them is not finite.
    float zero = 0.0f;
#pragma unroll 1
    for (int r = by.first; r < C; r += by.STEP) {
      float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
      if (r < rows && left > 0) {
        if (a.aligned) {
          Piece<E>::load(a.stages ? __cvta_shared_to_generic(stage) : at).widen(x);
        } else {
#pragma unroll
          for (int i = 0; i < 8; i++)
            if (i < left) x[i] = E::widen(at[i]);
        }
        if (MAP) {
          phi(x, a.feature_map, a.map_eps);
          // Pieces that are not whole: phi(0) is not 0.
          if (!a.aligned)
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = i < left ? x[i] : 0.0f;
        } else {
#pragma unroll
          for (int i = 0; i < 8; i++) zero = fmaf(x[i], 0.0f, zero);
        }
      }
      u32 pair[4][TERMS];
#pragma unroll
      for (int i = 0; i < 4; i++) split<TERMS>(x[2 * i], x[2 * i + 1], pair[i]);
#pragma unroll
      for (int i = 0; i < TERMS; i++)
        store_shared(to.term(i).at(r, by.eight), make_uint4(pair[0][i], pair[1][i], pair[2][i], pair[3][i]));
      at += by.STEP * stride, stage += THREADS * Piece<E>::BYTES;
    }
    return zero != 0.0f;
  }

  __device__ __forceinline__ bool convert_tile(const Cursor& at, int stage) const {
    const int rows = at.rows();
    const u32 from = shared + STAGES_AT + stage * STAGE;
    if (a.outputs)
      convert<KT, TA, true>(q_operand(), from, q + at.token * a.q_strides.token, a.q_strides.token, rows, a.key);
    convert<KT, TA, true>(k_operand(), from + K_STAGE, k + at.token * a.k_strides.token, a.k_strides.token, rows, a.key);
    return convert<VP, TV, false>(v_operand(), from + 2 * K_STAGE, v + at.token * a.v_strides.token, a.v_strides.token, rows,
                                  a.value - first_column);
  }

  // --- the state: registers, memory, operand

  // Calls f(element, place in S, whether that is in S) for all of S that this thread holds. Each call is unrolled.
  template <class F> __device__ __forceinline__ void each_s(Sums& sums, F f) const {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int k = (row * MT + m) * 16 + half * 8 + g;
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int v = first_column + (group * NT + n) * 8 + 2 * t + e;
            f(sums[m][n][half * 2 + e], k * a.value + v, k < a.key && v < a.value);
          }
      }
  }
  // Calls f(row of K) for those whose z this thread keeps, two neighbours at a time.
  template <class F> __device__ __forceinline__ void each_z(F f) const {
    if (normalised())
#pragma unroll 1
      for (int k = 2 * threadIdx.x; k < KT; k += 2 * THREADS) f(k), f(k + 1);
  }
  // One block of a head writes it.
  __device__ __forceinline__ void store_z(const float* from, float* to) const {
    each_z([&](int k) { if (blockIdx.y == 0 && k < a.key) to[k] = from[k]; });
  }
  // Calls f(place in S) for this block's columns, spread over its threads.
  template <class F> __device__ __forceinline__ void each_place(F f) const {
    const int columns = a.value - first_column < VP ? a.value - first_column : VP;
#pragma unroll 1
    for (int i = threadIdx.x; i < a.key * columns; i += THREADS) f(i / columns * a.value + first_column + i % columns);
  }

  // S and z into their operands; where there is `instead` that S. By one path for both: two take more registers.
  __device__ __forceinline__ void store_operand(const Sums& sums, const float* sums_z, const float* instead) const {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int k = (row * MT + m) * 16 + half * 8 + g;
#pragma unroll
        for (int n = 0; n < NT; n++) {
          float x[2];
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int v = first_column + (group * NT + n) * 8 + 2 * t + e;
            const float other = load_if(instead && k < a.key && v < a.value, instead + k * a.value + v);
            x[e] = instead ? other : sums[m][n][half * 2 + e];
          }
          u32 pair[TA];
          split<TA>(x[0], x[1], pair);
#pragma unroll
          for (int i = 0; i < TA; i++) store_shared(s_operand().term(i).at(k, group * NT + n) + t * 4, pair[i]);
        }
      }
    each_z([&](int k) {
      if (k % 2) return;
      u32 pair[TA];
      split<TA>(sums_z[k], sums_z[k + 1], pair);
#pragma unroll
      for (int i = 0; i < TA; i++) store_shared(shared + Z_AT + (i * KT + k) * 2, pair[i]);
    });
  }

  // --- products

  // A on and below the diagonal: 16 x 8 tiles left of the diagonal, in pairs, and the pair on it.
  struct Scores {
    float left[R > 1 ? R - 1 : 1][2][4], diagonal[2][4];
  };

  // scores += Q K^T, for 16 rows of K.
  __device__ __forceinline__ void mul_keys(float (&scores)[2][4], const u32 (&qs)[TA][4], int kk, int tokens) const {
    u32 ks[2][TA][2];
    load_b_transposed(ks, k_operand(), kk, tokens, lane);
    mma_terms(scores[0], qs, ks[0]);
    mma_terms(scores[1], qs, ks[1]);
  }

  // out += Q S, norm += Q z; and scores += Q K^T where they are asked for.
  __device__ __forceinline__ void mul_q(float (&out)[NT][4], float (&norm)[4], Scores& scores, bool with_scores) const {
#pragma unroll 1
    for (int kk = 0; kk < KT; kk += 16) {
      u32 qs[TA][4], b[NT][TA][2];
      load_a(qs, q_operand(), row * 16, kk, lane);
      load_b(b, s_operand(), kk, group * NT * 8, lane);
#pragma unroll
      for (int n = 0; n < NT; n++) mma_terms(out[n], qs, b[n]);
      if (normalised()) {
        u32 zs[TA][2];
#pragma unroll
        for (int i = 0; i < TA; i++)
#pragma unroll
          for (int half = 0; half < 2; half++)
            zs[i][half] = load_shared(shared + Z_AT + (i * KT + kk + half * 8 + 2 * t) * 2);
        mma_terms(norm, qs, zs);
      }
      if (!with_scores) continue;
#pragma unroll
      for (int n = 0; n < R - 1; n++)
        if (n < row) mul_keys(scores.left[n], qs, kk, n * 16);
      mul_keys(scores.diagonal, qs, kk, row * 16);
    }
  }

  // out += scores V, norm += the sums of its rows, for 16 rows of V, or for what is finite in them. A product's fragments are
  // those of the next one's A.
  __device__ __forceinline__ void mul_scores(float (&out)[NT][4], float (&norm)[4], const float (&scores)[2][4], int tokens,
                                             bool finite) const {
    u32 p[TA][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      u32 pair[TA];
      split<TA>(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1], pair);
#pragma unroll
      for (int j = 0; j < TA; j++) p[j][i] = pair[j];
    }
    if (normalised()) {
      const u32 ones[1][2] = {{ONES, ONES}};
      mma_terms(norm, p, ones);
    }
    u32 vs[NT][TV][2];
    load_b(vs, v_operand(), tokens, group * NT * 8, lane);
    if (finite)
#pragma unroll
      for (int i = 0; i < NT * TV * 2; i++) {
        u32& pair = vs[i / (TV * 2)][i / 2 % TV][i % 2];
        if (!isfinite(low(pair))) pair &= 0xffff0000u;
        if (!isfinite(high(pair))) pair &= 0xffffu;
      }
#pragma unroll
    for (int i = 0; i < NT; i++) mma_terms(out[i], p, vs[i]);
  }

  // Likewise for all rows of V up to the diagonal.
  __device__ __forceinline__ void mul_tril(float (&out)[NT][4], float (&norm)[4], Scores& scores, bool infinite) const {
#pragma unroll
    for (int n = 0; n < R - 1; n++)
      if (n < row) mul_scores(out, norm, scores.left[n], n * 16, false);
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i / 4 * 8 + 2 * t + i % 2 > g + i / 2 % 2 * 8) scores.diagonal[i / 4][i % 4] = 0.0f;
    mul_scores(out, norm, scores.diagonal, row * 16, infinite);
    if (infinite) add_infinite(out, scores.diagonal);
  }

  // What is not finite in 16 rows of V, times what is on and below the diagonal.
  __device__ __forceinline__ void add_infinite(float (&out)[NT][4], const float (&scores)[2][4]) const {
#pragma unroll 1
    for (int j = 0; j < 16; j++) {
      float score[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float left = j % 2 ? scores[0][half * 2 + 1] : scores[0][half * 2];
        const float right = j % 2 ? scores[1][half * 2 + 1] : scores[1][half * 2];
        score[half] = __shfl_sync(~0u, j < 8 ? left : right, g * 4 + j % 8 / 2);
      }
#pragma unroll
      for (int n = 0; n < NT; n++) {
        float x[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < TV; i++) {
          const u32 pair = load_shared(v_operand().term(i).at(row * 16 + j, group * NT + n) + t * 4);
          x[0] += low(pair), x[1] += high(pair);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (j <= g + i / 2 * 8 && !isfinite(x[i % 2])) out[n][i] += score[i / 2] * x[i % 2];
      }
    }
  }

  // S += K^T V, z += K^T 1: 16 rows of K at a time, summed over the tile first.
  __device__ __forceinline__ void add_tokens(Sums& sums) const {
    const u32 ones[1][2] = {{ONES, ONES}};
#pragma unroll
    for (int m = 0; m < MT; m++) {
      float sum[NT][4], sum_z[4];
      clear(sum), clear(sum_z);
#pragma unroll 1
      for (int tokens = 0; tokens < C; tokens += 16) {
        u32 vs[NT][TV][2], ks[TA][4];
        load_b(vs, v_operand(), tokens, group * NT * 8, lane);
        load_a_transposed(ks, k_operand(), (row * MT + m) * 16, tokens, lane);
#pragma unroll
        for (int n = 0; n < NT; n++) mma_terms(sum[n], ks, vs[n]);
        if (normalised()) mma_terms(sum_z, ks, ones);
      }
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[m][n][i] += sum[n][i];
      float* at = z + (row * MT + m) * 16 + g;
      if (normalised() && group == 0 && t == 0) at[0] += sum_z[0], at[8] += sum_z[2];
    }
  }

  __device__ __forceinline__ void write_outputs(const Cursor& at, const float (&inter)[NT][4], const float (&past)[4],
                                                const float (&intra)[NT][4], const float (&now)[4]) const {
    const int rows = at.rows();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = row * 16 + half * 8 + g;
      if (r >= rows) continue;
      float by_past = a.scale, by_now = a.scale;
      if (a.normaliser == GLOBAL) by_past = by_now = a.scale / (past[half * 2] + now[half * 2] + a.eps);
      if (a.normaliser == PER_CHUNK) by_past /= past[half * 2] + a.eps, by_now /= now[half * 2] + a.eps;
      Bits* to = o + (at.token + r) * a.o_strides.token;
#pragma unroll
      for (int n = 0; n < NT; n++) {
        const int column = (group * NT + n) * 8 + 2 * t, left = a.value - first_column - column;
        float x[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const float i = inter[n][half * 2 + e], j = intra[n][half * 2 + e];
          x[e] = i * by_past + j * by_now;
        }
        if (a.paired && left > 0) {
          if (sizeof(Bits) == 2) *(u32*)(to + column) = E::narrow(x[0]) | (u32)E::narrow(x[1]) << 16;
          else *(uint2*)(to + column) = make_uint2(E::narrow(x[0]), E::narrow(x[1]));
        } else {
          if (left > 0) to[column] = E::narrow(x[0]);
          if (left > 1) to[column + 1] = E::narrow(x[1]);
        }
      }
    }
  }

  // --- one sequence of one head, or a segment of it

  __device__ __forceinline__ void run() {
    const bool per_chunk = a.normaliser == PER_CHUNK;
    const int matrix = a.key * a.value, sums_len = matrix + (normalised() ? a.key : 0);
    const float* initial = a.initial ? a.initial + head * a.state_len : 0;
    float* last = a.last ? a.last + head * a.state_len : 0;
    float* segment = a.segments ? a.segments + ((i64)blockIdx.z * gridDim.x + head) * sums_len : 0;
    // As they were before any block of this head wrote them.
    const float *all_z = initial + matrix, *chunk_z = initial + sums_len + matrix, *count = initial + 2 * sums_len;
    if (a.sums) all_z = a.sums + (i64)head * (2 * a.key + 1), chunk_z = all_z + a.key, count = chunk_z + a.key;

    Cursor now;
    now.token = blockIdx.z * a.segment_len;
    now.end = now.token + a.segment_len < a.len ? now.token + a.segment_len : a.len;
    now.chunk = per_chunk ? a.chunk : 0, now.most = C, now.fill = 0;
    // What no state of this configuration has as its count, NaN among it, is taken for the nearest that one may have.
    if (per_chunk && initial) now.fill = (int)fminf(fmaxf(*count, 0.0f), (float)(a.chunk - 1));
    bool apart = per_chunk && (a.chunk > C || now.fill > 0);
    float* finished = last ? last : a.finished + (i64)head * matrix;

    Cursor ahead = now;
    for (int stage = 0; stage < a.stages; stage++) copy_tile(ahead, stage), ahead.advance();

    // `sums` are of all tokens, or `apart` those of the current chunk; the others' S is in `finished` then, their z here.
    Sums sums = {};
    const float* from = !a.outputs ? 0 : segment ? segment : initial;
    if (apart && finished != initial) each_place([&](int at) { finished[at] = initial ? initial[at] : 0.0f; });
    if (from) {
      const float* at = from + (apart ? sums_len : 0);
      each_s(sums, [&](float& x, int place, bool inside) { x = load_if(inside, at + place); });
    }
    const float* from_z = from == segment ? segment + matrix : apart ? chunk_z : all_z;
    each_z([&](int k) {
      z[k] = from && k < a.key ? from_z[k] : 0.0f;
      finished_z[k] = from && apart && k < a.key ? all_z[k] : 0.0f;
    });
    __syncthreads();

    for (int stage = 0;;) {
      const bool more = now.token < now.end;
      // The last tile, of a chunk that will not end: what it adds is kept apart.
      const bool tail = per_chunk && !apart && last && more && now.rows() < a.chunk;
      const bool ended = apart && now.fill == 0;
      if (ended || tail) {
        each_s(sums, [&](float& x, int at, bool inside) {
          store_if(inside, finished + at, load_if(inside && ended, finished + at) + x);
          x = 0.0f;
        });
        each_z([&](int k) { finished_z[k] += z[k], z[k] = 0.0f; });
        apart = true;
      }
      if (!more) break;

      if (a.stages == 2) copy_wait<1>();
      if (a.stages == 1) copy_wait<0>();
      bool infinite = convert_tile(now, stage);
      if (a.stages) copy_tile(ahead, stage), ahead.advance();
      if (++stage >= a.stages) stage = 0;

      if (a.outputs) {
        float inter[NT][4], intra[NT][4], by_past[4], by_now[4];
        Scores scores = {};
        clear(inter), clear(intra), clear(by_past), clear(by_now);
        // Through S once, or `apart` through that of the finished chunks and of the current one.
#pragma unroll 1
        for (int pass = 0; pass <= (int)apart; pass++) {
          if (pass) {
            move(inter, intra), move(by_past, by_now);
            __syncthreads();
          }
          store_operand(sums, pass < (int)apart ? finished_z : z, pass < (int)apart ? finished : 0);
          infinite = __syncthreads_or(infinite);
          mul_q(intra, by_now, scores, pass == 0);
        }
        if (!apart) move(inter, intra), move(by_past, by_now);
        mul_tril(intra, by_now, scores, infinite);
        write_outputs(now, inter, by_past, intra, by_now);
      } else {
        __syncthreads();
      }
      add_tokens(sums);
      __syncthreads();
      now.advance();
    }
    if (a.stages) copy_wait<0>();

    float* of_chunk = last + sums_len;
    float* to = !a.outputs ? segment : !last || now.end < a.len ? 0 : apart ? of_chunk : last;
    if (!to) return;
    each_s(sums, [&](float& x, int at, bool inside) { store_if(inside, to + at, x); });
    store_z(z, to + matrix);
    if (!per_chunk || !a.outputs) return;
    // The other sums: of the finished chunks, or of a chunk that has not begun.
    if (!apart) each_place([&](int at) { of_chunk[at] = 0.0f; });
    store_z(finished_z, (apart ? last : of_chunk) + matrix);
    if (blockIdx.y == 0 && threadIdx.x == 0) of_chunk[sums_len] = (float)now.fill;
  }
};

#define CONCAT(a, b) a##b
#define ENTRY(KT, R, G, NT)                                                                                   \
  extern "C" __global__ void __launch_bounds__(32 * R * G, 1) CONCAT(prefill_, KT)(const __grid_constant__ Args args) { \
    extern __shared__ __align__(1024) unsigned char shared[];                                                 \
    Prefill<ELEMENT, OF_PHI, OF_VALUE, KT, R, G, NT>(args, shared).run();                                     \
  }

// K's columns; warps along a tile's rows and along V's columns, n-tiles of a warp. As many rows as fit shared memory of 99 KB
// without stages, the least that a supported GPU has: as `Variant::new` in attention.rs.
#if OF_PHI == 1
ENTRY(64, 4, 2, 4)
ENTRY(128, 4, 2, 4)
ENTRY(256, 4, 2, 2)
#elif OF_PHI == 2
ENTRY(64, 4, 2, 4)
ENTRY(128, 2, 4, 2)
ENTRY(256, 2, 2, 1)
#else
ENTRY(64, 2, 4, 2)
ENTRY(128, 2, 4, 1)
ENTRY(256, 1, 2, 1)
#endif
