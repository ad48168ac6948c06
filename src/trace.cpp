// trace.cpp: the lines of a trace, written while an answer is made and read again. Called by commands.cpp.
#include "trace.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

#include "check.h"
#include "commands.h"
#include "json_depth.h"
#include "sampler_settings.h"
#include "text.h"
#include "whole_file.h"

namespace easel {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

namespace {

std::string dump(const OrderedJson& j) {
    // A text can be cut inside a character: such bytes are replaced, not refused.
    return j.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

OrderedJson sampler_json(const SamplerConfig& s) {
    // Floats in their own shortest form: 0.4, not 0.4000000059604645.
    const auto number = [](float x) { return Json::parse(fmt::format("{}", x)); };
    OrderedJson j;
    for (const SamplerSetting& setting : kSamplerSettings) {
        const auto add = [&]<class T>(T SamplerConfig::*member) {
            if constexpr (std::is_same_v<T, float>)
                j[setting.name] = number(s.*member);
            else
                j[setting.name] = s.*member;
        };
        std::visit(add, setting.member);
    }
    if (s.self_cond_drop < 0) j.erase("self_cond_drop");  // the device's default
    return j;
}

// Rounded to 0.0001 nats; JSON has no NaN.
std::string entropy_text(float nats) {
    if (!std::isfinite(nats)) return "null";
    return fmt::format("{}", std::round(double{nats} * 1e4) / 1e4);
}

std::string piece_json(const Tokenizer& tokenizer, int32_t id) {
    const std::string bytes = tokenizer.decode({&id, 1}, false);
    if (bytes.empty()) return dump({{"control", std::string(tokenizer.text(id))}});
    if (is_utf8(bytes)) return dump(bytes);
    return fmt::format("{{\"bytes\":[{}]}}",
                       fmt::join(std::vector<uint8_t>(bytes.begin(), bytes.end()), ","));
}

}  // namespace

// ---- Writing

TraceWriter::TraceWriter(const std::string& path, const Engine& engine, const Request& request)
    : path_(path), tokenizer_(engine.tokenizer()), file_(nullptr, std::fclose) {
    const std::vector<int32_t> prompt = engine.prompt_ids(request);
    require_other(path, engine.model().file->files(), "the model itself");
    file_.reset(open_alone(path, path));
    const Config& c = engine.model().config;
    OrderedJson j;
    j["easel_trace"] = kTraceVersion;
    const std::string& name = engine.model().file->name();
    j["model"] = name.substr(name.rfind('/') + 1);
    j["device"] = engine.device();
    j["canvas"] = c.n_canvas;
    j["vocabulary"] = c.n_vocab;
    j["seed"] = request.seed;
    j["sampler"] = sampler_json(request.sampler.value_or(c.sampler));
    j["end_ids"] = request.ignore_eos ? std::vector<int32_t>() : tokenizer_.end_of_generation;
    j["prompt"] = request.raw                ? *request.raw
                  : request.messages.empty() ? tokenizer_.decode(prompt, true)
                                             : request.messages.back().content;
    j["prompt_ids"] = prompt;
    if (request.canvas) j["canvas_text"] = *request.canvas;
    for (const auto& [hole, texts] : request.choices) j["choices"][std::to_string(hole)] = texts;
    if (!request.stop.empty()) j["stop"] = request.stop;
    add_pieces(prompt);
    line_ = dump(j);
    line_.pop_back();
    line_ += fmt::format(",\"pieces\":{{{}}}}}", pieces_);
    write_line();
}

// Adds the pieces of `ids` that the file does not have yet to the line's.
void TraceWriter::add_pieces(std::span<const int32_t> ids) {
    for (int32_t id : ids)
        if (written_.insert(id).second)
            pieces_ += fmt::format("{}\"{}\":{}", pieces_.empty() ? "" : ",", id, piece_json(tokenizer_, id));
}

void TraceWriter::write_line() {
    line_ += '\n';
    pieces_.clear();
    if (error_) return;
    errno = 0;
    const bool ok = std::fwrite(line_.data(), 1, line_.size(), file_.get()) == line_.size() &&
                    std::fflush(file_.get()) == 0;
    if (!ok) error_ = errno ? errno : EIO;
}

void TraceWriter::step(const Frame& f) {
    add_pieces(f.tokens);
    add_pieces(f.argmax);
    line_.clear();
    auto out = std::back_inserter(line_);
    fmt::format_to(out, "{{\"canvas\":{},\"step\":{},\"temperature\":{},\"mean_entropy\":{},\"last\":{}",
                   f.canvas, f.step, f.temperature, entropy_text(f.mean_entropy), f.last);
    fmt::format_to(out, ",\"tokens\":[{}],\"argmax\":[{}],\"entropy\":[", fmt::join(f.tokens, ","),
                   fmt::join(f.argmax, ","));
    for (size_t i = 0; i < f.entropy.size(); i++) (line_ += i ? "," : "") += entropy_text(f.entropy[i]);
    fmt::format_to(out, "],\"accepted\":[{}],\"pieces\":{{{}}}}}", fmt::join(f.accepted, ","), pieces_);
    write_line();
}

void TraceWriter::end(const Result& r) {
    OrderedJson j;
    j["finish"] = finish_name(r.finish);
    j["text"] = r.text;
    j["thought"] = r.thought;
    j["ids"] = r.ids;
    j["steps"] = r.steps;
    j["hash"] = fmt::format("{:016x}", r.hash);
    line_ = dump(j);
    write_line();
}

void TraceWriter::close() {
    errno = 0;
    if (std::fclose(file_.release()) != 0 && !error_) error_ = errno;
    require(!error_, "{}: the trace cannot be written: {}", path_, std::strerror(error_));
}

// ---- Reading

namespace {

// One line's members, with the file's name and the line's number for messages.
class Line {
  public:
    Line(const Json& j, std::string where) : j_(j), where_(std::move(where)) {}

