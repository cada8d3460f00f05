/* chunkwise: linear attention on CPUs. This header is C99 and C++11.
 *
 *     S'  = a_t S_{t-1}                     [K, V]   a_t = 1, or a decay: one number, or one for each row of S
 *     u   = v_t                             [V]      CW_UPDATE_LINEAR
 *     u   = beta_t (v_t - S'^T phi(k_t))    [V]      CW_UPDATE_DELTA
 *     S_t = S' + phi(k_t) u^T               [K, V]   state
 *     z_t = a_t z_{t-1} + phi(k_t)          [K]      normaliser state
 *     o_t = scale phi(q_t)^T S_t / norm_t   [V]      norm_t = 1, or phi(q_t) . z_t + eps
 *
 * Letters. B is the batch (the number of sequences), T the number of tokens, H the number of heads of the state, K the
 * number of elements in a row of q and k, and V the number of elements in a row of v and o. Hq, Hk, Hv and Ho are the
 * numbers of heads of q, k, v and o; they are H unless stated otherwise.
 *
 * Units. Dimensions and strides are in elements, and sizes of memory are in bytes.
 *
 * Errors. A function returns CW_OK or an error. If it returns an error, it has written nothing, except with CW_PANIC,
 * which is a bug. The library checks every pointer: whether it is null, is aligned, lies inside the address space, and
 * overlaps memory that the call writes. The caller must guarantee what a library cannot check: that the memory exists,
 * and that nothing else writes it during a call.
 *
 * Overlap. The memory that a call writes (o, state_out, gradients, scratch), from its first element to its last and
 * including gaps between rows, must overlap neither memory that the call reads nor other memory that it writes. Only
 * state_in and state_out of a cw_call or a cw_conv may be the same pointer.
 *
 * Threads. The only global state is what is detected about the CPU, once, and a pool of threads. The pool is started by
 * the first call that may use more than one thread and has enough work for it. Any number of threads may call any
 * functions at the same time, as long as none writes memory that another one uses. Where no threads can be started,
 * calls compute on the calling thread alone. On x86-64 and AArch64, all threads of a call use the calling thread's
 * rounding and denormal modes (fesetround, MXCSR, FPCR); on other architectures the threads that help use the default
 * modes.
 *
 * fork. A child process may call every function for the CPU, whatever its parent has called before. It starts its own
 * threads.
 *
 * Memory. The caller provides all memory; the comment of a function says so if the function allocates. After a call the
 * library keeps no pointers, except for models: the functions that make them say how long memory is borrowed.
 *
 * Bits. Outputs and states have the same bits for any batch, strides, threads and ranges of heads, and wherever a
 * sequence is cut into calls of cw_forward and cw_decode. With `compensated` this holds for cuts at multiples of 4
 * tokens. With a gate or the delta rule it holds for calls of cw_forward that are cut at multiples of 2 tokens, and
 * cw_decode agrees with cw_forward within rounding. Gradients have the same bits for any batch, strides and threads. The
 * bits are also the same on AVX2, AVX-512 and NEON; CW_ISA_SCALAR and CW_ISA_SIMD128 give other bits, because they do
 * not fuse multiplications and additions. The payload of a NaN is not specified.
 *
 * Growth. Structures begin with their size and the ABI version. The macros named after them (CW_CALL for cw_call) fill
 * in both, together with the defaults. Fields are only ever added at the end, so a program that was compiled with an
 * older header continues to work: where a structure is smaller than the library's, the missing fields have the values
 * that the library's own macro gives them, and the library writes a structure only up to its size. CW_SIZE is returned
 * for a structure that is larger than the library's, one smaller than its first two fields, and one whose size ends
 * within a field. Where a field with constants was added later, its constant 0 means what the library did before it had
 * the field. Fields called reserved must be 0.
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
    CW_NULL = 1,         /* a pointer is null that must not be null */
    CW_MISALIGNED = 2,   /* a pointer is not aligned to its type */
    CW_OVERLAP = 3,      /* memory that is written overlaps other memory of the call, or itself by its strides */
    CW_TOO_SMALL = 4,    /* fewer bytes were given than are needed */
    CW_OVERFLOW = 5,     /* sizes or strides reach beyond the address space */
    CW_ZERO = 6,         /* a size is zero that must be at least one */
    CW_RANGE = 7,        /* a number is not finite, is negative, or is out of its range */
    CW_UNKNOWN = 8,      /* the value of a field is none of its constants, or a reserved field is not 0 */
    CW_SIZE = 9,         /* a structure is larger than this library knows, or its size ends within a field */
    CW_ABI = 10,         /* a structure was filled by a header of another ABI version */
    CW_SHAPE = 11,       /* the dimensions or strides of tensors, or the sequences, do not fit together */
    CW_STATE = 12,       /* the state was not made by this configuration */
    CW_UNAVAILABLE = 13, /* this machine or this build does not support the request */
    CW_PARAMETER = 14,   /* a parameter of the model is missing, misshapen or unexpected */
    CW_FILE = 15,        /* the bytes are not a safetensors file, or not a complete one */
    CW_OPTION = 16,      /* a required option of the model is missing, or an option is invalid */
    CW_IO = 17,          /* the file cannot be read */
    CW_MODEL = 18,       /* the pointer is not to a model, or not to a model that can be closed */
    CW_PANIC = 19,       /* a bug in the library: outputs and states must not be used */
    CW_GPU = 20,         /* the GPU or its driver returned an error, see chunkwise_cuda.h */
    CW_CONFLICT = 21     /* options or tensors cannot be combined */
};

