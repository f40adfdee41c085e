#include "gamma/scorer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "crop_plan.h"
#include "device_crops.h"
#include "engines.h"
#include "gamma/error.h"
#include "sniff.h"

namespace gamma_edge {

Contract ScorerOptions::contract_of(const Bundle& bundle) const {
    Contract contract = bundle.contract();
    if (!small.empty() && small != "refuse" && small != "resize" && small != "pad")
        throw Error(Exit::usage, "small: " + small + " is none of refuse, resize and pad");
    if (!small.empty()) contract.small = small;
    if (strict) contract.frames = "refuse";
    return contract;
}

Scorer::Scorer(const std::string& bundle, const ScorerOptions& options)
    : bundle_(Bundle::open(bundle)),
      contract_(options.contract_of(bundle_)),
      scene_(options.scene.empty() ? bundle_.default_scene() : options.scene) {
    std::string backend = options.backend;
    if (backend.empty() || backend == "auto")
        backend = has_openvino() || engine_flavour().empty() ? "openvino" : engine_flavour();
    if (backend == "openvino") {
        entry_ = bundle_.graph(scene_, options.precision);
        backend_ = open_openvino(bundle_.graph_file(entry_), options.threads);
    } else if (backend == engine_flavour()) {
        open_engine(options);
    } else {
        const bool known = backend == "tensorrt" || backend == "tensorrt-rtx";
        throw Error(known ? Exit::environment : Exit::usage,
                    known ? "this gamma_runtime was built without " + backend : "unknown backend " + backend,
                    "one of openvino, tensorrt and tensorrt-rtx; this build has " +
                        std::string(has_openvino() ? "openvino " : "") + engine_flavour());
    }
    const auto found = std::find(entry_.scenes.begin(), entry_.scenes.end(), scene_);
    column_ = static_cast<std::size_t>(found - entry_.scenes.begin());
    const GraphIO& io = backend_->io();
    const bool batch_fits = !io.batch || (*io.batch == entry_.batch[0] && *io.batch == entry_.batch[2]);
    const CropPolicy& crop = contract_.crop;
    const bool frame_fits = io.width == crop.width && io.height == crop.height;
    if (!batch_fits || !frame_fits || io.crops != entry_.crops || io.crops != crop.crops() ||
        static_cast<std::size_t>(io.scenes) != entry_.scenes.size())
        throw integrity_error(entry_.onnx + ": another graph than the manifest describes");
}

Scorer::Scorer(const Scorer& other, std::unique_ptr<Backend> backend)
    : bundle_(other.bundle_),
      contract_(other.contract_),
      scene_(other.scene_),
      entry_(other.entry_),
      column_(other.column_),
      backend_(std::move(backend)) {}

Scorer::Scorer(Scorer&&) noexcept = default;

/// After a hang the driver would wait for ever, so what lies on the GPU is left there.
Scorer::~Scorer() {
    if (backend_ && backend_->lost()) (void)device_crops_.release();
}

Scorer Scorer::another() const { return Scorer(*this, backend_->another()); }

/// The engine that fits this device, and the graph that it was built from.
void Scorer::open_engine(const ScorerOptions& options) {
    const Device device = this_device();  // before TensorRT sees a byte
    const EngineEntry engine = fitting_engine(bundle_, options.engine_dir, device, scene_, options.precision);
    for (const GraphEntry& graph : bundle_.graphs())
        if (graph.name == engine.graph && bundle_.entry(graph.onnx).sha256 == engine.onnx_sha256) entry_ = graph;
    entry_.batch = engine.batch;
    const std::string folder = options.engine_dir.empty() ? bundle_.folder() : options.engine_dir;
    backend_ = open_tensorrt(read_recorded(folder, {engine.file, engine.size, engine.sha256}),
                             folder + "/" + engine.file, options.engines);
}

Score Scorer::score_file(const std::string& path) { return score(read_file(path, contract_.limits.max_bytes), path); }

Score Scorer::score(View encoded, const std::string& where) {
    return scored(prepare(encoded, contract_, scene_, where));
}

Score Scorer::score(const Pixels& pixels, const std::string& where) {
    return scored(prepare(pixels, contract_, scene_, where));
}

Score Scorer::score(const DeviceFrame& frame, const std::string& where) {
    check_size(frame.width, frame.height, contract_.limits, where);
    if (!frame.data || frame.pitch < static_cast<std::size_t>(frame.width) * static_cast<std::size_t>(frame.bytes()))
        throw Error(Exit::usage, where + ": no data, or a pitch below a row");
    if (backend_->name() == "openvino")
        throw Error(Exit::usage, where + ": OpenVINO computes on the CPU; the frame lies on the GPU");
    if (backend_->lost())
        throw Error(Exit::environment, where + ": the GPU failed in an earlier call", "restart this process");
    const CropPlan plan = plan_crops({frame.width, frame.height}, contract_, scene_, where);
    if (plan.final != plan.reduced)
        throw input_error(where + ": a side under 224 pixels; on the GPU nothing is enlarged");
    if (!device_crops_) device_crops_ = make_device_crops();
    Prepared prepared;
    prepared.width = plan.final.width;
    prepared.height = plan.final.height;
    if (plan.native) prepared.flags.emplace_back("native");
    std::vector<std::pair<int, int>> places;
    if (!backend_->io().width) places = contract_.crop.positions(plan.final.width, plan.final.height);
    prepared.count = static_cast<int>(places.size());
    return scored(prepared, device_crops_->make(frame, plan.reduced, places));
}

/// `device`: the crops, or the frame, on the GPU; else they are in `prepared`.
Score Scorer::scored(const Prepared& prepared, const std::uint8_t* device) {
    const GraphIO& io = backend_->io();
    const Bytes& source = io.width ? prepared.frame : prepared.crops;
    const auto each = static_cast<std::size_t>(io.crops), scenes = static_cast<std::size_t>(io.scenes);
    const std::size_t image = io.image_bytes();
    const auto least = static_cast<std::size_t>(entry_.batch[0]), most = static_cast<std::size_t>(entry_.batch[2]);
    // One, or where crops vary one for each crop.
    const std::size_t total = contract_.crop.varies() ? static_cast<std::size_t>(prepared.count) : 1;
    std::vector<double> crop_scores;
    float whole = 0;
    for (std::size_t start = 0; start < total; start += most) {
        const std::size_t real = std::min(most, total - start), batch = std::max(real, least);
        const std::uint8_t* images = (device ? device : source.data()) + start * image;
        Bytes filled;
        if (real < batch && device)
            throw input_error(entry_.onnx + ": takes at least " + std::to_string(least) + " images; a frame is one",
                              "gamma-export --batch 1");
        if (real < batch) {  // a short batch repeats its last image
            filled.assign(images, images + real * image);
            while (filled.size() < batch * image)
                filled.insert(filled.end(), source.end() - static_cast<std::ptrdiff_t>(image), source.end());
            images = filled.data();
        }
        const Outputs outputs = backend_->infer(images, static_cast<int>(batch), device != nullptr);
        whole = outputs.score[column_];
        for (std::size_t i = 0; i < real * each; ++i) crop_scores.push_back(outputs.crop_scores[i * scenes + column_]);
    }
    return summary(prepared, whole, std::move(crop_scores));
}

Score Scorer::summary(const Prepared& prepared, double whole, std::vector<double> crop_scores) const {
    const double count = static_cast<double>(crop_scores.size());
    const double mean = std::accumulate(crop_scores.begin(), crop_scores.end(), 0.0) / count;
    double squares = 0;
    for (const double value : crop_scores) squares += (value - mean) * (value - mean);
    Score score;
    score.scene = scene_;
    score.value = contract_.crop.varies() ? static_cast<float>(mean) : whole;
    score.range = bundle_.range();
    score.crop_scores = std::move(crop_scores);
    score.crop_std = std::sqrt(squares / count);
    score.width = prepared.width;
    score.height = prepared.height;
    if (bundle_.label()) score.flags.push_back(*bundle_.label());
    score.flags.insert(score.flags.end(), prepared.flags.begin(), prepared.flags.end());
    score.backend = backend_->name();
    score.bundle = bundle_.sha256();
    return score;
}

}  // namespace gamma_edge
