/* What the whole of a small picture does at once: whole.py, which is the reference. Sums are doubles in both. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { ROWS = 90, COLUMNS = 160, CELLS = ROWS * COLUMNS, WIDE = COLUMNS / 2, SAMPLES = CELLS / 4, BASIS = 5 };

/* Twice as fast where the processor has wider vectors; chosen when the library is loaded. The results are the same. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define WIDE_VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define WIDE_VECTORS
#endif

static const float FINER = 0.15f; /* cells.py */

static float least(float a, float b) { return a < b ? a : b; }
static float most(float a, float b) { return a > b ? a : b; }

/* The rows of whole.py: _basis without the constant, for one row of the picture. */
static inline void basis_of(const float *background, int y, int step, float mean, float *restrict first,
                            float *restrict second, float *restrict third, float *restrict fourth)
{
    const float *above = background + (y > 0 ? y - 1 : 0) * COLUMNS;
    const float *below = background + (y < ROWS - 1 ? y + 1 : ROWS - 1) * COLUMNS;
    float here[COLUMNS + 2];
    memcpy(here + 1, background + y * COLUMNS, COLUMNS * sizeof *here);
    here[0] = here[1];
    here[COLUMNS + 1] = here[COLUMNS];
    for (int n = 0; n < COLUMNS / step; n++) {
        const int x = n * step;
        const float left = here[x], right = here[x + 2];
        first[n] = here[x + 1] - mean;
        second[n] = (right - left) * 0.5f;
        third[n] = (below[x] - above[x]) * 0.5f;
        fourth[n] = left + right + above[x] + below[x] - 4 * here[x + 1];
    }
}

/* whole.py: _least_squares. `basis` (4, SAMPLES), `target` and `limits` are of every second cell of every second row. With
 * `found`, once more without what that does not explain. Returns whether there is an answer. */
