// check.h: the one way a wrong file, flag or request is reported: by throwing Error. What a command does not
// handle itself reaches main(), which prints the one line and exits with 1.
#pragma once
#include <utility>

#ifndef __CUDACC__
#include <fmt/format.h>
#include <fmt/ranges.h>
#endif

#include "error.h"

namespace easel {

#ifdef __CUDACC__  // nvcc does not compile fmt's headers: messages of .cu files are plain texts
[[noreturn]] inline void fail(const char* text) {
    throw Error(text);
}
inline void require(bool ok, const char* text) {
    if (!ok) fail(text);
}
#else
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
    throw Error(fmt::format(text, std::forward<Args>(args)...));
}

// Throws Error with the formatted text unless `ok`.
template <class... Args>
void require(bool ok, fmt::format_string<Args...> text, Args&&... args) {
    if (!ok) fail(text, std::forward<Args>(args)...);
}
#endif

}  // namespace easel