/* A text for each status. It is never null and must not be freed. */
const char *cw_status_string(cw_status status);

/* The library's version, such as "0.1.0". It must not be freed. */
const char *cw_version(void);

/* The ABI version that the library was built with. Compare it with CW_ABI_VERSION before any other call. */
uint32_t cw_abi_version(void);

/* ---- Instruction sets ---- */

enum {
    CW_ISA_DEFAULT = 0, /* the best available; in builds with std, CHUNKWISE_ISA in the environment may name another */
    CW_ISA_SCALAR = 1,
    CW_ISA_SIMD128 = 2,
    CW_ISA_NEON = 3,
    CW_ISA_AVX2 = 4,
    CW_ISA_AVX512 = 5
};

/* The instruction sets that this machine has: bit 1 << CW_ISA_AVX2 and so on. */
uint32_t cw_isas(void);

/* The instruction set that CW_ISA_DEFAULT stands for. CW_UNAVAILABLE: CHUNKWISE_ISA names one that is not available. */
cw_status cw_isa_default(uint32_t *isa);

/* The name of an instruction set, "avx2" for CW_ISA_AVX2; null for a number that is not an instruction set. */
const char *cw_isa_name(uint32_t isa);

/* ---- Tensors ---- */

enum { CW_F32 = 1, CW_BF16 = 2, CW_F16 = 3 };

typedef struct cw_tensor {
    void *data;          /* the first element; the library only reads tensors that are inputs */
    uint32_t dtype;      /* CW_F32, CW_BF16, CW_F16; each tensor of a call may have its own */
    uint32_t rank;       /* the number of dimensions */
    uint64_t dims[4];    /* sizes of the dimensions, outermost first */
    uint64_t strides[4]; /* for each dimension, elements from one index to the next; 1 for the innermost */
} cw_tensor;

/* A contiguous tensor [B, T, H, D]. For other layouts set the strides afterwards. */
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

/* The rule to compute.
 *
 * Normaliser. With CW_PER_CHUNK, the current chunk and all earlier chunks are divided separately, each by its own sum:
 *
 *     o_t = scale (phi(q_t)^T S_cur / (phi(q_t) . z_cur + eps) + phi(q_t)^T S_past / (phi(q_t) . z_past + eps))
 *
 * Gates. gate says how S (and z) decays before each token, and so determines the tensor g of a call. CW_GATE_NONE:
 * there is no decay and no g. CW_GATE_SCALAR: there is one decay for each token and head, and g is [B, T, H] (RetNet,
 * simple GLA, Mamba-2, gated DeltaNet). CW_GATE_KEY: each row of S has its own decay, and g is [B, T, H, K] (GLA, Kimi
 * Delta Attention). gate_map says how a decay a is computed from an element x of g, with r = exp(A_log) of the head and
 * b = dt_bias of the head (with CW_GATE_KEY, of the head and row); where they are not given, r = 1 and b = 0:
 *
 *     CW_GATE_MAP_LOG        a = exp(x)                          x may be minus infinity, which resets the state
 *     CW_GATE_MAP_LINEAR     a = x
 *     CW_GATE_MAP_SOFTPLUS   a = exp(-r softplus(x + b))         Mamba-2, Qwen3-Next, Qwen3.5, Kimi Linear
 *     CW_GATE_MAP_BOUNDED    a = exp(gate_lower sigmoid(r (x + b)))
 *
 * Delta rule. With CW_UPDATE_DELTA a token corrects the state towards its v instead of adding v. beta_map says how
 * beta_t is computed from an element x of the tensor beta [B, T, H]. CW_BETA_GIVEN: x; CW_BETA_SIGMOID: sigmoid(x);
 * CW_BETA_TWICE_SIGMOID: 2 sigmoid(x).
 *
 * Heads. Where two tensors differ in their numbers of heads, `many` and `few`, head_order says which head of the tensor
 * with few heads is used for head h of the other one. CW_HEADS_INTERLEAVED: h / (many / few), as in fla, transformers
 * and ONNX; CW_HEADS_TILED: h % few, as in GGUF.
 *
 * Combinations. Every gate can be combined with both updates, with every feature map and with qk_norm. A gate can be
 * combined with CW_NONE and CW_GLOBAL, the delta rule with CW_NONE only, and neither of them with `compensated`. A
 * gate_map other than 0 requires a gate, and a beta_map other than 0 requires the delta rule. not_causal can be
 * combined with CW_NONE and CW_GLOBAL, but not with a gate, the delta rule, `compensated`, cw_decode or cw_verify.
 * Grouped heads and ragged batches can be combined with everything, except that cw_verify takes no ragged batches. What
 * cannot be combined returns CW_CONFLICT. */
