/* ByteTrack on the frames of a batch, each of another stream, as in batch.py, bytetrack.py, pairs.py, motion.py, votes.py and camera.py.
 *
 * Those are the reference, and what runs where this file was not compiled; tests/analysis/tracking/test_native.py holds
 * both to the same results. It uses nothing of Python, so that building it takes a C compiler and no headers, and it is
 * called through ctypes, which lets the interpreter lock go.
 *
 * Tracks are columns of a matrix of doubles, one row a quantity (tracks.py); a row has `stride` places.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { X, Y, WIDTH, HEIGHT, SPEED = 4, VARIANCE = 8, UNSEEN = 14, WALL, ONE, AGE, ID, CLASS, VOTES = 4, WEIGHT = 23, ROWS = 27 };

enum { FEW = 200, FEWEST = 4, ON_STACK = 256 };

/* In the order of native.py. */
typedef struct {
    double low, high, certain, gate, weak_gate, new_gate;
    double lost_s, wall_s, most, camera;
    double center_noise, size_noise, box_noise, first_speed, tau;
} Settings;

typedef struct {
    double offset[2], smaller[2], sum[2];
    double areas, ratio, weight, gate, round, key;
    int32_t row, column;
    int able;
} Pair;

typedef struct {
    double x, y, width, height, score, class_id;
} Detection;

static double least(double a, double b) { return a < b ? a : b; }
static double most(double a, double b) { return a > b ? a : b; }

/* motion.py: Motion.advance. */
static void advance(const Settings *s, double *out, const double *in, int64_t stride, int64_t n, double dt,
                    double observed)
{
    double decay = exp(-dt / s->tau), travel = s->tau * (1 - decay);
    double noise[2] = {s->center_noise * s->center_noise, s->size_noise * s->size_noise};
    double place = dt * dt * dt / 3, mixed = dt * dt / 2;
    for (int row = 0; row < ROWS; row++)
        memcpy(out + row * stride, in + row * n, (size_t)n * sizeof(double));
    for (int i = 0; i < 4; i++) {
        double *where = out + i * stride, *speed = out + (SPEED + i) * stride;
        for (int64_t t = 0; t < n; t++) {
            where[t] += travel * speed[t];
            speed[t] *= decay;
        }
    }
    for (int i = 0; i < 2; i++) {
        double *p = out + (VARIANCE + i) * stride, *m = out + (VARIANCE + 2 + i) * stride;
        double *r = out + (VARIANCE + 4 + i) * stride;
        for (int64_t t = 0; t < n; t++) {
            p[t] += 2 * travel * m[t] + travel * travel * r[t] + noise[i] * place;
            m[t] = decay * m[t] + travel * decay * r[t] + noise[i] * mixed;
            r[t] = decay * decay * r[t] + noise[i] * dt;
        }
    }
    for (int64_t t = 0; t < n; t++) {
        out[UNSEEN * stride + t] += observed;
        out[WALL * stride + t] += dt;
        out[AGE * stride + t] += observed;
        out[WIDTH * stride + t] = most(out[WIDTH * stride + t], 1);
        out[HEIGHT * stride + t] = most(out[HEIGHT * stride + t], 1);
    }
}

/* boxes.py: boxes_of. */
static void read_boxes(Detection *boxes, const float *xyxy, const float *score, const int32_t *class_id, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float *c = xyxy + 4 * i;
        double width = (double)c[2] - c[0], height = (double)c[3] - c[1];
        Detection box = {((double)c[2] + c[0]) * 0.5, ((double)c[3] + c[1]) * 0.5, width, height, score[i], class_id[i]};
        if (!(width > 0 && height > 0 && width < 1e6 && height < 1e6)) {
            box.x = box.y = box.width = box.height = 1;
            box.score = -1;
        }
        boxes[i] = box;
    }
}

static int by_key(const void *a, const void *b)
{
    const Pair *p = *(Pair *const *)a, *q = *(Pair *const *)b;
    if (p->key != q->key)
        return p->key > q->key ? -1 : 1;
    return p < q ? -1 : p > q;
}

