/* Attention on a Cortex-M7 without an operating system, an allocator or a C library. A prompt is computed by one
 * forward, then a stream of single tokens; the outputs must have the bits of one forward over all tokens. The program
 * prints and exits by semihosting. */
#include <chunkwise.h>

enum { T = 40, PROMPT = 32, H = 2, K = 16, V = 16 };

static float q[T][H][K], k[T][H][K], v[T][H][V], whole[T][H][V], pieces[T][H][V];
static float state[CW_STATE_BYTES(1, H, K, V, CW_PER_CHUNK) / 4];
static float scratch[CW_FORWARD_SCRATCH_BYTES_MAX(H, K, V) / 4];

static int semihost(int operation, const void *argument) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void say(const char *text) { semihost(4, text); }

static void leave(int good) {
    /* This is SYS_EXIT_EXTENDED with ADP_Stopped_ApplicationExit and a status. */
    uint32_t block[2] = {0x20026, good ? 0 : 1};
    say(good ? "pass\n" : "FAIL\n");
    semihost(0x20, block);
    for (;;) {
    }
}

static void check(cw_status status) {
    if (status == CW_OK) return;
    say(cw_status_string(status));
    leave(0);
}

static cw_call call_of(int first, int len, float *o) {
    cw_call call = CW_CALL;
    call.q = cw_bthd(q[first], CW_F32, 1, (uint64_t)len, H, K);
    call.k = cw_bthd(k[first], CW_F32, 1, (uint64_t)len, H, K);
    call.v = cw_bthd(v[first], CW_F32, 1, (uint64_t)len, H, V);
    call.o = cw_bthd(o, CW_F32, 1, (uint64_t)len, H, V);
    call.scratch = scratch;
    call.scratch_bytes = sizeof scratch;
    return call;
}

/* This must not be inlined into reset, which could then save floating point registers before they are enabled. */
__attribute__((noinline)) static void run(void) {
    cw_attention attention = CW_ATTENTION(CW_PER_CHUNK, 1e-8f, 16);
    uint32_t x = 1;
    for (int i = 0; i < T * H * K; i++) {
        x = x * 1664525u + 1013904223u;
        (&q[0][0][0])[i] = (float)(x >> 24) / 128 - 1;
        (&k[0][0][0])[i] = (float)(x >> 16 & 255) / 128 - 1;
        (&v[0][0][0])[i] = (float)(x >> 8 & 255) / 128 - 1;
    }

    cw_call call = call_of(0, T, &whole[0][0][0]);
    check(cw_forward(&attention, &call));
    call = call_of(0, PROMPT, &pieces[0][0][0]);
    call.state_out = state;
    call.state_bytes = sizeof state;
    check(cw_forward(&attention, &call));
    for (int t = PROMPT; t < T; t++) {
        call = call_of(t, 1, &pieces[t][0][0]);
        call.state_in = call.state_out = state;
        call.state_bytes = sizeof state;
        check(cw_decode(&attention, &call));
    }

    for (int i = 0; i < T * H * V; i++)
        if ((&whole[0][0][0])[i] != (&pieces[0][0][0])[i]) leave(0);
    /* The outputs would also agree if nothing had been computed, so one of them must not be zero. */
    leave(whole[T - 1][H - 1][V - 1] != 0 && cw_forward(&attention, 0) == CW_NULL);
}

extern uint32_t bss_begin, bss_end, data_begin, data_end, data_source, stack_top;

void reset(void);

void reset(void) {
    /* This enables the floating point unit, before any code uses it. */
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20;
    __asm__ volatile("dsb\nisb");
    for (uint32_t *to = &bss_begin; to < &bss_end; to++) *to = 0;
    for (uint32_t *to = &data_begin, *from = &data_source; to < &data_end;) *to++ = *from++;
    run();
}

static void fault(void) { leave(0); }

__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    void (*entries[3])(void);
} vectors = {&stack_top, {reset, fault, fault}};
