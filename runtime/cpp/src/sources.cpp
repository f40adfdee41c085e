// The grammar of sources. What cannot be understood is never shown: a password may be in it.
#include <algorithm>
#include <map>
#include <regex>

#include "gamma/error.h"
#include "gamma/source.h"

namespace gamma_edge {
namespace {

const char* const kSchemes[] = {"file", "v4l2", "csi", "rtsp", "rtsps", "http", "https"};
const char* const kVideos[] = {".avi", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"};
const std::string kSink = "appsink drop=1 max-buffers=1 sync=false";
constexpr std::size_t kMaxText = 4096;   // characters
constexpr std::size_t kMaxBytes = 8192;  // what std::regex does not run out of stack with
constexpr int kMaxFrame = 7680, kMaxFps = 1000, kMaxSensor = 99;

[[noreturn]] void refuse(const std::string& scheme, const std::string& why, const std::string& hint = "") {
    throw Error(Exit::usage, scheme + "://…: " + why, hint);
}

std::string lower(std::string text) {
    for (char& c : text)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return text;
}

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool is_control(char c) { return static_cast<unsigned char>(c) < 32 || c == 127; }

/// A whole number of one to five digits, or -1.
int number(const std::string& text) {
    const bool digits = !text.empty() && text.size() <= 5 && text.find_first_not_of("0123456789") == text.npos;
    return digits ? std::stoi(text) : -1;
}

std::string trimmed(const std::string& text) {
    const std::size_t first = text.find_first_not_of(' ');
    return first == text.npos ? "" : text.substr(first, text.find_last_not_of(' ') - first + 1);
}

const std::string kNamed = "((?:pass|passwd|password|pwd|pw|token|secret|key|auth|sig|signature)";

/// A pipeline without passwords: those of URLs, and the values of properties that are named like secrets. Where it is
/// not clear where a password ends, more is hidden.
std::string hide(const std::string& text) {
    static const std::regex credentials(R"RE(://(?:([^\s"':/?#@]*):)?\S*@)RE");
    static const std::regex secrets(kNamed + R"RE(\s*=\s*)(?:"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s"'])+)RE",
                                    std::regex::icase);
    std::string shown;
    auto from = text.begin();
    for (std::sregex_iterator at(text.begin(), text.end(), credentials), end; at != end; ++at) {
        shown.append(from, text.begin() + at->position());
        shown += "://" + ((*at)[1].length() ? (*at)[1].str() + ":" : "") + "***@";
        from = text.begin() + at->position() + at->length();
    }
    shown.append(from, text.end());
    return std::regex_replace(shown, secrets, "$1***");
}

Source file(const std::string& path) {
    const std::string name = lower(path);
    const bool video = std::any_of(std::begin(kVideos), std::end(kVideos),
                                   [&](const char* extension) { return ends_with(name, extension); });
    return {video ? "video" : "image", path, path};
}

int hexadecimal(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    const char small = static_cast<char>(c | 32);
    return small >= 'a' && small <= 'f' ? small - 'a' + 10 : -1;
}

/// An absolute path with its %XX decoded; what belongs to other parts of a URI must be written as %XX.
std::string path_of(const std::string& scheme, const std::string& rest) {
    if (rest.empty() || rest[0] != '/')
        refuse(scheme, "an absolute path must follow: three slashes", scheme + ":///… ; no host is asked");
    if (rest.find_first_of("?#") != rest.npos)
        refuse(scheme, "? and # are not part of a path", "write them as %3F and %23");
    std::string path;
    for (std::size_t i = 0; i < rest.size(); ++i) {
        if (rest[i] != '%') {
            path += rest[i];
            continue;
        }
        const int high = i + 2 < rest.size() ? hexadecimal(rest[i + 1]) : -1;
        const int low = i + 2 < rest.size() ? hexadecimal(rest[i + 2]) : -1;
        if (high < 0 || low < 0)
            refuse(scheme, "a % that two hexadecimal digits do not follow", "write % itself as %25");
        if (high == 0 && low == 0) refuse(scheme, "a path with a NUL in it");
        path += static_cast<char>(16 * high + low);
        i += 2;
    }
    return path;
}

std::map<std::string, int> query_of(const std::string& scheme, const std::string& query) {
    const std::map<std::string, int> most{{"width", kMaxFrame}, {"height", kMaxFrame}, {"fps", kMaxFps}};
    std::map<std::string, int> found;
    for (std::size_t at = 0; at <= query.size();) {
        const std::size_t end = std::min(query.find('&', at), query.size());
        const std::string part = query.substr(at, end - at), key = part.substr(0, part.find('='));
        if (!most.count(key) || found.count(key))
            refuse(scheme, "after ? only width, height and fps are known, each once", "?width=1280&height=720&fps=30");
        const int value = key.size() < part.size() ? number(part.substr(key.size() + 1)) : -1;
        if (value < 1 || value > most.at(key))
            refuse(scheme, key + " is a whole number from 1 to " + std::to_string(most.at(key)));
        found[key] = value;
        at = end + 1;
    }
    if (found.count("width") != found.count("height")) refuse(scheme, "width and height are asked for together");
    return found;
}

/// Of whole numbers and fixed text only: nothing that a user wrote gets into it.
std::string csi_pipeline(int sensor, int width, int height, int fps) {
    const auto text = [](int value) { return std::to_string(value); };
    return "nvarguscamerasrc sensor-id=" + text(sensor) + " ! video/x-raw(memory:NVMM)" +
           (width ? ",width=" + text(width) + ",height=" + text(height) : "") +
           (fps ? ",framerate=" + text(fps) + "/1" : "") +
           " ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! " + kSink;
}

Source url(const std::string& scheme, const std::string& rest) {
    const auto allowed = [](char c) {  // printable ASCII without " # < > \ ^ ` { | }
        return c > 32 && c < 127 && std::string("\"#<>\\^`{|}").find(c) == std::string::npos;
    };
    if (rest.empty() || !std::all_of(rest.begin(), rest.end(), allowed))
        refuse(scheme, "a character that a URL cannot have", "write it as %XX, also in a password");
    const std::string authority = rest.substr(0, rest.find_first_of("/?"));
    // Else the beginning of a password with a slash in it would be taken for a host, and be shown.
    if (rest.find('@', authority.size()) != rest.npos)
        refuse(scheme, "an @ after the host", "in a password write / as %2F and ? as %3F; elsewhere @ as %40");
    static const std::regex host(R"((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?)");
    const std::size_t user = authority.rfind('@');
    const std::string place = user == authority.npos ? authority : authority.substr(user + 1);
    std::smatch match;
    const bool fits = std::regex_match(place, match, host);
    const int port = fits && match[1].matched ? number(match[1].str()) : 1;
    if (!fits || port < 1 || port > 65535)
        refuse(scheme, "HOST or HOST:PORT must follow", "in a password write / as %2F, : as %3A and @ as %40");
    std::string hidden;
    if (user != authority.npos) {
        const std::string who = authority.substr(0, user);
        const std::size_t colon = who.find(':');
        hidden = colon != who.npos && colon > 0 ? who.substr(0, colon + 1) + "***@" : "***@";
    }
    static const std::regex secrets(kNamed + "=)[^&]+", std::regex::icase);
    const std::string shown = std::regex_replace(rest.substr(authority.size()), secrets, "$1***");
    const std::string start = scheme + "://";
    return {starts_with(scheme, "rtsp") ? "rtsp" : "http", start + rest, start + hidden + place + shown, true};
}

Source located(const std::string& scheme, const std::string& rest) {
    if (scheme == "file") return file(path_of(scheme, rest));
    if (scheme != "v4l2" && scheme != "csi") return url(scheme, rest);
    const std::size_t mark = rest.find('?');
    const std::string where = rest.substr(0, mark);
    std::map<std::string, int> numbers;
    if (mark != rest.npos) numbers = query_of(scheme, rest.substr(mark + 1));
    const int width = numbers["width"], height = numbers["height"], fps = numbers["fps"];
    const std::string name = scheme + "://" + rest;
    if (scheme == "v4l2") return {"v4l2", path_of(scheme, where), name, true, width, height, fps};
    const int sensor = number(where);
    if (sensor < 0 || sensor > kMaxSensor)
        refuse(scheme, "a sensor's number is 0 to " + std::to_string(kMaxSensor), "csi://0 is the first camera");
    return {"csi", csi_pipeline(sensor, width, height, fps), name, true};
}

Source pipeline(const std::string& text) {
    std::string body = trimmed(text);
    if (std::any_of(body.begin(), body.end(), is_control))
        throw Error(Exit::usage, "gst:…: a control character in the pipeline", "write it on one line");
    const std::size_t mark = body.rfind('!');
    const std::string last = trimmed(mark == body.npos ? body : body.substr(mark + 1));
    if (last.empty() || (mark != body.npos && trimmed(body.substr(0, mark)).empty()))
        throw Error(Exit::usage, "gst:…: the pipeline is empty, or an element is missing at a !", "gst:videotestsrc");
    const std::string name = "gst:" + body;
    if (last.substr(0, last.find(' ')) != "appsink")
        body += " ! " + kSink;
    else if (mark == body.npos)
        throw Error(Exit::usage, "gst:…: nothing comes before appsink", "gst:videotestsrc ! videoconvert ! appsink");
    return {"gst", body, hide(name), true};
}

}  // namespace

Source parse_source(const std::string& text) {
    const auto starts = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };  // a character
    const auto characters = static_cast<std::size_t>(std::count_if(text.begin(), text.end(), starts));
    if (text.empty() || text.find('\0') != text.npos || characters > kMaxText || text.size() > kMaxBytes)
        throw Error(Exit::usage, "a source is empty, has a NUL in it, or is longer than 4096 characters");
    const std::size_t colon = text.find(':');
    if (colon == text.npos) return file(text);
    const std::string scheme = lower(text.substr(0, colon)), rest = text.substr(colon + 1);
    if (scheme == "gst") return pipeline(rest);
    if (scheme == "video") {
        if (rest.empty())
            throw Error(Exit::usage, "video: without a path", "video:PATH reads PATH as a video, whatever its name");
        return {"video", rest, rest};
    }
    if (std::find(std::begin(kSchemes), std::end(kSchemes), scheme) != std::end(kSchemes)) {
        if (!starts_with(rest, "//"))
            refuse(scheme, "two slashes must follow " + scheme + ":", "./" + scheme + ":… for a file of that name");
        return located(scheme, rest.substr(2));
    }
    static const std::regex looks_like_one("[a-z][a-z0-9+.-]*");
    if (starts_with(rest, "//") && std::regex_match(scheme, looks_like_one))
        refuse(scheme, "an unknown kind of source",
               "known are file:// v4l2:// csi:// rtsp:// rtsps:// http:// https:// video: gst:; ./" + scheme +
                   ":… for a file");
    return file(text);
}

}  // namespace gamma_edge