/* pairs.py: Pairs.alike and match. Fills `track_of` (-1: none) by box; returns how many were matched. */
static int64_t match(Pair *pairs, int64_t n_pairs, Pair **order, int32_t *track_of, char *taken, int64_t n_tracks,
                     int64_t n_boxes)
{
    int64_t able = 0, matched = 0;
    for (int64_t i = 0; i < n_pairs; i++) {
        Pair *p = pairs + i;
        double a = most(least(p->sum[0] - fabs(p->offset[0]), p->smaller[0]), 0);
        double b = most(least(p->sum[1] - fabs(p->offset[1]), p->smaller[1]), 0);
        double common = a * b;
        double worth = common / (p->areas - common) * p->ratio * p->weight;
        if (worth >= p->gate) {
            p->key = worth + p->round;
            order[able++] = p;
        }
    }
    qsort(order, (size_t)able, sizeof *order, by_key);
    memset(taken, 0, (size_t)n_tracks);
    for (int64_t i = 0; i < n_boxes; i++)
        track_of[i] = -1;
    for (int64_t i = 0; i < n_pairs; i++)
        pairs[i].able = 0;
    for (int64_t i = 0; i < able; i++) {
        Pair *p = order[i];
        if (!taken[p->row] && track_of[p->column] < 0) {
            taken[p->row] = 1;
            track_of[p->column] = p->row;
            p->able = 1;
            matched++;
        }
    }
    return matched;
}

static int by_value(const void *a, const void *b)
{
    double p = *(const double *)a, q = *(const double *)b;
    return p < q ? -1 : p > q;
}

static double median(double *values, int64_t n)
{
    qsort(values, (size_t)n, sizeof *values, by_value);
    return (values[n / 2] + values[(n - 1) / 2]) / 2;
}

static double spread(const double *values, double *spare, int64_t n, double center)
{
    for (int64_t i = 0; i < n; i++)
        spare[i] = fabs(values[i] - center);
    return median(spare, n);
}

/* bytetrack.py: _shifts, and camera.py: common_shift. `spare` has room for three numbers a pair. */
static int camera_shift(const Pair *pairs, int64_t n_pairs, const double *tracks, int64_t stride, double dt,
                        double *spare, double shift[2])
{
    double *x = spare, *y = spare + n_pairs, *sorted = spare + 2 * n_pairs, height = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < n_pairs; i++) {
        const Pair *p = pairs + i;
        if (p->able && p->round == 2 && tracks[WALL * stride + p->row] <= dt) {
            x[n] = p->offset[0];
            y[n] = p->offset[1];
            height += tracks[HEIGHT * stride + p->row];
            n++;
        }
    }
    if (n < FEWEST)
        return 0;
    double still = 0.02 * height / (double)n;
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

/* pairs.py: meeting and Pairs.__init__. Returns the number of pairs, or -1 where there is no memory. */
static int64_t find_pairs(const Settings *s, const double *tracks, int64_t stride, int64_t n_tracks,
                          const Detection *boxes, const float *xyxy, int64_t n_boxes, Pair **found)
{
    int all = n_tracks * n_boxes <= FEW;
    int64_t n = 0, room = all ? n_tracks * n_boxes : 4 * (n_tracks + n_boxes);
    Pair *pairs = malloc((size_t)room * sizeof *pairs);
    *found = pairs;
    if (pairs == NULL)
        return -1;
    const double gates[6] = {INFINITY, INFINITY, most(s->new_gate, 1e-9), INFINITY, most(s->weak_gate, 1e-9),
                             most(s->gate, 1e-9)};
    for (int64_t t = 0; t < n_tracks; t++) {
        double x = tracks[X * stride + t], y = tracks[Y * stride + t];
        double width = tracks[WIDTH * stride + t], height = tracks[HEIGHT * stride + t];
        double reach = least(sqrt(tracks[VARIANCE * stride + t]) * 2, 0.5) * height;
        double grown = reach * 2 + height * 0.25;
        float left = (float)(x - (width * 0.5 + grown)), right = (float)(x + (width * 0.5 + grown));
        float top = (float)(y - (height * 0.5 + grown)), bottom = (float)(y + (height * 0.5 + grown));
        int confirmed = tracks[ID * stride + t] > 0;
        for (int64_t b = 0; b < n_boxes; b++) {
            const float *c = xyxy + 4 * b;
            if (!all) {
                float across = (right < c[2] ? right : c[2]) - (left > c[0] ? left : c[0]);
                float down = (bottom < c[3] ? bottom : c[3]) - (top > c[1] ? top : c[1]);
                if (!(across > 0 && down > 0))
                    continue;
            }
            const Detection *box = boxes + b;
            int kind = (box->score >= s->low) + (box->score >= s->high) + 3 * confirmed;
            if (gates[kind] == INFINITY)
                continue; /* never matched */
            if (n == room) {
                Pair *more = realloc(pairs, (size_t)(room *= 2) * sizeof *pairs);
                if (more == NULL)
                    return -1;
                *found = pairs = more;
            }
            Pair *p = pairs + n++;
            double ratio = box->height / height, lower = 1 / ratio;
            double track_width = width + 2 * reach, track_height = height + 2 * reach;
            double box_width = box->width + 2 * reach * ratio, box_height = box->height + 2 * reach * ratio;
            p->ratio = sqrt(least(lower, ratio));
            p->offset[0] = box->x - x;
            p->offset[1] = box->y - y;
            p->smaller[0] = least(track_width, box_width);
            p->smaller[1] = least(track_height, box_height);
            p->areas = track_width * track_height + box_width * box_height;
            p->sum[0] = (track_width + box_width) * 0.5;
            p->sum[1] = (track_height + box_height) * 0.5;
            p->gate = gates[kind];
            p->round = kind == 5 ? 2 : kind == 4 ? 1 : 0;
            p->weight = kind == 5 ? box->score : 1;
            if (tracks[CLASS * stride + t] != box->class_id)
                p->weight *= 0.5;
            p->row = (int32_t)t;
            p->column = (int32_t)b;
        }
    }
    return n;
}

