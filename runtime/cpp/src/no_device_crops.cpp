// In place of crops on the GPU, where this build has none.
#include "device_crops.h"
#include "gamma/error.h"

namespace gamma_edge {

std::unique_ptr<DeviceCrops> make_device_crops() {
    throw Error(Exit::environment, "this gamma_runtime was built without its CUDA sources",
                "build it where nvcc is, with TensorRT; or copy the frame to the host and score that");
}

}  // namespace gamma_edge
