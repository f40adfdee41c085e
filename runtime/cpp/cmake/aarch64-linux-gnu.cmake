# Debian's cross compiler for 64-bit Arm (g++-aarch64-linux-gnu). Headers and libraries come from GAMMA_SYSROOT, a
# folder with arm64 packages unpacked, and from nowhere else; runtime/cpp/scripts/cross-aarch64 makes one.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

if(NOT GAMMA_SYSROOT)
  message(FATAL_ERROR "-DGAMMA_SYSROOT=FOLDER says where the arm64 libraries lie")
endif()
set(CMAKE_SYSROOT ${GAMMA_SYSROOT})
# The compiler checks of CMake read this file again, without the command line's variables.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES GAMMA_SYSROOT)

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
