/* ByteTrack on the frames of a batch, each of another stream, as in batch.py, bytetrack.py, motion.py and votes.py; pairs.py and
 * camera.py are in associate.c.
 *
 * Those are the reference, and what runs where this file was not compiled; tests/analysis/tracking/test_native.py holds
 * both to the same results. It uses nothing of Python, so that building it takes a C compiler and no headers, and it is
 * called through ctypes.
 *
 * Tracks are columns of a matrix of doubles, one row a quantity (tracks.py); a row has `stride` places.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bytetrack.h"

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
static void read_boxes(Scratch *room, const float *xyxy, const float *score, const int32_t *class_id, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float *c = xyxy + 4 * i;
        double width = (double)c[2] - c[0], height = (double)c[3] - c[1];
        Detection box = {((double)c[2] + c[0]) * 0.5, ((double)c[3] + c[1]) * 0.5, width, height, score[i], class_id[i]};
        if (!(width > 0 && height > 0 && width < 1e6 && height < 1e6)) {
            box.x = box.y = box.width = box.height = 1;
            box.score = -1;
        }
        room->found[i] = box;
        Boxes *r = &room->boxes;
        r->left[i] = c[0], r->top[i] = c[1], r->right[i] = c[2], r->bottom[i] = c[3];
        r->x[i] = (float)box.x, r->y[i] = (float)box.y, r->width[i] = (float)box.width, r->height[i] = (float)box.height;
    }
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
static int earlier(const double *tracks, int64_t stride, int64_t a, int64_t b)
{
    for (int row = HEIGHT; row >= X; row--) {
        double p = tracks[row * stride + a], q = tracks[row * stride + b];
        if (p != q)
            return p < q;
    }
    return a < b;
}

/* In the order of tracks.py. */
typedef struct {
    double *tracks; /* ROWS rows of `count` columns */
    int64_t room;   /* for how many columns */
    int64_t count, active;
    int64_t known; /* whether there was a frame; of it: */
    int64_t time_ns, width, height, part, roi[4];
    int64_t step_ns;
} Stream;

/* In the order of native.py. */
typedef struct {
    Stream *stream;
    int64_t time_ns, missed, begin, boxes; /* begin: an End, or 0 */
    int64_t width, height, part, roi[4];
} Frame;

/* Why tracks ended; as native.py has them. */
enum End { LOST, LOOP, RESTART, SIZE, CROP, OUTAGE };

/* What is told of a frame: its number, whether it is left to Python, how many tracks get an id, how many confirmed ones have
 * ended, and why. */
typedef struct {
    int64_t frame, left, named, gone, why;
} Told;

/* By box. */
typedef struct {
    double *age, *velocity;
    int64_t *id;
    int32_t *class_id;
    int64_t *fresh;
} Columns;

/* One frame after `n_tracks` tracks, all of the stream's or none. Returns 0; 1 where there is no memory or too many tracks
 * for this way: nothing has changed then. */
