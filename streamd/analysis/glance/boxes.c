/* Which cells of a small picture lie in boxes: gate.py: _cells_of, which is the reference. */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { ROWS = 90, COLUMNS = 160 };

/* gate.py: _coded. */
static void coded(double x, double y, int rotation, int mirrored, double out[2])
{
    x = mirrored ? 1 - x : x;
    out[0] = rotation == 90 ? y : rotation == 180 ? 1 - x : rotation == 270 ? 1 - y : x;
    out[1] = rotation == 90 ? 1 - x : rotation == 180 ? 1 - y : rotation == 270 ? x : y;
}

/* The first and the last cell but one between two places, in 0..1, and one more on each side. */
static void range(double a, double b, int cells, int out[2])
{
    out[0] = (int)fmin(fmax(floor(fmin(a, b) * cells) - 1, 0), cells);
    out[1] = (int)fmin(fmax(ceil(fmax(a, b) * cells) + 1, 0), cells);
}

/* `boxes` (n, 4) are corners in upright pixels of a picture of that size; `out` is (ROWS, COLUMNS). */
void glance_boxes(const float *boxes, int64_t n, int64_t width, int64_t height, int rotation, int mirrored, uint8_t *out)
{
    memset(out, 0, ROWS * COLUMNS);
    for (const float *box = boxes; box < boxes + 4 * n; box += 4) {
        const float across = 0.15f * (box[2] - box[0]), down = 0.15f * (box[3] - box[1]);
        double low[2], high[2];
        int rows[2], columns[2];
        coded((double)(box[0] - across) / (double)width, (double)(box[1] - down) / (double)height, rotation, mirrored, low);
        coded((double)(box[2] + across) / (double)width, (double)(box[3] + down) / (double)height, rotation, mirrored, high);
        range(low[0], high[0], COLUMNS, columns);
        range(low[1], high[1], ROWS, rows);
        for (int y = rows[0]; y < rows[1] && columns[0] < columns[1]; y++)
            memset(out + y * COLUMNS + columns[0], 1, (size_t)(columns[1] - columns[0]));
    }
}
