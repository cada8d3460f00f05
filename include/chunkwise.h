/* chunkwise: causal linear attention on CPUs. C99 and C++11.
 *
 *     S'  = a_t S_{t-1}                     [K, V]   a_t = 1, or a decay: one number, or one for each row of S
 *     u   = v_t                             [V]      CW_UPDATE_LINEAR
 *     u   = beta_t (v_t - S'^T phi(k_t))    [V]      CW_UPDATE_DELTA
 *     S_t = S' + phi(k_t) u^T               [K, V]   state
 *     z_t = a_t z_{t-1} + phi(k_t)          [K]      normaliser state
 *     o_t = scale phi(q_t)^T S_t / norm_t   [V]      norm_t = 1, or phi(q_t) . z_t + eps
 *
 * Letters: B batch (sequences), T tokens, H heads of the state, K elements of a row of q and k, V elements of a row of v
 * and o; Hq, Hk, Hv and Ho are the numbers of heads of q, k, v and o, which are H unless it is said otherwise.
 *
 * Units. Dimensions and strides are in elements, memory is in bytes, and every name ends in what it counts.
 *
 * Errors. A function returns CW_OK or what was wrong; then it has written nothing, except for CW_PANIC, which is a bug.
 * Every pointer is asked whether it is null, aligned, inside the address space, and apart from what is written. What no
 * library can ask is the caller's promise: that the memory is there, and is not written by others during a call.
 *
 * Overlap. From its first element to its last (gaps between rows included) what a call writes (o, state_out, scratch)
 * overlaps neither what it reads nor the rest of what it writes; only state_in and state_out may be one and the same.
 *
 * Threads. There is no global state but what is detected of the CPU, once, and a pool of threads, which the first call starts
 * that is worth more than one thread and may use them. Every function may be called by any number of threads at once, as long as
 * none writes memory that another one uses. Where no threads can be started, calls compute on the calling thread alone. A call
 * on several threads computes in the calling thread's rounding and denormal modes (fesetround, MXCSR, FPCR) on x86-64 and
 * AArch64; elsewhere the threads that help are in the default modes.
 *
 * fork. A child may call every function for the CPU, whatever its parent has called before: it starts threads of its own.
 *
 * Memory. The caller brings it; a call that allocates says so. After a call the library keeps no pointer, but for models,
 * which say how long their memory is borrowed.
 *
 * Bits. Outputs and states have the same bits for any batch, strides, threads and ranges of heads, and wherever a sequence
 * is cut into calls of cw_forward and cw_decode. They are also the same on AVX2, AVX-512 and NEON; CW_ISA_SCALAR and
 * CW_ISA_SIMD128 have bits of their own, because they do not fuse multiplications and additions. With `compensated`, this
 * holds for cuts at multiples of 4 tokens. With a gate or the delta rule it holds for calls of cw_forward that are cut at
 * multiples of 2 tokens; cw_decode agrees with cw_forward within rounding then. The payload of a NaN is not specified.
 *
 * Growth. Structures begin with their size and the ABI version, which the macros named after them (CW_CALL of cw_call) fill
 * in together with the defaults. Fields are only ever added at the end, so a program that was compiled with an older header
 * goes on working: where a structure is smaller than the library's, the missing fields have the values that the library's
 * own macro gives them, and a structure that the library writes is written up to its size and no further. CW_SIZE is
 * returned for a structure that is larger than the library's, one smaller than its first two fields, and one whose size
 * ends within a field. Choices that start at 0 were added later: 0 means what the library did before it had the field.
 * Fields called reserved are 0.
 */
#ifndef CHUNKWISE_H
#define CHUNKWISE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CW_ABI_VERSION 1
#define CW_HEAD(type) (uint32_t)sizeof(type), CW_ABI_VERSION

/* ---- Status ---- */

typedef int32_t cw_status;

