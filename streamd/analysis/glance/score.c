/* How much the cells of a small picture stray, and where: score.py, which is the reference. */
#include <stdint.h>
#include <string.h>

enum { ROWS = 90, COLUMNS = 160, TILE = 10, ACROSS = COLUMNS / TILE, LASTS = 3 };
enum { SPARK = 6, SOLID = 8, CLUTTER_TILES = 8, CLUTTER_AGAIN = 4, USUAL = 4, NEAR = 2 };

/* Twice as fast where the processor has wider vectors; chosen when the library is loaded. The results are the same. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define WIDE_VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define WIDE_VECTORS
#endif

static float most(float a, float b) { return a > b ? a : b; }

/* cells.py: around, for one row of those between `top` and `bottom`. */
static inline void around(const float *cells, int y, int top, int bottom, float *restrict out)
{
    float lines[3][COLUMNS];
    for (int r = 0; r < 3; r++) {
        const int row = y - 1 + r;
        if (row < top || row >= bottom) {
            memset(lines[r], 0, sizeof lines[r]);
            continue;
        }
        const float *restrict in = cells + row * COLUMNS;
        lines[r][0] = in[0] + in[1];
        for (int x = 1; x < COLUMNS - 1; x++)
            lines[r][x] = in[x - 1] + in[x] + in[x + 1];
        lines[r][COLUMNS - 1] = in[COLUMNS - 2] + in[COLUMNS - 1];
    }
    for (int x = 0; x < COLUMNS; x++)
        out[x] = lines[0][x] + lines[1][x] + lines[2][x];
}

/* The highest sum of 3 x 3 cells; `place` is the first cell in the middle of such. Fills `sums` if there is room. */
WIDE_VECTORS static float highest(const float *ratio, int top, int bottom, float *sums, int64_t *place)
{
    float row[COLUMNS], best = -1;
    for (int y = top; y < bottom; y++) {
        float *out = sums != NULL ? sums + y * COLUMNS : row, peaks[8] = {0}, peak = 0;
        around(ratio, y, top, bottom, out);
        for (int x = 0; x < COLUMNS; x += 8)
            for (int k = 0; k < 8; k++)
                peaks[k] = most(peaks[k], out[x + k]);
        for (int k = 0; k < 8; k++)
            peak = most(peak, peaks[k]);
        if (peak > best) {
            best = peak;
            int x = 0;
            while (out[x] != peak)
                x++;
            *place = y * COLUMNS + x;
        }
    }
    return best;
}

static int solid(const uint8_t *cells, int y, int x)
{
    int count = 0;
    for (int r = y > 0 ? y - 1 : 0; r <= y + 1 && r < ROWS; r++)
        for (int c = x > 0 ? x - 1 : 0; c <= x + 1 && c < COLUMNS; c++)
            count += cells[r * COLUMNS + c];
    return count;
}

/* Whether `SOLID` of 3 x 3 cells stray anywhere. No cell strays above `top` or from `bottom` on. */
WIDE_VECTORS static int any_solid(const uint8_t *stray, int top, int bottom)
{
    static const uint8_t none[COLUMNS];
    for (int y = top; y < bottom; y++) {
        const uint8_t *restrict above = y > top ? stray + (y - 1) * COLUMNS : none;
        const uint8_t *restrict here = stray + y * COLUMNS;
        const uint8_t *restrict below = y + 1 < bottom ? stray + (y + 1) * COLUMNS : none;
        uint8_t lines[COLUMNS], found = 0;
        for (int x = 0; x < COLUMNS; x++)
            lines[x] = (uint8_t)(above[x] + here[x] + below[x]);
        for (int x = 1; x < COLUMNS - 1; x++)
            found |= (uint8_t)(lines[x - 1] + lines[x] + lines[x + 1]) >= SOLID;
        if (found)
            return 1;
    }
    return 0;
}

