"""One file per image format: what its header says, and whether the file is whole. No pixel is decoded here.

Every `read(data) -> Header` is one bounded pass over the bytes with integer arithmetic only, so that the C++ runtime
can repeat it. `gamma_runtime.sniff` chooses between them.
"""
