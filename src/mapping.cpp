// mapping.cpp: the signal of a mapped file that cannot be read, see mapping.h.
#include "mapping.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "text.h"

namespace easel {

namespace {

// A list that only grows, so that the handler can read it at any time; nodes are used again.
struct Watched {
    std::atomic<const uint8_t*> begin = nullptr;  // null: free
    size_t bytes = 0;
    char text[512];
    Watched* next = nullptr;
};
std::atomic<Watched*> watched = nullptr;
std::mutex mutex;
struct sigaction before;

void on_bus_error(int, siginfo_t* info, void*) {
    const auto* at = static_cast<const uint8_t*>(info->si_addr);
    for (const Watched* w = watched.load(); w; w = w->next) {
        const uint8_t* begin = w->begin.load();
        if (!begin || at < begin || at >= begin + w->bytes) continue;
        (void)!write(STDERR_FILENO, w->text, strlen(w->text));
        _exit(1);
    }
    sigaction(SIGBUS, &before, nullptr);  // no file's: whoever handled it before meets it again
}

}  // namespace

void watch_mapping(const void* p, size_t bytes, const std::string& name) {
    std::lock_guard lock(mutex);
    Watched* w = watched.load();
    if (!w) {
        struct sigaction action {};
        action.sa_sigaction = on_bus_error;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGBUS, &action, &before);
    }
    while (w && w->begin.load()) w = w->next;
    const bool is_new = !w;
    if (is_new) w = new Watched;
    const std::string text = "easel: " + safe_line(name).substr(0, 300) +
                             ": shrank while it was in use, or can no longer be read\n";
    std::memcpy(w->text, text.c_str(), text.size() + 1);
    w->bytes = bytes;
    w->begin.store(static_cast<const uint8_t*>(p));
    if (!is_new) return;
    w->next = watched.load();
    watched.store(w);
}

void unwatch_mapping(const void* p) {
    std::lock_guard lock(mutex);
    for (Watched* w = watched.load(); w; w = w->next)
        if (w->begin.load() == p) w->begin.store(nullptr);
}

}  // namespace easel
