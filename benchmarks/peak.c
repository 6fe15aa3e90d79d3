// As many multiply-adds as the machine can do, and nothing else: no memory is touched. Compiled where it is measured.
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
// Enough chains that none waits for itself: two units, four or five cycles each. They fit into 16 registers.
#define CHAINS 12

typedef float vector __attribute__((vector_size(BYTES)));

int multiply_adds_a_round(void) { return CHAINS * BYTES / sizeof(float); }

float run(long rounds, float a, float b) {
    vector x[CHAINS];
    for (int i = 0; i < CHAINS; ++i) x[i] = (vector){0} + b;
    for (long round = 0; round < rounds; ++round)
        for (int i = 0; i < CHAINS; ++i) x[i] = x[i] * a + b;
    float sum = 0;
    for (int i = 0; i < CHAINS; ++i) sum += x[i][0];
    return sum;
}
