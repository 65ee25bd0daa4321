"""The phantoms' anatomy, one recipe a task: layers of tissue, painted back to front.

Written in millimetres, x to the right, y to the front, z up. The six CT tasks share one torso
and differ in where the scan lies, in what is labelled and in the lesions: its origin is in the
spine's axis in x, 60 mm before the spine in y, at the first lumbar vertebra in z. Sizes are
typical ones of adults; what varies between subjects is drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mvl.data.canvas import FAR, Layer, branches, chain, curve


@dataclass(frozen=True)
class Recipe:
    """How a task's phantom is made.

    Attributes:
        paint: (grid, draws) -> iterable of `Layer`, back to front.
        variation: standard deviation of the shape along each axis, as a share.
        centre: mm of the anatomy at the volume's centre.
        stripped: everything outside the anatomy is exactly 0, as after skull stripping.
    """

    paint: Callable
    variation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stripped: bool = False


# --- brain ---------------------------------------------------------------------------------

#: Tissue -> shares of full brightness in FLAIR, T1w, T1gd, T2w.
_BRAIN = {
    "csf": (0.12, 0.18, 0.18, 0.95),
    "grey": (0.62, 0.50, 0.52, 0.55),
    "white": (0.45, 0.76, 0.78, 0.36),
    "oedema": (0.95, 0.48, 0.50, 0.86),
    "enhancing": (0.74, 0.52, 1.10, 0.68),
    "core": (0.52, 0.28, 0.31, 0.84),
}


def _brain(whole, draws):
    """A skull-stripped brain with a glioma: oedema (1), dead core (2), enhancing rim (3)."""
    size = np.exp(0.04 * draws.normal(3))
    grid = whole.window((-78, -98, -50), (78, 98, 76))
    head = grid.ball((0, 0, 8), np.array([66, 84, 58]) * size) + 0.025 * grid.field(draws, 22)
    depth = 58 * (1 - head)
    # The base is flat, deeper in the temporal lobes at the sides.
    depth = np.minimum(depth, grid.z + 34 + 10 * np.tanh((np.abs(grid.x) - 22) / 10))
    # Sulci are sheets where a random field is zero, down to 16 mm below the surface; the field
    # times 7.5 is about the distance from its zeros in mm.
    fold = grid.field(draws, 5.5)
    sheet = np.maximum(np.float32(7.5) * np.abs(fold) - 0.7, depth - 16)
    fissure = np.abs(grid.x - 1.5 * grid.field(draws, 25)) + np.maximum(0, 26 - grid.z)
    surface = np.minimum(np.minimum(depth, sheet), np.maximum(fissure - 1, depth - 42))
    yield from _by_depth(grid, depth, surface, (0.2, 0.8, 3.4, 4.4))
    hind, cerebellum = whole.blob(draws, (0, -44, -34), (50, 34, 27), 0.03, vary=0.3)
    leaves = 3 * np.exp(-((np.sin((hind.z + 0.4 * hind.y) / 1.9) / 0.35) ** 2))
    yield from _by_depth(hind, -cerebellum, -cerebellum - leaves, (0.3, 0.8, 2.5, 5.0))
    stem = curve([(0, -14, -12), (0, -16, -34), (0, -26, -66)], 8)
    yield Layer(*whole.tubes(chain(stem, np.linspace(13, 8, 8))), _BRAIN["white"])

    for side in (-1, 1):
        for centre, radii in (
            ((11, -12, 4), (9, 15, 9)),  # thalamus
            ((25, 2, 3), (7, 17, 10)),  # putamen
            ((14, 17, 12), (5, 12, 9)),  # head of the caudate
        ):
            place = (side * centre[0], *centre[1:])
            yield Layer(*grid.blob(draws, place, radii, 0.05, vary=0.5), _BRAIN["grey"])
        wide = np.exp(0.3 * draws.normal())
        horn = [(6, 32, 8), (8, 14, 19), (12, -18, 22), (24, -38, 12), (34, -22, -8)]
        horn = curve(horn, 14) * [side, 1, 1]
        radii = wide * np.interp(np.arange(14), [0, 3, 7, 9, 13], [3, 5, 5, 8, 2])
        yield Layer(*grid.tubes(chain(horn, radii)), _BRAIN["csf"])
    yield Layer(*grid.blob(draws, (0, -8, 5), (2.5, 13, 8), 0, vary=0.3), _BRAIN["csf"])

    side = np.sign(draws.normal())
    radius = 16 * np.exp(0.22 * draws.normal())
    centre = np.array([side * 34, 38 * draws.uniform(-1, 1), 16 + 18 * draws.uniform(-1, 1)])
    centre *= [1 - 0.1 * abs(centre[1]) / 38, 1, 1]
    # Oedema spares the cortex.
    window, swelling = grid.blob(draws, centre, radius * np.array([1.75, 2.0, 1.6]), 0.22, 0.45)
    yield Layer(window, np.maximum(swelling, 3 - surface[window.within(grid)]), _BRAIN["oedema"], 1)
    window, tumour = grid.blob(draws, centre, radius * np.array([1.0, 1.1, 1.0]), 0.16, 0.5, 0.5)
    tumour = np.maximum(tumour, np.maximum(1 - depth, 1 - fissure)[window.within(grid)])
    yield Layer(window, tumour, _BRAIN["enhancing"], 3)
    rim = min(max(0.28 * radius, 0.8 * grid.voxel), 0.5 * radius)
    dead = tumour + np.float32(rim) * (1 + 0.35 * window.field(draws, 0.4 * radius))
    yield Layer(window, dead, _BRAIN["core"], 2)


def _by_depth(grid, depth, surface, steps):
    """Fluid, grey and white matter by the distance (mm) from the folded surface."""
    values = tuple(
        np.interp(surface, steps, [f, g, g, w]).astype(np.float32)
        for f, g, w in zip(_BRAIN["csf"], _BRAIN["grey"], _BRAIN["white"], strict=True)
    )
    yield Layer(grid, -depth, values)


# --- heart ---------------------------------------------------------------------------------


def _heart(grid, draws):
    """A chest in bright-blood MRI; the left atrium (1) ends in four pulmonary veins."""
    size = np.exp(0.06 * draws.normal(2))
    chest = grid.ball((0, -5, 0), (175 * size[0], 118 * size[1], 1e6))
    chest = 100 * (chest - 1 + 0.03 * grid.field(draws, 50))
    texture = 0.03 * grid.field(draws, 8)
    yield Layer(grid, -FAR, (0.02,))
    yield Layer(grid, chest, (0.75 + texture,))  # fat
    yield Layer(grid, chest + 16, (0.34 + texture,))  # muscle
    inner = chest + 32
    for side in (-1, 1):
        window, lung = grid.blob(draws, (82 * side, -8, 10), (58, 84, 130), 0.05)
        yield Layer(window, np.maximum(lung, inner[window.box]), (0.06,))
        ways, room = [(side, -0.1, 0.2)], ((82 * side, -8, 10), (52, 75, 120))
        yield Layer(*grid.tubes(branches(draws, (36 * side, -18, 4), ways, 6, 1.6, [room])), (0.7,))
    # The dome of the liver, and what lies before and behind the heart.
    window, dome = grid.blob(draws, (70, 5, -95), (82, 72, 56), 0.03)
    yield Layer(window, np.maximum(dome, inner[window.box]), (0.42,))
    yield Layer(*grid.blob(draws, (-8, 20, 0), (68, 66, 84), 0.05), (0.55 + 0,))
    for height in range(-105, 106, 30):
        yield Layer(*grid.blob(draws, (0, -68, height), (19, 16, 12), 0.03, vary=0.2), (0.4,))
    yield Layer(*grid.blob(draws, (0, -92, 0), (8, 7, 1e3), 0, vary=0), (0.9,))
    yield Layer(*grid.tubes(chain(curve([(0, 84, 90), (0, 92, 0), (0, 84, -60)], 6), 9)), (0.45,))
    for x in (-32, 32):
        yield Layer(*grid.blob(draws, (x, -84, 0), (24, 17, 1e3), 0.05, vary=0.3), (0.36,))

    blood = 0.92 + 0.04 * np.tanh(draws.normal())
    axis = np.array([-0.62, 0.55, -0.56])  # from base to apex
    base = np.array([-18.0, 8.0, 8.0]) + 3 * draws.normal(3)
    along = [base + axis * t for t in np.linspace(0, 72, 9)]
    shell = np.interp(np.arange(9), [0, 2, 5, 8], [30, 36, 32, 14]) * np.exp(0.08 * draws.normal())
    yield Layer(*grid.blob(draws, (28, 40, -14), (30, 27, 42), 0.04, vary=0.6), (blood,))  # RV
    yield Layer(*grid.tubes(chain(np.array(along), shell)), (0.38,))  # LV wall
    yield Layer(*grid.tubes(chain(np.array(along)[:-1], shell[:-1] - 11)), (blood,))  # LV
    yield Layer(*grid.blob(draws, (46, 2, 0), (23, 25, 30), 0.05, vary=0.6), (blood,))  # RA
    aorta = curve([(-4, 16, 12), (8, 18, 45), (2, 0, 66), (-16, -34, 60), (-20, -46, 20)], 14)
    yield Layer(*grid.tubes(chain(aorta, 16)), (0.4,))
    yield Layer(*grid.tubes(chain(aorta, 13.5)), (blood,))
    yield Layer(*grid.tubes([((-20, -46, 20), (-16, -46, -110), 12, 11)]), (blood,))
    yield Layer(*grid.tubes([((34, -4, 90), (42, 0, 20), 9, 10)]), (blood,))  # SVC
    pulmonary = curve([(-14, 44, 14), (-14, 30, 36), (-4, 2, 40), (30, -18, 34)], 10)
    yield Layer(*grid.tubes(chain(pulmonary, np.linspace(13, 8, 10))), (blood,))

    # The atrium lies behind, against the spine's front, with the veins at its corners.
    centre = np.array([2.0, -22.0, 4.0]) + 3 * draws.normal(3)
    radii = np.array([30, 19, 24]) * np.exp(0.1 * draws.normal(3))
    window, wall = grid.blob(draws, centre, radii + 3, 0.0, vary=0)
    yield Layer(window, wall, (0.4,))
    window, body = grid.blob(draws, centre, radii, 0.09, 0.7, vary=0)
    yield Layer(window, body, (blood,), 1)
    for side in (-1, 1):
        for up in (-1, 1):
            start = centre + radii * [0.72 * side, -0.25, 0.45 * up]
            way = np.array([side, -0.25 + 0.1 * draws.normal(), 0.45 * up + 0.15 * draws.normal()])
            end = start + way * (17 + 3 * draws.normal())
            yield Layer(*grid.tubes([(end, start + 3 * (end - start), 6, 4)]), (blood,))
            yield Layer(*grid.tubes([(start, end, 8, 6)]), (blood,), 1)


# --- hippocampus ---------------------------------------------------------------------------


def _hippocampus(grid, draws):
    """A crop of the medial temporal lobe with a curved hippocampus, head (1) and tail (2).

    Siblings, a subject's two sides, are alike without being mirrored: the real crops of both
    parities have their structure on the same side.
    """
    tilt = np.deg2rad(-25 + 8 * draws.normal())
    half = 19.5 * np.exp(0.06 * draws.normal())
    middle = np.array([0.5, -1.0, -1.0]) + draws.normal(3)
    along = (grid.y - middle[1]) * np.cos(tilt) + (grid.z - middle[2]) * np.sin(tilt)
    across = (grid.z - middle[2]) * np.cos(tilt) - (grid.y - middle[1]) * np.sin(tilt)
    t = np.clip(along / half, -1.3, 1.3)
    # A banana: the head turns inwards and the tail upwards and inwards.
    bend = (4.0 + 2 * draws.normal()) * (t - 0.1) ** 2 - 2.0
    sag = (3.0 + 1.5 * draws.normal()) * (0.4 - t**2)
    width = (6.7 + 0.4 * draws.normal()) * (1 + 0.35 * t)
    height = (4.7 + 0.25 * draws.normal()) * (1 + 0.2 * t)
    side = (grid.x - middle[0] - bend) / width
    rise = (across + sag) / height
    warp = 0.11 * grid.field(draws, 3.5) + 0.1 * grid.field(draws, 2.0)
    rho = np.sqrt(side**2 + rise**2 + np.abs(t) ** 5) + warp

    # Folded cortex: level sets of one field are white matter, grey ribbons and sulci.
    fold = grid.field(draws, 2.8) + 0.5 * grid.field(draws, 8.0)
    fold = fold + 0.6 * np.tanh(rise / 3) + 0.15
    tissue = np.interp(fold, [-1.7, -1.15, -0.75, 0.15, 0.6, 2], [0.1, 0.15, 0.42, 0.47, 0.78, 0.9])
    yield Layer(grid, -FAR, (tissue.astype(np.float32),))

    # White matter wraps the structure below and at the side, in places too thin to see.
    sheath = np.abs(rho - 1.32) - 0.22 - 0.12 * grid.field(draws, 4.0)
    yield Layer(grid, 4 * np.maximum(sheath, rise - 0.2), (0.82,))
    # The amygdala touches the head without an edge in between.
    yield Layer(*grid.blob(draws, (4, 15, 2.5), (9, 7, 7), 0.15), (0.45,))
    # The ventricle's horn: a dark crescent over the head and its outer side.
    horn = np.abs(rho - 1.22) - 0.16 - 0.14 * grid.field(draws, 5.0)
    yield Layer(grid, 4 * np.maximum(horn, 0.25 - rise + 0.5 * side), (0.13,))

    grey = 0.42 + 0.05 * grid.field(draws, 2.2) + 0.03 * grid.field(draws, 8.0)
    front = grid.y - middle[1] - 0.5 - draws.normal() > 0
    yield Layer(grid, 4.5 * (rho - 1), (grey,), 2)
    yield Layer(grid, np.where(front, 4.5 * (rho - 1), FAR), (grey,), 1)


# --- prostate ------------------------------------------------------------------------------


def _prostate(grid, draws):
    """A male pelvis in T2 and ADC: peripheral zone (1) around the transition zone (2)."""
    texture = grid.field(draws, 5)
    yield Layer(grid, -FAR, (0.02, 0.02))
    pelvis = grid.ball((0, -5, 0), (150, 100, 1e6)) - 1 + 0.02 * grid.field(draws, 40)
    yield Layer(grid, 100 * pelvis, (0.68 + 0.05 * texture, 0.12))  # fat
    for side in (-1, 1):
        for centre, radii, values in (
            ((54, 8, 0), (13, 40, 60), (0.2, 0.32)),  # obturator muscle
            ((50, -62, 0), (44, 26, 80), (0.24, 0.34)),  # gluteal muscle
            ((82, 14, 8), (25, 27, 34), (0.5, 0.14)),  # femoral head
            ((28, 52, -8), (20, 10, 22), (0.42, 0.14)),  # pubic bone
        ):
            place = (side * centre[0], *centre[1:])
            window, shape = grid.blob(draws, place, radii, 0.05, vary=0.5)
            edge = (0.08, 0.06)  # cortical bone is black
            yield Layer(window, shape, edge if values[1] < 0.2 else values)
            yield Layer(window, shape + 3, values)
        levator = curve(np.array([(26, 14, -34), (30, -6, -10), (27, -30, 14)]) * [side, 1, 1], 8)
        yield Layer(*grid.tubes(chain(levator, 4.5)), (0.22, 0.34))
    yield Layer(*grid.blob(draws, (0, -78, 10), (11, 8, 40), 0.05), (0.4, 0.15))  # coccyx

    filling = np.exp(0.25 * draws.normal())
    bladder = np.array([36, 27, 30]) * filling
    window, shape = grid.blob(draws, (0, 16, 30 + bladder[2]), bladder, 0.05, vary=0.3)
    yield Layer(window, shape - 3, (0.28, 0.4))
    yield Layer(window, shape, (0.97, 0.95))
    wide = np.exp(0.2 * draws.normal())
    window, shape = grid.blob(draws, (3 * draws.normal(), -41, 5), (17 * wide, 12 * wide, 1e3), 0)
    yield Layer(window, shape, (0.32, 0.4))
    yield Layer(window, shape + 3.5, (0.12, 0.08))
    for side in (-1, 1):  # seminal vesicles
        yield Layer(*grid.blob(draws, (17 * side, -22, 26), (17, 6, 7), 0.25, 0.3), (0.85, 0.7))

    size = np.exp(0.12 * draws.normal())
    radii = np.array([24.5, 18.5, 22]) * size * np.exp(0.05 * draws.normal(3))
    centre = np.array([0, -8, 0]) + [1.5, 2, 2] * draws.normal(3)
    window, gland = grid.blob(draws, centre, radii, 0.035, 0.7, vary=0)
    grain = window.field(draws, 3.2)
    yield Layer(window, gland - 1.5, (0.14, 0.3))  # capsule
    yield Layer(window, gland, (0.8 + 0.06 * grain, 0.66 + 0.04 * grain), 1)
    # The transition zone is full of nodules; it leaves a crescent behind and at the sides.
    inner = window.ball(centre + [0, 0.27 * radii[1], 0.12 * radii[2]], radii * [0.82, 0.8, 0.86])
    zone = (inner - 1 + 0.04 * window.field(draws, 9)) * 14
    nodules = np.tanh(1.4 * window.field(draws, 4.5))
    yield Layer(
        window,
        np.maximum(zone, gland + 1.2),
        (0.43 + 0.13 * nodules, 0.44 + 0.06 * nodules),
        2,
    )
    front = np.maximum(zone, gland + 1.2)
    stroma = np.maximum(front, 14 * (0.62 - (window.y - centre[1]) / np.float32(radii[1])))
    yield Layer(window, stroma, (0.17, 0.32), None)
    yield Layer(
        *grid.tubes([(centre + [0, 1, 16], centre + [0, -1, -22], 3, 2.5)]), (0.7, 0.6), None
    )


# --- torso ---------------------------------------------------------------------------------


@dataclass
class _Torso:
    """One body's surfaces, as signed distances (mm) on the whole grid.

    Attributes:
        skin: inside the body.
        muscle: inside its fat.
        cavity: inside the muscles of the wall.
        dome: below the diaphragm.
        contrast: HU that the contrast medium adds to a typical one's.
        labels: organ -> label value.
        organs: organ -> (window, distance), of those that were painted with `organ`.
        courses: of what runs along a curve: (points (n, 3), radii (n,)), mm.
    """

    labels: dict
    skin: np.ndarray
    muscle: np.ndarray
    cavity: np.ndarray
    dome: np.ndarray
    contrast: float
    organs: dict = field(default_factory=dict)
    courses: dict = field(default_factory=dict)

    def organ(self, name, shape, value, otherwise=0):
        """Remember an organ; its layer, with its label or `otherwise`."""
        self.organs[name] = shape
        return Layer(*shape, (value,), self.labels.get(name, otherwise))


def _torso(paint_lesions=None, **labels):
    """A recipe of chest, abdomen and pelvis in portal-venous contrast.

    Args:
        paint_lesions: (grid, draws, `_Torso`) -> iterable of `Layer`, painted before the bones.
        labels: organ -> label value; organs that are not named are background.
    """

    def paint(grid, draws):
        body = _body(grid, draws, labels)
        for part in (_wall, _chest, _bowel, _upper_abdomen, _vessels, paint_lesions, _bones):
            if part:
                yield from part(grid, draws, body)

    return paint


def _body(grid, draws, labels):
    size = np.exp(0.06 * draws.normal(2))
    waist = 1 - 0.07 * np.exp(-(((grid.z + 50) / 70) ** 2))
    apex = 1 - 0.32 * np.clip((grid.z - 240) / 120, 0, 1) ** 2
    width, depth = 168 * size[0] * waist * apex, 112 * size[1]
    # Rounder than a box, squarer than an ellipse.
    sum_of_powers = np.abs(grid.x / width) ** 2.5 + np.abs((grid.y + 5) / depth) ** 2.5
    rho = sum_of_powers.astype(np.float32) ** np.float32(1 / 2.5)
    rho += np.float32(0.018) * grid.field(draws, 60)
    fat = 0.14 + 0.05 * np.tanh(draws.normal())
    skin = np.float32(105) * (rho - 1)
    # Each half of the diaphragm is a dome that falls to the sides and to the back.
    dome = [
        top - 55 * ((grid.x - 70 * side) / 78) ** 2 - 40 * ((grid.y - 10) / 85) ** 2
        for side, top in ((1, 108 + 6 * draws.normal()), (-1, 94 + 6 * draws.normal()))
    ]
    return _Torso(
        labels=labels,
        skin=skin,
        cavity=skin + np.float32(105 * (fat + 0.085)),
        muscle=skin + np.float32(105 * fat),
        dome=grid.z - np.maximum(*dome).astype(np.float32),
        contrast=10 * draws.normal(),
    )


def _wall(grid, draws, body):
    """Air, table, fat, muscles."""
    yield Layer(grid, -FAR, (-1000,))
    table = np.abs(grid.y + 138 - grid.x**2 / 900) - 3
    yield Layer(grid, np.maximum(table, np.abs(grid.x) - 210), (-220,))
    streaks = grid.field(draws, 10)
    yield Layer(grid, body.skin, (-102 + 8 * streaks,))
    muscle = 58 + 0.3 * body.contrast
    yield Layer(grid, body.muscle, (muscle,))
    yield Layer(grid, body.cavity, (-98 + 10 * streaks,))
    for side in (-1, 1):
        yield Layer(
            *grid.blob(draws, (34 * side, -84, 0), (30, 21, 1e3), 0.04, vary=0.3), (muscle,)
        )
        psoas = curve([(22, -44, 20), (33, -40, -60), (46, -22, -150), (60, 10, -230)], 10)
        psoas *= [side, 1, 1]
        radii = np.interp(np.arange(10), [0, 4, 9], [5, 21, 17])
        yield Layer(*grid.tubes(chain(psoas, radii)), (muscle,))
        window, gluteal = grid.blob(draws, (92 * side, -50, -195), (58, 44, 85), 0.05, vary=0.3)
        yield Layer(window, np.maximum(gluteal, body.muscle[window.box]), (muscle,))


def _chest(grid, draws, body):
    """Lungs above the diaphragm, with their vessels, airways, heart and aorta."""
    window = grid.window((-170, -120, 0), (170, 120, 400))
    at = window.box
    lungs = np.full(window.shape, FAR)
    for side in (-1, 1):
        inner = 16 + 14 * np.exp(-(((window.y - 20) / 40) ** 2)) - side * window.x
        apex = 70 * (window.ball((58 * side, -10, 150), (92, 112, 185)) - 1)
        np.minimum(lungs, np.maximum(np.maximum(inner, apex), 2 - body.dome[at]), out=lungs)
    np.maximum(lungs, body.cavity[at] + 2, out=lungs)
    soft = np.maximum(body.cavity[at], -body.dome[at])
    yield Layer(window, soft, (-20 + 0 * soft,))  # mediastinum
    yield body.organ("lungs", (window, lungs), -850 + 25 * window.field(draws, 14))
    for side in (-1, 1):
        ways = [(side, 0.1, 0.9), (side, -0.7, -0.3), (side, 0.7, -0.4), (0.6 * side, 0, -1)]
        tree = branches(
            draws, (30 * side, -14, 205), ways, 7, 1.5, [((78 * side, -8, 205), (66, 92, 118))]
        )
        inside, vessel = grid.tubes(tree)
        # Those of the lung's base stay above the diaphragm.
        vessel = np.maximum(vessel, 4 - body.dome[inside.box])
        yield Layer(inside, vessel, (30 + body.contrast,))
    heart = 130 + body.contrast
    yield Layer(*grid.blob(draws, (-22, 26, 150), (60, 52, 56), 0.04), (-70,))
    yield Layer(*grid.blob(draws, (-24, 26, 148), (54, 46, 50), 0.04), (85,))
    for place, radii in (
        ((-38, 22, 142), (24, 24, 32)),
        ((2, 42, 146), (26, 20, 32)),
        ((24, 12, 162), (20, 22, 26)),
        ((-8, -6, 168), (27, 18, 20)),
    ):
        yield Layer(*grid.blob(draws, place, radii, 0.05, vary=0.5), (heart + 25,))
    arch = curve(
        [
            (-6, 24, 175),
            (10, 30, 215),
            (4, 14, 248),
            (-16, -24, 250),
            (-24, -44, 215),
            (-22, -46, 80),
        ],
        24,
    )
    yield Layer(*grid.tubes(chain(arch, np.linspace(15, 11, 24))), (heart + 30,))
    yield Layer(*grid.tubes([((26, 6, 300), (26, 10, 190), 8, 10)]), (heart + 20,))  # SVC
    airway = curve([(2, -8, 400), (2, -12, 290), (0, -16, 232)], 8)
    tubes = chain(airway, 9)
    for side in (-1, 1):
        tubes += chain(curve([(0, -16, 232), (18 * side, -18, 214), (40 * side, -22, 200)], 6), 6)
    window, tube = grid.tubes(tubes, margin=3)
    yield Layer(window, tube - 2, (40,))
    yield Layer(window, tube, (-990,))
    yield Layer(*grid.tubes([((-4, -30, 300), (-6, -34, 100), 8, 8)]), (45,))  # oesophagus


def _bowel(grid, draws, body):
    """Small bowel as loops of a random field, and the colon as a frame around it."""
    window = grid.window((-120, -60, -190), (120, 100, 20))
    at = window.box
    room = np.maximum(body.cavity[at] + 6, 70 * (window.ball((0, 30, -85), (98, 62, 95)) - 1))
    loops = window.field(draws, 13)
    value = np.interp(loops, [-0.5, -0.2, 0.1, 0.35, 1.6, 1.75], [-100, -95, 95, 30, 22, -850])
    yield Layer(window, room, (value.astype(np.float32),))

    points = [(66, -18, -168), (84, -12, -110), (88, -20, -40), (78, 18, -8), (40, 62, -30)]
    points += [(-10, 70, -38), (-58, 52, -14), (-92, -8, 26), (-98, -34, -40), (-90, -26, -120)]
    points += [(-66, 4, -172), (-26, 22, -160), (-8, -6, -190), (0, -38, -215), (0, -46, -250)]
    points = np.array(points, float) + [4, 5, 6] * draws.normal((15, 3))
    way = curve(points, 110)
    steps = np.arange(110)
    haustra = 1 + 0.13 * np.sin(steps * 1.15)
    radii = np.interp(steps, [0, 20, 55, 80, 109], [27, 23, 20, 16, 15]) * haustra
    window, colon = grid.tubes(chain(way, radii), margin=4)
    yield Layer(window, colon - 1.5, (75,))
    content = np.interp(
        window.field(draws, 11) + 0.25, [-0.6, -0.3, 0.3, 0.4], [35, -120, -180, -900]
    )
    yield Layer(window, colon + 1.5, (content.astype(np.float32),))
    body.courses["colon"] = (way, radii)
    yield Layer(*grid.blob(draws, (0, 22, -228), (42, 36, 30), 0.03), (8,))  # bladder


def _upper_abdomen(grid, draws, body):
    """Kidneys, stomach, liver, gallbladder, spleen, pancreas."""
    for side, height in ((1, -22), (-1, -10)):
        place = (60 * side, -42, height)
        window, kidney = grid.blob(draws, place, (28, 25, 54), 0.05, 0.5)
        cortex = 175 + 2 * body.contrast
        yield Layer(window, kidney, (cortex,))
        yield Layer(window, kidney + 8, (145 + 2 * body.contrast + 12 * window.field(draws, 8),))
        hilum = 12 * (window.ball((48 * side, -36, height), (13, 12, 24)) - 1)
        yield Layer(window, np.maximum(hilum, kidney - 3), (-60,))

    stomach = curve([(-30, -8, 84), (-62, 8, 74), (-66, 34, 36), (-38, 52, 8), (4, 46, 0)], 16)
    radii = np.interp(np.arange(16), [0, 3, 8, 15], [10, 34, 32, 15]) * np.exp(0.1 * draws.normal())
    window, bag = grid.tubes(chain(stomach, radii), margin=5)
    bag = np.maximum(bag, body.dome[window.box] + 5)
    yield Layer(window, bag, (80,))
    yield Layer(window, bag + 4.5, (25 + 15 * window.field(draws, 14),))
    yield Layer(window, np.maximum(bag + 4.5, 52 - window.y), (-930,))
    stomach = window, bag

    window = grid.window((-130, -110, -90), (170, 120, 130))
    below = np.maximum(body.dome + 3, body.cavity + 3)
    right, left = (
        least * (window.ball(centre, np.array(radii) * np.exp(vary * draws.normal(3))) - 1)
        for centre, radii, least, vary in (
            ((74, -2, 40), (78, 92, 82), 72, 0.06),
            ((-8, 36, 66), (92, 48, 40), 40, 0.1),
        )
    )
    liver = -8 * np.logaddexp(-right / 8, -left / 8)
    # The lower face rises to the left, where the stomach lies.
    face = np.minimum(13 - 0.68 * window.z - 0.34 * window.x, 46 - 0.8 * window.x)
    liver = np.maximum(liver, face) + 2.5 * window.field(draws, 24)
    liver = np.maximum(liver, below[window.box]).astype(np.float32)
    part, place = _overlap(window, stomach[0])
    liver[part] = np.maximum(liver[part], 2 - stomach[1][place])
    tissue = 108 + body.contrast + 4 * window.field(draws, 14)
    yield body.organ("liver", (window, liver), tissue)
    yield Layer(*grid.blob(draws, (50, 42, -6), (13, 16, 24), 0.03), (12,))  # gallbladder

    window, pulp = grid.blob(draws, (-104, -44, 44), (37, 52, 62), 0.06, 0.6)
    # Hollowed by what lies in front of it: stomach and kidney.
    hollow = 34 * (1 - window.ball((-68, -4, 40), (37, 42, 58)))
    pulp = np.maximum(np.maximum(pulp, hollow), below[window.box])
    yield body.organ("spleen", (window, pulp), 118 + body.contrast + 4 * window.field(draws, 12))

    # Head in the duodenum's loop, neck before the great vessels, tail to the spleen.
    points = [
        (36, 12, -40),
        (32, 14, -22),
        (14, 24, -6),
        (-10, 28, 4),
        (-42, 8, 16),
        (-78, -22, 28),
    ]
    points = np.array(points, float) + [3, 3, 4] * draws.normal((6, 3))
    points += [0, 0, 5] * draws.normal(3)
    way = curve(points, 30)
    thick = np.interp(np.arange(30), [0, 6, 12, 18, 29], [11.5, 14, 9, 11, 8])
    thick = thick * np.exp(0.1 * draws.normal())
    duct = curve([(20, 40, -2), (46, 26, -6), (54, 10, -40), (34, -2, -68), (-14, 4, -66)], 12)
    window, wall = grid.tubes(chain(duct, 12))
    yield Layer(window, wall, (70,))
    yield Layer(window, wall + 4, (20,))
    window, gland = grid.tubes(chain(way, thick), margin=6)
    gland = gland + 1.6 * window.field(draws, 5) - 0.5
    body.courses["pancreas"] = (way, thick)
    yield body.organ("pancreas", (window, gland), 92 + body.contrast + 8 * window.field(draws, 4))


def _vessels(grid, draws, body):
    """Aorta and caval vein; in the liver portal and hepatic veins."""
    blood = 165 + 2 * body.contrast
    fork = (0, -30, -110)
    aorta = curve([(-20, -44, 140), (-12, -36, 60), (-6, -32, -20), fork], 12)
    yield Layer(*grid.tubes(chain(aorta, 10.5)), (blood,))
    caval = curve([(20, -6, 118), (24, -20, 70), (20, -30, 0), (14, -32, -115)], 12)
    yield Layer(*grid.tubes(chain(caval, 12)), (blood - 15,))
    for side in (-1, 1):
        iliac = curve(
            [fork, (30 * side, -18, -160), (52 * side, 22, -225), (58 * side, 44, -262)], 10
        )
        yield Layer(*grid.tubes(chain(iliac, 7)), (blood,))
        renal = curve([(4 * side, -32, -12), (26 * side, -36, -14), (48 * side, -38, -14)], 5)
        yield Layer(*grid.tubes(chain(renal, 4.5)), (blood,))
    splenic = curve([(16, 10, 2), (-20, 14, 8), (-58, -16, 26), (-92, -30, 40)], 12)
    yield Layer(*grid.tubes(chain(splenic, 4.5)), (blood + 5,))
    mesenteric = curve([(16, 10, 2), (10, 14, -40), (4, 30, -110)], 8)
    yield Layer(*grid.tubes(chain(mesenteric, np.linspace(6, 3, 8))), (blood + 5,))

    window, liver = body.organs["liver"]
    lobes = [((72, 0, 46), (66, 78, 68)), ((-2, 36, 66), (74, 38, 30))]
    gate, top = (22, 14, 30), (22, -8, 96)
    tree = chain(curve([(16, 10, 2), (18, 10, 16), gate], 4), 7)
    portal = [(1, -0.1, 0.15), (-0.55, 0.55, 0.6), (0.75, -0.55, 0.1)]
    hepatic = [(1, -0.35, -0.5), (0.45, 0.75, -0.55), (-0.75, 0.6, -0.25)]
    tree += branches(draws, gate, portal, 6.2, 1.6, lobes)
    tree += branches(draws, top, hepatic, 5.2, 1.6, lobes)
    inside, vessel = grid.tubes(tree)
    both = np.full(inside.shape, FAR)
    # Vessels are labelled within the liver and at its gate.
    part, place = _overlap(inside, window)
    both[part] = np.maximum(vessel[part], liver[place] + 1)
    yield body.organ("vessel", (inside, both), blood, None)


def _overlap(one, other):
    """Slices of two windows' common part, in each of them."""
    low = [max(a.start, b.start) for a, b in zip(one.box, other.box, strict=True)]
    high = [max(lo, min(a.stop, b.stop)) for lo, a, b in zip(low, one.box, other.box, strict=True)]
    return tuple(
        tuple(slice(lo - b.start, hi - b.start) for lo, hi, b in zip(low, high, w.box, strict=True))
        for w in (one, other)
    )


