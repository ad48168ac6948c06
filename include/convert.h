// convert.h: other weights to a GGUF file that easel (and llama.cpp) reads: a Hugging Face DiffusionGemma
// folder, or a GGUF file in another precision. Used by `easel convert`.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quant.h"

namespace easel {

struct ConvertOptions {
    std::string type;    // one of convert_types(), any case
    bool quiet = false;  // no notes and warnings on stderr
    // Called now and then with the bytes of tensors written so far, those of the whole file, and the current
    // tensor. Returns false to stop.
    std::function<bool(uint64_t done, uint64_t total, std::string_view tensor)> progress;
};

// Writes `target`, a GGUF file, from `source`: a folder with config.json, model*.safetensors and
// tokenizer.json (generation_config.json and a chat template when present), or a GGUF file, whose keys are
// kept, except split.*, general.file_type and general.quantization_version. Memory stays under about 1 GB
// beyond mapped pages, whatever the size of the source. `target` appears, or is replaced, only when it is
// complete. False: options.progress stopped it. Throws Error naming the file, tensor or key.
bool convert(const std::string& source, const std::string& target, const ConvertOptions& options);

// The names that ConvertOptions::type can have: "bf16, f16, ..."; those whose block types easel can write.
std::string convert_types();

// A tensor of the file to be: ne in GGUF order, ne[0] contiguous.
struct TensorPlan {
    std::string name;
    std::vector<int64_t> ne;
    Type type = Type::F32;
};

// Sets each tensor's type as in the published files of that name (SPEC 4.4): F32 for norms, scalars and the
// router; more bits for some layers' ffn_down and attn_v; the output's type for the embedding if that is the
// output too; another block type where a row's length is not a multiple of the block. The order of `tensors`
// is free. Returns general.file_type. Throws Error on an unknown type name.
uint32_t plan_types(std::string_view type, std::span<TensorPlan> tensors);

}  // namespace easel
