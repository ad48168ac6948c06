// test_view.cpp: view.h: what a step looks like on a screen of any size, whatever bytes its tokens hold. A
// small terminal of the test's own executes what draw() returns.
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <random>

#include "catch.h"
#include "gguf.h"
#include "text.h"
#include "view.h"

using namespace easel;

namespace {

const std::string kMark = "\ufffd";

std::vector<Row> wrap(const std::string& text, int width) {
    set_utf8_locale();
    const Piece piece{text, Ink::Settled};
    return wrap_pieces({&piece, 1}, width, false);
}
std::vector<std::string> wrapped(const std::string& text, int width) {
    std::vector<std::string> rows;
    for (const Row& row : wrap(text, width)) rows.push_back(row.text);
    return rows;
}
using Rows = std::vector<std::string>;

// The characters of valid UTF-8.
std::vector<std::string> characters(std::string_view text) {
    std::vector<std::string> out;
    for (char byte : text) {
        if ((byte & 0xc0) == 0x80)
            out.back() += byte;
        else
            out.emplace_back(1, byte);
    }
    return out;
}
char32_t code_point(const std::string& character) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(character[i]); };
    char32_t c = character.size() == 1 ? byte(0) : byte(0) & (0xff >> (character.size() + 1));
    for (size_t i = 1; i < character.size(); i++) c = c << 6 | (byte(i) & 0x3f);
    return c;
}

// A screen that knows what draw() uses, and complains about all else.
struct Terminal {
    int width, height;
    std::vector<std::vector<std::string>> cells;  // a character a column, "" in the second one of a wide one
    std::vector<std::string> scrolled;            // rows that left at the top
    int x = 0, y = 0;
    bool wrap = true, cursor = true;
    int n_unknown = 0, n_attribute = 0;

    Terminal(int width, int height) : width(width), height(height), cells(height) {
        for (auto& row : cells) row.assign(width, " ");
    }

    std::string row(int i) const {
        std::string text;
        for (const std::string& c : cells[i]) text += c;
        return text.substr(0, text.find_last_not_of(' ') + 1);
    }
    void clear(int row, int from) { std::fill(cells[row].begin() + from, cells[row].end(), " "); }
    void control(const std::string& parameters, char what) {
        const int n = std::max(1, std::atoi(parameters.c_str()));
        if (what == 'm')
            n_attribute++;
        else if (what == 'K')
            clear(y, x);
        else if (what == 'A')
            y = std::max(0, y - n);
        else if (what == 'J')
            for (int i = y; i < height; i++) clear(i, i == y ? x : 0);
        else if (parameters == "?7" && (what == 'l' || what == 'h'))
            wrap = what == 'h';
        else if (parameters == "?25" && (what == 'l' || what == 'h'))
            cursor = what == 'h';
        else
            n_unknown++;
    }
    void feed(std::string_view text) {
        const auto all = characters(text);
        for (size_t i = 0; i < all.size(); i++) {
            const std::string& c = all[i];
            if (c == "\033") {
                std::string parameters;
                for (i += 2; !std::isalpha(static_cast<unsigned char>(all[i][0])); i++) parameters += all[i];
                control(parameters, all[i][0]);
            } else if (c == "\r") {
                x = 0;
            } else if (c == "\n") {
                if (++y < height) continue;
                y--;
                scrolled.push_back(row(0));
                cells.erase(cells.begin());
                cells.emplace_back(width, " ");
            } else if (static_cast<unsigned char>(c[0]) < 32) {
                n_unknown++;
            } else {
                const int n = char_width(code_point(c));
                if (n == 0) continue;
                n_unknown += x + n > width;  // draw() leaves nothing to the terminal's wrapping
                if (x + n > width) continue;
                cells[y][x] = c;
                for (int j = 1; j < n; j++) cells[y][x + j] = "";
                x = std::min(x + n, width - (wrap ? 0 : 1));
            }
        }
    }
};

}  // namespace

TEST_CASE("Rows are broken where a terminal breaks them", "[view]") {
    CHECK(wrapped("", 5) == Rows{""});
    CHECK(wrapped("abcde", 5) == Rows{"abcde"});
    CHECK(wrapped("abcdef", 5) == Rows{"abcde", "f"});
    CHECK(wrapped("ab\ncd", 5) == Rows{"ab", "cd"});
    CHECK(wrapped("abcde\nf", 5) == Rows{"abcde", "f"});
    CHECK(wrapped("ab\n", 5) == Rows{"ab", ""});
    CHECK(wrapped("ab\r\ncd", 5) == Rows{"ab", "cd"});
    CHECK(wrapped("a\tb", 20) == Rows{"a       b"});
    CHECK(wrapped("abcdefgh\tb", 20) == Rows{"abcdefgh        b"});
    CHECK(wrapped("abcdefgh\tbc", 10) == Rows{"abcdefgh b", "c"});  // the last column is the last stop
    CHECK(wrapped("abc", 1) == Rows{"a", "b", "c"});
}

