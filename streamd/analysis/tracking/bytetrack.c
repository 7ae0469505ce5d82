/* ByteTrack on one frame, as in batch.py, bytetrack.py, motion.py and votes.py; pairs.py and camera.py are in associate.c, the
 * frames of a batch in frames.c.
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
    for (int i = 0; i < 4; i++) {
        const double *from = in + i * n, *speed = in + (SPEED + i) * n;
        double *where = out + i * stride, *slower = out + (SPEED + i) * stride, smallest = i < WIDTH ? -INFINITY : 1;
        for (int64_t t = 0; t < n; t++) {
            where[t] = most(from[t] + travel * speed[t], smallest);
            slower[t] = speed[t] * decay;
        }
    }
    for (int i = 0; i < 2; i++) {
        const double *p = in + (VARIANCE + i) * n, *m = in + (VARIANCE + 2 + i) * n, *r = in + (VARIANCE + 4 + i) * n;
        double *to_p = out + (VARIANCE + i) * stride, *to_m = out + (VARIANCE + 2 + i) * stride;
        double *to_r = out + (VARIANCE + 4 + i) * stride;
        for (int64_t t = 0; t < n; t++) {
            to_p[t] = p[t] + (2 * travel * m[t] + travel * travel * r[t] + noise[i] * place);
            to_m[t] = decay * m[t] + travel * decay * r[t] + noise[i] * mixed;
            to_r[t] = decay * decay * r[t] + noise[i] * dt;
        }
    }
    const double passed[ONE - UNSEEN + 2] = {observed, dt, 0, observed};
    for (int row = UNSEEN; row <= AGE; row++)
        for (int64_t t = 0; t < n; t++)
            out[row * stride + t] = in[row * n + t] + passed[row - UNSEEN];
    for (int row = ID; row < ROWS; row++)
        for (int64_t t = 0; t < n; t++)
            out[row * stride + t] = in[row * n + t];
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

int64_t take_id(int64_t *ids) { return __atomic_fetch_add(ids, 1, __ATOMIC_RELAXED); }

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

int64_t bytetrack_step(const Settings *s, Scratch *room, Stream *stream, int64_t n_tracks, double dt, double observed,
                       const float *xyxy, const float *score, const int32_t *class_id, int64_t n_boxes, Columns by_box,
                       double *ended)
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
        return -1;

    /* What is seen, then what is new. The tracks that get an id of each are sorted among themselves. */
    int64_t total = n_tracks, named = 0;
    int32_t *fresh = room->fresh;
    for (int round = 0; round < 2; round++) {
        int64_t first = named;
        for (int64_t b = 0; b < n_boxes; b++) {
            const Detection *box = room->found + b;
            int32_t t = track_of[b];
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
                for (; at > first && earlier(out, stride, t, fresh[at - 1]); at--)
                    fresh[at] = fresh[at - 1];
                fresh[at] = t;
            }
        }
    }
    if ((double)total > s->most || total > stream->room)
        return -1;
    /* Streams of another thread may take ids from the same place. */
    for (int64_t i = 0; i < named; i++)
        out[ID * stride + fresh[i]] = (double)take_id(stream->ids);

    for (int64_t b = 0; b < n_boxes; b++) {
        int64_t t = track_of[b];
        by_box.age[b] = t < 0 ? 0 : out[AGE * stride + t];
        by_box.velocity[2 * b] = t < 0 ? 0 : out[SPEED * stride + t];
        by_box.velocity[2 * b + 1] = t < 0 ? 0 : out[(SPEED + 1) * stride + t];
        by_box.class_id[b] = t < 0 ? class_id[b] : (int32_t)out[CLASS * stride + t];
        by_box.id[b] = t < 0 ? 0 : (int64_t)out[ID * stride + t];
    }

    /* batch.py: Tracker._commit. */
    int64_t alive = 0, gone = 0, active = 0;
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
    return gone;
}
