// parallel.cpp: the thread pool behind parallel_for().
#include "parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"

namespace easel {

namespace {

thread_local bool inside_loop = false;

class Pool {
  public:
    explicit Pool(int n_wanted) : n_wanted_(n_wanted) {}
    ~Pool() {
        std::lock_guard no_loop(run_mutex_);
        stop();
    }

    // Threads including the caller's. The first call starts as many as are wanted.
    int start() {
        if (size_ > 0) return size_;
        std::lock_guard no_loop(run_mutex_);
        if (size_ == 0) begin(n_wanted_);
        return size_;
    }
    // A loop that runs ends first.
    void resize(int n) {
        if (n == size_) return;
        std::lock_guard no_loop(run_mutex_);
        stop();
        begin(n);
    }
    int n_wanted() const { return n_wanted_; }

    void run(int64_t n, const std::function<void(int64_t)>& f) {
        std::lock_guard one_loop_at_a_time(run_mutex_);
        {
            std::lock_guard lock(mutex_);
            f_ = &f;
            n_ = n;
            next_ = 0;
            open_ = true;
            round_++;
        }
        wake_.notify_all();
        take_items();
        {
            std::lock_guard lock(mutex_);
            open_ = false;
        }
        if (!spin_until([&] { return busy_ == 0; })) {
            std::unique_lock lock(mutex_);
            done_.wait(lock, [&] { return busy_ == 0; });
        }
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

  private:
    void begin(int n) {
        n_wanted_ = n;
        try {
            for (size_ = 1; size_ < n; size_++)
                threads_.emplace_back([this, seen = round_.load()]() mutable { work(seen); });
        } catch (const std::system_error& e) {  // those that there are can be used
            fail("{} threads cannot be started, only {}: {}", n, size_.load(), e.code().message());
        }
    }

    void stop() {
        {
            std::lock_guard lock(mutex_);
            quit_ = true;
            round_++;
        }
        wake_.notify_all();
        for (auto& t : threads_) t.join();
        threads_.clear();
        quit_ = false;
    }

    // Waits some ten microseconds for ready(), yielding the core to whoever needs it: loops follow each other
    // closely within a pass, and many are shorter than waking a sleeping thread.
    template <class Ready>
    static bool spin_until(Ready ready) {
        for (int i = 0; i < 200; i++) {
            if (ready()) return true;
            std::this_thread::yield();
        }
        return false;
    }

    void take_items() {
        inside_loop = true;
        try {
            for (int64_t i; (i = next_.fetch_add(1)) < n_;) (*f_)(i);
        } catch (...) {  // f's, or out of memory
            std::lock_guard lock(mutex_);
            if (!error_) error_ = std::current_exception();
            next_ = n_;  // the others stop
        }
        inside_loop = false;
    }

    void work(uint64_t seen) {
        for (;;) {
            spin_until([&] { return round_ != seen; });
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return round_ != seen; });
                seen = round_;
                if (quit_) return;
                if (!open_) continue;  // too late, on a busy machine: the others have done all of the loop
                busy_++;
            }
            take_items();
            if (--busy_ > 0) continue;
            std::lock_guard lock(mutex_);
            done_.notify_one();
        }
    }

    std::vector<std::thread> threads_;
    int n_wanted_;
    std::atomic<int> size_{0};  // 0: not started
    std::exception_ptr error_;  // the first one of the loop; changes under mutex_
    std::mutex run_mutex_, mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int64_t)>* f_ = nullptr;
    int64_t n_ = 0;
    std::atomic<int64_t> next_{0};
    std::atomic<uint64_t> round_{0};  // number of the loop; changes under mutex_
    std::atomic<int> busy_{0};        // threads of the pool that work on it; grows under mutex_
    bool open_ = false;               // more of them may join
    bool quit_ = false;
};

int n_core() {
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// The process' pool. A child of fork() has none of its parent's threads, and the locks as they were at that
// moment: it gets a pool of its own, and the parent's is left as it is.
std::unique_ptr<Pool>& pool() {
    static std::unique_ptr<Pool> p = [] {
        pthread_atfork(nullptr, nullptr, [] {
            const Pool* const of_parent = pool().release();
            pool() = std::make_unique<Pool>(of_parent->n_wanted());
        });
        return std::make_unique<Pool>(n_core());
    }();
    return p;
}

}  // namespace

void set_threads(int n) {
    pool()->resize(n > 0 ? n : n_core());
}

int n_threads() {
    return pool()->start();
}

void parallel_for(int64_t n, const std::function<void(int64_t)>& f) {
    if (n <= 1 || inside_loop || n_threads() == 1) {
        for (int64_t i = 0; i < n; i++) f(i);
        return;
    }
    pool()->run(n, f);
}

}  // namespace easel