TEST_CASE("Wide and combining characters take their columns", "[view]") {
    CHECK(wrapped("中文字", 4) == Rows{"中文", "字"});
    CHECK(wrapped("a中文", 4) == Rows{"a中", "文"});  // no half of a character in the last column
    CHECK(wrap("a中文", 4)[0].width == 3);
    CHECK(wrapped("😀😀😀", 4) == Rows{"😀😀", "😀"});
    CHECK(wrapped("e\u0301e\u0301e\u0301", 2) == Rows{"e\u0301e\u0301", "e\u0301"});
    CHECK(wrapped("ab\u0301", 2) == Rows{"ab\u0301"});  // belongs to the last column's character
    CHECK(wrapped("中", 1) == Rows{kMark});             // has no room at all
    CHECK(char_width(U'中') == 2);
    CHECK(char_width(0x301) == 0);
    CHECK(char_width(U'a') == 1);
    CHECK(char_width(0x1fae8) == 2);  // newer than many a C library
}

TEST_CASE("Control and stray bytes show as a mark and do nothing", "[view]") {
    CHECK(wrapped("a\033[2Jb", 20) == Rows{"a" + kMark + "[2Jb"});
    CHECK(wrapped(std::string("a\0b\x7f\x08", 5), 20) == Rows{"a" + kMark + "b" + kMark + kMark});
    CHECK(wrapped("a\rb", 20) == Rows{"a" + kMark + "b"});
    CHECK(wrapped("\u009b2J", 20) == Rows{kMark + "2J"});  // the one-character form of ESC [
    CHECK(wrapped("\xff\xc3(", 20) == Rows{kMark + kMark + "("});
    CHECK(wrapped("\xed\xa0\x80", 20) == Rows{kMark + kMark + kMark});  // a surrogate
    CHECK(terminal_text("a\033]0;x\007\tb\r\nc\xc3") == "a" + kMark + "]0;x" + kMark + "\tb\nc" + kMark);
    CHECK(safe_line("a\033]0;x\007\tb\r\nc\177\302\233\303") ==
          R"(a\x1b]0;x\x07\x09b\x0d\x0ac\x7f\xc2\x9b\xc3)");
    CHECK(safe_line("all 中 \ufffd well") == "all 中 \ufffd well");
    CHECK(valid_utf8("\303\244\303\033") == "\303\244" + kMark + "\033");
    CHECK(valid_utf8("all 中 well") == "all 中 well");
    const std::string edges = "\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff";
    CHECK(valid_utf8(edges) == edges);
    for (const char* beyond : {"\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf",
                               "\xf4\x90\x80\x80", "\xf5\x80\x80\x80"})
        CHECK(first_char(beyond).n == 1);
    CHECK(without_mark("\ufeff\ufeffa") == "\ufeffa");
    CHECK(without_mark("a\ufeff") == "a\ufeff");
    CHECK(without_mark("\xef\xbb") == "\xef\xbb");
}

TEST_CASE("A character of several tokens is one, as sure as the first", "[view]") {
    set_utf8_locale();
    const std::vector<Piece> pieces{
        {"\xe4", Ink::Accepted}, {"\xb8", Ink::Noise}, {"\xad", Ink::Noise}, {"x", Ink::Noise}};
    const auto rows = wrap_pieces(pieces, 10, true);
    CHECK(rows[0].text == "\033[1m中\033[0m\033[2mx\033[0m");
    CHECK(rows[0].width == 3);
}

TEST_CASE("Attributes end with their row", "[view]") {
    const std::vector<Piece> pieces{
        {"ab", Ink::Settled}, {"cdef", Ink::Likely}, {"\ngh", Ink::Likely}, {"i", Ink::Unsure}};
    const auto rows = wrap_pieces(pieces, 4, true);
    REQUIRE(rows.size() == 3);
    CHECK(rows[0].text == "ab\033[36mcd\033[0m");
    CHECK(rows[1].text == "\033[36mef\033[0m");
    CHECK(rows[2].text == "\033[36mgh\033[0m\033[33mi\033[0m");
    for (const Row& row : wrap_pieces(pieces, 4, false)) CHECK(row.text.find('\033') == std::string::npos);
}

