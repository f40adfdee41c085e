// gamma-build-cpp: TensorRT engines for a bundle on this device, without Python.
#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "command.h"
#include "gamma/engine.h"

namespace {

using namespace gamma_edge;

const char* const kUsage =
    "gamma-build-cpp BUNDLE [--scene NAME] [--precision NAME] [--engine-dir FOLDER] [--workspace-mib N]\n"
    "                [--optimization-level N] [--low-memory] [--no-timing-cache] [--force] [--lock-timeout N]\n"
    "                [--json] [--quiet]\n"
    "\n"
    "Builds TensorRT engines for this device and lists them in engines.json, as gamma-build does.\n"
    "  --scene NAME            the engine of this scene's own graph, not of the joint graph\n"
    "  --precision NAME        fp32, fp16, bf16, int8 or fp8; an engine for each when left out\n"
    "  --engine-dir FOLDER     for engines, where the bundle is read-only\n"
    "  --workspace-mib N       limit of TensorRT's scratch memory; left out, half of what is free on a Jetson\n"
    "  --optimization-level N  0 to 5, how long TensorRT searches; left out, its own (3)\n"
    "  --low-memory            for small boards: a lower peak, a less thorough search\n"
    "  --no-timing-cache       neither use nor write what earlier builds measured\n"
    "  --force                 build although the predicted memory does not fit\n"
    "  --lock-timeout N        seconds to wait for another gamma-build (60)\n"
    "  --json                  a JSON object on standard output\n"
    "  --quiet                 no progress\n";

volatile std::sig_atomic_t stopped = 0;

void stop(int signal) {
    stopped = 1;
    std::signal(signal, SIG_DFL);  // the second one does what it always does
}

struct Options {
    std::string bundle;
    BuildOptions build;
    bool json = false, quiet = false, help = false;
};

Options parse(Words words) {
    Options options;
    BuildOptions& build = options.build;
    while (words.next()) {
        if (words.is("--help") || words.is("-h"))
            options.help = true;
        else if (words.is("--scene"))
            build.scene = words.value();
        else if (words.is("--precision"))
            build.precision = words.value();
        else if (words.is("--engine-dir"))
            build.engine_dir = words.value();
        else if (words.is("--workspace-mib"))
            build.workspace_mib = words.number(1);
        else if (words.is("--optimization-level"))
            build.optimization_level = words.number(0);
        else if (words.is("--lock-timeout"))
            build.lock_timeout = words.number(0);
        else if (words.is("--low-memory"))
            build.low_memory = true;
        else if (words.is("--no-timing-cache"))
            build.timing_cache = false;
        else if (words.is("--force"))
            build.force = true;
        else if (words.is("--json"))
            options.json = true;
        else if (words.is("--quiet"))
            options.quiet = true;
        else
            words.take_bundle(options.bundle);
    }
    if (!options.help && options.bundle.empty()) throw Error(Exit::usage, "a bundle is needed", "--help");
    return options;
}

/// A line at the start of every engine, then one every ten seconds.
class Lines {
public:
    bool operator()(const BuildProgress& now) {
        const std::string engine = now.graph + " " + now.precision;
        if (engine != engine_) next_ = 0;
        engine_ = engine;
        if (now.seconds >= next_) {
            next_ = now.seconds + 10;
            std::fprintf(stderr, "building %s: %.0f s, %s", engine.c_str(), now.seconds, printable(now.phase).c_str());
            if (now.fraction >= 0) std::fprintf(stderr, ", %.0f %%", 100 * now.fraction);
            std::fprintf(stderr, "\n");
        }
        return !stopped;
    }

private:
    std::string engine_;
    double next_ = 0;
};

int build(const Options& options) {
    const Bundle bundle = Bundle::open(options.bundle);
    const std::vector<EngineEntry> made = build_engines(bundle, options.build);
    const std::string folder = options.build.engine_dir.empty() ? bundle.folder() : options.build.engine_dir;
    const bool compiled_only = gpu_problem().has_value();
    const char* const note = compiled_only ? "compiled, not run on a GPU" : "";
    nlohmann::json engines = nlohmann::json::array();
    for (const EngineEntry& entry : made) {
        engines.push_back(to_json(entry));
        if (!options.json)
            std::printf("%s  %.1f MB  %s\n", entry.file.c_str(), static_cast<double>(entry.size) / 1e6, note);
    }
    if (options.json) {
        const nlohmann::json all{{"bundle", options.bundle}, {"folder", folder}, {"engines", engines}, {"note", note}};
        std::cout << all.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
    }
    if (!options.quiet)
        std::fprintf(stderr, "next: gamma-selftest-cpp %s --backend %s\n", options.bundle.c_str(),
                     engine_flavour().c_str());
    return static_cast<int>(Exit::done);
}

}  // namespace

int main(int count, char** words) {
    return tool([&] {
        Options options = parse(Words(count, words));
        if (options.help) {
            std::cout << kUsage;
            return 0;
        }
        std::signal(SIGINT, stop);
        std::signal(SIGTERM, stop);
        if (options.quiet)
            options.build.progress = [](const BuildProgress&) { return !stopped; };
        else
            options.build.progress = Lines();
        return build(options);
    });
}
