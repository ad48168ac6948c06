// fetch.cpp: `easel fetch`: brings a model of models.txt into the folder where -m NAME finds it. The program
// curl downloads; its output is hashed and written here, to NAME.gguf.part, which becomes NAME.gguf only when
// size and sha256 are right. A broken download is resumed. Called by main.
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "check.h"
#include "commands.h"
#include "models.h"
#include "sha256.h"
#include "text.h"
#include "whole_file.h"

extern char** environ;

namespace easel {

namespace {

// Exit codes of curl (its manual, EXIT CODES) that mean something of their own here.
constexpr int kNoHost = 6, kNoConnection = 7, kHttpError = 22, kNoRange = 33, kTooLarge = 63;
constexpr int kStallSeconds = 60;  // without 1000 bytes a second: the connection is dead

volatile std::sig_atomic_t stopped = 0;  // the signal that did, or 0

struct File {
    int fd = -1;
    explicit File(int fd) : fd(fd) {}
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() { close(); }
    void close() {
        if (fd >= 0) ::close(fd);
        fd = -1;
    }
};

// How far a download is: a line rewritten in place on a terminal, else a line every few seconds.
class Progress {
  public:
    Progress(const ModelEntry& entry, bool quiet) : entry_(entry), quiet_(quiet) {}
    // Measures the rate from here, where `bytes` are done.
    void start(int64_t bytes) {
        first_bytes_ = bytes;
        started_ = shown_ = Clock::now();
    }
    void show(const char* what, int64_t bytes) {
        const auto now = Clock::now();
        if (quiet_ || now - shown_ < (line_.on() ? std::chrono::milliseconds(200) : std::chrono::seconds(5)))
            return;
        shown_ = now;
        const double seconds = std::chrono::duration<double>(now - started_).count();
        const double rate = static_cast<double>(bytes - first_bytes_) / seconds;
        std::string text = fmt::format("{}: {}{}", entry_.name, what, human_bytes(bytes));
        if (entry_.bytes > 0)
            text += fmt::format(
                " of {}, {} %", human_bytes(entry_.bytes),
                static_cast<int>(100.0 * static_cast<double>(bytes) / static_cast<double>(entry_.bytes)));
        text += fmt::format(", {}/s", human_bytes(static_cast<int64_t>(rate)));
        if (entry_.bytes > 0 && rate > 0)
            text += ", " + time_left(static_cast<double>(entry_.bytes - bytes) / rate);
        if (line_.on())
            line_.show(text);
        else
            tell(text + "\n");
    }
    void note(const std::string& text) {
        clear();
        if (!quiet_) tell(fmt::format("{}\n", safe_line(text)));
    }
    void clear() { line_.clear(); }

  private:
    using Clock = std::chrono::steady_clock;
    static std::string time_left(double seconds) {
        const int s = static_cast<int>(std::min(seconds, 359999.0)) + 1;
        return s < 60     ? fmt::format("{} s left", s)
               : s < 3600 ? fmt::format("{} min {} s left", s / 60, s % 60)
                          : fmt::format("{} h {} min left", s / 3600, s % 3600 / 60);
    }

    const ModelEntry& entry_;
    bool quiet_;
    ProgressLine line_;
    int64_t first_bytes_ = 0;
    Clock::time_point started_, shown_;
};

// NAME.gguf.part: the beginning of a model, and its hash if the list has one.
class Part {
  public:
    Part(std::string path, const ModelEntry& entry)
        : path_(std::move(path)),
          hashed_(!entry.sha256.empty()),
          file_(open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666)) {
        require(file_.fd >= 0, "{}: cannot be written: {}", path_, std::strerror(errno));
        struct stat status;
        require(fstat(file_.fd, &status) == 0 && S_ISREG(status.st_mode), "{}: is not a regular file", path_);
        bytes_ = status.st_size;
    }
    ~Part() {
        if (bytes_ == 0 && !moved_) unlink(path_.c_str());
    }
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

