"""Rows 1 to 8 of the hostile list as tables: what the file is, the exit code, and what the message says."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.hostile import checkpoint_files as files
from tests.hostile.checkpoint_files import EXPERT, Maker, changed, config, content, entry, renamed, safetensors
from tests.training.tiny import dims, save, state, tower

SCALE = "clip_model.visual.transformer.resblocks.0.mlp.scale"
PROJ = "clip_model.visual.proj"
LN = "clip_model.ln_final.bias"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1091000000\n"
NAN = state()[EXPERT].clone()
NAN.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), float("-inf")])

# name -> (file, exit code, what the message says)
ROW_1: dict[str, tuple[Maker, int, str]] = {
    "empty": (content(b""), 3, "the file is empty"),
    "git lfs pointer": (content(LFS), 3, "a Git LFS pointer"),
    "web page": (content(b"<!DOCTYPE html><html><body>Not found"), 3, "a web page"),
    "web page with a BOM": (content(b"\xef\xbb\xbf\n <html lang=en>"), 3, "a web page"),
    "web page as safetensors": (content(b"<html>", "bad.safetensors"), 3, "a web page"),
    "text": (content(b"some text\n" * 100), 3, "not a checkpoint"),
    "json": (content(b'{"params": {}}'), 3, "not a checkpoint"),
    "two letters": (content(b"PK"), 3, "not a checkpoint"),
    "zip signature only": (content(b"PK\x03\x04"), 3, "truncated or damaged"),
    "empty zip": (content(b"PK\x05\x06" + bytes(18)), 3, "not one made by torch.save"),
    "random bytes": (content(bytes(range(1, 256)) * 50), 3, "not a checkpoint"),
    "short safetensors": (content(b"\x01\x00", "bad.safetensors"), 3, "damaged safetensors header"),
    "directory": (lambda folder: folder, 3, "not a regular file"),
    "missing": (lambda folder: folder / "missing.pth", 3, "No such file"),
    "device": (lambda folder: Path("/dev/zero"), 3, "not a regular file"),
    "NUL in the name": (lambda folder: folder / "a\0b", 3, "cannot be read"),
    "name too long": (lambda folder: folder / ("x" * 300), 3, "cannot be read"),
    "npz": (files.npz, 3, "not one made by torch.save"),
    "a tensor": (files.saved(torch.ones(2)), 3, "holds a Tensor, not named tensors"),
    "a list": (files.saved([torch.ones(2)]), 3, "holds a list"),
    "nothing": (files.saved({}), 3, "tensor clip_model.visual.conv1.weight is missing"),
    "no weights": (files.saved({"params": {}}), 3, "is missing"),
    "keys that are no names": (files.saved({"params": {5: torch.ones(2)}}), 3, "1 keys are not names, such as 5"),
    "nested": (files.saved({"params": {"a": {"b": torch.ones(2)}}}), 3, "a is a dict, not a tensor"),
    "values that are no tensors": (changed({"epoch": 5}), 3, "epoch is a int, not a tensor"),
    "a name with an escape": (changed({"\x1b[2J\n": torch.ones(1)}), 3, r"\\x1b\[2J\\n"),
    "zip named safetensors": (lambda f: files.good_authors(f).rename(f / "a.safetensors"), 3, "in spite of its name"),
}
ROW_2: dict[str, tuple[Maker, int, str]] = {
    **{f"bare pickle, protocol {p}": (files.bare_pickle(p), 4, "a bare pickle") for p in range(6)},
    "bare pickle as safetensors": (files.bare_pickle(2, "bad.safetensors"), 4, "a bare pickle"),
    "pickle in a torch file": (files.pickle_in_torch_zip, 4, "names posix.system"),
    "INST": (files.opcode_in_torch_zip(b"(S'{}'\nios\nsystem\n."), 4, "names os.system"),
    "STACK_GLOBAL": (files.protocol_4_in_torch_zip, 4, "STACK_GLOBAL"),
    "code, then garbage": (files.opcode_in_torch_zip(b"\x80\x02cos\nsystem\n\xff"), 4, "names os.system"),
    "eval": (files.opcode_in_torch_zip(b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."), 4, "builtins.eval"),
    "torch.load": (files.opcode_in_torch_zip(b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00x\x85R."), 4, "torch.load"),
    "second pickle": (files.second_pickle("bad/nested/data.pkl"), 4, "posix.system"),
    "second pickle, other case": (files.second_pickle("archive/DATA.PKL"), 3, "same name"),
    "second pickle, same name": (files.second_pickle("archive/data.pkl"), 3, "same name"),
    "legacy torch file": (files.legacy_torch, 4, "a pre-1.6 torch file"),
    "torchscript": (files.torchscript, 4, "a TorchScript archive"),
}
MANY = {f"extra.{i}": torch.ones(1) for i in range(12)}
ROW_4: dict[str, tuple[Maker, int, str]] = {
    "missing": (changed({LN: None, SCALE: None}), 3, rf"2 missing: {SCALE}, {LN}$"),
    "unexpected": (changed({"extra": torch.ones(1)}), 3, r"1 unexpected: extra$"),
    "both, ten of each": (
        changed(MANY, lambda name: ".attn." not in name and ".ln_" not in name),
        3,
        r"22 missing: ([^,]+, ){10}…; 12 unexpected: (extra\.\d, ){10}…$",
    ),
    "renamed": (renamed("ln_final", "ln_last"), 3, r"2 missing: .*ln_final.*; 2 unexpected: .*ln_last"),
    "prefix on some": (renamed("clip_model.visual.", "module.clip_model.visual."), 3, "conv1.weight is missing"),
    "two prefixes": (renamed("", "module.module."), 3, "conv1.weight is missing"),
    "unknown prefix": (renamed("clip_model.", "net.clip_model."), 3, "conv1.weight is missing"),
    "a CLIP's numbers in a Gamma": (changed({"vocab_size": torch.ones(1)}), 3, "1 unexpected: vocab_size"),
}
ROW_5: dict[str, tuple[Maker, int, str]] = {
    **{
        str(dtype): (changed({LN: torch.ones(64).to(dtype)}), 3, rf"{LN} has dtype {dtype}; expected float32")
        for dtype in (torch.int64, torch.int8, torch.bool, torch.complex64, torch.float64)
    },
    **{
        str(dtype): (changed({LN: torch.ones(64).to(dtype)}), 3, rf"{LN} is a tensor of a type beside float32")
        for dtype in (torch.uint16, torch.float8_e4m3fn)
    },
    "sparse": (changed({PROJ: torch.eye(64).to_sparse()}), 3, rf"{PROJ} is a sparse tensor"),
    "meta": (changed({PROJ: torch.empty(64, 64, device="meta")}), 3, rf"{PROJ} is a meta tensor"),
    "sparse rows": (files.sparse_rows(PROJ), 3, rf"{PROJ} is a sparse tensor"),
    "quantised": (files.quantised(PROJ), 3, rf"{PROJ} is a quantised tensor"),
    **{
        f"safetensors {kind}": (
            safetensors({"x": entry(kind, end=n)}, bytes(n)),
            3,
            f"x has dtype {kind}; expected F32",
        )
        for kind, n in (("I64", 8), ("BOOL", 1), ("F64", 8), ("C64", 8), ("F8_E4M3", 1), ("F4", 1), ("nonsense", 4))
    },
    "empty tensor": (changed({LN: torch.ones(0)}), 3, rf"{LN} has shape \[0\], so no values"),
    "wrong shape": (changed({LN: torch.ones(65)}), 3, rf"{LN} has shape \[65\], expected \[64\] \(1 tensors differ\)"),
    "wrong rank": (changed({PROJ: torch.ones(64)}), 3, rf"{PROJ}: shape \[64\], expected 2 dimensions"),
    "not square": (changed({PROJ: torch.ones(64, 63)}), 3, r"expected \[\d+, 63\]"),
}
ROW_6: dict[str, tuple[Maker, int, str]] = {
    "NaN and Inf": (
        changed({EXPERT: NAN, SCALE: torch.tensor(float("nan"))}),
        3,
        rf"NaN or Inf in 2 tensors: {SCALE} \(1\), {EXPERT} \(3\)$",
    ),
    "NaN in half precision": (changed({EXPERT: NAN.half()}), 3, rf"NaN or Inf in 1 tensors: {EXPERT} \(3\)"),
    "NaN everywhere": (
        lambda folder: save(folder / "bad.pth", {n: t * float("nan") for n, t in state().items()}),
        3,
        r"NaN or Inf in \d+ tensors: ([^,]+ \(\d+\), ){10}…$",
    ),
}
F32 = entry()
ROW_7: dict[str, tuple[Maker, int, str]] = {
    "10^12 values by stride 0": (files.stride_zero, 3, "promises 1000000000000 values"),
    "many tensors on one storage": (files.many_on_one_storage, 3, "its tensors promise over"),
    "storage longer than its record": (files.promised_storage, 3, "promise other sizes than the file holds"),
    "compressed records": (files.compressed_records, 3, "is compressed"),
    "zip bomb": (files.zip_bomb, 3, "a zip bomb"),
    "npz bomb": (lambda folder: files.npz(folder, compress=True), 3, "a zip bomb"),
    "hash bomb": (files.hash_bomb, 3, "one tuple twice"),
    "big pickle": (files.big_pickle, 3, "its pickle has"),
    "header of 2^63 bytes": (content(b"\xff" * 7 + b"\x7f{}", "bad.safetensors"), 3, "damaged safetensors header"),
    "header longer than the file": (content(b"\x40" + bytes(7) + b"{}", "bad.safetensors"), 3, "damaged"),
    "header of 5 MB": (safetensors(b" " * 5_000_000), 3, "damaged safetensors header"),
    "more than the file holds": (safetensors({"x": entry(shape=(10**12,), end=4 * 10**12)}), 3, "damaged"),
    "offsets past the end": (safetensors({"x": entry()}), 3, "damaged"),
    "overlapping offsets": (safetensors({"x": F32, "y": F32}, bytes(4)), 3, "damaged"),
    "a hole": (safetensors({"x": F32, "y": entry(start=8, end=12)}, bytes(12)), 3, "damaged"),
    "trailing bytes": (safetensors({"x": F32}, bytes(9)), 3, "damaged"),
    "negative offset": (safetensors({"x": entry(start=-4, end=0)}, bytes(4)), 3, "damaged"),
    "shape against offsets": (safetensors({"x": entry(shape=(2,))}, bytes(4)), 3, "damaged"),
    "empty but vast": (safetensors({"x": entry(shape=(2**40, 0), end=0)}), 3, "so no values"),
    "overflowing shape": (safetensors({"x": entry(shape=(2**62, 2**62, 0), end=0)}), 3, "damaged"),
    "duplicate name": (
        safetensors(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],'
                    b'"data_offsets":[0,4]}}', bytes(4)),
        3,
        "a tensor name occurs twice",
    ),
    "deep header": (safetensors(b"[" * 100_000), 3, "damaged"),
    "header that is a list": (safetensors([1]), 3, "damaged"),
    "entry that is a number": (safetensors({"x": 5}), 3, "x has dtype 5"),
    "number of 5000 digits": (safetensors(b'{"x":' + b"1" * 5000 + b"}"), 3, "damaged"),
    "header that is not UTF-8": (safetensors(b'{"\xff":1}'), 3, "damaged"),
    "nothing inside": (safetensors({}), 3, "is missing"),
}  # fmt: skip


def two_blocks(old: str, new: str) -> Maker:
    """Two blocks with two experts each, some names replaced."""
    model = state(dims(tower(layers=2)))
    return files.saved({name.replace(old, new): tensor for name, tensor in model.items()})


CONV = "clip_model.visual.conv1.weight"
POSITIONS = "clip_model.visual.positional_embedding"
BLOCK = "clip_model.visual.transformer.resblocks"
TOWER = {"activation": ["relu", ["gelu"], None, 1], "epsilon": [0, -1e-6, 0.1, "1e-6", True, float("nan"), 10**400]}
OWN = {
    "ln_pre": [1, "no", None],
    "mean": [[0.5, 0.5], [0.5, 0.5, 1.5], [0.5, 0.5, float("nan")], "0.5", 0.5, None, [[0], 0, 0]],
    "std": [[0, 1, 1], [1, 1, float("inf")], {"r": 1}, [True, 1, 1]],
    "kept_tokens": [
        [], [49406, 49407], [7, 7, 49406, 49407], [9, 7, 49406, 49407], [7, 49407], [-1, 49406, 49407],
        [7, 49406, 49407, 49408], [7.0, 49406, 49407], [True, 49406, 49407], "all", {"7": 1}, 5,
    ],
}  # fmt: skip


def _unseen() -> dict[str, tuple[Maker, int, str]]:
    """What only the config says, out of range or of another kind."""
    made: dict[str, tuple[Maker, int, str]] = {}
    for key, values in TOWER.items():
        for tower_name, value in zip(("vision", "text") * len(values), values, strict=False):
            made[f"{tower_name}.{key} {value!s:.30}"] = (
                config(lambda data, t=tower_name, k=key, v=value: data["dims"][t].update({k: v})),
                3,
                rf"bad\.json: dims: {tower_name}\.{key} is .*, expected ",
            )
    for key, values in OWN.items():
        for value in values:
            made[f"{key} {value!s:.50}"] = (
                config(lambda data, k=key, v=value: data["dims"].update({k: v})),
                3,
                rf"bad\.json: dims: {key} is .*, expected ",
            )
    return made


UNSEEN = _unseen()
ROW_8: dict[str, tuple[Maker, int, str]] = {
    "five experts, config says 3": (
        files.experts_in_config(3), 3, r"looks like vision\.experts=5 \(config: 3\)$"
    ),
    "config of another model": (config(b'{"model_type": "clip", "width": 768}'), 3, "not a 'gamma-edge checkpoint'"),
    "config of a later version": (config(lambda data: data.update(version=2)), 3, "config of version 1"),
    "no config": (config(None), 3, r"bad\.json: cannot be read"),
    "config that is no JSON": (config(b"{"), 3, "cannot be read"),
    "config that is deep": (config(b"[" * 100_000), 3, "cannot be read"),
    "config that is a list": (config(b"[]"), 3, "not a 'gamma-edge"),
    "config that is empty": (config(b""), 3, "the file is empty"),
    "config that is huge": (config(b" " * 2**21), 3, "the limit is"),
    "config without prompts": (config(lambda data: data.pop("prompts") and None), 3, "prompts is missing"),
    "config with other prompts": (config(lambda data: data.update(prompts="both")), 3, "prompts is 'both'"),
    "config with a list of prompts": (config(lambda data: data.update(prompts=["sdp"])), 3, "prompts is"),
    "config with a label of two lines": (config(lambda data: data.update(label="a\nb")), 3, "label is"),
    "config with a numeric licence": (config(lambda data: data.update(licence=5)), 3, "licence is 5"),
    "config with a short digest": (config(lambda data: data.update(weights_sha256="abc")), 3, "64 hexadecimal"),
    "config with a list of dims": (config(lambda data: data.update(dims=[1])), 3, "dims is"),
    "config with odd dims": (config(lambda data: data.update(dims={"vision": 5, "a\x1b": {}})), 3, "looks like"),
    "config of other weights": (config(lambda data: data.update(weights_sha256="0" * 64)), 4, "given by its config"),
    **{f"config with dims of {name}": case for name, case in UNSEEN.items()},
    "config that says nothing of a compact table": (
        files.compact(lambda data: data["dims"].pop("kept_tokens") and None), 3, "4 words, expected 49408"
    ),
    "config with one kept token more": (
        files.compact(lambda data: data["dims"].update(kept_tokens=[1, 2103, 2867, 49406, 49407])),
        3,
        "4 words, expected 5 .the config's kept_tokens",
    ),
    "config without a norm that is there": (
        config(lambda data: data["dims"].update(ln_pre=False)), 3, "2 unexpected: .*ln_pre"
    ),
    "config with fresh names of no tensors": (
        config(lambda data: data.update(fresh=["score_level", "a\x1b"])), 3, r"fresh that it lacks: a\\x1b$"
    ),
    "config with a fresh name twice": (config(lambda data: data.update(fresh=["a", "a"])), 3, "fresh is"),
    "config with a mapping of fresh names": (config(lambda data: data.update(fresh={"a": 1})), 3, "fresh is"),
    "note that is no mapping": (files.saved({"params": state(), "gamma_edge": 5}), 3, "gamma_edge is a int"),
    "note with a tensor": (files.saved({"params": state(), "gamma_edge": {"label": torch.ones(1)}}), 3, "label is"),
    "experts not numbered from 0": (renamed("expert_1", "expert_2"), 3, r"missing: .*expert_1.*unexpected: .*t_2"),
    "experts without number": (renamed("expert_1", "expert_x"), 3, "missing"),
    "a gap in the blocks": (two_blocks(f"{BLOCK}.1.", f"{BLOCK}.2."), 3, r"2 blocks, \[0, 2\]; expected"),
    "blocks from 1": (renamed(f"{BLOCK}.0.", f"{BLOCK}.1."), 3, r"1 blocks, \[1\]"),
    "a block number of 5000 digits": (renamed(f"{BLOCK}.0.", f"{BLOCK}.{'1' * 5000}."), 3, "0 blocks"),
    "too many blocks": (changed({f"{BLOCK}.{i}.x": torch.ones(1) for i in range(200)}), 3, "200 blocks"),
    "fewer experts at the end": (two_blocks(f"{BLOCK}.1.mlp.experts.expert_1", "x"), 3, r"per block are \[2, 1\]"),
    "width that is no multiple of 64": (changed({CONV: torch.ones(96, 3, 32, 32)}), 3, "width 96"),
    "other image size": (changed({POSITIONS: torch.ones(65, 64)}), 3, "256 pixels a side"),
    "position table that is no square": (changed({POSITIONS: torch.ones(52, 64)}), 3, "square"),
    "other vocabulary": (changed({"clip_model.token_embedding.weight": torch.ones(1000, 64)}), 3, "1000 words"),
    "four levels": (changed({"score_level": torch.ones(4)}), 3, "4 levels, expected 5"),
    "a ResNet CLIP": (files.saved({"visual.conv1.weight": torch.ones(64, 3, 3, 3)}), 3, "a CLIP with 0 blocks"),
}  # fmt: skip
