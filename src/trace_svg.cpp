// trace_svg.cpp: a trace as a figure: for each canvas a map of position by step, coloured by entropy and
// acceptance, with the line above which positions are not settled, and the mean entropy beside it. Plain SVG:
// no script, no raster, no font of its own. Called by trace_page.cpp.
#include <algorithm>
#include <array>
#include <cmath>

#include "check.h"
#include "text.h"
#include "trace.h"

namespace easel {

namespace {

// All lengths in pixels of the figure.
constexpr int kWidth = 760, kLeft = 46, kMapWidth = 560, kGap = 24, kCurveWidth = 110, kTop = 34;
constexpr int kLabelled = 64;  // columns at most that have room for their tokens' texts

using Rgb = std::array<int, 3>;
// From certain to uncertain, as on the page: teal where the draw was accepted, orange where not.
constexpr Rgb kAcceptedLow{214, 236, 232}, kAcceptedHigh{62, 150, 139};
constexpr Rgb kOpenLow{253, 238, 220}, kOpenHigh{222, 96, 36};
constexpr int kShades = 16;  // of each; a shade's cells are one path

std::string shade(const Rgb& low, const Rgb& high, int level) {
    const double t = static_cast<double>(level) / (kShades - 1);
    const auto mix = [&](int i) { return static_cast<int>(std::lround(low[i] + (high[i] - low[i]) * t)); };
    return fmt::format("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2));
}

// A token's text for a label: at most 10 characters, blanks made visible, what XML cannot have replaced.
std::string label(const TracePiece& piece) {
    constexpr int kShown = 10;
    std::string out;
    if (!is_utf8(piece.bytes)) {
        for (size_t i = 0; i < std::min<size_t>(piece.bytes.size(), 4); i++)
            out += fmt::format("{:02X}", static_cast<unsigned char>(piece.bytes[i]));
        return out;
    }
    int n = 0;
    for (size_t i = 0; i < piece.bytes.size() && n < kShown; n++) {
        const auto c = static_cast<unsigned char>(piece.bytes[i]);
        const size_t n_byte = first_char(std::string_view(piece.bytes).substr(i)).n;
        const std::string_view character = std::string_view(piece.bytes).substr(i, n_byte);
        if (c == '<')
            out += "&lt;";
        else if (c == '>')
            out += "&gt;";
        else if (c == '&')
            out += "&amp;";
        else if (c == ' ')
            out += "\u2423";
        else if (c == '\n')
            out += "\u21b5";
        else if (c < 32 || character == "\uffff" || character == "\ufffe")
            out += "\ufffd";
        else
            out += character;
        i += n_byte;
    }
    return out;
}

std::string text(double x, double y, const char* attributes, std::string_view content) {
    return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\"{}>{}</text>\n", x, y, attributes, content);
}

// Numbers worth a tick among `n`, counted from 1: the first, the last, round ones between.
std::vector<int> ticks(int n, int n_most) {
    int every = 1;
    for (const int nice : {2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000})
        if (n / every > n_most) every = nice;
    std::vector<int> out{1};
    for (int i = every; i <= n; i += every)
        if (i - 1 >= 0.75 * every && i > 1) out.push_back(i);  // not too near to the first
    return out;
}

class Figure {
  public:
    explicit Figure(const Trace& t) : t_(t), column_(static_cast<double>(kMapWidth) / t.n_canvas) {}

    std::string make() {
        const auto canvases = t_.canvases();
        double y = 10;
        for (const auto& [first, last] : canvases) y = panel(first, last, y, canvases.size() > 1);
        y = legend(y + 8);
        return fmt::format(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1:.0f}\" width=\"{0}\" "
            "height=\"{1:.0f}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"11\" "
            "fill=\"#1b2624\">\n"
            "<title>Denoising of {2} canvas{3}, {4} steps: entropy and acceptance by position and "
            "step</title>\n"
            "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{5}</svg>\n",
            kWidth, y, canvases.size(), canvases.size() == 1 ? "" : "es", t_.steps.size(), out_);
    }

  private:
    // One canvas from `y` down; returns where it ends.
    double panel(size_t first, size_t last, double y, bool numbered) {
        const int n_step = static_cast<int>(last - first);
        row_ = std::clamp(280.0 / n_step, 2.0, 18.0);
        const double height = n_step * row_;
        const std::string title = numbered ? fmt::format("position in canvas {}", t_.steps[first].canvas + 1)
                                           : "position in the canvas";
        out_ += text(kLeft + kMapWidth / 2.0, y + 10, " text-anchor=\"middle\"", title);
        y += kTop;
        for (const int p : ticks(t_.n_canvas, 12))
            out_ += text(kLeft + (p - 0.5) * column_, y - 5, " text-anchor=\"middle\" font-size=\"9\"",
                         std::to_string(p));
        out_ += fmt::format(
            "<text transform=\"translate(12 {:.1f}) rotate(-90)\" text-anchor=\"middle\">step</text>\n",
            y + height / 2);
        for (const int s : ticks(n_step, std::max(1, static_cast<int>(height / 14))))
            out_ += text(kLeft - 6, y + (s - 0.5) * row_ + 3, " text-anchor=\"end\" font-size=\"9\"",
                         std::to_string(s));
        cells(first, last, y);
        settled_line(first, last, y);
        out_ += fmt::format(
            "<rect x=\"{}\" y=\"{:.1f}\" width=\"{}\" height=\"{:.1f}\" fill=\"none\" "
            "stroke=\"#8a9996\" stroke-width=\"0.6\"/>\n",
            kLeft, y, kMapWidth, height);
        curve(first, last, y, height);
        y += height;
        if (t_.n_canvas <= kLabelled) y += token_labels(last - 1, y);
        return y + 14;
    }

