// convert.cpp: `easel convert`: plans each tensor's type, encodes the source's rows on all cores and writes
// the file in one pass. The source is a Hugging Face folder (convert_hf.cpp) or a GGUF file.
#include "convert.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <exception>
#include <filesystem>
#include <future>
#include <mutex>

#include "check.h"
#include "convert_source.h"
#include "model.h"
#include "parallel.h"
#include "text.h"
#include "tokenizer.h"
#include "whole_file.h"

namespace easel {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kSlabValues = 16 << 20;   // encoded and written at a time: 64 MiB as float
constexpr int64_t kTaskValues = 256 << 10;  // taken by a thread at a time
constexpr uint32_t kQuantizationVersion = 2;

struct Scheme {
    const char* name;
    uint32_t file_type;
    Type linear, output, more_bits;
};

constexpr Scheme kSchemes[] = {
    {"f32", 0, Type::F32, Type::F32, Type::F32},        {"f16", 1, Type::F16, Type::F16, Type::F16},
    {"bf16", 32, Type::BF16, Type::BF16, Type::BF16},   {"q8_0", 7, Type::Q8_0, Type::Q8_0, Type::Q8_0},
    {"q6_k", 18, Type::Q6_K, Type::Q6_K, Type::Q6_K},   {"q5_k_m", 17, Type::Q5_K, Type::Q6_K, Type::Q6_K},
    {"q4_k_m", 15, Type::Q4_K, Type::Q6_K, Type::Q6_K},
};

// `type`, or what stands in for it in rows that are not whole blocks of it.
Type fallback(Type type, int64_t row_values) {
    if (row_values % type_info(type).block_elems == 0) return type;
    if (row_values % 32 != 0) return Type::F16;
    switch (type) {
        case Type::Q4_K:
            return Type::Q5_0;
        case Type::Q5_K:
            return Type::Q5_1;
        default:
            return Type::Q8_0;
    }
}

bool can_write(const Scheme& scheme) {
    for (const Type type : {scheme.linear, scheme.output, scheme.more_bits})
        for (const int64_t row_values : {256, 32, 1})
            if (!type_info(fallback(type, row_values)).from_float) return false;
    return true;
}

const Scheme& find_scheme(std::string_view type) {
    std::string name(type);
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    for (const Scheme& scheme : kSchemes)
        if (name == scheme.name && can_write(scheme)) return scheme;
    fail("unknown type {}, expected one of {}", type, convert_types());
}

bool always_f32(const TensorPlan& t) {
    return t.ne.size() < 2 || !t.name.ends_with(".weight") || t.name.ends_with("_norm.weight") ||
           t.name.find(".ffn_gate_inp.") != std::string::npos;
}

// "blk.7.attn_v.weight" -> 7; -1 for a tensor outside the blocks.
int64_t block_of(const std::string& name) {
    int n = -1;
    return std::sscanf(name.c_str(), "blk.%9d.", &n) == 1 ? n : -1;
}

// Whether item i of n is in the first or the last eighth, or is every third between them.
bool wants_more_bits(int64_t i, int64_t n) {
    return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

}  // namespace

std::string convert_types() {
    std::string out;
    for (const Scheme& scheme : kSchemes)
        if (can_write(scheme)) out += (out.empty() ? "" : ", ") + std::string(scheme.name);
    return out;
}

uint32_t plan_types(std::string_view type, std::span<TensorPlan> tensors) {
    const Scheme& scheme = find_scheme(type);
    int64_t n_layer = 0;
    bool has_output = false;
    // Blocks with an attn_v (global layers have none): the rule for more bits counts only those.
    std::vector<int64_t> attn_v;
    for (const TensorPlan& t : tensors) {
        n_layer = std::max(n_layer, block_of(t.name) + 1);
        has_output |= t.name == "output.weight";
        if (t.name.ends_with(".attn_v.weight")) attn_v.push_back(block_of(t.name));
    }
    std::sort(attn_v.begin(), attn_v.end());
    for (TensorPlan& t : tensors) {
        const int64_t block = block_of(t.name);
        Type wanted = scheme.linear;
        if (t.name == (has_output ? "output.weight" : "token_embd.weight")) {
            wanted = scheme.output;
        } else if (t.name.ends_with(".attn_v.weight")) {
            const auto i = std::lower_bound(attn_v.begin(), attn_v.end(), block) - attn_v.begin();
            if (wants_more_bits(i, static_cast<int64_t>(attn_v.size()))) wanted = scheme.more_bits;
        } else if (t.name.find(".ffn_down") != std::string::npos) {
            if (wants_more_bits(block, n_layer)) wanted = scheme.more_bits;
        }
        t.type = always_f32(t) ? Type::F32 : fallback(wanted, t.ne[0]);
    }
    return scheme.file_type;
}

namespace {

Source read_gguf(const std::string& path) {
    Source out;
    out.gguf = std::make_shared<Gguf>(Gguf::open(path));
    out.files = out.gguf->files();
    const std::string_view architecture = out.gguf->string("general.architecture");
    require(architecture.starts_with("diffusion-gemma"),
            "{}: general.architecture is {}, easel converts diffusion-gemma", path, architecture);
    bool quantised = false;
    for (const Tensor& t : out.gguf->tensors()) {
        quantised |= type_info(t.type).block_elems > 1;
        out.tensors.push_back(
            {std::string(t.name), {t.ne.begin(), t.ne.begin() + t.n_dims}, t.type, t.data, true});
    }
    if (quantised)
        out.notes.push_back(path + " is quantised already: converting cannot bring back what that lost");
    return out;
}

// A target that is one of the source's files, or whose .part is, would destroy it.
void refuse_overwriting(const Source& from, const std::string& source, const std::string& target) {
    std::error_code problem;
    const fs::file_status found = fs::status(target, problem);
    require(found.type() != fs::file_type::none, "{}: cannot be written: {}", target, problem.message());
    require(!fs::is_directory(found), "{}: is a folder, expected the name of the file to write", target);
    require(!fs::exists(found) || fs::is_regular_file(found),
            "{}: is not a regular file, expected the name of the file to write", target);
    for (const std::string& name : {target, replaced(target) + ".part"})
        for (const std::string& file : from.files) {
            std::error_code absent;
            require(!fs::equivalent(name, file, absent), "{}: writing it would overwrite the source {}",
                    target, source);
        }
}

// The largest magnitude that `type` can take. In blocks that is a half-precision scale times a code, and the
// largest codes are 16 (Q5_0) or more; Q5_1's minimum is a half itself. Halves round down below 65520, BF16
// below the middle between its largest number and the next power of two.
float limit_of(Type type) {
    if (type == Type::BF16) return std::nextafter(0x1.ffp127f, 0.0f);
    if (type == Type::F16 || type == Type::Q5_1) return std::nextafter(65520.0f, 0.0f);
    return type_info(type).block_elems > 1 ? 16 * 65504.0f : FLT_MAX;
}

void require_fits(const SourceTensor& t, Type to, int64_t row, const float* x) {
    const float limit = limit_of(to);
    bool fits = true;
    for (int64_t i = 0; i < t.ne[0]; i++) fits &= std::fabs(x[i]) <= limit;  // false for NaN
    if (fits) return;
    const float* bad = std::find_if(x, x + t.ne[0], [&](float v) { return !(std::fabs(v) <= limit); });
    fail("tensor {}: the value {} in row {}, column {} does not fit {}", t.name, *bad, row, bad - x,
         type_info(to).name);
}

// Rows first_row .. first_row + n_row - 1 of t as `to`, to out [n_row, row bytes of `to`], on all cores.
void encode_rows(const SourceTensor& t, Type to, int64_t first_row, int64_t n_row, uint8_t* out) {
    const int64_t n = t.ne[0], from_bytes = row_bytes(t.type, n), to_bytes = row_bytes(to, n);
    const int64_t task_rows = std::max<int64_t>(1, kTaskValues / n);
    parallel_for((n_row + task_rows - 1) / task_rows, [&](int64_t task) {
        std::vector<float> x(n);
        for (int64_t r = task * task_rows; r < std::min((task + 1) * task_rows, n_row); r++) {
            to_float(t.type, t.data + (first_row + r) * from_bytes, x.data(), n);
            require_fits(t, to, first_row + r, x.data());
            from_float(to, x.data(), out + r * to_bytes, n);
        }
    });
}

// Gives the pages of these bytes back to the system. They are mapped read-only from a file, so a page that is
// touched again is read again.
void release(const uint8_t* begin, int64_t bytes) {
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)),
                    at = reinterpret_cast<uintptr_t>(begin);
    const uintptr_t first = at & ~(page - 1), end = (at + bytes) & ~(page - 1);
    if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

// Writes pieces in order, each while the next one is computed.
class Output {
  public:
    Output(GgufWriter& writer, const ConvertOptions& options) : writer_(writer), options_(options) {}