TEST_CASE("The status tells what fits", "[view]") {
    const ViewStatus s{1, 6, 48, 12, 256, 0.5715f, 213.4};
    CHECK(status_text(s, 79) == "canvas 2 | step 7/48 | accepted 12/256 | entropy 0.572 | 213 tok/s");
    CHECK(status_text(s, 39) == "canvas 2 | step 7/48 | accepted 12/256");
    CHECK(status_text(s, 20) == "canvas 2 | step 7/48");
    CHECK(status_text(s, 19) == "step 7/48");
    CHECK(status_text(s, 4) == "step");
    CHECK(status_text(s, 0).empty());
}

TEST_CASE("A drawing stays below its first row and goes without a trace", "[view]") {
    set_utf8_locale();
    const std::string_view parts[] = {"a",       "word ",   "\n",   "\t",   "中",   "😀",
                                      "e\u0301", "\033[5A", "\xe4", "\xff", "\r\n", "\u0301"};
    std::mt19937 random(1);
    for (int round = 0; round < 300; round++) {
        const int width = 1 + static_cast<int>(random() % (round % 2 ? 8 : 60)),
                  height = 1 + static_cast<int>(random() % 12);
        Terminal t(width, height);
        t.feed("$\r\n");
        for (int step = 0; step < 4; step++) {
            std::vector<Piece> pieces;
            for (size_t n = random() % 40; n > 0; n--)
                pieces.push_back(
                    {std::string(parts[random() % std::size(parts)]), static_cast<Ink>(random() % 5)});
            const Screen screen{width, height, random() % 2 == 0};
            const std::string status = status_text({0, step, 48, 1, 32, 1, 1}, width - 1);
            const int top = t.y, n_scrolled = static_cast<int>(t.scrolled.size());
            t.n_attribute = 0;
            t.feed(draw(pieces, status, screen));
            const int moved =
                static_cast<int>(t.scrolled.size()) - n_scrolled;  // rows that scrolled away for it
            CHECK(t.n_unknown == 0);
            CHECK((t.x == 0 && t.y == top - moved));
            CHECK((t.wrap && t.cursor));
            CHECK((screen.color || t.n_attribute == 0));
            // Rows of the text, the last ones if there are too many, then the status.
            auto rows = wrap_pieces(pieces, width, false);
            if (rows.back().width == 0) rows.pop_back();
            const size_t n = std::min(rows.size(), static_cast<size_t>(height - 1));
            CHECK(t.y + static_cast<int>(n) < height);
            CHECK(t.row(t.y + static_cast<int>(n)) == status.substr(0, status.find_last_not_of(' ') + 1));
            for (int i = t.y + static_cast<int>(n) + 1; i < height; i++) CHECK(t.row(i).empty());
        }
        t.feed(kErase);
        int n_left = 0;  // of all that was there, the prompt alone
        for (int i = 0; i < height; i++) n_left += t.row(i) == "$" ? 1 : t.row(i).empty() ? 0 : 100;
        for (const std::string& row : t.scrolled) n_left += row == "$" ? 1 : 100;
        CHECK(n_left == 1);
    }
}

TEST_CASE("A canvas taller than the screen shows its end", "[view]") {
    Terminal t(10, 4);
    const Piece piece{"1\n2\n3\n4\n5\n", Ink::Accepted};
    t.feed(draw({&piece, 1}, "status", {10, 4, true}));
    CHECK(Rows{t.row(0), t.row(1), t.row(2), t.row(3)} == Rows{"3", "4", "5", "status"});
    CHECK(t.scrolled.empty());
}

// ---- From frames

namespace {

struct Canvas {
    Gguf file = Gguf::open("tests/fixtures/tiny.gguf");
    Tokenizer tokenizer{file};
    std::vector<int32_t> tokens, argmax;
    std::vector<float> entropy;
    std::vector<uint8_t> accepted;

