// test_parallel.cpp: the pool behind parallel_for(): exceptions, and another number of threads while it
// works.
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