typedef struct cw_attention {
    uint32_t size, abi;
    uint32_t feature_map;  /* phi. CW_ELU: x > 0 ? 1 + x : 1 + (exp(x) - 1); CW_RELU: max(x, 0) + feature_eps; CW_IDENTITY */
    uint32_t normaliser;   /* norm_t. CW_NONE: 1; CW_GLOBAL: phi(q_t) . z_t + eps; CW_PER_CHUNK: see above */
    float feature_eps;     /* of CW_RELU */
    float normaliser_eps;  /* of CW_GLOBAL and CW_PER_CHUNK */
    uint64_t chunk;        /* tokens in a chunk of CW_PER_CHUNK, 1 to 2^24: part of the model, not a tuning option */
    float scale;           /* multiplies the outputs */
    uint32_t compensated;  /* 1: the state keeps its rounding errors to add them back, for streams of very many tokens */
    uint32_t products;     /* CW_PRODUCTS_BF16: for cw_cuda_* only (chunkwise_cuda.h); others return CW_UNAVAILABLE */
    uint32_t isa;          /* CW_ISA_DEFAULT or one of cw_isas() */
    uint32_t threads;      /* the most that a call uses, at least 1; in builds without std it is always 1 */
    uint32_t not_causal;   /* 1: each output sees all tokens of the call, as in encoders; 0: the tokens up to its own */
    uint32_t update;       /* CW_UPDATE_LINEAR, CW_UPDATE_DELTA */
    uint32_t gate;         /* CW_GATE_NONE, CW_GATE_SCALAR, CW_GATE_KEY */
    uint32_t gate_map;     /* CW_GATE_MAP_LOG, CW_GATE_MAP_LINEAR, CW_GATE_MAP_SOFTPLUS, CW_GATE_MAP_BOUNDED */
    float gate_lower;      /* of CW_GATE_MAP_BOUNDED: the least logarithm of a decay, -5 in fla */
    uint32_t beta_map;     /* CW_BETA_GIVEN, CW_BETA_SIGMOID, CW_BETA_TWICE_SIGMOID */
    uint32_t head_order;   /* CW_HEADS_INTERLEAVED, CW_HEADS_TILED */
    uint32_t qk_norm;      /* 1: rows of phi(q) and phi(k) are divided by sqrt(sum x^2 + qk_norm_eps) */
    float qk_norm_eps;     /* of qk_norm; 1e-6 in fla and transformers */
} cw_attention;

/* Linear attention without a gate: CW_ELU, scale 1, products in f32, the default instruction set, one thread. */
#define CW_ATTENTION(normaliser, eps, chunk) CW_RULE(CW_ELU, normaliser, eps, chunk, CW_UPDATE_LINEAR, CW_GATE_NONE)

/* Linear attention with a gate, and the delta rule with a gate or CW_GATE_NONE: CW_IDENTITY, no normaliser, and
 * otherwise as CW_ATTENTION. Set scale to K^-1/2 for most models, and qk_norm for those that have it. */
#define CW_GATED(gate) CW_RULE(CW_IDENTITY, CW_NONE, 0, 0, CW_UPDATE_LINEAR, gate)
#define CW_DELTA(gate) CW_RULE(CW_IDENTITY, CW_NONE, 0, 0, CW_UPDATE_DELTA, gate)

#define CW_RULE(feature_map, normaliser, eps, chunk, update, gate)                                              \
    {CW_HEAD(cw_attention), feature_map, normaliser, 1e-6f, eps, chunk, 1.0f, 0, CW_PRODUCTS_F32, CW_ISA_DEFAULT, 1, 0, \
     update, gate, CW_GATE_MAP_LOG, -5.0f, CW_BETA_GIVEN, CW_HEADS_INTERLEAVED, 0, 1e-6f}

