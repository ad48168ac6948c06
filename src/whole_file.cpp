// whole_file.cpp: see whole_file.h.
#include "whole_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>

#include "check.h"
#include "text.h"

namespace easel {

static void require_written(bool ok, const std::string& path, int problem) {
    require(ok, "{}: cannot be written: {}", path, std::strerror(problem));
}

std::string read_all(std::FILE* in, const std::string& name, size_t most) {
    std::string text;
    char buffer[1 << 16];
    for (size_t n = 1; n > 0 && !std::feof(in);) {  // a terminal would go on after its Ctrl-D
        text.append(buffer, n = std::fread(buffer, 1, sizeof buffer, in));
        require(text.size() <= most, "{}: is longer than {} bytes, the most that is read here", name, most);
    }
    require(!std::ferror(in), "{}: cannot be read: {}", name, std::strerror(errno));
    return text;
}

std::string read_file(const std::string& path, size_t most) {
    std::FILE* in = std::fopen(path.c_str(), "rb");
    require(in, "{}: cannot be opened: {}", path, std::strerror(errno));
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> closer(in, std::fclose);
    return read_all(in, path, most);
}

void tell_reading_stdin() {
    if (isatty(STDIN_FILENO)) tell("easel: reading stdin, Ctrl-D ends it\n");
}

std::string input_name(const std::string& path) {
    return path == "-" ? "stdin" : path;
}

std::string read_input(const std::string& path) {
    if (path != "-") return read_file(path);
    tell_reading_stdin();
    return read_all(stdin, input_name(path));
}

void require_other(const std::string& path, const std::vector<std::string>& others, const char* what) {
    std::error_code absent;
    for (const std::string& other : others)
        require(!std::filesystem::equivalent(path, other, absent),
                "{}: is {}, expected another file to write to", path, what);
}

bool is_named(int fd, const std::string& path) {
    struct stat opened, named;
    return fstat(fd, &opened) == 0 && stat(path.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
           opened.st_ino == named.st_ino;
}

std::FILE* open_alone(const std::string& path, const std::string& name) {
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | (path == name ? 0 : O_NOFOLLOW), 0666);
    require_written(fd >= 0, errno == ELOOP ? path : name, errno);
    struct stat status;
    std::FILE* file = nullptr;
    bool taken = false;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode)) {  // devices need no lock
        // Locks fail for other reasons too: not every file system has them.
        taken = (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) || !is_named(fd, path);
        if (!taken && ftruncate(fd, 0) == 0) file = fdopen(fd, "wb");
    } else {
        file = fdopen(fd, "wb");
    }
    const int problem = errno;
    if (!file) close(fd);
    require(!taken, "{}: is being written by another easel process", name);
    require_written(file, name, problem);
    return file;
}

void move_into_place(std::FILE* file, const std::string& part, const std::string& path) {
    // The file keeps its mode: one that was its owner's alone stays so.
    struct stat there;
    if (stat(path.c_str(), &there) == 0) (void)!fchmod(fileno(file), there.st_mode & 0777);
    // The data must be on the disk before the name: else a power cut could leave a finished name on a torn
    // file.
    bool ok = std::fflush(file) == 0 && (fsync(fileno(file)) == 0 || errno == EINVAL || errno == ENOTSUP);
    ok = ok && std::rename(part.c_str(), path.c_str()) == 0;  // before the lock goes
    const int problem = errno;
    if (!ok) std::remove(part.c_str());
    std::fclose(file);
    require_written(ok, path, problem);
}

std::string replaced(const std::string& path) {
    struct stat there;
    if (stat(path.c_str(), &there) != 0) {
        const bool absent = errno == ENOENT;
        std::error_code no_link;  // not set: `path` is a symbolic link to a file that does not exist yet
        const std::filesystem::path to = std::filesystem::read_symlink(path, no_link);
        return absent && !no_link ? replaced(std::filesystem::path(path).parent_path() / to) : path;
    }
    require_written(!S_ISDIR(there.st_mode), path, EISDIR);
    const int found = access(path.c_str(), W_OK);
    require_written(found == 0, path, errno);
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
    std::FILE* out = open_alone(part, path);
    const bool ok = std::fwrite(text.data(), 1, text.size(), out) == text.size() && std::fflush(out) == 0;
    const int problem = errno;
    if (ok && !file.empty()) return move_into_place(out, part, file);
    if (!file.empty()) std::remove(part.c_str());
    std::fclose(out);
    require_written(ok, path, problem);
}

}  // namespace easel
