#include "manifest.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "gamma/error.h"
#include "sha256.h"

namespace gamma_edge {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 32;
constexpr std::size_t kMaxLine = 500;

bool between(char c, char low, char high) { return c >= low && c <= high; }

bool all_of(const std::string& text, bool (*allowed)(char)) { return std::all_of(text.begin(), text.end(), allowed); }

/// Opened, and nothing but a file: links could change under us, pipes and devices never end.
class PlainFile {
public:
    explicit PlainFile(const std::string& path)
        : path_(path), number_(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)) {
        const int why = errno;
        struct stat status{};
        if (number_ < 0 && (why == EMFILE || why == ENFILE))
            throw Error(Exit::environment, path + ": " + std::strerror(why), "raise ulimit -n, or close other files");
        if (number_ < 0 && why != ELOOP && why != ENXIO)
            throw integrity_error(path + ": cannot be read: " + std::strerror(why));
        const bool plain =
            number_ >= 0 && fstat(number_, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink <= 1;
        if (!plain) {
            if (number_ >= 0) close(number_);
            throw integrity_error(path + ": not a plain file of its own (link, folder, device or pipe)",
                                  "copy the real file here");
        }
        size_ = static_cast<std::uint64_t>(status.st_size);
    }
    ~PlainFile() { close(number_); }
    PlainFile(const PlainFile&) = delete;
    PlainFile& operator=(const PlainFile&) = delete;

    std::uint64_t size() const { return size_; }

    /// Bytes read; 0 at the end.
    std::size_t read_some(std::uint8_t* to, std::size_t most) const {
        for (;;) {
            const ssize_t got = read(number_, to, most);
            if (got >= 0) return static_cast<std::size_t>(got);
            if (errno != EINTR) throw integrity_error(path_ + ": cannot be read: " + std::strerror(errno));
        }
    }

private:
    std::string path_;
    int number_;
    std::uint64_t size_ = 0;
};

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
    throw integrity_error(path + ": cannot be read (" + why + ")");
}

}  // namespace

bool is_scene(const std::string& text) {
    const auto allowed = [](char c) { return between(c, 'a', 'z') || between(c, '0', '9') || c == '_' || c == '-'; };
    return !text.empty() && text.size() <= 64 && text[0] != '_' && text[0] != '-' && all_of(text, allowed);
}

bool is_file_name(const std::string& text) {
    const auto allowed = [](char c) {
        return between(c, 'a', 'z') || between(c, 'A', 'Z') || between(c, '0', '9') || c == '.' || c == '_' || c == '-';
    };
    return !text.empty() && text.size() <= 200 && text[0] != '.' && text[0] != '-' && all_of(text, allowed);
}

bool is_digest(const std::string& text) {
    return text.size() == 64 && all_of(text, [](char c) { return between(c, '0', '9') || between(c, 'a', 'f'); });
}

json parse_json(View content, const std::string& path) {
    std::vector<std::set<std::string>> keys;  // of the objects that are open
    bool twice = false, deep = false;
    const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
        deep |= depth > kMaxDepth;
        if (event == json::parse_event_t::object_start) keys.emplace_back();
        if (event == json::parse_event_t::object_end) keys.pop_back();
        if (event == json::parse_event_t::key) twice |= !keys.back().insert(parsed.get<std::string>()).second;
        if (deep) throw std::length_error("nested deeper than 32 levels");
        return true;
    };
    json data;
    try {
        data = json::parse(content.data, content.data + content.size, watch);
    } catch (const json::exception& error) {
        refuse(path, std::string(error.what()).substr(0, 200));
    } catch (const std::length_error& error) {
        refuse(path, error.what());
    }
    if (twice) refuse(path, "duplicate keys");
    if (!data.is_object()) throw integrity_error(path + ": not a JSON object");
    return data;
}

Bytes read_plain(const std::string& path, std::uint64_t max_bytes) {
    const PlainFile file(path);
    if (file.size() > max_bytes) throw integrity_error(path + ": larger than " + std::to_string(max_bytes) + " bytes");
    Bytes content(static_cast<std::size_t>(file.size()));
    for (std::size_t filled = 0; filled < content.size();) {
        const std::size_t got = file.read_some(content.data() + filled, content.size() - filled);
        if (got == 0) throw integrity_error(path + ": cannot be read to its end");
        filled += got;
    }
    return content;
}

std::pair<std::uint64_t, std::string> hash_plain(const std::string& path, std::uint64_t wanted) {
    const PlainFile file(path);
    if (file.size() != wanted) return {file.size(), ""};
    Sha256 digest;
    Bytes piece(std::size_t{1} << 20);
    while (const std::size_t got = file.read_some(piece.data(), piece.size())) digest.add({piece.data(), got});
    return {file.size(), digest.hex()};
}

Object::Object(const json& data, std::string where) : data_(data), where_(std::move(where)) {
    if (!data_.is_object()) fail("not an object");
}

void Object::fail(const std::string& what) const { throw integrity_error(where_ + ": " + what); }

const json& Object::take(const std::string& key) {
    taken_.insert(key);
    const auto found = data_.find(key);
    if (found == data_.end()) fail("no " + key);
    return *found;
}

const json* Object::find(const std::string& key) {
    taken_.insert(key);
    const auto found = data_.find(key);
    return found == data_.end() || found->is_null() ? nullptr : &*found;
}

std::string Object::text(const std::string& key) {
    const json& value = take(key);
    if (!value.is_string() || !is_line(value.get<std::string>())) fail(key + " is not a line of text");
    return value.get<std::string>();
}

std::string Object::named(const std::string& key, const std::set<std::string>& choices) {
    std::string value = text(key);
    if (!choices.count(value)) fail(key + " is none that is known");
    return value;
}

std::string Object::scene(const std::string& key) {
    std::string value = text(key);
    if (!is_scene(value)) fail(key + " is not a name");
    return value;
}

std::string Object::file_name(const std::string& key) {
    std::string value = text(key);
    if (!is_file_name(value)) fail(key + " is not a file's name inside the bundle");
    return value;
}

std::string Object::digest(const std::string& key) {
    std::string value = text(key);
    if (!is_digest(value)) fail(key + " is not a SHA-256");
    return value;
}

std::uint64_t Object::count(const std::string& key) {
    const json& value = take(key);
    if (!value.is_number_integer() || value < 0) fail(key + " is not a number of things");
    return value.get<std::uint64_t>();
}

const json& Object::list(const std::string& key) {
    const json& value = take(key);
    if (!value.is_array()) fail(key + " is not a list");
    return value;
}

void Object::skip(const std::string& key) { taken_.insert(key); }

void Object::done() const {
    for (const auto& [key, value] : data_.items())
        if (!taken_.count(key))
            fail("a key that is not known: " + (is_line(key) ? key.substr(0, 100) : "(unprintable)"));
}

}  // namespace gamma_edge
