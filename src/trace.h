// trace.h: a trace is every denoise step of one answer, as lines of JSON: `generate --trace` writes it
// (trace.cpp), `easel trace` makes a page (trace_page.cpp, trace.html) or a figure (trace_svg.cpp) of it.
//
//   {"easel_trace":1, "model":, "device":, "canvas": tokens, "vocabulary":, "seed":, "sampler":{..},
//    "end_ids":[..], "prompt": as it was given, "prompt_ids":[..], "pieces":{..}}
//    and, where the request has them, "canvas_text":, "choices": texts by hole, "stop":[..]
//   {"canvas":, "step": both from 0, "temperature":, "mean_entropy":, "last":, "tokens":[..], "argmax":[..],
//    "entropy":[..] nats, "accepted":[..] 0 or 1, "pieces":{..}}           a line a step, fields as in Frame
//   {"finish": stop, length or cancelled, "text":, "thought":, "ids":[..], "steps":[..] a number a canvas,
//    "hash":}
//
// "pieces" has the text of each id that the lines before did not have: a string, {"control": name} for a
// control token, {"bytes":[..]} for what is not UTF-8 alone. Keys that a reader does not know are ignored.
#pragma once
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "easel.h"

namespace easel {

constexpr int kTraceVersion = 1;

// Writes a trace line by line, each at once, so that a stopped program leaves whole lines. What cannot be
// written is noted and reported by close(): a full disk must not end an answer.
class TraceWriter {
  public:
    // Opens the file and writes its first line. Error if it cannot be opened, or the prompt is refused.
    TraceWriter(const std::string& path, const Engine& engine, const Request& request);
    void step(const Frame& frame);
    void end(const Result& result);
    // Error if anything could not be written.
    void close();

  private:
    void add_pieces(std::span<const int32_t> ids);
    void write_line();

    const std::string path_;
    const Tokenizer& tokenizer_;
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
    int error_ = 0;              // errno of the first failure
    std::set<int32_t> written_;  // ids whose piece the file has
    std::string line_, pieces_;  // the line being made, and its "pieces"; members to keep their memory
};

struct TracePiece {
    std::string bytes;  // what the token stands for; of a control token its name
    bool control = false;
};

struct TraceStep {
    int canvas = 0, step = 0;
    float temperature = 0, mean_entropy = 0;
    bool last = false;
    std::vector<int32_t> tokens, argmax;  // [n_canvas], as the others
    std::vector<float> entropy;           // NaN: it was not finite
    std::vector<uint8_t> accepted;
};

struct Trace {
    std::string model, device, prompt;
    int n_canvas = 0, n_vocab = 0;
    uint64_t seed = 0;
    float confidence = 0;  // the mean entropy in nats below which a canvas may end
    std::vector<std::pair<std::string, std::string>> sampler;  // all settings by name, as JSON has them
    std::vector<int32_t> end_ids;
    std::optional<std::string> canvas_text;           // of infill, with its holes
    std::map<int, std::vector<std::string>> choices;  // by hole, from 1
    std::vector<std::string> stop;
    std::map<int32_t, TracePiece> pieces;
    std::vector<TraceStep> steps;  // at least one; in the order of (canvas, step)
    std::string finish;            // empty: there is no end line, the file is cut
    std::string text, thought;

    // The steps [first, last) of each canvas.
    std::vector<std::pair<size_t, size_t>> canvases() const;
    // For each position, the step from which on its argmax is that of the last step; of steps [first, last),
    // counted from first.
    std::vector<int> settled(size_t first, size_t last) const;
};

// Reads a trace. A last line that is cut is left out, and `finish` is empty then. Error with `name` and the
// line's number for what is not a trace, has a newer version, or no whole step.
Trace read_trace(std::string_view text, const std::string& name);

// Where `nats` lies between certain (0) and uniform over the vocabulary (1), on a logarithmic scale.
double entropy_level(float nats, int n_vocab);
constexpr double kLeastEntropy = 1e-3;  // nats; what is less counts as certain

// One self-contained HTML page; a figure as SVG.
std::string trace_page(const Trace& trace);
std::string trace_svg(const Trace& trace);

}  // namespace easel
