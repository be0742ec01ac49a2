/* 3x3 convolutions, stride 1, zero padding 1, float32, channels last, by Winograd's F(4x4, 3x3).
 *
 * A tile of 4x4 outputs is made of 36 products instead of 144 (Winograd 1980; Lavin and Gray, CVPR 2016): the 6x6 input
 * below it and the filter are transformed, multiplied point by point, summed over input channels (one small matrix
 * product for each of the 36 points), and transformed back. Tiles are worked on in blocks that stay in the cache.
 * Every tile is computed in the same order whatever the threads and the batch, so results do not depend on either.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
enum { LANES = 8, POINTS = 36, ROWS = 6, COLUMNS = 16, LINE = 16 }; /* LINE: floats of a cache line */

static inline v8 load(const float *p) { return *(const v8 *)p; }
static inline void store(float *p, v8 v) { *(v8 *)p = v; }

/* B^T d for six values */
static inline void before(const v8 d[6], v8 out[6]) {
    v8 a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
    out[0] = 4 * d[0] - 5 * d[2] + d[4];
    out[1] = a + b;
    out[2] = a - b;
    out[3] = c + e;
    out[4] = c - e;
    out[5] = 4 * d[1] - 5 * d[3] + d[5];
}

/* A^T m for six values */
static inline void after(const v8 m[6], v8 out[4]) {
    v8 s = m[1] + m[2], d = m[1] - m[2], t = m[3] + m[4], e = m[3] - m[4];
    out[0] = m[0] + s + t;
    out[1] = d + 2 * e;
    out[2] = s + 4 * t;
    out[3] = d + 8 * e + m[5];
}

/* G g for three values */
static inline void weigh(v8 a, v8 b, v8 c, v8 out[6]) {
    v8 even = (a + c) * (1.f / 6), odd = b * (1.f / 6), far = a * (1.f / 24) + c * (1.f / 6), near = b * (1.f / 12);
    out[0] = a * (1.f / 4);
    out[1] = -even - odd;
    out[2] = odd - even;
    out[3] = far + near;
    out[4] = far - near;
    out[5] = c;
}

/* Filters to u[point][output / 16][input][16]. backward: of the convolution that carries gradients to the input,
 * which swaps input and output and turns the filter around. weight: (outer, inner, 3, 3), contiguous. */
static void transform_filters(const float *weight, float *u, int64_t inputs, int64_t outputs, int backward,
                              int threads) {
    #pragma omp parallel for num_threads(threads)
    for (int64_t o = 0; o < outputs; o += LANES)
        for (int64_t i = 0; i < inputs; i++) {
            v8 g[9], rows[3][6], out[6];
            for (int lane = 0; lane < LANES; lane++) {
                const float *w = weight + 9 * (backward ? i * outputs + o + lane : (o + lane) * inputs + i);
                for (int k = 0; k < 9; k++) g[k][lane] = w[backward ? 8 - k : k];
            }
            for (int c = 0; c < 3; c++) weigh(g[c], g[3 + c], g[6 + c], rows[c]);
            float *to = u + (o / COLUMNS * inputs + i) * COLUMNS + o % COLUMNS;
            for (int r = 0; r < 6; r++) {
                weigh(rows[0][r], rows[1][r], rows[2][r], out);
                for (int c = 0; c < 6; c++) store(to + (6 * r + c) * outputs * inputs, out[c]);
            }
        }
}

/* One tile of x (height, width, channels) to v[point * stride + channel]; outside the image is zero. */
static void transform_input(const float *x, float *v, int64_t stride, int64_t top, int64_t left, int64_t height,
                            int64_t width, int64_t channels) {
    for (int64_t c = 0; c < channels; c += LANES) {
        v8 half[6][6], column[6], out[6];
        for (int k = 0; k < 6; k++) {
            for (int r = 0; r < 6; r++) {
                int64_t row = top + r, col = left + k;
                int inside = row >= 0 && row < height && col >= 0 && col < width;
                column[r] = inside ? load(x + (row * width + col) * channels + c) : (v8){0};
            }
            before(column, out);
            for (int r = 0; r < 6; r++) half[r][k] = out[r];
        }
        for (int r = 0; r < 6; r++) {
            before(half[r], out);
            for (int k = 0; k < 6; k++) store(v + (6 * r + k) * stride + c, out[k]);
        }
    }
}