    // Hashes what an earlier run has left. Stops early at Ctrl-C.
    void read(Progress& progress) {
        if (hashed_ && bytes_ > 0) {
            std::vector<uint8_t> buffer(1 << 20);
            progress.start(0);
            for (int64_t done = 0; done < bytes_ && !stopped;) {
                const ssize_t n = pread(file_.fd, buffer.data(), buffer.size(), done);
                if (n < 0 && errno == EINTR) continue;
                require(n > 0, "{}: cannot be read: {}", path_,
                        n < 0 ? std::strerror(errno) : "it has become shorter");
                hash_.add({buffer.data(), static_cast<size_t>(n)});
                done += n;
                progress.show("checking the earlier download, ", done);
            }
        }
        const bool at_end = lseek(file_.fd, bytes_, SEEK_SET) == bytes_;
        require(at_end, "{}: cannot be read: {}", path_, std::strerror(errno));
    }
    void append(std::span<const uint8_t> data) {
        for (auto rest = data; !rest.empty();) {
            const ssize_t n = write(file_.fd, rest.data(), rest.size());
            if (n < 0 && errno == EINTR) continue;
            require(n >= 0, "{}: cannot be written: {}", path_, std::strerror(errno));
            bytes_ += n;
            rest = rest.subspan(n);
        }
        if (hashed_) hash_.add(data);
    }
    void restart() {
        const bool empty = ftruncate(file_.fd, 0) == 0 && lseek(file_.fd, 0, SEEK_SET) == 0;
        require(empty, "{}: cannot be written: {}", path_, std::strerror(errno));
        bytes_ = 0;
        hash_ = {};
    }
    bool is_model() const { return magic() == "GGUF"; }
    // Error if it is no GGUF file, but an error page, say; then it is removed.
    void require_model() {
        const std::string begin = magic();
        if (begin == "GGUF") return;
        restart();
        fail("{}: deleted, as it begins with \"{}\", expected a GGUF file", path_, shown(begin));
    }
    void move_to(const std::string& path) {
        moved_ = fsync(file_.fd) == 0 && std::rename(path_.c_str(), path.c_str()) == 0;
        require(moved_, "{}: cannot be written: {}", path, std::strerror(errno));
    }
    int64_t bytes() const { return bytes_; }
    std::string sha256() const { return hash_.hex(); }
    const std::string& path() const { return path_; }

  private:
    std::string magic() const {
        char bytes[5] = {};
        return pread(file_.fd, bytes, 4, 0) == 4 ? bytes : "";
    }

    std::string path_;
    bool hashed_, moved_ = false;
    File file_;
    int64_t bytes_ = 0;
    Sha256 hash_;
};

// A running curl, which ends with the object.
class Curl {
  public:
    // Fetches the url's bytes from `offset` on. most > 0: none, if the server says that there are more.
    Curl(const std::string& url, int64_t offset, int64_t most) {
        // Without ~/.curlrc, which could put headers into the file, or the file elsewhere.
        std::vector<std::string> words = {"curl",   "--disable",  "--silent", "--show-error",
                                          "--fail", "--location", "--globoff"};
        const std::string seconds = std::to_string(kStallSeconds);
        words.insert(words.end(), {"--proto", "=http,https", "--speed-limit", "1000", "--speed-time", seconds,
                                   "--connect-timeout", seconds, "--output", "-", "--url", url});
        if (offset > 0) words.insert(words.end(), {"--continue-at", std::to_string(offset)});
        if (most > 0) words.insert(words.end(), {"--max-filesize", std::to_string(most)});
        // An https URL may not be redirected to plain http.
        if (url.starts_with("https://")) words.insert(words.end(), {"--proto-redir", "=https"});
        std::vector<char*> argv;
        for (std::string& w : words) argv.push_back(w.data());
        argv.push_back(nullptr);

        int out[2], err[2];
        int made = pipe2(out, O_CLOEXEC);
        require(made == 0, "cannot create a pipe: {}", std::strerror(errno));
        out_.fd = out[0];
        const File out_end(out[1]);
        made = pipe2(err, O_CLOEXEC);
        require(made == 0, "cannot create a pipe: {}", std::strerror(errno));
        err_.fd = err[0];
        const File err_end(err[1]);
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
        posix_spawn_file_actions_adddup2(&actions, out_end.fd, 1);
        posix_spawn_file_actions_adddup2(&actions, err_end.fd, 2);
        const int error = posix_spawnp(&pid_, "curl", &actions, nullptr, argv.data(), environ);
        posix_spawn_file_actions_destroy(&actions);
        if (error) pid_ = -1;
        require(error != ENOENT,
                "downloading needs the program curl, which is not installed, or not on the PATH");
        require(error == 0, "the program curl cannot be started: {}", std::strerror(error));
    }
    ~Curl() {
        if (pid_ <= 0) return;
        kill(pid_, SIGKILL);
        wait();
    }
    Curl(const Curl&) = delete;
    Curl& operator=(const Curl&) = delete;