    const Json& at(const char* key) const {
        const auto it = j_.find(key);
        require(it != j_.end(), "{}: key {} is missing", where_, key);
        return *it;
    }
    int integer(const char* key, int low = 0) const { return integer(at(key), key, low, INT32_MAX); }
    std::string string(const char* key) const {
        require(at(key).is_string(), "{}: key {} is {}, expected a string", where_, key, at(key).type_name());
        return at(key).get<std::string>();
    }
    Line member(const char* key) const { return {object(key), where_}; }
    const Json& object(const char* key) const {
        require(at(key).is_object(), "{}: key {} is {}, expected an object", where_, key,
                at(key).type_name());
        return at(key);
    }
    bool boolean(const char* key) const {
        require(at(key).is_boolean(), "{}: key {} is {}, expected true or false", where_, key,
                at(key).type_name());
        return at(key).get<bool>();
    }
    float number(const char* key) const { return number(at(key), key); }
    uint64_t unsigned_64(const char* key) const {
        require(at(key).is_number_unsigned(), "{}: key {} is {}, expected an integer of 64 bits", where_, key,
                at(key).dump());
        return at(key).get<uint64_t>();
    }
    // A list of numbers from 0 to `most`; n_item < 0: of any length.
    template <class T>
    std::vector<T> list(const char* key, int n_item = -1, int most = INT32_MAX) const {
        const Json& v = at(key);
        require(v.is_array() && (n_item < 0 || v.size() == size_t(n_item)),
                "{}: key {} has {}, expected {} numbers", where_, key,
                v.is_array() ? fmt::format("{} items", v.size()) : v.type_name(),
                n_item < 0 ? "a list of" : std::to_string(n_item));
        std::vector<T> out;
        out.reserve(v.size());
        for (const Json& item : v) {
            if constexpr (std::is_same_v<T, float>)
                out.push_back(number(item, key));
            else
                out.push_back(static_cast<T>(integer(item, key, 0, most)));
        }
        return out;
    }
    bool has(const char* key) const { return j_.contains(key); }
    std::vector<std::string> strings(const char* key) const { return strings(at(key), key); }
    std::map<int, std::vector<std::string>> choices() const {
        std::map<int, std::vector<std::string>> out;
        for (const auto& [hole, texts] : object("choices").items()) {
            require(is_id(hole), "{}: choices has a key that is not a hole's number", where_);
            out[std::stoi(hole)] = strings(texts, "choices");
        }
        return out;
    }
    void pieces(std::map<int32_t, TracePiece>& out) const {
        for (const auto& [id, piece] : object("pieces").items()) {
            require(is_id(id), "{}: pieces has a key that is not a token id", where_);
            out[std::stoi(id)] = read_piece(piece);
        }
    }

  private:
    static bool is_id(const std::string& s) {
        return !s.empty() && s.size() <= 9 && s.find_first_not_of("0123456789") == s.npos;
    }
    std::vector<std::string> strings(const Json& v, const char* key) const {
        const auto is_string = [](const Json& item) { return item.is_string(); };
        require(v.is_array() && std::all_of(v.begin(), v.end(), is_string),
                "{}: key {} has {}, expected a list of strings", where_, key, v.dump().substr(0, 40));
        return v.get<std::vector<std::string>>();
    }
    int integer(const Json& v, const char* key, int low, int high) const {
        const bool fits =
            v.is_number_integer() && (!v.is_number_unsigned() || v.get<uint64_t>() <= INT32_MAX);
        require(fits && v.get<int64_t>() >= low && v.get<int64_t>() <= high,
                "{}: key {} has {}, expected an integer from {} to {}", where_, key,
                v.is_number() ? v.dump() : v.type_name(), low, high);
        return v.get<int>();
    }
    // Temperatures and entropies: none is negative.
    float number(const Json& v, const char* key) const {
        if (v.is_null()) return std::numeric_limits<float>::quiet_NaN();
        require(v.is_number() && v.get<double>() >= 0, "{}: key {} has {}, expected a number of 0 or more",
                where_, key, v.is_number() ? v.dump() : v.type_name());
        return static_cast<float>(v.get<double>());
    }
    TracePiece read_piece(const Json& v) const {
        if (v.is_string()) return {v.get<std::string>(), false};
        if (v.is_object() && v.contains("control")) return {Line(v, where_).string("control"), true};
        require(v.is_object() && v.contains("bytes"),
                "{}: a piece is {}, expected a string, control or bytes", where_, v.type_name());
        const std::vector<uint8_t> bytes = Line(v, where_).list<uint8_t>("bytes", -1, 255);
        return {std::string(bytes.begin(), bytes.end()), false};
    }

