// A bundle: the folder that gamma-export writes. Nothing reaches a parser before its size and SHA-256 were compared
// with the manifest's.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "gamma/bytes.h"
#include "gamma/contract.h"

namespace gamma_edge {

struct FileEntry {
    std::string name;
    std::uint64_t size = 0;
    std::string sha256;  ///< 64 hex digits
};

/// One ONNX graph of the bundle.
struct GraphEntry {
    std::string name, precision, target, attention, onnx, weights;
    std::vector<std::string> scenes;
    int crops = 0;
    std::array<int, 3> batch{};        ///< least, optimal, most
    std::optional<double> int8_share;  ///< of the multiply-adds, those in 8 bits
};

/// A small image whose crops and scores are known: the self-test.
struct Golden {
    std::string file;
    std::map<std::string, std::string> crops_sha256;  ///< by scene
    std::map<std::string, double> scores;             ///< by scene, of PyTorch in fp32
};

class Bundle {
public:
    /// Read and check a bundle's manifest; files are checked when they are asked for.
    /// Throws Error: input (no such folder, a newer schema), integrity (missing, broken or contradictory).
    static Bundle open(const std::string& folder);

    /// The path of a file that the manifest names, after its size and SHA-256 were checked.
    /// Throws Error (integrity): missing, changed, a link, not a regular file, or not named.
    std::string file(const std::string& name) const;

    /// What the manifest says of a file.
    /// Throws Error (integrity): it names none such.
    const FileEntry& entry(const std::string& name) const;

    /// The path of a graph's ONNX file, after it and its weights were checked.
    std::string graph_file(const GraphEntry& graph) const;

    /// The graph with which a CPU scores a scene: its own one if there is one, else the joint one.
    /// Throws Error (input): none in that precision (empty: any).
    const GraphEntry& graph(const std::string& scene, const std::string& precision = "") const;

    const std::string& folder() const { return folder_; }
    const std::string& sha256() const { return sha256_; }  ///< of manifest.json
    const Contract& contract() const { return contract_; }
    const std::vector<std::string>& scenes() const { return scenes_; }
    const std::string& default_scene() const { return default_scene_; }
    const std::optional<std::string>& label() const { return label_; }  ///< of the checkpoint, such as untrained
    std::array<double, 2> range() const { return range_; }              ///< lowest and highest score
    const std::vector<GraphEntry>& graphs() const { return graphs_; }
    const std::vector<Golden>& golden() const { return golden_; }

private:
    friend class ManifestReader;
    Bundle() = default;

    std::string folder_, sha256_, default_scene_;
    Contract contract_;
    std::vector<std::string> scenes_;
    std::optional<std::string> label_;
    std::array<double, 2> range_{};
    std::vector<GraphEntry> graphs_;
    std::vector<Golden> golden_;
    std::vector<FileEntry> files_;
};

/// 64 hex digits.
std::string sha256(View data);

}  // namespace gamma_edge