def _bones(grid, draws, body):
    """Spine, ribs, breastbone, pelvis."""
    period = 33
    beat = np.abs((grid.z / period) % 1 - 0.5) * period  # 0 in the middle of a vertebra
    column = grid.window((-60, -125, grid.low[2] - 60), (60, -30, grid.high[2] + 60))
    beat = beat[:, :, column.box[2]]
    vertebra = 19 * (column.ball((0, -62, 0), (24, 19, 1e6)) - 1)
    yield Layer(column, vertebra, (85,))  # discs
    bone = np.maximum(vertebra, beat - 12)
    marrow = 190 + 35 * column.field(draws, 6)
    yield Layer(column, bone, (520,))
    yield Layer(column, bone + 2.5, (marrow,))
    arch = np.abs(9 * (column.ball((0, -90, 0), (13, 11, 1e6)) - 1)) - 2.5
    yield Layer(column, np.maximum(arch, beat - 10), (480,))
    yield Layer(column, 9 * (column.ball((0, -90, 0), (9, 8, 1e6)) - 1), (30,))
    spine = np.maximum(np.abs(column.x) - 3.5, np.abs(column.y + 111) - 12)
    yield Layer(column, np.maximum(spine, np.abs(beat - 2) - 8), (420,))
    across = ((np.abs(column.x) - 26) / 13) ** 2 + ((column.y + 85) / 5) ** 2 + (beat / 5) ** 2
    yield Layer(column, 5 * (np.sqrt(across) - 1), (380,))

    # Ribs lie in the wall and sink from the spine to the front.
    chest = grid.window((-190, -130, -30), (190, 120, grid.high[2] + 60))
    angle = np.arctan2(chest.x, -(chest.y + 5))
    height = chest.z + 26 * np.abs(angle)
    phase = (np.abs((height / 29) % 1 - 0.5) * 29).astype(np.float32)
    deep = body.muscle[chest.box] + 5
    rib = 5.5 * (np.sqrt((deep / 5.5) ** 2 + (phase / 7) ** 2) - 1)
    # None below the arch of the ribs, which is highest in front; cartilage next to the sternum.
    rib = np.maximum(rib, 20 - 22 * (np.pi - np.abs(angle)) / np.pi * 2 - chest.z + 40)
    front = np.abs(angle) - 2.5
    rib = np.maximum(rib, 60 * front)
    yield Layer(chest, rib, (480,))
    yield Layer(chest, rib + 2, (210,))
    sternum = np.maximum(np.abs(deep) - 6, np.maximum(np.abs(chest.x) - 17, -chest.y))
    yield Layer(chest, np.maximum(sternum, 120 - chest.z), (330,))

    for side in (-1, 1):
        # The iliac wing: a plate from the sacrum outwards and to the front, flaring upwards.
        wing = grid.window((min(0, 160 * side), -95, -230), (max(0, 160 * side), 60, -85))
        sheet = side * wing.x - 90 - 0.72 * wing.y - 0.35 * (wing.z + 140)
        sheet = sheet + 9 * np.sin((wing.y + 75) / 38) + 2 * wing.field(draws, 20)
        crest = wing.z + 96 + 0.008 * (wing.y + 15) ** 2
        edge = np.maximum(np.maximum(crest, wing.y - 42 - 0.25 * (wing.z + 140)), -72 - wing.y)
        plate = np.maximum(np.abs(sheet) / 1.3 - 5.5, 0.8 * np.maximum(edge, -215 - wing.z))
        plate = np.maximum(plate, body.muscle[wing.box])
        yield Layer(wing, plate, (430,))
        yield Layer(wing, plate + 2.5, (210,))
        socket = (84 * side, -2, -222)
        window, cup = grid.blob(draws, socket, (30, 30, 30), 0.05, vary=0.2)
        yield Layer(window, cup, (400,))
        yield Layer(window, cup + 3, (220,))
        pubis = curve([(70, 18, -232), (42, 44, -246), (8, 52, -262)], 6) * [side, 1, 1]
        yield Layer(*grid.tubes(chain(pubis, 9)), (420,))
        yield Layer(*grid.tubes(chain(pubis, 6)), (230,))
        window, ball = grid.blob(draws, (96 * side, -2, -234), (27, 27, 27), 0, vary=0.2)
        yield Layer(window, ball, (60,))
        yield Layer(window, ball + 2.5, (520,))
        yield Layer(window, ball + 5.5, (310,))
    window, sacrum = grid.blob(draws, (0, -74, -178), (46, 24, 58), 0.06, vary=0.4)
    yield Layer(window, sacrum, (420,))
    yield Layer(window, sacrum + 3, (180 + 30 * window.field(draws, 6),))


