// Engines for a bundle: choose graphs, check them, build all plans, then publish them together.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engines.h"
#include "gamma/error.h"
#include "manifest.h"
#include "memory.h"
#include "plan.h"

namespace gamma_edge {
namespace {

using nlohmann::json;

constexpr std::uint64_t kSlack = 64U << 20;  // bytes; kernels and log beside the weights
constexpr std::size_t kLongest = 500;        // characters of a warning in engines.json
const char* const kAmpereAndNewer = "8.0+";  // what TensorRT-RTX compiles for when no compute capability is named

void check_options(const BuildOptions& options) {
    if (options.workspace_mib && *options.workspace_mib < 1) throw Error(Exit::usage, "--workspace-mib is below 1");
    if (options.optimization_level && (*options.optimization_level < 0 || *options.optimization_level > 5))
        throw Error(Exit::usage, "--optimization-level is not 0 to 5");
    if (!(options.lock_timeout >= 0)) throw Error(Exit::usage, "--lock-timeout is below 0 seconds");
}

bool scores(const GraphEntry& graph, const std::string& scene) {
    return std::find(graph.scenes.begin(), graph.scenes.end(), scene) != graph.scenes.end();
}

/// TensorRT-RTX fuses the Attention operator best; TensorRT before 10.14 does not know it.
const GraphEntry* preferred(const std::vector<const GraphEntry*>& graphs) {
    const std::string wanted = engine_flavour() == "tensorrt-rtx" ? "op" : "decomposed";
    return *std::min_element(graphs.begin(), graphs.end(), [&](const GraphEntry* one, const GraphEntry* other) {
        const bool first = one->attention != wanted, second = other->attention != wanted;
        return std::pair(one->scenes.size(), first) < std::pair(other->scenes.size(), second);
    });
}

/// The named scene's graph, else the joint one, else the only one; of one precision.
const GraphEntry* choose(const std::vector<const GraphEntry*>& graphs, const std::string& scene,
                         const std::string& precision) {
    std::vector<const GraphEntry*> fitting;
    std::string names;
    for (const GraphEntry* graph : graphs) {
        if (graph->precision != precision) continue;
        const bool fits = scene.empty() ? graph->name == "joint" : scores(*graph, scene);
        if (fits) fitting.push_back(graph);
    }
    if (!fitting.empty()) return preferred(fitting);
    if (!scene.empty()) return nullptr;
    for (const GraphEntry* graph : graphs) {
        if (graph->precision != precision) continue;
        if (!fitting.empty() && graph->name != fitting.front()->name)
            throw Error(Exit::usage, "this bundle has several " + precision + " graphs and no joint one",
                        "--scene " + graph->name);
        fitting.push_back(graph);
    }
    return preferred(fitting);
}

/// One graph for each precision.
/// Throws Error: input (no graph for that scene or precision), usage (several graphs, none joint, no scene named).
std::vector<const GraphEntry*> select_graphs(const Bundle& bundle, const BuildOptions& options) {
    std::vector<const GraphEntry*> every, chosen;
    std::vector<std::string> precisions;
    for (const GraphEntry& graph : bundle.graphs()) {
        if (graph.target == "cpu" || (!options.precision.empty() && graph.precision != options.precision)) continue;
        every.push_back(&graph);
        if (std::find(precisions.begin(), precisions.end(), graph.precision) == precisions.end())
            precisions.push_back(graph.precision);
    }
    for (const std::string& precision : precisions)
        if (const GraphEntry* graph = choose(every, options.scene, precision)) chosen.push_back(graph);
    if (chosen.empty())
        throw input_error(bundle.folder() + ": no graph" +
                              (options.scene.empty() ? "" : " for scene " + options.scene) +
                              (options.precision.empty() ? "" : " in " + options.precision),
                          "gamma-doctor lists what the bundle has");
    return chosen;
}

std::string now() {
    const std::time_t seconds = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&seconds, &parts);
    char text[40];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &parts);
    return text;
}

/// The timing cache on its way through a run of builds: each starts from what the one before left.
struct Timings {
    std::string name, state = "none", warning;
    std::optional<Bytes> content;
    bool changed = false;

