// From an ONNX graph to a plan. Precision is in the graph (strong typing), so no flag here touches it.
#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "gamma/error.h"
#include "graph_io.h"
#include "plan.h"
#include "tensorrt_log.h"
#include "tensorrt_proof.h"

// TensorRT can hand the plan over piece by piece (10.9 on): it is then never held as a whole. Not TensorRT-RTX: with
// the headers of TensorRT 11.1 the call lands in another function of it, says that it is done, and writes nothing, and
// with its own headers it was never tried.
#if (NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 13) && !defined(GAMMA_TENSORRT_RTX)
#define GAMMA_STREAMS_PLANS
#endif

namespace gamma_edge {
namespace {

using nvinfer1::Dims;
const char* const kNoMemory =
    "--low-memory, lower --workspace-mib, close other programs, add swap, or build on a larger machine";

/// TensorRT's nested phases; the fraction is that of the outermost one. TensorRT calls from several of its threads.
class Monitor final : public nvinfer1::IProgressMonitor {
public:
    explicit Monitor(std::function<bool(const std::string&, double)> report) : report_(std::move(report)) {}

    void phaseStart(char const* name, char const*, std::int32_t steps) noexcept override {
        const std::lock_guard<std::mutex> held(mutex_);
        phases_.push_back({name, 0, std::max(steps, 1)});
        report(name);
    }

    bool stepComplete(char const* name, std::int32_t step) noexcept override {
        const std::lock_guard<std::mutex> held(mutex_);
        for (Phase& phase : phases_)
            if (phase.name == name) phase.done = step + 1;
        report(name);
        return !stopped_;
    }

    void phaseFinish(char const* name) noexcept override {
        const std::lock_guard<std::mutex> held(mutex_);
        const auto is = [&](const Phase& phase) { return phase.name == name; };
        phases_.erase(std::remove_if(phases_.begin(), phases_.end(), is), phases_.end());
    }

    bool stopped() const {
        const std::lock_guard<std::mutex> held(mutex_);
        return stopped_;
    }

private:
    struct Phase {
        std::string name;
        int done, steps;
    };

    void report(const char* name) noexcept {
        double fraction = 0;
        for (auto phase = phases_.rbegin(); phase != phases_.rend(); ++phase)
            fraction = std::min(1.0, (phase->done + fraction) / phase->steps);
        try {
            if (report_ && !report_(name, fraction)) stopped_ = true;
        } catch (...) {  // an exception must not go through TensorRT
            stopped_ = true;
        }
    }

    mutable std::mutex mutex_;  // report_ is called under it, so it need not be safe itself
    std::function<bool(const std::string&, double)> report_;
    std::vector<Phase> phases_;
    bool stopped_ = false;
};

struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
};

/// The plan's file.
class PlanFile {
public:
    explicit PlanFile(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "wb")) {}

    bool write(const void* data, std::size_t size) {
        whole_ = whole_ && file_ && std::fwrite(data, 1, size, file_.get()) == size;
        written_ += size;
        return whole_;
    }

    /// Throws Error (output).
    void finish() {
        if (!whole_ || !file_ || std::fclose(file_.release()) != 0)
            throw Error(Exit::output, path_ + ": the plan cannot be written", "check the free space and permissions");
    }

    bool whole() const { return whole_; }
    bool empty() const { return written_ == 0; }

private:
    std::string path_;
    std::unique_ptr<std::FILE, Close> file_;
    bool whole_ = true;
    std::size_t written_ = 0;
};

#ifdef GAMMA_STREAMS_PLANS
class Writer final : public nvinfer1::IStreamWriter {
public:
    explicit Writer(PlanFile& file) : file_(file) {}
    std::int64_t write(void const* data, std::int64_t size) final {
        return file_.write(data, static_cast<std::size_t>(size)) ? size : 0;
    }

private:
    PlanFile& file_;
};
#endif

