/* model.Decoder.prefill and decode in fp32, for one core of a CPU. A small model's step is some
   hundred small operations, and torch takes longer to start most of them than they take; here they
   are one. The same numbers but for rounding (tests/test_decode.py). machine.packed has it compiled
   for a width of D and H heads, and uses it where it computes what model.Decoder does.

   Tokens go through all layers, ROWS of them together: in each layer their keys and values join
   those of their rows' pasts, and they attend to them up to themselves. Shapes have model.py's
   names: d = D / H, S positions; K and N are a product's. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16 /* floats in a register */
#define TILE 8   /* rows of a product at a time: 2 · TILE registers of sums */
#else
#define LANES 8
#define TILE 4
#endif
#define PANEL (2 * LANES)
#define PAD(n) (((n) + 31) / 32 * 32) /* the length of a row of n numbers in a buffer */
#define ROWS 32
#define d (D / H)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

const int panel = PANEL, padded_head = PAD(d);

/* e^x as 2^n e^r, |r| ≤ log(2) / 2, by its Taylor polynomial: to 1e-7 of itself from −87 to 87. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    x = x > 87.0f ? 87.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 · 2^23: its last bits are n */
    float n = shifted - 12582912.0f, scale;
    float r = x - n * 0.693145752f - n * 1.42860677e-6f; /* log(2); n times its first half is exact */
    float e = 1.0f / 5040;
    e = e * r + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 1.0f / 2;
    e = e * r + 1;
    e = e * r + 1;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (int32_t)((uint32_t)bits << 23) + (127 << 23);
    memcpy(&scale, &bits, 4);
    return e * scale;
}

/* GPT-2's: x (1 + tanh u) / 2 = x / (1 + e^−2u), u = √(2/π) (x + 0.044715 x³). */
static inline float gelu(float x)
{
    return x / (1 + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
}

static void layer_norm(const float *x, const float *weight, const float *bias, float *out)
{
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < D; j++)
        sum += x[j];
    float mean = sum / D;
#pragma omp simd reduction(+ : squares)
    for (int j = 0; j < D; j++)
        squares += (x[j] - mean) * (x[j] - mean);
    float scale = 1 / sqrtf(squares / D + 1e-5f);
#pragma omp simd
    for (int j = 0; j < D; j++)
        out[j] = (x[j] - mean) * scale * weight[j] + bias[j];
}

/* out = x · wᵀ + bias, or added to it. w lies in panels of PANEL of its N rows, which the processor
   reads one column after another: N/PANEL × K × PANEL. Rows beyond the last are zeros. */
static inline __attribute__((always_inline)) void
product(const float *x, int rows, int K, const float *w, const float *bias, int N, int add,
        float *out)
{
    for (int j = 0; j < N; j += PANEL, w += PANEL * K)
        for (int i = 0; i < rows; i += TILE) {
            const float *from = x + i * PAD(K);
            vec left[TILE], right[TILE];
            for (int r = 0; r < TILE; r++) {
                left[r] = *(const vec *)(bias + j);
                right[r] = *(const vec *)(bias + j + LANES);
            }
#pragma GCC unroll 4
            for (int k = 0; k < K; k++) {
                vec a = *(const vec *)(w + k * PANEL), b = *(const vec *)(w + k * PANEL + LANES);
                for (int r = 0; r < TILE; r++) {
                    left[r] += from[r * PAD(K) + k] * a;
                    right[r] += from[r * PAD(K) + k] * b;
                }
            }
            for (int r = 0; r < TILE; r++) {
                vec *to = (vec *)(out + (i + r) * PAD(N) + j);
                if (add) {
                    left[r] += to[0];
                    right[r] += to[1];
                }
                to[0] = left[r];
                to[1] = right[r];
            }
        }
}