/* The tensors and the memory to compute on. Pointers may be null where there are no elements (B or T is 0), and for
 * functions that only return sizes.
 *
 * State. It is f32, contiguous, [B, H, state of one head], and has cw_sizes.state_bytes bytes. The state before the
 * first token is all zeros. A copy by memcpy is a snapshot, and copying it back rewinds; for drafts of a few tokens,
 * cw_verify and cw_commit need no copy. Without a normaliser the state of a head is S [K, V]; with CW_GLOBAL it is S
 * followed by z [K].
 *
 * Heads. Each tensor has its own number of heads. The state has as many heads as k or v, whichever has more (H), and o
 * has as many as q or the state, whichever has more (Ho). Hk and Hv must divide H, and Hq and H must divide Ho;
 * otherwise CW_CONFLICT is returned. With more heads of q than of k this is grouped-query attention, and with more
 * heads of v than of k it is grouped-value attention (Qwen3.5, Mamba-2).
 *
 * g and beta. They are CW_NO_TENSOR where the rule does not use them. [B, T, H] has rank 3, or rank 4 with a last
 * dimension of 1. The dims are always these, but strides may be 0: a constant decay is a g with batch and token strides
 * of 0, of which H elements are read. The rows of g are contiguous with CW_GATE_KEY. CW_CONFLICT: g or beta is missing,
 * or is given to a rule that does not use it.
 *
 * Ragged batches. N sequences of different lengths follow each other along T. sequence_count is N, and sequences
 * contains the N tokens at which the sequences begin, then T (`cu_seqlens`); so it starts at 0 and never decreases. The
 * dims of all tensors have B = 1, the state is [N, H, state of one head], and in all other places N takes the role of
 * B. An empty sequence keeps its state. cw_decode computes one token of each sequence: T = N, and sequences is not read
 * and may be null. CW_SHAPE: sequences does not start at 0, decreases, or does not end at T. */
typedef struct cw_call {
    uint32_t size, abi;
    cw_tensor q;            /* [B, T, Hq, K] */
    cw_tensor k;            /* [B, T, Hk, K] */
    cw_tensor v;            /* [B, T, Hv, V] */
    cw_tensor o;            /* [B, T, Ho, V], written; strides must keep its rows apart */
    const float *state_in;  /* the state before the call; null: zeros */
    float *state_out;       /* the state after the call is written here; null: dropped; may be state_in (in place) */
    uint64_t state_bytes;   /* of state_in and of state_out, each; at least cw_sizes.state_bytes */
    void *scratch;          /* its content does not matter before a call, and is not specified after it */
    uint64_t scratch_bytes; /* at least as many as cw_sizes gives for the function */
    cw_tensor g;            /* with a gate: [B, T, H] for CW_GATE_SCALAR, [B, T, H, K] for CW_GATE_KEY */
    cw_tensor beta;         /* with the delta rule: [B, T, H] */
    const float *a_log;     /* A_log [H], for CW_GATE_MAP_SOFTPLUS and CW_GATE_MAP_BOUNDED; null: there is none */
    const float *dt_bias;   /* for the same maps: dt_bias, [H] for CW_GATE_SCALAR, [H, K] for CW_GATE_KEY; null: none */
    const uint32_t *sequences; /* of a ragged batch: where its sequences begin, sequence_count + 1 numbers; else null */
    uint64_t sequence_count;   /* of a ragged batch: N; else 0 */
} cw_call;

/* All fields are zero; the caller fills them in. */
#define CW_CALL                                                                                                         \
    {CW_HEAD(cw_call), CW_NO_TENSOR, CW_NO_TENSOR, CW_NO_TENSOR, CW_NO_TENSOR, 0, 0, 0, 0, 0, CW_NO_TENSOR, CW_NO_TENSOR, 0, 0, \
     0, 0}
#define CW_NO_TENSOR {0, 0, 0, {0, 0, 0, 0}, {0, 0, 0, 0}}

typedef struct cw_sizes {
    uint32_t size, abi;
    uint64_t state_bytes;            /* of the whole batch */
    uint64_t state_align;            /* bytes; 64 is faster: cw_decode updates the state in place, by cache lines */
    uint64_t forward_scratch_bytes;  /* for cw_forward; for cw_forward_range if threads is 1 */
    uint64_t decode_scratch_bytes;   /* for cw_decode; for cw_decode_range if threads is 1 */
    uint64_t scratch_align;          /* bytes */
    uint64_t record_bytes;           /* for cw_verify and cw_commit; 0 if they refuse the call */
    uint64_t backward_scratch_bytes; /* for cw_backward; 0 if it refuses the call */
} cw_sizes;

