"""What a notebook shows besides figures: the banner that names its data, and live curves."""

from mvl import figures


def banner(what):
    """What the data of a notebook is; synthetic data is announced so that nobody overlooks it.

    Args:
        what: the sentence of `mvl.obtain`.

    Returns:
        An IPython Markdown object.
    """
    from IPython.display import Markdown

    if what.startswith("SYNTHETIC"):
        return Markdown(
            f"> ## ⚠ Synthetic data\n> **{what}.**\n>\n"
            "> Every number and picture below is of generated volumes. It shows that the code "
            "runs and says nothing about patients."
        )
    return Markdown(f"> **Data:** {what}.")


def live_curves(arm, epochs, synthetic):
    """A picture of the curves that redraws itself while a training runs.

    Args:
        arm: the line's name.
        epochs: of the training; the picture is redrawn some 20 times in it, and at its end.
        synthetic: whether the data is a phantom.

    Returns:
        A function for `mvl.fit`'s `on_epoch`.
    """
    from IPython.display import display

    handle = display(display_id=True)
    every = max(1, epochs // 20)

    def redraw(rows):
        if len(rows) % every == 0 or len(rows) == epochs:
            handle.update(figures.curves({arm: rows}, synthetic))

    return redraw
