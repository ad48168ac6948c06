// parallel.h: a loop over all cores. Used by the CPU backend and by convert.
#pragma once
#include <cstdint>
#include <functional>

namespace easel {

// Sets how many threads parallel_for() uses, in the whole process; 0: one per core. Waits for a running loop,
// so it must not be called from inside one.
void set_threads(int n);
int n_threads();

// Calls f(i) for i = 0..n-1, each once, in any order and on any thread; returns when all have returned.
// If f throws, the first exception is thrown once all threads are done; calls that had not begun are left
// out. A call from inside f runs its loop on the calling thread.
void parallel_for(int64_t n, const std::function<void(int64_t)>& f);

}  // namespace easel
