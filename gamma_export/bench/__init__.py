"""gamma-bench: latencies of a bundle that can be trusted, or a sentence that says why they cannot.

`run` measures every backend in a fresh process (`child`, `measure`); `judge` says whether the numbers hold; `compare`
sets two results side by side. `tegrastats`, `nvidia_smi` and `trtexec` read what other programs print; `roofline` and
`profile` say what the time is spent on. Only the last two need onnx, and nothing needs torch.
"""
