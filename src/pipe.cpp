// pipe.cpp: `easel pipe`: one JSON object a line in, JSON lines out. A thread reads and parses into a bounded
// queue; the thread that called serve_pipe() answers and is the only one that writes. Called by main.
#include "pipe.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <thread>

#include "check.h"
#include "commands.h"
#include "lines.h"
#include "text.h"
#include "whole_file.h"

namespace easel {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// ---- The queue

void PipeQueue::push(std::shared_ptr<PipeItem> item) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
        const bool room = items_.size() < n_max_ && n_bytes_ + item->n_bytes <= max_bytes_;
        return room || items_.empty() || stopped_;
    });
    if (item->error.empty() && item->cancel.is_null()) {
        const auto [place, is_new] = live_.try_emplace(item->id.dump(), item);
        if (!is_new) {
            item->error =
                fmt::format("id {} is waiting or running already, expected another", shown(item->id));
            item->request = {};
        }
    }
    n_bytes_ += item->n_bytes;
    items_.push_back(std::move(item));
    changed_.notify_all();
}

// What costs nothing goes first, then the longest prefix in common with `cached`, then what came first. The
// first in line is passed over n_max_ times at most, so that it is answered in the end.
size_t PipeQueue::pick(const std::vector<int32_t>& cached) {
    if (n_passed_over_ >= n_max_) return 0;
    size_t best = 0, n_best = 0;
    for (size_t i = 0; i < items_.size(); i++) {
        const PipeItem& item = *items_[i];
        if (!item.error.empty() || !item.cancel.is_null() || item.cancelled) return i;
        const std::vector<int32_t>& ids = item.request.prompt_ids;
        const size_t n =
            std::mismatch(ids.begin(), ids.end(), cached.begin(), cached.end()).first - ids.begin();
        if (n > n_best) n_best = n, best = i;
    }
    return best;
}

std::shared_ptr<PipeItem> PipeQueue::pop(const std::vector<int32_t>* cached) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !items_.empty() || ended_; });
    if (items_.empty()) return nullptr;
    const size_t i = cached ? pick(*cached) : 0;
    n_passed_over_ = i ? n_passed_over_ + 1 : 0;
    std::shared_ptr<PipeItem> item = std::move(items_[i]);
    items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(i));
    n_bytes_ -= item->n_bytes;
    changed_.notify_all();
    return item;
}

void PipeQueue::answered(const PipeItem& item) {
    const std::string key = item.id.dump();
    const std::lock_guard lock(mutex_);
    live_.erase(key);
    answered_.push_back(std::hash<std::string>()(key));
    if (answered_.size() > kRemembered) answered_.pop_front();
}

bool PipeQueue::cancel(const Json& id) {
    const std::string key = id.dump();
    const std::lock_guard lock(mutex_);
    if (const auto it = live_.find(key); it != live_.end()) {
        it->second->cancelled = true;
        return true;
    }
    return std::find(answered_.begin(), answered_.end(), std::hash<std::string>()(key)) != answered_.end();
}

void PipeQueue::end() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
}

void PipeQueue::stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
}

size_t PipeQueue::size() const {
    const std::lock_guard lock(mutex_);
    return items_.size();
}

// ---- Reading

