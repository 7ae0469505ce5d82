/* The frames of a batch, one after the other: when they were captured (clock.py), what ends all tracks (batch.py), the step of
 * each (bytetrack.c), and which boxes are published (select.c). */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bytetrack.h"

/* In the order of native.py. `time_ns` and `missed` as in observation.py; or, with the clocks of streams, when the frame arrived
 * and its number. */
typedef struct {
    Stream *stream;
    int64_t time_ns, missed, begin, width, height; /* begin: an End, or 0 */
    int64_t pts_ns;
    const int64_t *roi; /* NULL for all of the picture */
} Frame;

/* In the order of clock.py. */
typedef struct {
    int64_t live, captured_ns, pts_ns, now_ns, ahead_ns, paused_ns, seq;
} Clock;

/* What is told of a frame: its number, how many confirmed tracks have ended, and why. */
typedef struct {
    int64_t frame, gone, why;
} Told;

/* What is kept from call to call, and what the last one has to say; up to `times` in the order of native.py. */
typedef struct {
    int64_t some, gone, chosen, tracks, pairs; /* frames told of, tracks ended, boxes chosen; of the frames that were stepped */
    Told *told;
    double *ended;  /* by confirmed track that has ended: id, leader, observed age, seconds unseen */
    int64_t *times; /* by frame stepped with the clocks of streams: its time, that for tracks, and how many were missed */
    int64_t told_room, ended_room, times_room;
    Scratch scratch;
} Work;

/* In the order of selection.py: which boxes are published. */
typedef struct {
    const float *floors;
    int64_t classes, weak;
} Choice;

int64_t bytetrack_work_size(void) { return sizeof(Work); }

static int grow(void **memory, int64_t *room, int64_t needed, size_t size)
{
    if (needed <= *room)
        return 0;
    needed += needed / 2 + EIGHT;
    void *more = realloc(*memory, (size_t)needed * size);
    if (more == NULL)
        return 1;
    *memory = more;
    *room = needed;
    return 0;
}

static void free_scratch(Scratch *room)
{
    free(room->matrix);
    free(room->found);
    free(room->boxes.left);
    free(room->track_of);
    free(room->near);
    free(room->fresh);
    free(room->alive);
    free(room->taken);
    free(room->subject);
    room->across = room->down = 0;
    room->matrix = NULL;
    room->found = NULL;
    room->boxes.left = NULL;
    room->track_of = room->near = room->fresh = room->alive = NULL;
    room->taken = NULL;
    room->subject = NULL;
}

/* Room for so many tracks and boxes together, and for so many boxes. */
static int reserve(Scratch *room, int64_t stride, int64_t n_boxes)
{
    if (stride < room->across && n_boxes < room->down)
        return 0;
    if (stride > INT32_MAX / 4)
        return 1;
    free_scratch(room);
    size_t across = (size_t)(stride + stride / 2) + EIGHT, boxes = ((size_t)(n_boxes + n_boxes / 2) / EIGHT + 1) * EIGHT;
    room->matrix = malloc(across * ROWS * sizeof *room->matrix);
    room->found = malloc(boxes * sizeof *room->found);
    float *rows = room->boxes.left = calloc(boxes * BOX_ROWS, sizeof *rows);
    room->track_of = malloc(boxes * sizeof *room->track_of);
    room->near = malloc(boxes * sizeof *room->near);
    room->fresh = malloc(across * sizeof *room->fresh);
    room->alive = malloc(across * sizeof *room->alive);
    room->taken = malloc(across);
    room->subject = malloc(across * sizeof *room->subject);
    if (room->matrix == NULL || room->found == NULL || rows == NULL || room->track_of == NULL || room->near == NULL ||
        room->fresh == NULL || room->alive == NULL || room->taken == NULL || room->subject == NULL) {
        free_scratch(room);
        return 1;
    }
    float **row[BOX_ROWS] = {&room->boxes.left,    &room->boxes.top,     &room->boxes.right, &room->boxes.bottom,
                             &room->boxes.x,       &room->boxes.y,       &room->boxes.width, &room->boxes.height,
                             &room->boxes.need[0], &room->boxes.need[1]};
    for (int i = 0; i < BOX_ROWS; i++)
        *row[i] = rows + (size_t)i * boxes;
    room->across = (int64_t)across;
    room->down = (int64_t)boxes;
    return 0;
}