    // Cells of one colour are one path; neighbours in a row are one rectangle.
    void cells(size_t first, size_t last, double y) {
        std::array<std::string, 2 * kShades> paths;
        for (size_t i = first; i < last; i++) {
            const TraceStep& s = t_.steps[i];
            const auto colour = [&](int p) {
                const double level = entropy_level(s.entropy[p], t_.n_vocab);
                return (s.accepted[p] ? 0 : kShades) + static_cast<int>(std::lround(level * (kShades - 1)));
            };
            for (int p = 0, end; p < t_.n_canvas; p = end) {
                for (end = p + 1; end < t_.n_canvas && colour(end) == colour(p);) end++;
                paths[colour(p)] += fmt::format("M{:.2f} {:.2f}h{:.2f}v{:.2f}h{:.2f}z", kLeft + p * column_,
                                                y + static_cast<double>(i - first) * row_,
                                                (end - p) * column_, row_, (p - end) * column_);
            }
        }
        for (int c = 0; c < 2 * kShades; c++)
            if (!paths[c].empty())
                out_ += fmt::format("<path shape-rendering=\"crispEdges\" fill=\"{}\" d=\"{}\"/>\n",
                                    colour_of(c), paths[c]);
    }
    static std::string colour_of(int c) {
        return c < kShades ? shade(kAcceptedLow, kAcceptedHigh, c) : shade(kOpenLow, kOpenHigh, c - kShades);
    }

    // Below it, a position's most likely token is the one that is committed.
    void settled_line(size_t first, size_t last, double y) {
        std::string path;
        const std::vector<int> settled = t_.settled(first, last);
        for (int p = 0; p < t_.n_canvas; p++)
            path += fmt::format("{}{:.2f} {:.2f}H{:.2f}", p ? "L" : "M", kLeft + p * column_,
                                y + settled[p] * row_, kLeft + (p + 1) * column_);
        out_ += fmt::format("<path fill=\"none\" stroke=\"#12201d\" stroke-width=\"1.4\" d=\"{}\"/>\n", path);
    }

    // Mean entropy, to the right, on the map's step axis; the scale is that of the colours.
    void curve(size_t first, size_t last, double y, double height) {
        const double x0 = kLeft + kMapWidth + kGap;
        const auto x = [&](double nats) {
            return x0 + entropy_level(static_cast<float>(nats), t_.n_vocab) * kCurveWidth;
        };
        out_ += text(x0 + kCurveWidth / 2.0, y - 24, " text-anchor=\"middle\"", "mean entropy, nats");
        for (const double nats : {0.001, 0.01, 0.1, 1.0}) {
            out_ += text(x(nats), y - 5, " text-anchor=\"middle\" font-size=\"9\"", fmt::format("{}", nats));
            out_ +=
                fmt::format("<path stroke=\"#d5dedc\" stroke-width=\"0.6\" d=\"M{:.1f} {:.1f}v{:.1f}\"/>\n",
                            x(nats), y, height);
        }
        std::string path;
        for (size_t i = first; i < last; i++)
            path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x(t_.steps[i].mean_entropy),
                                y + (static_cast<double>(i - first) + 0.5) * row_);
        out_ += fmt::format("<path fill=\"none\" stroke=\"#c2551c\" stroke-width=\"1.5\" d=\"{}\"/>\n", path);
        out_ += fmt::format(
            "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"{:.1f}\" fill=\"none\" "
            "stroke=\"#8a9996\" stroke-width=\"0.6\"/>\n",
            x0, y, kCurveWidth, height);
    }

    // What each column became, under it. Returns the height that takes.
    double token_labels(size_t step, double y) {
        for (int p = 0; p < t_.n_canvas; p++) {
            const int32_t id = t_.steps[step].argmax[p];
            const auto piece = t_.pieces.find(id);
            const std::string content =
                piece == t_.pieces.end() ? fmt::format("#{}", id) : label(piece->second);
            out_ += fmt::format(
                "<text transform=\"translate({:.1f} {:.1f}) rotate(90)\" font-size=\"9\" "
                "font-family=\"monospace\">{}</text>\n",
                kLeft + (p + 0.5) * column_ - 3, y + 4, content);
        }
        return 62;
    }

    double legend(double y) {
        constexpr int kRamp = 120;
        const auto ramp = [&](double x, const Rgb& low, const Rgb& high, const char* name) {
            for (int i = 0; i < kShades; i++)
                out_ += fmt::format(
                    "<rect shape-rendering=\"crispEdges\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" "
                    "height=\"10\" fill=\"{}\"/>\n",
                    x + i * double{kRamp} / kShades, y, double{kRamp} / kShades, shade(low, high, i));
            out_ += text(x, y + 21, " font-size=\"9\"", fmt::format("{} nats", kLeastEntropy));
            out_ += text(x + kRamp, y + 21, " text-anchor=\"end\" font-size=\"9\"",
                         fmt::format("{:.1f}", std::log(std::max(t_.n_vocab, 2))));
            out_ += text(x + kRamp + 8, y + 9, "", name);
        };
        ramp(kLeft, kAcceptedLow, kAcceptedHigh, "accepted");
        ramp(kLeft + 205, kOpenLow, kOpenHigh, "not accepted");
        const double x = kLeft + 435;
        out_ += fmt::format("<path stroke=\"#12201d\" stroke-width=\"1.4\" d=\"M{:.1f} {:.1f}h24\"/>\n", x,
                            y + 5);
        out_ += text(x + 32, y + 9, "", "settled from here down");
        return y + 32;
    }

    const Trace& t_;
    const double column_;
    double row_ = 0;
    std::string out_;
};

}  // namespace

std::string trace_svg(const Trace& trace) {
    return Figure(trace).make();
}

}  // namespace easel
