// whole_file.h: files that are read or written as one text, and files that one process alone may write. Used
// by the commands, by GgufWriter and by traces.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace easel {

// All of a file, or of a stream that messages call `name`. Error if it cannot be read, or has more than
// `most` bytes, as what never ends has.
constexpr size_t kMostBytes = INT32_MAX;
std::string read_file(const std::string& path, size_t most = kMostBytes);
std::string read_all(std::FILE* in, const std::string& name, size_t most = kMostBytes);

// The same of "-", which is stdin, or of a file. Where stdin is a terminal, stderr says so.
std::string read_input(const std::string& path);
std::string input_name(const std::string& path);  // of either, for messages
void tell_reading_stdin();

// Error if `path`, which is to be written, is one of the files `others`, which messages call `what`.
void require_other(const std::string& path, const std::vector<std::string>& others, const char* what);

// Whether the name is that of the file which is open: another process may have moved it since.
bool is_named(int fd, const std::string& path);

// Opens a file to write, empty. Error where another process is writing it: it stays locked until it is
// closed. Messages call it `name`. Links are followed where the path is the user's own, which is `name`, and
// not where a program has made it up.
std::FILE* open_alone(const std::string& path, const std::string& name);
// Gives what open_alone() opened as `part`, once it is on the disk, the name `path`, and closes it. Error if
// that fails; then the part is gone, and `path` as it was.
void move_into_place(std::FILE* file, const std::string& part, const std::string& path);

// The file that a write to `path` replaces, which a link may name; empty: none is, as `path` is a device or
// the like. Error if it is a folder or must not be written.
std::string replaced(const std::string& path);
// Error if write_file() could not write there; changes nothing.
void check_writable(const std::string& path);
// A regular file is replaced when all is written, to `path`.part; anything else, such as a device, is written
// to. Error if that fails; then the file is as it was.
void write_file(const std::string& path, std::string_view text);

}  // namespace easel
