// Many tokens, on all GPUs: a block of threads walks through a sequence of one head, tile by tile, with a panel of the state's
// columns in registers. Hopper has a kernel of its own where numbers are rounded to bf16, hopper.cu.
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
// 3. S is added to in f32, from products over one tile: tensor cores truncate, and a sum over a long sequence would drift.
//
// PerChunk keeps the sums of the current chunk apart from those of the finished ones. Where each chunk is one tile, the first
// are zero whenever a tile begins. Otherwise (`apart`) registers hold the current chunk's, and memory the others.
#include "prefill.cuh"
#include "products.cuh"

template <class E, class P, Normaliser N> struct Prefill : P {
  typedef typename E::Bits Bits;
  typedef Part<E, P::C, P::VP, N> Block;
  using typename P::Keys;
  using typename P::Sums;
  using typename P::Values;
  using P::C, P::KT, P::MT, P::NT, P::THREADS, P::VP, P::g, P::row, P::shared;
  static constexpr bool NORMALISED = Block::NORMALISED, CHUNKED = Block::CHUNKED;
  // z twice; of each column of V the first row that is not finite; the stages.
  static constexpr int SUMS_AT = P::BYTES, ROWS_AT = SUMS_AT + 2 * KT * 4, STAGES_AT = ROWS_AT + VP * 4;
  static constexpr int K_STAGE = C * KT * (int)sizeof(Bits), STAGE = 2 * K_STAGE + C * VP * (int)sizeof(Bits);

  const PrefillArgs& a;
  const Block block;
  bool whole;             // whether rows are as wide as operands, and in stages
  float *z, *finished_z;  // [KT] in shared memory: sums of phi(k), as those of S

  __device__ __forceinline__ Prefill(const PrefillArgs& args, unsigned char* memory)
      : P(shared_address(memory)), a(args), block(args) {
    z = (float*)(memory + SUMS_AT), finished_z = z + KT;
    whole = a.stages && a.key == KT && block.columns == VP;
  }

  // --- rows: from memory to stages to operands

  template <class M> using By = Spread<M, C, THREADS>;

  // Rows of a tensor that are still to be copied, from where this thread's first piece is on.
  template <class M> struct Source {
    const Bits* at;
    int rows;  // 0 where this thread has no column

    __device__ __forceinline__ Source(const Bits* from, const Strides& strides, i64 token, int columns) {
      const By<M> by(threadIdx.x);
      at = from + (token + by.first) * strides.token + by.eight * 8, rows = columns - by.eight * 8 > 0 ? C : 0;
    }
    __device__ __forceinline__ void copy(u32 to, const Strides& strides, int tile_rows) {
      const By<M> by(threadIdx.x);
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
    return {{block.q, a.q_strides, at.token, a.key},
            {block.k, a.k_strides, at.token, a.key},
            {block.v, a.v_strides, at.token, block.columns},
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
    const By<M> by(threadIdx.x);
    const int left = columns - by.eight * 8;
    stage += threadIdx.x * Piece<E>::BYTES;
    // Not a number as soon as one of them is not finite.
    float nan = 0.0f;
    if constexpr (E::IS_BF16 && TERMS == 1 && C % by.STEP == 0)
      if (whole && rows == C) {
        // Nearly all tiles: two pieces at a time, without a condition.
        constexpr int PIECES = by.COUNT % 2 ? 1 : 2;
#pragma unroll 1
        for (int i = 0; i < by.COUNT; i += PIECES, stage += PIECES * THREADS * Piece<E>::BYTES)
          operands<MAP, PIECES>(to, by.first + i * by.STEP, by.STEP, by.eight, stage, nan);
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

  // Some pieces, `step` rows apart.
  template <bool MAP, int PIECES, class M>
  __device__ __forceinline__ void operands(M to, int row, int step, int eight, u32 stage, float& nan) const {
    u32 x[4 * PIECES];
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      const Piece<E> piece = Piece<E>::load_shared(stage + i * (THREADS * Piece<E>::BYTES));
#pragma unroll
      for (int j = 0; j < 4; j++) x[4 * i + j] = piece.words[j];
    }
    if (MAP) phi_bf16(x, a.feature_map, a.map_eps);
    else nan += not_finite(x);
#pragma unroll
    for (int i = 0; i < PIECES; i++)
      store_shared(to.at(row + i * step, eight), make_uint4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]));
  }

  __device__ __forceinline__ bool convert_tile(i64 token, int rows, int stage) const {
    const u32 from = shared + STAGES_AT + stage * STAGE;
    if (a.outputs) convert<P::TERMS, true>(this->q_operand(), from, block.q, a.q_strides, token, rows, a.key);
    convert<P::TERMS, true>(this->k_operand(), from + K_STAGE, block.k, a.k_strides, token, rows, a.key);
    return convert<P::VALUE_TERMS, false>(this->v_operand(), from + 2 * K_STAGE, block.v, a.v_strides, token, rows,
                                          block.columns);
  }

  // After the barrier that follows the conversion of a tile of which a v is not finite.
  __device__ __forceinline__ void take_out_infinite() const {
    for (int i = threadIdx.x; i < VP; i += THREADS) store_shared(shared + ROWS_AT + i * 4, (u32)C);
    __syncthreads();
    const By<Values> by(threadIdx.x);
#pragma unroll 1
    for (int r = by.first; r < C; r += by.STEP) take_out<P::VALUE_TERMS>(this->v_operand(), r, by.eight, shared + ROWS_AT);
    __syncthreads();
  }
  __device__ __forceinline__ int first_infinite(int n, int e) const {
    return load_shared(shared + ROWS_AT + (this->column(n) + e) * 4);
  }

  // --- the state: registers, memory, operand

  __device__ __forceinline__ void add_from(Sums& sums, const float* from) const {
    block.template add_from<16 * P::ROW_WARPS>(sums, this->row_of_k(0), this->column(0), from);
  }
  __device__ __forceinline__ void store(Sums& sums, float* to) const {
    block.template store<16 * P::ROW_WARPS>(sums, this->row_of_k(0), this->column(0), to);
  }
  // Calls f(row of K) for those whose z this thread keeps, two neighbours at a time.
  template <class F> __device__ __forceinline__ void each_z(F f) const {
    if (NORMALISED)
#pragma unroll 1
      for (int k = 2 * threadIdx.x; k < KT; k += 2 * THREADS) f(k), f(k + 1);
  }
  // One panel of a head writes it.
  __device__ __forceinline__ void store_z(const float* from, float* to) const {
    each_z([&](int k) { if (block.panel == 0 && k < a.key) to[k] = from[k]; });
  }
  // Calls f(place in S) for this block's columns, spread over its threads.
  template <class F> __device__ __forceinline__ void each_place(F f) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < a.key * block.columns; i += THREADS)
      f(i / block.columns * a.value + block.first_column + i % block.columns);
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
          const int v = eight * 8 + 2 * j + e;
          x[e] = load_if(k < a.key && v < block.columns, from + k * a.value + block.first_column + v);
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
  __device__ __forceinline__ void write_outputs(const Cursor& at, bool infinite, const float (&out)[NT][4],
                                                const float (&norm)[4], const float (&past)[NT][4]) const {
    const bool pairs = a.neighbours > 1 && block.columns == VP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = row * 16 + half * 8 + g;
      if (r >= at.rows()) continue;
      const float by = NORMALISED ? a.scale / (norm[half * 2] + a.eps) : a.scale;
      float x[NT][2];
#pragma unroll
      for (int i = 0; i < 2 * NT; i++) {
        const int e = half * 2 + i % 2;
        x[i / 2][i % 2] = CHUNKED ? fmaf(out[i / 2][e], by, past[i / 2][e]) : out[i / 2][e] * by;
      }
      if (infinite)
#pragma unroll
        for (int i = 0; i < 2 * NT; i++)
          if (r >= first_infinite(i / 2, i % 2)) x[i / 2][i % 2] = __int_as_float(0x7fffffff);
      Bits* to = block.o + (at.token + r) * a.o_strides.token + this->column(0);
      if (pairs)
#pragma unroll
        for (int n = 0; n < NT; n++) write_pair(to + n * 8, x[n][0], x[n][1]);
      else
#pragma unroll
        for (int i = 0; i < 2 * NT; i++)
          if (this->column(i / 2) + i % 2 < block.columns) to[i / 2 * 8 + i % 2] = E::narrow(x[i / 2][i % 2]);
    }
    __syncwarp();
  }
  DEVICE void write_pair(Bits* to, float x, float y) {
    if constexpr (sizeof(Bits) == 2) *(u32*)to = E::pack(x, y);
    else *(float2*)to = make_float2(x, y);
  }

  // --- one sequence of one head, or a segment of it

  __device__ __forceinline__ void run() {
    Cursor now = block.begin();
    bool apart = block.begins_apart(now);

    Sources ahead = sources(now);
    for (int stage = 0; stage < a.stages; stage++) copy_tile(ahead, stage);

    // `sums` are of all tokens, or `apart` those of the current chunk; the others' S is in `finished` then, their z here.
    Sums sums = {};
    const float* from = !a.outputs ? 0 : block.sums ? block.sums : block.initial;
    if (apart && block.finished != block.initial) {
      each_place([&](int at) { block.finished[at] = block.initial ? block.initial[at] : 0.0f; });
      __syncthreads();
    }
    if (from) add_from(sums, from + (apart ? block.sums_len : 0));
    const float* from_z = from == block.sums ? from + block.matrix : apart ? block.chunk_z : block.all_z;
    each_z([&](int k) {
      z[k] = from && k < a.key ? from_z[k] : 0.0f;
      finished_z[k] = from && apart && k < a.key ? block.all_z[k] : 0.0f;
    });

    for (int stage = 0;;) {
      const bool more = now.more();
      const int rows = now.rows();
      const bool tail = !apart && more && block.is_tail(rows), ended = apart && now.fill == 0;
      if (CHUNKED && (ended || tail)) {
        if (ended) add_from(sums, block.finished);
        store(sums, block.finished);
#pragma unroll
        for (int m = 0; m < MT; m++) clear(sums[m]);
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

      float out[NT][4], norm[4], past[NT][4];
      if (CHUNKED && apart && a.outputs) {
        copy_state(block.finished), copy_z(finished_z);
        __syncthreads();
        typename P::Scores none;
        clear(out), clear(norm);
        this->mul_q(out, norm, none, false);
        take_past(past, out, norm);
        __syncthreads();
      }
      if (a.outputs) this->store_state(sums), copy_z(z);
      infinite = __syncthreads_or(infinite);
      if (infinite) take_out_infinite();
      if (a.outputs) {
        typename P::Scores scores = {};
        clear(out), clear(norm);
        this->mul_q(out, norm, scores, true);
        if (CHUNKED && !apart) take_past(past, out, norm);
        this->mul_tril(out, norm, scores);
        write_outputs(now, infinite, out, norm, past);
      }
      this->add_tokens(sums, z);
      if (infinite)
#pragma unroll
        for (int i = 0; i < 2 * NT; i++)
          if (first_infinite(i / 2, i % 2) < C)
#pragma unroll
            for (int m = 0; m < 2 * MT; m++) sums[m / 2][i / 2][m % 2 * 2 + i % 2] = __int_as_float(0x7fffffff);
      __syncthreads();
      now.advance(rows);
    }
    if (a.stages) copy_wait<0>();

    float* to = block.destination(now, apart);
    if (!to) return;
    store(sums, to);
    store_z(z, to + block.matrix);
    if (!CHUNKED || !a.outputs) return;
    // The other sums: of the finished chunks, or of a chunk that has not begun.
    float* of_chunk = block.last + block.sums_len;
    if (!apart) each_place([&](int at) { of_chunk[at] = 0.0f; });
    store_z(finished_z, (apart ? block.last : of_chunk) + block.matrix);
    if (block.panel == 0 && threadIdx.x == 0) of_chunk[block.sums_len] = (float)now.fill;
  }
};

