# FindTensorRT: TensorRT, its lean runtime, or TensorRT-RTX, with the CUDA runtime and, where it is there, the ONNX parser.
#   in:  TensorRT_FLAVOR = FULL | LEAN | RTX (FULL); TensorRT_ROOT, TensorRT_LIBRARY_DIR, CUDAToolkit_ROOT (hints)
#   out: TensorRT_FOUND, TensorRT_VERSION (of the headers), TensorRT::Runtime, TensorRT::Parser if it was found
# The Python wheels carry libraries with a version in their names (libnvinfer_lean.so.11) and no headers.
set(TensorRT_FLAVOR "FULL" CACHE STRING "FULL, LEAN or RTX")
set_property(CACHE TensorRT_FLAVOR PROPERTY STRINGS FULL LEAN RTX)
set(_runtime_FULL nvinfer libnvinfer.so.11 libnvinfer.so.10)
set(_runtime_LEAN nvinfer_lean libnvinfer_lean.so.11 libnvinfer_lean.so.10)
set(_runtime_RTX tensorrt_rtx libtensorrt_rtx.so.1)
set(_parser_FULL nvonnxparser libnvonnxparser.so.11 libnvonnxparser.so.10)
set(_parser_RTX tensorrt_onnxparser_rtx libtensorrt_onnxparser_rtx.so.1)

set(_places ${TensorRT_ROOT} $ENV{TensorRT_ROOT} /usr/local/tensorrt /opt/tensorrt)
set(_cuda_places ${CUDAToolkit_ROOT} $ENV{CUDAToolkit_ROOT} $ENV{CUDA_HOME} /usr/local/cuda)
find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h HINTS ${_places} PATH_SUFFIXES include)
find_path(TensorRT_PARSER_INCLUDE_DIR NvOnnxParser.h HINTS ${TensorRT_INCLUDE_DIR} ${_places} PATH_SUFFIXES include)
find_path(TensorRT_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${_cuda_places} PATH_SUFFIXES include targets/aarch64-linux/include)
find_library(TensorRT_LIBRARY NAMES ${_runtime_${TensorRT_FLAVOR}} HINTS ${TensorRT_LIBRARY_DIR} ${_places} PATH_SUFFIXES lib lib64)
find_library(TensorRT_CUDART_LIBRARY NAMES cudart libcudart.so.13 libcudart.so.12 HINTS ${_cuda_places}
  PATH_SUFFIXES lib64 lib targets/aarch64-linux/lib)
if(_parser_${TensorRT_FLAVOR})
  find_library(TensorRT_PARSER_LIBRARY NAMES ${_parser_${TensorRT_FLAVOR}} HINTS ${TensorRT_LIBRARY_DIR} ${_places}
    PATH_SUFFIXES lib lib64)
endif()

if(TensorRT_INCLUDE_DIR AND EXISTS "${TensorRT_INCLUDE_DIR}/NvInferVersion.h")
  file(READ "${TensorRT_INCLUDE_DIR}/NvInferVersion.h" _header)
  foreach(_part MAJOR MINOR PATCH)
    # Numbers up to 10.10; since then NV_TENSORRT_MAJOR names TRT_MAJOR_ENTERPRISE, or TRT_MAJOR_RTX.
    if(_header MATCHES "#define[ \t]+(NV_TENSORRT_${_part}|TRT_${_part}_ENTERPRISE|TRT_${_part}_RTX)[ \t]+([0-9]+)")
      set(_${_part} ${CMAKE_MATCH_2})
    endif()
  endforeach()
  set(TensorRT_VERSION "${_MAJOR}.${_MINOR}.${_PATCH}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT
  REQUIRED_VARS TensorRT_LIBRARY TensorRT_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR TensorRT_CUDART_LIBRARY
  VERSION_VAR TensorRT_VERSION)
if(TensorRT_FOUND AND NOT TARGET TensorRT::Runtime)
  # Imported include folders are system ones: the 10.x headers do not compile without warnings.
  add_library(TensorRT::Runtime UNKNOWN IMPORTED)
  set_target_properties(TensorRT::Runtime PROPERTIES IMPORTED_LOCATION "${TensorRT_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR};${TensorRT_CUDA_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${TensorRT_CUDART_LIBRARY}")
  if(_parser_${TensorRT_FLAVOR} AND TensorRT_PARSER_LIBRARY AND TensorRT_PARSER_INCLUDE_DIR)
    add_library(TensorRT::Parser UNKNOWN IMPORTED)
    set_target_properties(TensorRT::Parser PROPERTIES IMPORTED_LOCATION "${TensorRT_PARSER_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_PARSER_INCLUDE_DIR}")
  endif()
endif()
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_PARSER_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR TensorRT_LIBRARY
  TensorRT_CUDART_LIBRARY TensorRT_PARSER_LIBRARY)
