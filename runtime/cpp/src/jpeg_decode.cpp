#include "jpeg_decode.h"

#include <csetjmp>
#include <cstdio>
// jpeglib.h needs FILE, so it comes after cstdio.
#include <jpeglib.h>

#include "formats/header.h"

namespace gamma_edge {
namespace {

struct Fault {
    jpeg_error_mgr manager;
    std::jmp_buf back;
    char text[JMSG_LENGTH_MAX];
};

[[noreturn]] void leave(j_common_ptr info) {
    auto* fault = reinterpret_cast<Fault*>(info->err);
    info->err->format_message(info, fault->text);
    std::longjmp(fault->back, 1);
}

void on_message(j_common_ptr info, int level) {
    if (level < 0) leave(info);  // a warning: data is damaged or missing, and libjpeg would paint it over
}

void say_nothing(j_common_ptr) {}

/// One decompressor; its memory ends with the scope.
struct Decompressor {
    jpeg_decompress_struct info{};
    Fault fault{};

    Decompressor() {
        info.err = jpeg_std_error(&fault.manager);
        fault.manager.error_exit = leave;
        fault.manager.emit_message = on_message;
        fault.manager.output_message = say_nothing;
    }
    ~Decompressor() { jpeg_destroy_decompress(&info); }
    Decompressor(const Decompressor&) = delete;
    Decompressor& operator=(const Decompressor&) = delete;
};

// longjmp must not skip destructors: these two functions own nothing.

bool start(Decompressor& decoder, View data) {
    if (setjmp(decoder.fault.back) != 0) return false;
    jpeg_create_decompress(&decoder.info);
    jpeg_mem_src(&decoder.info, data.data, static_cast<unsigned long>(data.size));
    jpeg_read_header(&decoder.info, TRUE);
    const bool grey = decoder.info.jpeg_color_space == JCS_GRAYSCALE, inks = decoder.info.num_components == 4;
    decoder.info.out_color_space = inks ? JCS_CMYK : grey ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_start_decompress(&decoder.info);
    return true;
}

bool finish(Decompressor& decoder, std::uint8_t* samples, std::size_t stride) {
    if (setjmp(decoder.fault.back) != 0) return false;
    while (decoder.info.output_scanline < decoder.info.output_height) {
        JSAMPROW row = samples + decoder.info.output_scanline * stride;
        jpeg_read_scanlines(&decoder.info, &row, 1);
    }
    jpeg_finish_decompress(&decoder.info);
    return true;
}

}  // namespace

JpegPixels decode_jpeg(View data) {
    Decompressor decoder;
    if (!start(decoder, data)) throw formats::Malformed(decoder.fault.text);
    JpegPixels pixels;
    pixels.width = static_cast<int>(decoder.info.output_width);
    pixels.height = static_cast<int>(decoder.info.output_height);
    pixels.channels = decoder.info.output_components;
    const auto stride = static_cast<std::size_t>(pixels.width) * static_cast<std::size_t>(pixels.channels);
    pixels.samples.resize(stride * static_cast<std::size_t>(pixels.height));
    if (!finish(decoder, pixels.samples.data(), stride)) throw formats::Malformed(decoder.fault.text);
    return pixels;
}

}  // namespace gamma_edge