/* motion.py: Motion.correct, and votes.py: vote. */
static void take_in(const Settings *s, double *tracks, int64_t stride, int64_t t, const Detection *box)
{
    double doubt = 1.5 - box->score, noise = doubt * doubt * (s->box_noise * s->box_noise);
    const double seen[4] = {box->x, box->y, box->width, box->height};
    for (int i = 0; i < 2; i++) {
        double *place = tracks + (VARIANCE + i) * stride + t, *mixed = tracks + (VARIANCE + 2 + i) * stride + t;
        double *rate = tracks + (VARIANCE + 4 + i) * stride + t;
        double gain = *place / (*place + noise), gain_speed = *mixed / (*place + noise);
        for (int j = 2 * i; j < 2 * i + 2; j++) {
            double residual = seen[j] - tracks[j * stride + t];
            tracks[j * stride + t] += gain * residual;
            tracks[(SPEED + j) * stride + t] += gain_speed * residual;
        }
        *rate -= gain_speed * *mixed;
        *place *= 1 - gain;
        *mixed *= 1 - gain;
    }
    tracks[UNSEEN * stride + t] = tracks[WALL * stride + t] = 0;
    double *classes = tracks + CLASS * stride + t, *weights = tracks + WEIGHT * stride + t;
    if (classes[0] == box->class_id) {
        weights[0] += box->score;
        return;
    }
    int at = 0;
    for (int i = 1; i < VOTES; i++)
        if (classes[i * stride] == box->class_id) {
            at = i;
            break;
        }
    if (at == 0) {
        at = 1;
        for (int i = 2; i < VOTES; i++)
            if (weights[i * stride] < weights[at * stride])
                at = i;
        if (!(classes[at * stride] >= 0))
            weights[at * stride] = 0;
    }
    weights[at * stride] += box->score;
    classes[at * stride] = box->class_id;
    if (weights[at * stride] > weights[0]) {
        double weight = weights[0], class_id = classes[0];
        weights[0] = weights[at * stride];
        classes[0] = classes[at * stride];
        weights[at * stride] = weight;
        classes[at * stride] = class_id;
    }
}

/* batch.py: Tracker._born, for one box. */
static void begin(const Settings *s, double *tracks, int64_t stride, int64_t t, const Detection *box)
{
    for (int row = 0; row < ROWS; row++)
        tracks[row * stride + t] = row >= CLASS && row < CLASS + VOTES ? -1 : 0;
    tracks[X * stride + t] = box->x;
    tracks[Y * stride + t] = box->y;
    tracks[WIDTH * stride + t] = box->width;
    tracks[HEIGHT * stride + t] = box->height;
    double doubt = s->box_noise * (1.5 - box->score);
    for (int i = 0; i < 2; i++) {
        tracks[(VARIANCE + i) * stride + t] = doubt * doubt;
        tracks[(VARIANCE + 4 + i) * stride + t] = s->first_speed * s->first_speed;
    }
    tracks[ONE * stride + t] = 1;
    tracks[CLASS * stride + t] = box->class_id;
    tracks[WEIGHT * stride + t] = box->score;
    tracks[UNSEEN * stride + t] = box->score >= s->certain ? 0 : s->lost_s;
}

