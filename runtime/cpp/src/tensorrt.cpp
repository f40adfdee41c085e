// Engines on the first GPU: one engine, shared; for each thread its own execution context, stream, buffers and graph.
#include <NvInferRuntime.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <thread>

#include "cuda.h"
#include "engines.h"
#include "gamma/backend.h"
#include "gamma/error.h"
#include "graph_io.h"
#include "tensorrt_log.h"

namespace gamma_edge {
namespace {

using Clock = std::chrono::steady_clock;
using cuda::check;

constexpr auto kSpin = std::chrono::milliseconds(2);  // of asking without a pause; after that the thread sleeps
constexpr auto kPause = std::chrono::microseconds(100);

std::vector<std::int64_t> sides(const nvinfer1::Dims& dims) {
    std::vector<std::int64_t> found;
    for (std::int32_t i = 0; i < dims.nbDims; ++i) found.push_back(static_cast<std::int64_t>(dims.d[i]));
    return found;
}

std::string type_name(nvinfer1::DataType type) {
    if (type == nvinfer1::DataType::kUINT8) return "uint8";
    return type == nvinfer1::DataType::kFLOAT ? "float32" : "type " + std::to_string(static_cast<int>(type));
}

/// Runtime and logger must live as long as the engine, so they travel together; destroyed in reverse.
struct Loaded {
    TensorRtLog log;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::string name;
    GraphIO io;
    int least = 1, most = 1;
    bool integrated = false;
    std::atomic<bool> dead{false};  // after a hang or a failure nothing that this process computes can be trusted

    void must(bool done, const char* what) const {
        if (!done)
            throw Error(Exit::environment, name + ": " + what + " failed:\n  " + log.explanation(),
                        "run gamma-doctor on the bundle; gamma-build makes the engine again on this device");
    }
};

std::shared_ptr<Loaded> load(const std::vector<std::uint8_t>& plan, const std::string& name) {
    this_device();  // before TensorRT: without a driver TensorRT 11 hands out a bogus pointer and dies
    check(cudaSetDevice(0), "cudaSetDevice");
    auto loaded = std::make_shared<Loaded>();
    loaded->name = name;
    int integrated = 0;
    check(cudaDeviceGetAttribute(&integrated, cudaDevAttrIntegrated, 0), "cudaDeviceGetAttribute");
    loaded->integrated = integrated != 0;
    loaded->runtime.reset(nvinfer1::createInferRuntime(loaded->log));
    loaded->must(loaded->runtime != nullptr, "createInferRuntime");
    loaded->engine.reset(loaded->runtime->deserializeCudaEngine(plan.data(), plan.size()));
    loaded->must(loaded->engine != nullptr, "loading this engine");
    const nvinfer1::ICudaEngine& engine = *loaded->engine;
    std::vector<GraphTensor> tensors;
    for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
        const char* const tensor = engine.getIOTensorName(i);
        tensors.push_back({tensor, engine.getTensorIOMode(tensor) == nvinfer1::TensorIOMode::kINPUT,
                           type_name(engine.getTensorDataType(tensor)), sides(engine.getTensorShape(tensor))});
    }
    loaded->io = read_io(name, tensors);
    const char* const input = loaded->io.input();
    const auto bound = [&](nvinfer1::OptProfileSelector end) {
        return static_cast<int>(engine.getProfileShape(input, 0, end).d[0]);
    };
    loaded->least = bound(nvinfer1::OptProfileSelector::kMIN);
    loaded->most = bound(nvinfer1::OptProfileSelector::kMAX);
    return loaded;
}

class TensorRt final : public Backend {
public:
    TensorRt(std::shared_ptr<Loaded> loaded, const EngineUse& use)
        : Backend(loaded->name), loaded_(std::move(loaded)), use_(use) {
        io_ = loaded_->io;
    }

