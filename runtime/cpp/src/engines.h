// engines.json, and the files that it lists.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "gamma/bytes.h"
#include "gamma/engine.h"

namespace gamma_edge {

constexpr const char* kEngines = "engines.json";

/// `data` is the whole file; `entries` has what this runtime needs of each engine, in the same order.
struct Engines {
    nlohmann::json data;
    std::vector<EngineEntry> entries;
    std::vector<FileEntry> caches;
};

/// The engines built so far; none when engines.json does not exist.
/// Throws Error: input (a newer schema), integrity (broken).
Engines read_engines(const std::string& folder);

/// A plan's or a timing cache's bytes, after size and SHA-256 of these very bytes were compared.
/// Throws Error (integrity): missing, changed, or not a plain file.
Bytes read_recorded(const std::string& folder, const FileEntry& entry);

/// `joint-fp16-trt10.3.0-sm87-1f3c9a2e`; the same content always has the same name.
std::string plan_stem(const EngineEntry& entry);

/// `timing-trt10.3.0-sm87.cache`: one for each TensorRT version and GPU, since neither takes another's.
std::string cache_name(const Device& device);

/// 10.3.0.30 as 10.3.0.
std::string three_parts(const std::string& version);

/// Free memory of the first GPU in bytes; nothing without one.
std::optional<std::uint64_t> free_gpu_memory();

/// `Linux-x86_64`; plans do not cross them.
std::string host_os();

/// An engine that was built: where its plan lies for now, its log, and what engines.json will say of it.
struct Made {
    std::string plan, log;
    EngineEntry entry;
    nlohmann::json record;
};

/// Make sure that engines can be written there, before an hour of building; `needed` is in bytes.
/// Throws Error (output): not a folder, not writable, or too little space.
void prepare_folder(const std::string& folder, std::uint64_t needed);

/// A new empty file of ours in a folder; who makes it removes it or renames it away.
/// Throws Error (output).
std::string temporary_in(const std::string& folder);

/// Give every plan its name, then replace engines.json, then remove what nothing refers to any more; under the lock.
/// `cache` is the name and content of a timing cache to keep, or empty.
/// Throws Error (output): disk, permission or lock; engines.json and its plans stay as they were.
void publish(const std::string& folder, const std::vector<Made>& made, const std::pair<std::string, Bytes>& cache,
             double lock_timeout);

}  // namespace gamma_edge
