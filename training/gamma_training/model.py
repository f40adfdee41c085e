"""Gamma in PyTorch: a CLIP with a Mixture of Assessment Experts in the last blocks of both towers (arXiv 2503.06678).

The vision tower may be another ViT than CLIP's: `GammaDims` says which activation, epsilon and ln_pre.

Parameter names and their order are the authors' (so their checkpoints load strictly); the code is this project's own.
Shapes in comments: B images or prompts, L tokens, D width, E adaptive experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from gamma_training.dims import MEAN, STD, Activation, GammaDims, TowerDims
from gamma_training.tokens import rows_of

__all__ = ["MEAN", "STD", "Gamma", "expected_shapes", "quick_gelu"]

QUICK_GELU = 1.702
INITIAL_SCORE_LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation, x * sigmoid(1.702 x); not GELU."""
    return x * torch.sigmoid(QUICK_GELU * x)


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Mlp(nn.Module):
    """D -> hidden -> D with the tower's activation."""

    def __init__(self, dims: TowerDims) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[dims.activation]
        self.c_fc = nn.Linear(dims.width, dims.hidden)
        self.c_proj = nn.Linear(dims.hidden, dims.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.activation(self.c_fc(x)))
        return out


class Gating(nn.Module):
    """Per-token softmax over the adaptive experts; dense, no top-k."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(width, experts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.layer1(x), dim=-1)


class Moae(nn.Module):
    """y = S(x) + scale * sum_e g_e(x) E_e(x): shared expert ungated, the others gated per token."""

    def __init__(self, dims: TowerDims) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.useful_experts = Mlp(dims)
        self.experts = nn.ModuleDict({f"expert_{e}": Mlp(dims) for e in range(dims.experts)})
        self.gating = Gating(dims.width, dims.experts)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and not self.scale:
            out: Tensor = self.useful_experts(x)  # as in a base: nothing is added yet
            return out
        gates = self.gating(x)  # (B, L, E)
        adaptive = torch.zeros_like(x)
        for e, expert in enumerate(self.experts.values()):
            adaptive = adaptive + gates[..., e : e + 1] * expert(x)
        shared: Tensor = self.useful_experts(x)
        return shared + self.scale * adaptive


class Attention(nn.Module):
    """Multi-head self-attention with packed q, k, v and biases; named like torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        batch, length, width = x.shape
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = packed.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)  # (B, h, L, d)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """Pre-norm: x + attention(ln_1 x), then x + mlp(ln_2 x)."""

    def __init__(self, dims: TowerDims, index: int) -> None:
        super().__init__()
        self.attn = Attention(dims.width, dims.heads)
        self.ln_1 = nn.LayerNorm(dims.width, eps=dims.epsilon)
        self.mlp = Moae(dims) if index >= dims.first_moae else Mlp(dims)
        self.ln_2 = nn.LayerNorm(dims.width, eps=dims.epsilon)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.attn(self.ln_1(x), causal)
        x = x + self.mlp(self.ln_2(x))
        return x


class Transformer(nn.Module):
    """The blocks of one tower."""

    def __init__(self, dims: TowerDims) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(dims, i) for i in range(dims.layers))

    def forward(self, x: Tensor, causal: bool = False, first: int = 0, stop: int | None = None) -> Tensor:
        """Blocks ``first`` to ``stop`` (all by default): (B, L, D) -> (B, L, D)."""
        for block in itertools.islice(self.resblocks, first, stop):
            x = block(x, causal)
        return x


