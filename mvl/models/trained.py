"""Weights of a run, back into a model of the same configuration: strictly, or with a sentence."""

import torch

from mvl.errors import RunError


def load_trained_state(model, state, origin):
    """Take over what the model's `trained_state` gave.

    Args:
        model: with `trained_state()`, whose tensors are written to.
        state: {name: tensor}.
        origin: where it came from, for the error.

    Raises:
        RunError: a weight is missing, foreign or of another shape.
    """
    own = model.trained_state()
    if missing := sorted(own.keys() - state.keys()):
        raise RunError(f"{origin} is of another model: it lacks {missing[0]}")
    if foreign := sorted(state.keys() - own.keys()):
        raise RunError(f"{origin} is of another model: it has {foreign[0]}")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise RunError(
                    f"{origin} is of another model: {name} has shape "
                    f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
                )
            tensor.copy_(state[name])