namespace {

// Both are lock-free, so a signal handler may use them.
std::atomic<bool> interrupted = false;
std::atomic<int> wake_fd = -1;  // a byte written here ends waits for stdin or stdout

constexpr int kStallMs = 1000;  // once interrupted: how long stdout may take nothing

// The thread that reads. When it ends, so does the queue; the destructor ends it.
class Reader {
  public:
    Reader(const Engine& engine, const PipeOptions& options, PipeQueue& queue, int in, int out)
        : engine_(engine), options_(options), queue_(queue), in_(in), out_(out) {
        const int made = pipe2(wake_, O_CLOEXEC | O_NONBLOCK);
        require(made == 0, "cannot create a pipe: {}", std::strerror(errno));
        wake_fd = wake_[1];
        // Signals go to the thread that answers.
        sigset_t block, before;
        sigemptyset(&block);
        sigaddset(&block, SIGINT);
        sigaddset(&block, SIGTERM);
        pthread_sigmask(SIG_BLOCK, &block, &before);
        thread_ = std::thread([this] { run(); });
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
    ~Reader() {
        stop();
        thread_.join();
        wake_fd = -1;
        close(wake_[0]);
        close(wake_[1]);
    }
    // Reads no more; the lines that were read still come through the queue.
    void stop() {
        stopped_ = true;
        queue_.stop();
        interrupt_pipe_reader();
    }
    static void interrupt_pipe_reader() {
        const int fd = wake_fd;
        if (fd >= 0) (void)!write(fd, "", 1);
    }
    int wake() const { return wake_[0]; }  // readable once interrupted, and stays so: nobody reads it
    bool output_closed() const { return output_closed_; }
    const std::string& error() const { return error_; }  // after the queue has ended

  private:
    void run() {
        try {
            read_lines();
        } catch (const std::exception& e) {  // out of memory, say
            error_ = e.what();
        }
        queue_.end();
    }

    void read_lines() {
        LineSplitter lines(kLineBytes,
                           [this](std::string_view text, bool too_long) { take(text, too_long); });
        std::vector<char> buffer(1 << 16);
        while (!stopped_ && !interrupted) {
            // `out` is here only to notice that its reader has gone, which poll() reports unasked: of a pipe
            // as an error, of a socket as a hang-up.
            pollfd p[3] = {{in_, POLLIN, 0}, {wake_[0], POLLIN, 0}, {out_, 0, 0}};
            if (poll(p, 3, -1) < 0) continue;
            if (p[2].revents & (POLLERR | POLLHUP)) output_closed_ = true;
            if (p[1].revents || output_closed_) break;
            const ssize_t n = read(in_, buffer.data(), buffer.size());
            if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
            if (n < 0) error_ = std::strerror(errno);
            if (n == 0) lines.finish();
            if (n <= 0) break;
            lines.feed({buffer.data(), static_cast<size_t>(n)});
        }
    }

    void take(std::string_view text, bool too_long) {
        n_line_++;
        if (!too_long && trim(text).empty()) return;
        auto item = parse_pipe_line(too_long ? "{}" : text, n_line_, options_.sampler);
        if (too_long) {
            item->id = nullptr;
            item->error = fmt::format("the line is longer than {} bytes", kLineBytes);
        } else if (!item->error.empty()) {
            item->request = {};
        } else if (!item->cancel.is_null()) {
            if (!queue_.cancel(item->cancel))
                item->warnings.push_back(fmt::format("there is no id {} to cancel", shown(item->cancel)));
            if (item->warnings.empty()) return;
        } else {
            try {
                item->request.prompt_ids = engine_.prompt_ids(item->request);
                item->request.messages.clear();
            } catch (const Error& e) {
                item->error = e.what();
            }
        }
        queue_.push(std::move(item));
    }

    const Engine& engine_;
    const PipeOptions& options_;
    PipeQueue& queue_;
    const int in_, out_;
    int wake_[2];
    int64_t n_line_ = 0;
    std::atomic<bool> stopped_ = false, output_closed_ = false;
    std::string error_;
    std::thread thread_;
};

// ---- Answering

class Server {
  public:
    Server(Engine& engine, const PipeOptions& options, int in, int out)
        : engine_(engine),
          options_(options),
          queue_(options.n_queue),
          out_(out),
          reader_(engine, options_, queue_, in, out) {}

    int run() {
        while (const auto item = queue_.pop(options_.unordered ? &cached_ : nullptr)) {
            if (closed_ || reader_.output_closed()) return 0;
            if (interrupted) reader_.stop();
            for (const std::string& text : item->warnings) write_warning(*item, text);
            if (!item->error.empty())
                write_error(*item, item->error);
            else if (item->cancel.is_null())
                answer(*item);
        }
        if (!unanswered_.empty())
            tell(fmt::format("easel: stopped while nobody read stdout; read but not answered: {} (ids {})\n",
                             unanswered_.size(), fmt::join(unanswered_, ", ")));
        if (interrupted) return closed_ ? 0 : kInterrupted;
        require(reader_.error().empty(), "the input cannot be read: {}", reader_.error());
        return 0;
    }

  private:
    // Until stdout takes something. False: nobody reads it, or nobody has since the program was stopped.
    bool wait_writable() {
        while (!closed_ && !stalled_) {
            pollfd p[2] = {{out_, POLLOUT, 0}, {interrupted ? -1 : reader_.wake(), POLLIN, 0}};
            const int n = poll(p, 2, interrupted ? kStallMs : -1);
            if (n > 0 && p[0].revents) return true;
            if (n == 0) stalled_ = true;
        }
        return false;
    }

    // The one way out: a line, at once. False: nobody reads it.
    bool write(const OrderedJson& line) {
        // A cut answer can end inside a character: such bytes are replaced, not refused.
        const std::string text = line.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
        for (size_t at = 0; at < text.size() && wait_writable();) {
            // No more than what a pipe surely takes now: a write that blocks could not be stopped.
            const ssize_t n = ::write(out_, text.data() + at, std::min<size_t>(text.size() - at, PIPE_BUF));
            if (n >= 0)
                at += static_cast<size_t>(n);
            else if (errno == EPIPE)
                closed_ = true;
            else
                require(errno == EINTR || errno == EAGAIN, "cannot write to stdout: {}",
                        std::strerror(errno));
        }
        return !closed_ && !stalled_;
    }

    // The last line about an item.
    void write_last(const PipeItem& item, const OrderedJson& line) {
        if (!write(line) && stalled_)
            unanswered_.push_back(item.id.is_null() ? fmt::format("of line {}", item.line) : shown(item.id));
    }

    void write_error(const PipeItem& item, const std::string& message) {
        write_last(item, {{"id", item.id}, {"type", "error"}, {"line", item.line}, {"message", message}});
    }