    /// Freed in this order: graph, context, buffers, stream. After a hang the driver would wait for ever: nothing is.
    ~TensorRt() override {
        if (!loaded_->dead) return;
        (void)replay_.release();
        (void)context_.release();
        (void)end_.release();
        (void)stream_.release();
        (void)new std::shared_ptr<Loaded>(loaded_);
        (void)new std::map<std::string, cuda::Buffer>(std::move(buffers_));
    }

    std::unique_ptr<Backend> another() const override { return std::make_unique<TensorRt>(loaded_, use_); }
    bool lost() const override { return loaded_->dead; }
    std::string name() const override { return engine_flavour(); }
    std::string version() const override { return engine_version(); }

protected:
    Outputs run(const std::uint8_t* images, int batch, bool on_device) override {
        if (batch < loaded_->least || batch > loaded_->most)
            throw input_error(graph_ + ": a batch of " + std::to_string(batch) + "; the engine takes " +
                                  std::to_string(loaded_->least) + " to " + std::to_string(loaded_->most),
                              "gamma-export --batch LEAST:OPTIMAL:MOST, then gamma-build, makes an engine for others");
        if (loaded_->dead)
            throw Error(Exit::environment, graph_ + ": the GPU failed in an earlier call; nothing was computed",
                        "restart this process: CUDA cannot recover in it; then check nvidia-smi and the system log");
        try {
            return run_once(images, batch, on_device);
        } catch (const cuda::Failure& failure) {
            if (!failure.out_of_memory()) loaded_->dead = true;
            if (!loaded_->dead) forget();  // in a lost context a destructor may never return
            throw;
        } catch (const Error&) {
            const cudaError_t left = stream_ ? cudaStreamQuery(stream_.get()) : cudaSuccess;
            (void)cudaGetLastError();
            if (left != cudaSuccess && left != cudaErrorNotReady) loaded_->dead = true;
            if (!loaded_->dead) forget();
            throw;
        }
    }

private:
    Outputs run_once(const std::uint8_t* images, int batch, bool on_device) {
        check(cudaSetDevice(0), "cudaSetDevice");
        if (!context_) start();
        if (batch != batch_) set_batch(batch);
        const std::size_t bytes = io_.image_bytes() * static_cast<std::size_t>(batch);
        const cuda::Buffer& input = buffers_.at(io_.input());
        if (on_device)
            check(cudaMemcpyAsync(input.device(), images, bytes, cudaMemcpyDefault, stream_.get()), "copy");
        else
            std::memcpy(input.host(), images, bytes);
        const bool replay = replay_ && replay_uploads_ == !on_device;
        if (replay)
            check(cudaGraphLaunch(replay_.get(), stream_.get()), "cudaGraphLaunch");
        else
            enqueue(!on_device);
        check(cudaEventRecord(end_.get(), stream_.get()), "cudaEventRecord");
        wait();
        Outputs outputs{values("score"), values("crop_scores")};
        // The first call of a size ran plainly, so that TensorRT initialised outside any capture. TensorRT-RTX swaps
        // kernels in the background at first, and a captured graph would keep the slow ones.
        const bool graphs = use_.cuda_graph && engine_flavour() != "tensorrt-rtx";
        if (!replay && graphs && !no_graph_) capture(!on_device);
        return outputs;
    }

    void start() {
        stream_ = cuda::make_stream();
        end_ = cuda::make_event();
        context_.reset(loaded_->engine->createExecutionContext());
        loaded_->must(context_ != nullptr, "createExecutionContext");
    }

    void set_batch(int batch) {
        replay_.reset();
        batch_ = 0;
        const char* const input = io_.input();
        nvinfer1::Dims dims = loaded_->engine->getTensorShape(input);
        dims.d[0] = batch;
        loaded_->must(context_->setInputShape(input, dims), "setInputShape");
        for (const char* const name : {input, "score", "crop_scores"}) {
            std::size_t bytes = name == input ? 1 : sizeof(float);
            for (const std::int64_t side : sides(context_->getTensorShape(name))) {
                loaded_->must(side > 0, "reading the outputs' shapes");
                bytes *= static_cast<std::size_t>(side);
            }
            const auto found = buffers_.find(name);
            if (found != buffers_.end() && found->second.bytes() < bytes) buffers_.erase(found);
            const auto made = buffers_.try_emplace(name, bytes, loaded_->integrated).first;
            sizes_[name] = bytes;
            loaded_->must(context_->setTensorAddress(name, made->second.device()), "setTensorAddress");
        }
        batch_ = batch;
    }

