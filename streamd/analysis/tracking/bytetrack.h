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

enum { EIGHT = 8 };

/* Boxes in single precision, as vectors need them. */
typedef struct {
    float *left, *top, *right, *bottom, *x, *y, *width, *height, *need[2];
} Boxes;

enum { BOX_ROWS = 10 };

/* Room for one frame at a time, kept from frame to frame of a batch. */
typedef struct {
    int64_t pairs;  /* for how many */
    double *matrix; /* ROWS rows of tracks + boxes */
    Detection *found;
    Boxes boxes; /* in eights */
    int32_t *track_of, *alive, *near, *marked;
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

#endif
