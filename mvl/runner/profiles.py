"""Profiles: the parameters of the notebooks, by purpose; and which profile fits this machine."""

import os
from pathlib import Path

import yaml

from mvl.data.tasks import TASKS
from mvl.errors import ConfigError, MvlError
from mvl.files import REPOSITORY, read_small
from mvl.machine import GIB, memory_limit

#: What a profile says: the parameters that a notebook may declare, and their types.
PROFILE_KEYS = {
    "profile": str,
    "task": str,
    "source": str,
    "phantom_cases": int,
    "phantom_scale": float,
    "grid": list,
    "fit": str,
    "block": str,
    "epochs": int,
    "seeds": list,
    "language_arms": list,
    "fusion_arms": list,
    "adaptation_arms": list,
    "data_arms": list,
    "peers_arms": list,
    "tasks": list,
    "tasks_arms": list,
    "tasks_grid": list,
    "tasks_phantom_cases": int,
    "tasks_phantom_scale": float,
}


def _all(kind, least=None):
    """Whether a list holds values of a kind alone, numbers from `least` on."""
    return lambda values: all(type(v) is kind and (least is None or v >= least) for v in values)


#: What a value has to be besides of its type: key -> (a test, in words).
_RANGES = {
    "phantom_cases": (lambda n: n >= 1, "at least 1"),
    "phantom_scale": (lambda scale: 0 < scale <= 2, "above 0 and at most 2"),
    "grid": (lambda grid: len(grid) == 3 and _all(int, 1)(grid), "three numbers of voxels"),
    "fit": (lambda fit: fit in ("pad", "resize"), "pad or resize"),
    "epochs": (lambda n: n >= 1, "at least 1"),
    "tasks": (lambda tasks: {*tasks} <= {*TASKS}, "names of the decathlon's ten tasks"),
    "tasks_grid": (lambda grid: len(grid) == 3 and _all(int, 1)(grid), "three numbers of voxels"),
    "tasks_phantom_cases": (lambda n: n >= 1, "at least 1"),
    "tasks_phantom_scale": (lambda scale: 0 < scale <= 2, "above 0 and at most 2"),
    "seeds": (lambda seeds: seeds and _all(int)(seeds), "one whole number or more"),
    **{
        key: (_all(str), "a list of names, those of digits in quotation marks")
        for key in PROFILE_KEYS
        if key.endswith("_arms")
    },
}

#: The profile whose parameters the notebooks are committed with.
COMMITTED = "quick"

#: Below this much memory, smoke takes the place of quick. Binder gives 2 GiB to JupyterLab and all
#: open notebooks together; one of them takes 0.6 GiB with smoke and 0.8 GiB with quick.
ENOUGH_MEMORY = 3 * GIB


def load_profile(name, root=REPOSITORY):
    """The parameters of a profile.

    Args:
        name: "smoke", "quick", "gpu" or "paper": a file of profiles/ without its ending.
        root: the repository.

    Returns:
        A dict with exactly the keys of `PROFILE_KEYS`.

    Raises:
        ConfigError: there is no such profile, or its file has a missing or unknown key or a
            value of another type.
    """
    folder = Path(root) / "profiles"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"no profile {name!r} in {folder}; there are: {', '.join(known)}")
    path = folder / f"{name}.yaml"
    try:
        profile = yaml.safe_load(read_small(path).decode("utf-8"))
    except (MvlError, OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # PyYAML shows the place on lines of its own
        raise ConfigError(f"{path} is not readable YAML: {reason}") from error
    if not isinstance(profile, dict):
        raise ConfigError(f"{path}: expected lines of the form 'key: value'")
    for kind, keys in (
        ("lacks", PROFILE_KEYS.keys() - profile.keys()),
        ("has the unknown", profile.keys() - PROFILE_KEYS.keys()),
    ):
        if keys:
            raise ConfigError(f"{path} {kind} {', '.join(sorted(map(str, keys)))}")
    for key, wanted in PROFILE_KEYS.items():
        if type(profile[key]) is not wanted:
            raise ConfigError(f"{path}: {key} must be a {wanted.__name__}, not {profile[key]!r}")
    for key, (sound, wanted) in _RANGES.items():
        if not sound(profile[key]):
            raise ConfigError(f"{path}: {key} must be {wanted}, not {profile[key]!r}")
    if profile["profile"] != name:
        raise ConfigError(f"{path}: profile must be {name}, the file's own name")
    return profile | {"block": _absolute(profile["block"], Path(root))}


def _absolute(source, root):
    """A source of a language block; a file or folder is named from the repository's root on.

    Kernels run in notebooks/, where a relative name would be another one.
    """
    kind, _, place = source.partition(":")
    if kind == "path" or kind == "random" and not place.lstrip().startswith("{"):
        return f"{kind}:{root / Path(os.path.expanduser(place))}"
    return source


def default_profile():
    """The profile to take where nobody names one.

    Returns:
        (name, why): the one that the environment variable MVL_PROFILE names, else "smoke" where
        memory is scarce, else "quick"; and the reason as a phrase, "" for "quick".
    """
    if named := os.environ.get("MVL_PROFILE"):
        return named, "MVL_PROFILE names it"
    limit = memory_limit()
    if limit < ENOUGH_MEMORY:
        return "smoke", f"this machine has {limit / GIB:.1f} GiB of memory"
    return COMMITTED, ""


def choose_profile(namespace):
    """Give a notebook that a person has opened the parameters of the profile that fits.

    On Binder, the notebooks run with the smoke profile by this. What was changed stays: it does
    nothing where a parameter is not the committed one. Where it does something, it says so.

    Args:
        namespace: the notebook's `globals()`, after its parameters; changed in place.

    Raises:
        ConfigError: MVL_PROFILE names no profile.
    """
    from IPython.display import Markdown, display

    name, why = default_profile()
    committed, chosen = load_profile(COMMITTED), load_profile(name)
    declared = [key for key in committed if key in namespace]
    if any(namespace[key] != committed[key] for key in declared):
        return
    changed = {key: chosen[key] for key in declared if chosen[key] != committed[key]}
    if changed:
        namespace.update(changed)
        listed = ", ".join(f"`{key} = {value!r}`" for key, value in changed.items())
        display(
            Markdown(
                f"> **The profile {name} is taken ({why}).** Instead of what stands above: "
                f"{listed}.\n>\n> The study's own numbers, where a section shows them, come from "
                "the committed reference all the same. The environment variable `MVL_PROFILE` "
                "names another profile."
            )
        )
