// gamma-run-cpp: a bundle and images to scores. A bad image is reported, and the rest goes on.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "gamma/error.h"
#include "gamma/scorer.h"

namespace {

using gamma_edge::Error;
using gamma_edge::Exit;
using gamma_edge::printable;

const char* const kUsage =
    "gamma-run-cpp BUNDLE IMAGE... [--scene NAME] [--precision NAME] [--threads N]\n"
    "              [--small refuse|resize|pad] [--strict] [--json] [--dump-crops FILE]\n"
    "\n"
    "Scores images on the CPU with OpenVINO; higher is better.\n"
    "  --small RULE       for images with a side under 224 pixels; without it the bundle's own rule\n"
    "  --strict           refuse files with more than one picture\n"
    "  --json             a JSON object a line, with the keys of gamma-run --json\n"
    "  --dump-crops FILE  write the crops' bytes, uint8 [C, 224, 224, 3] of each image, instead of scoring\n";

struct Options {
    std::string bundle, dump;
    std::vector<std::string> images;
    gamma_edge::ScorerOptions scorer;
    bool json = false, help = false;
};

Options parse(int count, char** words) {
    Options options;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        const auto value = [&]() -> std::string {
            if (++i >= count) throw Error(Exit::usage, word + " needs a value");
            return words[i];
        };
        if (word == "--help" || word == "-h")
            options.help = true;
        else if (word == "--json")
            options.json = true;
        else if (word == "--strict")
            options.scorer.strict = true;
        else if (word == "--small")
            options.scorer.small = value();
        else if (word == "--scene")
            options.scorer.scene = value();
        else if (word == "--precision")
            options.scorer.precision = value();
        else if (word == "--dump-crops")
            options.dump = value();
        else if (word == "--threads") {
            const std::string text = value();
            const bool digits = !text.empty() && text.size() <= 4 && text.find_first_not_of("0123456789") == text.npos;
            options.scorer.threads = digits ? std::stoi(text) : 0;
            if (options.scorer.threads < 1)
                throw Error(Exit::usage, "--threads " + text + " is not a number from 1 on");
        } else if (word.size() > 1 && word[0] == '-')
            throw Error(Exit::usage, "unknown flag " + word, "--help");
        else if (options.bundle.empty())
            options.bundle = word;
        else
            options.images.push_back(word);
    }
    if (!options.help && options.images.empty()) throw Error(Exit::usage, "a bundle and at least one image", "--help");
    return options;
}

void complain(const Error& error) {
    std::cerr << "error: " << printable(error.what()) << "\n";
    if (!error.hint().empty()) std::cerr << "  hint: " << error.hint() << "\n";
}

nlohmann::ordered_json to_json(const std::string& path, const gamma_edge::Score& score) {
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
    const gamma_edge::Bundle bundle = gamma_edge::Bundle::open(options.bundle);
    const std::string scene = options.scorer.scene.empty() ? bundle.default_scene() : options.scorer.scene;
    const gamma_edge::Contract contract = options.scorer.contract_of(bundle);
    std::ofstream file(options.dump, std::ios::binary);
    for (const std::string& path : options.images) {
        const gamma_edge::Bytes data = gamma_edge::read_file(path, contract.limits.max_bytes);
        const gamma_edge::Prepared prepared = gamma_edge::prepare(data, contract, scene, path);
        file.write(reinterpret_cast<const char*>(prepared.crops.data()),
                   static_cast<std::streamsize>(prepared.crops.size()));
    }
    file.close();
    if (!file) throw Error(Exit::output, options.dump + ": cannot be written");
    return 0;
}

int score(const Options& options) {
    gamma_edge::Scorer scorer(options.bundle, options.scorer);
    Exit worst = Exit::done;
    for (const std::string& path : options.images) {
        try {
            const gamma_edge::Score found = scorer.score_file(path);
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
    try {
        const Options options = parse(count, words);
        if (options.help) {
            std::cout << kUsage;
            return 0;
        }
        return options.dump.empty() ? score(options) : dump(options);
    } catch (const Error& error) {
        complain(error);
        return static_cast<int>(error.exit());
    } catch (const std::bad_alloc&) {
        std::cerr << "error: out of memory\n";
        return static_cast<int>(Exit::environment);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n  this is a bug in gamma-edge; please report it\n";
        return static_cast<int>(Exit::bug);
    }
}
