// code.h: PTX in the simulator. `EASEL_PTX=FOLDER build/unit` runs the kernels that are in the .ptx files of
// a folder as nvcc compiled them, others as before: `make test-ptx`. EASEL_PTX_SHARED_KIB: what a block may
// have of shared memory on the architecture that they are compiled for, if that is not sm_90a. What the
// host's compiler makes of a kernel shows that the algorithm is right; this shows that nvcc's code is, with
// every asm statement of ptx.h and the order of its operands.
//
// A CUDA thread is a fiber of the simulator (sim.h), as ever, but runs a list of instructions over registers
// of its own instead of the kernel function. Barriers, warp operations, cp.async, ldmatrix and mma are the
// simulator's, with all that it checks. An address in shared memory is an offset in its block's memory, any
// other is the host's. Meanings are those of the PTX ISA manual, 9.0. What no kernel has is not here, and is
// refused when the file is read.
// read.cpp: from text to instructions. ops.cpp: what each does. run.cpp: threads, and which kernel is which.
// races.cpp: accesses that nothing orders. traffic.cpp: bank conflicts, sectors of global memory. cudart.cpp,
// cudart_device.cpp: with these, a CUDA runtime for the GPU tests (make test-fake-gpu).
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "ptx.h"

namespace easel::ptx {

struct Thread;
struct Ins;
using Op = void (*)(Thread&, const Ins&);

// Registers, constants and addresses of variables are slots of 8 bytes. A value of fewer bytes is in the low
// ones, a signed one with its sign repeated; a predicate is 0 or 1.
constexpr int kNoSlot = 0;  // "_": what is written there is not wanted

struct Ins {
    Op op = nullptr;
    int guard = -1;        // a predicate; if there is one, the instruction runs where it is
    bool guard_is = true;  // so
    bool flip = false;     // the last operand has a "!"
    int line = 0;          // of the file
    int n = 0;             // operands: slots, in the order of the text
    std::array<int, 14> r{};
    const std::vector<int>* all = nullptr;  // the slots of an instruction that has more
    int64_t imm = 0;  // offset of the address, target of the branch, which comparison ...
};

// A slot whose value differs by launch, block or thread.
struct Fill {
    enum Kind {
        Tid,  // threadIdx, blockIdx, blockDim, gridDim: of axis `offset`
        Ctaid,
        Ntid,
        Nctaid,
        Shared,   // addresses: of a shared array,
        Dynamic,  // of the shared memory that the launch asked for,
        Param,    // of a parameter,
        Local     // of a thread's own memory
    } kind;
    int slot = 0;
    size_t offset = 0, bytes = 0;
};

// A kernel.
struct Code {
    std::string name, file;  // the linker's name, the file without its folder
    std::vector<Ins> ins;
    std::vector<std::pair<int, uint64_t>> constants;  // slot, value
    std::vector<Fill> fills;
    std::vector<std::pair<size_t, size_t>> params;  // offset, size
    size_t param_bytes = 0, local_bytes = 0;
    int n_slot = 1;
    unsigned max_threads = 1024;  // of a block: __launch_bounds__
    bool waits = false;           // griddepcontrol.wait
};

struct Thread {
    uint64_t* r;  // the slots
    const Code& code;
    int pc = 0;  // next instruction; negative: done
    // __syncthreads, named barriers and __syncwarp that lie behind.
    uint32_t n_barrier = 0, n_group_barrier = 0, n_warp_barrier = 0;
    bool waited = false;  // for the launches before

    sim::Site at(const Ins& i) const { return {code.file.c_str(), i.line}; }
    char* shared(uint64_t address) const { return sim::block->memory + static_cast<uint32_t>(address); }
};

// The names of kernels have the file's in them if their namespace has none; here they are as the host's
// compiler has them.
std::string plain_name(std::string name);

// The kernels of a file. Throws Error with its line if it has what nobody knows here.
std::vector<Code> read_file(const std::string& path);

// Sets op and imm of an instruction whose operands are there: its words ("add", "s32") and the text of the
// operands. False: nobody knows it here.
bool decode(Ins& i, const std::vector<std::string>& words, const std::string& operands);

// What a thread of the simulator does that runs the kernel; `params` as the kernel has them in memory.
// `launch` counts from 1 and differs from launch to launch; those from `overlapping` on may not have ended,
// as far as a GPU is concerned, when this one begins.
struct LaunchNumber {
    uint64_t launch, overlapping;
};
void run(const Code& code, const char* params, LaunchNumber number);

// ---- races.cpp --------------------------------------------------------------------------------------------

enum class Access { Read, Write, Atomic, Product };  // the last: read by a wgmma

// The first thread of a block begins on this OS thread.
void watch_block(LaunchNumber number);
// The running thread has a fence.proxy.async.
void watch_fence();
// The running thread is at this named barrier of n threads: it is of a group of warps that has it, and keeps
// to it.
void watch_group(const Thread& t, const Ins& i, int barrier, int n);
// `bytes` at p are read or written. A fault, of shared memory: another thread has written it, or it is
// written and another has read it, with neither a __syncthreads nor, within a warp or a group of warps, a
// barrier of these between. Of global memory: another block of the launch uses it, unless both read, both are
// atomic, or both write the same `value`; or the thread has not had the griddepcontrol.wait of its kernel,
// and writes, or reads what one of the launches before may still write. Of what a wgmma reads: a thread that
// has written it has had no fence.proxy.async since.
void watch_shared(const Thread& t, const Ins& i, Access access, const char* p, size_t bytes);
void watch_global(const Thread& t, const Ins& i, Access access, const char* p, size_t bytes,
                  const void* value = nullptr);

// ---- traffic.cpp: with EASEL_PTX_TRAFFIC set --------------------------------------------------------------

void count_access(const Thread& t, const Ins& i, bool shared, bool read, const char* p, size_t bytes);
// A block begins: the last one has ended.
void count_block();
// What the accesses of each kernel cost, on stdout.
void print_traffic();

}  // namespace easel::ptx
