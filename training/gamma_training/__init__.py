"""gamma_training: the Gamma model in PyTorch, its checkpoints and scenes.

The training recipe comes with its own issue.

Source of every fact about the model: arXiv 2503.06678 and the notes this project was written from; none of the
authors' code is used.
"""
