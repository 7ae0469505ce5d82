/* What moves in one small picture, as in motion.py and cells.py (whole.c and score.c have the rest): those are the reference, and what runs where
 * this file was not compiled; tests/analysis/glance/test_native.py holds both to the same results. All is computed in
 * floats, in the same order, except the sums over the picture, which are doubles in both. Allocates nothing.
 *
 * A step takes a few microseconds and keeps the interpreter lock. Where the whole picture may have moved, it returns FIT:
 * `motion_fit` takes some ten times as long and is to be called without the lock.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { ROWS = 90, COLUMNS = 160, CELLS = ROWS * COLUMNS };
enum { DONE, FIT, SHAKEN, ANEW };
enum { LASTS = 3 };

/* Twice as fast where the processor has wider vectors; chosen when the library is loaded. The results are the same. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define WIDE_VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define WIDE_VECTORS
#endif

/* In the order of native.py. */
typedef struct {
    float *background, *past, *noise, *limit, *distance, *stand;
    float *away, *light, *shifted, *steady, *basis; /* room */
    int64_t *stand_ns, *boxed_ns;
    const uint8_t *wanted; /* or NULL: all */
    const uint8_t *before[LASTS];
    const float *low, *high; /* of the shots, or NULL */
    int64_t now_ns, passed_ns, shaken_ns, number, cluttered_ns;
    double passed_s, threshold, level, learned_s, up, down;
    double score, shift[2];
    int64_t count, place, switched, fitted; /* fitted: what is filled of `light` (1) and `shifted` (2) */
    double lit;                             /* the light where `light` is not filled */
} Motion;

static const float FINER = 0.15f; /* cells.py */

static float least(float a, float b) { return a < b ? a : b; }
static float most(float a, float b) { return a > b ? a : b; }

static int shaken(const Motion *m) { return m->now_ns - m->shaken_ns < 2000000000; }

static float gain(double passed_s, double tau) { return (float)(1 - exp(-passed_s / tau)); }

