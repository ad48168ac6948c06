// mapping.h: what becomes of the program when a mapped file can no longer be read: one line and exit 1, not a
// crash. Used by whatever maps a file.
#pragma once
#include <cstddef>
#include <string>

namespace easel {

// Names the file that `bytes` bytes from p on are mapped from. From then on, an access there that fails (the
// file was cut short, its disk has gone) prints "easel: NAME: ..." to stderr and ends the program with exit
// code 1.
void watch_mapping(const void* p, size_t bytes, const std::string& name);
// Before the mapping ends.
void unwatch_mapping(const void* p);

}  // namespace easel