#define CW_SIZES {CW_HEAD(cw_sizes), 0, 0, 0, 0, 0, 0, 0}

/* The sizes and alignments of the memory that a call needs. This function reads no memory but the structures, and can
 * be called before any memory is allocated. Of the call it uses the types, dimensions and strides, sequence_count, and
 * which of a_log, dt_bias and sequences are null. */
cw_status cw_attention_sizes(const cw_attention *attention, const cw_call *call, cw_sizes *sizes);

/* Sets a state to zeros, as memset does. CW_RANGE: bytes is not a multiple of 4. */
cw_status cw_state_init(float *state, uint64_t bytes);

/* Copies the states of any number of heads from [.., K, V] to [.., V, K], and back. ONNX Runtime, ggml and vLLM store
 * states as [.., V, K]. key is K and value is V, in elements; bytes is the size of from and of to, each, which must not
 * overlap. The states must consist of S alone: they have no normaliser and are not compensated. CW_RANGE: bytes is not
 * a multiple of 4 K V. */
cw_status cw_state_to_value_major(uint64_t key, uint64_t value, const float *from, float *to, uint64_t bytes);
cw_status cw_state_from_value_major(uint64_t key, uint64_t value, const float *from, float *to, uint64_t bytes);

/* Computes all tokens of all heads. It uses up to `threads` threads, including the caller's, where there is enough work
 * for them; the first such call starts a pool of threads for the process, and allocates. Outputs do not depend on the
 * number of threads. */
cw_status cw_forward(const cw_attention *attention, const cw_call *call);

/* Computes one token of all heads: the same as cw_forward for T = 1, but faster. state_in and state_out must be the
 * same pointer, to a state, which is updated in place. This is fastest where the state begins on a boundary of 64
 * bytes. CW_CONFLICT: not_causal. */
cw_status cw_decode(const cw_attention *attention, const cw_call *call);

/* The same computations for `count` heads of the state, from `first` on, with all outputs that share these heads. Head h
 * of sequence b is number b H + h. These functions run on the calling thread, whatever `threads` is, and are meant for
 * the caller's own pool of threads. Tensors and states are those of the whole call; each thread has its own scratch.
 * Ranges that do not share a head may run at the same time. */
cw_status cw_forward_range(const cw_attention *attention, const cw_call *call, uint64_t first, uint64_t count);
cw_status cw_decode_range(const cw_attention *attention, const cw_call *call, uint64_t first, uint64_t count);

/* Speculative decoding. cw_verify computes the outputs of a draft, which has at most 16 tokens of each sequence,
 * without changing the state. The outputs are those of cw_forward from state_in, and so is the scratch; state_out must
 * be null. What cw_commit needs to know about the tokens is written to record, which has cw_sizes.record_bytes bytes,
 * is aligned to 4 bytes (64 is faster), and overlaps nothing else of the call.
 *
 * cw_commit updates the state in place with the first accepted[b] tokens, 0 to T, of each sequence b. state_in and
 * state_out must be the same pointer, to the state that the draft was verified on. Of the call, cw_commit uses that
 * state and the types, dimensions and strides; it needs neither the tensors' data nor scratch. The result is the state
 * after as many calls of cw_decode: bit for bit with CW_UPDATE_LINEAR, within rounding with CW_UPDATE_DELTA.
 *
 * CW_RANGE: more than 16 tokens, or more accepted tokens than T. CW_CONFLICT: a ragged batch, not_causal, or a
 * state_out in cw_verify. */
cw_status cw_verify(const cw_attention *attention, const cw_call *call, float *record, uint64_t record_bytes);
cw_status cw_verify_range(const cw_attention *attention, const cw_call *call, float *record, uint64_t record_bytes,
                          uint64_t first, uint64_t count);
cw_status cw_commit(const cw_attention *attention, const cw_call *call, const float *record, uint64_t record_bytes,
                    const uint32_t *accepted);

/* The gradients of a loss with respect to the tensors and states of a cw_forward. Each gradient of a tensor has the
 * rank, dims and strides of that tensor in the call, and any type. A gradient of a state has the layout and the number
 * of elements of a state. The counts of tokens in a state with CW_PER_CHUNK are no variables: they are ignored in the
 * gradient of the last state, and are 0 in the gradient of the initial state. */
