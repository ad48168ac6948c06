// test_parallel.cpp: the pool behind parallel_for(): exceptions, another number of threads while it works,
// and a child of fork().
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "catch.h"
#include "parallel.h"

using namespace easel;

TEST_CASE("parallel_for throws what a call threw, and works on") {
    for (const int n : {1, 4}) {
        set_threads(n);
        std::atomic<int> n_call = 0;
        for (int round = 0; round < 20; round++) {
            CHECK_THROWS_WITH(parallel_for(1000,
                                           [&](int64_t i) {
                                               if (i == 7) throw std::runtime_error("seven");
                                           }),
                              "seven");
            parallel_for(100, [&](int64_t) { n_call++; });
        }
        CHECK(n_call == 20 * 100);
    }
    set_threads(0);
}

TEST_CASE("set_threads while another thread's loops run") {
    std::atomic<bool> stop = false;
    std::atomic<int64_t> n_call = 0, n_expected = 0;
    std::thread worker([&] {
        while (!stop) {
            parallel_for(50, [&](int64_t) { n_call++; });
            n_expected += 50;
        }
    });
    for (int i = 0; i < 200; i++) set_threads(1 + i % 4);
    stop = true;
    worker.join();
    set_threads(0);
    CHECK(n_call == n_expected);
}

TEST_CASE("a child of fork() has threads of its own, as many as its parent") {
    for (const int n : {1, 4}) {
        set_threads(n);
        parallel_for(100, [](int64_t) {});
        const pid_t child = fork();
        if (child == 0) {
            alarm(20);  // it would wait for the parent's threads
            bool right = n_threads() == n;
            for (int i = 0; i < 20; i++) {
                std::atomic<int> n_call = 0;
                parallel_for(100, [&](int64_t) { n_call++; });
                right = right && n_call == 100;
                set_threads(1 + i % 5);
            }
            _exit(right ? 0 : 1);
        }
        int status = -1;
        REQUIRE(waitpid(child, &status, 0) == child);
        CHECK(status == 0);
    }
    set_threads(0);
}
