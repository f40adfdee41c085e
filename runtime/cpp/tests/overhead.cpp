// For benchmarks/cpp_overhead.py: what of each score's time is not inference, and what memory the process holds then.
//   overhead BUNDLE THREADS PASSES PHOTO...   a JSON object; the first pass is not counted
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../tools/command.h"
#include "gamma/scorer.h"

namespace {

/// Bytes behind a name in /proc/self/status.
std::uint64_t status(const std::string& name) {
    std::ifstream file("/proc/self/status");
    for (std::string word; file >> word;) {
        std::uint64_t kilobytes = 0;
        if (word == name && file >> kilobytes) return kilobytes << 10;
    }
    return 0;
}

}  // namespace

int main(int count, char** words) {
    return gamma_edge::tool([&] {
        if (count < 5) return 2;
        gamma_edge::ScorerOptions options;
        options.backend = "openvino";
        options.threads = std::atoi(words[2]);
        gamma_edge::Scorer scorer(words[1], options);
        nlohmann::json total = nlohmann::json::array(), infer = total, scores = total;
        for (int pass = 0; pass <= std::atoi(words[3]); ++pass)
            for (int i = 4; i < count; ++i) {
                const auto start = std::chrono::steady_clock::now();
                const gamma_edge::Score score = scorer.score_file(words[i]);
                const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
                if (pass == 0) {
                    scores.push_back(score.value);
                    continue;
                }
                total.push_back(took.count());
                infer.push_back(scorer.backend().last_ms());
            }
        const nlohmann::json found{{"total_ms", total},
                                   {"infer_ms", infer},
                                   {"scores", scores},
                                   {"anonymous_bytes", status("RssAnon:")},
                                   {"resident_bytes", status("VmRSS:")}};
        std::cout << found << "\n";
        return 0;
    });
}
