/* Boxes that a device has suppressed, of all frames of a batch, mapped to the pixels of their sources: the same as
 * Postprocess._together in NumPy. It uses nothing of Python and is called through ctypes. */

#include <stdint.h>
#include <string.h>

/* validate.py. Boxes near a limit are left to Python, which decides about each. */
static const float LEAST_SIDE = 1.001e-3f, FARTHEST = 1048575.0f, MOST_SCORE = 1.0009f;

/* n, frames: how many boxes, how many frames.
 * counts: by frame, how many boxes it has.
 * mappings: by frame padding, gain, size and origin, four numbers each.
 * given: the corners of all boxes, then all scores, then all classes.
 * out: room for the same.
 * left: by frame, whether it is left to Python: a box may have to be left out. Its part of `out` means nothing.
 *
 * Returns whether any is.
 */
int64_t boxes_to_source(int64_t n, int64_t frames, const int64_t *counts, const float *mappings, const void *given, void *out,
                        char *left)
{
    const float *corners = given, *score = corners + 4 * n;
    const int32_t *class_id = (const int32_t *)(score + n);
    float *mapped = out, *scores = mapped + 4 * n;
    int64_t any = 0;
    memcpy(scores + n, class_id, (size_t)n * sizeof *class_id);
    for (int64_t frame = 0; frame < frames; frame++, mappings += 16) {
        const float *pad = mappings, *gain = mappings + 4, *size = mappings + 8, *origin = mappings + 12;
        int good = 1;
        for (int64_t i = 0; i < counts[frame]; i++, corners += 4, mapped += 4, score++, scores++, class_id++) {
            float width = corners[2] - corners[0], height = corners[3] - corners[1];
            good &= width > LEAST_SIDE && height > LEAST_SIDE && width < FARTHEST && height < FARTHEST && *score >= 0 &&
                    *score <= MOST_SCORE && *class_id >= 0;
            for (int side = 0; side < 4; side++) {
                float value = (corners[side] - pad[side]) * gain[side];
                value = value > 0 ? value : 0;
                value = value < size[side] ? value : size[side];
                mapped[side] = value + origin[side];
            }
            good &= mapped[2] > mapped[0] && mapped[3] > mapped[1];
            *scores = *score < 1 ? *score : 1;
        }
        left[frame] = !good;
        any |= !good;
    }
    return any;
}