enum {
    CW_OK = 0,
    CW_NULL = 1,         /* a pointer is null that must not be */
    CW_MISALIGNED = 2,   /* a pointer is not aligned to its type */
    CW_OVERLAP = 3,      /* what is written overlaps something else, or itself by its strides */
    CW_TOO_SMALL = 4,    /* fewer bytes were given than are needed */
    CW_OVERFLOW = 5,     /* sizes or strides reach beyond the address space */
    CW_ZERO = 6,         /* a size is zero that must be at least one */
    CW_RANGE = 7,        /* a number is not finite, negative, or out of its range */
    CW_UNKNOWN = 8,      /* a choice has a value that is none of its constants, a reserved field is not 0 */
    CW_SIZE = 9,         /* a structure is larger than this library knows, or its size ends within a field */
    CW_ABI = 10,         /* a structure was filled by a header of another ABI version */
    CW_SHAPE = 11,       /* the dimensions or strides of tensors, or the sequences, do not fit together */
    CW_STATE = 12,       /* the state was not made by this configuration */
    CW_UNAVAILABLE = 13, /* this machine, or this build, does not have what was asked for */
    CW_PARAMETER = 14,   /* a parameter of the model is missing, misshapen or has no place */
    CW_FILE = 15,        /* the bytes are not a safetensors file, or not all of one */
    CW_OPTION = 16,      /* an option of the model is needed and not given, or makes no sense */
    CW_IO = 17,          /* the file can not be read */
    CW_MODEL = 18,       /* the pointer is not to a model, or not to one that can be closed */
    CW_PANIC = 19,       /* a bug of the library: outputs and states are not to be used */
    CW_GPU = 20,         /* the GPU or its driver refused, see chunkwise_cuda.h */
    CW_CONFLICT = 21     /* options or tensors that do not go together */
};

/* A sentence for each, never null, never freed. */
const char *cw_status_string(cw_status status);

/* The library's version, as "0.1.0"; never freed. */
const char *cw_version(void);

/* The ABI version that the library was built with: compare it with CW_ABI_VERSION before anything else. */
uint32_t cw_abi_version(void);

/* ---- Instruction sets ---- */

enum {
    CW_ISA_DEFAULT = 0, /* the best there is; in builds with std, what the environment variable CHUNKWISE_ISA names */
    CW_ISA_SCALAR = 1,
    CW_ISA_SIMD128 = 2,
    CW_ISA_NEON = 3,
    CW_ISA_AVX2 = 4,
    CW_ISA_AVX512 = 5
};

/* The sets that this machine has: bit 1 << CW_ISA_AVX2 and so on. */
uint32_t cw_isas(void);

/* Which set CW_ISA_DEFAULT is. CW_UNAVAILABLE: CHUNKWISE_ISA names one that is not to be had. */
cw_status cw_isa_default(uint32_t *isa);

/* "avx2" for CW_ISA_AVX2; null for a number that is no set. */
const char *cw_isa_name(uint32_t isa);

/* ---- Tensors ---- */

enum { CW_F32 = 1, CW_BF16 = 2, CW_F16 = 3 };

typedef struct cw_tensor {
    void *data;          /* the first element; tensors that are inputs are only read */
    uint32_t dtype;      /* CW_F32, CW_BF16, CW_F16; each tensor of a call may have its own */
    uint32_t rank;       /* how many of the dims there are */
    uint64_t dims[4];    /* outermost first */
    uint64_t strides[4]; /* elements from one to the next along each; 1 for the innermost */
} cw_tensor;

/* A contiguous [B, T, H, D]. For other layouts set the strides afterwards. */
static inline cw_tensor cw_bthd(const void *data, uint32_t dtype, uint64_t batch, uint64_t len, uint64_t heads,
                                uint64_t dim) {
    cw_tensor tensor = {(void *)data, dtype, 4, {0, 0, 0, 0}, {0, 0, 0, 1}};
    tensor.dims[0] = batch;
    tensor.dims[1] = len;
    tensor.dims[2] = heads;
    tensor.dims[3] = dim;
    tensor.strides[2] = dim;
    tensor.strides[1] = heads * dim;
    tensor.strides[0] = len * heads * dim;
    return tensor;
}

/* ---- Attention ---- */

enum { CW_ELU = 1, CW_RELU = 2, CW_IDENTITY = 3 };
enum { CW_NONE = 1, CW_GLOBAL = 2, CW_PER_CHUNK = 3 };
enum { CW_PRODUCTS_F32 = 1, CW_PRODUCTS_BF16 = 2 };
enum { CW_UPDATE_LINEAR = 0, CW_UPDATE_DELTA = 1 };
enum { CW_GATE_NONE = 0, CW_GATE_SCALAR = 1, CW_GATE_KEY = 2 };
enum { CW_GATE_MAP_LOG = 0, CW_GATE_MAP_LINEAR = 1, CW_GATE_MAP_SOFTPLUS = 2, CW_GATE_MAP_BOUNDED = 3 };
enum { CW_BETA_GIVEN = 0, CW_BETA_SIGMOID = 1, CW_BETA_TWICE_SIGMOID = 2 };
enum { CW_HEADS_INTERLEAVED = 0, CW_HEADS_TILED = 1 };

