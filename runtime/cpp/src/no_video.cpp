// In place of videos and cameras, where this build has no videoio of OpenCV's.
#include "gamma/error.h"
#include "gamma/source.h"

namespace gamma_edge {

class Frames::Reader {};

Frames::Frames(const Source& source, const FrameOptions&) {
    throw Error(Exit::environment, source.name + ": this gamma_runtime was built without OpenCV's videoio",
                "apt-get install libopencv-videoio-dev, then build it again");
}

Frames::~Frames() = default;
std::optional<Frame> Frames::next() { return std::nullopt; }
void Frames::stop() {}
std::int64_t Frames::read() const { return 0; }
std::int64_t Frames::dropped() const { return 0; }

}  // namespace gamma_edge
