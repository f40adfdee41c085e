// What happens to the pixels of one size, decided before a pixel is decoded.
#pragma once

#include <string>

#include "gamma/contract.h"

namespace gamma_edge {

struct Size {
    int width = 0, height = 0;
    bool operator!=(const Size& other) const { return width != other.width || height != other.height; }
};

/// Reduced first, then grown where a side is under 224.
struct CropPlan {
    Size reduced, final;
    bool native = false;
};

/// Throws Error: input (the contract refuses this size), usage (unknown scene).
CropPlan plan_crops(Size size, const Contract& contract, const std::string& scene, const std::string& where);

}  // namespace gamma_edge
