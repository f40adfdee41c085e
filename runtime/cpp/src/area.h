// Reduction by pixel area, with the same bytes on every processor.
#pragma once

#include "gamma/image.h"

namespace gamma_edge {

/// What cv::resize with INTER_AREA makes on x86, to a size that is no larger on either side. OpenCV's own code
/// multiplies and adds in one rounding on Arm and in two on x86, which is 1 of 255 off here and there.
Pixels reduced_by_area(const Pixels& pixels, int width, int height);

/// Our own sum, for factors that are not whole; what other processors take.
Pixels steady_area(const Pixels& pixels, int width, int height);

}  // namespace gamma_edge
