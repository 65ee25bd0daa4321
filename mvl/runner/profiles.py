"""Which profile fits this machine, for `mvl run` and for a notebook that a person opens."""

import os
from typing import Any

from mvl.machine import GIB, memory_limit
from mvl.study.profiles import load_profile

#: The profile whose parameters the notebooks are committed with.
COMMITTED = "quick"

#: Below this much memory, smoke takes the place of quick. Binder gives 2 GiB to JupyterLab and all
#: open notebooks together; one of them takes 0.6 GiB with smoke and 0.8 GiB with quick.
ENOUGH_MEMORY = 3 * GIB


def default_profile() -> tuple[str, str]:
    """The profile where nobody names one, and why, as a phrase; of "quick" it is empty."""
    if named := os.environ.get("MVL_PROFILE"):
        return named, "MVL_PROFILE names it"
    limit = memory_limit()
    if limit < ENOUGH_MEMORY:
        return "smoke", f"this machine has {limit / GIB:.1f} GiB of memory"
    return COMMITTED, ""


def choose_profile(namespace: dict[str, Any]) -> None:
    """Give a notebook that a person has opened the parameters of the profile that fits.

    On Binder, the notebooks run with the smoke profile by this. In `namespace`, the notebook's
    `globals()`, a parameter that is not the committed one was chosen by somebody, and stays; the
    others follow the profile. Where `profile` itself was chosen, nothing changes.

    Raises:
        ConfigError: MVL_PROFILE names no profile.
    """
    from IPython.display import Markdown, display

    name, why = default_profile()
    committed, chosen = load_profile(COMMITTED), load_profile(name)
    if namespace.get("profile", COMMITTED) != COMMITTED:
        return
    untouched = [key for key in committed if namespace.get(key) == committed[key]]
    changed = {key: chosen[key] for key in untouched if chosen[key] != committed[key]}
    if changed:
        namespace.update(changed)
        listed = ", ".join(f"`{key} = {value!r}`" for key, value in changed.items())
        display(
            Markdown(
                f"> **The profile {name} is used ({why}).** It changes the parameters above: "
                f"{listed}.\n>\n> The study's numbers come from the committed reference all the "
                "same. The environment variable `MVL_PROFILE` names another profile."
            )
        )
