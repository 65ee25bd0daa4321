"""Draw initial weights from a seed of their own."""

import contextlib
from collections.abc import Iterator

import torch

from mvl.config import derive_seed


@contextlib.contextmanager
def drawn_by(*parts: object) -> Iterator[None]:
    """Draw on the CPU from the seed of `parts`, such as (seed, part's name).

    No global generator moves, so a part starts from the same weights whatever else is built.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerators' generators too.
        torch.default_generator.manual_seed(derive_seed(*parts))
        yield