# --- lesions -------------------------------------------------------------------------------


def _liver_tumours(label, largest):
    """Metastases, darker than the liver and in part dead inside; `largest` of them at most."""

    def paint(grid, draws, body):
        for _ in range(int(draws.uniform(1, largest + 1))):
            radius = 10 * np.exp(0.5 * draws.normal())
            place = [76, -4, 40] + [42, 50, 40] * draws.directions(1)[0] * draws.uniform(0.2, 1)
            window, lesion = grid.blob(draws, place, [radius] * 3, 0.12, 0.5, vary=0.5)
            lesion = _clipped(window, lesion, *body.organs["liver"])
            value = 64 + 8 * draws.normal()
            yield Layer(window, lesion, (value,), label)
            yield Layer(window, lesion + np.float32(0.5 * radius), (value - 22,), label)

    return paint


def _lung_tumour(grid, draws, body):
    """One lesion, from a nodule of some millimetres to a mass, with spikes into the lung."""
    side = np.sign(draws.normal())
    radius = np.clip(9 * np.exp(0.5 * draws.normal()), 4, 26)
    place = [82 * side, -10, 195] + [26, 45, 60] * draws.directions(1)[0] * draws.uniform(0.2, 1)
    window, lesion = grid.blob(draws, place, [radius] * 3, 0.16, 0.4, vary=0.5)
    lesion = _clipped(window, lesion, *body.organs["lungs"])
    yield Layer(window, lesion, (38 + 10 * draws.normal(),), 1)


