// TensorRT on a real GPU: gpu PHOTO, with an engine of the bundle GAMMA_TEST_BUNDLE. Ends with 77 where there is no
// GPU. The engine scores the photo like a second context and like a replayed CUDA graph, and crops that are cut on the
// GPU are the CPU's byte for byte.
#include <cuda_runtime_api.h>

#include <exception>
#include <iostream>
#include <thread>

#include "../src/crop_plan.h"
#include "../src/device_crops.h"
#include "../tools/command.h"
#include "gamma/engine.h"
#include "gamma/scorer.h"

namespace {

using namespace gamma_edge;

constexpr int kSkipped = 77;

void must(bool so, const char* what) {
    if (!so) throw Error(Exit::gate, what);
}

void ask(cudaError_t code) { must(code == cudaSuccess, cudaGetErrorString(code)); }

/// A frame in device memory, with padded rows, as a camera would hand it over.
class Uploaded {
public:
    explicit Uploaded(const Pixels& pixels) {
        const auto row = static_cast<std::size_t>(3 * pixels.width), rows = static_cast<std::size_t>(pixels.height);
        void* memory = nullptr;
        ask(cudaMallocPitch(&memory, &pitch_, row, rows));
        memory_ = memory;
        ask(cudaMemcpy2D(memory_, pitch_, pixels.rgb.data(), row, row, rows, cudaMemcpyHostToDevice));
        ask(cudaDeviceSynchronize());  // the library waits for no stream of the caller's
        frame_ = {static_cast<const std::uint8_t*>(memory_), pixels.width, pixels.height, pitch_, PixelOrder::rgb};
    }
    ~Uploaded() { cudaFree(memory_); }
    Uploaded(const Uploaded&) = delete;
    Uploaded& operator=(const Uploaded&) = delete;

    const DeviceFrame& frame() const { return frame_; }

private:
    void* memory_ = nullptr;
    std::size_t pitch_ = 0;
    DeviceFrame frame_;
};

void check_crops(const Scorer& scorer, const Pixels& pixels, const DeviceFrame& frame) {
    const Contract& contract = scorer.bundle().contract();
    const Prepared wanted = prepare(pixels, contract, scorer.scene(), "photo");
    const CropPlan plan = plan_crops({pixels.width, pixels.height}, contract, scorer.scene(), "photo");
    const auto places = contract.crop.positions(plan.final.width, plan.final.height);
    Bytes made(wanted.crops.size());
    ask(cudaMemcpy(made.data(), make_device_crops()->make(frame, plan.reduced, places), made.size(),
                   cudaMemcpyDeviceToHost));
    must(made == wanted.crops, "crops cut on the GPU differ from the CPU's");
}

int check(const char* bundle, const char* photo) {
    ScorerOptions options;
    options.backend = engine_flavour();
    Scorer scorer(bundle, options);
    const double first = scorer.score_file(photo).value, replayed = scorer.score_file(photo).value;
    must(first == replayed, "a replayed CUDA graph scores otherwise");
    double other = 0;
    std::exception_ptr failed;
    std::thread([&] {
        try {
            other = scorer.another().score_file(photo).value;
        } catch (...) {
            failed = std::current_exception();
        }
    }).join();
    if (failed) std::rethrow_exception(failed);
    must(first == other, "another thread's context scores otherwise");
    const Contract& contract = scorer.bundle().contract();
    const Pixels pixels = decode(read_file(photo, contract.limits.max_bytes), contract, photo).pixels;
    const Uploaded uploaded(pixels);
    check_crops(scorer, pixels, uploaded.frame());
    must(scorer.score(uploaded.frame(), "frame").value == first, "a frame on the GPU scores otherwise");
    std::cout << first << "\n";
    return 0;
}

}  // namespace

int main(int count, char** words) {
    return tool([&] {
        const char* const bundle = std::getenv("GAMMA_TEST_BUNDLE");
        const auto problem = gpu_problem();
        if (problem || !bundle || count != 2) {
            std::cerr << "skipped: " << problem.value_or("GAMMA_TEST_BUNDLE names no bundle with an engine") << "\n";
            return kSkipped;
        }
        return check(bundle, words[1]);
    });
}
