#include "onnx_scan.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "formats/header.h"
#include "gamma/error.h"
#include "manifest.h"

namespace gamma_edge {
namespace {

constexpr std::size_t kMaxGraph = std::size_t{256} << 20;  // bytes; a graph is small, its weights lie beside it
constexpr int kMaxDepth = 16;
constexpr std::size_t kListed = 5;

using formats::Malformed;
using Text = std::string_view;

void need(Text data, std::uint64_t at, std::uint64_t count) {
    if (count > data.size() || at > data.size() - count)
        throw Malformed("cut off: " + std::to_string(data.size()) + " bytes, needs more at byte " + std::to_string(at));
}

struct Field {
    std::uint64_t number = 0;
    std::uint64_t value = 0;    // where the field is an integer
    std::optional<Text> bytes;  // a text, a message or packed numbers
};

std::uint64_t varint(Text data, std::uint64_t& place) {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        need(data, place, 1);
        const std::uint64_t byte = static_cast<unsigned char>(data[place++]);
        if (shift < 64) value |= (byte & 0x7f) << shift;
        if (byte < 0x80) return value;
    }
    throw Malformed("a number of more than ten bytes at byte " + std::to_string(place));
}

/// The fields of a message, one after the other: a list of them could be far larger than the file.
class Message {
public:
    explicit Message(Text data) : data_(data) {}

    bool next(Field& field) {
        if (place_ >= data_.size()) return false;
        const std::uint64_t tag = varint(data_, place_), wire = tag & 7;
        field = Field{tag >> 3, 0, {}};
        if (wire == 0) {
            field.value = varint(data_, place_);
        } else if (wire == 1 || wire == 2 || wire == 5) {
            const std::uint64_t length = wire == 2 ? varint(data_, place_) : wire == 1 ? 8 : 4;
            if (field.number == 0) throw Malformed("a field without a number at byte " + std::to_string(place_));
            need(data_, place_, length);
            field.bytes = data_.substr(place_, length);
            place_ += length;
        } else {
            throw Malformed("wire type " + std::to_string(wire) + " at byte " + std::to_string(place_));
        }
        return true;
    }

private:
    Text data_;
    std::uint64_t place_ = 0;
};

std::map<std::uint64_t, std::string> texts_of(Text data) {
    std::map<std::uint64_t, std::string> texts;
    Message message(data);
    for (Field field; message.next(field);) texts[field.number] = std::string(field.bytes.value_or(Text()));
    return texts;
}

/// Message and field number -> the message inside, from onnx.proto. What is not here carries neither data nor nodes.
std::string inside(const std::string& kind, std::uint64_t number) {
    static const std::map<std::pair<std::string, std::uint64_t>, std::string> known{
        {{"model", 7}, "graph"},       {{"model", 8}, "opset"},      {{"model", 20}, "training"},
        {{"model", 25}, "function"},   {{"graph", 1}, "node"},       {{"graph", 5}, "tensor"},
        {{"graph", 15}, "sparse"},     {{"sparse", 1}, "tensor"},    {{"sparse", 2}, "tensor"},
        {{"node", 5}, "attribute"},    {{"attribute", 5}, "tensor"}, {{"attribute", 6}, "graph"},
        {{"attribute", 10}, "tensor"}, {{"attribute", 11}, "graph"}, {{"attribute", 22}, "sparse"},
        {{"attribute", 23}, "sparse"},
    };
    const auto place = known.find({kind, number});
    return place == known.end() ? "" : place->second;
}

/// Bits of one value by TensorProto.DataType; 22 is int4, two to a byte. 0: no place in a bundle's weights.
std::uint64_t bits_of(std::uint64_t kind) {
    switch (kind) {
        case 22:
            return 4;
        case 2:
        case 3:
        case 9:
        case 17:
            return 8;
        case 4:
        case 5:
        case 10:
        case 16:
            return 16;
        case 1:
        case 6:
        case 12:
            return 32;
        case 7:
        case 11:
        case 13:
            return 64;
        default:
            return 0;
    }
}

/// Bytes of a tensor; nothing where it is larger than any file.
std::optional<std::uint64_t> bytes_of(std::uint64_t kind, const std::vector<std::uint64_t>& dims) {
    if (bits_of(kind) == 0) return {};
    std::uint64_t values = 1;
    for (const std::uint64_t dim : dims) {
        if (dim != 0 && values > (std::uint64_t{1} << 56) / dim) return {};
        values *= dim;
    }
    return (values * bits_of(kind) + 7) / 8;
}

std::uint64_t natural(const std::string& text) {
    const bool digits = std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (text.empty() || !digits || text.size() > 18) throw Malformed("an offset or length that is no number");
    return std::stoull(text);
}

class Scan {
public:
    Scan(std::string where, std::string weights, std::uint64_t size)
        : where_(std::move(where)), weights_(std::move(weights)), size_(size) {}

