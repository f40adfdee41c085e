// gamma-selftest-cpp: does this machine cut a bundle's golden images into the same bytes, and score them as PyTorch
// did?
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>

#include "command.h"
#include "gamma/scorer.h"

namespace {

using namespace gamma_edge;

const char* const kUsage =
    "gamma-selftest-cpp BUNDLE [--backend NAME] [--engine-dir FOLDER]\n"
    "\n"
    "Scores the bundle's golden images and compares with its manifest; exit code 7 where they differ.\n";

/// Largest allowed |difference| from PyTorch in score units, as in Python.
const std::map<std::string, double> kGates{
    {"fp32", 1e-4}, {"fp16", 5e-3}, {"bf16", 2e-2}, {"int8", 2e-2}, {"fp8", 2e-2}};

struct Options {
    std::string bundle;
    ScorerOptions scorer;
    bool help = false;
};

Options parse(Words words) {
    Options options;
    while (words.next()) {
        if (words.is("--help") || words.is("-h"))
            options.help = true;
        else if (words.is("--backend"))
            options.scorer.backend = words.value();
        else if (words.is("--engine-dir"))
            options.scorer.engine_dir = words.value();
        else
            words.take_bundle(options.bundle);
    }
    if (!options.help && options.bundle.empty()) throw Error(Exit::usage, "a bundle is needed", "--help");
    return options;
}

int selftest(Options options) {
    const Bundle bundle = Bundle::open(options.bundle);
    bool passed = true;
    if (bundle.golden().empty()) throw input_error(options.bundle + ": no golden images in it");
    for (const auto& [scene, expected] : bundle.golden().front().scores) {
        options.scorer.scene = scene;
        Scorer scorer(options.bundle, options.scorer);
        for (const Golden& golden : bundle.golden()) {
            const std::string path = bundle.file(golden.file);
            const Bytes data = read_file(path, bundle.contract().limits.max_bytes);
            const Prepared prepared = prepare(data, bundle.contract(), scene, golden.file);
            const auto digest = golden.crops_sha256.find(scene);
            const bool same = digest != golden.crops_sha256.end() && sha256(prepared.crops) == digest->second;
            const double gap = std::fabs(scorer.score(data, golden.file).value - golden.scores.at(scene));
            const bool near = gap <= kGates.at(scorer.precision());
            std::printf("%-24s %-24s %-6s crops %s  difference %.1e  %s\n", golden.file.c_str(), scene.c_str(),
                        scorer.precision().c_str(), same ? "same" : "DIFFER", gap, same && near ? "pass" : "FAIL");
            passed &= same && near;
        }
    }
    return static_cast<int>(passed ? Exit::done : Exit::gate);
}

}  // namespace

int main(int count, char** words) {
    return tool([&] {
        const Options options = parse(Words(count, words));
        if (options.help) {
            std::cout << kUsage;
            return 0;
        }
        return selftest(options);
    });
}