def _pancreas_tumour(grid, draws, body):
    """A dark tumour in head, body or tail, larger than the gland is thick there."""
    way, thick = body.courses["pancreas"]
    at = int(draws.uniform(0, 1) ** 1.5 * (len(way) - 1))
    radius = max(0.75 * thick[at], 9 * np.exp(0.3 * draws.normal()))
    window, lesion = grid.blob(draws, way[at], [radius] * 3, 0.1, 0.6, vary=0.5)
    yield Layer(window, lesion, (58 + 8 * draws.normal() + 5 * window.field(draws, 5),), 2)


def _colon_tumour(grid, draws, body):
    """A ring of tumour that narrows the colon, thicker on one side."""
    way, radii = body.courses["colon"]
    at = int(draws.uniform(6, len(way) - 18))
    length = draws.uniform(24, 50)
    part = curve(way[at - 3 : at + 4], 61)
    share = min(1.0, length / np.linalg.norm(np.diff(part, axis=0), axis=1).sum())
    part = part[30 - int(30 * share) : 31 + int(30 * share)]
    swell = np.exp(-(np.linspace(-1.3, 1.3, len(part)) ** 2))
    window, tumour = grid.tubes(chain(part, radii[at] * (0.7 + 0.35 * swell)), margin=6)
    tumour = tumour + 1.6 * window.field(draws, 6)
    yield Layer(window, tumour, (72 + 8 * draws.normal() + 5 * window.field(draws, 5),), 1)
    # What is left of the lumen, off the middle.
    rest = part + 0.35 * radii[at] * draws.directions(1)[0]
    yield Layer(*grid.tubes(chain(rest, 0.22 * radii[at])), (-500,), None)