/* What to compute.
 *
 * Gates. gate says how S (and z) decays before each token, and so what the tensor g of a call holds. CW_GATE_NONE: it does
 * not, and there is no g. CW_GATE_SCALAR: a token and head has one decay, g is [B, T, H] (RetNet, simple GLA, Mamba-2,
 * gated DeltaNet). CW_GATE_KEY: each row of S has its own, g is [B, T, H, K] (GLA, Kimi Delta Attention). gate_map says how
 * a decay a is made of an element x of g, with r = exp(A_log) of the head and b = dt_bias of the head (and row); where they
 * are not given, r = 1 and b = 0:
 *
 *     CW_GATE_MAP_LOG        a = exp(x)                          x may be minus infinity, which resets the state
 *     CW_GATE_MAP_LINEAR     a = x
 *     CW_GATE_MAP_SOFTPLUS   a = exp(-r softplus(x + b))         Mamba-2, Qwen3-Next, Qwen3.5, Kimi Linear
 *     CW_GATE_MAP_BOUNDED    a = exp(gate_lower sigmoid(r (x + b)))
 *
 * Delta rule. With CW_UPDATE_DELTA a token corrects the state towards its v instead of adding v. beta_map says how beta_t
 * is made of an element x of the tensor beta [B, T, H]. CW_BETA_GIVEN: x; CW_BETA_SIGMOID: sigmoid(x);
 * CW_BETA_TWICE_SIGMOID: 2 sigmoid(x).
 *
 * Heads. Where the numbers of heads differ, head_order says which head of the tensor with few heads a head of the one with
 * many takes. CW_HEADS_INTERLEAVED: h / (many / few), as in fla, transformers and ONNX; CW_HEADS_TILED: h % few, as in
 * GGUF.
 *
 * What goes together. Every gate goes with both updates, with every feature map and with qk_norm. A gate goes with CW_NONE
 * and CW_GLOBAL, the delta rule with CW_NONE only; neither goes with `compensated`. gate_map needs a gate, and beta_map the
 * delta rule. not_causal goes with CW_NONE and CW_GLOBAL, without a gate, the delta rule and `compensated`, and not with
 * cw_decode. Grouped heads and ragged batches go with everything. CW_CONFLICT is returned for all else. */
typedef struct cw_attention {
    uint32_t size, abi;
    uint32_t feature_map;  /* phi. CW_ELU: x > 0 ? 1 + x : 1 + (exp(x) - 1); CW_RELU: max(x, 0) + feature_eps; CW_IDENTITY */
    uint32_t normaliser;   /* CW_NONE: by 1; CW_GLOBAL: by phi(q_t) . z_t + eps; CW_PER_CHUNK: in a chunk and before it apart */
    float feature_eps;     /* of CW_RELU */
    float normaliser_eps;  /* of CW_GLOBAL and CW_PER_CHUNK */
    uint64_t chunk;        /* tokens in a chunk of CW_PER_CHUNK, 1 to 2^24: part of the model, no matter of speed */
    float scale;           /* multiplies the outputs */
    uint32_t compensated;  /* 1: keeps the rounding errors of the state and adds them back, for streams of very many tokens */
    uint32_t products;     /* CW_PRODUCTS_BF16: of cw_cuda_* only, see chunkwise_cuda.h; for others it is CW_UNAVAILABLE */
    uint32_t isa;          /* CW_ISA_DEFAULT or one of cw_isas() */
    uint32_t threads;      /* at most, at least 1; in builds without std it is always 1 */
    uint32_t not_causal;   /* 1: each output sees all tokens of the call, as in encoders; 0: those up to its own */
    uint32_t update;       /* CW_UPDATE_LINEAR, CW_UPDATE_DELTA */
    uint32_t gate;         /* CW_GATE_NONE, CW_GATE_SCALAR, CW_GATE_KEY */
    uint32_t gate_map;     /* CW_GATE_MAP_LOG, CW_GATE_MAP_LINEAR, CW_GATE_MAP_SOFTPLUS, CW_GATE_MAP_BOUNDED */
    float gate_lower;      /* of CW_GATE_MAP_BOUNDED: the least logarithm of a decay, -5 in fla */
    uint32_t beta_map;     /* CW_BETA_GIVEN, CW_BETA_SIGMOID, CW_BETA_TWICE_SIGMOID */
    uint32_t head_order;   /* CW_HEADS_INTERLEAVED, CW_HEADS_TILED */
    uint32_t qk_norm;      /* 1: rows of phi(q) and phi(k) are divided by sqrt(sum x^2 + qk_norm_eps) */
    float qk_norm_eps;     /* of qk_norm; 1e-6 in fla and transformers */
} cw_attention;

