// Errors that a user can act on, with the exit codes of the Python commands.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace gamma_edge {

/// Exit codes of every gamma command.
enum class Exit : int {
    done = 0,
    bug = 1,
    usage = 2,
    input = 3,
    integrity = 4,
    environment = 5,
    output = 6,
    gate = 7,
};

/// What went wrong, with the value and the limit; `hint` says what to do about it and may be empty.
class Error : public std::runtime_error {
public:
    Error(Exit exit, const std::string& message, std::string hint = "")
        : std::runtime_error(message), exit_(exit), hint_(std::move(hint)) {}

    Exit exit() const noexcept { return exit_; }
    const std::string& hint() const noexcept { return hint_; }

private:
    Exit exit_;
    std::string hint_;
};

/// A text in which nothing but visible characters of one line is left, the others being question marks: for terminals.
std::string printable(const std::string& text);

/// The image, or another file of the user's, cannot be used.
inline Error input_error(const std::string& message, std::string hint = "") {
    return Error(Exit::input, message, std::move(hint));
}

/// A bundle's file is missing, changed or contradicts its manifest.
inline Error integrity_error(const std::string& message,
                             std::string hint = "re-run gamma-export, or restore the file") {
    return Error(Exit::integrity, message, std::move(hint));
}

}  // namespace gamma_edge
