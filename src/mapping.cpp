// mapping.cpp: maps files and handles the signal of one that can no longer be read, see mapping.h.
#include "mapping.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "check.h"
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
    sigaction(SIGBUS, &before, nullptr);  // no mapped file: the access is repeated, with the old handler
}

void watch(std::span<const uint8_t> bytes, const std::string& path) {
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
    const std::string text = "easel: " + safe_line(path).substr(0, 300) +
                             ": shrank while it was in use, or can no longer be read\n";
    std::memcpy(w->text, text.c_str(), text.size() + 1);
    w->bytes = bytes.size();
    w->begin.store(bytes.data());
    if (!is_new) return;
    w->next = watched.load();
    watched.store(w);
}

// Before the mapping ends.
void unwatch(const uint8_t* begin) {
    std::lock_guard lock(mutex);
    for (Watched* w = watched.load(); w; w = w->next)
        if (w->begin.load() == begin) w->begin.store(nullptr);
}

}  // namespace

MappedFile::MappedFile(const std::string& path, const char* kind) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not hang
    require(fd >= 0, "{}: cannot open the model file: {}", path, std::strerror(errno));
    struct stat st {};
    const bool regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    const size_t size = regular ? static_cast<size_t>(st.st_size) : 0;
    void* p = size ? mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0) : nullptr;
    const int error = errno;
    close(fd);
    require(regular, "{}: expected a {} file, found something that is not a regular file", path, kind);
    require(p != MAP_FAILED, "{}: cannot map {} bytes: {}", path, size, std::strerror(error));
    bytes_ = {static_cast<const uint8_t*>(p), size};
    if (size) watch(bytes_, path);
}

MappedFile::~MappedFile() {
    if (bytes_.empty()) return;
    unwatch(bytes_.data());
    munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
}

}  // namespace easel