/* One head's attention of a query to S positions; keys lie S/LANES × d × LANES, values S × PAD(d). */
static void attend(const float *q, const float *keys, const float *values, int S, float *out)
{
    float p[S + LANES], most = -INFINITY, total = 0;
    for (int s = 0; s < S; s += LANES) {
        vec even = {0}, odd = {0};
        for (int j = 0; j < d; j++)
            if (j % 2)
                odd += q[j] * *(const vec *)(keys + s * d + j * LANES);
            else
                even += q[j] * *(const vec *)(keys + s * d + j * LANES);
        *(vec *)(p + s) = (even + odd) * (1 / sqrtf(d));
    }
#pragma omp simd reduction(max : most)
    for (int s = 0; s < S; s++)
        most = p[s] > most ? p[s] : most;
#pragma omp simd reduction(+ : total)
    for (int s = 0; s < S; s++)
        total += p[s] = exponential(p[s] - most);
    vec sums[PAD(d) / LANES] = {0};
    for (int s = 0; s < S; s++)
        for (int j = 0; j < PAD(d) / LANES; j++)
            sums[j] += p[s] * ((const vec *)(values + s * PAD(d)))[j];
    for (int j = 0; j < d; j++)
        out[j] = sums[j / LANES][j % LANES] / total;
}

/* x, rows×D: token and position embeddings of tokens that stand at positions `at` of the rows row_of
   of the past, those of one row in their order; then their final hidden states. past: rows × layers
   × H × (keys, values) × room × PAD(d). w: the parameters of the layers and the final LayerNorm in
   their order, matrices in panels, biases followed by zeros. Returns 1 where memory is short. */
int decode(int rows, int layers, int room, const int64_t *row_of, const int64_t *at,
           const float *const *w, float *past, float *x)
{
    float *stream = calloc(ROWS * (2 * PAD(D) + PAD(3 * D) + PAD(4 * D)), sizeof(float));
    float *h = stream + ROWS * PAD(D), *qkv = h + ROWS * PAD(D), *wide = qkv + ROWS * PAD(3 * D);
    if (!stream)
        return 1;
    for (int first = 0; first < rows; first += ROWS, x += ROWS * D, row_of += ROWS, at += ROWS) {
        int n = rows - first < ROWS ? rows - first : ROWS, tiles = (n + TILE - 1) / TILE * TILE;
        const float *const *l = w;
        for (int i = 0; i < n; i++)
            memcpy(stream + i * PAD(D), x + i * D, D * sizeof(float));
        for (int layer = 0; layer < layers; layer++, l += 12) {
            for (int i = 0; i < n; i++)
                layer_norm(stream + i * PAD(D), l[0], l[1], h + i * PAD(D));
            product(h, tiles, D, l[2], l[3], 3 * D, 0, qkv);
            for (int i = 0; i < n; i++)
                for (int head = 0; head < H; head++) {
                    const float *q = qkv + i * PAD(3 * D) + head * d, *k = q + D, *v = k + D;
                    long s = at[i], size = (long)room * PAD(d);
                    float *keys = past + ((row_of[i] * layers + layer) * H + head) * 2 * size;
                    float *values = keys + size;
                    for (int j = 0; j < d; j++) {
                        keys[(s / LANES * d + j) * LANES + s % LANES] = k[j];
                        values[s * PAD(d) + j] = v[j];
                    }
                    attend(q, keys, values, s + 1, h + i * PAD(D) + head * d);
                }
            product(h, tiles, D, l[4], l[5], D, 1, stream);
            for (int i = 0; i < n; i++)
                layer_norm(stream + i * PAD(D), l[6], l[7], h + i * PAD(D));
            product(h, tiles, D, l[8], l[9], 4 * D, 0, wide);
#pragma omp simd
            for (int i = 0; i < n * PAD(4 * D); i++)
                wide[i] = gelu(wide[i]);
            product(wide, tiles, 4 * D, l[10], l[11], D, 1, stream);
        }
        for (int i = 0; i < n; i++)
            layer_norm(stream + i * PAD(D), l[0], l[1], x + i * D);
    }
    free(stream);
    return 0;
}
