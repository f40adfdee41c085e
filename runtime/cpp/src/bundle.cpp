#include "gamma/bundle.h"

#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "gamma/error.h"
#include "manifest.h"
#include "onnx_scan.h"

namespace gamma_edge {

using nlohmann::json;

namespace {

constexpr int kSchema = 1;
constexpr std::uint64_t kMaxManifest = 16U << 20;
const char* const kManifest = "manifest.json";
const std::set<std::string> kPrecisions{"fp32", "fp16", "bf16", "int8", "fp8"};

/// A manifest says its own SHA-256: of the same bytes with 64 zeros in that place.
void check_seal(const json& data, const Bytes& content, const std::string& path) {
    const auto found = data.find("manifest_sha256");
    if (found == data.end() || found->is_null()) return;  // made by hand
    const std::string said = found->is_string() ? found->get<std::string>() : "";
    std::string bare(content.begin(), content.end());
    const std::size_t at = is_digest(said) ? bare.find(said) : std::string::npos;
    if (at != std::string::npos) bare.replace(at, said.size(), std::string(said.size(), '0'));
    const View view(reinterpret_cast<const std::uint8_t*>(bare.data()), bare.size());
    if (at == std::string::npos || sha256(view) != said)
        throw integrity_error(path + ": changed since it was written (manifest_sha256 does not match)");
}

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
    return text;
}

}  // namespace

/// Fills a Bundle from its manifest, and refuses what is unknown, broken or contradictory.
class ManifestReader {
public:
    ManifestReader(Bundle& bundle, const json& data, std::string path)
        : bundle_(bundle), data_(data), path_(std::move(path)) {}

    void read() {
        Object top(data_, path_);
        for (const char* key : {"schema_version", "manifest_sha256", "created", "tool", "parity", "labels",
                                "quantisation", "libraries", "options", "warnings"})
            top.skip(key);  // a record for people
        checkpoint(top.take("checkpoint"));
        for (const json& scene : top.list("scenes")) {
            Object object(scene, path_ + ": a scene");
            bundle_.scenes_.push_back(object.scene("name"));
            const json& prompts = object.list("prompts");
            const auto is_text = [](const json& prompt) { return prompt.is_string(); };
            if (prompts.size() != 5 || !std::all_of(prompts.begin(), prompts.end(), is_text))
                object.fail("prompts are five texts");
            object.skip("kind");
            object.done();
        }
        bundle_.default_scene_ = top.scene("default_scene");
        for (const json& file : top.list("files")) files(file);
        for (const json& graph : top.list("graphs")) graphs(graph);
        for (const json& golden : top.list("golden")) goldens(golden);
        contract(top.take("contract"), top.digest("contract_sha256"));
        top.done();
        contradictions();
    }

private:
    void checkpoint(const json& data) {
        Object object(data, path_ + ": checkpoint");
        for (const char* key :
             {"sha256", "file", "kind", "prompts", "prompts_assumed", "licence", "parameters", "dims", "moae_scales"})
            object.skip(key);
        if (object.find("label")) bundle_.label_ = object.text("label");
        const json& levels = object.list("score_levels");
        double low = 0, high = 0;
        for (std::size_t i = 0; i < levels.size(); ++i) {
            if (!levels[i].is_number()) object.fail("score_levels are numbers");
            const double level = levels[i].get<double>();
            low = i == 0 ? level : std::min(low, level);
            high = i == 0 ? level : std::max(high, level);
        }
        if (levels.size() < 2 || !(low < high)) object.fail("score_levels are all equal");
        bundle_.range_ = {low, high};
        object.done();
    }

    void files(const json& data) {
        Object object(data, path_ + ": a file");
        FileEntry entry;
        entry.name = object.file_name("name");
        entry.size = object.count("size");
        entry.sha256 = object.digest("sha256");
        object.done();
        bundle_.files_.push_back(entry);
    }