    void write_warning(const PipeItem& item, const std::string& message) {
        const Json id = item.cancel.is_null() ? item.id : nullptr;
        write({{"id", id}, {"type", "warning"}, {"line", item.line}, {"message", message}});
    }

    bool goes_on(const PipeItem& item) const {
        return !item.cancelled && !interrupted && !closed_ && !reader_.output_closed();
    }

    bool write_frame(const PipeItem& item, const Frame& f) {
        const auto end = std::find_if(f.argmax.begin(), f.argmax.end(),
                                      [&](int32_t id) { return engine_.tokenizer().is_end(id); });
        return write({{"id", item.id},
                      {"type", "frame"},
                      {"canvas", f.canvas},
                      {"step", f.step},
                      {"text", engine_.tokenizer().decode({f.argmax.begin(), end}, false)},
                      {"accepted",
                       std::count_if(f.accepted.begin(), f.accepted.end(), [](uint8_t a) { return a != 0; })},
                      {"mean_entropy", f.mean_entropy}});
    }

    void answer(const PipeItem& item) {
        using Ms = std::chrono::duration<double, std::milli>;
        const double wait_ms = Ms(std::chrono::steady_clock::now() - item.read_at).count();
        Result r;
        std::string error;
        if (goes_on(item)) {
            try {
                r = engine_.generate(
                    item.request,
                    [&](const Frame& f) { return goes_on(item) && (!item.frames || write_frame(item, f)); },
                    [&](int, int) { return goes_on(item); });
                cached_ = item.request.prompt_ids;
            } catch (const DeviceError& e) {
                write_error(item, e.what());
                fail("line {} and the lines after it were not answered: {}", item.line, e.what());
            } catch (const Error& e) {
                error = e.what();
            }
        } else {
            r.finish = Finish::Cancelled;
            r.seed = item.request.seed;
            r.n_prompt = static_cast<int>(item.request.prompt_ids.size());
        }
        queue_.answered(item);
        if (!error.empty()) return write_error(item, error);
        if (!r.note.empty()) write_warning(item, r.note);
        OrderedJson extra = OrderedJson::object();
        if (!r.stop.empty()) extra["stop"] = r.stop;
        for (const Filled& f : r.holes)
            extra["holes"].push_back({{"text", f.text}, {"confidence", f.confidence}});
        if (item.log_probs) extra["log_probs"] = r.log_prob, extra["entropies"] = r.entropy;
        OrderedJson line{
            {"id", item.id},
            {"type", "done"},
            {"text", r.text},
            {"thought", r.thought},
            {"ids", r.ids},
            {"finish_reason", finish_name(r.finish)},
            {"usage",
             {{"prompt_tokens", r.n_prompt}, {"reused_tokens", r.n_reused}, {"answer_tokens", r.ids.size()}}},
            {"canvases", r.steps.size()},
            {"steps", r.n_step()},
            {"timings_ms",
             {{"wait", wait_ms},
              {"encode", r.encode_ms},
              {"denoise", r.denoise_ms},
              {"commit", r.commit_ms}}},
            {"mean_log_prob", r.mean_log_prob()},
            {"seed", r.seed},
            {"tries", r.n_try},
            {"hash", fmt::format("{:016x}", r.hash)},
            {"line", item.line}};
        line.update(extra);
        write_last(item, line);
    }

    Engine& engine_;
    const PipeOptions options_;
    PipeQueue queue_;
    const int out_;
    bool closed_ = false, stalled_ = false;
    std::vector<std::string> unanswered_;  // ids whose last line stdout did not take
    std::vector<int32_t> cached_;          // the last prompt: what the engine holds
    Reader reader_;                        // last: destroyed before what it uses
};

}  // namespace

int serve_pipe(Engine& engine, const PipeOptions& options, int in, int out) {
    interrupted = false;
    return Server(engine, options, in, out).run();
}

void interrupt_pipe() {
    interrupted = true;
    Reader::interrupt_pipe_reader();
}

int run_pipe(const PipeFlags& flags) {
    if (flags.schema) {
        write_stdout(pipe_schema());
        return 0;
    }
    Engine engine = open_engine(flags.engine);
    tell_reading_stdin();
    PipeOptions options;
    options.sampler = engine.model().config.sampler;
    for (const auto& change : flags.sampler_changes) change(options.sampler);
    check_sampler(options.sampler);
    options.n_queue = static_cast<size_t>(flags.n_queue);
    options.unordered = flags.unordered;
    warn(engine.model());
    static volatile std::sig_atomic_t stopped_by = 0;
    struct sigaction action = {};
    action.sa_handler = [](int number) {
        const int saved = errno;
        stopped_by = number;
        interrupt_pipe();
        errno = saved;
    };
    action.sa_flags = SA_RESETHAND;  // a second one ends the program at once
    for (int number : {SIGINT, SIGTERM}) sigaction(number, &action, nullptr);
    const int code = serve_pipe(engine, options, STDIN_FILENO, STDOUT_FILENO);
    return code == kInterrupted ? 128 + stopped_by : code;
}

}  // namespace easel
