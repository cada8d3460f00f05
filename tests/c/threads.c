/* Calls on several threads have the bits of a call on one thread, also in a process that was forked after
 * such a
 * call, and in another rounding mode than the default. SIGALRM ends a child that waits for ever. */
#define _POSIX_C_SOURCE 200809L
#include <chunkwise.h>
#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { T = 800, H = 6, D = 64, LIMIT = 60 };

static float q[T][H][D], k[T][H][D], v[T][H][D], want[T][H][D], got[T][H][D], g[T][H], beta[T][H];
static int delta; /* whether the rule is the gated delta rule */

static void run(uint32_t threads, void *o) {
    cw_attention linear = CW_ATTENTION(CW_GLOBAL, 1e-6f, 0), gated_delta = CW_DELTA(CW_GATE_SCALAR);
    cw_attention attention = delta ? gated_delta : linear;
    cw_call call = CW_CALL;
    cw_sizes sizes = CW_SIZES;

    if (delta) {
        attention.gate_map = CW_GATE_MAP_SOFTPLUS;
        attention.beta_map = CW_BETA_SIGMOID;
        attention.qk_norm = 1;
        call.g = cw_bthd(g, CW_F32, 1, T, H, 1);
        call.beta = cw_bthd(beta, CW_F32, 1, T, H, 1);
    }

    attention.threads = threads;
    call.q = cw_bthd(q, CW_F32, 1, T, H, D);
    call.k = cw_bthd(k, CW_F32, 1, T, H, D);
    call.v = cw_bthd(v, CW_F32, 1, T, H, D);
    call.o = cw_bthd(o, CW_F32, 1, T, H, D);
    if (cw_attention_sizes(&attention, &call, &sizes)) exit(1);
    call.scratch_bytes = sizes.forward_scratch_bytes;
    call.scratch = malloc((size_t)call.scratch_bytes);
    cw_status status = cw_forward(&attention, &call);
    free(call.scratch);
    if (status) fprintf(stderr, "threads: %s\n", cw_status_string(status)), exit(1);
}

static int same(void) {
    memset(got, 0, sizeof got);
    run(3, got);
    return memcmp(got, want, sizeof got) == 0;
}

static int in_a_child(int (*check)(void)) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        alarm(LIMIT);
        _exit(!check());
    }
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int same_in_a_child(void) { return same() && in_a_child(same) && same(); }

static int failed(const char *what) {
    fprintf(stderr, "threads: other bits, or none, %s\n", what);
    return 1;
}

static void fill(float *x, int len) {
    static uint32_t seed = 1;

    for (int i = 0; i < len; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / (float)(1 << 23) - 1.0f;
    }
}

static int check(void) {
    run(1, want);
    if (!same()) return failed("on three threads");
    if (!in_a_child(same_in_a_child)) return failed("in a child");
    if (!same()) return failed("after a child");
    if (fesetround(FE_TOWARDZERO)) return failed("for the mode can't be set");
    if (same()) return failed("for rounding plays no part");
    run(1, want);
    if (!same()) return failed("where the caller rounds towards zero");
    if (!in_a_child(same_in_a_child)) return failed("in a child that rounds towards zero");
    if (fegetround() != FE_TOWARDZERO) return failed("and the caller's mode was changed");
    return fesetround(FE_TONEAREST);
}

int main(void) {
    fill(&q[0][0][0], T * H * D);
    fill(&k[0][0][0], T * H * D);
    fill(&v[0][0][0], T * H * D);
    fill(&g[0][0], T * H);
    fill(&beta[0][0], T * H);
    for (delta = 0; delta < 2; delta++)
        if (check()) return 1;
    puts("threads: the same bits in forked processes, and in the caller's rounding mode");
    return 0;
}
