/* The small luma picture of a frame: the rounded mean of every cell of a grid. `picture.py` has the same in NumPy, which
 * is the reference. Called without the interpreter lock; allocates nothing.
 *
 * The rows of a row of cells are added up first, which the compiler turns into vector instructions; then come the columns
 * of each cell.
 *
 *   plane, pitch: address of the first sample and bytes from one row to the next
 *   rows: row numbers of the picture, `taken[r]` of them for row r of cells, one after the other
 *   edges: columns + 1 borders of the columns of cells, in samples
 *   sums: room for one row of the picture
 *   out: (cell_rows, columns), contiguous
 */
#include <stdint.h>
#include <string.h>

/* Twice as fast where the processor has wider vectors; chosen when the library is loaded. The results are the same. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define WIDE_VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define WIDE_VECTORS
#endif

/* A division takes 25 cycles, and there are 14,400 cells. (x + 1/2) / (2 * count) is never a whole number for a whole x,
 * and so far from the next one that the error of a double does not matter: the result is exact. */
static inline uint8_t rounded(uint64_t sum, uint64_t count, double by)
{
    const double mean = ((double)(2 * sum + count) + 0.5) * by;
    return mean < 255.0 ? (uint8_t)mean : 255;
}

/* Cells that all are `wide` samples wide; with a constant, the loop is unrolled. These are at most 24 * 4 samples of 8
 * bits, for which a float is exact, too: it is wrong by less than 256 / 2^22, and 1 / 384 would matter. */
static inline void even(const uint16_t *restrict sums, int32_t wide, int64_t n, int64_t columns, uint8_t *restrict out)
{
    const int32_t count = (int32_t)n * wide;
    const float by = 1.0f / (float)(2 * count);
    for (int64_t c = 0; c < columns; c++) {
        int32_t sum = 0;
        for (int32_t x = 0; x < wide; x++)
            sum += sums[c * wide + x];
        out[c] = (uint8_t)(int32_t)(((float)(2 * sum + count) + 0.5f) * by);
    }
}

static inline void columns_of(const uint16_t *sums, int64_t step, const int64_t *edges, int64_t n, int64_t columns, uint8_t *out)
{
    const int64_t wide = step == 1 && edges[columns] % columns == 0 ? edges[columns] / columns : 0;
    switch (wide) {
    case 1: even(sums, 1, n, columns, out); return;
    case 2: even(sums, 2, n, columns, out); return;
    case 4: even(sums, 4, n, columns, out); return;
    case 8: even(sums, 8, n, columns, out); return;
    case 12: even(sums, 12, n, columns, out); return;
    case 16: even(sums, 16, n, columns, out); return;
    case 24: even(sums, 24, n, columns, out); return;
    }
    for (int64_t c = 0; c < columns; c++) {
        uint32_t sum = 0;
        for (int64_t x = edges[c] * step; x < edges[c + 1] * step; x += step)
            sum += sums[x];
        const uint64_t count = (uint64_t)(n * (edges[c + 1] - edges[c]));
        out[c] = rounded(sum, count, 1.0 / (double)(2 * count));
    }
}

/* Pictures of 8 bits a sample, `step` bytes apart. */
WIDE_VECTORS void glance_8(const uint8_t *plane, int64_t pitch, int64_t step, const int64_t *rows, const int64_t *taken,
                           int64_t cell_rows, const int64_t *edges, int64_t columns, uint16_t *restrict sums, uint8_t *out)
{
    const int64_t width = (edges[columns] - 1) * step + 1; /* ends with the last sample, not after it */
    for (int64_t r = 0; r < cell_rows; r++, out += columns) {
        const int64_t n = taken[r];
        if (n == 1 && step == 1 && width == columns) { /* a sample is a cell */
            memcpy(out, plane + *rows++ * pitch, (size_t)columns);
            continue;
        }
        if (n == 4) { /* as good as always: one pass over the sums instead of four */
            const uint8_t *restrict a = plane + rows[0] * pitch, *restrict b = plane + rows[1] * pitch;
            const uint8_t *restrict c = plane + rows[2] * pitch, *restrict d = plane + rows[3] * pitch;
            for (int64_t x = 0; x < width; x++)
                sums[x] = (uint16_t)(a[x] + b[x] + c[x] + d[x]);
        } else {
            for (int64_t x = 0; x < width; x++)
                sums[x] = 0;
            for (int64_t i = 0; i < n; i++) {
                const uint8_t *restrict row = plane + rows[i] * pitch;
                for (int64_t x = 0; x < width; x++)
                    sums[x] = (uint16_t)(sums[x] + row[x]);
            }
        }
        rows += n;
        columns_of(sums, step, edges, n, columns, out);
    }
}

/* The same for little-endian samples of two bytes, shifted to 8 bits by `shift`. */
void glance_16(const uint8_t *plane, int64_t pitch, int64_t shift, const int64_t *rows, const int64_t *taken,
               int64_t cell_rows, const int64_t *edges, int64_t columns, uint32_t *restrict sums, uint8_t *out)
{
    const int64_t width = edges[columns];
    for (int64_t r = 0; r < cell_rows; r++) {
        const int64_t n = taken[r];
        if (n == 4) {
            const uint16_t *restrict a = (const uint16_t *)(plane + rows[0] * pitch);
            const uint16_t *restrict b = (const uint16_t *)(plane + rows[1] * pitch);
            const uint16_t *restrict c = (const uint16_t *)(plane + rows[2] * pitch);
            const uint16_t *restrict d = (const uint16_t *)(plane + rows[3] * pitch);
            for (int64_t x = 0; x < width; x++)
                sums[x] = (uint32_t)a[x] + b[x] + c[x] + d[x];
        } else {
            for (int64_t x = 0; x < width; x++)
                sums[x] = 0;
            for (int64_t i = 0; i < n; i++) {
                const uint16_t *restrict row = (const uint16_t *)(plane + rows[i] * pitch);
                for (int64_t x = 0; x < width; x++)
                    sums[x] += row[x];
            }
        }
        rows += n;
        for (int64_t c = 0; c < columns; c++) {
            uint64_t sum = 0;
            for (int64_t x = edges[c]; x < edges[c + 1]; x++)
                sum += sums[x];
            const uint64_t count = (uint64_t)(n * (edges[c + 1] - edges[c])) << shift;
            *out++ = rounded(sum, count, 1.0 / (double)(2 * count));
        }
    }
}