/* Linear attention without a gate: Elu, scale 1, products in f32, the default instruction set, one thread. */
#define CW_ATTENTION(normaliser, eps, chunk) CW_RULE(CW_ELU, normaliser, eps, chunk, CW_UPDATE_LINEAR, CW_GATE_NONE)

/* Linear attention with this gate, and the delta rule with this gate: the identity map, no normaliser, the rest as above.
 * Most models multiply by K^-1/2, which is to be set as the scale, as is qk_norm where a model has it. */
#define CW_GATED(gate) CW_RULE(CW_IDENTITY, CW_NONE, 0, 0, CW_UPDATE_LINEAR, gate)
#define CW_DELTA(gate) CW_RULE(CW_IDENTITY, CW_NONE, 0, 0, CW_UPDATE_DELTA, gate)

#define CW_RULE(feature_map, normaliser, eps, chunk, update, gate)                                              \
    {CW_HEAD(cw_attention), feature_map, normaliser, 1e-6f, eps, chunk, 1.0f, 0, CW_PRODUCTS_F32, CW_ISA_DEFAULT, 1, 0, \
     update, gate, CW_GATE_MAP_LOG, -5.0f, CW_BETA_GIVEN, CW_HEADS_INTERLEAVED, 0, 1e-6f}

/* On what. Where there are no elements (B or T is 0), and for the pure queries, pointers may be null.
 *
 * State: f32, contiguous [B, H, state of one head], cw_sizes.state_bytes of it. All zeros is the state before the first
 * token. A copy by memcpy is a snapshot, and copying it back rewinds; for drafts of a few tokens cw_verify and cw_commit need
 * no copy. The state of a head is S [K, V] where there is no normaliser, and z [K] behind it with CW_GLOBAL.
 *
 * Heads. Each tensor says how many it has. The state has as many as the larger of Hk and Hv, and o as many as the larger of
 * Hq and H; each of Hk and Hv divides H, and each of Hq and H divides Ho. So more of q is grouped-query attention, and more
 * of v grouped-value attention (Qwen3.5, Mamba-2). CW_CONFLICT: they do not divide each other.
 *
 * g and beta are CW_NO_TENSOR where the rule has no use for them. [B, T, H] has rank 3, or rank 4 with a last dimension of
 * 1. The dims are always these, but strides may be 0: a constant decay is g with batch and token strides of 0, of which H
 * elements are read. A row of g of CW_GATE_KEY is contiguous. CW_CONFLICT: one is missing, or is given to a rule that has
 * no use for it.
 *
 * Ragged batches. N sequences of different lengths lie behind each other along T: sequence_count is N, and sequences holds
 * the N tokens at which they begin, then T (`cu_seqlens`), so it starts at 0 and never decreases. The dims of all tensors
 * have B = 1, the state is [N, H, state of one head], and everywhere else N takes the place of B. The state of an empty
 * sequence is kept. A cw_decode takes one token of each sequence: T = N, and it does not look at sequences, which may be
 * null. CW_SHAPE: they do not start at 0, decrease, or do not end at T. */
typedef struct cw_call {
    uint32_t size, abi;
    cw_tensor q;            /* [B, T, Hq, K] */
    cw_tensor k;            /* [B, T, Hk, K] */
    cw_tensor v;            /* [B, T, Hv, V] */
    cw_tensor o;            /* [B, T, Ho, V], written; strides must keep its rows apart */
    const float *state_in;  /* the state before; null: zeros */
    float *state_out;       /* where the state after goes; null: dropped; may be state_in: it is replaced */
    uint64_t state_bytes;   /* in each of them, at least cw_sizes.state_bytes */
    void *scratch;          /* of any content, before and after */
    uint64_t scratch_bytes; /* at least cw_sizes' */
    cw_tensor g;            /* of a gate: [B, T, H] of CW_GATE_SCALAR, [B, T, H, K] of CW_GATE_KEY */
    cw_tensor beta;         /* of the delta rule: [B, T, H] */
    const float *a_log;     /* A_log [H] of CW_GATE_MAP_SOFTPLUS and CW_GATE_MAP_BOUNDED; null: there is none */
    const float *dt_bias;   /* likewise dt_bias, [H] of CW_GATE_SCALAR, [H, K] of CW_GATE_KEY; null: there is none */
    const uint32_t *sequences; /* of a ragged batch: where its sequences begin, sequence_count + 1 numbers; else null */
    uint64_t sequence_count;   /* N of a ragged batch; else 0 */
} cw_call;

