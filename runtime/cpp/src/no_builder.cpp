// In place of TensorRT's builder, where this build has none: no TensorRT, its lean runtime, or no ONNX parser.
#include "gamma/error.h"
#include "plan.h"

namespace gamma_edge {

PlanResult compile_plan(const PlanSpec&) {
    throw Error(Exit::environment, "this gamma_runtime was built without TensorRT's builder and ONNX parser",
                "cmake -DTensorRT_FLAVOR=FULL -DTensorRT_ROOT=…, or build the engine with Python's gamma-build");
}

}  // namespace gamma_edge
