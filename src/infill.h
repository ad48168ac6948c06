// infill.h: a canvas with holes, parsed into text and holes, then placed as tokens. Called by the engine for
// requests with a canvas.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "backend.h"
#include "tokenizer.h"

namespace easel {

// "A|B": its parts, one or more, some of them perhaps empty.
std::vector<std::string> split_options(std::string_view text);

// Part of a canvas that is not given.
struct Hole {
    int n_token = 0;                   // free tokens; 0: as many as the options have, or all that are left
    std::vector<std::string> options;  // empty: any text
    bool open = false;                 // [[*]]: to the end of the answer
};

// text[0] holes[0] text[1] holes[1] .. text[n], some of the texts empty.
struct CanvasText {
    std::vector<std::string> text;
    std::vector<Hole> holes;
};

// Reads [[8]], a hole of 8 tokens, [[yes|no]], one of these texts, and, at the very end, [[*]]; \[[ stands
// for the characters [[. choices: options by hole, from 1, in place of what the text has there. Error on a
// hole that is not closed or not one of these, and on choices for a hole that is not there.
CanvasText parse_canvas(std::string_view text, const std::map<int, std::vector<std::string>>& choices);

// A canvas as tokens. Hole i is the length[i] tokens from begin[i] on.
struct CanvasTokens {
    Given given;
    std::vector<int> begin, length;
    int n_token = 0;    // where the text ends; an end token is given there if there is room for one
    bool open = false;  // the last hole goes on to the end token that the model chooses
};

// Equal options of a hole become one. Error if it does not fit n_canvas tokens, or if options of a hole have
// different numbers of tokens.
CanvasTokens place_canvas(const CanvasText& text, const Tokenizer& tokenizer, int n_canvas);

}  // namespace easel
