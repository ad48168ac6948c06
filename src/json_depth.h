// json_depth.h: a look at JSON of others before json::parse() makes a value of it: a bound on how deep it
// nests, and names that come again. Copies, comparisons and dump() of a value recurse: a million brackets
// would overflow the stack. Used by whatever reads JSON of others (convert, traces, chats, lines of a pipe).
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "check.h"

namespace easel {

// What check_json() sees of a text. Not a callback of json::parse(): with one, that looks after each object
// at all of its neighbours before it, so a line of a million objects would take hours.
class JsonCheck final : public nlohmann::json_sax<nlohmann::json> {
  public:
    JsonCheck(const std::string& where, size_t n_level) : where_(where), n_level_(n_level) {}

    std::optional<std::string> twice;

    bool start_object(size_t) override {
        enter();
        if (depth_ <= n_level_) names_.emplace_back();
        return true;
    }
    bool end_object() override {
        if (depth_ <= n_level_) names_.pop_back();
        depth_--;
        return true;
    }
    bool start_array(size_t) override {
        enter();
        return true;
    }
    bool end_array() override {
        depth_--;
        return true;
    }
    bool key(string_t& name) override {
        if (depth_ <= n_level_ && !twice && !names_.back().insert(name).second) twice = name;
        return true;
    }
    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(number_integer_t) override { return true; }
    bool number_unsigned(number_unsigned_t) override { return true; }
    bool number_float(number_float_t, const string_t&) override { return true; }
    bool string(string_t&) override { return true; }
    bool binary(binary_t&) override { return true; }
    bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override {
        return false;  // json::parse() will say it
    }

  private:
    void enter() {
        require(depth_ < 100, "{}: JSON nested more than 100 deep", where_);
        depth_++;
    }

    const std::string& where_;
    const size_t n_level_;
    size_t depth_ = 0;                          // objects and lists that are open
    std::vector<std::set<std::string>> names_;  // of the objects among them that are looked into
};

// Error with `where` past 100 levels; published files have 8. Returns the first name that stands twice in one
// of the objects at the outer n_level levels: a later one would silently win. Of a text that is not JSON it
// sees the part before the mistake.
inline std::optional<std::string> check_json(std::string_view text, const std::string& where,
                                             size_t n_level = 0) {
    JsonCheck check(where, n_level);
    nlohmann::json::sax_parse(text, &check);
    return check.twice;
}

}  // namespace easel
