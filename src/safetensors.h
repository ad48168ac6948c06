// safetensors.h: the weights of a Hugging Face folder: one mapped safetensors file, or a set of shards.
// Used by `easel convert` alone. Everything a header claims is checked when the file is opened: after that
// every tensor's bytes can be read without a further look.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mapping.h"
#include "quant.h"

namespace easel {

struct SafeTensor {
    std::string name;
    Type type = Type::F32;       // F32, F16 or BF16
    std::vector<int64_t> shape;  // row-major, last dimension contiguous; empty for a single number
    const uint8_t* data = nullptr;
    size_t bytes = 0;

    std::string shape_text() const;  // "[1408, 2816]"
};

class SafeTensors {
  public:
    // Of `folder`: model.safetensors, or the shards that model.safetensors.index.json names, or all
    // model*.safetensors. Throws Error with the file, the tensor, what was expected and what was found.
    static SafeTensors open_folder(const std::string& folder);
    static SafeTensors open_file(const std::string& path);

    // Null when absent.
    const SafeTensor* find(std::string_view name) const;
    const std::vector<SafeTensor>& tensors() const { return tensors_; }

  private:
    std::vector<SafeTensor> read_file(const std::string& path);
    void add(std::vector<SafeTensor> tensors, const std::string& path);

    std::vector<std::shared_ptr<const MappedFile>> files_;
    std::vector<SafeTensor> tensors_;
    std::map<std::string, size_t, std::less<>> tensor_idx_;
};

}  // namespace easel
