// Frames of a source through OpenCV: the one backend that is meant for its kind, and never silently another.
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <opencv2/core/utils/logger.hpp>
#include <opencv2/imgproc.hpp>
#include <opencv2/videoio.hpp>
#include <opencv2/videoio/registry.hpp>
#include <thread>

#include "gamma/error.h"
#include "gamma/source.h"
#include "sniff.h"
#include "video_file.h"

namespace gamma_edge {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kLonger = 0.5;  // seconds: who waits for a frame gives up first; then FFmpeg lets its thread go
constexpr double kGrace = 2.0;   // seconds that closing waits for the reader; a driver may hold it for longer
constexpr auto kSlice = std::chrono::milliseconds(100);  // between two looks at whether someone said stop

struct Kind {
    cv::VideoCaptureAPIs api;
    const char* name;
    const char* hint;
};

const std::map<std::string, Kind> kKinds{
    {"video", {cv::CAP_FFMPEG, "FFmpeg", "a codec that this OpenCV does not have, or a damaged file"}},
    {"http", {cv::CAP_FFMPEG, "FFmpeg", "is the address right, does it answer, and is it a video stream (MJPEG)?"}},
    {"rtsp", {cv::CAP_FFMPEG, "FFmpeg", "is the address right, does it answer, and are user and password right?"}},
    {"v4l2", {cv::CAP_V4L2, "V4L2", "does another program use the camera?"}},
    {"csi", {cv::CAP_GSTREAMER, "GStreamer", "is the sensor connected and nvargus-daemon running?"}},
    {"gst", {cv::CAP_GSTREAMER, "GStreamer", "gst-launch-1.0 says more: is an element not installed?"}}};

void check_device(const std::string& path) {
    const char* const hint = "ls /dev/video*; v4l2-ctl --list-devices";
    struct stat status{};
    if (stat(path.c_str(), &status) != 0)
        throw input_error(path + ": no such camera (" + std::strerror(errno) + ")", hint);
    if (!S_ISCHR(status.st_mode)) throw input_error(path + ": not a camera (no character device)", hint);
    if (access(path.c_str(), R_OK | W_OK) != 0)
        throw input_error(path + ": this user may not use it", "sudo usermod -aG video $USER, then log in again");
}

/// Say what can be said before anything is opened.
void check_source(const Source& source, const FrameOptions& options) {
    if (options.every < 1) throw Error(Exit::usage, "every " + std::to_string(options.every) + "th frame; at least 1");
    if (!(options.timeout > 0 && options.timeout <= 86400))
        throw Error(Exit::usage, "a timeout of more than 0 and at most 86400 seconds is needed");
    const auto kind = kKinds.find(source.kind);
    if (kind == kKinds.end())
        throw Error(Exit::usage, source.name + ": not a video", "video:PATH reads it as one, whatever its name");
    if (source.kind == "video") check_video(source.target);
    if (source.kind == "v4l2") check_device(source.target);
    if (!cv::videoio_registry::hasBackend(kind->second.api))
        throw Error(
            Exit::environment,
            "OpenCV " CV_VERSION " here has no " + std::string(kind->second.name) + ": " + source.kind + " cannot open",
            "JetPack's and Debian's OpenCV have FFmpeg, V4L2 and GStreamer");
}

/// V4L2 drivers take the nearest size they have, without a word.
void ask_size(cv::VideoCapture& capture, const Source& source) {
    if (source.width) {
        capture.set(cv::CAP_PROP_FRAME_WIDTH, source.width);
        capture.set(cv::CAP_PROP_FRAME_HEIGHT, source.height);
    }
    if (source.fps) capture.set(cv::CAP_PROP_FPS, source.fps);
    const auto got = [&](int key) { return static_cast<int>(capture.get(key)); };
    const int width = got(cv::CAP_PROP_FRAME_WIDTH), height = got(cv::CAP_PROP_FRAME_HEIGHT);
    if (source.width && (width != source.width || height != source.height))
        throw input_error(source.name + ": the camera gives " + std::to_string(width) + "x" + std::to_string(height),
                          "v4l2-ctl --list-formats-ext shows the sizes it has");
}

cv::VideoCapture opened(const Source& source, const FrameOptions& options) {
    const Kind& kind = kKinds.at(source.kind);
    std::vector<int> parameters;
    if (source.kind == "http" || source.kind == "rtsp") {
        const int wait = static_cast<int>(std::lround((options.timeout + kLonger) * 1000));
        parameters = {cv::CAP_PROP_OPEN_TIMEOUT_MSEC, wait, cv::CAP_PROP_READ_TIMEOUT_MSEC, wait};
    }
    // An absolute path: FFmpeg would take a colon in a relative one for a protocol.
    const bool file = source.kind == "video";
    const std::string target = file ? std::filesystem::absolute(source.target).string() : source.target;
    cv::VideoCapture capture;
    if (!capture.open(target, kind.api, parameters)) throw input_error(source.name + ": cannot be opened", kind.hint);
    if (source.kind == "v4l2") ask_size(capture, source);
    const int width = static_cast<int>(capture.get(cv::CAP_PROP_FRAME_WIDTH)),
              height = static_cast<int>(capture.get(cv::CAP_PROP_FRAME_HEIGHT));
    if (width > 0 && height > 0) check_size(width, height, options.limits, source.name);
    return capture;
}

/// The frame that was grabbed last, RGB; OpenCV has BGR, or grey where a pipeline says so.
Pixels retrieved(cv::VideoCapture& capture, const Source& source) {
    cv::Mat stored;
    if (!capture.retrieve(stored) || stored.empty() || stored.depth() != CV_8U ||
        (stored.channels() != 1 && stored.channels() != 3))
        throw input_error(source.name + ": a frame cannot be converted");
    Pixels pixels{stored.cols, stored.rows, Bytes(3 * stored.total())};
    cv::Mat rgb(stored.rows, stored.cols, CV_8UC3, pixels.rgb.data());
    cv::cvtColor(stored, rgb, stored.channels() == 1 ? cv::COLOR_GRAY2RGB : cv::COLOR_BGR2RGB);
    return pixels;
}

}  // namespace

