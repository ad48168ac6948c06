// sim_host.h: what the simulator (sim.h) needs of the machine: stacks and the switch between them, memory
// with guard pages, and the signal of an access to one. Linux on x86-64 and aarch64; elsewhere ucontext.h
// switches, slower, and an invalid access ends the process.
#pragma once
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "check.h"

#if defined(__SANITIZE_ADDRESS__)
#define EASEL_SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EASEL_SIM_ASAN 1
#endif
#endif
#ifdef EASEL_SIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace easel::sim {

// ---- stacks -----------------------------------------------------------------------------------------------

#ifdef EASEL_SIM_ASAN
constexpr size_t stack_bytes = 256 << 10;
#else
constexpr size_t stack_bytes = 64 << 10;
#endif

#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(EASEL_SIM_UCONTEXT)
struct Context {
    void* sp;
};

// Pushes what the ABI says a call preserves, stores the stack pointer, and undoes the same on another stack.
extern "C" void easel_sim_switch(void** save, void* load);
asm(R"(
    .pushsection .text.easel_sim_switch, "axG", %progbits, easel_sim_switch, comdat
    .weak easel_sim_switch
    .type easel_sim_switch, %function
    .balign 16
easel_sim_switch:
)"
#ifdef __x86_64__
    R"(
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)"
#else
    R"(
    sub sp, sp, #160
    stp x19, x20, [sp, #0];   stp x21, x22, [sp, #16];  stp x23, x24, [sp, #32];  stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64];  stp x29, x30, [sp, #80];  stp d8, d9, [sp, #96];    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0];   ldp x21, x22, [sp, #16];  ldp x23, x24, [sp, #32];  ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64];  ldp x29, x30, [sp, #80];  ldp d8, d9, [sp, #96];    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)"
#endif
    R"(
    .size easel_sim_switch, . - easel_sim_switch
    .popsection
)");

inline void swap_context(Context& from, Context& to) {
    easel_sim_switch(&from.sp, to.sp);
}
#else
struct Context {
    ucontext_t u;
};
inline void swap_context(Context& from, Context& to) {
    swapcontext(&from.u, &to.u);
}
#endif

struct Stack {
    Context context;
    char* memory = nullptr;
    size_t bytes = 0;
    void* asan = nullptr;  // AddressSanitizer's own stack beside this one
    char* top() const {
        return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(memory + bytes) & ~uintptr_t{15});
    }
};

// What switch_stack(from, s) will begin with. entry() must call stack_entered() first and not return.
inline void prepare(Stack& s, void (*entry)()) {
#if defined(EASEL_SIM_UCONTEXT) || !(defined(__x86_64__) || defined(__aarch64__))
    getcontext(&s.context.u);
    s.context.u.uc_stack.ss_sp = s.memory;
    s.context.u.uc_stack.ss_size = s.bytes;
    makecontext(&s.context.u, entry, 0);
#else
#ifdef __x86_64__
    constexpr int n_word = 8, entry_word = 6;  // 6 registers, the address for `ret`, and entry's own return
#else
    constexpr int n_word = 20, entry_word = 11;  // x30
#endif
    void** words = reinterpret_cast<void**>(s.top()) - n_word;
    std::fill_n(words, n_word, nullptr);
    words[entry_word] = reinterpret_cast<void*>(entry);
    s.context.sp = words;
#endif
}

// Runs `to` where it left off. `last`: `from` will not run again.
inline void switch_stack(Stack& from, Stack& to, [[maybe_unused]] bool last = false) {
#ifdef EASEL_SIM_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &from.asan, to.memory, to.bytes);
#endif
    swap_context(from.context, to.context);
#ifdef EASEL_SIM_ASAN
    __sanitizer_finish_switch_fiber(from.asan, nullptr, nullptr);
#endif
}

// The first thing on a new stack. Fills in `from` if the sanitizer has still to say where that is.
inline void stack_entered([[maybe_unused]] Stack& from) {
#ifdef EASEL_SIM_ASAN
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!from.memory) from.memory = static_cast<char*>(const_cast<void*>(bottom)), from.bytes = bytes;
#endif
}

// ---- guarded memory ---------------------------------------------------------------------------------------

// For AddressSanitizer; nothing without it.
inline void hide([[maybe_unused]] const void* p, [[maybe_unused]] size_t n) {
#ifdef EASEL_SIM_ASAN
    ASAN_POISON_MEMORY_REGION(p, n);
#endif
}
inline void show([[maybe_unused]] const void* p, [[maybe_unused]] size_t n) {
#ifdef EASEL_SIM_ASAN
    ASAN_UNPOISON_MEMORY_REGION(p, n);
#endif
}

constexpr size_t guard_bytes = 65536;  // a multiple of every page size

