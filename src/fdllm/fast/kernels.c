/* What a layer does between its matrix products, in few passes. fdllm/fast/compiler.py compiles
   this, once a type of weights; fdllm/fast/kernels.py calls it.
   Threads share no sum, so their number changes no result; nor does the processor, as sums are taken
   in one order whatever its vectors hold. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* The level of processors; nothing for the one that compiled it. */
const char built_for[] = BUILT_FOR;

#ifdef BFLOAT16
typedef uint16_t element;

static inline float get(element x) {
  const uint32_t bits = (uint32_t)x << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* To the nearest, ties to even, as torch rounds. */
static inline element put(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (element)(x == x ? rounded : 0x7fc0);
}
#else
typedef float element;
#define get(x) (x)
#define put(x) (x)
#endif

typedef struct {
  int64_t columns, hidden, inner;
  float least, root;
  element *normed, *gated; /* [columns, hidden], [columns, inner] */
} buffers;

typedef struct {
  int64_t rows, width, kv_heads, group, dim;
  const float *factors;   /* [rows, width, dim / 2, 2] */
  float *query;           /* [rows, kv_heads, tiles, dim, LANES] */
  element *keys, *values; /* where the first layer's begin */
  int64_t layer_step, row_step, head_step;
  const int64_t *cache_rows, *positions, *extents; /* [rows], [rows, width], [rows] */
  element *kept; /* [2, layers, cache rows, kv_heads, width, dim], or none */
  int64_t kept_step, num_cache_rows; /* from kept keys to kept values */
} window;

/* Queries that attention takes together, side by side. */
#define LANES 16
#define VECTORS 2
typedef float vector __attribute__((vector_size(4 * LANES / VECTORS), aligned(4), may_alias));
#define KEYS 64
#define MOST_DIM 256
/* Multiplications of attention, and numbers of a pass, from which a second thread pays. */
#define WORTH_A_TEAM (1 << 18)
#define NUMBERS_FOR_A_TEAM (1 << 14)
static inline int64_t tiles(const window *at) { return (at->width * at->group + LANES - 1) / LANES; }

/* exp by 2^whole * e^rest, |rest| <= log(2) / 2; the polynomial is that of Cephes' expf, whose
   error is below two units in the last place. */
static inline float exponential(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float whole = rintf(x * 1.44269504088896341f);
  const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float sum = 1.9875691500e-4f;
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = (sum * rest) * rest + rest + 1.0f;
  const uint32_t bits = (uint32_t)((int32_t)whole + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return sum * power;
}

#define INLINED static inline __attribute__((always_inline))

/* A term of each number, summed: each to one of LANES parts, and these by halves. */
INLINED float sum(float (*term)(float, float), const element *x, int64_t size, float with) {
  float parts[LANES] = {0};
  const int64_t whole = size - size % LANES;
  for (int64_t i = 0; i < whole; i += LANES)
#pragma omp simd
    for (int64_t lane = 0; lane < LANES; lane++) parts[lane] += term(get(x[i + lane]), with);
  for (int64_t i = 0; i < size % LANES; i++) parts[i] += term(get(x[whole + i]), with);
  for (int64_t half = LANES / 2; half; half /= 2)
    for (int64_t i = 0; i < half; i++) parts[i] += parts[i + half];
  return parts[0];
}

INLINED float square(float x, float unused) { return (void)unused, x * x; }

/* Of a logit; x - x is 0, or NaN where x is NaN or infinite. */
INLINED float weight(float x, float highest) { return exponential(x - highest) + (x - x); }

/* Root-mean-square norm: x * root / sqrt(sum(x^2) + least), times the scale where there is one. */
void norm(const element *restrict x, const element *restrict scale, const buffers *at) {
  const int64_t size = at->hidden;
#pragma omp parallel for schedule(static) if (at->columns * size > NUMBERS_FOR_A_TEAM)
  for (int64_t column = 0; column < at->columns; column++) {
    const element *restrict from = x + column * size;
    element *restrict to = at->normed + column * size;
    const float factor = at->root / sqrtf(sum(square, from, size, 0) + at->least);
    for (int64_t i = 0; i < size; i++) to[i] = put(get(from[i]) * factor);
    for (int64_t i = 0; scale && i < size; i++) to[i] = put(get(to[i]) * get(scale[i]));
  }
}

/* SwiGLU's silu(gate) * up; both [columns, 2 * inner], the gates first. */
void gate(const element *restrict both, const buffers *at) {
  const int64_t size = at->inner;
#pragma omp parallel for schedule(static) if (at->columns * size > NUMBERS_FOR_A_TEAM)
  for (int64_t column = 0; column < at->columns; column++) {
    const element *restrict left = both + column * 2 * size;
    const element *restrict right = left + size;
    element *restrict to = at->gated + column * size;
    for (int64_t i = 0; i < size; i++) {
      const float value = get(left[i]);
      to[i] = put(get(put(value / (1.0f + exponential(-value)))) * get(right[i]));
    }
  }
}

/* Rotary embedding: pairs of neighbours as complex numbers, times the factors. Two sums, since GCC 12
   fuses a difference and a sum with their products even where it is told not to. */
static inline void turn(const element *restrict x, const float *restrict factors,
                        element *restrict to, int64_t dim) {
  for (int64_t i = 0; i < dim; i += 2) {
    const float left = get(x[i]), right = get(x[i + 1]);
    to[i] = put(left * factors[i] + -right * factors[i + 1]);
    to[i + 1] = put(left * factors[i + 1] + right * factors[i]);
  }
}

/* A column's keys, rotated, and values, to their position in the cache; a window that keeps what
   stands there copies it first. */
static inline void store(const element *x, const window *at, int64_t layer, int64_t row,
                         int64_t column) {
  const int64_t one = row * at->width + column, dim = at->dim;
  const int64_t to =
      layer * at->layer_step + at->cache_rows[row] * at->row_step + at->positions[one] * dim;
  for (int64_t head = 0; head < at->kv_heads; head++) {
    element *key = at->keys + to + head * at->head_step;
    element *value = at->values + to + head * at->head_step;
    if (at->kept) {
      const int64_t in_all = (layer * at->num_cache_rows + at->cache_rows[row]) * at->kv_heads + head;
      element *kept = at->kept + (in_all * at->width + column) * dim;
      memcpy(kept, key, (size_t)dim * sizeof(element));
      memcpy(kept + at->kept_step, value, (size_t)dim * sizeof(element));
    }
    turn(x + head * dim, at->factors + one * dim, key, dim);
    memcpy(value, x + (at->kv_heads + head) * dim, (size_t)dim * sizeof(element));
  }
}

/* A column's queries, rotated and scaled, to their lanes. */
static void load_queries(const element *x, const window *at, int64_t row, int64_t column) {
  const int64_t dim = at->dim, group = at->group, size = tiles(at) * LANES;
  const float *factors = at->factors + (row * at->width + column) * dim;
  const float scale = 1.0f / sqrtf((float)dim);
  for (int64_t head = 0; head < at->kv_heads; head++)
    for (int64_t i = 0; i < group; i++, x += dim) {
      const int64_t query = column * group + i;
      float *to = at->query + (row * at->kv_heads + head) * size * dim;
      to += query / LANES * LANES * dim + query % LANES;
      for (int64_t j = 0; j < dim; j += 2) {
        const float left = get(x[j]) * scale, right = get(x[j + 1]) * scale;
        to[j * LANES] = left * factors[j] - right * factors[j + 1];
        to[(j + 1) * LANES] = left * factors[j + 1] + right * factors[j];
      }
    }
}

/* Scores of a few keys, [few, LANES]. */
INLINED void score(const int64_t few, const vector *query, const float *keys, int64_t dim,
                   vector *scores) {
  vector sums[4][VECTORS] = {0};
  for (int64_t i = 0; i < dim; i++)
    for (int64_t j = 0; j < VECTORS; j++)
      for (int64_t n = 0; n < few; n++) sums[n][j] += keys[n * dim + i] * query[i * VECTORS + j];
  memcpy(scores, sums, (size_t)few * sizeof sums[0]);
}

/* Adds weighted values to the sums of a few dimensions, [few, LANES]. */
INLINED void weigh(const int64_t few, const vector *weights, const float *values, int64_t dim,
                   int64_t count, vector *sums) {
  vector part[4][VECTORS];
  memcpy(part, sums, (size_t)few * sizeof part[0]);
  for (int64_t key = 0; key < count; key++)
    for (int64_t j = 0; j < VECTORS; j++)
      for (int64_t n = 0; n < few; n++)
        part[n][j] += values[key * dim + n] * weights[key * VECTORS + j];
  memcpy(sums, part, (size_t)few * sizeof part[0]);
}

/* Numbers as floats: where they lie, or in a copy of count rows. */
#ifdef BFLOAT16
static inline const float *widen(const element *x, float *copy, int64_t count) {
  for (int64_t i = 0; i < count; i++) copy[i] = get(x[i]);
  return copy;
}
#else
#define widen(x, copy, count) (x)
#endif

/* Attention of LANES queries to the keys of their row, KEYS at a time with a running maximum. */
static void attend_tile(const window *at, int64_t layer, int64_t row, int64_t head, int64_t tile,
                   element *out) {
  const int64_t dim = at->dim, queries = at->width * at->group, extent = at->extents[row];
  const int64_t row_at = layer * at->layer_step + at->cache_rows[row] * at->row_step;
  const int64_t from = row_at + head * at->head_step;
  const vector *query =
      (const vector *)(at->query + ((row * at->kv_heads + head) * tiles(at) + tile) * dim * LANES);
  float most[LANES], total[LANES], kept[LANES];
  vector scores[KEYS * VECTORS], sums[MOST_DIM * VECTORS];
#ifdef BFLOAT16
  float copy[KEYS * MOST_DIM];
#endif
  float *score_of = (float *)scores, *sum_of = (float *)sums;
  memset(sums, 0, (size_t)(dim * LANES) * sizeof(float));
  for (int64_t i = 0; i < LANES; i++) most[i] = -INFINITY, total[i] = 0;
  for (int64_t first = 0; first < extent; first += KEYS) {
    const int64_t count = extent - first < KEYS ? extent - first : KEYS;
    const float *keys = widen(at->keys + from + first * dim, copy, count * dim);
    int64_t done = 0;  /* four at a time, so that a query is loaded once for four keys */
    for (; done + 4 <= count; done += 4)
      score(4, query, keys + done * dim, dim, scores + done * VECTORS);
    for (; done < count; done++) score(1, query, keys + done * dim, dim, scores + done * VECTORS);
    memcpy(kept, most, sizeof kept);
    for (int64_t key = 0; key < count; key++)
#pragma omp simd
      for (int64_t i = 0; i < LANES; i++) {
        const float one = score_of[key * LANES + i];
        most[i] = one > most[i] ? one : most[i];
      }
#pragma omp simd
    for (int64_t i = 0; i < LANES; i++) {
      kept[i] = first ? exponential(kept[i] - most[i]) : 0.0f;
      total[i] *= kept[i];
    }
    for (int64_t key = 0; key < count; key++)
#pragma omp simd
      for (int64_t i = 0; i < LANES; i++) {
        const float one = exponential(score_of[key * LANES + i] - most[i]);
        score_of[key * LANES + i] = one;
        total[i] += one;
      }
    if (first)
      for (int64_t j = 0; j < dim; j++)
#pragma omp simd
        for (int64_t i = 0; i < LANES; i++) sum_of[j * LANES + i] *= kept[i];
    const float *values = widen(at->values + from + first * dim, copy, count * dim);
    for (done = 0; done + 4 <= dim; done += 4)
      weigh(4, scores, values + done, dim, count, sums + done * VECTORS);
    for (; done < dim; done++) weigh(1, scores, values + done, dim, count, sums + done * VECTORS);
  }
  for (int64_t i = 0; i < LANES && tile * LANES + i < queries; i++) {
    const int64_t one = row * queries + tile * LANES + i;
    for (int64_t j = 0; j < dim; j++)
      out[(one * at->kv_heads + head) * dim + j] = put(sum_of[j * LANES + i] / total[i]);
  }
}

static void attend_window(const element *heads, const window *at, int64_t layer, element *out) {
  const int64_t queries = at->kv_heads * at->group, columns = at->rows * at->width;
  const int64_t units = at->rows * at->kv_heads * tiles(at);
  int64_t keys = 0;
  for (int64_t i = 0; i < at->rows; i++) keys += at->extents[i];
  const int64_t work = keys * at->kv_heads * tiles(at) * LANES * at->dim;
#pragma omp parallel if (work > WORTH_A_TEAM)
  {
#pragma omp for schedule(static)
    for (int64_t one = 0; one < columns; one++) {
      const element *x = heads + one * (queries + 2 * at->kv_heads) * at->dim;
      load_queries(x, at, one / at->width, one % at->width);
      store(x + queries * at->dim, at, layer, one / at->width, one % at->width);
    }
#pragma omp for schedule(static)
    for (int64_t one = 0; one < units; one++) {
      const int64_t head = one / tiles(at) % at->kv_heads;
      attend_tile(at, layer, one / tiles(at) / at->kv_heads, head, one % tiles(at), out);
    }
  }
}

/* Keys and values to the cache, then attention, one window behind the other. heads: [columns of all
   windows, (kv_heads * group + 2 * kv_heads) * dim], queries first; out: [columns, group * kv_heads
   * dim]. Every query of a row sees the keys of its extent. */
void attend(const element *heads, const window *const *windows, int64_t count, int64_t layer,
            element *out) {
  for (int64_t i = 0; i < count; i++) {
    const window *at = windows[i];
    attend_window(heads, at, layer, out);
    const int64_t read = at->rows * at->width * at->kv_heads * at->dim;
    heads += read * (at->group + 2), out += read * at->group;
  }
}

/* Keys and values alone; skipped: query heads that stand ahead of them in a column. */
void write_kv(const element *heads, const window *at, int64_t layer, int64_t skipped) {
  const int64_t step = (skipped + 2 * at->kv_heads) * at->dim;
  for (int64_t one = 0; one < at->rows * at->width; one++) {
    const element *x = heads + one * step + skipped * at->dim;
    store(x, at, layer, one / at->width, one % at->width);
  }
}

/* The most probable token of each row of logits, the barred one aside, and its probability among
   all of them. A row with a logit that is not finite gives any token, and NaN. */
void choose(const element *logits, int64_t rows, int64_t size, int64_t barred, int64_t *tokens,
            float *confidence) {
  for (int64_t row = 0; row < rows; row++) {
    const element *x = logits + row * size;
    float best = -INFINITY;
#pragma omp simd reduction(max : best)
    for (int64_t i = 0; i < barred; i++) best = get(x[i]) > best ? get(x[i]) : best;
#pragma omp simd reduction(max : best)
    for (int64_t i = barred + 1; i < size; i++) best = get(x[i]) > best ? get(x[i]) : best;
    const float highest = get(x[barred]) > best ? get(x[barred]) : best;
    int64_t at = 0;
    while (at < size && (at == barred || get(x[at]) != best)) at++;
    tokens[row] = at < size ? at : 0;
    confidence[row] = exponential(best - highest) / sum(weight, x, size, highest);
  }
}
