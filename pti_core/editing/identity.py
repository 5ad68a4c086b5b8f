"""Whether a face is still the same person: an embedding that another installed package provides.

No face network may be shipped here (their weights are for research only), so this is a hook: a package with an entry
point of the group `pti.face_embedding`, a function without arguments that gives the embedding.

    [project.entry-points."pti.face_embedding"]
    arcface = "my_package:load"
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from torch import Tensor
from torch.nn import functional as F

from pti_core.once import once

GROUP: Final = "pti.face_embedding"

Embedding = Callable[[Tensor], Tensor]
"""Images `[N, C, H, W]` in [-1, 1], any resolution, to embeddings `[N, D]` of any length."""


class IdentityError(ValueError):
    """More than one face embedding is installed."""


def face_embedding_name() -> str | None:
    """What names the installed embedding. IdentityError for more than one."""
    found = _installed()
    return f"{found.name} ({found.value})" if found else None


@once()
def face_embedding() -> Embedding | None:
    """The installed embedding, loaded once a process; None where there is none. IdentityError for more than one."""
    found = _installed()
    return found.load()() if found else None


def _installed() -> EntryPoint | None:
    found = list(entry_points(group=GROUP))
    if len(found) > 1:
        names = ", ".join(sorted(f"{e.name} ({e.value})" for e in found))
        raise IdentityError(f"several face embeddings are installed: {names}; keep one")
    return found[0] if found else None


def identity(embedding: Embedding, a: Tensor, b: Tensor) -> Tensor:
    """Cosine `[N]` of the faces in two lots of images; one of the two may hold a single image."""
    return F.cosine_similarity(embedding(a), embedding(b), dim=1)