    void write(std::vector<uint8_t> piece) {
        wait();
        busy_ = std::async(std::launch::async, [this, piece = std::move(piece)] { writer_.write(piece); });
    }
    void write_now(std::span<const uint8_t> piece) {
        wait();
        writer_.write(piece);
    }
    void wait() {
        if (busy_.valid()) busy_.get();
    }
    bool report(uint64_t bytes, std::string_view tensor) {
        done_ += bytes;
        return !options_.progress || options_.progress(done_, writer_.total_bytes(), tensor);
    }

  private:
    GgufWriter& writer_;
    const ConvertOptions& options_;
    std::future<void> busy_;
    uint64_t done_ = 0;
};

// False: stopped.
bool write_tensor(Output& out, const SourceTensor& t, const TensorPlan& plan) {
    int64_t n_rows = 1;
    for (size_t d = 1; d < t.ne.size(); d++) n_rows *= t.ne[d];
    const int64_t from_bytes = row_bytes(t.type, t.ne[0]), to_bytes = row_bytes(plan.type, t.ne[0]);
    const int64_t slab_rows = std::max<int64_t>(1, kSlabValues / t.ne[0]);
    for (int64_t row = 0; row < n_rows; row += slab_rows) {
        const int64_t n = std::min(slab_rows, n_rows - row);
        const uint8_t* source = t.data + row * from_bytes;
        if (t.type == plan.type && type_info(t.type).block_elems > 1) {
            out.write_now({source, static_cast<size_t>(n * from_bytes)});
        } else {
            std::vector<uint8_t> piece(n * to_bytes);
            encode_rows(t, plan.type, row, n, piece.data());
            out.write(std::move(piece));
        }
        if (t.mapped) release(source, n * from_bytes);
        if (!out.report(n * to_bytes, t.name)) return false;
    }
    return true;
}

void set_keys(GgufWriter& writer, const Source& from, uint32_t file_type) {
    if (from.gguf) {
        // The parts of a split file become one file.
        for (const auto& [key, value] : from.gguf->values())
            if (!key.starts_with("split.")) writer.copy(key, value);
    }
    for (const auto& [key, value] : from.keys) writer.set(key, value);
    writer.set("general.quantization_version", kQuantizationVersion);
    writer.set("general.file_type", file_type);
}

// On the disk that the file will be on: a link may lead to another one.
void require_space(const std::string& target, uint64_t bytes) {
    std::error_code unknown;
    const fs::path folder = fs::path(replaced(target)).parent_path();
    const fs::space_info space = fs::space(folder.empty() ? "." : folder, unknown);
    require(unknown || space.available >= bytes, "{}: needs {} bytes, the disk has {} free", target, bytes,
            space.available);
}

}  // namespace