bool build_into(nvinfer1::IBuilder& builder, nvinfer1::INetworkDefinition& network, nvinfer1::IBuilderConfig& config,
                PlanFile& file) {
#ifdef GAMMA_STREAMS_PLANS
    Writer writer(file);
    return builder.buildSerializedNetworkToStream(network, config, writer);
#else
    const std::unique_ptr<nvinfer1::IHostMemory> plan(builder.buildSerializedNetwork(network, config));
    return plan && file.write(plan->data(), plan->size());
#endif
}

nvinfer1::NetworkDefinitionCreationFlags strongly_typed() {
#if NV_TENSORRT_MAJOR == 10
    return 1U << static_cast<std::uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#else
    return 0;  // always on; its old bit means something else
#endif
}

GraphIO network_io(const std::string& graph, const nvinfer1::INetworkDefinition& network) {
    std::vector<GraphTensor> tensors;
    const auto add = [&](const nvinfer1::ITensor& tensor, bool is_input) {
        const Dims dims = tensor.getDimensions();
        const auto type = tensor.getType();
        const char* const name = type == nvinfer1::DataType::kUINT8   ? "uint8"
                                 : type == nvinfer1::DataType::kFLOAT ? "float32"
                                                                      : "another type";
        tensors.push_back({tensor.getName(), is_input, name, {}});
        for (std::int32_t i = 0; i < dims.nbDims; ++i) tensors.back().shape.push_back(dims.d[i]);
    };
    for (std::int32_t i = 0; i < network.getNbInputs(); ++i) add(*network.getInput(i), true);
    for (std::int32_t i = 0; i < network.getNbOutputs(); ++i) add(*network.getOutput(i), false);
    return read_io(graph, tensors);
}

class Build {
public:
    explicit Build(const PlanSpec& spec) : spec_(spec), log_(true), monitor_(spec.progress) {}

    PlanResult run() {
        if (spec_.progress) spec_.progress("Parsing graph", -1);
        parse();
        PlanResult result;
        result.products = count_products(*network_);
        check_products(result.products, spec_.graph->precision, spec_.graph->int8_share);
        if (spec_.low_memory) malloc_trim(0);
        const auto start = std::chrono::steady_clock::now();
        configure();
        if (spec_.timing_cache) result.cache_refused = attach_cache(*spec_.timing_cache);
        PlanFile file(spec_.plan);
        const bool built = build_into(*builder_, *network_, *config_, file);
        if (monitor_.stopped()) throw Error(Exit::usage, "stopped; nothing was published");
        if (!file.whole()) file.finish();
        if (!built || file.empty()) give_up(spec_.onnx + ": TensorRT did not build it");
        file.finish();
        result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (spec_.timing_cache) keep_cache(result.timing_cache);
        result.log = log_.text();
        return result;
    }

private:
    [[noreturn]] void give_up(const std::string& what) const {
        const bool memory = log_.no_memory();
        throw Error(Exit::environment, what + (memory ? ": out of memory" : "") + ":\n  " + log_.explanation(),
                    memory ? kNoMemory : "try another --precision, or --low-memory");
    }

    void parse() {
        builder_.reset(nvinfer1::createInferBuilder(log_));
        if (!builder_) give_up("TensorRT gives no builder");
        network_.reset(builder_->createNetworkV2(strongly_typed()));
        if (!network_) give_up("TensorRT gives no network");
        parser_.reset(nvonnxparser::createParser(*network_, log_));
        if (!parser_) give_up("TensorRT gives no ONNX parser");
        const auto severity = static_cast<std::int32_t>(nvinfer1::ILogger::Severity::kWARNING);
        if (!parser_->parseFromFile(spec_.onnx.c_str(), severity)) {
            std::string reasons;
            for (std::int32_t i = 0; i < std::min(parser_->getNbErrors(), 8); ++i)
                reasons += std::string("\n  ") + printable(parser_->getError(i)->desc());
            if (log_.no_memory()) give_up(spec_.onnx);
            throw input_error(spec_.onnx + ": TensorRT cannot parse this graph:" + reasons,
                              "export the bundle again with this version of gamma-edge");
        }
        io_ = network_io(spec_.onnx, *network_);
        if (io_.crops != spec_.graph->crops || static_cast<std::size_t>(io_.scenes) != spec_.graph->scenes.size())
            throw integrity_error(spec_.onnx + ": another graph than the manifest describes");
    }