void bytetrack_free(Work *work)
{
    free_scratch(&work->scratch);
    free(work->scratch.pair);
    free(work->scratch.rank);
    free(work->scratch.spare);
    free(work->told);
    free(work->ended);
    free(work->times);
    memset(work, 0, sizeof *work);
}

/* clock.py: MediaClock.time. */
static int64_t tick(Clock *c, int64_t captured_ns, int64_t pts_ns)
{
    const int64_t none = INT64_MIN, longest = 60000000000, farthest = (int64_t)1 << 62;
    if (pts_ns <= -farthest || pts_ns >= farthest)
        pts_ns = none;
    int64_t before = c->captured_ns, last = c->pts_ns, passed = captured_ns - before;
    c->captured_ns = captured_ns;
    c->pts_ns = pts_ns;
    if (!before)
        return c->now_ns = captured_ns;
    if (pts_ns != none && last != none && pts_ns > last) {
        int64_t media = pts_ns - last, ahead = c->ahead_ns + media - passed;
        if (!c->live) {
            if (media < longest)
                passed = media;
        } else if (llabs(media - passed) < 500000000 && ahead > -500000000 && ahead < 5000000000) {
            int64_t back = (int64_t)rint((double)ahead * least((double)media / 30e9, 1));
            c->ahead_ns = ahead - back;
            passed = media - back;
        }
    }
    return c->now_ns += passed > 1 ? passed : 1;
}