/* Zeros, to be filled. */
#define CW_CALL                                                                                                         \
    {CW_HEAD(cw_call), CW_NO_TENSOR, CW_NO_TENSOR, CW_NO_TENSOR, CW_NO_TENSOR, 0, 0, 0, 0, 0, CW_NO_TENSOR, CW_NO_TENSOR, 0, 0, \
     0, 0}
#define CW_NO_TENSOR {0, 0, 0, {0, 0, 0, 0}, {0, 0, 0, 0}}

typedef struct cw_sizes {
    uint32_t size, abi;
    uint64_t state_bytes;           /* of the whole batch */
    uint64_t state_align;           /* bytes; 64 is faster: cw_decode updates the state where it lies, by whole cache lines */
    uint64_t forward_scratch_bytes; /* of cw_forward; of cw_forward_range where threads is 1 */
    uint64_t decode_scratch_bytes;  /* of cw_decode and cw_decode_range, likewise */
    uint64_t scratch_align;         /* bytes */
    uint64_t record_bytes;          /* of cw_verify and cw_commit; 0 where the call is none of theirs */
} cw_sizes;

#define CW_SIZES {CW_HEAD(cw_sizes), 0, 0, 0, 0, 0, 0}

/* What to bring. It reads no memory but the structures, and may be asked before there is any: of the call it looks at types,
 * dimensions, strides, sequence_count, and at which of a_log, dt_bias and sequences are null. */
cw_status cw_attention_sizes(const cw_attention *attention, const cw_call *call, cw_sizes *sizes);

/* Sets a state to zeros, as memset does. CW_RANGE: bytes that are no multiple of 4. */
cw_status cw_state_init(float *state, uint64_t bytes);

/* Copies the states of heads side by side, [.., K, V], to [.., V, K], and the other way round: ONNX Runtime, ggml and vLLM
 * hold states so. key is K and value is V, in elements; bytes are those of each of from and to, which must not overlap.
 * They are states without a normaliser that are not compensated: nothing but S. CW_RANGE: bytes that are no multiple of
 * 4 K V. */
cw_status cw_state_to_value_major(uint64_t key, uint64_t value, const float *from, float *to, uint64_t bytes);
cw_status cw_state_from_value_major(uint64_t key, uint64_t value, const float *from, float *to, uint64_t bytes);

/* All tokens of all heads; on `threads` threads, the caller's among them, where the work is worth it (which starts a pool of
 * threads for the process the first time, and allocates). Outputs do not depend on how many threads there are. */
cw_status cw_forward(const cw_attention *attention, const cw_call *call);

/* One token of all heads: what cw_forward computes for T = 1, and faster. state_in must be state_out and hold a state. It is
 * updated where it lies, which is fastest where it begins on a boundary of 64 bytes. CW_CONFLICT: not_causal. */
cw_status cw_decode(const cw_attention *attention, const cw_call *call);

/* The same for `count` heads of the state, of all sequences counted through, b H + h, from `first` on, with all outputs
 * that share them, on the calling thread, whatever `threads` is: for a pool of threads of the caller's own. Tensors and
 * states are those of the whole call, scratch is each thread's own. Ranges that do not share a head may run at once. */
cw_status cw_forward_range(const cw_attention *attention, const cw_call *call, uint64_t first, uint64_t count);
cw_status cw_decode_range(const cw_attention *attention, const cw_call *call, uint64_t first, uint64_t count);

/* Speculative decoding. cw_verify computes the outputs of a draft, at most 16 tokens of each sequence, on a state that is only
 * read: the outputs of cw_forward, with its scratch, from state_in; state_out is null. It writes what cw_commit needs of the
 * tokens to record, cw_sizes.record_bytes, aligned to 4 bytes (64 is faster), apart from everything else of the call.
 *
 * cw_commit takes the first accepted[b] tokens of sequence b, of B, 0 to T, into the state where it lies: state_in is state_out,
 * the state that the draft was verified on. Of the call it looks at that state, types, dimensions and strides; tensors and
 * scratch are not needed any more. The state becomes what as many calls of cw_decode would have made of it: bit for bit with
 * CW_UPDATE_LINEAR, within rounding with CW_UPDATE_DELTA.
 *
 * CW_RANGE: more than 16 tokens, or more accepted than there are. CW_CONFLICT: a ragged batch, not_causal, or a cw_verify that
 * has a state_out. */
