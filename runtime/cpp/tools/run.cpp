// gamma-run-cpp: a bundle and images to scores. A bad image is reported, and the rest goes on.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "command.h"
#include "gamma/scorer.h"

namespace {

using namespace gamma_edge;

const char* const kUsage =
    "gamma-run-cpp BUNDLE IMAGE... [--scene NAME] [--backend NAME] [--precision NAME] [--threads N]\n"
    "              [--small refuse|resize|pad] [--strict] [--engine-dir FOLDER] [--json] [--dump-crops FILE]\n"
    "\n"
    "Scores images; higher is better.\n"
    "  --backend NAME     auto (OpenVINO where this build has it, else TensorRT), openvino, tensorrt or tensorrt-rtx\n"
    "  --engine-dir FOLDER  where engines.json lies; left out, in the bundle\n"
    "  --small RULE       for images with a side under 224 pixels; without it the bundle's own rule\n"
    "  --strict           refuse files with more than one picture\n"
    "  --json             a JSON object a line, with the keys of gamma-run --json\n"
    "  --dump-crops FILE  write the crops' bytes, uint8 [C, 224, 224, 3] of each image, instead of scoring\n";

struct Options {
    std::string bundle, dump;
    std::vector<std::string> images;
    ScorerOptions scorer;
    bool json = false, help = false;
};

Options parse(Words words) {
    Options options;
    ScorerOptions& scorer = options.scorer;
    while (words.next()) {
        if (words.is("--help") || words.is("-h"))
            options.help = true;
        else if (words.is("--json"))
            options.json = true;
        else if (words.is("--strict"))
            scorer.strict = true;
        else if (words.is("--small"))
            scorer.small = words.value();
        else if (words.is("--scene"))
            scorer.scene = words.value();
        else if (words.is("--backend"))
            scorer.backend = words.value();
        else if (words.is("--engine-dir"))
            scorer.engine_dir = words.value();
        else if (words.is("--precision"))
            scorer.precision = words.value();
        else if (words.is("--dump-crops"))
            options.dump = words.value();
        else if (words.is("--threads"))
            scorer.threads = words.number(1);
        else if (words.is_flag())
            words.unknown();
        else if (options.bundle.empty())
            options.bundle = words.word();
        else
            options.images.push_back(words.word());
    }
    if (!options.help && options.images.empty()) throw Error(Exit::usage, "a bundle and at least one image", "--help");
    return options;
}

nlohmann::ordered_json to_json(const std::string& path, const Score& score) {
    return {{"path", path},
            {"scene", score.scene},
            {"score", score.value},
            {"range", score.range},
            {"scale", "checkpoint"},
            {"crop_scores", score.crop_scores},
            {"crop_std", score.crop_std},
            {"working_size", {score.width, score.height}},
            {"flags", score.flags},
            {"backend", score.backend},
            {"bundle", score.bundle},
            {"error", nullptr}};
}

nlohmann::ordered_json to_json(const std::string& path, const std::string& scene, const Error& error) {
    return {{"path", path}, {"scene", scene}, {"score", nullptr}, {"error", error.what()}};
}

/// The crops of every image, one behind the other.
int dump(const Options& options) {
    const Bundle bundle = Bundle::open(options.bundle);
    const std::string scene = options.scorer.scene.empty() ? bundle.default_scene() : options.scorer.scene;
    const Contract contract = options.scorer.contract_of(bundle);
    std::ofstream file(options.dump, std::ios::binary);
    for (const std::string& path : options.images) {
        const Bytes data = read_file(path, contract.limits.max_bytes);
        const Prepared prepared = prepare(data, contract, scene, path);
        file.write(reinterpret_cast<const char*>(prepared.crops.data()),
                   static_cast<std::streamsize>(prepared.crops.size()));
    }
    file.close();
    if (!file) throw Error(Exit::output, options.dump + ": cannot be written");
    return 0;
}

int score(const Options& options) {
    Scorer scorer(options.bundle, options.scorer);
    Exit worst = Exit::done;
    for (const std::string& path : options.images) {
        try {
            const Score found = scorer.score_file(path);
            const auto replace = nlohmann::json::error_handler_t::replace;  // a path need not be UTF-8
            if (options.json)
                std::cout << to_json(path, found).dump(-1, ' ', false, replace) << "\n";
            else
                std::printf("%.4f  %s  %s\n", found.value, found.scene.c_str(), printable(path).c_str());
        } catch (const Error& error) {
            if (error.exit() != Exit::input && error.exit() != Exit::gate) throw;
            worst = worst == Exit::done ? error.exit() : worst;
            const auto replace = nlohmann::json::error_handler_t::replace;
            if (options.json) std::cout << to_json(path, scorer.scene(), error).dump(-1, ' ', false, replace) << "\n";
            complain(error);
        }
        std::fflush(stdout);
        std::cout.flush();
    }
    if (!std::cout) throw Error(Exit::output, "standard output cannot be written");
    return static_cast<int>(worst);
}

}  // namespace

int main(int count, char** words) {
    return tool([&] {
        const Options options = parse(Words(count, words));
        if (options.help) {
            std::cout << kUsage;
            return 0;
        }
        return options.dump.empty() ? score(options) : dump(options);
    });
}
