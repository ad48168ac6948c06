// whole_file.cpp: see whole_file.h.
#include "whole_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>

#include "check.h"

namespace easel {

static void require_written(bool ok, const std::string& path, int problem) {
    require(ok, "{}: cannot be written: {}", path, std::strerror(problem));
}

std::string read_all(std::FILE* in, const std::string& name) {
    std::string text;
    char buffer[1 << 16];
    for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, in)) > 0;) text.append(buffer, n);
    require(!std::ferror(in), "{}: cannot be read: {}", name, std::strerror(errno));
    return text;
}

std::string read_file(const std::string& path) {
    std::FILE* in = std::fopen(path.c_str(), "rb");
    require(in, "{}: cannot be opened: {}", path, std::strerror(errno));
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> closer(in, std::fclose);
    return read_all(in, path);
}

// The file that is replaced, which a link may name; empty: none is, but `path` is written to.
static std::string replaced(const std::string& path) {
    struct stat there;
    if (stat(path.c_str(), &there) != 0) return path;
    require_written(!S_ISDIR(there.st_mode), path, EISDIR);
    require_written(access(path.c_str(), W_OK) == 0, path, errno);
    return S_ISREG(there.st_mode) ? std::filesystem::canonical(path).string() : "";
}

void check_writable(const std::string& path) {
    const std::string file = replaced(path);
    if (file.empty()) return;
    const std::string folder = std::filesystem::path(file).parent_path().string();
    const int found = access(folder.empty() ? "." : folder.c_str(), W_OK | X_OK);
    require_written(found == 0, path, errno);
}

void write_file(const std::string& path, std::string_view text) {
    const std::string file = replaced(path), part = file.empty() ? path : file + ".part";
    std::FILE* out = std::fopen(part.c_str(), "wb");
    require_written(out, path, errno);
    bool ok = std::fwrite(text.data(), 1, text.size(), out) == text.size();
    ok &= std::fflush(out) == 0;
    int problem = errno;
    ok &= std::fclose(out) == 0;
    if (ok && !file.empty() && std::rename(part.c_str(), file.c_str()) != 0) {
        ok = false;
        problem = errno;
    }
    if (!ok && !file.empty()) std::remove(part.c_str());
    require_written(ok, path, problem);
}

}  // namespace easel