// `bytes` of memory between two guards that nobody can read or write; its end touches the second one.
inline char* map_guarded(size_t bytes) {
    size_t inner = (bytes + guard_bytes - 1) / guard_bytes * guard_bytes;
    void* p =
        mmap(nullptr, inner + 2 * guard_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char* base = static_cast<char*>(p) + guard_bytes;
    require(p != MAP_FAILED && !mprotect(base, inner, PROT_READ | PROT_WRITE),
            "simulator: no memory for {} bytes", bytes);
    return base + inner - bytes;
}
inline void unmap_guarded(char* p, size_t bytes) {
    size_t inner = (bytes + guard_bytes - 1) / guard_bytes * guard_bytes;
    char* base = p + bytes - inner;
    show(base, inner);
    munmap(base - guard_bytes, inner + 2 * guard_bytes);
}

// n stacks, each above a guard.
struct Stacks {
    const size_t page = sysconf(_SC_PAGESIZE), stride = page + stack_bytes;
    const int n;
    char* const memory;
    int n_own = 0;                               // guards of these
    static inline std::atomic<int> n_guard = 0;  // of all
    explicit Stacks(int n) : n(n), memory(map_guarded(n * stride)) {}
    ~Stacks() {
        n_guard -= n_own;
        unmap_guarded(memory, n * stride);
    }
    Stacks(const Stacks&) = delete;

    // The tops, the part in use, are spread over the sets of the cache: 64 different lines of a page.
    void place(Stack& s, int i) {
        s.memory = memory + i * stride + page;
        s.bytes = stack_bytes - i * 17 * 64 % 4096;
        // A guard is two more of the mappings that a process can have, 65530: none for more than 64 cores.
        n_own++;
        if (n_guard++ < 16384) mprotect(s.memory - page, page, PROT_NONE);
    }
    bool guards(const Stack& s, const char* p) const { return p < s.memory && p >= s.memory - page; }
};

// Bytes that no kernel may write.
constexpr uint8_t canary = 0xc5;
inline void put_canary(char* p, size_t n) {
    show(p, n);
    memset(p, canary, n);
    hide(p, n);
}
__attribute__((no_sanitize("address"))) inline bool intact(const char* p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (static_cast<uint8_t>(p[i]) != canary) return false;
    return true;
}

// ---- invalid accesses -------------------------------------------------------------------------------------

// While an OS thread runs kernels, `stack` says on which stack; a signal then makes it go on in resume(), at
// the top of that stack.
struct Trap {
    Stack* stack = nullptr;
    void (*resume)() = nullptr;
    char* address = nullptr;
    int signal = 0, code = 0;
};
inline constinit thread_local Trap trap;

// Handles the signals while one exists. Others, such as a test framework, come and go with theirs.
struct TrapHandler {
    static constexpr int signals[3] = {SIGSEGV, SIGBUS, SIGFPE};
    static inline std::mutex mutex;
    static inline int n_handler = 0;
    static inline struct sigaction old[3];
    TrapHandler();
    ~TrapHandler();
    TrapHandler(const TrapHandler&) = delete;
};

inline void on_signal(int signal, siginfo_t* info, [[maybe_unused]] void* context) {
#if defined(__x86_64__) || defined(__aarch64__)
    if (trap.stack) {
        trap.address = static_cast<char*>(info->si_addr);
        trap.signal = signal;
        trap.code = info->si_code;
        auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
        char* top = trap.stack->top();
        trap.stack = nullptr;
#ifdef __x86_64__
        machine.gregs[REG_RSP] = reinterpret_cast<greg_t>(top - 8);  // as after a call
        machine.gregs[REG_RIP] = reinterpret_cast<greg_t>(trap.resume);
#else
        machine.sp = reinterpret_cast<uintptr_t>(top);
        machine.pc = reinterpret_cast<uintptr_t>(trap.resume);
#endif
        return;
    }
#endif
    // Not a kernel's. Whoever handled it before meets it again.
    for (int i = 0; i < 3; i++)
        if (TrapHandler::signals[i] == signal) sigaction(signal, &TrapHandler::old[i], nullptr);
}

inline TrapHandler::TrapHandler() {
    std::lock_guard lock(mutex);
    if (n_handler++) return;
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; i++) sigaction(signals[i], &action, &old[i]);
}
inline TrapHandler::~TrapHandler() {
    std::lock_guard lock(mutex);
    if (--n_handler) return;
    for (int i = 0; i < 3; i++) sigaction(signals[i], &old[i], nullptr);
}

// The handler's own stack, for this OS thread: a fiber's may be used up.
struct SignalStack {
    static constexpr size_t bytes = 64 << 10;
    char* memory = map_guarded(bytes);
    stack_t old;
    void use() {
        stack_t s{};
        s.ss_sp = memory;
        s.ss_size = bytes;
        sigaltstack(&s, &old);
    }
    void restore() { sigaltstack(&old, nullptr); }
    SignalStack() = default;
    ~SignalStack() { unmap_guarded(memory, bytes); }
    SignalStack(const SignalStack&) = delete;
};

}  // namespace easel::sim