bool convert(const std::string& source, const std::string& target, const ConvertOptions& options) {
    find_scheme(options.type);  // before any long reading
    Source from;
    try {
        from = fs::is_directory(source) ? read_hf_folder(source) : read_gguf(source);
        refuse_overwriting(from, source, target);
    } catch (const fs::filesystem_error& e) {  // a folder that may not be read, a name too long
        fail("{}", e.what());
    }
    require(!Gguf::is_part(target),
            "{}: is the name of one part of a split file, expected that of a whole file", target);
    if (!options.quiet)
        for (const std::string& note : from.notes) tell(fmt::format("easel: {}\n", safe_line(note)));

    std::vector<TensorPlan> plan;
    for (const SourceTensor& t : from.tensors) plan.push_back({t.name, t.ne, t.type});
    const uint32_t file_type = plan_types(options.type, plan);

    GgufWriter writer(target);
    set_keys(writer, from, file_type);
    for (const TensorPlan& t : plan) writer.declare(t.name, t.type, t.ne);
    writer.begin();
    require_space(target, writer.total_bytes());
    Output out(writer, options);
    for (size_t i = 0; i < plan.size(); i++)
        if (!write_tensor(out, from.tensors[i], plan[i])) return false;
    out.wait();
    writer.finish([&](const std::string& part) {
        try {
            const auto file = std::make_shared<const Gguf>(Gguf::open(part));
            const Model model(file);
            const Tokenizer tokenizer(*file);
        } catch (const Error& e) {
            fail("{}: not written, as easel itself would refuse it: {}", target, e.what());
        }
    });
    return true;
}

}  // namespace easel