cw_status cw_verify(const cw_attention *attention, const cw_call *call, float *record, uint64_t record_bytes);
cw_status cw_verify_range(const cw_attention *attention, const cw_call *call, float *record, uint64_t record_bytes,
                          uint64_t first, uint64_t count);
cw_status cw_commit(const cw_attention *attention, const cw_call *call, const float *record, uint64_t record_bytes,
                    const uint32_t *accepted);

/* Sizes at compile time, for static arrays, of H heads of the state. The state's is exact (for a compensated one see
 * cw_attention_sizes), the others are upper bounds for any rule, layout and instruction set, on one thread; they leave room
 * for later versions. Where o has more heads than the state, ask the bound of cw_forward for H + 1 heads, and add the bytes
 * of one head's state, rounded up to a multiple of 64, to the bound of cw_decode. */
#define CW_STATE_BYTES(batch, heads, key, value, normaliser)                                                    \
    (4 * (uint64_t)(batch) * (heads) *                                                                          \
     ((normaliser) == CW_NONE     ? (uint64_t)(key) * (value)                                                   \
      : (normaliser) == CW_GLOBAL ? ((uint64_t)(value) + 1) * (key)                                             \
                                  : 2 * ((uint64_t)(value) + 1) * (key) + 1))
#define CW_FORWARD_SCRATCH_BYTES_MAX(heads, key, value)                                                         \
    (4 * (80 * CW_UP(key) + 32 * CW_UP(value) + 3 * (uint64_t)(heads) * CW_UP(key) * (CW_UP(value) + 1) + 15))
#define CW_DECODE_SCRATCH_BYTES_MAX(key, value)                                                                 \
    (4 * (12 * CW_UP(key) + 2 * CW_UP(value) + ((value) % 16 == 0 ? 0 : 48 * CW_UP(key)) + 15))
#define CW_UP(n) (((uint64_t)(n) + 15) / 16 * 16)

/* ---- The layers around attention ---- */

enum { CW_ACTIVATION_NONE = 0, CW_ACTIVATION_SILU = 1 };

/* The causal short convolution of each channel along time:
 *
 *     y_t[c] = act(bias[c] + sum_j weight[c][j] x_{t - (width - 1) + j}[c])      act(a) = a, or a / (1 + exp(-a))
 *
 * x and y are [B, T, C] of rank 3 with any strides, those of channels first among them; each of CW_F32, CW_BF16, CW_F16. The
 * state is the last width - 1 inputs of each sequence, f32, contiguous [B, width - 1, C], the oldest first; zeros before
 * the first token. state_in and state_out are as in cw_call. A ragged batch has B = 1, and sequences and sequence_count as in
 * cw_call; N takes the place of B in the state. A call works on the calling thread, and brings no scratch. */
typedef struct cw_conv {
    uint32_t size, abi;
    cw_tensor x;               /* [B, T, C] */
    cw_tensor y;               /* [B, T, C], written; strides must keep its elements apart */
    const float *weight;       /* [C, width], contiguous; the last tap meets the token itself */
    const float *bias;         /* [C]; null: there is none */
    uint64_t width;            /* taps, 1 to 8 */
    uint32_t activation;       /* CW_ACTIVATION_NONE, CW_ACTIVATION_SILU */
    uint32_t isa;              /* as in cw_attention */
    const float *state_in;     /* the state before; null: zeros */
    float *state_out;          /* where the state after goes; null: dropped; may be state_in */
    uint64_t state_bytes;      /* in each of them, at least what cw_conv_sizes says */
    const uint32_t *sequences; /* of a ragged batch, else null */
    uint64_t sequence_count;   /* of a ragged batch, else 0 */
} cw_conv;

#define CW_CONV                                                                                              \
    {CW_HEAD(cw_conv), CW_NO_TENSOR, CW_NO_TENSOR, 0, 0, 0, CW_ACTIVATION_NONE, CW_ISA_DEFAULT, 0, 0, 0, 0, 0}

/* Bytes of the state. It reads no memory but the structure. */
cw_status cw_conv_sizes(const cw_conv *conv, uint64_t *state_bytes);

/* All tokens. */
cw_status cw_conv_forward(const cw_conv *conv);

/* One token of each sequence, T = 1: state_in must be state_out, and is updated where it lies. CW_SHAPE: T is not 1, another
 * state_out, a ragged batch. */
cw_status cw_conv_decode(const cw_conv *conv);

enum { CW_NORM_SILU = 0, CW_NORM_SIGMOID = 1 };

