// whole_file.h: files that are read or written as one text, and files that one process alone may write. Used
// by the commands, by GgufWriter and by traces.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace easel {

constexpr size_t kMostBytes = INT32_MAX;
// All of a file, or of a stream that messages call `name`. Error if it cannot be read, or has more than
// `most` bytes: it may be endless.
std::string read_file(const std::string& path, size_t most = kMostBytes);
std::string read_all(std::FILE* in, const std::string& name, size_t most = kMostBytes);

// All of a file, or of stdin for "-"; if that is a terminal, stderr says that it is being read.
std::string read_input(const std::string& path);
std::string input_name(const std::string& path);  // of either, for messages
void tell_reading_stdin();

// Error if `path`, which is to be written, is one of the files `others`, which messages call `what`.
void require_other(const std::string& path, const std::vector<std::string>& others, const char* what);

// Whether `path` still names the file that is open as fd: another process may have moved it.
bool is_named(int fd, const std::string& path);

// Opens a file for writing, emptied, and locked until it is closed. Error if another process has it locked.
// Messages call it `name`. Symbolic links are followed only if `path` is `name`, the user's own choice, and
// not made up from it.
std::FILE* open_alone(const std::string& path, const std::string& name);
// Syncs what open_alone() opened as `part` to the disk, renames it to `path` and closes it. Error if that
// fails; then the part is removed, and `path` as it was.
void move_into_place(std::FILE* file, const std::string& part, const std::string& path);

// The file that write_file(path) replaces, symbolic links followed; empty: none, as `path` is a device or the
// like. Error if it is a folder or must not be written.
std::string replaced(const std::string& path);
// Error if write_file() could not write there; changes nothing.
void check_writable(const std::string& path);
// Replaces a regular file once all is written to `path`.part; anything else, such as a device, is written in
// place. Error if that fails; a regular file is then as it was.
void write_file(const std::string& path, std::string_view text);

}  // namespace easel