class Frames::Reader {
public:
    virtual ~Reader() = default;
    virtual std::optional<Frame> next() = 0;

    std::atomic<bool> stopped{false};
    std::atomic<std::int64_t> read{0}, dropped{0};
};

/// Reads when asked. Frames between are grabbed: decoded, as later ones need them, but not converted.
class Frames::File final : public Reader {
public:
    File(const Source& source, const FrameOptions& options)
        : source_(source), every_(options.every), capture_(opened(source, options)) {}

    std::optional<Frame> next() override {
        while (!stopped && capture_.grab()) {
            const std::int64_t index = read++;
            if (index == 0) first_ = clock();
            if (index % every_ == 0) return Frame{index, std::fmax(0, clock() - first_), retrieved(capture_, source_)};
        }
        if (read == 0 && !stopped)
            throw input_error(source_.name + ": no frame of it can be decoded", "a damaged file?");
        return std::nullopt;
    }

private:
    double clock() const {
        const double seconds = capture_.get(cv::CAP_PROP_POS_MSEC) / 1000;
        return std::isfinite(seconds) ? seconds : 0;
    }

    Source source_;
    int every_;
    cv::VideoCapture capture_;
    double first_ = 0;
};

/// A thread that reads all the time; it opens the source too, because that may take as long as it likes.
class Frames::Live final : public Reader {
public:
    Live(const Source& source, const FrameOptions& options) : shared_(std::make_shared<Shared>()) {
        shared_->source = source;
        shared_->options = options;
        shared_->owner = this;
        thread_ = std::thread([shared = shared_] { run(*shared); });
    }