/* Of an even number of values; changes their order. */
static float median(float *v, int n)
{
    int low = 0, high = n - 1, k = n / 2;
    while (low < high) {
        float pivot = v[(low + high) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (v[i] < pivot)
                i++;
            while (v[j] > pivot)
                j--;
            if (i <= j) {
                float swap = v[i];
                v[i++] = v[j];
                v[j--] = swap;
            }
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            break;
    }
    float below = v[0];
    for (int i = 1; i < k; i++)
        below = most(below, v[i]);
    return (below + v[k]) / 2;
}

WIDE_VECTORS static int64_t straying(const float *restrict distance, const float *restrict limit, uint8_t *restrict stray)
{
    int32_t count = 0;
    for (int i = 0; i < CELLS; i++)
        stray[i] = distance[i] > limit[i];
    for (int i = 0; i < CELLS; i++)
        count += stray[i];
    return count;
}

/* motion.py: _compared, up to what the whole picture does. */
WIDE_VECTORS static void compare(Motion *m, const uint8_t *restrict luma)
{
    const float *restrict background = m->background;
    float *restrict away = m->away, *restrict distance = m->distance;
    float sample[(ROWS + 4) / 5 * ((COLUMNS + 6) / 7)];
    int n = 0;
    for (int y = 0; y < ROWS; y += 5)
        for (int x = 0; x < COLUMNS; x += 7)
            sample[n++] = (float)luma[y * COLUMNS + x] - background[y * COLUMNS + x];
    const float light = median(sample, n);
    m->switched = fabsf(light - (float)m->level) > 8.0f;
    m->level = m->lit = light;
    m->fitted = 0;
    m->shift[0] = m->shift[1] = 0;
    for (int i = 0; i < CELLS; i++) {
        away[i] = ((float)luma[i] - background[i]) - light;
        distance[i] = fabsf(away[i]);
    }
}

int64_t glance_whole(const float *background, const float *limit, float plain, float *away, float *steady, float *light,
                     float *shifted, float *basis, double shift[2]); /* whole.c */

void glance_near(const float *background, const float *steady, float *distance); /* whole.c */

/* The last cell of those from `i` on, eight at a time, in which none is set. */
static inline int skip(const uint8_t *cells, int i)
{
    static const uint8_t none[8];
    return i % 8 == 0 && memcmp(cells + i, none, 8) == 0 ? i + 7 : i;
}

/* motion.py: _settle. `steady` is the distance with the light taken out only. Returns how many cells are left. A row with
 * straying cells is processed as a whole. */
WIDE_VECTORS static int64_t settle(Motion *m, uint8_t *restrict cells, const float *steady)
{
    const int64_t now_ns = m->now_ns;
    int32_t left = 0;
    for (int y = 0; y < ROWS; y++) {
        uint8_t *restrict stray = cells + y * COLUMNS;
        if (memchr(stray, 1, COLUMNS) == NULL)
            continue;
        float *restrict background = m->background + y * COLUMNS, *restrict stand = m->stand + y * COLUMNS;
        float *restrict away = m->away + y * COLUMNS, *restrict distance = m->distance + y * COLUMNS;
        const float *restrict limit = m->limit + y * COLUMNS, *restrict past = m->past + y * COLUMNS;
        const uint8_t *restrict before = m->before[0] + y * COLUMNS;
        int64_t *restrict stand_ns = m->stand_ns + y * COLUMNS;
        float level[COLUMNS];
        int32_t changed[COLUMNS], gone[COLUMNS];
        for (int x = 0; x < COLUMNS; x++) {
            level[x] = background[x] + steady[y * COLUMNS + x];
            changed[x] = ((fabsf(level[x] - stand[x]) > limit[x]) | (before[x] == 0)) & stray[x];
            gone[x] = fabsf(level[x] - past[x]) <= limit[x];
        }
        for (int x = 0; x < COLUMNS; x++)
            stand[x] = changed[x] ? level[x] : stand[x];
        for (int x = 0; x < COLUMNS; x++)
            stand_ns[x] = changed[x] ? now_ns : stand_ns[x];
        for (int x = 0; x < COLUMNS; x++)
            gone[x] = (gone[x] | (now_ns - stand_ns[x] > 400000000)) & stray[x];
        for (int x = 0; x < COLUMNS; x++) {
            background[x] = gone[x] ? level[x] : background[x];
            away[x] = gone[x] ? 0 : away[x];
            distance[x] = gone[x] ? 0 : distance[x];
        }
        for (int x = 0; x < COLUMNS; x++) {
            stray[x] = (uint8_t)(stray[x] & (gone[x] == 0));
            left += stray[x];
        }
    }
    return left;
}

/* motion.py: _remember. */
WIDE_VECTORS static void remember(Motion *m, const uint8_t *restrict stray, double passed_s)
{
    const float near = gain(passed_s, 1.5), far = gain(passed_s, 20.0);
    const float *restrict background = m->background, *restrict limit = m->limit;
    float *restrict past = m->past;
    for (int i = 0; i < CELLS; i++) {
        float apart = background[i] - past[i];
        float by = fabsf(apart) > limit[i] ? far : near;
        past[i] += (stray[i] ? 0 : by) * apart;
    }
}

/* motion.py: _settle_noise. */
WIDE_VECTORS static void settle_noise(Motion *m)
{
    float *restrict noise = m->noise, *restrict limit = m->limit;
    for (int i = 0; i < CELLS; i++) {
        noise[i] = least(most(noise[i], 0.5f), 40.0f);
        limit[i] = noise[i] * 2.0f + 1.5f;
    }
}

/* motion.py: _learn. */
WIDE_VECTORS static void learn(Motion *m)
{
    const int hurry = m->learned_s < 10.0;
    if (!hurry && m->number % 7 != 0 && m->number % 7 != 3)
        return;
    const float up = (float)m->up * (hurry ? 4.0f : 1.0f), down = (float)m->down * (hurry ? 4.0f : 1.0f);
    const float *restrict distance = m->distance, *restrict limit = m->limit;
    float *restrict noise = m->noise;
    if (hurry)
        for (int i = 0; i < CELLS; i++)
            noise[i] += distance[i] > noise[i] ? up : -down;
    else
        for (int i = 0; i < CELLS; i++)
            noise[i] += (distance[i] > noise[i]) & (distance[i] <= limit[i]) ? up : -down;
    settle_noise(m);
}

/* motion.py: _follow. */
WIDE_VECTORS static void follow(Motion *m, const uint8_t *restrict stray, int strays)
{
    const float still = gain(m->passed_s, 1.5), slowly = gain(m->passed_s, 3.0), slid = gain(m->passed_s, 8.0);
    const float by = shaken(m) ? gain(m->passed_s, 20.0) : still;
    float *restrict background = m->background, *restrict past = m->past, *restrict stand = m->stand;
    const float *restrict away = m->away, *restrict light = m->light, *restrict shifted = m->shifted;
    if (!m->fitted) {
        const float lit = (float)m->lit * still;
        for (int i = 0; i < CELLS; i++) {
            background[i] += away[i] * (stray[i] ? slowly : by) + lit;
            past[i] += lit;
        }
        for (int i = 0; strays && i < CELLS; i++)
            stand[i] += lit;
        return;
    }
    for (int i = 0; i < CELLS; i++) {
        const float lit = light[i] * still;
        background[i] += away[i] * (stray[i] ? slowly : by) + lit;
        past[i] += lit;
    }
    for (int i = 0; strays && i < CELLS; i++)
        stand[i] += light[i] * still;
    for (int i = 0; m->fitted & 2 && i < CELLS; i++)
        background[i] += slid * shifted[i];
}

double glance_score(const float *distance, const float *limit, const uint8_t *stray, const uint8_t *const *before,
                    const int64_t *stand_ns, const int64_t *boxed_ns, int64_t now_ns, int64_t passed_ns,
                    double threshold, int64_t *cluttered_ns, int64_t *place); /* score.c */

/* motion.py: step, from what strays on. */
WIDE_VECTORS static int finish(Motion *m, const uint8_t *restrict luma, uint8_t *restrict stray, int64_t count,
                               const float *steady)
{
    m->score = 0;
    m->place = 0;
    m->count = count;
    if (count > 0.35 * CELLS || m->switched) {
        for (int i = 0; i < CELLS; i++)
            m->background[i] = m->past[i] = luma[i];
        m->level = 0;
        return ANEW;
    }
    if (count)
        count = settle(m, stray, steady);
    if (m->number % 4 == 0)
        remember(m, stray, 4 * m->passed_s);
    learn(m);
    if (m->learned_s < 10.0)
        m->learned_s += m->passed_s;
    follow(m, stray, count > 0);
    if (count && shaken(m)) {
        memset(stray, 0, COLUMNS);
        memset(stray + CELLS - COLUMNS, 0, COLUMNS);
        for (int y = 0; y < ROWS; y++)
            stray[y * COLUMNS] = stray[y * COLUMNS + COLUMNS - 1] = 0;
    }
    if (count) {
        int32_t left = 0;
        for (int i = 0; i < CELLS; i++) {
            stray[i] &= m->wanted == NULL ? 1 : m->wanted[i];
            left += stray[i];
        }
        count = left;
    }
    m->count = count;
    if (count)
        m->score = glance_score(m->distance, m->limit, stray, m->before, m->stand_ns, m->boxed_ns, m->now_ns,
                                m->passed_ns, m->threshold, &m->cluttered_ns, &m->place);
    return DONE;
}

/* One picture: `luma` and `stray` are (ROWS, COLUMNS). Returns DONE; ANEW if it is another picture, with which the
 * background began anew; FIT if `motion_fit` is to be called. */
int motion_step(Motion *m, const uint8_t *luma, uint8_t *stray)
{
    compare(m, luma);
    int64_t count = straying(m->distance, m->limit, stray);
    return count > 0.005 * CELLS ? FIT : finish(m, luma, stray, count, m->away);
}

/* motion.py: _compared, from what the whole picture does on. */
WIDE_VECTORS static void without_whole(Motion *m, const uint8_t *restrict luma)
{
    float *restrict away = m->away, *restrict distance = m->distance, *restrict light = m->light, change[8] = {0};
    const float *restrict background = m->background, *restrict steady = m->steady;
    m->fitted = glance_whole(background, m->limit, (float)m->lit, away, m->steady, m->light, m->shifted, m->basis,
                             m->shift);
    for (int i = 0; !m->fitted && i < CELLS; i++)
        light[i] = (float)m->lit;
    for (int i = 0; m->fitted & 2 && i < CELLS; i++) {
        int worse = fabsf(away[i]) > fabsf(steady[i]);
        away[i] = worse ? steady[i] : away[i];
        m->shifted[i] = worse ? 0 : m->shifted[i];
    }
    m->fitted |= 1;
    for (int i = 0; i < CELLS; i++) {
        float level = luma[i], left = away[i];
        int stuck = ((left < 0) & (level >= 225)) | ((left > 0) & (level <= 20));
        away[i] = stuck ? 0 : left;
        light[i] = stuck ? level - background[i] : light[i];
        distance[i] = fabsf(away[i]);
    }
    for (int i = 0; i < CELLS; i += 8)
        for (int k = 0; k < 8; k++)
            change[k] = most(change[k], fabsf(light[i + k]));
    for (int k = 1; k < 8; k++)
        change[0] = most(change[0], change[k]);
    if (change[0] > 1.0f)
        for (int i = 0; i < CELLS; i++) {
            float error = (most(luma[i], background[i]) - 180.0f) / 40.0f;
            distance[i] -= least(most(error, 0.25f), 1) * fabsf(light[i]);
        }
}

/* What the whole picture does, and the rest of the step. Returns as `motion_step`, or SHAKEN: then `motion_shaken` is to
 * be called once `low` and `high` are up to date. */
int motion_fit(Motion *m, const uint8_t *luma, uint8_t *stray)
{
    without_whole(m, luma);
    if (fabs(m->shift[0]) > 0.12 || fabs(m->shift[1]) > 0.12)
        m->shaken_ns = m->now_ns;
    if (!shaken(m))
        return finish(m, luma, stray, straying(m->distance, m->limit, stray), m->steady);
    glance_near(m->background, m->steady, m->distance);
    return SHAKEN;
}

/* The rest of the step where the picture shakes. */
int motion_shaken(Motion *m, const uint8_t *restrict luma, uint8_t *stray)
{
    for (int i = 0; m->low != NULL && i < CELLS; i++) {
        float away = most(most(luma[i] - m->high[i], m->low[i] - luma[i]) - FINER * (m->high[i] - m->low[i]), 0);
        m->distance[i] = least(m->distance[i], away);
    }
    return finish(m, luma, stray, straying(m->distance, m->limit, stray), m->steady);
}

/* Whether a cell strays in which no box was found lately. */
static inline int idle(const Motion *m, const uint8_t *restrict cells, int i)
{
    return cells[i] & (m->now_ns - m->boxed_ns[i] > 5000000000);
}

/* motion.py: answer. `boxes` are cells with boxes, `moving` those in which they move (or `boxes`), `cells` what strayed
 * (NULL: that says nothing). */
WIDE_VECTORS void motion_answer(Motion *m, const uint8_t *restrict boxes, const uint8_t *restrict moving,
                   const uint8_t *restrict cells)
{
    float *restrict noise = m->noise;
    for (int i = 0; i < CELLS; i++)
        if (boxes[i])
            m->boxed_ns[i] = m->now_ns;
        else
            i = skip(boxes, i);
    for (int i = 0; i < CELLS; i++) {
        float less = noise[i] * 0.97f;
        less = noise[i] > 1.0f ? less : noise[i];
        noise[i] = moving[i] ? less : noise[i];
    }
    for (int at = 0; cells != NULL && at < CELLS; at += COLUMNS) {
        if (memchr(cells + at, 1, COLUMNS) == NULL)
            continue;
        for (int i = at; i < at + COLUMNS; i++)
            noise[i] = idle(m, cells, i) ? noise[i] + 0.15f : noise[i];
    }
    settle_noise(m);
}

/* motion.py: absorb. */
WIDE_VECTORS void motion_absorb(Motion *m, const uint8_t *restrict cells, const uint8_t *restrict luma)
{
    float *restrict background = m->background;
    for (int at = 0; at < CELLS; at += COLUMNS) {
        if (memchr(cells + at, 1, COLUMNS) == NULL)
            continue;
        for (int i = at; i < at + COLUMNS; i++) {
            const float nearer = background[i] + 0.1f * (luma[i] - background[i]);
            background[i] = idle(m, cells, i) ? nearer : background[i];
        }
    }
}

/* gate.py: Gate._warm. */
WIDE_VECTORS void motion_warm(float *restrict heat, const uint8_t *restrict cells, float by)
{
    for (int i = 0; i < CELLS; i++)
        heat[i] += by * (cells[i] - heat[i]);
}
