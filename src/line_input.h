// line_input.h: lines from a terminal, edited and with history, or from a pipe; for `easel chat`.
#pragma once
#include <deque>
#include <memory>
#include <string>

#include "lines.h"

namespace easel {

// Lines that were typed, kept in a plain text file, one a line.
class HistoryFile {
  public:
    // No path: nothing is kept.
    explicit HistoryFile(std::string path) : path_(std::move(path)) {}
    // The last kKept lines. A file that has grown to twice that is cut.
    std::deque<std::string> load() const;
    // Appends a line. Returns the problem the first time that this fails, else an empty string.
    std::string add(const std::string& line);

    static constexpr size_t kKept = 1000;

  private:
    const std::string path_;
    bool broken_ = false;
};
// $XDG_STATE_HOME/easel/history, else ~/.local/state/easel/history, else empty.
std::string history_path();

class LineInput {
  public:
    enum class Got { Line, TooLong, Interrupted, End };

    // With libedit, and if stdin and where the prompt goes (stderr, else stdout) are terminals: lines can be
    // edited, and are kept in `history`.
    explicit LineInput(HistoryFile history);
    ~LineInput();
    LineInput(const LineInput&) = delete;
    LineInput& operator=(const LineInput&) = delete;

    bool from_terminal() const { return terminal_; }
    // The next line without its end. The prompt is shown on a terminal only. Interrupted: interrupt() was
    // called while it waited. Error if stdin cannot be read.
    Got read(const std::string& prompt, std::string& line);

    // For the handler of Ctrl-C.
    static void interrupt();

  private:
    struct Editor;
    Got read_plain(std::string& line);

    const bool terminal_;
    std::unique_ptr<Editor> editor_;
    std::FILE* prompt_;
    LineSplitter splitter_;
    std::deque<std::pair<std::string, bool>> lines_;  // lines not yet read, and whether each was too long
    bool ended_ = false;
};

}  // namespace easel