static int step(const Settings *s, Scratch *room, Stream *stream, int64_t n_tracks, double dt, double observed,
                const float *xyxy, const float *score, const int32_t *class_id, int64_t n_boxes, Columns by_box,
                double *ended, Told *told)
{
    int64_t stride = n_tracks + n_boxes;
    double *out = room->matrix;
    int32_t *track_of = room->track_of;

    if (stride)
        advance(s, out, stream->tracks, stride, n_tracks, dt, observed);
    read_boxes(room, xyxy, score, class_id, n_boxes);
    for (int64_t i = 0; i < n_boxes; i++)
        track_of[i] = -1;
    if (n_tracks && n_boxes && associate(s, room, stride, n_tracks, n_boxes, dt))
        return 1;

    /* What is seen, then what is new. The tracks that get an id of each are sorted among themselves. */
    int64_t total = n_tracks, named = 0, *fresh = by_box.fresh;
    for (int round = 0; round < 2; round++) {
        int64_t first = named;
        for (int64_t b = 0; b < n_boxes; b++) {
            const Detection *box = room->found + b;
            int64_t t = track_of[b];
            int names = 0;
            if (round == 0 && t >= 0) {
                names = out[ID * stride + t] == 0;
                take_in(s, out, stride, t, box);
            } else if (round == 1 && t < 0 && box->score >= s->high) {
                t = track_of[b] = (int32_t)total++;
                begin(s, out, stride, t, box);
                names = box->score >= s->certain;
            }
            if (names) {
                int64_t at = named++;
                for (; at > first && earlier(out, stride, t, fresh[2 * at - 2]); at--) {
                    fresh[2 * at] = fresh[2 * at - 2];
                    fresh[2 * at + 1] = fresh[2 * at - 1];
                }
                fresh[2 * at] = t;
                fresh[2 * at + 1] = b;
            }
        }
    }
    if ((double)total > s->most || total > stream->room)
        return 1;

    for (int64_t b = 0; b < n_boxes; b++) {
        int64_t t = track_of[b];
        by_box.age[b] = t < 0 ? 0 : out[AGE * stride + t];
        by_box.velocity[2 * b] = t < 0 ? 0 : out[SPEED * stride + t];
        by_box.velocity[2 * b + 1] = t < 0 ? 0 : out[(SPEED + 1) * stride + t];
        by_box.class_id[b] = t < 0 ? class_id[b] : (int32_t)out[CLASS * stride + t];
        by_box.id[b] = t < 0 ? 0 : (int64_t)out[ID * stride + t];
    }

    /* batch.py: Tracker._commit. */
    int64_t alive = 0, gone = 0, active = named;
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
        if (alive < t)
            for (int64_t i = 0; i < named; i++)
                if (fresh[2 * i] == t)
                    fresh[2 * i] = alive;
        active += id > 0 && wall == 0;
        room->alive[alive++] = (int32_t)t;
    }
    for (int row = 0; row < ROWS; row++) {
        double *to = stream->tracks + row * alive;
        const double *from = out + row * stride;
        if (alive == total)
            memcpy(to, from, (size_t)alive * sizeof *to);
        else
            for (int64_t i = 0; i < alive; i++)
                to[i] = from[room->alive[i]];
    }
    stream->count = alive;
    stream->active = active;
    told->named = named;
    told->gone += gone;
    return 0;
}

/* batch.py: Tracker._break. */
static enum End broken(const Settings *s, const Stream *stream, const Frame *f)
{
    if (f->begin)
        return (enum End)f->begin;
    if (stream->width != f->width || stream->height != f->height)
        return SIZE;
    if (stream->part != f->part || memcmp(stream->roi, f->roi, sizeof stream->roi))
        return CROP;
    return (double)(f->time_ns - stream->time_ns) > s->outage_s * 1e9 ? OUTAGE : LOST;
}

/* batch.py: _ends. Returns how many. */
static int64_t end_all(const Stream *stream, double dt, double *ended)
{
    int64_t gone = 0, n = stream->count;
    const double *tracks = stream->tracks;
    for (int64_t t = 0; t < n; t++)
        if (tracks[ID * n + t] > 0) {
            ended[4 * gone] = tracks[ID * n + t];
            ended[4 * gone + 1] = tracks[CLASS * n + t];
            ended[4 * gone + 2] = tracks[AGE * n + t] - tracks[UNSEEN * n + t];
            ended[4 * gone + 3] = tracks[WALL * n + t] + dt;
            gone++;
        }
    return gone;
}

static int frame(const Settings *s, Scratch *room, const Frame *f, const float *xyxy, const float *score,
                 const int32_t *class_id, Columns by_box, double *ended, Told *told)
{
    Stream *stream = f->stream;
    double dt = 0;
    int64_t passed_ns = 0, n_tracks = stream->count;
    if (stream->known) {
        passed_ns = f->time_ns - stream->time_ns;
        dt = (double)(passed_ns >= 0 ? passed_ns : stream->step_ns) / 1e9;
        told->why = broken(s, stream, f);
        if (told->why != LOST) {
            told->gone = end_all(stream, dt, ended);
            dt = 0;
            passed_ns = n_tracks = 0;
        }
    }
    double observed = least(dt / (1 + most((double)f->missed, 0)), 0.1);
    if (step(s, room, stream, n_tracks, dt, observed, xyxy, score, class_id, f->boxes, by_box, ended, told))
        return 1;
    stream->known = 1;
    stream->time_ns = f->time_ns;
    stream->width = f->width;
    stream->height = f->height;
    stream->part = f->part;
    memcpy(stream->roi, f->roi, sizeof stream->roi);
    if (passed_ns > 0)
        stream->step_ns = passed_ns;
    return 0;
}

