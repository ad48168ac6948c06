// request_checks.cpp: see request_checks.h.
#include "request_checks.h"

#include "check.h"
#include "text.h"

namespace easel {

void check_tokens(const Config& c, std::span<const int32_t> tokens) {
    for (int32_t id : tokens)
        require(id >= 0 && id < c.n_vocab, "token id {} is out of range, expected 0 to {}", id,
                c.n_vocab - 1);
}

void check_append(int n_cached, size_t n_token, int n_context) {
    require(n_token <= size_t(n_context - n_cached),
            "{} tokens after {} cached ones exceed the context of {}", n_token, n_cached, n_context);
}

void check_room(const Config& c, int n_cached, int max_canvases, int n_context) {
    const int64_t needed = n_cached + int64_t{max_canvases} * c.n_canvas;
    require(needed <= n_context, "{} of prompt and {} of {} need {} tokens, the context has {}",
            counted(n_cached, "token"), counted(max_canvases, "canvas", "canvases"), c.n_canvas, needed,
            n_context);
}

void check_truncate(int n_cached, int n_token) {
    require(n_token >= 0 && n_token <= n_cached, "cannot truncate the cache to {} tokens, it holds {}",
            n_token, n_cached);
}

void check_given(const Config& c, const GenerateParams& params) {
    const Given& g = params.given;
    if (g.tokens.empty() && g.choices.empty()) return;
    require(params.max_canvases == 1, "{} canvases asked for where tokens are given, expected 1",
            params.max_canvases);
    require(g.tokens.size() == size_t(c.n_canvas), "tokens given for {} positions, the canvas has {}",
            g.tokens.size(), c.n_canvas);
    for (int32_t id : g.tokens)
        require(id >= -1 && id < c.n_vocab, "given token {} is out of range, expected -1 to {}", id,
                c.n_vocab - 1);
    require(g.choices.size() <= kMaxChoices, "{} choices in a canvas, expected at most {}", g.choices.size(),
            kMaxChoices);
    std::vector<bool> taken(c.n_canvas);
    size_t n_token = 0;
    for (const Choice& choice : g.choices) {
        require(!choice.options.empty() && choice.options.size() <= kMaxOptions,
                "a choice among {} texts, expected 1 to {}", choice.options.size(), kMaxOptions);
        const int begin = choice.begin, length = choice.length();
        require(begin >= 0 && length >= 1 && begin + length <= c.n_canvas,
                "a choice of {} tokens at position {} does not fit a canvas of {}", length, begin,
                c.n_canvas);
        for (int i = begin; i < begin + length; i++) {
            require(g.tokens[i] < 0 && !taken[i], "position {} of the canvas has a choice and something else",
                    i);
            taken[i] = true;
        }
        for (const auto& option : choice.options) {
            require(option.size() == size_t(length), "a choice among texts of {} and {} tokens", length,
                    option.size());
            check_tokens(c, option);
            n_token += option.size();
        }
    }
    require(n_token <= kMaxOptionTokens, "choices of {} tokens in all, expected at most {}", n_token,
            kMaxOptionTokens);
}

void check_generate(const Config& c, const GenerateParams& params, int n_cached, int n_context) {
    check_sampler(params.sampler);
    check_given(c, params);
    require(params.max_canvases >= 1, "{} canvases asked for, expected 1 or more", params.max_canvases);
    check_room(c, n_cached, params.max_canvases, n_context);
}

void check_logits_request(const Config& c, const LogitsRequest& request, size_t n_out) {
    const size_t n = size_t(c.n_canvas) * c.n_vocab;
    require(request.canvas.size() == size_t(c.n_canvas), "the canvas has {} tokens, expected {}",
            request.canvas.size(), c.n_canvas);
    require(n_out == n, "room for {} logits, expected {}", n_out, n);
    require(request.prev_logits.empty() || request.prev_logits.size() == n, "{} previous logits, expected {}",
            request.prev_logits.size(), n);
    check_tokens(c, request.canvas);
}

}  // namespace easel