    const Json& j_;
    const std::string where_;
};

void read_header(const Line& line, Trace& t) {
    t.model = line.string("model");
    t.device = line.string("device");
    t.prompt = line.string("prompt");
    t.n_canvas = line.integer("canvas", 1);
    t.n_vocab = line.integer("vocabulary", 1);
    t.seed = line.unsigned_64("seed");
    t.confidence = line.member("sampler").number("confidence");
    const Json& sampler = line.object("sampler");
    for (const SamplerSetting& setting : kSamplerSettings)
        if (sampler.contains(setting.name))
            t.sampler.emplace_back(setting.name, sampler[setting.name].dump());
    if (line.has("canvas_text")) t.canvas_text = line.string("canvas_text");
    if (line.has("choices")) t.choices = line.choices();
    if (line.has("stop")) t.stop = line.strings("stop");
    t.end_ids = line.list<int32_t>("end_ids");
    line.pieces(t.pieces);
}

void read_step(const Line& line, Trace& t) {
    TraceStep s;
    s.canvas = line.integer("canvas");
    s.step = line.integer("step");
    s.temperature = line.number("temperature");
    s.mean_entropy = line.number("mean_entropy");
    s.last = line.boolean("last");
    s.tokens = line.list<int32_t>("tokens", t.n_canvas);
    s.argmax = line.list<int32_t>("argmax", t.n_canvas);
    s.entropy = line.list<float>("entropy", t.n_canvas);
    s.accepted = line.list<uint8_t>("accepted", t.n_canvas, 1);
    line.pieces(t.pieces);
    t.steps.push_back(std::move(s));
}

}  // namespace

Trace read_trace(std::string_view text, const std::string& name) {
    Trace t;
    require(!text.empty(), "{}: is empty, expected a trace", name);
    for (int n = 1; !text.empty(); n++) {
        const size_t end = text.find('\n');
        if (end == text.npos && n > 1) break;  // cut
        const std::string_view line_text = text.substr(0, end);
        text.remove_prefix(std::min(line_text.size() + 1, text.size()));

        const std::string where = fmt::format("{} line {}", name, n);
        check_json(line_text, where);
        const Json j = Json::parse(line_text, nullptr, false);
        if (n == 1) {
            const auto version = j.is_object() ? j.find("easel_trace") : j.end();
            require(j.is_object() && version != j.end() && version->is_number_integer(),
                    "{}: is not a trace, expected a first line that begins with {{\"easel_trace\":{}", name,
                    kTraceVersion);
            require(*version == kTraceVersion, "{}: is a trace of version {}, this program reads {}", name,
                    version->dump(), kTraceVersion);
            read_header(Line(j, where), t);
            continue;
        }
        require(j.is_object(), "{}: is not a JSON object, expected a step of the trace", where);
        require(t.finish.empty(), "{}: comes after the end line, expected nothing", where);
        const Line line(j, where);
        if (j.contains("finish")) {
            t.finish = line.string("finish");
            t.text = line.string("text");
            t.thought = line.string("thought");
            require(!t.finish.empty(), "{}: key finish is empty, expected stop, length or cancelled", where);
            continue;
        }
        read_step(line, t);
        if (t.steps.size() > 1) {
            const TraceStep &a = t.steps[t.steps.size() - 2], &b = t.steps.back();
            require(std::pair(a.canvas, a.step) < std::pair(b.canvas, b.step),
                    "{}: canvas {}, step {} comes after canvas {}, step {}; expected a later one", where,
                    b.canvas, b.step, a.canvas, a.step);
        }
    }
    require(!t.steps.empty(), "{}: has no whole step, expected at least one", name);
    return t;
}

std::vector<std::pair<size_t, size_t>> Trace::canvases() const {
    std::vector<std::pair<size_t, size_t>> out;
    for (size_t i = 0; i < steps.size(); i++) {
        if (i == 0 || steps[i].canvas != steps[i - 1].canvas) out.emplace_back(i, i);
        out.back().second = i + 1;
    }
    return out;
}

std::vector<int> Trace::settled(size_t first, size_t last) const {
    std::vector<int> out(n_canvas);
    for (int p = 0; p < n_canvas; p++) {
        size_t i = last - 1;
        while (i > first && steps[i - 1].argmax[p] == steps[last - 1].argmax[p]) i--;
        out[p] = static_cast<int>(i - first);
    }
    return out;
}

double entropy_level(float nats, int n_vocab) {
    const double most = std::log(std::max(n_vocab, 2));
    if (std::isnan(nats)) return 1;
    if (nats <= kLeastEntropy) return 0;
    return std::min(1.0, std::log(nats / kLeastEntropy) / std::log(most / kLeastEntropy));
}

}  // namespace easel
