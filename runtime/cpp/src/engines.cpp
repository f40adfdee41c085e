#include "engines.h"

#include <sys/stat.h>
#include <sys/utsname.h>

#include <algorithm>
#include <map>
#include <set>

#include "gamma/error.h"
#include "manifest.h"

namespace gamma_edge {
namespace {

using nlohmann::json;

constexpr int kSchema = 1;
constexpr std::uint64_t kMaxEngines = 16U << 20;
constexpr std::uint64_t kMaxPlan = 64ULL << 30;
const char* const kRebuild = "gamma-build makes it again";
const std::map<std::string, std::string> kLabels{{"tensorrt", "TensorRT"}, {"tensorrt-rtx", "TensorRT-RTX"}};

bool is_capability(const std::string& text) {
    const std::string plain = !text.empty() && text.back() == '+' ? text.substr(0, text.size() - 1) : text;
    const auto digit = [](char c) { return c >= '0' && c <= '9'; };
    const std::size_t dot = plain.find('.');
    return (dot == 1 || dot == 2) && plain.size() == dot + 2 && digit(plain.back()) &&
           std::all_of(plain.begin(), plain.begin() + static_cast<std::ptrdiff_t>(dot), digit);
}

std::vector<std::string> texts(Object& object, const std::string& key, bool (*allowed)(const std::string&)) {
    std::vector<std::string> found;
    for (const json& item : object.list(key)) {
        if (!item.is_string() || !allowed(item.get<std::string>())) object.fail(key + " is none that is known");
        found.push_back(item.get<std::string>());
    }
    return found;
}

EngineEntry read_entry(const json& data, const std::string& path) {
    Object object(data, path + ": an engine");
    EngineEntry entry;
    entry.file = object.file_name("file");
    entry.size = object.count("size");
    entry.sha256 = object.digest("sha256");
    entry.flavour = object.named("flavour", {"tensorrt", "tensorrt-rtx"});
    entry.version = object.text("version");
    entry.capabilities = texts(object, "compute_capabilities", is_capability);
    entry.graph = object.scene("graph");
    entry.scenes = texts(object, "scenes", is_scene);
    entry.precision = object.named("precision", {"fp32", "fp16", "bf16", "int8", "fp8"});
    entry.onnx_sha256 = object.digest("onnx_sha256");
    entry.weights_sha256 = object.digest("weights_sha256");
    const json& batch = object.list("batch");
    if (batch.size() != 3) object.fail("batch is least, optimal, most");
    for (std::size_t i = 0; i < 3; ++i) {
        if (!batch[i].is_number_integer() || batch[i] < 1 || batch[i] > 256) object.fail("batch is not 1 to 256");
        entry.batch[i] = batch[i].get<int>();
    }
    if (entry.batch[0] > entry.batch[1] || entry.batch[1] > entry.batch[2]) object.fail("batch does not rise");
    entry.log = object.file_name("log");
    entry.created = object.text("created");
    entry.os = object.text("os");
    for (const char* key : {"options", "seconds", "peak_rss", "proof", "warnings"}) object.skip(key);  // for people
    object.done();
    return entry;
}

/// 8.7 as 87.
std::string digits(const std::string& capability) {
    std::string plain;
    for (char c : capability)
        if (c != '.' && c != '+') plain += c;
    return plain;
}

std::string sm(const std::string& capability) {
    return "sm_" + digits(capability) + (capability.back() == '+' ? " and newer" : "");
}

/// Equal in every component that both state: JetPack says 10.3.0 where the wheel says 10.3.0.30.
bool same_version(const std::string& one, const std::string& other) {
    const std::string &shorter = one.size() < other.size() ? one : other,
                      &longer = one.size() < other.size() ? other : one;
    return longer.compare(0, shorter.size(), shorter) == 0 &&
           (longer.size() == shorter.size() || longer[shorter.size()] == '.');
}

bool covers(const std::string& target, const std::string& capability) {
    if (target.back() == '+') return std::stoi(digits(capability)) >= std::stoi(digits(target));
    return target == capability;
}

/// Why an engine does not run on a device; empty when it does.
std::string why_not(const EngineEntry& entry, const Device& device) {
    if (entry.os != device.os) return "built on " + entry.os + ", this is " + device.os;
    const bool covered = std::any_of(entry.capabilities.begin(), entry.capabilities.end(),
                                     [&](const std::string& target) { return covers(target, device.capability); });
    if (covered && same_version(entry.version, device.version)) return "";
    std::string targets;
    for (const std::string& target : entry.capabilities) targets += (targets.empty() ? "" : "+") + sm(target);
    return "built for " + kLabels.at(entry.flavour) + " " + entry.version + "/" + targets + ", here " + device.version +
           "/" + sm(device.capability);
}

/// Why an engine does not belong to the bundle's graphs any more; empty when it does.
std::string why_stale(const Bundle& bundle, const EngineEntry& entry) {
    bool named = false;
    for (const GraphEntry& graph : bundle.graphs()) {
        if (graph.name != entry.graph || graph.precision != entry.precision) continue;
        named = true;
        if (bundle.entry(graph.onnx).sha256 == entry.onnx_sha256 &&
            bundle.entry(graph.weights).sha256 == entry.weights_sha256)
            return "";
    }
    const std::string graph = entry.precision + " graph " + entry.graph;
    return named ? "stale: built from another " + graph + " than the bundle has now"
                 : "stale: the bundle has no " + graph + " any more";
}

}  // namespace

json to_json(const EngineEntry& entry) {
    return {{"file", entry.file},
            {"size", entry.size},
            {"sha256", entry.sha256},
            {"flavour", entry.flavour},
            {"version", entry.version},
            {"compute_capabilities", entry.capabilities},
            {"graph", entry.graph},
            {"scenes", entry.scenes},
            {"precision", entry.precision},
            {"onnx_sha256", entry.onnx_sha256},
            {"weights_sha256", entry.weights_sha256},
            {"batch", entry.batch},
            {"log", entry.log},
            {"created", entry.created},
            {"os", entry.os}};
}

Engines read_engines(const std::string& folder) {
    const std::string path = folder + "/" + kEngines;
    struct stat status{};
    Engines engines;
    if (lstat(path.c_str(), &status) != 0 && errno == ENOENT) {
        engines.data = {{"schema_version", kSchema}, {"engines", json::array()}, {"timing_caches", json::array()}};
        return engines;
    }
    engines.data = parse_json(read_plain(path, kMaxEngines), path);
    const auto schema = engines.data.find("schema_version");
    if (schema == engines.data.end() || !schema->is_number() || *schema < 1)
        throw integrity_error(path + ": no schema_version", "delete it and run gamma-build");
    if (*schema > kSchema) throw input_error(path + ": needs a newer gamma-edge", "update gamma-edge");
    Object top(engines.data, path);
    top.skip("schema_version");
    for (const json& entry : top.list("engines")) engines.entries.push_back(read_entry(entry, path));
    if (top.find("timing_caches"))
        for (const json& cache : top.list("timing_caches")) {
            Object object(cache, path + ": a timing cache");
            engines.caches.push_back({object.file_name("name"), object.count("size"), object.digest("sha256")});
            object.done();
        }
    top.done();
    return engines;
}

Bytes read_recorded(const std::string& folder, const FileEntry& entry) {
    const std::string path = folder + "/" + entry.name;
    Bytes content;
    try {
        content = read_plain(path, std::min(kMaxPlan, entry.size));
    } catch (const Error& error) {
        throw Error(error.exit(), error.what(), kRebuild);
    }
    if (content.size() != entry.size)
        throw integrity_error(path + ": " + std::to_string(content.size()) + " bytes, " + kEngines + " says " +
                                  std::to_string(entry.size),
                              kRebuild);
    const std::string found = sha256(content);
    if (found != entry.sha256)
        throw integrity_error(path + ": sha256 " + found.substr(0, 12) + "… does not match " +
                                  entry.sha256.substr(0, 12) + "… in " + kEngines + "; it was not loaded",
                              kRebuild);
    return content;
}

EngineEntry fitting_engine(const Bundle& bundle, const std::string& folder, const Device& device,
                           const std::string& scene, const std::string& precision) {
    const std::string where = folder.empty() ? bundle.folder() : folder;
    const Engines engines = read_engines(where);
    const EngineEntry* best = nullptr;
    std::string reasons;
    for (const EngineEntry& entry : engines.entries) {
        const bool scored = std::find(entry.scenes.begin(), entry.scenes.end(), scene) != entry.scenes.end();
        if (entry.flavour != device.flavour || !scored || (!precision.empty() && entry.precision != precision))
            continue;
        std::string reason = why_stale(bundle, entry);
        if (reason.empty()) reason = why_not(entry, device);
        if (!reason.empty())
            reasons += (reasons.empty() ? "" : "; ") + entry.file + ": " + reason;
        else if (!best || entry.scenes.size() < best->scenes.size() ||
                 (entry.scenes.size() == best->scenes.size() && entry.created > best->created))
            best = &entry;
    }
    if (best) return *best;
    const std::string what = kLabels.at(device.flavour) + " engine for scene " + scene +
                             (precision.empty() ? "" : " in " + precision) +
                             (reasons.empty() ? " was built" : " fits here: " + reasons);
    throw Error(Exit::environment, where + ": no " + what,
                "gamma-build-cpp " + bundle.folder() + (folder.empty() ? "" : " --engine-dir " + folder));
}

std::string host_os() {
    struct utsname name{};
    uname(&name);
    return std::string(name.sysname) + "-" + name.machine;
}

std::string plan_stem(const EngineEntry& entry) {
    std::string targets;
    for (const std::string& capability : entry.capabilities)
        targets += (targets.empty() ? "sm" : "_sm") + digits(capability);
    if (entry.capabilities == std::vector<std::string>{"8.0+"}) targets = "sm80up";
    return entry.graph + "-" + entry.precision + "-trt" + (entry.flavour == "tensorrt-rtx" ? "rtx" : "") +
           three_parts(entry.version) + "-" + targets + "-" + entry.sha256.substr(0, 8);
}

std::string cache_name(const Device& device) {
    return "timing-trt" + three_parts(device.version) + "-sm" + digits(device.capability) + ".cache";
}

std::string three_parts(const std::string& version) {
    std::size_t end = 0;
    for (int i = 0; i < 3 && end != std::string::npos; ++i) end = version.find('.', i == 0 ? 0 : end + 1);
    return version.substr(0, end);
}

}  // namespace gamma_edge
