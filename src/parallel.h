// parallel.h: a loop over all cores. Used by the CPU backend and by convert.
#pragma once
#include <cstdint>
#include <functional>

namespace easel {

// Threads that parallel_for() uses from now on, in the whole process; 0 = one a core. A loop that runs ends
// first. Not from inside one.
void set_threads(int n);
int n_threads();

// Calls f(i) for i = 0..n-1, each once, in any order and on any thread; returns when all have returned.
// If f throws, the first exception is thrown once all threads are done; calls that had not begun are left
// out. A call from inside f runs its loop on the calling thread.
void parallel_for(int64_t n, const std::function<void(int64_t)>& f);

}  // namespace easel
