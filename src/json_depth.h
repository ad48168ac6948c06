// json_depth.h: a bound on how deep the JSON of a file may nest. Copies, comparisons and dump() of a value
// recurse: a million brackets would overflow the stack. Used by whatever reads JSON of others (convert,
// traces, chats, lines of a pipe).
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "check.h"

namespace easel {

// A callback for json::parse() that throws Error with `where`, which must outlive it, past 100 levels.
// Published files have 8.
inline auto refuse_deep(const std::string& where) {
    return [&where](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
        require(depth <= 100, "{}: JSON nested more than 100 deep", where);
        return true;
    };
}

}  // namespace easel