    // The next bytes of the file. 0: there are no more; -1: none have come for a while.
    ssize_t read(std::span<uint8_t> buffer) {
        pollfd files[] = {{out_.fd, POLLIN, 0}, {err_.fd, POLLIN, 0}};
        constexpr int kWait = 200;  // milliseconds; how late a Ctrl-C may be seen
        if (poll(files, 2, kWait) <= 0) return -1;
        if (files[1].revents) read_message();
        if (!files[0].revents) return -1;
        const ssize_t n = ::read(out_.fd, buffer.data(), buffer.size());
        require(n >= 0 || errno == EINTR, "cannot read from curl: {}", std::strerror(errno));
        return n;
    }
    // Its exit code, after read() has given 0.
    int finish() {
        while (err_.fd >= 0) read_message();
        const int status = wait();
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    // The one line that it has said, without "curl: (22) ".
    std::string message() const {
        std::string text = message_.substr(0, message_.find('\n'));
        if (const size_t at = text.find(") "); text.starts_with("curl: (") && at != text.npos)
            text.erase(0, at + 2);
        return text.empty() ? "curl says nothing" : shown(text);
    }

  private:
    void read_message() {
        char text[1024];
        const ssize_t n = ::read(err_.fd, text, sizeof text);
        if (n < 0 && errno == EINTR) return;
        if (n <= 0) return err_.close();
        if (message_.size() < sizeof text) message_.append(text, n);
    }
    int wait() {
        int status = 0;
        while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
        }
        pid_ = -1;
        return status;
    }

    pid_t pid_ = -1;
    File out_{-1}, err_{-1};
    std::string message_;
};

std::string host_of(const std::string& url) {  // without a name and a password
    const size_t begin = url.find("://") + 3;
    const std::string host = url.substr(begin, url.find_first_of("/?#", begin) - begin);
    return host.substr(host.rfind('@') + 1);
}

std::string amount(int64_t bytes, int64_t of) {
    return of > 0 ? fmt::format("{} of {} bytes", bytes, of) : fmt::format("{} bytes", bytes);
}

// Whether the file is there. Error if it cannot be the one of the list.
bool is_here(const ModelEntry& e) {
    const std::string path = model_path(e);
    struct stat status;
    if (stat(path.c_str(), &status) != 0) return false;
    require(S_ISREG(status.st_mode), "{}: is not a regular file", path);
    require(e.bytes == 0 || status.st_size == e.bytes,
            "{}: has {} bytes, expected {}; delete it to fetch it again", path, status.st_size, e.bytes);
    return true;
}

// NAME.gguf.lock, held for as long as the object lives; the lock goes with the process, however that ends.
class Lock {
  public:
    explicit Lock(const ModelEntry& e) : path_(model_path(e) + ".lock"), file_(-1) {
        do {  // again, if another easel has removed the file before it was locked
            file_.close();
            file_.fd = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
            require(file_.fd >= 0, "{}: cannot be written: {}; EASEL_MODELS=FOLDER sets another folder",
                    path_, std::strerror(errno));
            const bool held = flock(file_.fd, LOCK_EX | LOCK_NB) == 0;
            require(held || errno != EWOULDBLOCK, "{} is being fetched by another easel process", e.name);
            require(held, "{}: cannot be locked: {}", path_, std::strerror(errno));
        } while (!is_named(file_.fd, path_));
        held_ = true;
    }
    ~Lock() {
        if (held_) unlink(path_.c_str());
    }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

