// gamma-run-cpp: a bundle and images, a video or a camera to scores. A bad image is reported, and the rest goes on.
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "command.h"
#include "gamma/scorer.h"
#include "gamma/source.h"

namespace {

using namespace gamma_edge;
using Record = nlohmann::ordered_json;

const char* const kUsage =
    "gamma-run-cpp BUNDLE SOURCE... [--scene NAME] [--backend NAME] [--precision NAME] [--threads N]\n"
    "              [--small refuse|resize|pad] [--strict] [--scale checkpoint|0-100] [--engine-dir FOLDER] [--json]\n"
    "              [--every N] [--frames N] [--frame-timeout SECONDS] [--quiet] [--dump-crops FILE]\n"
    "\n"
    "Scores images; higher is better. A source is an image, a folder, or one video, camera or stream:\n"
    "FILE.mp4, v4l2:///dev/video0, csi://0, rtsp://HOST/PATH, http://HOST/PATH (MJPEG), gst:PIPELINE\n"
    "  --backend NAME           auto (OpenVINO where this build has it, else TensorRT), openvino, tensorrt, "
    "tensorrt-rtx\n"
    "  --precision NAME         fp32, fp16, bf16, int8 or fp8, where the bundle has several\n"
    "  --threads N              CPU threads of one inference\n"
    "  --small RULE             for images with a side under 224 pixels; without it the bundle's own rule\n"
    "  --strict                 refuse files with more than one picture\n"
    "  --scale NAME             checkpoint (its own score levels) or 0-100\n"
    "  --engine-dir FOLDER      where engines.json lies; left out, in the bundle\n"
    "  --json                   a JSON object a line, with the keys of gamma-run --json\n"
    "  --every N                score every N-th frame (1)\n"
    "  --frames N               end after N scored frames\n"
    "  --frame-timeout SECONDS  that a live source may give no frame (10)\n"
    "  --quiet                  no count of frames at the end\n"
    "  --dump-crops FILE        write the crops' bytes, uint8 [C, 224, 224, 3] of each image, instead of scoring\n";

const char* const kExtensions[] = {".bmp", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"};

struct Options {
    std::string bundle, dump, scale = "checkpoint";
    std::vector<std::string> sources;
    ScorerOptions scorer;
    FrameOptions frames;
    int limit = 0;  // 0: all frames
    bool json = false, quiet = false, help = false;
};

bool scorer_flag(Words& words, ScorerOptions& scorer) {
    if (words.is("--strict"))
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
    else if (words.is("--threads"))
        scorer.threads = words.number(1);
    else
        return false;
    return true;
}

Options parse(Words words) {
    Options options;
    bool of_frames = false;
    while (words.next()) {
        if (scorer_flag(words, options.scorer)) continue;
        of_frames |= words.is("--every") || words.is("--frames");
        if (words.is("--help") || words.is("-h"))
            options.help = true;
        else if (words.is("--json"))
            options.json = true;
        else if (words.is("--quiet"))
            options.quiet = true;
        else if (words.is("--scale"))
            options.scale = words.value();
        else if (words.is("--dump-crops"))
            options.dump = words.value();
        else if (words.is("--every"))
            options.frames.every = words.number(1);
        else if (words.is("--frames"))
            options.limit = words.number(1);
        else if (words.is("--frame-timeout"))
            options.frames.timeout = words.number(1);
        else if (words.is_flag())
            words.unknown();
        else if (options.bundle.empty())
            options.bundle = words.word();
        else
            options.sources.push_back(words.word());
    }
    if (options.help) return options;
    if (options.sources.empty()) throw Error(Exit::usage, "a bundle and at least one image", "--help");
    if (options.scale != "checkpoint" && options.scale != "0-100")
        throw Error(Exit::usage, "unknown scale " + options.scale, "one of checkpoint and 0-100");
    const bool stream = std::any_of(options.sources.begin(), options.sources.end(),
                                    [](const std::string& text) { return parse_source(text).kind != "image"; });
    if (stream && options.sources.size() > 1)
        throw Error(Exit::usage, "one video, camera or stream at a time", "a process each, or images only");
    if (of_frames && !stream) throw Error(Exit::usage, "--every and --frames are for a video, a camera or a stream");
    return options;
}

/// A folder's images, sorted, then those of its folders; links to folders are not followed.
void add_folder(const std::filesystem::path& folder, std::vector<std::string>& paths) {
    std::vector<std::filesystem::path> files, folders;
    std::error_code unreadable;
    for (const auto& entry : std::filesystem::directory_iterator(folder, unreadable)) {
        std::string extension = entry.path().extension().string();
        std::transform(extension.begin(), extension.end(), extension.begin(),
                       [](unsigned char c) { return std::tolower(c); });
        const bool image =
            std::find(std::begin(kExtensions), std::end(kExtensions), extension) != std::end(kExtensions);
        if (entry.is_directory(unreadable))
            folders.push_back(entry.path());
        else if (image)
            files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    std::sort(folders.begin(), folders.end());
    for (const auto& file : files) paths.push_back(file.string());
    for (const auto& inner : folders)
        if (!std::filesystem::is_symlink(inner, unreadable)) add_folder(inner, paths);
}

/// Paths of images; a folder without any stays, and gets its error where it is read.
std::vector<std::string> expanded(const std::vector<std::string>& sources) {
    std::vector<std::string> paths;
    for (const std::string& text : sources) {
        const std::string path = parse_source(text).target;
        const std::size_t before = paths.size();
        std::error_code missing;
        if (std::filesystem::is_directory(path, missing)) add_folder(path, paths);
        if (paths.size() == before) paths.push_back(path);
    }
    return paths;
}

Record to_record(const std::string& path, const Score& score, const std::string& scale) {
    const double low = score.range[0], factor = scale == "checkpoint" ? 1 : 100 / (score.range[1] - low);
    const auto scaled = [&](double value) { return scale == "checkpoint" ? value : (value - low) * factor; };
    Record crops = Record::array();
    for (const double value : score.crop_scores) crops.push_back(scaled(value));
    return {{"path", path},
            {"scene", score.scene},
            {"score", scaled(score.value)},
            {"range", {scaled(score.range[0]), scaled(score.range[1])}},
            {"scale", scale},
            {"crop_scores", crops},
            {"crop_std", score.crop_std * factor},
            {"working_size", {score.width, score.height}},
            {"flags", score.flags},
            {"backend", score.backend},
            {"bundle", score.bundle},
            {"error", nullptr}};
}

/// The same keys, of an image that could not be scored.
Record failed_record(const std::string& path, const std::string& scene, const Error& error) {
    const Record none;
    return {{"path", path},
            {"scene", scene},
            {"score", none},
            {"range", none},
            {"scale", none},
            {"crop_std", none},
            {"working_size", none},
            {"backend", none},
            {"bundle", none},
            {"crop_scores", Record::array()},
            {"flags", Record::array()},
            {"error", error.what()}};
}

/// The crops of every image, one behind the other.
int dump(const Options& options) {
    const Bundle bundle = Bundle::open(options.bundle);
    const std::string scene = options.scorer.scene.empty() ? bundle.default_scene() : options.scorer.scene;
    const Contract contract = options.scorer.contract_of(bundle);
    std::ofstream file(options.dump, std::ios::binary);
    for (const std::string& path : expanded(options.sources)) {
        const Bytes data = read_file(path, contract.limits.max_bytes);
        const Prepared prepared = prepare(data, contract, scene, path);
        file.write(reinterpret_cast<const char*>(prepared.crops.data()),
                   static_cast<std::streamsize>(prepared.crops.size()));
    }
    file.close();
    if (!file) throw Error(Exit::output, options.dump + ": cannot be written");
    return 0;
}

/// Records on standard output, as they come; the code of the worst.
class Writer {
public:
    explicit Writer(const Options& options) : options_(options) {}

    /// `work` gives a score; `extra` goes behind it. What cannot be scored is a record too.
    template <typename Work>
    void record(const std::string& path, const std::string& scene, const Record& extra, Work work) {
        Record made;
        try {
            made = to_record(path, work(), options_.scale);
            ++scored_;
        } catch (const Error& error) {
            if (error.exit() != Exit::input && error.exit() != Exit::gate) throw;
            worst_ = std::max(worst_, static_cast<int>(error.exit()));
            made = failed_record(path, scene, error);
            complain(error);
        }
        made.update(extra);
        if (options_.json)
            std::cout << made.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
        else if (!made["score"].is_null())
            line(made, extra);
        std::cout.flush();
        if (!std::cout || std::fflush(stdout) != 0)
            throw Error(Exit::output, "standard output cannot be written", "a full disk, or a closed pipe?");
    }

    int worst() const { return worst_; }
    std::int64_t scored() const { return scored_; }

private:
    static void line(const Record& made, const Record& extra) {
        const auto text = [&](const char* key) { return printable(made[key].get<std::string>()); };
        if (!extra.empty())
            std::printf("frame %6lld  %9.3f s  ", static_cast<long long>(made["frame"].get<std::int64_t>()),
                        made["seconds"].get<double>());
        std::printf("%.4f  %s  %s\n", made["score"].get<double>(), text("scene").c_str(), text("path").c_str());
    }

    const Options& options_;
    int worst_ = 0;
    std::int64_t scored_ = 0;
};

int score_images(const Options& options) {
    Scorer scorer(options.bundle, options.scorer);
    Writer writer(options);
    for (const std::string& path : expanded(options.sources))
        writer.record(path, scorer.scene(), Record::object(), [&] { return scorer.score_file(path); });
    return writer.worst();
}

std::atomic<Frames*> running{nullptr};  // of a live source; a signal stops it

void stop(int signal) {
    if (Frames* const frames = running) frames->stop();
    std::signal(signal, SIG_DFL);  // the second one does what it always does
}

int score_frames(const Options& options, const Source& source) {
    Scorer scorer(options.bundle, options.scorer);
    FrameOptions asked = options.frames;
    asked.limits = scorer.bundle().contract().limits;
    Frames frames(source, asked);
    if (source.live) {
        running = &frames;
        std::signal(SIGINT, stop);
        std::signal(SIGTERM, stop);
    }
    Writer writer(options);
    const auto summary = [&] {
        running = nullptr;
        if (!options.quiet)
            std::cerr << frames.read() << " frames read, " << writer.scored() << " scored, " << frames.dropped()
                      << " dropped\n";
    };
    try {
        int given = 0;
        while (options.limit == 0 || given < options.limit) {
            const std::optional<Frame> frame = frames.next();
            if (!frame) break;
            ++given;
            const Record extra{{"frame", frame->index}, {"seconds", frame->seconds}};
            writer.record(source.name, scorer.scene(), extra, [&] { return scorer.score(frame->pixels, "frame"); });
        }
    } catch (...) {
        summary();
        throw;
    }
    summary();
    return writer.worst();
}

}  // namespace

int main(int count, char** words) {
    return tool([&] {
        const Options options = parse(Words(count, words));
        if (options.help) {
            std::cout << kUsage;
            return 0;
        }
        const Source first = parse_source(options.sources.front());
        if (!options.dump.empty()) return dump(options);
        return first.kind == "image" ? score_images(options) : score_frames(options, first);
    });
}
