"""Does a trained model use its language block? The block's term is replaced, and Dice tells.

    deleted     the term is zero: D2 gets z alone
    mean        the term is its mean over all tokens of all cases: it says nothing about any token
    permuted    each token gets the term of another token of the same volume

A model that uses the block loses Dice by each of them. A sentence on pre-training makes sense only
where deletion costs at least `USED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd

from mvl.config import derive_seed

if TYPE_CHECKING:
    import torch

    from mvl.data.task_folder import Case
    from mvl.experiment.inference import Predictor

#: What is done to the block's term; the first row of each table is the model as it was trained.
EDITS = ("as trained", "deleted", "mean", "permuted")
#: Loss of Dice by deletion from which on a model is said to use its block.
USED = 0.005


class _Mean:
    """Passes terms (B, T, L) through, and keeps their mean over tokens and volumes (L,)."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        self.total = self.total + h.double().sum((0, 1))
        self.count += h.shape[0] * h.shape[1]
        return h

    def everywhere(self, h: torch.Tensor) -> torch.Tensor:
        """The mean in place of every token's term."""
        return (self.total / self.count).to(h.dtype).expand_as(h)


def _permuted() -> Callable:
    """Each token gets the term of another one of its volume, drawn for each volume."""
    import torch

    generator = torch.Generator().manual_seed(derive_seed("permuted"))

    def edit(h: torch.Tensor) -> torch.Tensor:
        orders = [torch.randperm(h.shape[1], generator=generator) for _ in range(len(h))]
        return torch.stack([one[order.to(h.device)] for one, order in zip(h, orders, strict=True)])

    return edit


def block_use(predictor: Predictor, cases: list[Case], show: bool = True) -> pd.DataFrame:
    """Dice of each case with the block's term as trained, deleted, averaged and permuted.

    The mean is taken over these cases; healthy ones (`Task.healthy`), which have no Dice, are left
    out. Returns one row per edit, case and structure, with the
    columns edit (of `EDITS`), subject, case, structure, dice.
    """
    import torch

    from mvl.experiment.evaluation import evaluate

    part, mean = predictor.model.language, _Mean()
    cases = [case for case in cases if case.name not in predictor.task.healthy]
    edits = zip(EDITS, (mean, torch.zeros_like, mean.everywhere, _permuted()), strict=True)
    tables = []
    try:
        for name, edit in edits:
            part.edit = edit
            tables.append(evaluate(predictor, cases, show).assign(edit=name))
    finally:
        part.edit = None
    columns = ["edit", "subject", "case", "structure", "dice"]
    return pd.concat(tables, ignore_index=True)[columns]


def use_row(predictor: Predictor, cases: list[Case], show: bool = True) -> dict[str, float]:
    """`block_use` of the foreground: n_subjects, and by edit the mean Dice over subjects."""
    used = block_use(predictor, cases, show)
    used = used[used["structure"] == "foreground"]
    dice = used.groupby(["edit", "subject"])["dice"].mean().groupby("edit").mean()
    return {"n_subjects": used["subject"].nunique()} | dice[list(EDITS)].to_dict()
