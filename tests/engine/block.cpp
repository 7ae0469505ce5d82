// Runs `suppress` as a GPU does: a block of threads that meet at barriers, one frame after the other.

#include <pthread.h>

#include <thread>
#include <vector>

static pthread_barrier_t barrier;
#define SYNC() pthread_barrier_wait(&barrier)
#define suppress suppress_alone
#include KERNELS
#undef suppress

static u32 threads = 1;
extern "C" void set_threads(i32 count) { threads = (u32)count; }

extern "C" void suppress(const Suppress *s, i32 frames) {
  static Workspace workspace;
  pthread_barrier_init(&barrier, 0, threads);
  for (i32 f = 0; f < frames; f++) {
    std::vector<std::thread> block;
    for (u32 t = 0; t < threads; t++) block.emplace_back([=] { suppress_frame(s, &workspace, f, t, threads); });
    for (std::thread &t : block) t.join();
  }
  pthread_barrier_destroy(&barrier);
}