WIDE_VECTORS static int least_squares(const float *restrict basis, const float *restrict target,
                                      const float *restrict limits, const float *found, float out[BASIS])
{
    enum { LANES = 4, SUMS = BASIS * (BASIS + 1) / 2 + BASIS };
    double sums[SUMS] = {0};
    for (int start = 0; start < SAMPLES; start += WIDE) {
        double v[BASIS + 1][WIDE], scaled[BASIS][WIDE], weight[WIDE];
        for (int n = 0; n < WIDE; n++) {
            float is = target[start + n], limit = limits[start + n];
            weight[n] = least(1, limit / most(fabsf(is), 0.1f));
        }
        for (int n = 0; found != NULL && n < WIDE; n++) {
            const float *b = basis + start + n;
            float is = found[0] * b[0] + found[1] * b[SAMPLES] + found[2] * b[2 * SAMPLES] + found[3] * b[3 * SAMPLES] +
                       found[4];
            weight[n] = fabsf(target[start + n] - is) < 2 * limits[start + n] ? weight[n] : 0;
        }
        for (int i = 0; i <= BASIS; i++)
            for (int n = 0; n < WIDE; n++)
                v[i][n] = i == BASIS - 1 ? 1 : i == BASIS ? target[start + n] : basis[i * SAMPLES + start + n];
        for (int i = 0; i < BASIS; i++)
            for (int n = 0; n < WIDE; n++)
                scaled[i][n] = weight[n] * v[i][n];
        for (int i = 0, at = 0; i < BASIS; i++)
            for (int j = i; j <= BASIS; j++, at++) {
                double lanes[LANES] = {0};
                for (int n = 0; n < WIDE; n += LANES)
                    for (int k = 0; k < LANES; k++)
                        lanes[k] += scaled[i][n + k] * v[j][n + k];
                sums[at] += (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
            }
    }
    double a[BASIS][BASIS + 1], trace = 0;
    for (int i = 0, at = 0; i < BASIS; i++)
        for (int j = i; j <= BASIS; j++, at++) {
            a[i][j] = sums[at];
            if (j < BASIS)
                a[j][i] = sums[at];
        }
    for (int i = 0; i < BASIS; i++)
        trace += a[i][i];
    for (int i = 0; i < BASIS; i++)
        a[i][i] += 1e-3 * (trace / BASIS + 1);
    for (int i = 0; i < BASIS; i++) {
        int pivot = i;
        for (int j = i + 1; j < BASIS; j++)
            if (fabs(a[j][i]) > fabs(a[pivot][i]))
                pivot = j;
        if (a[pivot][i] == 0)
            return 0;
        for (int k = i; k <= BASIS && pivot != i; k++) {
            double swap = a[i][k];
            a[i][k] = a[pivot][k];
            a[pivot][k] = swap;
        }
        for (int j = i + 1; j < BASIS; j++) {
            double by = a[j][i] / a[i][i];
            for (int k = i; k <= BASIS; k++)
                a[j][k] -= by * a[i][k];
        }
    }
    double solved[BASIS];
    for (int i = BASIS - 1; i >= 0; i--) {
        double left = a[i][BASIS];
        for (int j = i + 1; j < BASIS; j++)
            left -= a[i][j] * solved[j];
        solved[i] = left / a[i][i];
        out[i] = (float)solved[i];
    }
    return 1;
}

/* whole.py: whole. Takes light and shift out of `away`; `steady` gets what is without the light only. `light` gets the
 * light in each cell, with `plain` added, and `shifted` what the shift does, where the result has 1 and 2. `basis` is room. */
WIDE_VECTORS int64_t glance_whole(const float *background, const float *limits, float plain, float *away, float *restrict steady,
                     float *restrict light, float *restrict shifted, float *restrict basis, double shift[2])
{
    float found[BASIS], again[BASIS], target[SAMPLES], limit[SAMPLES];
    double lanes[8] = {0}, before = 0, after = 0;
    for (int i = 0; i < CELLS; i += 8) /* a single sum would wait for each addition */
        for (int k = 0; k < 8; k++)
            lanes[k] += background[i + k];
    for (int k = 1; k < 8; k++)
        lanes[0] += lanes[k];
    const float mean = (float)(lanes[0] / CELLS);
    memcpy(steady, away, CELLS * sizeof *steady);
    for (int y = 0; y < ROWS; y += 2) {
        const int at = y / 2 * WIDE;
        float *row = basis + at;
        basis_of(background, y, 2, mean, row, row + SAMPLES, row + 2 * SAMPLES, row + 3 * SAMPLES);
        for (int n = 0; n < WIDE; n++) {
            target[at + n] = away[y * COLUMNS + 2 * n];
            limit[at + n] = limits[y * COLUMNS + 2 * n];
        }
    }
    if (!least_squares(basis, target, limit, NULL, found))
        return 0;
    if (least_squares(basis, target, limit, found, again))
        memcpy(found, again, sizeof found);
    for (int n = 0; n < SAMPLES; n++) {
        float is = found[0] * basis[n] + found[1] * basis[SAMPLES + n] + found[2] * basis[2 * SAMPLES + n] +
                   found[3] * basis[3 * SAMPLES + n] + found[4];
        before += least(fabsf(target[n]), limit[n]);
        after += least(fabsf(target[n] - is), limit[n]);
    }
    if (after >= before)
        return 0;
    const float offset = (float)((double)found[4] - (double)found[0] * (double)mean);
    const int moves = (double)most(most(fabsf(found[1]), fabsf(found[2])), fabsf(found[3])) >= 0.01;
    shift[0] = -(double)found[1];
    shift[1] = -(double)found[2];
    for (int i = 0; i < CELLS; i++) {
        float bright = background[i] * found[0] + offset;
        steady[i] = away[i] - bright;
        light[i] = bright + plain;
    }
    memcpy(away, steady, CELLS * sizeof *steady);
    for (int y = 0; moves && y < ROWS; y++) {
        float *left = away + y * COLUMNS, *by = shifted + y * COLUMNS;
        float *b = basis;
        basis_of(background, y, 1, mean, b, b + COLUMNS, b + 2 * COLUMNS, b + 3 * COLUMNS);
        for (int x = 0; x < COLUMNS; x++) {
            by[x] = found[1] * b[COLUMNS + x] + found[2] * b[2 * COLUMNS + x] + found[3] * b[3 * COLUMNS + x];
            left[x] -= by[x];
        }
    }
    return 1 + 2 * moves;
}

/* cells.py: beyond, to what a cell and its neighbours show in the background. */
WIDE_VECTORS void glance_near(const float *background, const float *steady, float *distance)
{
    for (int y = 0; y < ROWS; y++) {
        const int first = y > 0 ? y - 1 : 0, last = y < ROWS - 1 ? y + 1 : ROWS - 1;
        float low[COLUMNS], high[COLUMNS];
        for (int x = 0; x < COLUMNS; x++)
            low[x] = high[x] = background[y * COLUMNS + x];
        for (int r = first; r <= last; r++)
            for (int x = 0; x < COLUMNS; x++) {
                low[x] = least(low[x], background[r * COLUMNS + x]);
                high[x] = most(high[x], background[r * COLUMNS + x]);
            }
        for (int x = 0; x < COLUMNS; x++) {
            const int left = x > 0 ? x - 1 : 0, right = x < COLUMNS - 1 ? x + 1 : COLUMNS - 1, i = y * COLUMNS + x;
            float level = steady[i] + background[i];
            float bottom = least(least(low[left], low[x]), low[right]);
            float top = most(most(high[left], high[x]), high[right]);
            distance[i] = least(distance[i], most(most(level - top, bottom - level) - FINER * (top - bottom), 0));
        }
    }
}
