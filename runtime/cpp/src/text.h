// Foreign text on a terminal: no control characters, none that turn a line round or are not seen.
#pragma once

#include <string>

namespace gamma_edge {

/// Whether a text is one line of at most 500 such characters, in valid UTF-8.
bool is_line(const std::string& text);

}  // namespace gamma_edge
