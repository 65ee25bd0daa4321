"""Adapters added into the weights that they adapt, by peft: what LoRA has to be equal to."""

from peft.tuners.lora import LoraLayer


def merge_adapters(part):
    """Merge in place, and return the part."""
    for name, child in list(part.named_modules()):
        if isinstance(child, LoraLayer):
            child.merge(safe_merge=True)
            part.set_submodule(name, child.get_base_layer())
    return part