    Timings(const Engines& engines, const std::string& folder, const Device& device, bool wanted) {
        if (device.flavour == "tensorrt-rtx") return;  // it has none: the calls exist and do nothing
        state = wanted ? "absent" : "off";
        if (!wanted) return;
        name = cache_name(device);
        content = Bytes();
        for (const FileEntry& entry : engines.caches) {
            if (entry.name != name) continue;
            try {  // one that is not exactly what engines.json records is never given to TensorRT
                content = read_recorded(folder, entry);
                state = "usable";
            } catch (const Error& error) {
                state = "ignored";
                warning = std::string("timing cache not used: ") + error.what();
            }
        }
    }

    json describe() const {
        const bool usable = state == "usable" && content;
        return {{"state", state}, {"sha256", usable ? json(sha256(*content)) : json(nullptr)}};
    }
};

class Run {
public:
    Run(const Bundle& bundle, const BuildOptions& options)
        : bundle_(bundle),
          options_(options),
          folder_(options.engine_dir.empty() ? bundle.folder() : options.engine_dir),
          rtx_(engine_flavour() == "tensorrt-rtx"),
          device_(rtx_ ? Device{engine_flavour(), engine_version(), kAmpereAndNewer, host_os()} : this_device()),
          graphs_(select_graphs(bundle, options)) {}

    ~Run() {
        for (const Made& made : made_) unlink(made.plan.c_str());
    }
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;

    std::vector<EngineEntry> build() {
        check_fp8();
        std::uint64_t needed = 0;
        for (const GraphEntry* graph : graphs_) needed += bundle_.entry(graph->weights).size + kSlack;
        prepare_folder(folder_, needed);
        const Engines earlier = read_engines(folder_);
        Timings timings(earlier, folder_, device_, options_.timing_cache);
        for (const GraphEntry* graph : graphs_) check_memory(*graph, earlier);
        for (const GraphEntry* graph : graphs_) build_one(*graph, earlier, timings);
        std::pair<std::string, Bytes> cache;
        if (timings.changed) cache = {timings.name, *timings.content};
        publish(folder_, made_, cache, options_.lock_timeout);
        std::vector<EngineEntry> entries;
        for (const Made& made : made_) entries.push_back(made.entry);
        return entries;
    }

private:
    /// TensorRT-RTX would compile for Ampere and newer without a word, and Ampere could not run it.
    void check_fp8() const {
        const bool old = rtx_ || std::stoi(device_.capability) < 9;
        for (const GraphEntry* graph : graphs_)
            if (graph->precision == "fp8" && old && device_.capability != "8.9")
                throw Error(Exit::usage, "fp8 needs compute capability 8.9 or newer, not " + device_.capability,
                            rtx_ ? "gamma-build --compute-capability 8.9 in Python, or another --precision"
                                 : "--precision of another graph");
    }

    NeededMemory needed(const GraphEntry& graph, const Engines& earlier) const {
        std::optional<std::uint64_t> peak;
        const auto low_memory = [](const json& entry) {
            const json options = entry.value("options", json());
            return options.is_object() && options.value("low_memory", json()) == true;
        };
        for (const json& entry : earlier.data.at("engines"))
            if (entry.at("graph") == graph.name && entry.at("precision") == graph.precision &&
                entry.at("flavour") == device_.flavour && entry.value("peak_rss", json()).is_number_unsigned() &&
                low_memory(entry) == options_.low_memory)
                peak = std::max(peak.value_or(0), entry.at("peak_rss").get<std::uint64_t>());
        return predict(device_.flavour, bundle_.entry(graph.weights).size, peak);
    }

    /// Refused before the first build; the graphs are built one after the other.
    void check_memory(const GraphEntry& graph, const Engines& earlier) {
        const std::string sentence =
            too_large(graph.name + " " + graph.precision, needed(graph, earlier), free_memory(free_gpu()));
        warnings_.push_back(sentence);
        if (!sentence.empty() && !options_.force)
            throw Error(Exit::environment, sentence,
                        std::string(options_.low_memory ? "" : "--low-memory, ") +
                            "close other programs (on a Jetson the desktop: sudo systemctl isolate multi-user.target), "
                            "add swap, or --force to try it all the same");
    }