// K's columns; warps along a tile's rows and along V's columns, n-tiles of a warp. As many rows as fit shared memory of 99 KB
// without stages, the least that a supported GPU has: as `Variant::new` in variant.rs.
// Two blocks share a multiprocessor where registers are enough without spills: as `Variant::blocks`.
#define BLOCKS(KT, N) (KT == 64 && OF_PHI == 1 && N != PER_CHUNK ? 2 : 1)
#define ENTRY(KT, NAME, N, ...)                                                                                      \
  extern "C" __global__ void                                                                                         \
  __launch_bounds__(Products<OF_PHI, OF_VALUE, KT, __VA_ARGS__, N != NONE>::THREADS, BLOCKS(KT, N))                  \
  prefill_##KT##_##NAME(const __grid_constant__ PrefillArgs args) {                                                  \
    extern __shared__ __align__(1024) unsigned char shared[];                                                        \
    Prefill<ELEMENT, Products<OF_PHI, OF_VALUE, KT, __VA_ARGS__, N != NONE>, N>(args, shared).run();                 \
  }
#define ENTRIES(KT, ...)                                                                                             \
  ENTRY(KT, none, NONE, __VA_ARGS__) ENTRY(KT, global, GLOBAL, __VA_ARGS__) ENTRY(KT, per_chunk, PER_CHUNK, __VA_ARGS__)
#if OF_PHI == 1
ENTRIES(64, 4, 2, 4)
ENTRIES(128, 4, 2, 4)
ENTRIES(256, 4, 2, 2)
#elif OF_PHI == 2
ENTRIES(64, 4, 2, 4)
ENTRIES(128, 2, 4, 2)
ENTRIES(256, 2, 2, 1)
#else
ENTRIES(64, 2, 4, 2)
ENTRIES(128, 2, 4, 1)
ENTRIES(256, 1, 2, 1)
#endif
