// launch.h: launches for cudart.cpp, which has CUDA's headers and so cannot have sim.h; run.cpp has these
// functions.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace easel::ptx {

struct Code;

// A kernel of the .ptx files, by the name that nvcc gave it; null: there is none.
const Code* find(const std::string& name);

// What a launch has to fit in: bytes of static shared memory, __launch_bounds__.
struct Needs {
    size_t shared_bytes;
    unsigned n_thread;
};
Needs needs(const Code& code);

struct LaunchShape {
    unsigned grid[3], block[3];
    size_t shared_bytes;
};
// Whether it waits for the launches before it: griddepcontrol.wait.
bool waits(const Code& code);
// The bytes of the parameters, given their addresses.
std::vector<char> copy_params(const Code& code, const void* const* params);
// Runs it from start to end; throws Error if it has done wrong.
void launch(const Code& code, const LaunchShape& shape, const std::vector<char>& params);

// A stream has done something else than a launch: see sim::n_order.
void did_other();

// The simulator's: with guards, filled with poison. The order of threads is by `seed` from then on.
void* allocate(size_t bytes);
void deallocate(void* p);
void set_order(uint64_t seed);

}  // namespace easel::ptx
