// files.h: what tests of file readers and writers share: a folder of their own, and the text of an Error.
#pragma once
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "catch.h"
#include "check.h"
#include "gguf.h"

namespace easel {

// A folder of the test's own that goes with the object.
class TempDir {
  public:
    TempDir() {
        std::string pattern = (std::filesystem::temp_directory_path() / "easel-test-XXXXXX").string();
        path_ = mkdtemp(pattern.data());
    }
    ~TempDir() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;

    std::string path(const std::string& name) const { return path_ + "/" + name; }
    const std::string& path() const { return path_; }
    std::string operator/(const std::string& name) const { return path(name); }
    std::string write(const std::string& name, std::string_view bytes) const {
        std::ofstream(path(name), std::ios::binary) << bytes;
        return path(name);
    }

  private:
    std::string path_;
};

// The message of the Error that f throws; "" when it throws none.
template <class F>
std::string error_of(F f) {
    try {
        f();
    } catch (const Error& e) {
        return e.what();
    }
    return "";
}

// Each word must be in the text.
inline void check_has(const std::string& text, std::initializer_list<const char*> words) {
    for (const char* word : words) {
        INFO("\"" << text << "\" should have \"" << word << "\"");
        CHECK(text.find(word) != std::string::npos);
    }
}

// All of a tensor, as float [n_rows, ne0].
inline std::vector<float> values_of(const Tensor& t) {
    std::vector<float> out(t.n_values());
    const int64_t bytes = row_bytes(t.type, t.ne[0]);
    for (int64_t r = 0; r < t.n_rows(); r++) to_float(t.type, t.data + r * bytes, &out[r * t.ne[0]], t.ne[0]);
    return out;
}

}  // namespace easel
