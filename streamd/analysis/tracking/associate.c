/* Which tracks and boxes belong together: pairs.py, camera.py and ByteTrack._associate of bytetrack.py.
 *
 * Only pairs that may be matched are kept, in the order of tracks, then boxes. Where the camera has moved, they are found
 * once more, with the tracks moved.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bytetrack.h"

/* Vectors of eight floats where the processor has them; chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE_VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define WIDE_VECTORS
#endif

#if defined(__GNUC__)
#define lowest __builtin_ctz
#else
static int lowest(uint32_t set)
{
    int bit = 0;
    for (; !(set & 1); set >>= 1)
        bit++;
    return bit;
}
#endif

enum { FEW = 200, FEWEST = 4, SHORT = 40 };

/* Best first; equal keys in their order. */
static int before(const Rank *p, const Rank *q)
{
    return p->key != q->key ? p->key > q->key : p->index < q->index;
}

static int by_rank(const void *a, const void *b)
{
    const Rank *p = a, *q = b;
    return before(p, q) ? -1 : before(q, p);
}

static void sort_ranks(Rank *ranks, int64_t n)
{
    if (n > SHORT) {
        qsort(ranks, (size_t)n, sizeof *ranks, by_rank);
        return;
    }
    for (int64_t i = 1; i < n; i++) {
        Rank moved = ranks[i];
        int64_t at = i;
        for (; at > 0 && before(&moved, ranks + at - 1); at--)
            ranks[at] = ranks[at - 1];
        ranks[at] = moved;
    }
}

static int by_value(const void *a, const void *b)
{
    double p = *(const double *)a, q = *(const double *)b;
    return p < q ? -1 : p > q;
}

static double median(double *values, int64_t n)
{
    if (n > SHORT)
        qsort(values, (size_t)n, sizeof *values, by_value);
    else
        for (int64_t i = 1; i < n; i++) {
            double moved = values[i];
            int64_t at = i;
            for (; at > 0 && moved < values[at - 1]; at--)
                values[at] = values[at - 1];
            values[at] = moved;
        }
    return (values[n / 2] + values[(n - 1) / 2]) / 2;
}

static double spread(const double *values, double *spare, int64_t n, double center)
{
    for (int64_t i = 0; i < n; i++)
        spare[i] = fabs(values[i] - center);
    return median(spare, n);
}

/* pairs.py: match. Returns how many were matched. Most pairs have no rival for their track or box, and need no order. */
static int64_t match(Scratch *room, int64_t n_pairs, int64_t n_tracks, int64_t n_boxes)
{
    int64_t matched = 0, ranked = 0;
    memset(room->taken, 0, (size_t)n_tracks);
    memset(room->near, 0, (size_t)n_boxes * sizeof *room->near);
    for (int64_t i = 0; i < n_boxes; i++)
        room->track_of[i] = -1;
    for (int64_t i = 0; i < n_pairs; i++) {
        room->taken[room->pair[i].row] += room->taken[room->pair[i].row] < 2;
        room->near[room->pair[i].column]++;
    }
    for (int64_t i = 0; i < n_pairs; i++) {
        Pair *p = room->pair + i;
        if (room->taken[p->row] == 1 && room->near[p->column] == 1) {
            room->track_of[p->column] = p->row;
            p->matched = 1;
            matched++;
        } else {
            room->rank[ranked++] = (Rank){p->key, i};
        }
    }
    sort_ranks(room->rank, ranked);
    memset(room->taken, 0, (size_t)n_tracks);
    for (int64_t i = 0; i < ranked; i++) {
        Pair *p = room->pair + room->rank[i].index;
        if (!room->taken[p->row] && room->track_of[p->column] < 0) {
            room->taken[p->row] = 1;
            room->track_of[p->column] = p->row;
            p->matched = 1;
            matched++;
        }
    }
    return matched;
}

/* Whether the median of values is nearer to zero than `most`, if that can be told without sorting them. */
static int surely_small(const double *values, int64_t n, double most)
{
    int64_t above = 0, below = 0;
    for (int64_t i = 0; i < n; i++) {
        above += values[i] >= most;
        below += values[i] <= -most;
    }
    return 2 * above < n && 2 * below < n;
}

