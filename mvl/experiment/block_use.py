"""Does a trained model use its language block? The block's term is replaced, and Dice tells.

    deleted     the term is zero: D2 gets z alone
    mean        the term is its mean over all tokens of all cases: it says nothing about any token
    permuted    each token gets the term of another token of the same volume

A model that uses the block loses Dice by each of them. A sentence on pre-training makes sense only
where deletion costs at least `USED`.
"""

import contextlib
from collections.abc import Callable, Iterator

import pandas as pd
import torch

from mvl.blocks.language_part import LanguagePart
from mvl.config import derive_seed
from mvl.experiment.evaluation import evaluate

#: What is done to the block's term; the first row of each table is the model as it was trained.
EDITS = ("as trained", "deleted", "mean", "permuted")
#: Loss of Dice by deletion from which on a model is said to use its block.
USED = 0.005


class _Mean:
    """Passes terms (B, T, L) through, and remembers their mean over tokens and volumes (L,)."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        self.total = self.total + h.sum((0, 1), dtype=torch.float64)
        self.count += h.shape[0] * h.shape[1]
        return h

    def everywhere(self, h: torch.Tensor) -> torch.Tensor:
        """The mean in place of every token's term."""
        return (self.total / self.count).to(h.dtype).expand_as(h)


class _Permuted:
    """Each token gets the term of another one of its volume, drawn for each volume."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(derive_seed("permuted"))

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        orders = [torch.randperm(h.shape[1], generator=self.generator) for _ in range(len(h))]
        return torch.stack([one[order.to(h.device)] for one, order in zip(h, orders, strict=True)])


@contextlib.contextmanager
def _edited(part: LanguagePart, edit: Callable) -> Iterator[None]:
    part.edit = edit
    try:
        yield
    finally:
        part.edit = None


def block_use(run, cases: list, show: bool = True) -> pd.DataFrame:
    """Dice of each case with the block's term as trained, deleted, averaged and permuted.

    Args:
        run: an `experiments.Run` whose model has a language part.
        cases: list of `Case`. The mean is taken over these cases.
        show: show progress.

    Returns:
        One row per edit, case and structure: edit (of `EDITS`), subject, case, structure, dice.
    """
    part, mean = run.model.language, _Mean()
    edits = dict(zip(EDITS, (mean, torch.zeros_like, mean.everywhere, _Permuted()), strict=True))
    tables = []
    for name, edit in edits.items():
        with _edited(part, edit):
            target = run.config.data.target
            table = evaluate(run.model, cases, run.preparation, run.task, target, show)
        tables.append(table[["subject", "case", "structure", "dice"]].assign(edit=name))
    columns = ["edit", "subject", "case", "structure", "dice"]
    return pd.concat(tables, ignore_index=True)[columns]
