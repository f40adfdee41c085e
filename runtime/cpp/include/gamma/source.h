// Cameras, streams and video files: what a text names, and its frames one by one. docs/cameras.md has the table.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "gamma/contract.h"
#include "gamma/image.h"

namespace gamma_edge {

/// What a text names.
struct Source {
    std::string kind;           ///< image (a file or folder), video (a file), or live: v4l2, csi, rtsp, http, gst
    std::string target;         ///< what is opened; may hold a password, so it is never shown
    std::string name;           ///< for people, logs and records; passwords are hidden
    bool live = false;          ///< frames come when they come; one that is late is dropped
    int width = 0, height = 0;  ///< pixels asked of a V4L2 camera; 0 for its own choice
    int fps = 0;                ///< likewise
};

/// Read a path or a source: file:/// video: v4l2:/// csi:// rtsp:// http:// gst: and what follows; the same grammar as
/// gamma_runtime.sources.parse_source.
/// Throws Error (usage): an unknown scheme, or one that is not followed by what it needs.
Source parse_source(const std::string& text);

struct FrameOptions {
    int every = 1;        ///< n; 1 for every frame
    double timeout = 10;  ///< seconds that a live source may give no frame
    Limits limits;        ///< on the frame's size; a bundle's contract has them
};

struct Frame {
    std::int64_t index = 0;  ///< its number in the source, from 0; dropped ones and those between count
    double seconds = 0;      ///< since the first frame: by the file's own clock, or by ours for a live source
    Pixels pixels;           ///< RGB
};

/// A source's frames. A file gives every n-th, in order; a live source is read by a thread that keeps the newest n-th
/// frame and nothing else: what is not asked for in time is dropped.
class Frames {
public:
    /// Throws Error: input (missing, or not what it should be), environment (this OpenCV cannot open such a source),
    /// usage (a number that makes no sense, or a source of images).
    Frames(const Source& source, const FrameOptions& options);
    ~Frames();
    Frames(const Frames&) = delete;
    Frames& operator=(const Frames&) = delete;

    /// The next frame; nothing at a file's end, or after stop().
    /// Throws Error (input): it does not open, gives nothing for `timeout` seconds, or, live, has ended.
    std::optional<Frame> next();

    /// No further frame is handed out. A signal's handler and another thread may call it.
    void stop();

    std::int64_t read() const;     ///< frames that the source gave, those between the n-th ones included
    std::int64_t dropped() const;  ///< n-th frames that nobody asked for in time; always 0 for a file

private:
    class Reader;
    class File;
    class Live;
    std::unique_ptr<Reader> reader_;
};

}  // namespace gamma_edge
