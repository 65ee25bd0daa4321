"""Jinja's templates of a report, and its tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from mvl.show.tables import of_numbers

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **context) -> Markup:
    """A template of the folder `templates`; every text of `context` is escaped."""
    return Markup(_templates().get_template(template).render(context))


@cache
def _templates():
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def table(
    groups: Sequence[tuple[str, str, pd.DataFrame]], caption: str, code: Collection[str] = ()
) -> Markup:
    """Frames of texts as one table that scrolls.

    Args:
        groups: (class, heading or "", frame) of each body of rows; all frames have the same
            columns, the first of which heads its row.
        code: names of columns of code.
    """
    whole = pd.concat([frame for *_, frame in groups])
    return render(
        "table.html",
        caption=caption,
        columns=list(whole),
        groups=[(kind, heading, frame.to_dict("records")) for kind, heading, frame in groups],
        right=of_numbers(whole) - {*code, whole.columns[0]},
        code=code,
        # On a phone each row becomes a list, so that no verdict is out of sight.
        stacked=bool({"verdict", "remark"} & {*whole}),
    )
