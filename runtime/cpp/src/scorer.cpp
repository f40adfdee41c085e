#include "gamma/scorer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "gamma/error.h"

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
    if (contract_.crop.frame())
        throw input_error(bundle + ": its graph takes camera frames; this runtime scores photos",
                          "take another bundle");
    entry_ = &bundle_.graph(scene_, options.precision);
    const auto found = std::find(entry_->scenes.begin(), entry_->scenes.end(), scene_);
    column_ = static_cast<std::size_t>(found - entry_->scenes.begin());
    backend_ = open_openvino(bundle_.graph_file(*entry_), options.threads);
    const GraphIO& io = backend_->io();
    const bool batch_fits = !io.batch || (*io.batch == entry_->batch[0] && *io.batch == entry_->batch[2]);
    if (!batch_fits || io.crops != entry_->crops || io.crops != contract_.crop.crops() ||
        static_cast<std::size_t>(io.scenes) != entry_->scenes.size())
        throw integrity_error(entry_->onnx + ": another graph than the manifest describes");
}

Score Scorer::score_file(const std::string& path) { return score(read_file(path, contract_.limits.max_bytes), path); }

Score Scorer::score(View encoded, const std::string& where) {
    return scored(prepare(encoded, contract_, scene_, where));
}

Score Scorer::score(const Pixels& pixels, const std::string& where) {
    return scored(prepare(pixels, contract_, scene_, where));
}

Score Scorer::scored(const Prepared& prepared) {
    const GraphIO& io = backend_->io();
    const auto each = static_cast<std::size_t>(io.crops), scenes = static_cast<std::size_t>(io.scenes);
    const std::size_t image = each * kCrop * kCrop * 3;
    const auto least = static_cast<std::size_t>(entry_->batch[0]), most = static_cast<std::size_t>(entry_->batch[2]);
    const std::size_t total = prepared.crops.size() / image;  // one, or where crops vary one for each crop
    Score score;
    float whole = 0;
    for (std::size_t start = 0; start < total; start += most) {
        const std::size_t real = std::min(most, total - start), batch = std::max(real, least);
        Bytes crops(prepared.crops.begin() + static_cast<std::ptrdiff_t>(start * image),
                    prepared.crops.begin() + static_cast<std::ptrdiff_t>((start + real) * image));
        for (std::size_t i = real; i < batch; ++i)  // a short batch repeats its last image
            crops.insert(crops.end(), prepared.crops.end() - static_cast<std::ptrdiff_t>(image), prepared.crops.end());
        const Outputs outputs = backend_->infer(crops.data(), static_cast<int>(batch));
        whole = outputs.score[column_];
        for (std::size_t i = 0; i < real * each; ++i)
            score.crop_scores.push_back(outputs.crop_scores[i * scenes + column_]);
    }
    const double count = static_cast<double>(score.crop_scores.size());
    const double mean = std::accumulate(score.crop_scores.begin(), score.crop_scores.end(), 0.0) / count;
    double squares = 0;
    for (double value : score.crop_scores) squares += (value - mean) * (value - mean);
    score.scene = scene_;
    score.value = contract_.crop.varies() ? static_cast<float>(mean) : whole;
    score.range = bundle_.range();
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
