/* Which boxes of a batch are published, as in selection.py. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* See selection.py for what is chosen.
 *
 * n, frames: how many boxes, how many frames.
 * ends: by frame, the number of boxes up to its end.
 * floors: by class, of which there are `classes`, the least score.
 * weak: boxes of tracks with an id are chosen whatever their score, unless the floor of their class is infinite.
 * boxes: of all frames the corners, then all scores.
 * tracks: ids, ages, velocities, then classes.
 * number, age, velocity, corners, scores, chosen_class: of the chosen boxes; room for all.
 * kept: by box whether it is chosen.
 * chosen: by frame, the number of chosen boxes up to its end.
 *
 * Returns how many are chosen, -1 where there is a class without a floor.
 */
int64_t select_boxes(int64_t n, int64_t frames, const int64_t *ends, const float *floors, int64_t classes, int64_t weak,
                     const void *boxes, const void *tracks, int64_t *number, double *age, double *velocity, float *corners,
                     float *scores, int32_t *chosen_class, char *kept, int64_t *chosen)
{
    const float *xyxy = boxes, *score = xyxy + 4 * n;
    const int64_t *ids = tracks;
    const double *ages = (const double *)(ids + n), *velocities = ages + n;
    const int32_t *class_id = (const int32_t *)(velocities + 2 * n);
    int64_t count = 0, box = 0;
    for (int64_t frame = 0; frame < frames; frame++) {
        for (; box < ends[frame]; box++) {
            int32_t class = class_id[box];
            if (class < 0 || class >= classes)
                return -1;
            float floor = floors[class];
            kept[box] = score[box] >= floor || (weak && ids[box] > 0 && floor < INFINITY);
            if (!kept[box])
                continue;
            number[count] = ids[box];
            age[count] = ages[box];
            memcpy(velocity + 2 * count, velocities + 2 * box, 2 * sizeof *velocity);
            memcpy(corners + 4 * count, xyxy + 4 * box, 4 * sizeof *corners);
            scores[count] = score[box];
            chosen_class[count] = class;
            count++;
        }
        chosen[frame] = count;
    }
    return count;
}
