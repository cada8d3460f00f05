// Dense layers on tensor cores: y = x W + b, and what follows it while the result is in registers.
//
// A block of threads has 64 x 64 of y; 32 rows of W at a time come through registers, as sums of bf16, to shared memory.
#include "matrix.cuh"

enum Epilogue { STORE, GELU, ADD };

template <class E, int TX, int TW> struct Dense {
  typedef typename E::Bits Bits;
  static constexpr int ROWS = 64, COLUMNS = 64, DEPTH = 32, THREADS = 128, PAIRS = ROWS * DEPTH / 2 / THREADS;
  typedef Matrix<ROWS, DEPTH> X;
  typedef Matrix<DEPTH, COLUMNS> W;
  static constexpr int OPERANDS = TX * X::BYTES + TW * W::BYTES,
                       BYTES = OPERANDS > ROWS * COLUMNS * 4 ? OPERANDS : ROWS * COLUMNS * 4;

  const DenseArgs& a;
  const u32 shared;
  float* result;
  const int lane, warp;
  i64 first_row;
  int first_column;
  float x[PAIRS][2], w[PAIRS][2];

  __device__ __forceinline__ Dense(const DenseArgs& args, unsigned char* memory)
      : a(args), shared(shared_address(memory)), result((float*)memory), lane(threadIdx.x % 32), warp(threadIdx.x / 32) {
    first_row = (i64)blockIdx.x * ROWS, first_column = blockIdx.y * COLUMNS;
  }

  // Columns `depth ..` of x and rows `depth ..` of W into registers; zeros beyond them.
  __device__ __forceinline__ void load(int depth) {
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const int p = threadIdx.x + i * THREADS;
      const i64 x_row = first_row + p / (DEPTH / 2);
      const int x_column = depth + p % (DEPTH / 2) * 2;
      const int w_row = depth + p / (COLUMNS / 2), w_column = first_column + p % (COLUMNS / 2) * 2;
#pragma unroll
      for (int e = 0; e < 2; e++) {
        // Without branches: the first element is always there to be read.
        const bool in_x = x_row < a.rows && x_column + e < a.inputs, in_w = w_row < a.inputs && w_column + e < a.outputs;
        const float from_x = a.x[in_x ? x_row * a.inputs + x_column + e : 0];
        const float from_w = E::widen(((const Bits*)a.w)[in_w ? (i64)w_row * a.outputs + w_column + e : 0]);
        x[i][e] = in_x ? from_x : 0.0f, w[i][e] = in_w ? from_w : 0.0f;
      }
    }
  }

  __device__ __forceinline__ void store() const {
    const X xs{shared};
    const W ws{shared + TX * X::BYTES};
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const int p = threadIdx.x + i * THREADS;
      const int x_row = p / (DEPTH / 2), x_pair = p % (DEPTH / 2), w_row = p / (COLUMNS / 2), w_pair = p % (COLUMNS / 2);
      u32 of_x[TX], of_w[TW];
      split<TX>(x[i][0], x[i][1], of_x);
      split<TW>(w[i][0], w[i][1], of_w);
#pragma unroll
      for (int j = 0; j < TX; j++) store_shared(xs.term(j).at(x_row, x_pair / 4) + x_pair % 4 * 4, of_x[j]);
#pragma unroll
      for (int j = 0; j < TW; j++) store_shared(ws.term(j).at(w_row, w_pair / 4) + w_pair % 4 * 4, of_w[j]);
    }
  }

  __device__ __forceinline__ float finish(float x, i64 at) const {
    // The exact GELU, by erf.
    if (a.epilogue == GELU) return 0.5f * x * erfcf(-0.7071067812f * x);
    return a.epilogue == ADD ? a.y[at] + x : x;
  }

  __device__ __forceinline__ void run() {
    const X xs{shared};
    const W ws{shared + TX * X::BYTES};
    // Warps two by two, 32 x 32 each.
    const int row = warp / 2 * 32, column = warp % 2 * 32;
    float y[2][4][4] = {};
    // Rows of W are on their way to registers while those before are multiplied.
    for (int depth = -DEPTH; depth < a.inputs; depth += DEPTH) {
      if (depth >= 0) {
        store();
        __syncthreads();
      }
      if (depth + DEPTH < a.inputs) load(depth + DEPTH);
      if (depth < 0) continue;
#pragma unroll 1
      for (int k = 0; k < DEPTH; k += 16) {
        u32 b[4][TW][2];
        load_b(b, ws, k, column, lane);
#pragma unroll
        for (int m = 0; m < 2; m++) {
          u32 of_x[TX][4];
          load_a(of_x, xs, row + m * 16, k, lane);
#pragma unroll
          for (int n = 0; n < 4; n++) add_product(y[m][n], of_x, b[n]);
        }
      }
      __syncthreads();
    }
    // By way of shared memory, in the place of the operands: rows of y are written whole.
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          result[(row + m * 16 + lane / 4 + i / 2 * 8) * COLUMNS + column + n * 8 + lane % 4 * 2 + i % 2] = y[m][n][i];
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += THREADS) {
      const i64 r = first_row + i / COLUMNS;
      const int c = first_column + i % COLUMNS;
      if (r >= a.rows || c >= a.outputs) continue;
      const i64 at = r * a.outputs + c;
      a.y[at] = finish(result[i] + read(a.b, c, a.bias_kind), at);
    }
  }
};

#define ENTRY(NAME, TX, TW)                                                                          \
  extern "C" __global__ void __launch_bounds__(128) NAME(const __grid_constant__ DenseArgs args) {        \
    __shared__ __align__(1024) unsigned char shared[Dense<ELEMENT, TX, TW>::BYTES];                  \
    Dense<ELEMENT, TX, TW>(args, shared).run();                                    \
  }

// x and W as three bf16 each where they need as many, and as one.
ENTRY(dense, 3, OF_VALUE)
ENTRY(dense_dot, 1, 1)
