// mapping.h: a mapped file, and what becomes of the program when it can no longer be read: one line and exit
// 1, not a crash. Used by gguf.cpp and safetensors.cpp.
#pragma once
#include <cstdint>
#include <span>
#include <string>

namespace easel {

// A regular file's bytes, for reading. An access that fails (the file was cut short, its disk has gone)
// prints "easel: PATH: ..." to stderr and ends the program with exit code 1.
class MappedFile {
  public:
    // Error if it is no regular file, or cannot be opened or mapped. kind: "GGUF", for that message.
    MappedFile(const std::string& path, const char* kind);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::span<const uint8_t> bytes() const { return bytes_; }

  private:
    std::span<const uint8_t> bytes_;
};

}  // namespace easel
