"""gamma-bench: latencies of a bundle that can be trusted, or a sentence that says why they cannot.

`run` measures every backend in a fresh process (`child`, `measure`); `judge` says whether the numbers hold; `compare`
sets two results side by side. Nothing here needs torch or onnx.
"""