  private:
    std::string path_;
    File file_;
    bool held_ = false;
};

void check_space(const std::string& folder, const ModelEntry& e, int64_t here) {
    struct statvfs disk;
    if (e.bytes <= here || statvfs(folder.c_str(), &disk) != 0) return;
    const double free = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
    require(free >= static_cast<double>(e.bytes - here),
            "{}: {} free, {} needed for {}; EASEL_MODELS=FOLDER sets another folder", folder,
            human_bytes(static_cast<int64_t>(free)), human_bytes(e.bytes - here), e.name);
}

// Appends what the server has after the part's end. False: it cannot begin there. Error for anything else
// that keeps it from giving the rest.
bool download(const ModelEntry& e, Part& part, Progress& progress) {
    const int64_t first = part.bytes();
    Curl curl(e.url, first, e.bytes - first);
    std::vector<uint8_t> buffer(1 << 18);
    progress.start(first);
    const auto require_size = [&](bool right) {
        require(right, "{}: the server sends more than the {} bytes expected", e.url, e.bytes);
    };
    for (ssize_t n; (n = curl.read(buffer)) != 0;) {
        if (stopped) return true;
        if (n > 0) {
            require_size(e.bytes == 0 || part.bytes() + n <= e.bytes);
            part.append({buffer.data(), static_cast<size_t>(n)});
        }
        progress.show("", part.bytes());
    }
    const int status = curl.finish();
    if (stopped || status == 0) return true;
    if ((status == kNoRange || status == kTooLarge) && first > 0) return false;  // a download from 0 may work
    // HTTP 416: there is nothing after the part's end.
    if (status == kHttpError && first > 0 && curl.message().find("error: 416") != std::string::npos)
        return true;
    require_size(status != kTooLarge);
    require(status != kNoHost, "cannot find {}: is this machine online?", host_of(e.url));
    require(status != kNoConnection, "cannot connect to {}: is this machine online?", host_of(e.url));
    require(status != kHttpError, "{}: the server refuses the file: {}", e.url, curl.message());
    fail("{}: the download stopped at {} ({}); `easel fetch {}` continues from there", e.name,
         amount(part.bytes(), e.bytes), curl.message(), e.name);
}

// All bytes of the model into the part. Stops early at Ctrl-C.
void complete(const ModelEntry& e, Part& part, Progress& progress) {
    const auto right = [&] { return e.sha256.empty() || part.sha256() == e.sha256; };
    const auto restart = [&](const char* why) {
        progress.note(fmt::format("{}: {}; starting over", part.path(), why));
        part.restart();
    };
    part.read(progress);
    if (stopped) return;
    // A page that a proxy has sent instead, say. Found only at the end, the whole download would go to waste.
    if (part.bytes() > 0 && !part.is_model()) restart("not the beginning of a GGUF file");
    if (e.bytes > 0 && part.bytes() > e.bytes) restart("longer than the model");
    if (e.bytes > 0 && part.bytes() == e.bytes) {
        if (right()) return;
        restart("the earlier download has a wrong sha256");
    }
    const int64_t first = part.bytes();
    progress.note(fmt::format("{}: {} {} to {}", e.name,
                              first > 0 ? "resuming after " + amount(first, e.bytes) + " from" : "from",
                              e.url, model_path(e)));
    if (!download(e, part, progress)) {
        restart("the server cannot resume a download");
        download(e, part, progress);
    } else if (!stopped && e.bytes == 0 && first > 0 && part.bytes() == first && !right()) {
        restart("the earlier download has a wrong sha256");
        download(e, part, progress);
    }
    if (stopped || e.bytes == 0 || part.bytes() == e.bytes) return;
    if (part.bytes() > 0) part.require_model();
    fail("{}: the server's file has {} bytes, expected {}: it is not, or no longer, the listed one", e.url,
         part.bytes(), e.bytes);
}

int list_models(const std::vector<ModelEntry>& models) {
    std::string out = fmt::format("models in {}\n", models_folder());
    size_t width = 0;
    for (const ModelEntry& e : models) width = std::max(width, e.name.size());
    for (const ModelEntry& e : models) {
        struct stat file, part;
        const std::string path = model_path(e);
        const bool here = stat(path.c_str(), &file) == 0;
        const bool whole = here && (e.bytes == 0 || file.st_size == e.bytes);
        const bool begun = !here && stat((path + ".part").c_str(), &part) == 0 && part.st_size > 0;
        const std::string state = whole   ? "downloaded"
                                  : here  ? "wrong size"
                                  : begun ? human_bytes(part.st_size) + " so far"
                                          : "not downloaded";
        const std::string line = fmt::format("  {:<{}}  {:>10}  {:<16} {}", e.name, width,
                                             e.bytes > 0 ? human_bytes(e.bytes) : "?", state, e.note);
        out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
    }
    out += "`easel fetch NAME` downloads one, `-m NAME` runs it\n";
    write_stdout(out);
    return 0;
}

}  // namespace

int run_fetch(const FetchFlags& flags) {
    const std::vector<ModelEntry> models = known_models(flags.list);
    if (flags.name.empty()) return list_models(models);
    const ModelEntry* entry = find_entry(models, flags.name);
    require(entry, "there is no model \"{}\"{}", shown(flags.name), name_hint(models, flags.name));
    const ModelEntry& e = *entry;
    const std::string folder = models_folder(), path = model_path(e);

    Progress progress(e, flags.quiet);
    if (is_here(e)) {
        progress.note(fmt::format("{} is already downloaded", e.name));
        write_stdout(path + "\n");
        return 0;
    }
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    require(!error, "{}: cannot be created: {}; EASEL_MODELS=FOLDER sets another folder", folder,
            error.message());
    const Lock held(e);
    if (!is_here(e)) {  // another easel may have brought it just now
        Part part(path + ".part", e);
        check_space(folder, e, part.bytes());
        for (int number : {SIGINT, SIGTERM})
            std::signal(number, [](int by) {  // a second one ends the program at once
                stopped = by;
                std::signal(by, SIG_DFL);
            });
        complete(e, part, progress);
        progress.clear();
        if (stopped) {
            progress.note(fmt::format("stopped after {}; `easel fetch {}` continues from there",
                                      amount(part.bytes(), e.bytes), e.name));
            return 128 + stopped;
        }
        if (!e.sha256.empty()) {
            const std::string found = part.sha256();
            if (found != e.sha256) part.restart();  // and it is removed
            require(found == e.sha256,
                    "{}: deleted, as its sha256 is {}, expected {}; `easel fetch {}` starts over",
                    part.path(), found, e.sha256, e.name);
        }
        part.require_model();
        part.move_to(path);
    }
    write_stdout(path + "\n");
    return 0;
}

}  // namespace easel
