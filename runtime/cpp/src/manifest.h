// manifest.json as strict JSON, and the checked reading of its objects.
#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>

#include "gamma/bytes.h"
#include "text.h"

namespace gamma_edge {

/// A JSON object: no duplicate keys, no NaN or infinity, at most 32 levels deep.
/// Throws Error (integrity).
nlohmann::json parse_json(View content, const std::string& path);

/// A plain file's content: links could change under us, pipes and devices never end.
/// Throws Error (integrity): missing, unreadable, a link, not a regular file, or larger than `max_bytes`.
Bytes read_plain(const std::string& path, std::uint64_t max_bytes);

/// Size and SHA-256 of a plain file, read piece by piece; the digest is empty where the size is not the wanted one.
/// Throws Error (integrity): as read_plain.
std::pair<std::uint64_t, std::string> hash_plain(const std::string& path, std::uint64_t wanted);

/// An object of the manifest whose keys are taken one by one; what is left over is not known, and refused.
class Object {
public:
    /// `where` is its place for messages. Throws Error (integrity): no object.
    Object(const nlohmann::json& data, std::string where);

    const nlohmann::json& take(const std::string& key);
    const nlohmann::json* find(const std::string& key);  ///< nullptr where it is missing or null
    std::string text(const std::string& key);            ///< one line without control characters
    std::string named(const std::string& key, const std::set<std::string>& choices);
    std::string scene(const std::string& key);
    std::string file_name(const std::string& key);
    std::string digest(const std::string& key);
    std::uint64_t count(const std::string& key);
    const nlohmann::json& list(const std::string& key);
    auto items() const { return data_.items(); }
    void skip(const std::string& key);  ///< known, and of no use here
    /// Throws Error (integrity): a key is left.
    void done() const;

    [[noreturn]] void fail(const std::string& what) const;

private:
    const nlohmann::json& data_;
    std::string where_;
    std::set<std::string> taken_;
};

bool is_scene(const std::string& text);
bool is_file_name(const std::string& text);
bool is_digest(const std::string& text);

}  // namespace gamma_edge
