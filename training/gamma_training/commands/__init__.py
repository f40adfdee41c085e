"""Commands: each one function and one options dataclass."""
