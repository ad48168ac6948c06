// view.h: the live canvas. Pure functions make the terminal output of one denoise step; View writes it, in
// place, for `easel generate` and `easel chat`.
#pragma once
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend.h"
#include "tokenizer.h"

namespace easel {

struct Screen {
    int width = 80, height = 24;  // columns, rows
    bool color = true;            // else no attributes at all, and a dot for what is not accepted
};

// How sure a token is, from what is committed to what is as good as noise.
enum class Ink : uint8_t { Settled, Accepted, Likely, Unsure, Noise, Status };

struct Piece {
    std::string text;  // bytes of one token: may be a part of a character, may hold any control byte
    Ink ink;
};

struct ViewStatus {
    int canvas = 0, step = 0, max_steps = 0;  // both from 0
    int n_accepted = 0, n_canvas = 0;
    float mean_entropy = 0;  // nats
    double tokens_per_s = 0;
};

// The canvas up to the first end-of-generation id that is accepted (all of it if `ignore_end`): accepted
// draws, and what would be committed elsewhere. Ids past the last one that has a text are left out.
std::vector<Piece> frame_pieces(const Tokenizer& tokenizer, const Frame& frame, bool color, bool ignore_end);

// Rows of at most `width` columns, broken where a terminal breaks them. Tabs become blanks, other control
// bytes and stray bytes U+FFFD. Each row sets its attributes and ends without any.
struct Row {
    std::string text;
    int width = 0;  // columns
};
std::vector<Row> wrap_pieces(std::span<const Piece> pieces, int width, bool color);

// What fits into `width` columns, the most telling first.
std::string status_text(const ViewStatus& status, int width);

// The terminal output of one step: the last rows that fit over a line of status. It begins and ends with the
// cursor in the first column of its first row, and clears what an earlier drawing left below.
std::string draw(std::span<const Piece> pieces, std::string_view status, const Screen& screen);
// Erases a drawing.
constexpr std::string_view kErase = "\r\033[J";

// Columns that a character takes: 0 for combining ones, 2 for wide ones.
int char_width(char32_t c);

// Whether the file descriptor is a terminal that can move its cursor.
bool is_screen(int fd);
// --color auto|always|never for what goes to `fd`: auto is a terminal, unless $NO_COLOR is set.
bool use_color(std::string_view flag, int fd);
// Character widths and line editing need a UTF-8 locale; the program has none until this is called.
void set_utf8_locale();

struct ViewFlags {
    std::string view = "auto", color = "auto";  // auto, on or off; auto, always or never
    int delay_ms = 0;                           // pause after each redraw
};

// Redraws the canvas of an answer, or of several one after the other, on stderr. Draws nothing if `view` is
// off, or auto and stdout or stderr is no terminal. A drawing stays between the cursor and the end of the
// screen, so nothing of it gets into the scrollback unless the screen shrinks meanwhile. While there is one,
// the terminal does not echo keys.
class View {
  public:
    View(const Tokenizer& tokenizer, const ViewFlags& flags, int max_steps, bool ignore_end);
    ~View() { finish(); }
    View(const View&) = delete;
    View& operator=(const View&) = delete;

    bool on() const { return on_; }
    void encoding(int done, int total);  // tokens of the prompt
    // Draws the step, unless it comes too soon after the last drawing (a canvas' last step: after the last
    // drawing of such a step).
    void frame(const Frame& frame);
    void finish();  // erases the drawing: the cursor is where it was before

    int n_drawn() const { return n_drawn_; }
    int n_frame() const { return n_frame_; }
    double spent_ms() const { return spent_ms_; }  // drawing
    // Pauses of delay_ms during answer i, from 0.
    double paused_ms(size_t i = 0) const { return i < paused_ms_.size() ? paused_ms_[i] : 0; }

  private:
    using Clock = std::chrono::steady_clock;
    void write(const std::string& text);
    Screen screen() const;

    const Tokenizer& tokenizer_;
    const int max_steps_, delay_ms_;
    const bool ignore_end_, on_, color_;
    std::vector<int32_t> committed_;  // ids of finished canvases
    std::string settled_;             // their text
    Clock::time_point began_;         // when the answer began
    Clock::time_point drawn_;         // when anything was last drawn
    Clock::time_point last_drawn_;    // when a canvas' last step was last drawn
    Clock::time_point left_;          // when frame() last returned
    int n_drawn_ = 0, n_frame_ = 0;
    double spent_ms_ = 0;
    std::vector<double> paused_ms_;  // by answer
};

// One line on stderr that is rewritten in place, on a terminal only.
class ProgressLine {
  public:
    ~ProgressLine() { clear(); }
    bool on() const { return on_; }
    void show(std::string_view text);
    void clear();

  private:
    bool on_ = is_screen(STDERR_FILENO), shown_ = false;
};

// For a signal handler that ends the program at once: erases the drawing and restores the terminal.
void abandon_view();

}  // namespace easel
