/* What the files of the compiled tracker share. */

#ifndef STREAMD_BYTETRACK_H
#define STREAMD_BYTETRACK_H

#include <stdint.h>

enum { X, Y, WIDTH, HEIGHT, SPEED = 4, VARIANCE = 8, UNSEEN = 14, WALL, ONE, AGE, ID, CLASS, VOTES = 4, WEIGHT = 23, ROWS = 27 };

/* In the order of native.py. */
typedef struct {
    double low, high, certain, gate, weak_gate, new_gate;
    double lost_s, wall_s, outage_s, most, camera;
    double center_noise, size_noise, box_noise, first_speed, tau;
} Settings;

typedef struct {
    double x, y, width, height, score, class_id;
} Detection;

/* A track and a box that may be matched. */
typedef struct {
    double key, offset[2];
    int32_t row, column, round, matched;
} Pair;

typedef struct {
    double key;
    int64_t index;
} Rank;

/* A track as pairs need it; the corners are those of the place in whose reach a box has to be. */
typedef struct {
    double x, y, width, height, reach;
    double share; /* twice the reach in heights of the track */
    double class_id;
    float left, top, right, bottom;
    int confirmed;
} Subject;

/* In the order of tracks.py. */
typedef struct {
    double *tracks; /* ROWS rows of `count` columns */
    int64_t room;   /* for how many columns */
    int64_t count, active;
    int64_t known; /* whether there was a frame; of it: */
    int64_t time_ns, width, height, part, roi[4];
    int64_t step_ns;
    int64_t *ids;   /* the next one of those that streams share */
    int64_t *clock; /* see clock.py; NULL where the times of frames are given */
} Stream;

/* Why tracks ended; as native.py has them. */
enum End { LOST, LOOP, RESTART, SIZE, CROP, OUTAGE };

/* By box. */
typedef struct {
    double *age, *velocity;
    int64_t *id;
    int32_t *class_id;
} Columns;

enum { EIGHT = 8 };

/* Boxes in single precision, as vectors need them. */
typedef struct {
    float *left, *top, *right, *bottom, *x, *y, *width, *height, *need[2];
} Boxes;

enum { BOX_ROWS = 10 };

/* Room for one frame at a time, kept from call to call. */
typedef struct {
    int64_t across, down; /* for how many tracks and boxes together, and for how many boxes */
    int64_t pairs;        /* for how many */
    double *matrix;       /* ROWS rows of tracks + boxes */
    Detection *found;
    Boxes boxes; /* in eights */
    int32_t *track_of, *alive, *near, *fresh;
    char *taken;
    Subject *subject;
    Pair *pair;
    Rank *rank;
    double *spare; /* three numbers a pair */
} Scratch;

static inline double least(double a, double b) { return a < b ? a : b; }
static inline double most(double a, double b) { return a > b ? a : b; }

/* bytetrack.py: ByteTrack._associate. Fills `track_of` by box, -1: none, and may move the tracks of `matrix`. Returns 0;
 * 1 where there is no memory. */
int associate(const Settings *s, Scratch *room, int64_t stride, int64_t n_tracks, int64_t n_boxes, double dt);

/* The next id; several threads may ask at once. */
int64_t take_id(int64_t *ids);

/* Steps a stream by one frame, after `n_tracks` tracks: all of the stream's, or none. `room` has room for them and the boxes.
 * `ended`: room for four numbers by track.
 *
 * Returns how many confirmed tracks have ended; -1 where there is no memory, or where there are too many tracks for this
 * way: nothing has changed then. */
int64_t bytetrack_step(const Settings *s, Scratch *room, Stream *stream, int64_t n_tracks, double dt, double observed,
                       const float *xyxy, const float *score, const int32_t *class_id, int64_t n_boxes, Columns by_box,
                       double *ended);

/* select.c. */
int64_t select_boxes(int64_t n, int64_t frames, const int64_t *ends, const float *floors, int64_t classes, int64_t weak,
                     const void *boxes, const void *tracks, int64_t *number, double *age, double *velocity, float *corners,
                     float *scores, int32_t *chosen_class, char *kept, int64_t *chosen);

#endif