static int make_room(Scratch *room, const Frame *frames, int64_t n)
{
    int64_t stride = 0, most_boxes = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t tracks = frames[i].stream->count, boxes = frames[i].boxes;
        most_boxes = boxes > most_boxes ? boxes : most_boxes;
        stride = tracks + boxes > stride ? tracks + boxes : stride;
    }
    if (stride > INT32_MAX - EIGHT)
        return 1;
    size_t across = (size_t)stride + 1, boxes = (size_t)(most_boxes / EIGHT + 1) * EIGHT;
    room->matrix = malloc(across * ROWS * sizeof *room->matrix);
    room->found = malloc(boxes * sizeof *room->found);
    float *rows = room->boxes.left = calloc(boxes * BOX_ROWS, sizeof *rows);
    room->track_of = malloc(boxes * sizeof *room->track_of);
    room->near = malloc(boxes * sizeof *room->near);
    room->marked = malloc(boxes * sizeof *room->marked);
    room->alive = malloc(across * sizeof *room->alive);
    room->taken = malloc(across);
    room->subject = malloc(across * sizeof *room->subject);
    if (room->matrix == NULL || room->found == NULL || rows == NULL || room->track_of == NULL || room->near == NULL ||
        room->marked == NULL || room->alive == NULL || room->taken == NULL || room->subject == NULL)
        return 1;
    float **row[BOX_ROWS] = {&room->boxes.left,    &room->boxes.top,     &room->boxes.right, &room->boxes.bottom,
                             &room->boxes.x,       &room->boxes.y,       &room->boxes.width, &room->boxes.height,
                             &room->boxes.need[0], &room->boxes.need[1]};
    for (int i = 0; i < BOX_ROWS; i++)
        *row[i] = rows + (size_t)i * boxes;
    return 0;
}

static void free_room(Scratch *room)
{
    free(room->matrix);
    free(room->found);
    free(room->boxes.left);
    free(room->track_of);
    free(room->near);
    free(room->marked);
    free(room->alive);
    free(room->taken);
    free(room->subject);
    free(room->pair);
    free(room->rank);
    free(room->spare);
}

/* All frames of a batch; no stream has two.
 *
 * Whatever is by box holds the values of the first frame's boxes, then those of the second, and so on.
 * frames: of streams with room for the tracks they have and as many as there are boxes.
 * boxes: of all frames the corners, then all scores, then all classes.
 * age, velocity, track_id, track_class: by box, of its track; 0 in `track_id` where the track has no id yet.
 * fresh: room for two by box. By new id, in the order of the ids: the track's column and the box, both counted within the
 *     frame. Those of a frame begin at twice its first box.
 * ended: room for four by track. By confirmed track that has ended: id, leader, observed age, seconds unseen. Those of a
 *     frame follow those of the frame before it.
 * told: room for one by frame. What was left to Python has changed nothing.
 *
 * Returns of how many frames anything is told.
 */
int64_t bytetrack_frames(const Settings *s, int64_t n, const Frame *frames, const void *boxes, double *age, double *velocity,
                        int64_t *track_id, int32_t *track_class, int64_t *fresh, double *ended, Told *told)
{
    Scratch room = {0};
    int64_t all = 0, some = 0, no_room = make_room(&room, frames, n);
    for (int64_t i = 0; i < n; i++)
        all += frames[i].boxes;
    const float *xyxy = boxes, *score = xyxy + 4 * all;
    const int32_t *class_id = (const int32_t *)(score + all);
    Columns by_box = {age, velocity, track_id, track_class, fresh};
    for (int64_t i = 0; i < n; i++) {
        int64_t found = frames[i].boxes;
        Told *of = told + some;
        *of = (Told){i, 0, 0, 0, LOST};
        if (no_room || frame(s, &room, frames + i, xyxy, score, class_id, by_box, ended, of))
            *of = (Told){i, 1, 0, 0, LOST};
        some += of->left || of->named || of->gone;
        xyxy += 4 * found;
        score += found;
        class_id += found;
        by_box.age += found;
        by_box.velocity += 2 * found;
        by_box.id += found;
        by_box.class_id += found;
        by_box.fresh += 2 * found;
        ended += 4 * of->gone;
    }
    free_room(&room);
    return some;
}
