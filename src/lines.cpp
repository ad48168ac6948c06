// lines.cpp: see lines.h.
#include "lines.h"

#include <utility>

#include "text.h"

namespace easel {

void LineSplitter::feed(std::string_view bytes) {
    while (!bytes.empty()) {
        const size_t end = bytes.find('\n');
        const std::string_view part = bytes.substr(0, end);
        started_ = true;
        if (!too_long_ && text_.size() + part.size() > limit_) {
            too_long_ = true;
            std::string().swap(text_);
        }
        if (!too_long_) text_ += part;
        if (end == bytes.npos) return;
        end_line();
        bytes.remove_prefix(end + 1);
    }
}

void LineSplitter::finish() {
    if (started_) end_line();
}

void LineSplitter::end_line() {
    on_line_(std::exchange(first_, false) ? without_mark(text_) : text_, too_long_);
    if (text_.capacity() > size_t{1} << 20) std::string().swap(text_);
    text_.clear();
    too_long_ = started_ = false;
}

}  // namespace easel