    void graphs(const json& data) {
        Object object(data, path_ + ": a graph");
        GraphEntry entry;
        entry.name = object.scene("name");
        entry.precision = object.named("precision", kPrecisions);
        entry.target = object.find("target") ? object.named("target", {"any", "cpu", "tensorrt"}) : "any";
        entry.attention = object.named("attention", {"decomposed", "op"});
        entry.onnx = object.file_name("onnx");
        entry.weights = object.file_name("weights");
        object.named("moae", {"exact"});
        for (const char* key : {"opset", "inputs", "outputs"}) object.skip(key);
        if (const json* share = object.find("int8_share")) {
            if (!share->is_number() || *share < 0 || *share > 1) object.fail("int8_share is not 0 to 1");
            entry.int8_share = share->get<double>();
        }
        for (const json& scene : object.list("scenes")) {
            if (!scene.is_string() || !is_scene(scene.get<std::string>())) object.fail("a scene is not a name");
            entry.scenes.push_back(scene.get<std::string>());
        }
        entry.crops = static_cast<int>(std::min<std::uint64_t>(object.count("crops"), 1000));
        const json& batch = object.list("batch");
        if (batch.size() != 3) object.fail("batch is least, optimal, most");
        for (std::size_t i = 0; i < 3; ++i) {
            if (!batch[i].is_number_integer() || batch[i] < 1 || batch[i] > 256) object.fail("batch is not 1 to 256");
            entry.batch[i] = batch[i].get<int>();
        }
        const bool rising = entry.batch[0] <= entry.batch[1] && entry.batch[1] <= entry.batch[2];
        if (!rising || entry.scenes.empty() || entry.crops < 1 || entry.crops > 64)
            object.fail("batch, scenes or crops are out of range");
        object.done();
        bundle_.graphs_.push_back(entry);
    }

    void goldens(const json& data) {
        Object object(data, path_ + ": a golden image");
        Golden golden;
        golden.file = object.file_name("file");
        object.skip("licence");
        for (const auto& [scene, digest] : Object(object.take("crops_sha256"), path_).items())
            golden.crops_sha256[scene] = digest.is_string() ? digest.get<std::string>() : "";
        for (const auto& [scene, score] : Object(object.take("scores"), path_).items()) {
            if (!score.is_number()) object.fail("a score is not a number");
            golden.scores[scene] = score.get<double>();
        }
        for (const auto& [scene, digest] : golden.crops_sha256)
            if (!is_digest(digest)) object.fail("a digest is not a SHA-256");
        object.done();
        bundle_.golden_.push_back(golden);
    }

    void contract(const json& data, const std::string& said) {
        const std::string canonical = data.dump(-1, ' ', true);
        if (sha256({reinterpret_cast<const std::uint8_t*>(canonical.data()), canonical.size()}) != said)
            throw integrity_error(path_ + ": contract does not match its own sha256");
        try {
            bundle_.contract_ = Contract::from_json(data);
        } catch (const Error& error) {
            throw Error(error.exit(), path_ + ": " + error.what(), error.hint());
        }
        for (const std::string& scene : bundle_.scenes_)
            if (!bundle_.contract_.short_sides.count(scene))
                throw integrity_error(path_ + ": the contract lacks scene " + scene);
    }

