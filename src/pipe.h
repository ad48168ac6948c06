// pipe.h: the parts of `easel pipe` that its tests take one by one: a request out of a line (pipe_line.cpp),
// the queue between the thread that reads and the thread that answers (pipe.cpp).
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "easel.h"

namespace easel {

constexpr size_t kQueueBytes = 64'000'000;  // of all waiting lines, beside the limit on their number
constexpr size_t kRemembered = 65536;       // answered ids that a late cancel is compared with

// What one line asks for: an answer, a cancel, or, with `error` set, nothing.
struct PipeItem {
    int64_t line = 0;
    nlohmann::json id;  // a string or an integer; null: the line is too broken to have one
    std::string error;
    std::vector<std::string> warnings;

    Request request;
    bool frames = false, log_probs = false;
    nlohmann::json cancel;  // the id to cancel; null: the line is no cancel

    size_t n_bytes = 0;  // of the line
    std::chrono::steady_clock::time_point read_at;
    std::atomic<bool> cancelled = false;
};

// Reads one line, counted from 1. What is wrong with it goes to `error`; nothing is thrown. `defaults` are
// the sampler settings that the line does not name.
std::unique_ptr<PipeItem> parse_pipe_line(std::string_view text, int64_t line, const SamplerConfig& defaults);

// A wrong value as a message shows it: short, on one line.
std::string shown(const nlohmann::json& value);

// The table of all keys that `easel pipe --schema` prints.
std::string pipe_schema();

// Requests from the reading thread to the answering one; knows which ids are waiting or running.
class PipeQueue {
  public:
    explicit PipeQueue(size_t n_max, size_t max_bytes = kQueueBytes) : n_max_(n_max), max_bytes_(max_bytes) {}

    // Waits for room, unless stop() was called. An id that is waiting or running makes the item an error.
    void push(std::shared_ptr<PipeItem> item);
    // The next item in order, or null when none is left and end() was called. With `cached`, the ids in the
    // KV cache: first what costs nothing (errors, cancels), then the prompt with the longest prefix of them.
    std::shared_ptr<PipeItem> pop(const std::vector<int32_t>* cached);
    void answered(const PipeItem& item);  // its id may be used again
    // Marks a waiting or running request. False: the id is neither, nor among those answered lately.
    bool cancel(const nlohmann::json& id);
    void end();   // nothing more comes
    void stop();  // push() no longer waits
    size_t size() const;

  private:
    size_t pick(const std::vector<int32_t>& cached);

    const size_t n_max_, max_bytes_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::shared_ptr<PipeItem>> items_;
    // By the id's JSON text: items that wait, and those that run: popped, not yet answered().
    std::unordered_map<std::string, std::shared_ptr<PipeItem>> live_;
    std::deque<size_t> answered_;  // hashes of these texts, the last kRemembered
    size_t n_bytes_ = 0, n_passed_over_ = 0;
    bool ended_ = false, stopped_ = false;
};

struct PipeOptions {
    SamplerConfig sampler;
    size_t n_queue = 64;
    bool unordered = false;
};

// Answers the lines of file descriptor `in` on `out` until the input ends (0), nobody reads `out` any more
// (0), or interrupt_pipe() is called (130, kInterrupted). Error when `in` cannot be read or `out` written.
int serve_pipe(Engine& engine, const PipeOptions& options, int in, int out);

// Asks the running serve_pipe() to end with the step in flight. Safe in a signal handler.
void interrupt_pipe();

}  // namespace easel
