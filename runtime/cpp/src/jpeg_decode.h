// JPEG through libjpeg-turbo's plain API: the TurboJPEG one refused unusual sampling factors before its version 3.
#pragma once

#include "gamma/bytes.h"

namespace gamma_edge {

struct JpegPixels {
    int width = 0, height = 0, channels = 0;  ///< 1 grey, 3 RGB, or 4 inks as they are stored
    Bytes samples;                            ///< uint8 [height, width, channels]
};

/// Every warning of libjpeg is an error. Throws formats::Malformed.
JpegPixels decode_jpeg(View data);

}  // namespace gamma_edge