/* bytetrack.py: _shifts, and camera.py: common_shift. */
static int camera_shift(const Scratch *room, int64_t n_pairs, int64_t stride, double dt, double shift[2])
{
    double *x = room->spare, *y = room->spare + n_pairs, *sorted = room->spare + 2 * n_pairs, height = 0;
    const double *tracks = room->matrix;
    int64_t n = 0;
    for (int64_t i = 0; i < n_pairs; i++) {
        const Pair *p = room->pair + i;
        if (p->matched && p->round == 2 && tracks[WALL * stride + p->row] <= dt) {
            x[n] = p->offset[0];
            y[n] = p->offset[1];
            height += tracks[HEIGHT * stride + p->row];
            n++;
        }
    }
    if (n < FEWEST)
        return 0;
    double still = 0.02 * height / (double)n;
    if (surely_small(x, n, still) && surely_small(y, n, still))
        return 0;
    memcpy(sorted, x, (size_t)n * sizeof *x);
    shift[0] = median(sorted, n);
    memcpy(sorted, y, (size_t)n * sizeof *y);
    shift[1] = median(sorted, n);
    if (fabs(shift[0]) < still && fabs(shift[1]) < still)
        return 0;
    if (!(fabs(shift[0]) > spread(x, sorted, n, shift[0]) || fabs(shift[1]) > spread(y, sorted, n, shift[1])))
        return 0;
    return shift[0] != 0 || shift[1] != 0;
}

static int64_t more_pairs(Scratch *room)
{
    int64_t n = room->pairs ? 2 * room->pairs : 128;
    Pair *pair = realloc(room->pair, (size_t)n * sizeof *pair);
    if (pair != NULL)
        room->pair = pair;
    Rank *rank = realloc(room->rank, (size_t)n * sizeof *rank);
    if (rank != NULL)
        room->rank = rank;
    double *spare = realloc(room->spare, (size_t)n * 3 * sizeof *spare);
    if (spare != NULL)
        room->spare = spare;
    if (pair == NULL || rank == NULL || spare == NULL)
        return 0;
    return room->pairs = n;
}

/* pairs.py: every and meeting. Marks the boxes of an eight that are near a track, or any of few, and may be worth their gate.
 *
 * Most pairs share little. They are told in single precision, without a division or a root; the slack is larger than the
 * error, so that no pair is missed.
 */
WIDE_VECTORS static void mark(const Boxes *boxes, int64_t n, const Subject *t, const float *need, const double shift[2],
                              int32_t *near)
{
    float left = t->left, right = t->right, top = t->top, bottom = t->bottom;
    float x = (float)(t->x + shift[0]), y = (float)(t->y + shift[1]), share = (float)t->share;
    float width = (float)(t->width + 2 * t->reach), height = (float)(t->height + 2 * t->reach), area = width * height;
    float slack = 1e-6f * (fabsf(x) + fabsf(y) + width + height);
    const float *lefts = boxes->left, *tops = boxes->top, *rights = boxes->right, *bottoms = boxes->bottom;
    const float *xs = boxes->x, *ys = boxes->y, *widths = boxes->width, *heights = boxes->height;
    for (int64_t b = 0; b < n * EIGHT; b++) {
        float across = (right < rights[b] ? right : rights[b]) - (left > lefts[b] ? left : lefts[b]);
        float down = (bottom < bottoms[b] ? bottom : bottoms[b]) - (top > tops[b] ? top : tops[b]);
        float grown = share * heights[b], wide = widths[b] + grown, high = heights[b] + grown;
        float off = slack + 1e-6f * (wide + high);
        float a = (width + wide) * 0.5f - fabsf(xs[b] - x), c = (height + high) * 0.5f - fabsf(ys[b] - y);
        float narrow = width < wide ? width : wide, low = height < high ? height : high;
        a = (a < narrow ? a : narrow) + off;
        c = (c < low ? c : low) + off;
        a = a > 0 ? a : 0;
        c = c > 0 ? c : 0;
        float common = a * c;
        near[b] = (across > 0) & (down > 0) & (common >= need[b] * ((area + wide * high) * 0.999998f - common));
    }
}

/* pairs.py: Pairs. Whether a track and a box may be matched: fills the pair then. */
static int weigh(const Settings *s, const Subject *t, const Detection *box, const double shift[2], Pair *p)
{
    int strong = box->score >= s->high;
    if (!(strong || (t->confirmed && box->score >= s->low)))
        return 0; /* never matched */
    /* Boxes that do not touch are never a pair. */
    double gate = most(!t->confirmed ? s->new_gate : strong ? s->gate : s->weak_gate, 1e-9);
    double weight = (t->confirmed && strong ? box->score : 1) * (t->class_id != box->class_id ? 0.5 : 1);
    double right = box->x - t->x - shift[0], down = box->y - t->y - shift[1];
    double ratio = box->height / t->height, twice = 2 * t->reach;
    double track_width = t->width + twice, track_height = t->height + twice;
    double box_width = box->width + twice * ratio, box_height = box->height + twice * ratio;
    double across = least((track_width + box_width) * 0.5 - fabs(right), least(track_width, box_width));
    double along = least((track_height + box_height) * 0.5 - fabs(down), least(track_height, box_height));
    if (!(across > 0 && along > 0))
        return 0;
    double common = across * along, areas = track_width * track_height + box_width * box_height;
    double worth = common / (areas - common) * sqrt(least(1 / ratio, ratio)) * weight;
    p->offset[0] = right;
    p->offset[1] = down;
    p->round = !t->confirmed ? 0 : strong ? 2 : 1;
    p->key = worth + p->round;
    return worth >= gate;
}

