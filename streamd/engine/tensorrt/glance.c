/* Small pictures of frames in the memory of one GPU. The kernel `glance` of kernels.cu makes them; this is who launches it.
 *
 * Any number of threads ask for one picture each and wait. Whoever finds nobody at work takes all requests that wait, its
 * own first, has one kernel read their frames, and hands out the cells; then it passes the work to the first one that has
 * come meanwhile. So a request waits for one launch that has begun, at most, and for its own (as long as no more than MOST
 * wait), and the more wait, the more share one. All of it happens without the interpreter lock: a round makes five calls of
 * the driver, and each of them would have to get the lock back.
 *
 * The thread that decodes waits in here with a reference to its picture: none is freed while it is read.
 */
#include <pthread.h>
#include <stdint.h>
#include <string.h>

enum { MOST = 64, ROWS = 90, COLUMNS = 160, CELLS = ROWS * COLUMNS };
enum { WAITING, LEADING, DONE };
enum { CLOSED = -1 };

/* kernels.cu has the same. */
typedef struct {
    uint64_t luma;
    int32_t pitch, width, height, sample, shift, unused;
} Surface;

/* The driver's calls, of the signatures in cuda.h, and what they are given. */
typedef struct {
    int32_t (*push)(void *context);
    int32_t (*pop)(void **context);
    int32_t (*record)(void *event, void *stream);
    int32_t (*wait)(void *stream, void *event, unsigned flags);
    int32_t (*launch)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared, void *stream, void **values, void **extra);
    int32_t (*synchronize)(void *stream);
    void *context;
    void *stream;
    void *event;
    void *function;
    uint8_t *cells; /* MOST * CELLS bytes of page-locked memory, which the kernel writes to at the same address */
} Driver;

typedef struct Request {
    Surface surface;
    uint8_t *out;
    int32_t state, status;
    pthread_cond_t changed;
    struct Request *next;
} Request;

typedef struct {
    Driver driver;
    pthread_mutex_t lock;
    pthread_cond_t idle;
    Request *first, **end;
    int32_t busy, closed;
    uint64_t launches, frames;
} Glances;

int32_t glances_size(void) { return (int32_t)sizeof(Glances); }

void glances_open(Glances *g, const Driver *driver)
{
    memset(g, 0, sizeof *g);
    g->driver = *driver;
    g->end = &g->first;
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->idle, NULL);
}

/* Refuses further requests, and waits for those under way. */
void glances_close(Glances *g)
{
    pthread_mutex_lock(&g->lock);
    g->closed = 1;
    while (g->busy)
        pthread_cond_wait(&g->idle, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

/* Launches so far, and frames that they read. */
void glances_counts(Glances *g, uint64_t *out)
{
    pthread_mutex_lock(&g->lock);
    out[0] = g->launches;
    out[1] = g->frames;
    pthread_mutex_unlock(&g->lock);
}

/* 0, or the driver's status, plus 10,000 times the number of the call. */
static int32_t run(const Driver *d, Surface *surfaces, unsigned count)
{
    uint8_t *cells = d->cells;
    void *values[] = {&cells, surfaces};
    void *popped;
    int32_t status = d->push(d->context);
    if (status)
        return status + 10000;
    /* FFmpeg maps and copies its surfaces on the legacy stream. */
    if ((status = d->record(d->event, NULL)))
        status += 20000;
    else if ((status = d->wait(d->stream, d->event, 0)))
        status += 30000;
    else if ((status = d->launch(d->function, ROWS, count, 1, COLUMNS, 1, 1, 0, d->stream, values, NULL)))
        status += 40000;
    else if ((status = d->synchronize(d->stream)))
        status += 50000;
    d->pop(&popped);
    return status;
}

/* Reads the frames of `batch`, `count` of them. */
static void serve(Glances *g, Request *batch, unsigned count)
{
    Surface surfaces[MOST]; /* the driver copies all of them, whatever `count` is */
    const uint8_t *cells = g->driver.cells;
    Request *r;
    unsigned i = 0;
    for (r = batch; i < count; r = r->next)
        surfaces[i++] = r->surface;
    memset(surfaces + count, 0, (MOST - count) * sizeof *surfaces);
    const int32_t status = run(&g->driver, surfaces, count);
    for (r = batch, i = 0; i < count; r = r->next, i++) {
        r->status = status;
        if (status == 0)
            memcpy(r->out, cells + (size_t)i * CELLS, CELLS);
    }
}

/* The small picture of one frame.
 *
 *   luma, pitch: device address of the first sample, and bytes from one row to the next
 *   sample, shift: bytes of a sample, and the bits by which it exceeds 8
 *   out: CELLS bytes
 *
 * Returns 0, CLOSED, or what `run` does.
 */
int32_t glances_take(Glances *g, uint64_t luma, int32_t pitch, int32_t width, int32_t height, int32_t sample, int32_t shift,
                     uint8_t *out)
{
    Request mine = {.surface = {luma, pitch, width, height, sample, shift, 0}, .out = out, .state = WAITING};
    pthread_mutex_lock(&g->lock);
    if (g->closed) {
        pthread_mutex_unlock(&g->lock);
        return CLOSED;
    }
    *g->end = &mine;
    g->end = &mine.next;
    if (g->busy) {
        pthread_cond_init(&mine.changed, NULL);
        while (mine.state == WAITING)
            pthread_cond_wait(&mine.changed, &g->lock);
        pthread_cond_destroy(&mine.changed);
        if (mine.state == DONE) {
            pthread_mutex_unlock(&g->lock);
            return mine.status;
        }
    }
    g->busy = 1;
    /* This request is the first one. */
    Request *after = g->first;
    unsigned count = 0;
    while (after != NULL && count < MOST) {
        after = after->next;
        count++;
    }
    g->first = after;
    if (after == NULL)
        g->end = &g->first;
    g->launches++;
    g->frames += count;
    pthread_mutex_unlock(&g->lock);

    serve(g, &mine, count);

    pthread_mutex_lock(&g->lock);
    /* They lie on the stacks of their threads, none of which returns before the lock is let go of. */
    Request *r = mine.next;
    for (unsigned i = 1; i < count; i++, r = r->next) {
        r->state = DONE;
        pthread_cond_signal(&r->changed);
    }
    if (g->first != NULL) {
        g->first->state = LEADING;
        pthread_cond_signal(&g->first->changed);
    } else {
        g->busy = 0;
        pthread_cond_broadcast(&g->idle);
    }
    pthread_mutex_unlock(&g->lock);
    return mine.status;
}
