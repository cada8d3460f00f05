/* Attention on arrays without allocations: sizes are known at compile time, and the outputs are compared with the
 * definition. */
#include <chunkwise.h>
#include <math.h>
#include <stdio.h>

enum { B = 2, T = 100, H = 4, K = 32, V = 48 };

static float q[B][T][H][K], k[B][T][H][K], v[B][T][H][V], o[B][T][H][V];
static float state[CW_STATE_BYTES(B, H, K, V, CW_GLOBAL) / sizeof(float)];
static float scratch[CW_FORWARD_SCRATCH_BYTES_MAX(H, K, V) / sizeof(float)];

static int failed(const char *what, cw_status status) {
    if (status != CW_OK) fprintf(stderr, "%s: %s\n", what, cw_status_string(status));
    return status != CW_OK;
}

static float noise(void) {
    static uint32_t x = 1;
    x = x * 1664525u + 1013904223u;
    return (float)(x >> 8) / (float)(1 << 23) - 1.0f;
}

static double elu(double x) { return x > 0 ? 1 + x : exp(x); }

/* The largest error of a head, compared with the recurrence in double. */
static double worst_of(int b, int h, double eps) {
    static double S[K][V], z[K];
    double worst = 0;
    for (int i = 0; i < K; i++) {
        z[i] = 0;
        for (int j = 0; j < V; j++) S[i][j] = 0;
    }
    for (int t = 0; t < T; t++) {
        double norm = eps, sum[V] = {0};
        for (int i = 0; i < K; i++) {
            double a = elu(q[b][t][h][i]), c = elu(k[b][t][h][i]);
            z[i] += c;
            norm += a * z[i];
            for (int j = 0; j < V; j++) {
                S[i][j] += c * v[b][t][h][j];
                sum[j] += a * S[i][j];
            }
        }
        for (int j = 0; j < V; j++) worst = fmax(worst, fabs(sum[j] / norm - o[b][t][h][j]));
    }
    return worst;
}

int main(void) {
    cw_attention attention = CW_ATTENTION(CW_GLOBAL, 1e-6f, 0);
    cw_call call = CW_CALL;
    cw_sizes sizes = CW_SIZES;
    double worst = 0;
    uint32_t isa = 0;

    if (cw_abi_version() != CW_ABI_VERSION) return 1;
    for (int i = 0; i < B * T * H * K; i++) (&q[0][0][0][0])[i] = noise(), (&k[0][0][0][0])[i] = noise();
    for (int i = 0; i < B * T * H * V; i++) (&v[0][0][0][0])[i] = noise();
    call.q = cw_bthd(q, CW_F32, B, T, H, K);
    call.k = cw_bthd(k, CW_F32, B, T, H, K);
    call.v = cw_bthd(v, CW_F32, B, T, H, V);
    call.o = cw_bthd(o, CW_F32, B, T, H, V);
    if (failed("sizes", cw_attention_sizes(&attention, &call, &sizes))) return 1;
    if (sizes.state_bytes != sizeof state || sizes.forward_scratch_bytes > sizeof scratch ||
        sizes.decode_scratch_bytes > CW_DECODE_SCRATCH_BYTES_MAX(K, V))
        return fprintf(stderr, "the header's sizes are wrong\n"), 1;

    /* The call begins at zero and writes the last state, on which another call could continue. */
    call.state_out = state;
    call.state_bytes = sizeof state;
    call.scratch = scratch;
    call.scratch_bytes = sizeof scratch;
    if (failed("forward", cw_forward(&attention, &call))) return 1;
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++) worst = fmax(worst, worst_of(b, h, 1e-6));

    /* The same call in two ranges of heads, as for a pool of threads. */
    float first = o[0][0][0][0], last = o[B - 1][T - 1][H - 1][V - 1];
    o[0][0][0][0] = o[B - 1][T - 1][H - 1][V - 1] = 0;
    if (failed("range", cw_forward_range(&attention, &call, 0, 3))) return 1;
    if (failed("range", cw_forward_range(&attention, &call, 3, B * H - 3))) return 1;
    int same = o[0][0][0][0] == first && o[B - 1][T - 1][H - 1][V - 1] == last;

    if (failed("isa", cw_isa_default(&isa))) return 1;
    printf("chunkwise %s on %s: off by %.1e at most, ranges %s\n", cw_version(), cw_isa_name(isa), worst,
           same ? "the same" : "DIFFERENT");
    return !(worst < 1e-5 && same);
}
