// The grammar of sources against the table that Python is held to: sources TABLE.json
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "gamma/error.h"
#include "gamma/source.h"

namespace {

using namespace gamma_edge;

bool understood(const nlohmann::json& wanted) {
    try {
        const Source found = parse_source(wanted.at("text"));
        const nlohmann::json made{{"text", wanted.at("text")}, {"kind", found.kind}, {"target", found.target},
                                  {"name", found.name},        {"live", found.live}, {"width", found.width},
                                  {"height", found.height},    {"fps", found.fps}};
        if (made != wanted) std::cout << "wanted " << wanted << "\nfound  " << made << "\n";
        return made == wanted;
    } catch (const Error& error) {
        std::cout << wanted.at("text") << " was refused: " << error.what() << "\n";
        return false;
    }
}

bool refused(const std::string& text) {
    try {
        parse_source(text);
    } catch (const Error& error) {
        return error.exit() == Exit::usage && std::string(error.what()).find("secret") == std::string::npos &&
               error.hint().find("secret") == std::string::npos;
    }
    return false;
}

}  // namespace

int main(int count, char** words) {
    if (count != 2) return 2;
    std::ifstream file(words[1]);
    const auto table = nlohmann::json::parse(file);
    int wrong = 0;
    for (const auto& source : table.at("good")) wrong += !understood(source);
    for (const auto& text : table.at("bad")) {
        if (refused(text)) continue;
        std::cout << text << " was not refused, or its message says a secret\n";
        ++wrong;
    }
    std::cout << table.at("good").size() << " good, " << table.at("bad").size() << " bad, " << wrong << " wrong\n";
    return wrong == 0 && !table.at("good").empty() ? 0 : 1;
}
