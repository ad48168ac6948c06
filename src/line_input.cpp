// line_input.cpp: lines from a terminal through libedit where the program is built with it (EASEL_EDIT, see
// tools/deps.sh), from a pipe or a plain terminal by read(). Used by `easel chat`.
#include "line_input.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cwchar>
#include <filesystem>
#include <fstream>
#include <utility>

#include "check.h"
#include "text.h"
#include "view.h"
#ifdef EASEL_EDIT
#include <histedit.h>
#endif

namespace easel {

namespace {

int wake[2] = {-1, -1};  // a pipe to which signal handlers write what happened
constexpr char kInterrupt = 'i', kResize = 'r', kContinue = 'c';

void wake_reader(char what) {
    const int saved = errno;
    if (wake[1] >= 0) (void)!write(wake[1], &what, 1);
    errno = saved;
}

void open_wake() {
    if (wake[0] >= 0) return;
    const int made = pipe(wake);
    require(made == 0, "cannot create a pipe: {}", std::strerror(errno));
    for (int fd : wake) {
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
}

// Waits until stdin has something (returns 0) or a signal handler has written to `wake` (returns that).
char wait_for_input() {
    for (;;) {
        pollfd ready[] = {{STDIN_FILENO, POLLIN, 0}, {wake[0], POLLIN, 0}};
        if (poll(ready, 2, -1) < 0) continue;  // EINTR: the handler has written
        char what;
        if (ready[1].revents && ::read(wake[0], &what, 1) == 1) return what;
        if (ready[0].revents) return 0;
    }
}

}  // namespace

void LineInput::interrupt() {
    wake_reader(kInterrupt);
}

// ---- History

std::string history_path() {
    const char* state = std::getenv("XDG_STATE_HOME");
    if (state && *state == '/') return std::string(state) + "/easel/history";
    const char* home = std::getenv("HOME");
    return home && *home ? std::string(home) + "/.local/state/easel/history" : "";
}

// Appends to a file; a new one is readable by its owner alone. False: errno says why not.
static bool append(const std::string& path, const std::string& text) {
    const int fd = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    const bool whole = fd >= 0 && ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    const int problem = errno;
    if (fd >= 0) close(fd);
    errno = problem;
    return whole;
}

std::deque<std::string> HistoryFile::load() const {
    std::deque<std::string> lines;
    if (path_.empty()) return lines;
    std::error_code error;
    if (!std::filesystem::is_regular_file(path_, error)) return lines;
    std::ifstream in(path_, std::ios::binary);
    size_t n = 0;
    for (std::string line; std::getline(in, line); n++) {
        if (!line.empty()) lines.push_back(std::move(line));
        if (lines.size() > kKept) lines.pop_front();
    }
    in.close();
    if (n < 2 * kKept) return lines;
    std::string text;
    for (const std::string& line : lines) text += line + "\n";
    const std::string part = path_ + ".part";
    std::filesystem::remove(part, error);  // an old one may be readable by others
    const bool whole = append(part, text) && rename(part.c_str(), path_.c_str()) == 0;
    if (!whole) std::filesystem::remove(part, error);
    return lines;
}

std::string HistoryFile::add(const std::string& line) {
    if (path_.empty() || broken_ || line.empty()) return "";
    std::error_code error;
    const std::filesystem::path folder = std::filesystem::path(path_).parent_path();
    if (std::filesystem::create_directories(folder, error)) chmod(folder.c_str(), 0700);
    broken_ = !append(path_, line + "\n");
    return broken_ ? fmt::format("{}: the history cannot be kept: {}", path_, std::strerror(errno)) : "";
}

// ---- Editing

#ifdef EASEL_EDIT

struct LineInput::Editor {
    Editor(std::FILE* out, HistoryFile file) : out_(out), file_(std::move(file)) {
        edit_ = el_init("easel", stdin, out, stderr);
        history_ = history_init();
        require(edit_ && history_, "the line editor cannot be set up");
        el_set(edit_, EL_CLIENTDATA, this);
        el_set(
            edit_, EL_PROMPT, +[](EditLine* e) { return self(e).prompt_.data(); });
        el_set(edit_, EL_EDITOR, "emacs");
        el_set(edit_, EL_SIGNAL, 0);
        el_set(edit_, EL_GETCFN, &read_char);
        el_set(edit_, EL_HIST, history, history_);
        HistEvent event;
        history(history_, &event, H_SETSIZE, static_cast<int>(HistoryFile::kKept));
        history(history_, &event, H_SETUNIQUE, 1);
        for (const std::string& line : file_.load()) history(history_, &event, H_ENTER, line.c_str());
        constexpr const char* keys[][2] = {
            {"^I", "ed-insert"},           {"^R", "em-inc-search-prev"},
            {"^W", "ed-delete-prev-word"}, {"\\e[3~", "ed-delete-next-char"},
            {"\\e[1~", "ed-move-to-beg"},  {"\\e[4~", "ed-move-to-end"},
            {"\\e[H", "ed-move-to-beg"},   {"\\e[F", "ed-move-to-end"},
            {"\\eOH", "ed-move-to-beg"},   {"\\eOF", "ed-move-to-end"},
            {"\\e[1;5D", "ed-prev-word"},  {"\\e[1;5C", "em-next-word"},
        };
        for (const auto& [key, command] : keys) el_set(edit_, EL_BIND, key, command, nullptr);
        el_source(edit_, nullptr);  // ~/.editrc
        // Until the next el_gets() the terminal is as it was.
    }
    ~Editor() {
        el_end(edit_);
        history_end(history_);
    }

