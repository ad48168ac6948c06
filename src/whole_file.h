// whole_file.h: files that are read or written as one text. Used by the commands.
#pragma once
#include <cstdio>
#include <string>
#include <string_view>

namespace easel {

// All of a file, or of a stream that messages call `name`. Error if it cannot be read.
std::string read_file(const std::string& path);
std::string read_all(std::FILE* in, const std::string& name);

// Error if write_file() could not write there; changes nothing.
void check_writable(const std::string& path);
// A regular file is replaced when all is written, to `path`.part; anything else, such as a device, is written
// to. Error if that fails; then the file is as it was.
void write_file(const std::string& path, std::string_view text);

}  // namespace easel
