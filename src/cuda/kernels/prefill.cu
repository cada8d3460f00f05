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
// 5. Products are those of products.cuh, by mma.sync, or of wgmma.cuh, for Hopper; all else is the same.
//
// PerChunk keeps the sums of the current chunk apart from those of the finished ones. Where each chunk is one tile, the first
// are zero whenever a tile begins. Otherwise (`apart`) registers hold the current chunk's, and memory the others.
#include "products.cuh"
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#include "wgmma.cuh"
#endif

// Which tokens a tile takes: none beyond the end, nor beyond a chunk's end.
struct Cursor {
  i64 token, end;
  int fill, chunk, most;  // tokens of the chunk that came before; 0 for no chunks; rows of a whole tile

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

template <class E, class P> struct Prefill : P {
  typedef typename E::Bits Bits;
  using typename P::Keys;
  using typename P::Sums;
  using typename P::Values;
  using P::C, P::KT, P::MT, P::NT, P::THREADS, P::VP, P::g, P::normalised, P::row, P::shared;
  static constexpr int SUMS_AT = P::BYTES, STAGES_AT = SUMS_AT + 2 * KT * 4;
  static constexpr int K_STAGE = C * KT * (int)sizeof(Bits), STAGE = 2 * K_STAGE + C * VP * (int)sizeof(Bits);

  const PrefillArgs& a;
  int head;               // of B H
  int first_column;
  bool whole;             // whether rows are as wide as operands, and in stages
  float *z, *finished_z;  // [KT] in shared memory: sums of phi(k), as those of S
  const Bits *q, *k, *v;  // this head's rows
  Bits* o;

  __device__ __forceinline__ Prefill(const PrefillArgs& args, unsigned char* memory)
      : P(shared_address(memory), args.normaliser != NONE), a(args) {
    z = (float*)(memory + SUMS_AT), finished_z = z + KT;
    head = blockIdx.x, first_column = blockIdx.y * VP;
    whole = a.stages && a.key == KT && a.value - first_column >= VP;
    const int batch = head / a.heads, of_batch = head % a.heads;
    q = (const Bits*)a.q + batch * a.q_strides.batch + of_batch * a.q_strides.head;
    k = (const Bits*)a.k + batch * a.k_strides.batch + of_batch * a.k_strides.head;
    v = (const Bits*)a.v + batch * a.v_strides.batch + of_batch * a.v_strides.head + first_column;
    o = (Bits*)a.o + batch * a.o_strides.batch + of_batch * a.o_strides.head + first_column;
  }

  // --- rows: from memory to stages to operands

  // How the pieces of eight columns of a tile are spread over the threads: each has one column of pieces, and every STEP-th row.
  // Along the rows of one block of columns, so that eight threads that store at the same time do so to different banks.
  template <class M> struct Spread {
    static constexpr int ACROSS = M::BLOCK_COLUMNS / 8, STEP = THREADS / ACROSS / M::BLOCKS, COUNT = (C + STEP - 1) / STEP;
    const int first = threadIdx.x / ACROSS % STEP, eight = threadIdx.x % ACROSS + threadIdx.x / (ACROSS * STEP) * ACROSS;
  };

  // Rows of a tensor that are still to be copied, from where this thread's first piece is on.
  template <class M> struct Source {
    const Bits* at;
    int rows;  // 0 where this thread has no column

    __device__ __forceinline__ Source(const Bits* from, const Strides& strides, i64 token, int columns) {
      const Spread<M> by;
      at = from + (token + by.first) * strides.token + by.eight * 8, rows = columns - by.eight * 8 > 0 ? C : 0;
    }
    __device__ __forceinline__ void copy(u32 to, const Strides& strides, int tile_rows) {
      const Spread<M> by;
      const int left = (tile_rows < rows ? tile_rows : rows) - by.first;
      const Bits* from = at;
      to += threadIdx.x * Piece<E>::BYTES;
#pragma unroll
      for (int i = 0; i < by.COUNT; i++, from += by.STEP * strides.token)
#pragma unroll
        for (int j = 0; j < Piece<E>::BYTES; j += 16)
          copy_async_if(i * by.STEP < left, to + i * (THREADS * Piece<E>::BYTES) + j, (const unsigned char*)from + j);
      at += tile_rows * strides.token;
    }
  };

  struct Sources {
    Source<Keys> q, k;
    Source<Values> v;
    Cursor tile;
  };

  __device__ __forceinline__ Sources sources(const Cursor& at) const {
    return {{q, a.q_strides, at.token, a.key},
            {k, a.k_strides, at.token, a.key},
            {v, a.v_strides, at.token, a.value - first_column},
            at};
  }

  __device__ __forceinline__ void copy_tile(Sources& from, int stage) const {
    const int rows = from.tile.rows();
    const u32 to = shared + STAGES_AT + stage * STAGE;
    if (a.outputs) from.q.copy(to, a.q_strides, rows);
    from.k.copy(to + K_STAGE, a.k_strides, rows);
    from.v.copy(to + 2 * K_STAGE, a.v_strides, rows);
    // Also where there was nothing to copy: the waits count.
    copy_commit();
    from.tile.advance(rows);
  }

  // From a stage, or from memory where there are none, into an operand; rows and columns beyond the tensor's are zero. Says
  // whether a number was not finite.
  template <int TERMS, bool MAP, class M>
  __device__ __forceinline__ bool convert(M to, u32 stage, const Bits* from, const Strides& strides, i64 token, int rows,
                                          int columns) const {
    const Spread<M> by;
    const int left = columns - by.eight * 8;
    stage += threadIdx.x * Piece<E>::BYTES;
    // Not a number as soon as one of them is not finite.
    float nan = 0.0f;
    if constexpr (E::IS_BF16 && TERMS == 1 && C % by.STEP == 0)
      if (whole && rows == C) {
        // Nearly all tiles: two pieces at a time, without a condition.
        constexpr int N = by.COUNT % 2 ? 1 : 2;
#pragma unroll 1
        for (int i = 0; i < by.COUNT; i += N, stage += N * THREADS * Piece<E>::BYTES)
          operands<MAP, N>(to, by.first + i * by.STEP, by.STEP, by.eight, stage, nan);
        return nan != 0.0f;
      }
#pragma unroll 1
    for (int r = by.first; r < C; r += by.STEP) {
      uint4 terms[TERMS] = {};
      if (r < rows && left > 0) {
        Piece<E> piece;
        if (a.stages) {
          piece = Piece<E>::load_shared(stage);
        } else {
          const Bits* at = from + (token + r) * strides.token + by.eight * 8;
          piece = a.aligned ? Piece<E>::load(at) : Piece<E>::gather(at, left);
        }
        operand<MAP>(terms, piece, a.feature_map, a.map_eps, nan);
        // phi(0) is not 0.
        if (MAP && !a.aligned)
#pragma unroll
          for (int i = 0; i < TERMS; i++) terms[i] = first(terms[i], left);
      }
#pragma unroll
      for (int i = 0; i < TERMS; i++) store_shared(to.term(i).at(r, by.eight), terms[i]);
      stage += THREADS * Piece<E>::BYTES;
    }
    return nan != 0.0f;
  }

  // N pieces, `step` rows apart.
  template <bool MAP, int N, class M>
  __device__ __forceinline__ void operands(M to, int row, int step, int eight, u32 stage, float& nan) const {
    u32 x[4 * N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      const Piece<E> piece = Piece<E>::load_shared(stage + i * (THREADS * Piece<E>::BYTES));
#pragma unroll
      for (int j = 0; j < 4; j++) x[4 * i + j] = piece.words[j];
    }
    if (MAP) phi_bf16(x, a.feature_map, a.map_eps);
    else nan += not_finite(x);
#pragma unroll
    for (int i = 0; i < N; i++)
      store_shared(to.at(row + i * step, eight), make_uint4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]));
  }

  __device__ __forceinline__ bool convert_tile(i64 token, int rows, int stage) const {
    const u32 from = shared + STAGES_AT + stage * STAGE;
    if (a.outputs) convert<P::TERMS, true>(this->q_operand(), from, q, a.q_strides, token, rows, a.key);
    convert<P::TERMS, true>(this->k_operand(), from + K_STAGE, k, a.k_strides, token, rows, a.key);
    return convert<P::VALUE_TERMS, false>(this->v_operand(), from + 2 * K_STAGE, v, a.v_strides, token, rows,
                                          a.value - first_column);
  }

  // --- the state: registers, memory, operand

  // Calls f(element, place in S, whether that is in S) for all of S that this thread holds. Each call is unrolled.
  template <class F> __device__ __forceinline__ void each_s(Sums& sums, F f) const {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int k = this->row_of_k(m) + half * 8;
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int v = first_column + this->column(n) + e;
            f(sums[m][n][half * 2 + e], k * a.value + v, k < a.key && v < a.value);
          }
      }
  }
  // Calls f(row of K) for those whose z this thread keeps, two neighbours at a time.
  template <class F> __device__ __forceinline__ void each_z(F f) const {
    if (normalised)
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

  // S from memory into its operand.
  __device__ __forceinline__ void copy_state(const float* from) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < KT * VP / 8; i += THREADS) {
      const int k = i / (VP / 8), eight = i % (VP / 8);
      u32 pairs[4][P::TERMS];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float x[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int v = first_column + eight * 8 + 2 * j + e;
          x[e] = load_if(k < a.key && v < a.value, from + k * a.value + v);
        }
        split<P::TERMS>(x[0], x[1], pairs[j]);
      }