/* What pairs need to know of the tracks. */
static void read_tracks(Scratch *room, int64_t stride, int64_t n_tracks, int64_t n_boxes)
{
    const double *tracks = room->matrix;
    int all = n_tracks * n_boxes <= FEW;
    for (int64_t i = 0; i < n_tracks; i++) {
        Subject *t = room->subject + i;
        t->x = tracks[X * stride + i];
        t->y = tracks[Y * stride + i];
        t->width = tracks[WIDTH * stride + i];
        t->height = tracks[HEIGHT * stride + i];
        t->reach = least(sqrt(tracks[VARIANCE * stride + i]) * 2, 0.5) * t->height;
        t->share = 2 * t->reach / t->height;
        t->class_id = tracks[CLASS * stride + i];
        t->confirmed = tracks[ID * stride + i] > 0;
        double grown = t->reach * 2 + t->height * 0.25;
        t->left = all ? -INFINITY : (float)(t->x - (t->width * 0.5 + grown));
        t->right = all ? INFINITY : (float)(t->x + (t->width * 0.5 + grown));
        t->top = all ? -INFINITY : (float)(t->y - (t->height * 0.5 + grown));
        t->bottom = all ? INFINITY : (float)(t->y + (t->height * 0.5 + grown));
    }
}

/* How much of both areas a box has to share with a track: unconfirmed ones, confirmed ones. Infinite: it is never matched. */
static void set_needs(const Settings *s, const Scratch *room, int64_t n_boxes)
{
    float *fresh = room->boxes.need[0], *known = room->boxes.need[1];
    for (int64_t b = 0; b < n_boxes; b++) {
        double score = room->found[b].score;
        fresh[b] = score >= s->high ? (float)(most(s->new_gate, 1e-9) * 0.999999) : INFINITY;
        known[b] = score >= s->high  ? (float)(most(s->gate, 1e-9) / most(score, 1e-9) * 0.999999)
                   : score >= s->low ? (float)(most(s->weak_gate, 1e-9) * 0.999999)
                                     : INFINITY;
    }
    for (int64_t b = n_boxes; b % EIGHT; b++)
        fresh[b] = known[b] = INFINITY;
}

/* Fills room->pair with those that may be matched, with the tracks moved by `shift`. Returns their number, or -1 where there is
 * no memory. */
static int64_t find_pairs(const Settings *s, Scratch *room, int64_t n_tracks, int64_t n_boxes, const double shift[2])
{
    int64_t n = 0, eights = (n_boxes + EIGHT - 1) / EIGHT;
    for (int64_t t = 0; t < n_tracks; t++) {
        const Subject *track = room->subject + t;
        mark(&room->boxes, eights, track, room->boxes.need[track->confirmed], shift, room->near);
        for (int64_t eight = 0; eight < eights; eight++) {
            const int32_t *near = room->near + eight * EIGHT;
            /* Near a track there are few boxes, in places that no processor guesses. */
            uint32_t set = 0;
            for (int i = 0; i < EIGHT; i++)
                set |= (uint32_t)near[i] << i;
            for (int32_t b = (int32_t)(eight * EIGHT); set && b < n_boxes; b++, set >>= 1) {
                int skip = lowest(set);
                b += skip;
                set >>= skip;
                if (b >= n_boxes)
                    break;
                if (n == room->pairs && !more_pairs(room))
                    return -1;
                Pair *p = room->pair + n;
                if (weigh(s, track, room->found + b, shift, p)) {
                    p->row = (int32_t)t;
                    p->column = b;
                    p->matched = 0;
                    n++;
                }
            }
        }
    }
    return n;
}

int associate(const Settings *s, Scratch *room, int64_t stride, int64_t n_tracks, int64_t n_boxes, double dt)
{
    double shift[2] = {0, 0};
    read_tracks(room, stride, n_tracks, n_boxes);
    set_needs(s, room, n_boxes);
    int64_t n = find_pairs(s, room, n_tracks, n_boxes, shift);
    if (n < 0)
        return 1;
    if (match(room, n, n_tracks, n_boxes) < FEWEST || s->camera == 0 || !camera_shift(room, n, stride, dt, shift))
        return 0;
    n = find_pairs(s, room, n_tracks, n_boxes, shift);
    if (n < 0)
        return 1;
    match(room, n, n_tracks, n_boxes);
    for (int axis = 0; axis < 2; axis++)
        for (int64_t t = 0; t < n_tracks; t++)
            room->matrix[axis * stride + t] += shift[axis];
    return 0;
}