def _clipped(window, distance, other, limit):
    """A shape, cut to an organ on another window."""
    part, place = _overlap(window, other)
    inside = np.full(window.shape, FAR)
    inside[part] = np.maximum(distance[part], limit[place])
    return inside


#: Task -> `Recipe`.
RECIPES = {
    "Task01_BrainTumour": Recipe(_brain, stripped=True),
    "Task02_Heart": Recipe(_heart, (0.0, 0.0, 0.06)),
    "Task03_Liver": Recipe(_torso(_liver_tumours(2, 6), liver=1), (0.0, 0.0, 0.1), (0, 0, 20)),
    "Task04_Hippocampus": Recipe(_hippocampus, (0.05, 0.05, 0.08)),
    "Task05_Prostate": Recipe(_prostate, (0.0, 0.0, 0.1)),
    "Task06_Lung": Recipe(_torso(_lung_tumour), (0.0, 0.0, 0.1), (0, 0, 175)),
    "Task07_Pancreas": Recipe(_torso(_pancreas_tumour, pancreas=1), (0.0, 0.0, 0.1), (0, 0, 15)),
    "Task08_HepaticVessel": Recipe(
        _torso(_liver_tumours(2, 3), vessel=1), (0.0, 0.0, 0.1), (0, 0, 45)
    ),
    "Task09_Spleen": Recipe(_torso(spleen=1), (0.0, 0.0, 0.1), (0, 0, 10)),
    "Task10_Colon": Recipe(_torso(_colon_tumour), (0.0, 0.0, 0.1), (0, 0, -35)),
}
