// Crops of a frame that lies in the GPU's memory, cut there.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "crop_plan.h"
#include "gamma/image.h"

namespace gamma_edge {

class DeviceCrops {
public:
    virtual ~DeviceCrops() = default;

    /// The crops at `places` (top and left) of the frame reduced to `reduced`, uint8 [count, 224, 224, 3] RGB; or,
    /// without places, the whole reduced frame. In device memory that stays until the next call, and is finished.
    /// Throws Error (environment): CUDA failed.
    virtual const std::uint8_t* make(const DeviceFrame& frame, Size reduced,
                                     const std::vector<std::pair<int, int>>& places) = 0;
};

/// Throws Error (environment): this build has no CUDA sources.
std::unique_ptr<DeviceCrops> make_device_crops();

}  // namespace gamma_edge