/* The gated RMS norm of the rows of each head, y = x / sqrt(mean(x^2) + eps) weight act(z), act(a) = a sigmoid(a) or
 * sigmoid(a): Qwen3-Next, Qwen3.5 and OLMo-Hybrid, and Kimi Linear. All tensors are [B, T, H, D] with contiguous rows. y may be x: the
 * same memory, type and strides. */
typedef struct cw_gated_norm {
    uint32_t size, abi;
    cw_tensor x;
    cw_tensor z;
    cw_tensor y;         /* written; strides must keep its rows apart */
    float eps;           /* above zero */
    uint32_t gate;       /* CW_NORM_SILU, CW_NORM_SIGMOID */
    uint32_t isa;        /* as in cw_attention */
    const float *weight; /* [D]; null: ones */
} cw_gated_norm;

#define CW_GATED_NORM {CW_HEAD(cw_gated_norm), CW_NO_TENSOR, CW_NO_TENSOR, CW_NO_TENSOR, 1e-6f, CW_NORM_SILU, CW_ISA_DEFAULT, 0}

/* All rows, on the calling thread. */
cw_status cw_gated_norm_forward(const cw_gated_norm *norm);

/* ---- Models: Edifice's FlashLinearAttention and LightningAttention, at inference ---- */

enum { CW_LINEAR = 1, CW_LIGHTNING = 2 };
enum { CW_LAST_TIMESTEP = 1, CW_ALL = 2, CW_MEAN = 3 };

/* The options, with the reference's names. */
typedef struct cw_model_config {
    uint32_t size, abi;
    uint64_t embed_dim;       /* elements of an input row */
    uint64_t hidden_size;     /* elements of an output row */
    uint64_t num_heads;
    uint64_t num_layers;
    uint64_t chunk_size;      /* tokens in a chunk; of CW_LINEAR at most seq_len */
    uint64_t seq_len;         /* tokens the model was built for; it runs on any number */
    uint32_t feature_map;     /* CW_ELU, CW_RELU, CW_IDENTITY; of CW_LINEAR */
    float feature_eps;        /* of CW_RELU */
    uint32_t output_mode;     /* CW_LAST_TIMESTEP, CW_ALL, CW_MEAN */
    uint32_t final_norm;      /* 1: there is one */
    float layer_norm_eps;
    uint32_t layer_norm_clip; /* 1: as Axon 0.8.0 normed, for models that ran on it */
    uint32_t attention;       /* CW_LINEAR, CW_LIGHTNING: softmax inside a chunk, linear over the chunks before */
    uint32_t reserved;
} cw_model_config;

/* The reference's defaults: hidden 256, 4 heads, 4 layers, chunks of 64, Elu, the last time step, a final norm, linear
 * attention. */
#define CW_MODEL_CONFIG(embed_dim) \
    {CW_HEAD(cw_model_config), embed_dim, 256, 4, 4, 64, 64, CW_ELU, 1e-6f, CW_LAST_TIMESTEP, 1, 1e-5f, 0, \
     CW_LINEAR, 0}

/* A model, at the beginning of the memory it was made in. It is never changed: any number of threads may use it at once,
 * each with a call of its own. It must not be moved or copied. */
typedef struct cw_model cw_model;

/* Memory for a model, in bytes, and its alignment, in bytes: its parameters are not in it. */
cw_status cw_model_memory(const cw_model_config *config, uint64_t *bytes, uint64_t *align);

/* A parameter by the reference's name, ended by a zero: "fla_block_1_attn_qkv.kernel", of CW_LIGHTNING
 * "lightning_block_1_attn_qkv.kernel". */
typedef struct cw_parameter {
    const char *name;
    cw_tensor tensor; /* contiguous; kernels have rank 2, [in, out], all others rank 1 */
} cw_parameter;

/* Makes a model of a table of parameters, in any order, without allocating.
 *
 * Parameters are fla_block_N_attn_norm, _attn_qkv, _attn_out, _ffn_norm, _ffn_up and _ffn_down for each layer N from 1 on
 * (of CW_LIGHTNING lightning_block_N_...), input_projection where embed_dim is not hidden_size, final_norm where there is
 * one, and head, which is optional. Norms have .gamma and .beta, all others .kernel and .bias.
 *
 * Borrowed until the model is used for the last time: memory, and the data of the tensors (which may be in flash). Not
 * borrowed: config, the table and the names. There is nothing to free. Where parameters do not fit nothing is written.
 *
 * isa: CW_ISA_DEFAULT or another; threads: at most, at least 1. CW_PARAMETER: one is missing, misshapen, double or has no
 * place. CW_SHAPE: one is not contiguous. */