typedef struct cw_gradients {
    uint32_t size, abi;
    cw_tensor o;            /* read: the gradient of o, [B, T, H, V] */
    cw_tensor q;            /* written: the gradient of q, [B, T, H, K] */
    cw_tensor k;            /* written: the gradient of k, [B, T, H, K] */
    cw_tensor v;            /* written: the gradient of v, [B, T, H, V] */
    cw_tensor g;            /* written: the gradient of g, [B, T, H], 0 where a decay is 0; null data: dropped */
    const float *state_out; /* read: the gradient of the last state; null: zeros */
    float *state_in;        /* the gradient of the initial state is written here; null: dropped */
    uint64_t state_bytes;   /* of state_out and of state_in, each; at least cw_sizes.state_bytes */
} cw_gradients;

/* All fields are zero; the caller fills them in. */
#define CW_GRADIENTS \
    {CW_HEAD(cw_gradients), CW_NO_TENSOR, CW_NO_TENSOR, CW_NO_TENSOR, CW_NO_TENSOR, CW_NO_TENSOR, 0, 0, 0}

/* Computes the gradients of q, k, v, a scalar gate g and the initial state from those of o and the last state. g holds
 * logarithms of decays. Where heads of q, k or v are shared, their gradients are sums. Of the call it reads q, k, v, g,
 * sequences and state_in, which is the state before the forward; a forward that updates a state in place overwrites
 * it. Of o it uses the type, dims and strides, and its data may be null. What the gradients held before is replaced, and
 * elements between rows are left untouched. scratch has cw_sizes.backward_scratch_bytes bytes: for each thread and each
 * head that it computes at once they include 16 for each of the T tokens. Threads are used as in cw_forward, and the
 * gradients do not depend on their number. Where q or k is 0, CW_RELU has the derivative 0.
 *
 * CW_CONFLICT: a key gate or a gate whose map is not CW_GATE_MAP_LOG, the delta rule, qk_norm, not_causal, `compensated`, or
 * a state_out in the call. CW_OVERLAP: rows of q, k or v, or of g if its gradient is asked for, overlap by their strides,
 * so that rows of their gradients would. CW_SHAPE:
 * the rank, dims or strides of a gradient are not those of its tensor. CW_STATE is returned as by cw_forward. */
cw_status cw_backward(const cw_attention *attention, const cw_call *call, const cw_gradients *gradients);

/* Sizes at compile time, for static arrays; heads is H. The size of the state is exact (for a compensated state use
 * cw_attention_sizes). The sizes of scratch are upper bounds for any rule, layout and instruction set on one thread,
 * and leave room for later versions. Where o has more heads than the state, use the bound for cw_forward with H + 1
 * heads, and add the bytes of one head's state, rounded up to a multiple of 64, to the bound for cw_decode. */
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
 * x and y have rank 3, [B, T, C], and any strides, including the layout [B, C, T]; each of them is CW_F32, CW_BF16 or
 * CW_F16. The state consists of the last width - 1 inputs of each sequence, oldest first; it is f32, contiguous,
 * [B, width - 1, C], and all zeros before the first token. state_in and state_out are as in cw_call. A ragged batch has
 * B = 1, and sequences and sequence_count as in cw_call; the state is [N, width - 1, C] then. A call computes on the
 * calling thread, and needs no scratch. */
typedef struct cw_conv {
    uint32_t size, abi;
    cw_tensor x;               /* [B, T, C] */
    cw_tensor y;               /* [B, T, C], written; strides must keep its elements apart */
    const float *weight;       /* [C, width], contiguous; the last tap is multiplied by the token itself */
    const float *bias;         /* [C]; null: there is none */
    uint64_t width;            /* taps, 1 to 8 */
    uint32_t activation;       /* CW_ACTIVATION_NONE, CW_ACTIVATION_SILU */
    uint32_t isa;              /* as in cw_attention */
    const float *state_in;     /* the state before the call; null: zeros */
    float *state_out;          /* the state after the call is written here; null: dropped; may be state_in */
    uint64_t state_bytes;      /* of state_in and of state_out, each; at least what cw_conv_sizes says */
    const uint32_t *sequences; /* of a ragged batch, else null */
    uint64_t sequence_count;   /* of a ragged batch, else 0 */
} cw_conv;

#define CW_CONV                                                                                              \
    {CW_HEAD(cw_conv), CW_NO_TENSOR, CW_NO_TENSOR, 0, 0, 0, CW_ACTIVATION_NONE, CW_ISA_DEFAULT, 0, 0, 0, 0, 0}

/* The bytes of the state. This function reads no memory but the structure. */
cw_status cw_conv_sizes(const cw_conv *conv, uint64_t *state_bytes);

/* Computes all tokens. */
cw_status cw_conv_forward(const cw_conv *conv);

