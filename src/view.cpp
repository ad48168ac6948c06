// view.cpp: the live canvas: a step's tokens to rows of a terminal, and the class that redraws them in place.
#include "view.h"

#include <fmt/format.h>
#include <langinfo.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <cwchar>

#include "text.h"

namespace easel {

namespace {

constexpr std::string_view kDot = "\u00b7";
constexpr int kTab = 8;

const char* attributes(Ink ink) {
    switch (ink) {
        case Ink::Settled:
            return "";
        case Ink::Accepted:
            return "\033[1m";  // bright
        case Ink::Likely:
            return "\033[36m";  // cyan
        case Ink::Unsure:
            return "\033[33m";  // yellow
        case Ink::Noise:
        case Ink::Status:
            return "\033[2m";  // dim
    }
    return "";
}

// Rows as they fill up.
class Rows {
  public:
    Rows(int width, bool color) : width_(width), color_(color) {}

    void put(std::string_view bytes, int width, Ink ink) {
        if (rows_.back().width + width > width_) end_row();
        if (color_ && ink != ink_) {
            if (*attributes(ink_)) rows_.back().text += "\033[0m";
            rows_.back().text += attributes(ink);
            ink_ = ink;
        }
        rows_.back().text += bytes;
        rows_.back().width += width;
    }
    void tab(Ink ink) {  // to the next stop; like a terminal's, never past the last column
        const int n = std::min(kTab - rows_.back().width % kTab, width_ - 1 - rows_.back().width);
        for (int i = 0; i < n; i++) put(" ", 1, ink);
    }
    void end_row() {
        if (*attributes(ink_)) rows_.back().text += "\033[0m";
        ink_ = Ink::Settled;
        rows_.emplace_back();
    }
    std::vector<Row> take() {
        end_row();
        rows_.pop_back();
        return std::move(rows_);
    }

