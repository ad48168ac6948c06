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
// The same of all white space that Python's str.strip() takes, as a model's template trims messages; the
// bytes of such a character that the text starts with, or 0; and whether the text is nothing else.
std::string_view strip(std::string_view text);
size_t space_bytes(std::string_view text);
bool is_blank(std::string_view text);

// Of ASCII, DEL, and U+0080 to U+009F, which many terminals obey too.
bool is_control(char32_t c);

// A part of one line, whatever is in it: control characters, newlines among them, and stray bytes become
// \x1b.
std::string safe_line(std::string_view text);
// Text from a file for a message: a part of one line, and not a page of it.
std::string shown(std::string_view text);
// A model's text for a terminal: control characters other than newline and tab, and stray bytes, become
// U+FFFD.
std::string terminal_text(std::string_view text);
// The text as valid UTF-8: stray bytes become U+FFFD.
std::string valid_utf8(std::string_view text);

std::string human_bytes(int64_t n);  // "16.81 GB"

// Letters to insert, delete or change between two names; upper and lower case are the same.
int edit_distance(std::string_view a, std::string_view b);
// The one of `names` that was probably meant by `name`: the nearest, at most two letters away, and not all of
// them. Empty: none is.
std::string nearest_name(std::string_view name, const std::vector<std::string>& names);

// "1 step", "2 steps"; "2 canvases" with a plural of its own.
std::string counted(size_t n, std::string_view noun, std::string_view plural = "");

// All of the text to a file that is open, and may be a slow reader's pipe; false, with errno, if it cannot be
// written.
bool write_all(int fd, std::string_view text);
// To stderr. What cannot be written there is lost: a reader who has gone is no reason to end an answer.
void tell(std::string_view text);

}  // namespace easel