    int32_t id(std::string_view text) const { return tokenizer.encode(text, Specials::All).at(0); }
    void put(int32_t token, int32_t best, float nats, bool is_accepted) {
        tokens.push_back(token);
        argmax.push_back(best);
        entropy.push_back(nats);
        accepted.push_back(is_accepted);
    }
    Frame frame(int step, bool last) const {
        return {0, step, tokens, argmax, entropy, entropy, accepted, 1, 1, 0, last};
    }
    std::string text(bool last, bool color, bool ignore_end = false) const {
        std::string out;
        for (const Piece& p : frame_pieces(tokenizer, frame(0, last), color, ignore_end))
            out += std::to_string(static_cast<int>(p.ink)) + p.text;
        return out;
    }
};

// What f writes to stderr, with a terminal of 30 columns by name.
std::string stderr_of(auto&& f) {
    char name[] = "/tmp/easel-view-XXXXXX";
    const int file = mkstemp(name), old = dup(STDERR_FILENO);
    REQUIRE((file >= 0 && old >= 0));
    dup2(file, STDERR_FILENO);
    setenv("TERM", "xterm", 1);
    setenv("COLUMNS", "30", 1);
    f();
    dup2(old, STDERR_FILENO);
    close(old);
    unsetenv("COLUMNS");
    std::string text(1 << 20, '\0');
    text.resize(static_cast<size_t>(pread(file, text.data(), text.size(), 0)));
    close(file);
    unlink(name);
    return text;
}

}  // namespace

TEST_CASE("A frame shows accepted draws, and the best guess elsewhere", "[view]") {
    Canvas c;
    const int32_t a = c.id("a"), b = c.id("b"), end = c.tokenizer.end_of_generation.at(0);
    c.put(a, b, 0, true);
    c.put(a, b, 0.2f, false);
    c.put(a, b, 1, false);
    c.put(a, end, 3, false);
    c.put(a, b, 3, false);
    c.put(a, end, 3, false);
    c.put(a, end, 3, false);
    CHECK(c.text(false, true) == "1a2b3b4\u00b74b");
    CHECK(c.text(false, false) == "1a2\u00b73\u00b74\u00b74\u00b7");
    CHECK(c.text(true, true) == "1b2b3b");  // what is committed: up to the first end
    CHECK(c.text(true, false) == "1b2b3b");
    CHECK(c.text(true, true, true) == "1b2b3b4b");  // ends are control tokens then
    c.tokens[2] = end;
    c.accepted[2] = true;
    CHECK(c.text(false, true) == "1a2b");
    c.tokens[0] = end;
    CHECK(c.text(false, true).empty());
}

TEST_CASE("Redraws are few, and the last step of a canvas is one of them", "[view]") {
    Canvas c;
    for (int i = 0; i < 16; i++) c.put(c.id("a"), c.id("b"), 0.1f, i % 2);
    const std::string text = stderr_of([&] {
        View view(c.tokenizer, {"on", "always", 0}, 200, false);
        const auto began = std::chrono::steady_clock::now();
        for (int step = 0; step < 199; step++) view.frame(c.frame(step, false));
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
        CHECK(view.n_drawn() <= 1 + static_cast<int>(took.count() * 30.4));
        const int n = view.n_drawn();
        view.frame(c.frame(199, true));
        CHECK(view.n_drawn() == n + 1);
        CHECK(view.n_frame() == 200);
        View off(c.tokenizer, {"auto", "auto", 0}, 200, false);  // stderr is a file
        off.frame(c.frame(0, true));
        CHECK(off.n_drawn() == 0);
        setenv("TERM", "dumb", 1);
        CHECK_FALSE(View(c.tokenizer, {"on", "auto", 0}, 200, false).on());
    });
    CHECK(text.find("step 200/200") != text.npos);
    CHECK(text.ends_with(kErase));
}

TEST_CASE("Of several answers, each is shown alone", "[view]") {
    Canvas c;
    for (const char* text : {"a", "b"}) c.put(c.id(text), c.id(text), 0.1f, true);
    const std::string text = stderr_of([&] {
        View view(c.tokenizer, {"on", "never", 40}, 2, false);
        for (int answer = 0; answer < 3; answer++)
            for (int step = 0; step < 2; step++) view.frame(c.frame(step, step == 1));
        CHECK(view.n_drawn() == 6);
        for (size_t answer = 0; answer < 3; answer++) CHECK(view.paused_ms(answer) >= 2 * 39);
        CHECK(view.paused_ms(3) == 0);
    });
    CHECK(text.find("ab") != text.npos);
    CHECK(text.find("abab") == text.npos);
}

TEST_CASE("Colour is for terminals unless it is asked for", "[view]") {
    const int file = open("/dev/null", O_WRONLY);
    REQUIRE(file >= 0);
    CHECK(use_color("always", file));
    CHECK_FALSE(use_color("never", file));
    CHECK_FALSE(use_color("auto", file));
    CHECK_FALSE(is_screen(file));
    close(file);
}
