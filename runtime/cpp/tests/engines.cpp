// What of the engines needs no TensorRT, for tests/cpp to drive and to compare with Python:
//   engines fit BUNDLE FOLDER FLAVOUR VERSION CAPABILITY OS SCENE [PRECISION]   the file of the engine that fits
//   engines read FOLDER FILE                                                   its bytes are those of engines.json
//   engines publish FOLDER PLAN RECORD TIMEOUT [CACHE-NAME CACHE]              a plan that somebody else built
#include "../src/engines.h"

#include <fstream>
#include <iterator>

#include "../tools/command.h"
#include "gamma/image.h"

namespace {

using namespace gamma_edge;

constexpr std::uint64_t kMost = 1U << 24;

int fit(const std::vector<std::string>& words) {
    const Bundle bundle = Bundle::open(words.at(0));
    const Device device{words.at(2), words.at(3), words.at(4), words.at(5)};
    const std::string precision = words.size() > 7 ? words[7] : "";
    std::cout << fitting_engine(bundle, words.at(1), device, words.at(6), precision).file << "\n";
    return 0;
}

int read(const std::vector<std::string>& words) {
    for (const EngineEntry& entry : read_engines(words.at(0)).entries)
        if (entry.file == words.at(1)) {
            std::cout << read_recorded(words[0], {entry.file, entry.size, entry.sha256}).size() << "\n";
            return 0;
        }
    throw input_error("not listed");
}

int publish_one(const std::vector<std::string>& words) {
    const std::string& folder = words.at(0);
    prepare_folder(folder, 1);
    Made made;
    made.plan = temporary_in(folder);
    const Bytes plan = read_file(words.at(1), kMost);
    std::ofstream(made.plan, std::ios::binary)
        .write(reinterpret_cast<const char*>(plan.data()), static_cast<std::streamsize>(plan.size()));
    std::ifstream record(words.at(2));
    made.record = nlohmann::json::parse(record);
    made.log = "what TensorRT said\n";
    EngineEntry& entry = made.entry;
    entry.graph = made.record.at("graph");
    entry.precision = made.record.at("precision");
    entry.flavour = made.record.at("flavour");
    entry.version = made.record.at("version");
    entry.capabilities = made.record.at("compute_capabilities").get<std::vector<std::string>>();
    entry.sha256 = sha256(plan);
    entry.file = plan_stem(entry) + ".plan";
    entry.log = plan_stem(entry) + ".log";
    made.record.update({{"file", entry.file}, {"log", entry.log}, {"sha256", entry.sha256}, {"size", plan.size()}});
    std::pair<std::string, Bytes> cache;
    if (words.size() > 5) cache = {words[4], read_file(words[5], kMost)};
    publish(folder, {made}, cache, std::stod(words.at(3)));
    std::cout << entry.file << "\n";
    return 0;
}

}  // namespace

int main(int count, char** words) {
    return tool([&] {
        const std::vector<std::string> rest(words + std::min(count, 2), words + count);
        const std::string what = count > 1 ? words[1] : "";
        return what == "fit" ? fit(rest) : what == "read" ? read(rest) : publish_one(rest);
    });
}
