// Plans on disk: named by content, listed in engines.json, which is replaced last and under the lock that
// gamma_runtime.files takes too.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <regex>
#include <set>
#include <thread>

#include "engines.h"
#include "gamma/error.h"

namespace gamma_edge {
namespace {

using nlohmann::json;

const char* const kHint = "check space and permissions, or name another folder with --engine-dir";
const std::string kTemporary = ".gamma-tmp-";
constexpr double kOld = 3600;  // seconds; a temporary file whose process is gone

[[noreturn]] void fail(const std::string& path, const std::string& what) {
    throw Error(Exit::output, path + ": " + what + " (" + std::strerror(errno) + ")", kHint);
}

/// An open file or folder.
class Handle {
public:
    Handle(const std::string& path, int flags) : number_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
    ~Handle() {
        if (number_ >= 0) close(number_);
    }
    Handle(Handle&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    Handle& operator=(Handle&&) = delete;
    int number() const { return number_; }

private:
    int number_;
};

void sync(const std::string& path, int flags) {
    const Handle handle(path, flags);
    if (handle.number() < 0 || fsync(handle.number()) != 0) fail(path, "cannot be written to the disk");
}

/// Held until the end; the file stays.
Handle lock(const std::string& folder, double timeout) {
    const std::string path = folder + "/.lock";
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout);
    for (;;) {
        Handle handle(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK);
        if (handle.number() < 0) fail(path, "cannot be locked");
        struct stat ours{}, there{};
        // Its last holder may have removed it together with a folder that came to nothing.
        if (flock(handle.number(), LOCK_EX | LOCK_NB) == 0 && fstat(handle.number(), &ours) == 0 &&
            lstat(path.c_str(), &there) == 0 && ours.st_ino == there.st_ino && ours.st_dev == there.st_dev)
            return handle;
        if (std::chrono::steady_clock::now() >= deadline)
            throw Error(Exit::output, folder + ": another process is writing there", "wait for it, or --lock-timeout");
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
}

std::vector<std::string> names_in(const std::string& folder) {
    std::vector<std::string> names;
    DIR* const open = opendir(folder.c_str());
    if (!open) fail(folder, "cannot be read");
    while (const struct dirent* item = readdir(open)) names.emplace_back(item->d_name);
    closedir(open);
    return names;
}

void rename_to(const std::string& from, const std::string& to) {
    if (rename(from.c_str(), to.c_str()) != 0) fail(to, "cannot be written");
}

/// Write, fsync, rename: the old content or the new, never a mix.
void write_atomically(const std::string& folder, const std::string& name, const char* data, std::size_t size) {
    const std::string temporary = temporary_in(folder);
    try {
        {
            const Handle handle(temporary, O_WRONLY | O_TRUNC);
            if (handle.number() < 0) fail(temporary, "cannot be written");
            for (std::size_t written = 0; written < size;) {
                const ssize_t count = write(handle.number(), data + written, size - written);
                if (count < 0 && errno == EINTR) continue;
                if (count <= 0) fail(folder + "/" + name, "cannot be written");
                written += static_cast<std::size_t>(count);
            }
            if (fsync(handle.number()) != 0) fail(folder + "/" + name, "cannot be written");
        }
        rename_to(temporary, folder + "/" + name);
    } catch (...) {
        unlink(temporary.c_str());
        throw;
    }
    sync(folder, O_RDONLY);
}

/// Two engines with the same key serve the same purpose: the newer one replaces the older.
std::string key(const json& entry) {
    json parts = json::array();
    for (const char* name : {"graph", "precision", "flavour", "version", "compute_capabilities"})
        parts.push_back(entry.at(name));
    return parts.dump();
}

/// Name of the file in which TensorRT-RTX's kernels for a plan are kept; engines.json does not record it.
std::string kernels(const std::string& plan) { return plan.substr(0, plan.size() - 4) + "rtxcache"; }

std::set<std::string> names_of(const json& engines) {
    std::set<std::string> names;
    for (const json& entry : engines.at("engines")) {
        const auto plan = entry.at("file").get<std::string>();
        names.insert({plan, entry.at("log").get<std::string>(), kernels(plan)});
    }
    return names;
}

/// Plans, logs and kernels of ours that engines.json does not list: replaced, or left by a crash.
void sweep(const std::string& folder, const std::set<std::string>& listed) {
    static const std::regex ours(
        "[a-z0-9_-]+-(fp32|fp16|bf16|int8|fp8)-trt(rtx)?[0-9.]+-sm[a-z0-9_]+-[0-9a-f]{8}\\.(plan|log|rtxcache)");
    for (const std::string& name : names_in(folder))
        if (!listed.count(name) && std::regex_match(name, ours)) unlink((folder + "/" + name).c_str());
}

void sweep_temporaries(const std::string& folder) {
    for (const std::string& name : names_in(folder)) {
        if (name.compare(0, kTemporary.size(), kTemporary) != 0) continue;
        const std::string path = folder + "/" + name;
        const std::string process = name.substr(kTemporary.size(), name.find('-', kTemporary.size()) - 11);
        struct stat status{}, living{};
        if (lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
        if (difftime(time(nullptr), status.st_mtime) >= kOld && stat(("/proc/" + process).c_str(), &living) != 0)
            unlink(path.c_str());
    }
}

}  // namespace

std::string temporary_in(const std::string& folder) {
    std::string path = folder + "/" + kTemporary + std::to_string(getpid()) + "-XXXXXX";
    const int number = mkstemp(path.data());
    if (number < 0) fail(folder, "not writable");
    fchmod(number, 0644);
    close(number);
    return path;
}

void prepare_folder(const std::string& folder, std::uint64_t needed) {
    if (mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) fail(folder, "engines cannot be written there");
    sweep_temporaries(folder);
    struct statvfs space{};
    if (statvfs(folder.c_str(), &space) != 0) fail(folder, "engines cannot be written there");
    if (access(folder.c_str(), W_OK | X_OK) != 0) fail(folder, "no permission to write engines there");
    const std::uint64_t free = static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize;
    if (free < needed)
        throw Error(Exit::output,
                    folder + ": " + std::to_string(free >> 20) + " MiB free, the engines need about " +
                        std::to_string(needed >> 20) + " MiB",
                    "name another folder with --engine-dir");
    read_engines(folder);  // a broken one is reported before the hour, not after it
}

void publish(const std::string& folder, const std::vector<Made>& made, const std::pair<std::string, Bytes>& cache,
             double lock_timeout) {
    const Handle held = lock(folder, lock_timeout);
    Engines old = read_engines(folder);
    json engines = old.data, kept = json::array();
    std::set<std::string> keys;
    for (const Made& one : made) keys.insert(key(one.record));
    for (const json& entry : engines.at("engines"))
        if (!keys.count(key(entry))) kept.push_back(entry);
    for (const Made& one : made) kept.push_back(one.record);
    engines["engines"] = kept;
    try {
        for (const Made& one : made) {
            sync(one.plan, O_RDONLY);
            rename_to(one.plan, folder + "/" + one.entry.file);
            write_atomically(folder, one.entry.log, one.log.data(), one.log.size());
        }
        if (!cache.first.empty()) {
            const Bytes& content = cache.second;
            write_atomically(folder, cache.first, reinterpret_cast<const char*>(content.data()), content.size());
            json caches = json::array();
            for (const json& entry : engines.value("timing_caches", json::array()))
                if (entry.at("name") != cache.first) caches.push_back(entry);
            caches.push_back({{"name", cache.first}, {"size", content.size()}, {"sha256", sha256(content)}});
            engines["timing_caches"] = caches;
        }
        const std::string text = engines.dump(2) + "\n";
        write_atomically(folder, kEngines, text.data(), text.size());
    } catch (...) {
        // engines.json may be the new one already: its folder could not be synced.
        const std::set<std::string> listed = names_of(read_engines(folder).data);
        for (const Made& one : made)
            for (const std::string& name : {one.entry.file, one.entry.log})
                if (!listed.count(name)) unlink((folder + "/" + name).c_str());
        throw;
    }
    sweep(folder, names_of(engines));
}

}  // namespace gamma_edge