    /// Names are unique, also where the file system ignores case, and every reference resolves.
    void contradictions() const {
        std::set<std::string> names, folded{kManifest, "engines.json"};
        for (const FileEntry& file : bundle_.files_) {
            names.insert(file.name);
            if (!folded.insert(lower(file.name)).second) fail("file names collide");
        }
        const std::set<std::string> scenes(bundle_.scenes_.begin(), bundle_.scenes_.end());
        if (scenes.empty() || scenes.size() != bundle_.scenes_.size()) fail("a scene is listed twice, or none is");
        if (bundle_.graphs_.empty()) fail("no graphs");
        std::set<std::string> used, asked{bundle_.default_scene_}, seen;
        for (const GraphEntry& graph : bundle_.graphs_) {
            const std::set<std::string> own(graph.scenes.begin(), graph.scenes.end());
            if (own.size() != graph.scenes.size()) fail("a scene is listed twice");
            if (!seen.insert(graph.name + "/" + graph.precision + "/" + graph.attention + "/" + graph.target).second)
                fail("a graph is listed twice");
            used.insert({graph.onnx, graph.weights});
            asked.insert(own.begin(), own.end());
        }
        for (const Golden& golden : bundle_.golden_) {
            used.insert(golden.file);
            for (const auto& [scene, digest] : golden.crops_sha256) asked.insert(scene);
            for (const auto& [scene, score] : golden.scores) asked.insert(scene);
        }
        for (const std::string& name : used)
            if (!names.count(name)) fail("refers to files it does not list: " + name);
        for (const std::string& scene : asked)
            if (!scenes.count(scene)) fail("refers to scenes it does not list: " + scene);
    }

    [[noreturn]] void fail(const std::string& what) const { throw integrity_error(path_ + ": " + what); }

    Bundle& bundle_;
    const json& data_;
    std::string path_;
};

Bundle Bundle::open(const std::string& folder) {
    struct stat status{};
    if (stat(folder.c_str(), &status) != 0 || !S_ISDIR(status.st_mode))
        throw input_error(folder + ": no such bundle folder", "gamma-export CHECKPOINT -o NAME.gamma makes one");
    Bundle bundle;
    bundle.folder_ = folder;
    const std::string path = folder + "/" + kManifest;
    const Bytes content = read_plain(path, kMaxManifest);
    const json data = parse_json(content, path);
    const auto schema = data.find("schema_version");
    if (schema == data.end() || !schema->is_number() || *schema < 1)
        throw integrity_error(path + ": no schema_version");
    if (*schema > kSchema)  // a number beyond 64 bits is read as a float
        throw input_error(path + ": schema " + schema->dump() + " needs a newer gamma-edge; this one reads up to " +
                              std::to_string(kSchema),
                          "update gamma-edge");
    check_seal(data, content, path);
    ManifestReader(bundle, data, path).read();
    bundle.sha256_ = gamma_edge::sha256(content);
    return bundle;
}

const FileEntry& Bundle::entry(const std::string& name) const {
    const auto found = std::find_if(files_.begin(), files_.end(), [&](const FileEntry& f) { return f.name == name; });
    if (found == files_.end()) throw integrity_error(folder_ + "/" + name + ": the manifest does not name this file");
    return *found;
}

std::string Bundle::file(const std::string& name) const {
    const FileEntry& wanted = entry(name);
    const std::string path = folder_ + "/" + name;
    const auto [size, found] = hash_plain(path, wanted.size);
    if (size != wanted.size)
        throw integrity_error(path + ": " + std::to_string(size) + " bytes, the manifest says " +
                              std::to_string(wanted.size));
    if (found != wanted.sha256)
        throw integrity_error(path + ": sha256 " + found.substr(0, 12) + "… does not match the manifest's " +
                              wanted.sha256.substr(0, 12) + "…");
    return path;
}

std::string Bundle::graph_file(const GraphEntry& graph) const {
    file(graph.weights);
    const std::string path = file(graph.onnx);
    check_graph_file(path, graph.weights, entry(graph.weights).size);
    return path;
}

const GraphEntry& Bundle::graph(const std::string& scene, const std::string& precision) const {
    const GraphEntry* best = nullptr;
    for (const GraphEntry& graph : graphs_) {
        const bool has = std::find(graph.scenes.begin(), graph.scenes.end(), scene) != graph.scenes.end();
        if (!has || graph.target == "tensorrt" || (!precision.empty() && graph.precision != precision)) continue;
        if (!best || graph.scenes.size() < best->scenes.size()) best = &graph;
    }
    if (!best)
        throw input_error(folder_ + ": no graph for scene " + scene + (precision.empty() ? "" : " (" + precision + ")"),
                          "gamma-doctor lists what the bundle has");
    return *best;
}

}  // namespace gamma_edge