/* batch.py: Tracker._break. */
static enum End broken(const Settings *s, const Stream *stream, const Frame *f, int64_t time_ns)
{
    if (f->begin)
        return (enum End)f->begin;
    if (stream->width != f->width || stream->height != f->height)
        return SIZE;
    if (stream->part != (f->roi != NULL) || (f->roi != NULL && memcmp(stream->roi, f->roi, sizeof stream->roi)))
        return CROP;
    return (double)(time_ns - stream->time_ns) > s->outage_s * 1e9 ? OUTAGE : LOST;
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

/* One frame at its time. Returns whether it is left to Python: nothing has changed then. */
static int frame(const Settings *s, Work *work, const Frame *f, int64_t time_ns, int64_t missed, int64_t number,
                 const float *xyxy, const float *score, const int32_t *class_id, int64_t boxes, Columns by_box)
{
    Stream *stream = f->stream;
    double dt = 0;
    int64_t passed_ns = 0, n_tracks = stream->count, gone = 0, why = LOST;
    if (reserve(&work->scratch, n_tracks + boxes, boxes) ||
        grow((void **)&work->ended, &work->ended_room, work->gone + n_tracks + boxes, 4 * sizeof *work->ended) ||
        grow((void **)&work->told, &work->told_room, work->some + 1, sizeof *work->told))
        return 1;
    double *ended = work->ended + 4 * work->gone;
    if (stream->known) {
        passed_ns = time_ns - stream->time_ns;
        dt = (double)(passed_ns >= 0 ? passed_ns : stream->step_ns) / 1e9;
        why = broken(s, stream, f, time_ns);
        if (why != LOST) {
            gone = end_all(stream, dt, ended);
            dt = 0;
            passed_ns = n_tracks = 0;
        }
    }
    double observed = least(dt / (1 + most((double)missed, 0)), 0.1);
    int64_t more = bytetrack_step(s, &work->scratch, stream, n_tracks, dt, observed, xyxy, score, class_id, boxes, by_box,
                                  ended + 4 * gone);
    if (more < 0)
        return 1;
    gone += more;
    work->tracks += n_tracks;
    work->pairs += n_tracks * boxes;
    work->gone += gone;
    if (gone)
        work->told[work->some++] = (Told){number, gone, why};
    stream->known = 1;
    stream->time_ns = time_ns;
    stream->width = f->width;
    stream->height = f->height;
    stream->part = f->roi != NULL;
    if (f->roi != NULL)
        memcpy(stream->roi, f->roi, sizeof stream->roi);
    if (passed_ns > 0)
        stream->step_ns = passed_ns;
    return 0;
}

/* What a call is about; up to `out` in the order of native.py. */
typedef struct {
    const Settings *settings;
    Work *work;         /* zeros at first; what it has to say is valid until the next call */
    int64_t n;          /* frames */
    int64_t first;      /* the first frame to step; those before it have been */
    int64_t clocks;     /* whether the frames' times are to be found by the clocks of their streams; see `Work.times` */
    const void *boxes;  /* of all frames the corners, then all scores, then all classes */
    void *columns;      /* room for ids, ages, velocities and classes by box, in this order */
    const Choice *choice; /* which boxes are published; NULL for none */
    void *out;          /* room for ids, ages, velocities, corners, scores and classes of as many as there are boxes, in this
                         * order, and for which boxes these are. Filled if all frames were stepped */
    Frame frames[];     /* n; then the first box of each, and the end; then room for the number of chosen boxes up to the end of
                         * each */
} Call;

/* Frames in the order of their capture; a stream may have several.
 *
 * Returns the number of the first frame that was not stepped, or n. If there is no room for its stream's tracks, nothing of
 * it has changed; otherwise it is left to Python, and was given its time. -1 where there is no memory: nothing has changed.
 */
int64_t bytetrack_frames(Call *call)
{
    Work *work = call->work;
    const Frame *frames = call->frames;
    int64_t n = call->n, *bounds = (int64_t *)(frames + n), *ends = bounds + n + 1, all = bounds[n], at = call->first;
    const float *xyxy = call->boxes, *score = xyxy + 4 * all;
    const int32_t *class_id = (const int32_t *)(score + all);
    work->some = work->gone = work->tracks = work->pairs = 0;
    work->chosen = -1;
    if (call->clocks && grow((void **)&work->times, &work->times_room, n, 3 * sizeof *work->times))
        return -1;
    int64_t *id = call->columns;
    double *age = (double *)(id + all), *velocity = age + all;
    int32_t *track_class = (int32_t *)(velocity + 2 * all);
    for (; at < n; at++) {
        const Frame *f = frames + at;
        int64_t box = bounds[at], count = bounds[at + 1] - box, time_ns = f->time_ns, missed = f->missed;
        if (f->stream->count + count > f->stream->room)
            return at;
        if (call->clocks) {
            Clock *clock = (Clock *)f->stream->clock;
            int64_t last = clock->seq;
            clock->seq = f->missed;
            missed = clock->seq > last && last >= 0 ? clock->seq - last - 1 : 0;
            int64_t now_ns = tick(clock, f->time_ns, f->pts_ns), *times = work->times + 3 * at;
            times[0] = now_ns;
            times[1] = time_ns = now_ns - clock->paused_ns;
            times[2] = missed;
        }
        Columns by_box = {age + box, velocity + 2 * box, id + box, track_class + box};
        if (frame(call->settings, work, f, time_ns, missed, at, xyxy + 4 * box, score + box, class_id + box, count, by_box))
            return at;
    }
    if (call->choice != NULL) {
        const Choice *choice = call->choice;
        int64_t *number = call->out;
        double *ages = (double *)(number + all), *velocities = ages + all;
        float *corners = (float *)(velocities + 2 * all), *scores = corners + 4 * all;
        work->chosen = select_boxes(all, n, bounds + 1, choice->floors, choice->classes, choice->weak, call->boxes, id, number,
                                    ages, velocities, corners, scores, (int32_t *)(scores + all), (char *)(number + 7 * all),
                                    ends);
    }
    return n;
}
