// lines.h: lines out of a byte stream, for `easel pipe` and `easel chat`.
#pragma once
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace easel {

constexpr size_t kLineBytes = 16'000'000;  // the longest line accepted

// Cuts a stream into lines. A line over `limit` bytes is reported as too long, without its text.
class LineSplitter {
  public:
    using OnLine = std::function<void(std::string_view text, bool too_long)>;
    LineSplitter(size_t limit, OnLine on_line) : limit_(limit), on_line_(std::move(on_line)) {}
    void feed(std::string_view bytes);
    void finish();                                      // the last line may lack its newline
    size_t n_kept() const { return text_.capacity(); }  // bytes of memory, for tests

  private:
    void end_line();

    size_t limit_;
    OnLine on_line_;
    std::string text_;
    bool too_long_ = false, started_ = false, first_ = true;
};

}  // namespace easel
