// What the tools share: their words, their errors, their exit codes.
#pragma once

#include <cstdlib>
#include <iostream>
#include <new>
#include <sstream>
#include <string>

#include "gamma/error.h"

namespace gamma_edge {

/// The words of a command line, one after the other.
class Words {
public:
    Words(int count, char** words) : count_(count), words_(words) {}

    bool next() {
        if (at_ + 1 >= count_) return false;
        word_ = words_[++at_];
        return true;
    }

    const std::string& word() const { return word_; }
    bool is(const char* flag) const { return word_ == flag; }
    bool is_flag() const { return word_.size() > 1 && word_[0] == '-'; }

    /// The word behind a flag. Throws Error (usage): there is none.
    std::string value() {
        if (at_ + 1 >= count_) throw Error(Exit::usage, word_ + " needs a value");
        return words_[++at_];
    }

    /// The whole number behind a flag. Throws Error (usage): it is none, or below `least`.
    int number(int least) {
        const std::string flag = word_, text = value();
        const bool digits = !text.empty() && text.size() <= 6 && text.find_first_not_of("0123456789") == text.npos;
        if (!digits || std::atoi(text.c_str()) < least)
            throw Error(Exit::usage, flag + " " + text + " is not a number from " + std::to_string(least) + " on");
        return std::atoi(text.c_str());
    }

    /// The last thing that a word can be: the one bundle. Throws Error (usage): a flag, or a second bundle.
    void take_bundle(std::string& bundle) const {
        if (is_flag()) unknown();
        if (!bundle.empty()) throw Error(Exit::usage, "one bundle, not also " + word_, "--help");
        bundle = word_;
    }

    [[noreturn]] void unknown() const { throw Error(Exit::usage, "unknown flag " + word_, "--help"); }

private:
    int count_, at_ = 0;
    char** words_;
    std::string word_;
};

/// A message has lines of its own where a library's words are quoted; in each nothing but visible characters is left.
inline void complain(const Error& error) {
    std::cerr << "error: ";
    std::istringstream text(error.what());
    std::string line;
    for (bool first = true; std::getline(text, line); first = false)
        std::cerr << (first ? "" : "\n") << printable(line);
    std::cerr << "\n";
    if (!error.hint().empty()) std::cerr << "  hint: " << printable(error.hint()) << "\n";
}

/// Do a tool's work; its errors become messages and exit codes.
template <typename Work>
int tool(Work work) {
    try {
        return work();
    } catch (const Error& error) {
        complain(error);
        return static_cast<int>(error.exit());
    } catch (const std::bad_alloc&) {
        std::cerr << "error: out of memory\n";
        return static_cast<int>(Exit::environment);
    } catch (const std::exception& error) {
        std::cerr << "error: " << printable(error.what()) << "\n  this is a bug in gamma-edge; please report it\n";
        return static_cast<int>(Exit::bug);
    }
}

}  // namespace gamma_edge