    /// A driver that holds the thread for longer than the grace keeps it; it ends by itself.
    ~Live() override {
        std::unique_lock<std::mutex> held(shared_->mutex);
        shared_->closed = true;
        shared_->changed.wait_for(held, Seconds(kGrace), [&] { return shared_->gone; });
        shared_->owner = nullptr;
        const bool gone = shared_->gone;
        held.unlock();
        if (gone)
            thread_.join();
        else
            thread_.detach();
    }

    std::optional<Frame> next() override {
        const double timeout = shared_->options.timeout;
        const auto deadline = Clock::now() + Seconds(timeout);
        const std::string& name = shared_->source.name;
        std::unique_lock<std::mutex> held(shared_->mutex);
        while (!stopped) {
            if (shared_->frame) return std::exchange(shared_->frame, std::nullopt);
            if (shared_->error) throw Error(*shared_->error);
            if (shared_->ended)
                throw input_error(name + ": the stream ended after " + std::to_string(read) + " frames",
                                  "start again when it is back");
            if (Clock::now() >= deadline) {
                const std::string hint = read ? "is it still connected?" : kKinds.at(shared_->source.kind).hint;
                char text[40];
                std::snprintf(text, sizeof text, "%g", timeout);
                throw input_error(name + ": no frame for " + text + " seconds",
                                  hint + " (--frame-timeout waits longer)");
            }
            shared_->changed.wait_for(held, kSlice);
        }
        return std::nullopt;
    }

private:
    /// What both threads see; under the mutex.
    struct Shared {
        std::mutex mutex;
        std::condition_variable changed;
        Source source;
        FrameOptions options;
        Live* owner = nullptr;
        std::optional<Frame> frame;  // room for one: a newer frame takes the place of one that nobody took yet
        std::optional<Error> error;
        bool ended = false, closed = false, gone = false;
    };

    static void run(Shared& shared) {
        std::optional<Error> error;
        try {
            cv::VideoCapture capture = opened(shared.source, shared.options);
            read_all(shared, capture);
        } catch (const Error& caught) {
            error = caught;
        } catch (const std::exception& caught) {
            error = Error(Exit::environment, shared.source.name + ": OpenCV failed (" + caught.what() + ")");
        }
        const std::lock_guard<std::mutex> held(shared.mutex);
        shared.error = error;
        shared.ended = shared.gone = true;
        shared.changed.notify_all();
    }

    static void read_all(Shared& shared, cv::VideoCapture& capture) {
        std::optional<Clock::time_point> first;
        for (std::int64_t index = 0; capture.grab(); ++index) {
            const auto now = Clock::now();
            first = first.value_or(now);
            std::optional<Frame> frame;
            if (index % shared.options.every == 0)
                frame = Frame{index, Seconds(now - *first).count(), retrieved(capture, shared.source)};
            const std::lock_guard<std::mutex> held(shared.mutex);
            if (shared.closed || !shared.owner) return;
            ++shared.owner->read;
            if (!frame) continue;
            if (shared.frame) ++shared.owner->dropped;
            shared.frame = std::move(frame);
            shared.changed.notify_all();
        }
    }

    std::shared_ptr<Shared> shared_;
    std::thread thread_;
};

Frames::Frames(const Source& source, const FrameOptions& options) {
    check_source(source, options);
    // Our errors say it, and hostile metadata is never logged raw. Before there is a second thread.
    setenv("OPENCV_FFMPEG_LOGLEVEL", "-8", 0);
    cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
    if (source.live)
        reader_ = std::make_unique<Live>(source, options);
    else
        reader_ = std::make_unique<File>(source, options);
}

Frames::~Frames() = default;

std::optional<Frame> Frames::next() {
    try {
        return reader_->next();
    } catch (const cv::Exception& error) {
        throw input_error(std::string("OpenCV failed on a frame (") + error.what() + ")");
    }
}

void Frames::stop() { reader_->stopped = true; }

std::int64_t Frames::read() const { return reader_->read; }

std::int64_t Frames::dropped() const { return reader_->dropped; }

}  // namespace gamma_edge
