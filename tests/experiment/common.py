"""What the tests of trainings and of evaluation share."""

import json

import nibabel
import numpy as np
import torch

from mvl.data.task_folder import Case

#: A language model whose block is as wide as the widest host's tokens, so that two mappers can be
#: the identity.
LLAMA = "random:" + json.dumps(
    {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 16,
    }
)


class Model(torch.nn.Module):
    """A network that is a function of the volume, with one weight that is added to the logits."""

    def __init__(self, function):
        super().__init__()
        self.function, self.bias = function, torch.nn.Parameter(torch.zeros(1))

    def forward(self, volume):
        return self.function(volume) + self.bias


class Stopped(Exception):
    """A training ended early, as if its process had been killed between two epochs."""


def stop_after(epochs):
    """An `on_epoch` that stops a training after so many epochs."""

    def on_epoch(rows):
        if len(rows) == epochs:
            raise Stopped

    return on_epoch


def write_case(folder, name, label, image=None, affine=None):
    """The files of a case, in a folder or in its imagesTr and labelsTr; bright where labelled."""
    image = 100.0 + 100.0 * (np.asarray(label) > 0) if image is None else image
    affine = np.eye(4) if affine is None else affine
    arrays = {"images": np.asarray(image, np.float32), "labels": np.asarray(label, np.int16)}
    for kind, array in arrays.items():
        (folder / f"{kind}Tr").mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{kind}Tr" / f"{name}.nii.gz")
    return Case(name, name, *(folder / f"{kind}Tr" / f"{name}.nii.gz" for kind in arrays))


def make_task(folder, labels, modality="MRI", **facts):
    """A task with a structure "a": a case "c0", "c1", ... with noise for each label volume."""
    rng, entries = np.random.default_rng(0), []
    for n, label in enumerate(labels):
        write_case(folder, f"c{n}", label, 100 + rng.normal(size=label.shape) + 50 * label)
        entries.append({"image": f"imagesTr/c{n}.nii.gz", "label": f"labelsTr/c{n}.nii.gz"})
    names = {"0": "background", "1": "a"}
    facts |= {"modality": {"0": modality}, "labels": names, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(facts))
