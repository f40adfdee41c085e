// In place of TensorRT, where this build has none.
#include "engines.h"
#include "gamma/backend.h"
#include "gamma/error.h"

namespace gamma_edge {
namespace {

const char* const kMissing = "this gamma_runtime was built without TensorRT";
const char* const kHint = "cmake -DTensorRT_ROOT=… (JetPack has it in /usr), or --backend openvino";

}  // namespace

std::string engine_flavour() { return ""; }

std::string engine_version() { return ""; }

std::optional<std::string> gpu_problem() { return kMissing; }

std::optional<std::uint64_t> free_gpu_memory() { return std::nullopt; }

Device this_device() { throw Error(Exit::environment, kMissing, kHint); }

std::unique_ptr<Backend> open_tensorrt(const std::vector<std::uint8_t>&, const std::string&, const EngineUse&) {
    throw Error(Exit::environment, kMissing, kHint);
}

}  // namespace gamma_edge