/* batch.py: _numbers: whether track `a` gets its id before track `b`. */
static int before(const double *tracks, int64_t stride, int64_t a, int64_t b)
{
    for (int row = HEIGHT; row >= X; row--) {
        double p = tracks[row * stride + a], q = tracks[row * stride + b];
        if (p != q)
            return p < q;
    }
    return a < b;
}

/* One frame; see bytetrack_batch. `stride` is n_tracks + n_boxes. `ids` of new tracks are 0 still.
 *
 * Returns 0; 1 where there is no memory or too many tracks for this way: nothing is to be used then.
 */
static int step(const Settings *s, const double *tracks, int64_t n_tracks, double dt, double observed,
                const float *xyxy, const float *score, const int32_t *class_id, int64_t n_boxes, double *out,
                double *track_age, double *velocity, int32_t *track_class, int64_t *track_id, int64_t *fresh,
                double *ended, int64_t *counts)
{
    int64_t stride = n_tracks + n_boxes, failed = 1;
    Detection few_boxes[ON_STACK], *boxes = few_boxes;
    int32_t few_of[ON_STACK], *track_of = few_of;
    char few_taken[ON_STACK], *taken = few_taken;
    Pair *pairs = NULL, **order = NULL;
    double *spare = NULL;

    if (stride > INT32_MAX)
        return 1;
    if (n_boxes > ON_STACK) {
        boxes = malloc((size_t)n_boxes * sizeof *boxes);
        track_of = malloc((size_t)n_boxes * sizeof *track_of);
    }
    if (n_tracks > ON_STACK)
        taken = malloc((size_t)n_tracks);
    if (boxes == NULL || track_of == NULL || taken == NULL)
        goto end;
    if (stride)
        advance(s, out, tracks, stride, n_tracks, dt, observed);
    read_boxes(boxes, xyxy, score, class_id, n_boxes);
    for (int64_t i = 0; i < n_boxes; i++)
        track_of[i] = -1;
    if (n_tracks && n_boxes) {
        int64_t n_pairs = find_pairs(s, out, stride, n_tracks, boxes, xyxy, n_boxes, &pairs);
        if (n_pairs < 0)
            goto end;
        if (n_pairs) {
            order = malloc((size_t)n_pairs * sizeof *order);
            spare = malloc((size_t)n_pairs * 3 * sizeof *spare);
            if (order == NULL || spare == NULL)
                goto end;
            double shift[2];
            int64_t matched = match(pairs, n_pairs, order, track_of, taken, n_tracks, n_boxes);
            if (s->camera != 0 && matched >= FEWEST &&
                camera_shift(pairs, n_pairs, out, stride, dt, spare, shift)) {
                for (int axis = 0; axis < 2; axis++) {
                    for (int64_t t = 0; t < n_tracks; t++)
                        out[axis * stride + t] += shift[axis];
                    for (int64_t i = 0; i < n_pairs; i++)
                        pairs[i].offset[axis] -= shift[axis];
                }
                match(pairs, n_pairs, order, track_of, taken, n_tracks, n_boxes);
            }
        }
    }

    /* What is seen, then what is new. The tracks that get an id of each are sorted among themselves. */
    int64_t total = n_tracks, named = 0;
    for (int round = 0; round < 2; round++) {
        int64_t first = named;
        for (int64_t b = 0; b < n_boxes; b++) {
            int64_t t = track_of[b];
            int names = 0;
            if (round == 0 && t >= 0) {
                names = out[ID * stride + t] == 0;
                take_in(s, out, stride, t, boxes + b);
            } else if (round == 1 && t < 0 && boxes[b].score >= s->high) {
                t = track_of[b] = (int32_t)total++;
                begin(s, out, stride, t, boxes + b);
                names = boxes[b].score >= s->certain;
            }
            if (names) {
                int64_t at = named++;
                for (; at > first && before(out, stride, t, fresh[2 * at - 2]); at--) {
                    fresh[2 * at] = fresh[2 * at - 2];
                    fresh[2 * at + 1] = fresh[2 * at - 1];
                }
                fresh[2 * at] = t;
                fresh[2 * at + 1] = b;
            }
        }
    }
    if ((double)total > s->most)
        goto end;

    for (int64_t b = 0; b < n_boxes; b++) {
        int64_t t = track_of[b];
        track_age[b] = t < 0 ? 0 : out[AGE * stride + t];
        velocity[2 * b] = t < 0 ? 0 : out[SPEED * stride + t];
        velocity[2 * b + 1] = t < 0 ? 0 : out[(SPEED + 1) * stride + t];
        track_class[b] = t < 0 ? class_id[b] : (int32_t)out[CLASS * stride + t];
        track_id[b] = t < 0 ? 0 : (int64_t)out[ID * stride + t];
    }

    /* batch.py: Tracker._commit. */
    int64_t alive = 0, gone = 0;
    for (int64_t t = 0; t < total; t++) {
        double unseen = out[UNSEEN * stride + t], wall = out[WALL * stride + t], id = out[ID * stride + t];
        if (unseen > s->lost_s + 1e-6 || wall > s->wall_s + 1e-6) {
            if (id > 0) {
                ended[4 * gone] = id;
                ended[4 * gone + 1] = out[CLASS * stride + t];
                ended[4 * gone + 2] = out[AGE * stride + t] - unseen;
                ended[4 * gone + 3] = wall;
                gone++;
            }
            continue;
        }
        if (alive < t) {
            for (int row = 0; row < ROWS; row++)
                out[row * stride + alive] = out[row * stride + t];
            for (int64_t i = 0; i < named; i++)
                if (fresh[2 * i] == t)
                    fresh[2 * i] = alive;
        }
        alive++;
    }
    counts[0] = alive;
    counts[1] = named;
    counts[2] = gone;
    failed = 0;
end:
    if (boxes != few_boxes)
        free(boxes);
    if (track_of != few_of)
        free(track_of);
    if (taken != few_taken)
        free(taken);
    free(pairs);
    free(order);
    free(spare);
    return (int)failed;
}

