// Is a file a video, by its content, and is it all there?
#pragma once

#include <string>

namespace gamma_edge {

/// Refuse what is no video (playlists and scripts, which name other files, never are), and a video that is shorter than
/// it says itself. MPEG and motion JPEG have no length, so they cannot be too short. Throws Error (input): missing,
/// unreadable, not a regular file, not a known container, or cut off.
void check_video(const std::string& path);

}  // namespace gamma_edge