#pragma unroll
      for (int i = 0; i < P::TERMS; i++)
        store_shared(this->s_operand().term(i).at(k, eight), make_uint4(pairs[0][i], pairs[1][i], pairs[2][i], pairs[3][i]));
    }
  }
  __device__ __forceinline__ void copy_z(const float* from) const {
    each_z([&](int k) { if (k % 2 == 0) this->put_z(k, from[k], from[k + 1]); });
  }

  // --- outputs

  // What earlier tiles give, divided by its own sums.
  __device__ __forceinline__ void take_past(float (&past)[NT][4], float (&out)[NT][4], float (&norm)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float by = a.scale / (norm[half * 2] + a.eps);
#pragma unroll
      for (int i = 0; i < 2 * NT; i++) {
        float& x = out[i / 2][half * 2 + i % 2];
        past[i / 2][half * 2 + i % 2] = x * by, x = 0.0f;
      }
    }
    clear(norm);
  }

  // past + out, divided by its sums where there are any.
  __device__ __forceinline__ void write_outputs(i64 token, int rows, const float (&out)[NT][4], const float (&norm)[4],
                                                const float (&past)[NT][4]) const {
    const bool pairs = a.paired && a.value - first_column >= VP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = row * 16 + half * 8 + g;
      if (r >= rows) continue;
      const float by = normalised ? a.scale / (norm[half * 2] + a.eps) : a.scale;
      float x[NT][2];
#pragma unroll
      for (int i = 0; i < 2 * NT; i++) x[i / 2][i % 2] = fmaf(out[i / 2][half * 2 + i % 2], by, past[i / 2][half * 2 + i % 2]);
      Bits* to = o + (token + r) * a.o_strides.token + this->column(0);
      if (pairs)
#pragma unroll
        for (int n = 0; n < NT; n++) write_pair(to + n * 8, x[n][0], x[n][1]);
      else
#pragma unroll
        for (int i = 0; i < 2 * NT; i++)
          if (this->column(i / 2) + i % 2 < a.value - first_column) to[i / 2 * 8 + i % 2] = E::narrow(x[i / 2][i % 2]);
    }
    __syncwarp();
  }
  DEVICE void write_pair(Bits* to, float x, float y) {
    if constexpr (E::IS_BF16) *(u32*)to = pack(x, y);
    else if constexpr (sizeof(Bits) == 2) *(u32*)to = E::narrow(x) | (u32)E::narrow(y) << 16;
    else *(float2*)to = make_float2(x, y);
  }

  // --- one sequence of one head, or a segment of it

  __device__ __forceinline__ void run() {
    const bool per_chunk = a.normaliser == PER_CHUNK;
    const int matrix = a.key * a.value, sums_len = matrix + (normalised ? a.key : 0);
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

    Sources ahead = sources(now);
    for (int stage = 0; stage < a.stages; stage++) copy_tile(ahead, stage);

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
      const int rows = now.rows();
      // The last tile, of a chunk that will not end: what it adds is kept apart.
      const bool tail = per_chunk && !apart && last && more && rows < a.chunk;
      const bool ended = apart && now.fill == 0;
      if (ended || tail) {
        // All loads first: a store between them would make them wait for one another.
        if (ended) each_s(sums, [&](float& x, int at, bool inside) { x += load_if(inside, finished + at); });
        each_s(sums, [&](float& x, int at, bool inside) { store_if(inside, finished + at, x), x = 0.0f; });
        each_z([&](int k) { finished_z[k] += z[k], z[k] = 0.0f; });
        apart = true;
        __syncthreads();
      }
      if (!more) break;

      if (a.stages == 2) copy_wait<1>();
      if (a.stages == 1) copy_wait<0>();
      bool infinite = convert_tile(now.token, rows, stage);
      if (a.stages) copy_tile(ahead, stage);
      if (++stage >= a.stages) stage = 0;

      typename P::Pending pending;
      if (a.outputs) {
        float out[NT][4], norm[4], past[NT][4];
        typename P::Scores scores = {};
        clear(out), clear(norm), clear(past);
        if (apart) {
          copy_state(finished), copy_z(finished_z);
          this->publish();
          __syncthreads();
          this->mul_q(out, norm, scores, false);
          this->finish(out);
          take_past(past, out, norm);
          __syncthreads();
        }
        this->store_state(sums), copy_z(z);
        this->publish();
        infinite = __syncthreads_or(infinite);
        this->mul_q(out, norm, scores, true);
        if (per_chunk && !apart) this->finish(out), take_past(past, out, norm);
        this->mul_tril(out, norm, scores, infinite);
        this->start_tokens(pending);
        this->template finish<1>(out);
        write_outputs(now.token, rows, out, norm, past);
      } else {
        this->publish();
        __syncthreads();
        this->start_tokens(pending);
      }
      this->add_tokens(sums, pending, z);
      __syncthreads();
      now.advance(rows);
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
#define ENTRY(KT, ...)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__::THREADS, 1) CONCAT(prefill_, KT)(const __grid_constant__ PrefillArgs args) { \
    extern __shared__ __align__(1024) unsigned char shared[];                                                               \
    Prefill<ELEMENT, __VA_ARGS__>(args, shared).run();                                                                      \
  }

// K's columns; warps along a tile's rows and along V's columns, n-tiles of a warp. As many rows as fit shared memory of 99 KB
// without stages, the least that a supported GPU has (Hopper has 227): as `Variant::new` in attention.rs.
#define MMA(KT, R, G, NT) ENTRY(KT, Products<OF_PHI, OF_VALUE, KT, R, G, NT>)
#define WARPGROUPS(KT, G, NT) ENTRY(KT, WarpgroupProducts<KT, G, NT>)
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
WARPGROUPS(64, 2, 4)
WARPGROUPS(128, 2, 8)
WARPGROUPS(256, 2, 4)
#elif OF_PHI == 1
MMA(64, 4, 2, 4)
MMA(128, 4, 2, 4)
MMA(256, 4, 2, 2)
#elif OF_PHI == 2
MMA(64, 4, 2, 4)
MMA(128, 2, 4, 2)
MMA(256, 2, 2, 1)
#else
MMA(64, 2, 4, 2)
MMA(128, 2, 4, 1)
MMA(256, 1, 2, 1)
#endif