/* All frames of a batch; no stream has two.
 *
 * frames: how many. Whatever is by box holds the values of the first frame's boxes, then those of the second, and so on.
 * facts: seven by frame: the address of its stream's tracks, that of the room for those that live on, the number of its
 *     stream's tracks and that of its boxes are given. How many tracks live on, new ids and ended tracks are returned, -1
 *     of each where the frame was not processed: there is no memory, or too many tracks for this way.
 *     The tracks are ROWS rows of doubles, left alone; there is room for ROWS rows of tracks and boxes together, whose
 *     beginning gets ROWS rows of the tracks that live on.
 * passed: by frame, seconds since its stream's last frame, and how many of them count as observed.
 * xyxy, score, class_id: by box.
 * age, velocity, track_class, track_id: by box, of its track; 0 in `track_id` where the track has no id yet.
 * fresh: room for two by box. By new id, in the order of the ids: the track's column and the box, both counted within the
 *     frame. Those of a frame begin at twice its first box.
 * ended: room for four by track. By confirmed track that has ended: id, leader, observed age, seconds unseen. Those of a
 *     frame begin at four times its stream's first track.
 */
void bytetrack_batch(const Settings *s, int64_t frames, int64_t *facts, const double *passed, const float *xyxy,
                     const float *score, const int32_t *class_id, double *age, double *velocity, int32_t *track_class,
                     int64_t *track_id, int64_t *fresh, double *ended)
{
    for (int64_t i = 0; i < frames; i++, facts += 7, passed += 2) {
        const double *tracks = (const double *)(intptr_t)facts[0];
        double *out = (double *)(intptr_t)facts[1];
        int64_t known = facts[2], boxes = facts[3], *counts = facts + 4, stride = known + boxes;
        if (step(s, tracks, known, passed[0], passed[1], xyxy, score, class_id, boxes, out, age, velocity, track_class,
                 track_id, fresh, ended, counts))
            counts[0] = counts[1] = counts[2] = -1;
        else if (counts[0] < stride)
            for (int64_t row = 1; row < ROWS; row++)
                memmove(out + row * counts[0], out + row * stride, (size_t)counts[0] * sizeof *out);
        xyxy += 4 * boxes;
        score += boxes;
        class_id += boxes;
        age += boxes;
        velocity += 2 * boxes;
        track_class += boxes;
        track_id += boxes;
        fresh += 2 * boxes;
        ended += 4 * known;
    }
}