  private:
    const int width_;
    const bool color_;
    Ink ink_ = Ink::Settled;
    std::vector<Row> rows_{1};
};

}  // namespace

int char_width(char32_t c) {
    if (c >= 0x20 && c < 0x7f) return 1;
    const int n = wcwidth(static_cast<wchar_t>(c));
    // Characters newer than the C library: emoji, from U+1F000 on, are wide.
    return n >= 0 ? n : c >= 0x1f000 && c < 0x20000 ? 2 : 1;
}

std::vector<Piece> frame_pieces(const Tokenizer& tokenizer, const Frame& f, bool color, bool ignore_end) {
    std::vector<Piece> pieces;
    size_t n_text = 0;  // pieces up to the last one that is a token's text
    for (size_t i = 0; i < f.tokens.size(); i++) {
        const bool sure = f.accepted[i] || f.last;
        const int32_t id = f.accepted[i] && !f.last ? f.tokens[i] : f.argmax[i];
        if (tokenizer.is_end(id) && !ignore_end) {
            if (sure) break;
            pieces.push_back({std::string(kDot), Ink::Noise});
            continue;
        }
        std::string text = tokenizer.decode({&id, 1}, false);
        const bool has_text = !text.empty();
        if (!has_text && sure) continue;  // a control token
        const float nats = f.entropy[i];  // 0.5: one token is likely; 2: some seven share the probability
        const Ink ink = f.accepted[i] ? Ink::Accepted
                        : nats < 0.5f ? Ink::Likely
                        : nats < 2    ? Ink::Unsure
                                      : Ink::Noise;
        if (!has_text || (!color && !sure)) text = kDot;
        pieces.push_back({std::move(text), ink});
        if (has_text) n_text = pieces.size();
    }
    pieces.resize(n_text);
    return pieces;
}

std::vector<Row> wrap_pieces(std::span<const Piece> pieces, int width, bool color) {
    // A character's bytes may lie in several tokens: it is shown as sure as the first of them.
    std::string text;
    std::vector<std::pair<size_t, Ink>> inks;  // from which byte on
    for (const Piece& p : pieces) {
        if (!p.text.empty()) inks.emplace_back(text.size(), p.ink);
        text += p.text;
    }
    Rows rows(std::max(width, 1), color);
    const std::string_view all = text;
    for (size_t at = 0, next = 0; at < all.size();) {
        while (next < inks.size() && inks[next].first <= at) next++;
        const Ink ink = inks[next - 1].second;
        const auto [c, n] = first_char(all.substr(at));
        if (c == '\n')
            rows.end_row();
        else if (c == '\t')
            rows.tab(ink);
        else if (c == '\r' && at + 1 < all.size() && all[at + 1] == '\n')
            ;  // a line that ends as on Windows
        else if (const int n_column = char_width(c); c == 0xfffd || is_control(c) || n_column > width)
            rows.put(kReplacement, 1, ink);
        else
            rows.put(all.substr(at, n), n_column, ink);
        at += n;
    }
    return rows.take();
}

std::string status_text(const ViewStatus& s, int width) {
    const std::string parts[] = {fmt::format("accepted {}/{}", s.n_accepted, s.n_canvas),
                                 fmt::format("entropy {:.3f}", s.mean_entropy),
                                 fmt::format("{:.0f} tok/s", s.tokens_per_s)};
    const size_t room = static_cast<size_t>(std::max(width, 0));
    const std::string step = fmt::format("step {}/{}", s.step + 1, s.max_steps);
    std::string text = fmt::format("canvas {} | {}", s.canvas + 1, step);
    if (text.size() > room) text = step.substr(0, room);
    for (const std::string& part : parts) {
        if (text.size() + 3 + part.size() > room) break;
        text += " | " + part;
    }
    return text;
}

std::string draw(std::span<const Piece> pieces, std::string_view status, const Screen& screen) {
    std::vector<Row> rows = wrap_pieces(pieces, screen.width, screen.color);
    // An answer that ends with a newline has no row after it yet.
    if (rows.back().width == 0) rows.pop_back();
    const size_t room = static_cast<size_t>(std::max(screen.height - 1, 0));
    const auto shown = std::span(rows).last(std::min(rows.size(), room));

    // Without line wrap, a character whose width the terminal sees otherwise costs a column, not a row. Both
    // modes are back at the end, so whatever ends the program leaves the terminal as it was.
    std::string out = "\033[?25l\033[?7l\r";
    for (const Row& row : shown) {
        out += row.text;
        if (row.width < screen.width) out += "\033[K";  // in the last column this would clear a character
        out += "\r\n";
    }
    if (screen.color) out += attributes(Ink::Status);
    out += status;
    if (screen.color) out += "\033[0m";
    out += "\033[J\r";
    if (!shown.empty()) out += fmt::format("\033[{}A", shown.size());
    return out + "\033[?7h\033[?25h";
}

// ---- Terminals

// Whether TERM names a terminal whose cursor can be moved.
static bool moves_cursor() {
    const char* term = std::getenv("TERM");
    return term && *term && std::strcmp(term, "dumb") != 0;
}

bool is_screen(int fd) {
    return isatty(fd) && moves_cursor();
}

bool use_color(std::string_view flag, int fd) {
    if (flag != "auto") return flag == "always";
    const char* no_color = std::getenv("NO_COLOR");
    return is_screen(fd) && !(no_color && *no_color);
}

void set_utf8_locale() {
    const auto is_utf8 = [] { return std::strcmp(nl_langinfo(CODESET), "UTF-8") == 0; };
    for (const char* name : {"", "C.UTF-8", "en_US.UTF-8"})
        if (std::setlocale(LC_CTYPE, name) && is_utf8()) return;
}

namespace {

// What a signal handler needs to know. `drawing` is set while the screen has something of ours on it and the
// terminal does not echo.
volatile std::sig_atomic_t drawing = 0, echo_off = 0;
termios terminal_modes;

// Signals that end or stop the program: the drawing is erased first.
constexpr int kLeaving[] = {SIGTERM, SIGHUP, SIGQUIT, SIGTSTP};

// Unless the signal is ignored, as nohup has it.
void catch_signal(int number, void (*handler)(int)) {
    if (std::signal(number, handler) == SIG_IGN) std::signal(number, SIG_IGN);
}

void leave_on_signal(int signal) {
    const int saved = errno;
    abandon_view();
    std::signal(signal, SIG_DFL);
    std::raise(signal);  // takes effect when this returns
    errno = saved;
}

// Turns echo off: keys that are pressed while the canvas is drawn would move it.
void begin_drawing() {
    if (drawing) return;
    sigset_t leaving, before;  // blocked until `drawing` and `echo_off` are as the terminal is
    sigemptyset(&leaving);
    for (int signal : kLeaving) {
        catch_signal(signal, leave_on_signal);
        sigaddset(&leaving, signal);
    }
    pthread_sigmask(SIG_BLOCK, &leaving, &before);
    // A program in the background may not change modes: it would be stopped.
    if (tcgetpgrp(STDERR_FILENO) == getpgrp() && tcgetattr(STDERR_FILENO, &terminal_modes) == 0) {
        termios quiet = terminal_modes;
        quiet.c_lflag &= ~static_cast<tcflag_t>(ECHO | ECHONL);
        echo_off = 1;
        tcsetattr(STDERR_FILENO, TCSANOW, &quiet);
    }
    drawing = 1;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void end_drawing() {
    if (!drawing) return;
    abandon_view();
    for (int signal : kLeaving) catch_signal(signal, SIG_DFL);
}

// The terminal may be slow, or gone: what cannot be written is dropped.
void draw_on_terminal(std::string_view text) {
    (void)!write_all(STDERR_FILENO, text);
}

int positive(const char* variable) {
    const char* text = std::getenv(variable);
    return text ? std::max(0, std::atoi(text)) : 0;
}

constexpr auto kFramePause = std::chrono::milliseconds(33);  // 30 redraws a second

}  // namespace

void abandon_view() {
    if (!drawing) return;
    draw_on_terminal(kErase);
    if (echo_off) tcsetattr(STDERR_FILENO, TCSANOW, &terminal_modes);
    drawing = 0;
    echo_off = 0;
}

View::View(const Tokenizer& tokenizer, const ViewFlags& flags, int max_steps, bool ignore_end)
    : tokenizer_(tokenizer),
      max_steps_(max_steps),
      delay_ms_(flags.delay_ms),
      ignore_end_(ignore_end),
      on_(flags.view == "on"    ? moves_cursor()
          : flags.view == "off" ? false
                                : is_screen(STDERR_FILENO) && isatty(STDOUT_FILENO)),
      color_(use_color(flags.color, STDERR_FILENO)),
      began_(Clock::now()) {}

Screen View::screen() const {
    winsize size{};
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0) size = {};
    Screen s;
    s.color = color_;
    // The variables are for a terminal that does not know its size, or none at all (--view on).
    const int width = size.ws_col ? size.ws_col : positive("COLUMNS");
    const int height = size.ws_row ? size.ws_row : positive("LINES");
    if (width) s.width = width;
    if (height) s.height = height;
    return s;
}

void View::write(const std::string& text) {
    begin_drawing();
    draw_on_terminal(text);
    n_drawn_++;
}

void View::encoding(int done, int total) {
    if (!on_) return;
    const auto now = Clock::now();
    began_ = now;
    if (done >= total || now - drawn_ < kFramePause) return;
    const Screen s = screen();
    const std::string text = fmt::format("encoding the prompt: {} of {} tokens", done, total);
    write(draw({}, std::string_view(text).substr(0, static_cast<size_t>(s.width - 1)), s));
    drawn_ = now;
}

void View::frame(const Frame& f) {
    if (!on_) return;
    const auto now = Clock::now();
    n_frame_++;
    if (f.canvas == 0 && f.step == 0) {
        if (!paused_ms_.empty()) began_ = left_;
        paused_ms_.push_back(0);
        committed_.clear();
        settled_.clear();
    }
    if (now - (f.last ? last_drawn_ : drawn_) >= kFramePause) {
        const Screen s = screen();
        ViewStatus status{f.canvas,       f.step, max_steps_, 0, static_cast<int>(f.tokens.size()),
                          f.mean_entropy, 0};
        status.n_accepted = static_cast<int>(
            std::count_if(f.accepted.begin(), f.accepted.end(), [](uint8_t a) { return a; }));
        const double seconds = std::chrono::duration<double>(now - began_).count();
        status.tokens_per_s =
            static_cast<double>(committed_.size() + static_cast<size_t>(status.n_accepted)) /
            std::max(seconds, 1e-6);
        std::vector<Piece> pieces = frame_pieces(tokenizer_, f, color_, ignore_end_);
        pieces.insert(pieces.begin(), {settled_, Ink::Settled});
        write(draw(pieces, status_text(status, s.width - 1), s));
        drawn_ = now;
        if (f.last) last_drawn_ = now;
    }
    if (f.last) {
        committed_.insert(committed_.end(), f.argmax.begin(), f.argmax.end());
        settled_ = tokenizer_.decode(committed_, false);
    }
    spent_ms_ += std::chrono::duration<double, std::milli>(Clock::now() - now).count();
    if (delay_ms_ > 0 && drawn_ == now) {
        poll(nullptr, 0, delay_ms_);  // a signal ends it
        const auto pause = Clock::now() - now;
        began_ += pause;  // not the model's time
        paused_ms_.back() += std::chrono::duration<double, std::milli>(pause).count();
    }
    left_ = Clock::now();
}

void ProgressLine::show(std::string_view text) {
    if (!on_) return;
    // Without line wrap: what the terminal is too narrow for would stay on the row above.
    tell(fmt::format("\033[?7l\r\033[K{}\033[?7h", text));
    shown_ = true;
}

void ProgressLine::clear() {
    if (shown_) tell("\r\033[K");
    shown_ = false;
}

void View::finish() {
    if (on_) end_drawing();
}

}  // namespace easel
