/* Loaded before everything else, counts how often one thread lets go of the interpreter lock: CPython signals a
 * condition each time, through the library's own function. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>

static atomic_int watching;
static pthread_t watched;
static long count;

int pthread_cond_signal(pthread_cond_t *condition)
{
    static int (*next)(pthread_cond_t *);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "pthread_cond_signal");
    if (watching && pthread_equal(watched, pthread_self()))
        count++;
    return next(condition);
}

void watch_this_thread(void)
{
    watched = pthread_self();
    count = 0;
    watching = 1;
}

long releases(void)
{
    watching = 0;
    return count;
}
