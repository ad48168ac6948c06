// trace_page.cpp: `easel trace`: reads a trace and writes the page src/trace.html with it, or the figure of
// trace_svg.cpp. Called by main.
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "check.h"
#include "commands.h"
#include "text.h"
#include "trace.h"
#include "whole_file.h"

// The page, linked in as it is; global labels as in demo.cpp.
asm(".section .rodata\n"
    ".globl easel_trace_page_begin, easel_trace_page_end\n"
    "easel_trace_page_begin: .incbin \"src/trace.html\"\n"
    "easel_trace_page_end:\n"
    ".previous\n");

extern "C" const char easel_trace_page_begin[], easel_trace_page_end[];

namespace easel {

using Json = nlohmann::json;

namespace {

Json piece_json(const TracePiece& piece) {
    if (piece.control) return {{"control", piece.bytes}};
    if (is_utf8(piece.bytes)) return piece.bytes;
    return {{"bytes", std::vector<uint8_t>(piece.bytes.begin(), piece.bytes.end())}};
}

// Rounded as in the trace; JSON has no NaN.
Json number(float x) {
    return std::isfinite(x) ? Json(std::round(double{x} * 1e4) / 1e4) : Json();
}

}  // namespace

std::string trace_page(const Trace& t) {
    Json j{{"model", t.model},
           {"device", t.device},
           {"prompt", t.prompt},
           {"canvas", t.n_canvas},
           {"vocabulary", t.n_vocab},
           {"seed", std::to_string(t.seed)},  // JavaScript's numbers hold 53 bits
           {"confidence", number(t.confidence)},
           {"end_ids", t.end_ids},
           {"finish", t.finish},
           {"text", t.text},
           {"thought", t.thought}};
    for (const auto& [name, value] : t.sampler) j["sampler"].push_back({name, value});
    if (t.canvas_text) j["canvas_text"] = *t.canvas_text;
    for (const auto& [hole, texts] : t.choices) j["choices"].push_back({hole, texts});
    if (!t.stop.empty()) j["stop"] = t.stop;
    Json& pieces = j["pieces"] = Json::object();
    for (const auto& [id, piece] : t.pieces) pieces[std::to_string(id)] = piece_json(piece);
    Json& steps = j["steps"] = Json::array();
    for (const TraceStep& s : t.steps) {
        Json entropy = Json::array();
        for (float nats : s.entropy) entropy.push_back(number(nats));
        steps.push_back({{"canvas", s.canvas},
                         {"step", s.step},
                         {"temperature", number(s.temperature)},
                         {"mean_entropy", number(s.mean_entropy)},
                         {"tokens", s.tokens},
                         {"argmax", s.argmax},
                         {"entropy", std::move(entropy)},
                         {"accepted", s.accepted}});
    }
    // Inside <script>, "</script" and "<!--" have a meaning of their own, so no < stays.
    std::string data;
    for (char c : j.dump(-1, ' ', false, Json::error_handler_t::replace))
        if (c == '<')
            data += "\\u003c";
        else
            data += c;

    constexpr std::string_view place = "@TRACE@";
    std::string page(easel_trace_page_begin, easel_trace_page_end);
    return page.replace(page.find(place), place.size(), data);
}

int run_trace(const TraceFlags& flags) {
    const Trace trace = read_trace(read_input(flags.file), input_name(flags.file));
    const std::string out = flags.svg ? trace_svg(trace) : trace_page(trace);
    require_other(flags.output, {flags.file}, "the trace itself");
    write_output(flags.output, out);
    if (trace.finish.empty())
        tell(fmt::format("easel: {}: the trace is cut short, {} {} shown\n", input_name(flags.file),
                         counted(trace.steps.size(), "whole step"), trace.steps.size() == 1 ? "is" : "are"));
    return 0;
}

}  // namespace easel