/* Whether sparks are all over the picture, and what is usual among them. `cluttered_ns` is when they last were. */
WIDE_VECTORS static int cluttered(const float *sums, const uint8_t *stray, const int64_t *boxed_ns, int64_t now_ns,
                                  int64_t *cluttered_ns, int top, int bottom, float least, float *usual)
{
    float highest[USUAL] = {0};
    int many = 0;
    if (any_solid(stray, top, bottom))
        return 0;
    for (int ty = top; ty < bottom; ty += TILE) {
        float all[COLUMNS] = {0}, unboxed[COLUMNS] = {0};
        int32_t counts[COLUMNS] = {0};
        for (int y = ty; y < ty + TILE; y++) {
            const float *restrict sum = sums + y * COLUMNS;
            const uint8_t *restrict strays = stray + y * COLUMNS;
            const int64_t *restrict boxed = boxed_ns + y * COLUMNS;
            for (int x = 0; x < COLUMNS; x++) {
                counts[x] += strays[x];
                all[x] = most(all[x], sum[x]);
                unboxed[x] = most(unboxed[x], now_ns - boxed[x] > 5000000000 ? sum[x] : 0);
            }
        }
        for (int tx = 0; tx < COLUMNS; tx += TILE) {
            float any = 0, empty = 0;
            int count = 0;
            for (int x = tx; x < tx + TILE; x++) {
                count += counts[x];
                any = most(any, all[x]);
                empty = most(empty, unboxed[x]);
            }
            float peak = count <= SPARK ? any : empty;
            many += peak >= least;
            for (int k = 0; k < USUAL; k++)
                if (peak > highest[k]) {
                    float lower = highest[k];
                    highest[k] = peak;
                    peak = lower;
                }
        }
    }
    *usual = highest[USUAL - 1];
    if (many < (now_ns - *cluttered_ns < 5000000000 ? CLUTTER_AGAIN : CLUTTER_TILES))
        return 0;
    if (many >= CLUTTER_TILES)
        *cluttered_ns = now_ns;
    return 1;
}

/* Whether one of the 3 x 3 cells around, of the rows between `top` and `bottom`, is set. */
static int near(const uint8_t *cells, int y, int x, int top, int bottom)
{
    for (int r = y > top ? y - 1 : top; r <= y + 1 && r < bottom; r++)
        for (int c = x > 0 ? x - 1 : 0; c <= x + 1 && c < COLUMNS; c++)
            if (cells[r * COLUMNS + c])
                return 1;
    return 0;
}

WIDE_VECTORS double glance_score(const float *distance, const float *limit, const uint8_t *stray, const uint8_t *const *before,
                    const int64_t *stand_ns, const int64_t *boxed_ns, int64_t now_ns, int64_t passed_ns,
                    double threshold, int64_t *cluttered_ns, int64_t *place)
{
    float ratio[ROWS * COLUMNS], sums[ROWS * COLUMNS], usual;
    int first = 0, last = ROWS - 1;
    while (memchr(stray + first * COLUMNS, 1, COLUMNS) == NULL)
        first++;
    while (memchr(stray + last * COLUMNS, 1, COLUMNS) == NULL)
        last--;
    const int top = first / TILE * TILE, bottom = (last / TILE + 1) * TILE;
    for (int i = top * COLUMNS; i < bottom * COLUMNS; i++) {
        float value = distance[i] / limit[i];
        value = value < 3.0f ? value : 3.0f;
        ratio[i] = stray[i] ? value : 0;
    }
    const double score = highest(ratio, top, bottom, sums, place);
    const float half = (float)(threshold / 2);
    if (score < threshold / 2 || solid(stray, (int)(*place / COLUMNS), (int)(*place % COLUMNS)) >= SOLID)
        return score;
    if (!cluttered(sums, stray, boxed_ns, now_ns, cluttered_ns, top, bottom, half, &usual))
        return score;
    const double since = (double)now_ns - (LASTS - 0.5) * (double)passed_ns;
    for (int y = top; y < bottom; y++)
        for (int x = 0; x < COLUMNS; x++) {
            const int i = y * COLUMNS + x;
            if (ratio[i] != 0 && !((double)stand_ns[i] > since && near(before[0], y, x, top, bottom) &&
                                   near(before[1], y, x, top, bottom) && near(before[2], y, x, top, bottom)))
                ratio[i] = 0;
        }
    const double lasting = highest(ratio, top, bottom, NULL, place), enough = 1.5 * (double)usual;
    if (lasting >= (threshold > enough ? threshold : enough))
        return lasting;
    return 0;
}

