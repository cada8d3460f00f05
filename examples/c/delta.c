/* A layer with the gated delta rule, as in Qwen3-Next and Qwen3.5: two heads of v share a head of q and k, and gates
 * and betas are passed as the layer computes them, before their maps. The program computes a prompt, a draft of which
 * some tokens are accepted, and then single tokens, and compares the outputs with the definition. */
#include <chunkwise.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PROMPT = 37, DRAFT = 8, ACCEPTED = 5, T = 50, HK = 2, H = 4, K = 32, V = 48 };

static float q[T][HK][K], k[T][HK][K], v[T][H][V], o[T][H][V], gate[T][H], beta[T][H], a_log[H], dt_bias[H];

static float noise(void) {
    static uint32_t x = 1;
    x = x * 1664525u + 1013904223u;
    return (float)(x >> 8) / (float)(1 << 23) - 1.0f;
}

static void fill(float *x, int len) {
    for (int i = 0; i < len; i++) x[i] = noise();
}

static void check(const char *what, cw_status status) {
    if (status == CW_OK) return;
    fprintf(stderr, "%s: %s\n", what, cw_status_string(status));
    exit(1);
}

/* Computes some tokens of the layer on a carried state. If only some of them are accepted, they are verified as a
 * draft, and only the first `accepted` tokens are committed to the state. */
static void layer(int first, int count, int accepted, float *state, uint64_t state_bytes) {
    cw_attention attention = CW_DELTA(CW_GATE_SCALAR);
    cw_call call = CW_CALL;
    cw_sizes sizes = CW_SIZES;
    int decode = count == 1, draft = accepted < count;

    attention.gate_map = CW_GATE_MAP_SOFTPLUS; /* decays are exp(-exp(A_log) softplus(gate + dt_bias)) */
    attention.beta_map = CW_BETA_SIGMOID;
    attention.qk_norm = 1;
    attention.scale = 1.0f / sqrtf(K);
    call.q = cw_bthd(q[first], CW_F32, 1, (uint64_t)count, HK, K);
    call.k = cw_bthd(k[first], CW_F32, 1, (uint64_t)count, HK, K);
    call.v = cw_bthd(v[first], CW_F32, 1, (uint64_t)count, H, V);
    call.o = cw_bthd(o[first], CW_F32, 1, (uint64_t)count, H, V);
    call.g = cw_bthd(gate[first], CW_F32, 1, (uint64_t)count, H, 1);
    call.beta = cw_bthd(beta[first], CW_F32, 1, (uint64_t)count, H, 1);
    call.a_log = a_log;
    call.dt_bias = dt_bias;
    check("sizes", cw_attention_sizes(&attention, &call, &sizes));
    if (sizes.state_bytes != state_bytes) check("the state's size", CW_TOO_SMALL);
    call.state_in = call.state_out = state;
    call.state_bytes = state_bytes;
    call.scratch_bytes = decode ? sizes.decode_scratch_bytes : sizes.forward_scratch_bytes;
    call.scratch = malloc((size_t)call.scratch_bytes);
    if (!call.scratch) exit(1);
    if (draft) {
        float *record = malloc((size_t)sizes.record_bytes);
        uint32_t tokens = (uint32_t)accepted;
        if (!record) exit(1);
        call.state_out = NULL;
        check("verify", cw_verify(&attention, &call, record, sizes.record_bytes));
        call.state_out = state;
        check("commit", cw_commit(&attention, &call, record, sizes.record_bytes, &tokens));
        free(record);
    } else {
        check("layer", decode ? cw_decode(&attention, &call) : cw_forward(&attention, &call));
    }
    free(call.scratch);
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* 1 divided by the length of a row. */
static double inverse_length(const float *row) {
    double sum = 1e-6;
    for (int i = 0; i < K; i++) sum += (double)row[i] * row[i];
    return 1 / sqrt(sum);
}

/* The largest error of a head's outputs, compared with the recurrence in double; S becomes the last state. */
static double worst_of(int h, double (*S)[V]) {
    double worst = 0;
    int shared = h / (H / HK);

    for (int t = 0; t < T; t++) {
        double length_q = inverse_length(q[t][shared]), length_k = inverse_length(k[t][shared]);
        double decay = exp(-exp(a_log[h]) * log1p(exp((double)gate[t][h] + dt_bias[h])));
        for (int j = 0; j < V; j++) {
            double found = 0, sum = 0;
            for (int i = 0; i < K; i++) found += decay * S[i][j] * k[t][shared][i] * length_k;
            double u = sigmoid(beta[t][h]) * (v[t][h][j] - found);
            for (int i = 0; i < K; i++) {
                S[i][j] = decay * S[i][j] + k[t][shared][i] * length_k * u;
                sum += S[i][j] * q[t][shared][i] * length_q;
            }
            worst = fmax(worst, fabs(sum / sqrt(K) - o[t][h][j]));
        }
    }
    return worst;
}

int main(void) {
    static float state[H][K][V], value_major[H][V][K];
    static double S[H][K][V];
    double worst = 0, worst_state = 0;

    if (cw_abi_version() != CW_ABI_VERSION) return 1;
    fill(&q[0][0][0], T * HK * K);
    fill(&k[0][0][0], T * HK * K);
    fill(&v[0][0][0], T * H * V);
    fill(&gate[0][0], T * H);
    fill(&beta[0][0], T * H);
    fill(a_log, H);
    fill(dt_bias, H);
    layer(0, PROMPT, PROMPT, &state[0][0][0], sizeof state);
    layer(PROMPT, DRAFT, ACCEPTED, &state[0][0][0], sizeof state);
    for (int t = PROMPT + ACCEPTED; t < T; t++) layer(t, 1, 1, &state[0][0][0], sizeof state);
    for (int h = 0; h < H; h++) worst = fmax(worst, worst_of(h, S[h]));

    /* The state in the layout of ONNX Runtime, ggml and vLLM. */
    check("state", cw_state_to_value_major(K, V, &state[0][0][0], &value_major[0][0][0], sizeof state));
    for (int h = 0; h < H; h++)
        for (int i = 0; i < K; i++)
            for (int j = 0; j < V; j++) worst_state = fmax(worst_state, fabs(S[h][i][j] - value_major[h][j][i]));
    printf("gated delta rule: off by %.1e at most, the state by %.1e\n", worst, worst_state);
    return !(worst < 1e-6 && worst_state < 1e-6);
}