    void configure() {
        config_.reset(builder_->createBuilderConfig());
        if (!config_) give_up("TensorRT gives no configuration");
        config_->clearFlag(nvinfer1::BuilderFlag::kTF32);
        config_->setProfilingVerbosity(nvinfer1::ProfilingVerbosity::kDETAILED);
        config_->setProgressMonitor(&monitor_);
        if (spec_.workspace_mib)
            config_->setMemoryPoolLimit(nvinfer1::MemoryPoolType::kWORKSPACE,
                                        static_cast<std::size_t>(*spec_.workspace_mib) << 20);
        if (spec_.optimization_level)
            config_->setBuilderOptimizationLevel(*spec_.optimization_level);
        else if (spec_.low_memory)
            // Fewer tactics are tried, so fewer kernels are loaded. Not 0: that one ignores the timing cache.
            config_->setBuilderOptimizationLevel(1);
        if (spec_.low_memory) {
            config_->setMaxAuxStreams(0);  // parallel streams keep activations from sharing memory
            // Compiled kernels would be held in, and written into, the timing cache, which they make much larger.
            config_->setFlag(nvinfer1::BuilderFlag::kDISABLE_COMPILATION_CACHE);
        }
        nvinfer1::IOptimizationProfile* const profile = builder_->createOptimizationProfile();
        if (!profile) give_up("TensorRT gives no optimization profile");
        const nvinfer1::ITensor& input = *network_->getInput(0);
        const nvinfer1::OptProfileSelector ends[] = {
            nvinfer1::OptProfileSelector::kMIN, nvinfer1::OptProfileSelector::kOPT, nvinfer1::OptProfileSelector::kMAX};
        for (std::size_t i = 0; i < 3; ++i) {
            Dims dims = input.getDimensions();
            if (dims.d[0] < 0) dims.d[0] = spec_.graph->batch[i];
            if (!profile->setDimensions(input.getName(), ends[i], dims)) give_up("TensorRT refuses the batch range");
        }
        if (config_->addOptimizationProfile(profile) < 0) give_up("TensorRT refuses the batch range");
    }

    /// Give the build the timings of earlier ones; why TensorRT does not take them, or nothing.
    std::string attach_cache(const Bytes& content) {
        cache_.reset(config_->createTimingCache(content.data(), content.size()));
        std::string refused;
        if (!cache_ || !config_->setTimingCache(*cache_, false)) {
            refused = "TensorRT refused it: made on another device, or with another CUDA or TensorRT version";
            cache_.reset(config_->createTimingCache(nullptr, 0));
            if (!cache_ || !config_->setTimingCache(*cache_, false)) give_up("TensorRT gives no timing cache");
        }
        return refused;
    }

    void keep_cache(Bytes& to) const {
        const nvinfer1::ITimingCache* const cache = config_->getTimingCache();
        const std::unique_ptr<nvinfer1::IHostMemory> bytes(cache ? cache->serialize() : nullptr);
        if (!bytes) return;  // worth minutes, never a failed build
        const auto* const data = static_cast<const std::uint8_t*>(bytes->data());
        to.assign(data, data + bytes->size());
    }

    const PlanSpec& spec_;
    TensorRtLog log_;  // must outlive all that follows
    Monitor monitor_;
    std::unique_ptr<nvinfer1::IBuilder> builder_;
    std::unique_ptr<nvinfer1::INetworkDefinition> network_;
    std::unique_ptr<nvonnxparser::IParser> parser_;  // owns the weights' memory
    std::unique_ptr<nvinfer1::IBuilderConfig> config_;
    std::unique_ptr<nvinfer1::ITimingCache> cache_;
    GraphIO io_;
};

}  // namespace

PlanResult compile_plan(const PlanSpec& spec) { return Build(spec).run(); }

}  // namespace gamma_edge