/* The sum of 3 x 3 cells of `ratio` that is highest; the rows from `top` to `bottom` are filled in, no other is set. */
static double most_of(const float *ratio, int top, int bottom)
{
    int64_t place;
    return top < bottom ? (double)highest(ratio, top, bottom, NULL, &place) : 0;
}

/* score.py: changed. */
WIDE_VECTORS double glance_changed(const float *restrict limit, const uint8_t *restrict luma,
                                   const uint8_t *restrict cells, const uint8_t *restrict seen,
                                   const uint8_t *restrict seen_cells)
{
    float ratio[ROWS * COLUMNS];
    int top = ROWS, bottom = 0;
    for (int y = 0; y < ROWS; y++) {
        const int at = y * COLUMNS;
        const int empty = memchr(cells + at, 1, COLUMNS) == NULL && memchr(seen_cells + at, 1, COLUMNS) == NULL;
        if (empty) {
            memset(ratio + at, 0, COLUMNS * sizeof *ratio);
            continue;
        }
        top = y < top ? y : top;
        bottom = y + 1;
        for (int i = at; i < at + COLUMNS; i++) {
            const float distance = luma[i] > seen[i] ? (float)(luma[i] - seen[i]) : (float)(seen[i] - luma[i]);
            float value = distance / limit[i];
            value = value < 3.0f ? value : 3.0f;
            ratio[i] = (cells[i] | seen_cells[i]) && distance > limit[i] ? value : 0;
        }
    }
    return most_of(ratio, top, bottom);
}

/* cells.py: near, across only: (ROWS, COLUMNS) those of each row and all that are at most NEAR columns away. */
static inline void across(const uint8_t *restrict cells, uint8_t *restrict out)
{
    uint8_t row[COLUMNS + 2 * NEAR] = {0};
    for (int y = 0; y < ROWS; y++) {
        memcpy(row + NEAR, cells + y * COLUMNS, COLUMNS);
        for (int x = 0; x < COLUMNS; x++) {
            uint8_t any = 0;
            for (int k = 0; k <= 2 * NEAR; k++)
                any |= row[x + k];
            out[y * COLUMNS + x] = any;
        }
    }
}

/* score.py: elsewhere. `seen_cells` and `boxes` may be NULL. */
WIDE_VECTORS double glance_elsewhere(const float *restrict distance, const float *restrict limit,
                                     const uint8_t *restrict cells, const uint8_t *seen_cells, const uint8_t *boxes)
{
    float ratio[ROWS * COLUMNS];
    uint8_t wide[ROWS * COLUMNS];
    int top = ROWS, bottom = 0;
    if (seen_cells != NULL)
        across(seen_cells, wide);
    for (int y = 0; y < ROWS; y++) {
        const int at = y * COLUMNS;
        uint8_t known[COLUMNS] = {0};
        if (memchr(cells + at, 1, COLUMNS) == NULL) {
            memset(ratio + at, 0, COLUMNS * sizeof *ratio);
            continue;
        }
        top = y < top ? y : top;
        bottom = y + 1;
        if (boxes != NULL)
            memcpy(known, boxes + at, COLUMNS);
        for (int r = y > NEAR ? y - NEAR : 0; seen_cells != NULL && r <= y + NEAR && r < ROWS; r++)
            for (int x = 0; x < COLUMNS; x++)
                known[x] |= wide[r * COLUMNS + x];
        for (int x = 0; x < COLUMNS; x++) {
            float value = distance[at + x] / limit[at + x];
            value = value < 3.0f ? value : 3.0f;
            ratio[at + x] = cells[at + x] && !known[x] ? value : 0;
        }
    }
    return most_of(ratio, top, bottom);
}
