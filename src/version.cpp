// version.cpp: what this program was built from, by what and for what: `easel --version`. The Makefile
// compiles it anew when one of these facts changes.
#include "backend.h"
#include "commands.h"

#ifndef EASEL_VERSION
#define EASEL_VERSION "unknown"
#endif
#ifndef EASEL_COMMIT
#define EASEL_COMMIT "unknown"
#endif
#ifndef EASEL_CUDA_COMPILER
#define EASEL_CUDA_COMPILER "no nvcc"
#endif

namespace easel {

namespace {

#ifdef __clang__
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "g++ " __VERSION__;
#endif

constexpr const char* kProcessor =
#if defined(__AVX512F__)
    "x86-64 with AVX-512";
#elif defined(__AVX2__)
    "x86-64 with AVX2";
#elif defined(__x86_64__)
    "x86-64";
#elif defined(__aarch64__)
    "aarch64";
#else
    "an unknown processor";
#endif

}  // namespace

std::string version_number() {
    return EASEL_VERSION;
}

std::string version_commit() {
    return EASEL_COMMIT;
}

std::string version_text() {
    return std::string("easel ") + EASEL_VERSION + " (commit " EASEL_COMMIT ")\nruns on: " + backends() +
           "; CPU code for " + kProcessor + "\nbuilt by: " + kCompiler + ", " EASEL_CUDA_COMPILER;
}

}  // namespace easel