/* Computes one token of each sequence, T = 1. state_in and state_out must be the same pointer; the state is updated in
 * place. CW_SHAPE: T is not 1, state_out is not state_in, or the batch is ragged. */
cw_status cw_conv_decode(const cw_conv *conv);

enum { CW_NORM_SILU = 0, CW_NORM_SIGMOID = 1 };

/* The gated RMS norm of the rows of each head, y = x / sqrt(mean(x^2) + eps) weight act(z). act(a) is a sigmoid(a) in
 * Qwen3-Next, Qwen3.5 and OLMo-Hybrid, and sigmoid(a) in Kimi Linear. All tensors are [B, T, H, D] with contiguous
 * rows. y may be x, with the same memory, type and strides. */
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

/* Computes all rows, on the calling thread. */
cw_status cw_gated_norm_forward(const cw_gated_norm *norm);

/* ---- Models: Edifice's FlashLinearAttention and LightningAttention, at inference ---- */

enum { CW_LINEAR = 1, CW_LIGHTNING = 2 };
enum { CW_LAST_TIMESTEP = 1, CW_ALL = 2, CW_MEAN = 3 };

/* The options of a model, with the names that they have in the reference, Edifice. */
typedef struct cw_model_config {
    uint32_t size, abi;
    uint64_t embed_dim;       /* elements of an input row */
    uint64_t hidden_size;     /* elements of an output row */
    uint64_t num_heads;
    uint64_t num_layers;
    uint64_t chunk_size;      /* tokens in a chunk; for CW_LINEAR at most seq_len */
    uint64_t seq_len;         /* tokens that the model was built for; it runs on any number */
    uint32_t feature_map;     /* for CW_LINEAR: CW_ELU, CW_RELU, CW_IDENTITY */
    float feature_eps;        /* of CW_RELU */
    uint32_t output_mode;     /* CW_LAST_TIMESTEP, CW_ALL, CW_MEAN */
    uint32_t final_norm;      /* 1: there is one */
    float layer_norm_eps;
    uint32_t layer_norm_clip; /* 1: the layer norm of Axon 0.8.0, for models that ran on it */
    uint32_t attention;       /* CW_LINEAR, or CW_LIGHTNING: softmax inside a chunk, linear over the chunks before it */
    uint32_t reserved;
} cw_model_config;

/* The reference's defaults: hidden size 256, 4 heads, 4 layers, chunks of 64 tokens, CW_ELU, the last time step as
 * output, a final norm, linear attention. */
#define CW_MODEL_CONFIG(embed_dim) \
    {CW_HEAD(cw_model_config), embed_dim, 256, 4, 4, 64, 64, CW_ELU, 1e-6f, CW_LAST_TIMESTEP, 1, 1e-5f, 0, \
     CW_LINEAR, 0}

/* A model, which is at the beginning of the memory that it was made in. A model never changes: any number of threads
 * may use it at the same time, each with its own call. It must not be moved or copied. */
typedef struct cw_model cw_model;

/* The size of the memory for a model, and its alignment, both in bytes. The memory does not contain the model's
 * parameters. */
cw_status cw_model_memory(const cw_model_config *config, uint64_t *bytes, uint64_t *align);

/* A parameter and its zero-terminated name in the reference: "fla_block_1_attn_qkv.kernel", or for CW_LIGHTNING
 * "lightning_block_1_attn_qkv.kernel". */
typedef struct cw_parameter {
    const char *name;
    cw_tensor tensor; /* contiguous; kernels have rank 2, [in, out], all others rank 1 */
} cw_parameter;

/* Makes a model from a table of parameters, which may be in any order, without allocating.
 *
 * The parameters are fla_block_N_attn_norm, _attn_qkv, _attn_out, _ffn_norm, _ffn_up and _ffn_down for each layer N
 * from 1 on (for CW_LIGHTNING lightning_block_N_...), input_projection if embed_dim is not hidden_size, final_norm if
 * there is one, and head, which is optional. Norms have .gamma and .beta; all other parameters have .kernel and .bias.
 *
 * The model borrows `memory` and the data of the tensors (which may be in flash) until it is used for the last time. It
 * does not borrow `config`, the table or the names. There is nothing to free. If the function returns an error, it has
 * written nothing.
 *
 * isa is as in cw_attention; threads is the most that a call uses, at least 1. CW_PARAMETER: a parameter is missing,
 * misshapen, given twice or unexpected. CW_SHAPE: a parameter is not contiguous. */
cw_status cw_model_init(const cw_model_config *config, const cw_parameter *parameters, uint64_t count, uint32_t isa,
                        uint32_t threads, void *memory, uint64_t memory_bytes, const cw_model **model);