cw_status cw_model_init(const cw_model_config *config, const cw_parameter *parameters, uint64_t count, uint32_t isa,
                        uint32_t threads, void *memory, uint64_t memory_bytes, const cw_model **model);

/* What a model takes and gives, for B = batch and T = len. */
typedef struct cw_model_sizes {
    uint32_t size, abi;
    uint64_t embed_dim;             /* elements of a row of the input */
    uint64_t hidden_size;           /* elements of a row of the output */
    uint64_t head_size;             /* elements of a row of logits; 0: there is no head */
    uint64_t output_bytes;          /* of cw_model_forward */
    uint64_t state_bytes;           /* of cw_model_step */
    uint64_t forward_scratch_bytes;
    uint64_t step_scratch_bytes;
    uint64_t head_scratch_bytes;    /* of cw_model_head, on all rows of that output */
    uint64_t align;                 /* bytes, of state and scratch; 64 is faster */
} cw_model_sizes;

#define CW_MODEL_SIZES {CW_HEAD(cw_model_sizes), 0, 0, 0, 0, 0, 0, 0, 0, 0}

cw_status cw_model_sizes_of(const cw_model *model, uint64_t batch, uint64_t len, cw_model_sizes *sizes);

/* On what a model runs: all f32, contiguous, row by row. Sizes are at least what is needed. */
typedef struct cw_model_call {
    uint32_t size, abi;
    uint64_t batch, len;
    const float *input; /* [B, T, embed_dim] */
    uint64_t input_bytes;
    float *output;
    uint64_t output_bytes;
    float *state;       /* of cw_model_step: zeros before the first; a memcpy of it is a snapshot */
    uint64_t state_bytes;
    void *scratch;      /* of any content, before and after */
    uint64_t scratch_bytes;
} cw_model_call;

#define CW_MODEL_CALL {CW_HEAD(cw_model_call), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* All tokens at once: output [B, hidden_size], or [B, T, hidden_size] for CW_ALL. state is not used. CW_ZERO: T is 0 where
 * the output is one row. */
cw_status cw_model_forward(const cw_model *model, const cw_model_call *call);

/* The next time step of each sequence, len 1: input [B, embed_dim], output [B, hidden_size], which is what cw_model_forward
 * returns for the sequence so far (for CW_ALL: its last row). state is read and replaced. CW_STATE: it is not of this
 * model. */
cw_status cw_model_step(const cw_model *model, const cw_model_call *call);

/* The head on batch len rows of an output: input [B, T, hidden_size], output [B, T, head_size]. CW_PARAMETER: there is no
 * head. */
cw_status cw_model_head(const cw_model *model, const cw_model_call *call);

/* ---- Models from files: in builds with the feature `files` ---- */

typedef struct cw_model_file {
    uint32_t size, abi;
    const void *bytes;      /* a whole safetensors file */
    uint64_t bytes_len;
    const char *json;       /* options as JSON, which come before those in the file; may be null */
    uint64_t json_len;
    uint32_t isa;           /* as for cw_model_init */
    uint32_t threads;       /* likewise */
    char *message;          /* where an error of the file is explained, cut to fit and ended by a zero; may be null */
    uint64_t message_bytes; /* room there */
} cw_model_file;

#define CW_MODEL_FILE {CW_HEAD(cw_model_file), 0, 0, 0, 0, CW_ISA_DEFAULT, 1, 0, 0}

/* Parsing a header allocates, and frees again before these return. Beside the codes of cw_model_init there are CW_FILE,
 * CW_OPTION and, with a path, CW_IO; then the message, and nothing else, is written. */

/* The configuration that a file and the options beside it make: for cw_model_memory. */
cw_status cw_model_file_config(const cw_model_file *file, cw_model_config *config);

/* Makes a model of a file in memory. Borrowed until the model is used for the last time: memory and bytes. Not borrowed: the
 * rest. CW_MISALIGNED: a parameter is not aligned to its type (align the bytes to 8), or this machine is big-endian. */
cw_status cw_model_load(const cw_model_file *file, void *memory, uint64_t memory_bytes, const cw_model **model);

/* The one call that allocates what stays: reads the file at path (ended by a zero, UTF-8) and makes a model of it, whatever
 * its alignment. bytes must be null. Nothing is borrowed. */
cw_status cw_model_open(const char *path, const cw_model_file *file, const cw_model **model);

/* Frees a model of cw_model_open, once no thread uses it any more; null is fine. CW_MODEL: of another function. */
cw_status cw_model_close(const cw_model *model);

#ifdef __cplusplus
}
#endif

#endif
