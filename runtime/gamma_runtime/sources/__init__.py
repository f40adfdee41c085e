"""Cameras, streams and video files: what a text names, and its frames one by one. docs/cameras.md has the table."""

from gamma_runtime.sources.capture import check_source
from gamma_runtime.sources.frames import Frame, Frames, check_numbers, frames
from gamma_runtime.sources.grammar import Source, hide, parse_source

__all__ = ["Frame", "Frames", "Source", "check_numbers", "check_source", "frames", "hide", "parse_source"]
