"""Reading a torch checkpoint's pickle by its opcodes, without executing any: does it hold anything but plain tensors?

`torch.load(weights_only=True)` is the guard; this look beforehand says which file is an attack (exit code 4) and which
is merely of a kind that is not read here (3), and stops what the guard lets pass: sparse tensors, whose invariants it
does not check, and shared tuples, which as dictionary keys take exponential time to hash.
"""

from __future__ import annotations

import dataclasses
import pickletools
import warnings

__all__ = ["Findings", "is_pickle", "scan"]

_HARMLESS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.Size",
        "torch.storage.UntypedStorage",
        "torch.serialization._get_layout",
        "torch.device",
    }
)
_OTHER_KINDS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor (no values)",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_tensor_v3": "a tensor of a type beside float32, float16 and bfloat16",
}
_TYPE_PREFIXES = (
    "float",
    "bfloat",
    "int",
    "uint",
    "bool",
    "complex",
    "bits",
    "qint",
    "quint",
    "per_tensor",
    "per_channel",
)
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_RUNS_CODE = frozenset({"INST", "OBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID"})


@dataclasses.dataclass
class Findings:
    """What a pickle names.

    ``code``: imports and opcodes that a state dict has no use for. ``other``: name and kind of tensors that are not
    plain. ``shared_tuple``: one tuple is used in several places, which torch.save never writes.
    """

    code: list[str] = dataclasses.field(default_factory=list)
    other: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    shared_tuple: bool = False


def scan(pickle: bytes) -> Findings:
    """Look through the opcodes up to STOP.

    Raises:
        ValueError: not a pickle, or a truncated one.
    """
    found = Findings()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools' on odd escapes in text
            _walk(pickle, found)
    except (ValueError, IndexError, OverflowError) as error:
        if not found.code:  # garbage after an import does not make it harmless
            raise ValueError(f"not a whole pickle: {error}") from error
    return found


def _walk(pickle: bytes, found: Findings) -> None:
    previous, last_string = "", ""
    tuples: set[object] = set()
    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name == "GLOBAL":
            _file(found, str(argument).replace(" ", "."), last_string)
        elif name in _RUNS_CODE:
            found.code.append(str(argument).replace(" ", ".") if argument else f"the opcode {name}")
        elif isinstance(argument, str):
            last_string = argument  # of a state dict: the tensor's name, read just before its value
        elif name in ("BINPUT", "LONG_BINPUT"):
            (tuples.add if previous in _TUPLES else tuples.discard)(argument)
        elif name in ("BINGET", "LONG_BINGET") and argument in tuples:
            found.shared_tuple = True
        previous = name


def _file(found: Findings, imported: str, last_string: str) -> None:
    module, _, attribute = imported.rpartition(".")
    if imported in _OTHER_KINDS:
        found.other.append((last_string, _OTHER_KINDS[imported]))
    elif imported in _HARMLESS or (module == "torch" and attribute.endswith("Storage")):
        return
    elif not (module == "torch" and attribute.startswith(_TYPE_PREFIXES)):
        found.code.append(imported)


def is_pickle(content: bytes) -> bool:
    """Whether the bytes are a whole pickle, of the text protocol 0 too, that imports something."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    except (ValueError, IndexError, OverflowError):
        return False
    return not {"GLOBAL", "INST", "STACK_GLOBAL"}.isdisjoint(names)
