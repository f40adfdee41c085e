// The border of the C interface: what is thrown inside becomes a status and a text.
#pragma once

#include <exception>
#include <new>
#include <string>

#include "gamma/error.h"

namespace gamma_edge {

/// Why a call failed. Nothing here throws: with no memory left for the text, the status still comes out.
class Failure {
public:
    void clear() noexcept {
        text_.clear();
        hint_.clear();
        fixed_ = nullptr;
    }
    void set(const char* text, const std::string& hint) noexcept {
        clear();
        try {
            text_ = printable(text);
            hint_ = hint;
        } catch (const std::exception&) {
            hint_.clear();
            fixed_ = "out of memory, also for the error's text";
        }
    }
    void copy(const Failure& other) noexcept {
        set(other.text(), other.hint_);
        if (text_.empty()) fixed_ = other.fixed_;
    }
    const char* text() const noexcept { return fixed_ != nullptr ? fixed_ : text_.c_str(); }
    const char* hint() const noexcept { return hint_.c_str(); }

private:
    std::string text_, hint_;
    const char* fixed_ = nullptr;
};

/// Run `work`, and say how it ended.
template <class Work>
Exit guarded(Failure& failure, const Work& work) noexcept {
    static const char* const kReport = "this is a bug in gamma-edge; please report it";
    failure.clear();
    try {
        work();
        return Exit::done;
    } catch (const Error& error) {
        failure.set(error.what(), error.hint());
        return error.exit();
    } catch (const std::bad_alloc&) {
        failure.set("out of memory", "");
        return Exit::environment;
    } catch (const std::exception& error) {
        failure.set(error.what(), kReport);
        return Exit::bug;
    } catch (...) {
        failure.set("an exception of an unknown kind", kReport);
        return Exit::bug;
    }
}

}  // namespace gamma_edge
