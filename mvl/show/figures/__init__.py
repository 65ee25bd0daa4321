"""Every figure: a function from tables and arrays to a matplotlib `Figure`, in one style.

No model and no file is opened here.
"""
# ruff: noqa: F401

from mvl.show.figures.claim import claim_and_use
from mvl.show.figures.comparisons import (
    arm_differences,
    best_median_worst,
    metric_by_task,
    metric_differences,
    paired_differences,
    part_effects,
    protocol_effects,
)
from mvl.show.figures.costs import parameters, size_against_dice
from mvl.show.figures.learning import curves, data_overview, seed_curves
from mvl.show.figures.model_parts import attention_mix, dataflow, stage_auroc
from mvl.show.figures.style import COLUMN, encoded, name_of_arm, save
from mvl.show.figures.volumes import View, activation_maps, case_gallery, strip, task_grid
