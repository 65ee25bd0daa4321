"""What the released code does, beside what the study does: the audit's list, and its columns."""

from dataclasses import asdict, dataclass

import pandas as pd

from mvl.config import PRESETS

#: Columns of audit.csv, of which every row is about one switch.
COLUMNS = (
    *("switch", "kind", "arm", "against", "metric", "before", "after", "difference", "low"),
    *("high", "interval", "n_subjects", "n_cases", "n_seeds", "task", "protocol_version"),
    "synthetic",
)


@dataclass(frozen=True)
class Switch:
    """One thing that the released code does, beside what the study does."""

    name: str
    #: "split", "training" or "measurement".
    kind: str
    #: What the released code does.
    released: str
    #: What the study does.
    study: str
    #: What the difference can change.
    changes: str


_RATES = [PRESETS[name][1].learning_rate for name in ("released", "vit")]

#: Name -> Switch, in the order of the waterfall.
SWITCHES = {
    switch.name: switch
    for switch in (
        Switch(
            "before",
            "training",
            "The language block sits before the encoder, on tokens that carry no position yet.",
            "It sits between encoder and decoder.",
            "What the block can know of a token's place.",
        ),
        Switch(
            "mappers",
            "training",
            "The mappers to and from the block stay random; biases and factors of rank 4 train, "
            "and the factors' product counts a quarter.",
            "The mappers are trained whole.",
            "How much of a token reaches the block, and how.",
        ),
        Switch(
            "no-skip",
            "training",
            "All of a token goes through the mappers: the residual is around the block alone.",
            "A token is also added to what mappers and block make of it.",
            "How much of a token is left behind the mappers.",
        ),
        Switch(
            "unit-norm",
            "training",
            "The block's output is divided by its root mean square once more, without weights.",
            "The block's output is taken as it is.",
            "The size of what the block writes.",
        ),
        Switch(
            "dropout",
            "training",
            "Dropout of 0.2 in every block, and no normalisation after the last.",
            "No dropout, and a last LayerNorm.",
            "Regularisation.",
        ),
        Switch(
            "hard-dice",
            "training",
            "The loss thresholds the prediction inside its Dice term.",
            "The Dice term takes probabilities.",
            "That half has no gradient: training is cross-entropy alone, halved.",
        ),
        Switch(
            "optimiser",
            "training",
            f"Adam at a rate of {_RATES[0]:g}, halved when the training loss has not fallen for 10 "
            "epochs.",
            f"AdamW at {_RATES[1]:g} with decay, warm-up, cosine and clipping.",
            "How far training gets in its budget.",
        ),
        Switch(
            "min-max",
            "training",
            "An image's intensities are scaled from its smallest to its largest value.",
            "An MRI's become z-scores over its nonzero voxels.",
            "One bright voxel darkens the rest; zero no longer is the mean.",
        ),
        Switch(
            "resize",
            "training",
            "Every volume is resized to one grid, as the paper has it.",
            "Task04 is padded or cropped to the grid.",
            "Voxels differ in size from case to case.",
        ),
        Switch(
            "linear-labels",
            "training",
            "Labels are resized by linear interpolation, and all above zero is foreground.",
            "Labels are resized to the nearest voxel.",
            "The foreground that is learned is larger than the labelled one.",
        ),
        Switch(
            "rotated",
            "training",
            "A third of the samples are copies that are rotated about one axis, and no more.",
            "Every sample is rotated about all axes, and its intensities are changed.",
            "How much a training sample is augmented.",
        ),
        Switch(
            "splines",
            "training",
            "The label of a rotated copy is turned by cubic splines and cut at one half.",
            "It takes the nearest voxel's label.",
            "Where the edge of a rotated label falls.",
        ),
        Switch(
            "planes",
            "training",
            "A rotated copy's image and label turn in different planes.",
            "Image and label turn alike.",
            "A third of the samples is misaligned, more so away from the centre.",
        ),
        Switch(
            "copies",
            "training",
            "Training and validation are drawn from one pool of originals and augmented copies.",
            "Validation subjects have no case in training, and no copies.",
            "Validation Dice is of subjects that training has seen.",
        ),
        Switch(
            "train-loss",
            "training",
            "The best checkpoint is the one with the lowest training loss.",
            "The best epoch is chosen on validation.",
            "Overfitting is not seen by the choice.",
        ),
        Switch(
            "last-epoch",
            "training",
            "The checkpoint is never loaded again: what is tested is the epoch at hand.",
            "The best epoch is chosen on validation.",
            "Chance of the last epochs.",
        ),
        Switch(
            "resized-grid",
            "measurement",
            "Metrics are taken on the resized grid of 128 x 128 x 128, without spacing.",
            "In native space, in millimetres.",
            "A tolerance of one voxel is another length for every case and axis.",
        ),
        Switch(
            "linear-truth",
            "measurement",
            "The truth is the linearly interpolated label, all above zero.",
            "The label as it was drawn.",
            "The truth is larger by up to a voxel all around.",
        ),
        Switch(
            "dilation",
            "measurement",
            "The surface is dilation minus mask; the tolerance one voxel.",
            "Surface elements, weighted by their area; the task's tolerance.",
            "NSD alone.",
        ),
        Switch(
            "batch-index",
            "measurement",
            "A case's place in the batch is a fourth coordinate of its surface voxels.",
            "A case is measured by itself.",
            "NSD alone: a neighbouring case's surface lies at distance 1.",
        ),
        Switch(
            "batch-means",
            "measurement",
            "All voxels of a batch are pooled, and batches are averaged, whatever their size.",
            "The mean over subjects of the means over their cases.",
            "Large structures count for more, and cases of a small last batch.",
        ),
        Switch(
            "one-case",
            "measurement",
            "Of the test set the first case is evaluated.",
            "Every test case.",
            "The number is a draw from the spread between cases.",
        ),
        Switch(
            "validation",
            "measurement",
            "The curves, those for few training cases among them, show the validation Dice.",
            "The test Dice, once.",
            "Validation is what was chosen by; with copies it is of subjects seen in training.",
        ),
        Switch(
            "unseeded",
            "measurement",
            "No seed is set: the test cases, a tenth, are drawn anew for each model and run.",
            "One split for the whole study, from one seed.",
            "Two models are compared on different cases.",
        ),
        Switch(
            "siblings",
            "split",
            "Cases are drawn. MSD does not say which cases are of one subject.",
            "Subjects are drawn; for Task04 who is whose is inferred.",
            "A test case's sibling may be in training.",
        ),
        Switch(
            "shared-subjects",
            "split",
            "Copies are drawn one by one.",
            "Subjects are drawn, and validation has no copies.",
            "A validation copy's subject, mostly its very case, is in training.",
        ),
    )
}


def switches_table():
    """`SWITCHES` as a table."""
    rows = [asdict(switch) for switch in SWITCHES.values()]
    return pd.DataFrame(rows).set_index("name")


def facts_of(row):
    """What a row of audit.csv has of any row of the table that it is made of."""
    return {name: row[name] for name in ("task", "protocol_version", "synthetic")}
