// infill.cpp: a canvas with holes, see infill.h.
#include "infill.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "check.h"

namespace easel {

std::vector<std::string> split_options(std::string_view text) {
    std::vector<std::string> out;
    for (size_t at = 0, end = 0; end < text.size(); at = end + 1) {
        end = std::min(text.find('|', at), text.size());
        out.emplace_back(text.substr(at, end - at));
    }
    return out;
}

namespace {

constexpr std::string_view kOpen = "[[", kClose = "]]";

Hole parse_hole(std::string_view inside, bool is_last) {
    Hole hole;
    if (inside == "*") {
        require(is_last, "the canvas continues after the hole [[*]], expected it at the end");
        hole.open = true;
    } else if (inside.find('|') != inside.npos) {
        hole.options = split_options(inside);
    } else {
        const char *first = inside.data(), *last = first + inside.size();
        const auto [end, error] = std::from_chars(first, last, hole.n_token);
        require(
            error == std::errc() && end == last && hole.n_token >= 1,
            "the canvas has the hole [[{}]], expected [[N]] with a number of tokens from 1, [[TEXT|TEXT]] or "
            "[[*]]",
            inside.substr(0, 40));
    }
    return hole;
}

}  // namespace

CanvasText parse_canvas(std::string_view text, const std::map<int, std::vector<std::string>>& choices) {
    CanvasText out{{""}, {}};
    for (size_t at = 0; at < text.size();) {
        if (text[at] == '\\' && text.substr(at + 1).starts_with(kOpen)) {
            out.text.back() += kOpen;
            at += 1 + kOpen.size();
        } else if (text.substr(at).starts_with(kOpen)) {
            const size_t end = text.find(kClose, at);
            require(
                end != text.npos,
                "the canvas has \"[[\" at offset {} without \"]]\" after it; \\[[ stands for the characters "
                "themselves",
                at);
            const std::string_view inside = text.substr(at + kOpen.size(), end - at - kOpen.size());
            at = end + kClose.size();
            out.holes.push_back(parse_hole(inside, at == text.size()));
            out.text.emplace_back();
        } else {
            out.text.back() += text[at++];
        }
    }
    for (const auto& [number, options] : choices) {
        require(number >= 1 && number <= static_cast<int>(out.holes.size()),
                "there are choices for hole {}, the canvas has {}", number,
                out.holes.empty() ? "none" : fmt::format("holes 1 to {}", out.holes.size()));
        require(!options.empty(), "there are no choices for hole {}, expected one or more", number);
        out.holes[number - 1] = {0, options, false};
    }
    return out;
}

CanvasTokens place_canvas(const CanvasText& text, const Tokenizer& tokenizer, int n_canvas) {
    CanvasTokens out;
    std::vector<int32_t>& tokens = out.given.tokens;
    size_t n_text = 0, n_free = 0;
    const auto add_text = [&](const std::string& s) {
        const std::vector<int32_t> ids = tokenizer.encode(s, Specials::None);
        tokens.insert(tokens.end(), ids.begin(), ids.end());
        n_text += ids.size();
    };
    for (size_t i = 0; i < text.holes.size(); i++) {
        add_text(text.text[i]);
        const Hole& hole = text.holes[i];
        Choice choice{static_cast<int>(tokens.size()), {}};
        for (const std::string& option : hole.options) {
            choice.options.push_back(tokenizer.encode(option, Specials::None));
            require(!choice.options.back().empty(), "hole {} has an empty choice, expected some text", i + 1);
        }
        const auto differs = [&](const std::vector<int32_t>& o) {
            return o.size() != choice.options[0].size();
        };
        const auto odd = std::find_if(choice.options.begin(), choice.options.end(), differs);
        if (odd != choice.options.end())
            fail(
                "the choices of hole {} differ in length: \"{}\" has {} tokens, \"{}\" {}; expected the same "
                "number",
                i + 1, hole.options[0], choice.options[0].size(), hole.options[odd - choice.options.begin()],
                odd->size());
        // A text that is there twice is one option: two would have half of its probability each.
        std::set<std::vector<int32_t>> seen;
        std::erase_if(choice.options, [&](const auto& option) { return !seen.insert(option).second; });
        const int length = choice.options.empty() ? hole.n_token : choice.length();
        out.begin.push_back(choice.begin);
        out.length.push_back(length);
        out.open = out.open || hole.open;
        n_free += length;
        // A hole that is far too long is refused below; it is not to take memory first.
        tokens.insert(tokens.end(), std::clamp(n_canvas + 1 - static_cast<int>(tokens.size()), 0, length),
                      -1);
        if (!choice.options.empty()) out.given.choices.push_back(std::move(choice));
    }
    add_text(text.text.back());
    require(!tokens.empty() || out.open, "the canvas is empty, expected text with holes such as [[8]]");
    require(tokens.size() + out.open <= size_t(n_canvas),
            "the canvas text has {} tokens, {} of them in holes{}; a canvas of this model has {}",
            n_text + n_free, n_free, out.open ? ", and [[*]] takes one or more" : "", n_canvas);
    out.n_token = static_cast<int>(tokens.size());
    if (!out.open && out.n_token < n_canvas)
        tokens.push_back(tokenizer.find("<turn|>").value_or(tokenizer.eos));
    tokens.resize(n_canvas, -1);
    if (out.open) out.length.back() = n_canvas - out.n_token;
    return out;
}

}  // namespace easel
