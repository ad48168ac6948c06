// text.cpp: see text.h.
#include "text.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <numeric>
#include <utility>
#include <vector>

#include "check.h"

namespace easel {

Char first_char(std::string_view s) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
    const unsigned char b = byte(0);
    if (b < 0x80) return {b, 1};
    const size_t n = b >= 0xf0 ? 4 : b >= 0xe0 ? 3 : 2;
    if (b < 0xc2 || b > 0xf4 || s.size() < n) return {0xfffd, 1};
    char32_t c = b & (0xff >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((byte(i) & 0xc0) != 0x80) return {0xfffd, 1};
        c = c << 6 | (byte(i) & 0x3f);
    }
    constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return {0xfffd, 1};
    return {c, n};
}

// The offset of the first byte that is not UTF-8, or the text's size.
static size_t stray_byte(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
        const auto [c, n] = first_char(text.substr(i));
        if (c == 0xfffd && n == 1) return i;  // U+FFFD itself has three bytes
        i += n;
    }
    return text.size();
}

bool is_utf8(std::string_view text) {
    return stray_byte(text) == text.size();
}

void require_utf8(std::string_view text, std::string_view what) {
    if (const size_t at = stray_byte(text); at < text.size())
        fail("{} is not valid UTF-8: byte 0x{:02x} at offset {}", what, static_cast<unsigned char>(text[at]),
             at);
}

std::string_view without_mark(std::string_view text) {
    constexpr std::string_view mark = "\ufeff";
    return text.substr(text.starts_with(mark) ? mark.size() : 0);
}

std::string_view trim(std::string_view text) {
    constexpr std::string_view blanks = " \t\r\n";
    text.remove_prefix(std::min(text.find_first_not_of(blanks), text.size()));
    return text.substr(0, text.find_last_not_of(blanks) + 1);
}

size_t space_bytes(std::string_view s) {
    if (s.empty()) return 0;
    const unsigned char c = s[0];
    if ((c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20)) return 1;
    for (std::string_view space :
         {"\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
          "\u2007", "\u2008", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"})
        if (s.starts_with(space)) return space.size();
    return 0;
}

std::string_view strip(std::string_view s) {
    while (const size_t n = space_bytes(s)) s.remove_prefix(n);
    for (;;) {
        // A white space character at the end has 1, 2 or 3 bytes.
        size_t n = std::min<size_t>(3, s.size());
        while (n > 0 && space_bytes(s.substr(s.size() - n)) != n) n--;
        if (n == 0) return s;
        s.remove_suffix(n);
    }
}

bool is_blank(std::string_view text) {
    return strip(text).empty();
}

bool is_control(char32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0);
}

std::string safe_line(std::string_view text) {
    std::string out;
    for (size_t n; !text.empty(); text.remove_prefix(n)) {
        const Char next = first_char(text);
        n = next.n;
        const bool stray = next.c == 0xfffd && n == 1;
        if (!stray && !is_control(next.c))
            out += text.substr(0, n);
        else
            for (const char byte : text.substr(0, n))
                out += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
    }
    return out;
}

std::string shown(std::string_view s) {
    return safe_line(s.substr(0, 64)) + (s.size() > 64 ? "..." : "");
}

std::string terminal_text(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        const auto [c, n] = first_char(text);
        const bool newline = c == '\r' && text.size() > 1 && text[1] == '\n';
        if (c == 0xfffd || (is_control(c) && c != '\n' && c != '\t'))
            out += newline ? "" : kReplacement;
        else
            out += text.substr(0, n);
        text.remove_prefix(n);
    }
    return out;
}

std::string valid_utf8(std::string_view text) {
    std::string out;
    for (size_t n; !text.empty(); text.remove_prefix(n)) {
        const Char next = first_char(text);
        n = next.n;
        out += next.c == 0xfffd ? kReplacement : text.substr(0, n);
    }
    return out;
}

std::string human_bytes(int64_t n) {
    static const char* const units[] = {"B", "kB", "MB", "GB", "TB"};
    double v = static_cast<double>(n);
    int u = 0;
    while (v >= (u ? 999.995 : 1000) && u < 4) v /= 1000, u++;  // 999.995 would be shown as 1000.00
    return u ? fmt::format("{:.2f} {}", v, units[u]) : fmt::format("{} B", n);
}

int edit_distance(std::string_view a, std::string_view b) {
    std::vector<int> row(b.size() + 1);  // of the distances between a's first i letters and b's first j
    std::iota(row.begin(), row.end(), 0);
    for (size_t i = 0; i < a.size(); i++) {
        int diagonal = std::exchange(row[0], static_cast<int>(i) + 1);
        for (size_t j = 0; j < b.size(); j++) {
            const bool same = std::tolower(static_cast<unsigned char>(a[i])) ==
                              std::tolower(static_cast<unsigned char>(b[j]));
            const int changed = diagonal + !same;
            diagonal = row[j + 1];
            row[j + 1] = std::min({changed, diagonal + 1, row[j] + 1});
        }
    }
    return row.back();
}

std::string nearest_name(std::string_view name, const std::vector<std::string>& names) {
    constexpr size_t kLongest = 40;  // of what anybody means
    std::string nearest;
    int best = std::min(3, static_cast<int>(name.size()));
    if (name.size() > kLongest) return nearest;
    for (const std::string& candidate : names)
        if (const int n = edit_distance(name, candidate); n < best) best = n, nearest = candidate;
    return nearest;
}

std::string counted(size_t n, std::string_view noun, std::string_view plural) {
    if (n == 1) return fmt::format("1 {}", noun);
    return plural.empty() ? fmt::format("{} {}s", n, noun) : fmt::format("{} {}", n, plural);
}

bool write_all(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t n = ::write(fd, text.data(), text.size());
        if (n > 0) {
            text.remove_prefix(static_cast<size_t>(n));
        } else if (n < 0 && errno == EAGAIN) {
            pollfd writable{fd, POLLOUT, 0};
            poll(&writable, 1, -1);
        } else if (n == 0 || errno != EINTR) {
            return false;
        }
    }
    return true;
}

void tell(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);  // fmt::print() would throw
}

}  // namespace easel
