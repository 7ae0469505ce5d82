/* Keeps two clock rates of the GPU, for TensorRT 8.5 builds: LD_PRELOAD this library, see `gpu_suite.py build`.

   CUDA 11's cudaGetDeviceProperties asks the driver for both at each call. Drivers that run on the GPU's own processor
   need half a millisecond for each, under a lock that all processes share, and TensorRT 8.5 calls it tens of thousands
   of times while it fuses layers. The runtime finds the driver's functions with dlsym and cuGetProcAddress. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

enum { CLOCK_RATE = 13, MEMORY_CLOCK_RATE = 36, GPUS = 16 }; /* CU_DEVICE_ATTRIBUTE_… */

typedef int (*Attribute)(int *value, int attribute, int device);
/* cuGetProcAddress_v2 has the fifth argument. */
typedef int (*Find)(const char *name, void **found, int version, unsigned long long flags, void *status);
typedef void *(*Symbol)(void *library, const char *name);

static Attribute attribute_of;
static Find find_of;
static int kept[2][GPUS]; /* kHz; 0: not known yet */

static int attribute_kept(int *value, int attribute, int device) {
    int *rate = NULL;
    if ((attribute == CLOCK_RATE || attribute == MEMORY_CLOCK_RATE) && device >= 0 && device < GPUS)
        rate = &kept[attribute == MEMORY_CLOCK_RATE][device];
    if (rate == NULL)
        return attribute_of(value, attribute, device);
    if (*rate == 0) {
        int status = attribute_of(rate, attribute, device);
        if (status != 0)
            return status;
    }
    *value = *rate;
    return 0;
}

static int find_kept(const char *name, void **found, int version, unsigned long long flags, void *status);

static void *instead(const char *name, void *found) {
    if (found == NULL || name == NULL)
        return found;
    if (strcmp(name, "cuDeviceGetAttribute") == 0) {
        attribute_of = (Attribute)found;
        return (void *)attribute_kept;
    }
    if (strcmp(name, "cuGetProcAddress") == 0 || strcmp(name, "cuGetProcAddress_v2") == 0) {
        find_of = (Find)found;
        return (void *)find_kept;
    }
    return found;
}

static int find_kept(const char *name, void **found, int version, unsigned long long flags, void *status) {
    int result = find_of(name, found, version, flags, status);
    if (result == 0 && found != NULL)
        *found = instead(name, *found);
    return result;
}

void *dlsym(void *library, const char *name) {
    static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.17", "GLIBC_2.2.5"}; /* older: aarch64, x86-64 */
    static Symbol real;
    for (size_t i = 0; real == NULL && i < sizeof versions / sizeof *versions; i++)
        real = (Symbol)dlvsym(RTLD_NEXT, "dlsym", versions[i]);
    return instead(name, real(library, name));
}
