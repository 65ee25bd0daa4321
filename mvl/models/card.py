"""The model card: README.md of a saved segmenter."""

from __future__ import annotations

from mvl.data.domain import describe_domain
from mvl.data.tasks import TASKS, Task
from mvl.models.segmenter import Description

#: Licences of the sources that come with this replication, as their model cards say.
_LICENCES = {"package:all-minilm-l6-v2": "Apache-2.0"}
_LIMITS = (
    "For research on segmentation methods only. Not a medical device, not for clinical use: "
    "no diagnosis and no treatment may rest on its output. It was trained for one task; on "
    "images of other scanners, protocols, bodies or diseases its output means nothing until "
    "it is measured there."
)
_USE = (
    "```python\nfrom mvl.models.folder import load_model\n\n"
    'model = load_model("THIS FOLDER, OR OWNER/NAME")\n```'
)


def model_card(
    about: Description, block: dict | None, metrics: dict[str, float] | None = None
) -> str:
    """The text of README.md; `block` is the model's `block_reference`."""
    task = about.task
    shape = " x ".join(map(str, about.grid))
    sections = [
        "---\nlibrary_name: mvl\npipeline_tag: image-segmentation\n"
        "tags: [medical-imaging, segmentation, 3d]\n---",
        f"# MedVisionLlama on {task.name}" if task else "# MedVisionLlama",
        "A vision transformer that segments volumes"
        + (", with one frozen transformer block of a language model inside. " if block else ". ")
        + "An independent replication of the paper [MedVisionLlama](https://arxiv.org/abs/"
        "2410.02458); not its authors' model.",
        f"Input: float32, (B, {about.channels}, H, W, D), on a grid of {shape} voxels. "
        f"Output: logits, (B, {about.classes}, H, W, D).",
        _USE,
    ]
    if block:
        sections += ["## Language block", _of_block(block)]
    sections += ["## Training data", _of_data(task)]
    if about.domain:
        sections += ["## Images that it takes", describe_domain(about.domain, task, about.data)]
    if metrics:
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
        sections += ["## Results", f"| metric | value |\n|---|---|\n{rows}"]
    sections += ["## Intended use and limits", _LIMITS]
    return "\n\n".join(sections) + "\n"


def _of_block(block: dict) -> str:
    revision = f", revision `{block['revision']}`" if block["revision"] else ""
    after = f" and the {block['layers'] - 1} after it" if block["layers"] > 1 else ""
    drawn = block["control"] == "random" or block["source"].startswith("random:")
    bare = drawn or block["control"] == "identity"
    text = (
        f"Layer {block['layer']}{after} of `{block['source']}`{revision} (family "
        f"{block['family']}, width {block['hidden_size']}, {block['parameters']:,} weights), "
        f"control: {block['control']}, SHA-256 {'of its configuration ' * bare}"
        f"`{block['sha256']}`. "
    )
    if drawn:
        return text + (
            "No weight of the source is in it: the block has the source's architecture, and "
            "its weights are drawn from the experiment's seed whenever the model is loaded."
        )
    if bare:
        return text + "No weight of the source is in it: tokens pass the mappers alone."
    if block["control"] == "trainable":
        return text + (
            "The block was trained too, so its weights are in this file: they derive from the "
            "source's, and the source's licence holds for them."
        )
    text += (
        "The block's weights are not in this file: loading reads them from their source, and "
        "refuses another block. Their licence travels with them, so read it at the source."
    )
    if licence := _LICENCES.get(block["source"]):
        text += f" The source's card says {licence}."
    if block["family"] == "llama":
        text += (
            " Where the source is one of Meta's Llama models, that is its community licence, which "
            "also has rules on naming and marking models that were trained with Llama."
        )
    return text


def _of_data(task: Task | None) -> str:
    if task is None:
        return "Not recorded."
    labels = ", ".join(task.labels.values())
    text = f"{task.name} ({task.modality}; channels {', '.join(task.channels)}; labels {labels}). "
    if task.synthetic:
        return text + "SYNTHETIC: phantoms, not patients. Its results say nothing about medicine."
    if task.name in TASKS:
        return text + (
            "Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13, 4128, "
            "2022; Simpson et al., arXiv:1902.09063), CC-BY-SA 4.0."
        )
    return text + "A data set of the user's own; its licence and provenance are the user's to add."