    Got read(const std::string& prompt, std::string& line) {
        const auto on_signal = [](int signal) { wake_reader(signal == SIGWINCH ? kResize : kContinue); };
        const auto old_resize = std::signal(SIGWINCH, on_signal);
        const auto old_continue = std::signal(SIGCONT, on_signal);
        el_resize(edit_);
        prompt_ = prompt;
        interrupted_ = false;
        int n = 0;
        const char* text = el_gets(edit_, &n);
        std::signal(SIGWINCH, old_resize);
        std::signal(SIGCONT, old_continue);
        if (interrupted_) {
            std::fputs("^C\n", out_);
            return Got::Interrupted;
        }
        if (!text || n <= 0) {
            std::fputc('\n', out_);
            return Got::End;
        }
        line.assign(text, static_cast<size_t>(n));
        while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
        if (!line.empty()) {
            HistEvent event;
            history(history_, &event, H_ENTER, line.c_str());
            const std::string problem = file_.add(line);
            if (!problem.empty()) tell(fmt::format("easel: {}\n", problem));
        }
        return Got::Line;
    }

  private:
    static Editor& self(EditLine* e) {
        void* data = nullptr;
        el_get(e, EL_CLIENTDATA, &data);
        return *static_cast<Editor*>(data);
    }

    // libedit's one source of characters: 1 with a character, 0 at the end, -1 to give up the line.
    static int read_char(EditLine* e, wchar_t* c) {
        Editor& editor = self(e);
        std::mbstate_t state{};
        for (;;) {
            switch (wait_for_input()) {
                case kInterrupt:
                    editor.interrupted_ = true;
                    return -1;
                case kContinue:
                    el_set(e, EL_PREP_TERM, 1);
                    el_resize(e);
                    el_set(e, EL_REFRESH);
                    continue;
                case kResize:
                    editor.erase();
                    el_resize(e);
                    el_set(e, EL_REFRESH);
                    continue;
            }
            char byte;
            const ssize_t n = ::read(STDIN_FILENO, &byte, 1);
            if (n == 0) return 0;
            if (n < 0) {
                if (errno == EINTR || errno == EAGAIN) continue;
                return errno == EIO ? 0 : -1;  // EIO: the terminal is gone
            }
            const size_t used = std::mbrtowc(c, &byte, 1, &state);
            if (used == static_cast<size_t>(-2)) continue;  // the character has more bytes
            if (used == static_cast<size_t>(-1)) *c = 0xfffd;
            return 1;
        }
    }

    // Erases the drawn line after the terminal's width has changed, from the row on to which the terminal has
    // moved its beginning. libedit alone would leave it there and draw the line once more.
    void erase() {
        const LineInfo* line = el_line(edit_);
        const std::string before = prompt_ + std::string(line->buffer, line->cursor);
        int columns = 0;
        for (std::string_view rest = before; !rest.empty();) {
            const Char c = first_char(rest);
            columns += std::max(0, char_width(c.c));
            rest.remove_prefix(c.n);
        }
        winsize size{};
        const bool known = ioctl(fileno(out_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
        const int above = columns / (known ? size.ws_col : 80);
        const std::string text = fmt::format("{}\r\033[J", above > 0 ? fmt::format("\033[{}A", above) : "");
        std::fputs(text.c_str(), out_);
        std::fflush(out_);
    }

    std::FILE* out_;
    HistoryFile file_;
    EditLine* edit_;
    History* history_;
    std::string prompt_;
    bool interrupted_ = false;
};

#else

struct LineInput::Editor {
    Editor(std::FILE*, HistoryFile) {}
    Got read(const std::string&, std::string&) { return Got::End; }
};

#endif

// ---- Lines

LineInput::LineInput(HistoryFile history)
    : terminal_(isatty(STDIN_FILENO)),
      prompt_(isatty(STDERR_FILENO) || !isatty(STDOUT_FILENO) ? stderr : stdout),
      splitter_(kLineBytes,
                [this](std::string_view text, bool too_long) { lines_.emplace_back(text, too_long); }) {
    open_wake();
#ifdef EASEL_EDIT
    if (terminal_ && is_screen(fileno(prompt_)))
        editor_ = std::make_unique<Editor>(prompt_, std::move(history));
#else
    (void)history;
#endif
}

LineInput::~LineInput() = default;

LineInput::Got LineInput::read(const std::string& prompt, std::string& line) {
    for (char past; ::read(wake[0], &past, 1) == 1;) continue;  // signals from before this line
    if (editor_) return editor_->read(prompt, line);
    if (terminal_) {
        std::fputs(prompt.c_str(), prompt_);
        std::fflush(prompt_);
    }
    const Got got = read_plain(line);
    if (terminal_ && got != Got::Line) std::fputc('\n', prompt_);
    return got;
}

LineInput::Got LineInput::read_plain(std::string& line) {
    while (lines_.empty()) {
        if (std::exchange(ended_, false)) return Got::End;  // a terminal may go on after Ctrl-D
        if (const char what = wait_for_input(); what == kInterrupt)
            return Got::Interrupted;
        else if (what)
            continue;
        char buffer[1 << 16];
        const ssize_t n = ::read(STDIN_FILENO, buffer, sizeof buffer);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        require(n >= 0, "stdin cannot be read: {}", std::strerror(errno));
        if (n > 0) {
            splitter_.feed({buffer, static_cast<size_t>(n)});
        } else {
            splitter_.finish();
            ended_ = true;
        }
    }
    auto [text, too_long] = std::move(lines_.front());
    lines_.pop_front();
    if (text.ends_with('\r')) text.pop_back();
    line = std::move(text);
    return too_long ? Got::TooLong : Got::Line;
}

}  // namespace easel