    void enqueue(bool upload) {
        if (upload) buffers_.at(io_.input()).upload(sizes_.at(io_.input()), stream_.get());
        loaded_->must(context_->enqueueV3(stream_.get()), "enqueueV3");
        for (const char* const name : {"score", "crop_scores"})
            buffers_.at(name).download(sizes_.at(name), stream_.get());
    }

    /// Ask the event until it is reached, so that a hang is noticed.
    void wait() {
        const auto start = Clock::now();
        for (;;) {
            const cudaError_t code = cudaEventQuery(end_.get());
            if (code == cudaSuccess) return;
            if (code != cudaErrorNotReady) check(code, "inference");
            (void)cudaGetLastError();
            const auto elapsed = Clock::now() - start;
            if (elapsed > std::chrono::duration<double>(use_.infer_timeout)) {
                loaded_->dead = true;
                throw Error(Exit::environment,
                            graph_ + ": no result after " + std::to_string(use_.infer_timeout) + " s; the GPU hangs",
                            "restart this process; raise the limit if the GPU is only slow; check nvidia-smi");
            }
            if (elapsed > kSpin) std::this_thread::sleep_for(kPause);
        }
    }

    /// Record one run as a graph; what cannot be captured runs plainly from now on.
    void capture(bool upload) {
        replay_.reset();
        no_graph_ = true;
        if (cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
            (void)cudaGetLastError();
            return;
        }
        bool whole = true;
        try {
            enqueue(upload);
        } catch (const std::exception&) {
            whole = false;
        }
        cudaGraph_t recorded = nullptr;
        whole &= cudaStreamEndCapture(stream_.get(), &recorded) == cudaSuccess && recorded != nullptr;
        cudaGraphExec_t executable = nullptr;
        if (whole && cudaGraphInstantiate(&executable, recorded, 0) == cudaSuccess) {
            replay_.reset(executable);
            replay_uploads_ = upload;
            no_graph_ = false;
        }
        if (recorded) cudaGraphDestroy(recorded);
        (void)cudaGetLastError();
    }

    std::vector<float> values(const char* name) const {
        const auto* const data = static_cast<const float*>(buffers_.at(name).host());
        return {data, data + sizes_.at(name) / sizeof(float)};
    }

    /// After a failed call the next one starts with a fresh context.
    void forget() {
        if (stream_) (void)cudaStreamSynchronize(stream_.get());
        replay_.reset();
        context_.reset();
        buffers_.clear();
        batch_ = 0;
        (void)cudaGetLastError();
    }

    std::shared_ptr<Loaded> loaded_;
    EngineUse use_;
    cuda::Stream stream_;
    cuda::Event end_;
    std::map<std::string, cuda::Buffer> buffers_;
    std::map<std::string, std::size_t> sizes_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cuda::Graph replay_;
    bool replay_uploads_ = true, no_graph_ = false;
    int batch_ = 0;
};

}  // namespace

std::string engine_flavour() { return GAMMA_TENSORRT_FLAVOUR; }

std::string engine_version() {
    const auto part = [](std::int32_t number) { return std::to_string(number); };
    return part(getInferLibMajorVersion()) + "." + part(getInferLibMinorVersion()) + "." +
           part(getInferLibPatchVersion()) + "." + part(getInferLibBuildVersion());
}

std::unique_ptr<Backend> open_tensorrt(const std::vector<std::uint8_t>& plan, const std::string& name,
                                       const EngineUse& use) {
    return std::make_unique<TensorRt>(load(plan, name), use);
}

}  // namespace gamma_edge