    void build_one(const GraphEntry& graph, const Engines& earlier, Timings& timings) {
        PlanSpec spec;
        spec.graph = &graph;
        spec.onnx = bundle_.graph_file(graph);
        spec.low_memory = options_.low_memory;
        spec.optimization_level = options_.optimization_level;
        spec.workspace_mib = options_.workspace_mib;
        if (!spec.workspace_mib)
            spec.workspace_mib = workspace(needed(graph, earlier), free_memory(free_gpu()), options_.low_memory);
        spec.timing_cache = timings.content;
        const auto start = std::chrono::steady_clock::now();
        if (options_.progress)
            spec.progress = [&](const std::string& phase, double fraction) {
                const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
                return options_.progress({graph.name, graph.precision, phase, fraction, elapsed.count()});
            };
        Made made;
        made.plan = spec.plan = temporary_in(folder_);
        made_.push_back(made);
        std::ofstream("/proc/self/clear_refs") << "5";  // the peak of resident memory starts anew
        const PlanResult done = compile_plan(spec);
        describe(made_.back(), spec, done, timings);
        if (timings.content && !done.timing_cache.empty()) {
            timings.content = done.timing_cache;
            timings.state = "usable";
            timings.changed = true;
        }
    }

    void describe(Made& made, const PlanSpec& spec, const PlanResult& done, const Timings& timings) {
        const GraphEntry& graph = *spec.graph;
        struct stat status{};
        if (stat(made.plan.c_str(), &status) != 0) throw Error(Exit::output, made.plan + ": the plan has gone");
        const auto [size, digest] = hash_plain(made.plan, static_cast<std::uint64_t>(status.st_size));
        made.log = done.log;
        made.entry = {"",
                      digest,
                      size,
                      device_.flavour,
                      device_.version,
                      {device_.capability},
                      graph.name,
                      graph.precision,
                      graph.scenes,
                      bundle_.entry(graph.onnx).sha256,
                      bundle_.entry(graph.weights).sha256,
                      graph.batch,
                      "",
                      now(),
                      device_.os};
        EngineEntry& entry = made.entry;
        entry.file = plan_stem(entry) + ".plan";
        entry.log = plan_stem(entry) + ".log";
        const auto optional = [](const auto& value) { return value ? json(*value) : json(nullptr); };
        json cache = timings.describe(), warnings = json::array();
        if (!done.cache_refused.empty()) cache = {{"state", "ignored"}, {"sha256", nullptr}};
        for (const std::string& text : {timings.warning, done.cache_refused, warnings_[made_.size() - 1]})
            if (!text.empty()) warnings.push_back(printable(text).substr(0, kLongest));
        made.record = to_json(entry);
        made.record.update({{"options",
                             {{"strongly_typed", true},
                              {"tf32", false},
                              {"profiling_verbosity", "DETAILED"},
                              {"workspace_mib", optional(spec.workspace_mib)},
                              {"optimization_level", optional(options_.optimization_level)},
                              {"low_memory", options_.low_memory},
                              {"timing_cache", cache},
                              {"attention", graph.attention},
                              {"default_targets", rtx_},
                              {"builder", "C++"}}},
                            {"seconds", static_cast<double>(static_cast<std::int64_t>(done.seconds * 1e3)) / 1e3},
                            {"peak_rss", optional(peak_resident())},
                            {"proof", {{"network", done.products}}},
                            {"warnings", warnings}});
    }

    std::optional<std::uint64_t> free_gpu() const { return rtx_ ? std::nullopt : free_gpu_memory(); }

    const Bundle& bundle_;
    const BuildOptions& options_;
    std::string folder_;
    bool rtx_;
    Device device_;
    std::vector<const GraphEntry*> graphs_;
    std::vector<std::string> warnings_;  // of each graph, or empty
    std::vector<Made> made_;
};

}  // namespace

std::vector<EngineEntry> build_engines(const Bundle& bundle, const BuildOptions& options) {
    check_options(options);
    if (engine_flavour().empty())
        throw Error(Exit::environment, "this gamma_runtime was built without TensorRT",
                    "cmake -DTensorRT_ROOT=… (JetPack has it in /usr), or build the engine with Python's gamma-build");
    return Run(bundle, options).build();
}

}  // namespace gamma_edge