    void walk(const std::string& kind, Text data, int depth) {
        if (depth > kMaxDepth) throw Malformed("nested deeper than " + std::to_string(kMaxDepth) + " levels");
        Message message(data);
        for (Field field; message.next(field);) {
            const std::string inner = field.bytes ? inside(kind, field.number) : "";
            if (inner.empty()) continue;
            if (inner == "tensor") check_tensor(*field.bytes);
            if (inner == "node" || inner == "opset") check_domain(inner, *field.bytes);
            if (inner == "function" || inner == "training") foreign_.push_back("a " + inner + " inside the model");
            walk(inner, *field.bytes, depth + 1);
        }
    }

    void finish() const {
        if (foreign_.empty()) return;
        std::string listed;
        for (std::size_t i = 0; i < std::min(kListed, foreign_.size()); ++i)
            listed += (i > 0 ? ", " : "") + foreign_[i];
        if (foreign_.size() > kListed) listed += " and " + std::to_string(foreign_.size() - kListed) + " more";
        throw Error(Exit::input, where_ + ": needs operators outside the ONNX standard: " + printable(listed),
                    "libraries of custom operators are never loaded");
    }

private:
    void check_domain(const std::string& kind, Text data) {
        std::map<std::uint64_t, std::string> texts = texts_of(data);
        const std::string domain = texts[kind == "node" ? 7 : 1];
        if (domain.empty() || domain == "ai.onnx") return;
        foreign_.push_back(kind == "node" ? "'" + texts[3] + "' (" + domain + "." + texts[4] + ")"
                                          : "operator set '" + domain + "'");
    }

    /// External data must be a range of the weights file that holds exactly the tensor's values.
    void check_tensor(Text data) const {
        std::string name;
        std::uint64_t kind = 0;
        std::vector<std::uint64_t> dims;
        std::map<std::string, std::string> keys;
        bool external = false;
        std::size_t entries = 0;
        Message message(data);
        for (Field field; message.next(field);) {
            if (field.number == 8) name = std::string(field.bytes.value_or(Text()));
            if (field.number == 2 && !field.bytes) kind = field.value;
            if (field.number == 14 && !field.bytes) external = field.value == 1;
            if (field.number == 1 && !field.bytes) dims.push_back(field.value);
            if (field.number == 1 && field.bytes) {
                for (std::uint64_t place = 0; place < field.bytes->size();) dims.push_back(varint(*field.bytes, place));
            }
            if (field.number != 13 || !field.bytes) continue;
            std::map<std::uint64_t, std::string> entry = texts_of(*field.bytes);
            keys[entry[1]] = entry[2];
            ++entries;
        }
        if (external || entries > 0) check_external(name, keys, entries, bytes_of(kind, dims));
    }

    void check_external(const std::string& name, std::map<std::string, std::string> keys, std::size_t entries,
                        const std::optional<std::uint64_t>& needed) const {
        static const std::set<std::string> known{"location", "offset", "length", "checksum"};
        const auto refuse = [&](const std::string& why) {
            throw Error(Exit::integrity, where_ + ": weight '" + printable(name) + "' " + why, "re-run gamma-export");
        };
        const bool odd =
            std::any_of(keys.begin(), keys.end(), [](const auto& key) { return known.count(key.first) == 0; });
        if (keys.size() != entries || odd) refuse("has external-data keys that ONNX does not know");
        if (keys["location"] != weights_) refuse("lies in '" + printable(keys["location"]) + "', not in " + weights_);
        try {
            const std::uint64_t offset = keys.count("offset") != 0 ? natural(keys["offset"]) : 0;
            const std::uint64_t length = keys.count("length") != 0 ? natural(keys["length"]) : 0;
            if (!needed || length != *needed)
                refuse("has length " + std::to_string(length) + ", which is not its size");
            if (offset + length > size_) {
                refuse("ends at byte " + std::to_string(offset + length) + "; " + weights_ + " has " +
                       std::to_string(size_));
            }
        } catch (const Malformed& fault) {
            refuse(std::string("has ") + fault.what());
        }
    }

    std::string where_, weights_;
    std::uint64_t size_;
    std::vector<std::string> foreign_;
};

}  // namespace

void check_graph_file(const std::string& path, const std::string& weights, std::uint64_t size) {
    const Bytes content = read_plain(path, kMaxGraph);
    Scan scan(path, weights, size);
    try {
        scan.walk("model", Text(reinterpret_cast<const char*>(content.data()), content.size()), 0);
    } catch (const Malformed& fault) {
        throw input_error(path + ": not an ONNX file (" + fault.what() + ")", "re-run gamma-export");
    }
    scan.finish();
}

}  // namespace gamma_edge