/* The way back: m[point * stride + channel] to a 4x4 tile of y, with the bias of each channel, if there is one. */
static void transform_output(const float *m, const float *bias, float *y, int64_t stride, int64_t width,
                             int64_t channels) {
    for (int64_t c = 0; c < channels; c += LANES) {
        v8 half[4][6], column[6], out[4], shift = bias ? load(bias + c) : (v8){0};
        for (int k = 0; k < 6; k++) {
            for (int r = 0; r < 6; r++) column[r] = load(m + (6 * r + k) * stride + c);
            after(column, out);
            for (int r = 0; r < 4; r++) half[r][k] = out[r];
        }
        for (int r = 0; r < 4; r++) {
            after(half[r], out);
            for (int k = 0; k < 4; k++) store(y + (r * width + k) * channels + c, out[k] + shift);
        }
    }
}

/* Six rows of v (rows, inputs) times a panel u (inputs, 16) to m, whose rows are `stride` apart. */
static inline void multiply(const float *v, const float *u, float *m, int64_t inputs, int64_t stride) {
    v8 sums[ROWS][2];
    for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = (v8){0};
    for (int64_t i = 0; i < inputs; i++) {
        v8 a = load(u + COLUMNS * i), b = load(u + COLUMNS * i + LANES);
        for (int r = 0; r < ROWS; r++) {
            float f = v[r * inputs + i];
            v8 value = {f, f, f, f, f, f, f, f};
            sums[r][0] += value * a;
            sums[r][1] += value * b;
        }
    }
    for (int r = 0; r < ROWS; r++) {
        store(m + r * stride, sums[r][0]);
        store(m + r * stride + LANES, sums[r][1]);
    }
}

/* x (n, height, width, inputs) to y (n, height, width, outputs); height and width multiples of 4, channels of 16.
 * bias: (outputs) or NULL; threads: at most so many. Returns 0, or 1 without memory. */
int convolve(const float *x, const float *weight, const float *bias, float *y, int64_t n, int64_t height, int64_t width,
             int64_t inputs, int64_t outputs, int backward, int threads) {
    int64_t across = width / 4, each = across * (height / 4), tiles = n * each;
    int64_t larger = inputs > outputs ? inputs : outputs;
    int64_t block = larger <= 16 ? 48 : 24, blocks = (tiles + block - 1) / block;
    float *u = aligned_alloc(64, sizeof(float) * POINTS * inputs * outputs);
    int failed = u == NULL;
    if (failed) return 1;
    transform_filters(weight, u, inputs, outputs, backward, threads);
    #pragma omp parallel reduction(| : failed) num_threads(threads)
    {
        /* one line more than a point needs: multiples of a large power of two would share a few sets of the cache */
        int64_t apart = block * inputs + LINE, out_apart = block * outputs + LINE;
        size_t size = sizeof(float) * POINTS * apart;
        float *v = aligned_alloc(64, size), *m = aligned_alloc(64, sizeof(float) * POINTS * out_apart);
        failed = v == NULL || m == NULL;
        if (!failed) memset(v, 0, size); /* the last block's missing rows are multiplied too */
        #pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            if (failed) continue;
            int64_t first = b * block, count = tiles - first < block ? tiles - first : block;
            for (int64_t t = 0; t < count; t++) {
                int64_t image = (first + t) / each, tile = (first + t) % each;
                transform_input(x + image * height * width * inputs, v + t * inputs, apart,
                                4 * (tile / across) - 1, 4 * (tile % across) - 1, height, width, inputs);
            }
            for (int64_t p = 0; p < POINTS; p++)
                for (int64_t o = 0; o < outputs; o += COLUMNS)
                    for (int64_t t = 0; t < count; t += ROWS)
                        multiply(v + p * apart + t * inputs, u + (p * outputs + o) * inputs,
                                 m + p * out_apart + t * outputs + o, inputs, outputs);
            for (int64_t t = 0; t < count; t++) {
                int64_t image = (first + t) / each, tile = (first + t) % each;
                float *corner = y + ((image * height + 4 * (tile / across)) * width + 4 * (tile % across)) * outputs;
                transform_output(m + t * outputs, bias, corner, out_apart, width, outputs);
            }
        }
        free(v);
        free(m);
    }
    free(u);
    return failed;
}
