// gamma-selftest-cpp: does this machine cut a bundle's golden images into the same bytes, and score them as PyTorch
// did?
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>

#include "gamma/error.h"
#include "gamma/scorer.h"

namespace {

using gamma_edge::Error;
using gamma_edge::Exit;

/// Largest allowed |difference| from PyTorch in score units, as in Python.
const std::map<std::string, double> kGates{
    {"fp32", 1e-4}, {"fp16", 5e-3}, {"bf16", 2e-2}, {"int8", 2e-2}, {"fp8", 2e-2}};

int selftest(const std::string& folder) {
    const gamma_edge::Bundle bundle = gamma_edge::Bundle::open(folder);
    bool crops_differ = false, scores_differ = false;
    if (bundle.golden().empty()) throw gamma_edge::input_error(folder + ": no golden images in it");
    for (const auto& [scene, expected] : bundle.golden().front().scores) {
        const gamma_edge::GraphEntry& graph = bundle.graph(scene);
        gamma_edge::ScorerOptions options;
        options.scene = scene;
        options.precision = graph.precision;
        gamma_edge::Scorer scorer(folder, options);
        for (const gamma_edge::Golden& golden : bundle.golden()) {
            const std::string path = bundle.file(golden.file);
            const gamma_edge::Bytes data = gamma_edge::read_file(path, bundle.contract().limits.max_bytes);
            const gamma_edge::Prepared prepared = gamma_edge::prepare(data, bundle.contract(), scene, golden.file);
            const auto digest = golden.crops_sha256.find(scene);
            const bool same =
                digest != golden.crops_sha256.end() && gamma_edge::sha256(prepared.crops) == digest->second;
            const double gap = std::fabs(scorer.score(data, golden.file).value - golden.scores.at(scene));
            const bool near = gap <= kGates.at(graph.precision);
            std::printf("%-24s %-24s %-6s crops %s  difference %.1e  %s\n", golden.file.c_str(), scene.c_str(),
                        graph.precision.c_str(), same ? "same" : "DIFFER", gap, same && near ? "pass" : "FAIL");
            crops_differ |= !same;
            scores_differ |= !near;
        }
    }
    return static_cast<int>(crops_differ || scores_differ ? Exit::gate : Exit::done);
}

}  // namespace

int main(int count, char** words) {
    if (count != 2 || words[1][0] == '-') {
        std::cerr << "gamma-selftest-cpp BUNDLE\n\nScores the bundle's golden images and compares with its manifest.\n";
        return count == 2 ? 0 : static_cast<int>(Exit::usage);
    }
    try {
        return selftest(words[1]);
    } catch (const Error& error) {
        std::cerr << "error: " << gamma_edge::printable(error.what()) << "\n";
        if (!error.hint().empty()) std::cerr << "  hint: " << error.hint() << "\n";
        return static_cast<int>(error.exit());
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n  this is a bug in gamma-edge; please report it\n";
        return static_cast<int>(Exit::bug);
    }
}