/* The sizes of a model's tensors and memory, for B = batch and T = len. */
typedef struct cw_model_sizes {
    uint32_t size, abi;
    uint64_t embed_dim;             /* elements of a row of the input */
    uint64_t hidden_size;           /* elements of a row of the output */
    uint64_t head_size;             /* elements of a row of logits; 0: there is no head */
    uint64_t output_bytes;          /* for cw_model_forward */
    uint64_t state_bytes;           /* for cw_model_step */
    uint64_t forward_scratch_bytes;
    uint64_t step_scratch_bytes;
    uint64_t head_scratch_bytes;    /* for cw_model_head on all rows of the output of cw_model_forward */
    uint64_t align;                 /* of state and scratch, in bytes; 64 is faster */
} cw_model_sizes;

#define CW_MODEL_SIZES {CW_HEAD(cw_model_sizes), 0, 0, 0, 0, 0, 0, 0, 0, 0}

cw_status cw_model_sizes_of(const cw_model *model, uint64_t batch, uint64_t len, cw_model_sizes *sizes);

/* The tensors and the memory that a model computes on. All tensors are f32, contiguous, row by row. Sizes in bytes may
 * be larger than required. */
typedef struct cw_model_call {
    uint32_t size, abi;
    uint64_t batch, len;
    const float *input; /* [B, T, embed_dim] */
    uint64_t input_bytes;
    float *output;
    uint64_t output_bytes;
    float *state;       /* for cw_model_step: zeros before the first step; a copy by memcpy is a snapshot */
    uint64_t state_bytes;
    void *scratch;      /* as in cw_call */
    uint64_t scratch_bytes;
} cw_model_call;

#define CW_MODEL_CALL {CW_HEAD(cw_model_call), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Computes all tokens at once. output is [B, hidden_size], or [B, T, hidden_size] for CW_ALL. state is not used.
 * CW_ZERO: T is 0, and output is one row for each sequence. */
cw_status cw_model_forward(const cw_model *model, const cw_model_call *call);

/* Computes the next time step of each sequence; len is 1. input is [B, embed_dim]. output is [B, hidden_size]: what
 * cw_model_forward returns for the sequence so far (for CW_ALL: its last row). state is read and replaced. CW_STATE:
 * the state was not made by this model. */
cw_status cw_model_step(const cw_model *model, const cw_model_call *call);

/* Applies the head to batch x len rows of an output. input is [B, T, hidden_size], output is [B, T, head_size].
 * CW_PARAMETER: there is no head. */
cw_status cw_model_head(const cw_model *model, const cw_model_call *call);

/* ---- Models from files: in builds with the feature `files` ---- */

typedef struct cw_model_file {
    uint32_t size, abi;
    const void *bytes;      /* a complete safetensors file */
    uint64_t bytes_len;
    const char *json;       /* options as JSON, which take precedence over those in the file; may be null */
    uint64_t json_len;
    uint32_t isa;           /* as for cw_model_init */
    uint32_t threads;       /* as for cw_model_init */
    char *message;          /* explains errors of the file, truncated to fit and zero-terminated; may be null */
    uint64_t message_bytes; /* the size of message */
} cw_model_file;

#define CW_MODEL_FILE {CW_HEAD(cw_model_file), 0, 0, 0, 0, CW_ISA_DEFAULT, 1, 0, 0}

/* These functions allocate memory to parse a header, and free it before they return. They return the same errors as
 * cw_model_init, and also CW_FILE, CW_OPTION and, with a path, CW_IO. On an error, only message is written. */

/* The configuration that results from a file and the options in json. Use it for cw_model_memory. */
cw_status cw_model_file_config(const cw_model_file *file, cw_model_config *config);

/* Makes a model from a file in memory. The model borrows `memory` and `bytes` until it is used for the last time, and
 * nothing else. CW_MISALIGNED: a parameter is not aligned to its type (align bytes to 8), or this machine is
 * big-endian. */
cw_status cw_model_load(const cw_model_file *file, void *memory, uint64_t memory_bytes, const cw_model **model);

/* Reads the file at path (zero-terminated, UTF-8) and makes a model from it, whatever its alignment. bytes must be
 * null. The model borrows nothing: it has memory of its own, which this function allocates and cw_model_close frees. */
cw_status cw_model_open(const char *path, const cw_model_file *file, const cw_model **model);

/* Frees a model that cw_model_open has made, after all threads have stopped using it; null is allowed. CW_MODEL: the
 * model was made by another function. */
cw_status cw_model_close(const cw_model *model);

#ifdef __cplusplus
}
#endif

#endif
