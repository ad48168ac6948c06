// text.h: UTF-8, and text from files and models for a terminal: no byte of it may move the cursor or be a
// command. Used by whatever prints such text or puts it into a message.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace easel {

constexpr std::string_view kReplacement = "\ufffd";

// The character that s, which is not empty, starts with, and its bytes. A stray byte is U+FFFD.
struct Char {
    char32_t c;
    size_t n;
};
Char first_char(std::string_view s);

bool is_utf8(std::string_view text);
// Error with the first byte that is not UTF-8, if there is one. Its text begins with `what`, "the prompt".
void require_utf8(std::string_view text, std::string_view what);

// The text without the byte-order mark that some programs begin a file with.
std::string_view without_mark(std::string_view text);

// The text without spaces, tabs and ends of lines around it.
std::string_view trim(std::string_view text);
// The same for all white space that Python's str.strip() removes: chat templates trim messages with it.
std::string_view strip(std::string_view text);
// Bytes of the character of such white space that the text starts with, or 0.
size_t space_bytes(std::string_view text);
// Whether the text is nothing but such white space.
bool is_blank(std::string_view text);

// ASCII control characters, DEL, and U+0080 to U+009F, which many terminals obey too.
bool is_control(char32_t c);

// The text as part of one line: control characters, newlines among them, and stray bytes become \xNN.
std::string safe_line(std::string_view text);
// safe_line() of the first 64 bytes: text from a file, for a message.
std::string shown(std::string_view text);
// A model's text for a terminal: control characters other than newline and tab, and stray bytes, become
// U+FFFD; the carriage return before a newline is dropped.
std::string terminal_text(std::string_view text);
// The text as valid UTF-8: stray bytes become U+FFFD.
std::string valid_utf8(std::string_view text);

std::string human_bytes(int64_t n);  // "16.81 GB"

// Levenshtein distance in bytes; upper and lower case are the same.
int edit_distance(std::string_view a, std::string_view b);
// The one of `names` that was probably meant by `name`: the nearest, if it is at most two edits away, and
// fewer than `name` has letters. Else empty.
std::string nearest_name(std::string_view name, const std::vector<std::string>& names);

// "1 step", "2 steps"; "2 canvases" with a plural of its own.
std::string counted(size_t n, std::string_view noun, std::string_view plural = "");

// Writes all of the text, waiting where fd is non-blocking and its reader slow. False: it failed, see errno.
bool write_all(int fd, std::string_view text);
// Writes to stderr. Failures are ignored: a reader who has gone is no reason to end an answer.
void tell(std::string_view text);

}  // namespace easel