class VisionTower(nn.Module):
    """Patches and class token -> the embedding of the class token, (B, embed)."""

    def __init__(self, dims: GammaDims) -> None:
        super().__init__()
        width, epsilon = dims.vision.width, dims.vision.epsilon
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(dims.tokens, width))
        self.proj = nn.Parameter(torch.zeros(width, dims.embed))
        self.conv1 = nn.Conv2d(3, width, dims.patch, stride=dims.patch, bias=False)
        self.ln_pre = nn.LayerNorm(width, eps=epsilon) if dims.ln_pre else nn.Identity()
        self.transformer = Transformer(dims.vision)
        self.ln_post = nn.LayerNorm(width, eps=epsilon)

    def embed(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> what the first block sees, (B, L, D)."""
        patches = self.conv1(x).flatten(2).transpose(1, 2)  # (B, L-1, D)
        classes = self.class_embedding.expand(len(x), 1, -1)
        out: Tensor = self.ln_pre(torch.cat([classes, patches], dim=1) + self.positional_embedding)
        return out

    def tokens(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> all tokens after the last block, class token first, (B, L, D)."""
        out: Tensor = self.transformer(self.embed(x))
        return out

    def class_token(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> the class token after the last block, (B, D)."""
        return self.tokens(x)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ln_post(self.class_token(x)) @ self.proj
        return out


class Clip(nn.Module):
    """Both towers. Registration order is the authors' order of tensors."""

    def __init__(self, dims: GammaDims) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(dims.context, dims.text.width))
        self.text_projection = nn.Parameter(torch.zeros(dims.text.width, dims.embed))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.visual = VisionTower(dims)
        self.transformer = Transformer(dims.text)
        self.kept_tokens = dims.kept_tokens
        self.token_embedding = nn.Embedding(dims.vocabulary, dims.text.width)
        self.ln_final = nn.LayerNorm(dims.text.width, eps=dims.text.epsilon)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids int64 (B, L), L <= context, one end-of-text (the largest id) each -> (B, embed).

        The mask is causal, so cutting L after the last end-of-text changes nothing (model.md 1.7).

        Raises:
            InputError: the token table holds only the rows in use, and a prompt has another word.
        """
        rows = tokens if self.kept_tokens is None else rows_of(tokens, self.kept_tokens)
        x = self.token_embedding(rows) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x, causal=True))
        out: Tensor = x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection
        return out


class Adapter(nn.Module):
    """embed -> hidden -> embed with ReLU after both layers, added to its input; on the image side only."""

    def __init__(self, embed: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(embed, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, embed, bias=False), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc(x)
        return out


class Gamma(nn.Module):
    """The whole model. Scoring is on crops; averaging over crops is the caller's, as in the authors' protocol.

    Example:
        >>> text = model.text_features(tokens)          # (K*5, embed), once a scene set
        >>> scores = model.score(crops, text)           # uint8 (B, 224, 224, 3) -> float32 (B, K)
    """

    def __init__(self, dims: GammaDims) -> None:
        super().__init__()
        self.dims = dims
        self.score_level = nn.Parameter(torch.tensor(INITIAL_SCORE_LEVELS[: dims.levels]))
        self.clip_model = Clip(dims)
        self.adapter = Adapter(dims.embed, dims.adapter)

    def normalise(self, crops: Tensor) -> Tensor:
        """uint8 RGB (B, H, W, 3) -> float32 (B, 3, H, W), by the mean and std of the pretraining."""
        x = crops.to(self.score_level.dtype).permute(0, 3, 1, 2) / 255
        mean, std = (
            torch.tensor(v, dtype=x.dtype, device=x.device).view(3, 1, 1) for v in (self.dims.mean, self.dims.std)
        )
        return (x - mean) / std

    def image_features(self, crops: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> (B, embed), after the adapter, before the L2 norm."""
        out: Tensor = self.adapter(self.clip_model.visual(self.normalise(crops)))
        return out

    def text_features(self, tokens: Tensor) -> Tensor:
        """Token ids (P, L) -> L2-normalised (P, embed)."""
        features = self.clip_model.encode_text(tokens)
        out: Tensor = features / features.norm(dim=-1, keepdim=True)
        return out

    def head(self, features: Tensor, text: Tensor) -> Tensor:
        """Image features (B, embed) and text features (K*levels, embed), bad to perfect a scene -> scores (B, K)."""
        features = features / features.norm(dim=-1, keepdim=True)
        logits = self.clip_model.logit_scale.exp() * features @ text.T
        probabilities = torch.softmax(logits.view(len(features), -1, self.dims.levels), dim=-1)
        return probabilities @ self.score_level

    def score(self, crops: Tensor, text: Tensor) -> Tensor:
        """uint8 crops (B, H, W, 3) and text features (K*levels, embed) -> scores (B, K)."""
        return self.head(self.image_features(crops), text)

    def forward(self, crops: Tensor, text: Tensor) -> Tensor:  # noqa: D102
        return self.score(crops, text)


def expected_shapes(dims: GammaDims) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a model of these dimensions, in order, without allocating any."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in Gamma(dims).state_dict().items()}
