"""What a phantom is painted with: random numbers, a grid in millimetres, shapes, and layers.

A shape is a signed distance in millimetres, negative inside, on a window of the grid just large
enough for it: a lesion costs a lesion's voxels, not the volume's. Whatever is drawn at random
is drawn in millimetres, so that another scale samples the same anatomy.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import make_interp_spline

from mvl.config import derive_seed

#: Distance of what a shape's windows leave out, in mm: certainly outside.
FAR = np.float32(1e3)


class Draws:
    """The random numbers of one case, some of them its subject's."""

    def __init__(self, seed, task_name, subject, case):
        self._subject = np.random.default_rng(derive_seed("subject", seed, task_name, subject))
        self._case = np.random.default_rng(derive_seed("case", seed, task_name, case))

    def normal(self, size=None, shared=0.8):
        """Standard normal numbers, correlated by `shared` between cases of one subject."""
        subject, case = (rng.standard_normal(size) for rng in (self._subject, self._case))
        return np.sqrt(shared) * subject + np.sqrt(1 - shared) * case

    def noise(self, shape):
        """Standard normal numbers of this case alone, float32."""
        return self._case.standard_normal(shape, np.float32)

    def uniform(self, low, high, size=None):
        """Numbers of this case alone, equally likely between low and high."""
        return self._case.uniform(low, high, size)

    def directions(self, count):
        """Unit vectors (count, 3) of this case alone."""
        return _unit(self._case.standard_normal((count, 3)))


class Grid:
    """The voxels of a case, or of a window of it, in millimetres of the full-size anatomy.

    Attributes:
        shape: voxels (H, W, D).
        box: where the window lies in the whole grid, three slices.
        x, y, z: coordinates, float32, as an open mesh that broadcasts to `shape`.
        step: voxel edges in mm.
        voxel: geometric mean of the edges, over which soft edges fall from 1 to 0.
        low, high: corners of the region in mm that random fields are drawn for.
    """

    def __init__(self, axes, step, low, high, box):
        self._axes = axes
        self.shape = tuple(len(axis) for axis in axes)
        self.box = box
        self.x, self.y, self.z = np.ix_(*(axis.astype(np.float32) for axis in axes))
        self.step = step
        self.voxel = float(np.prod(step) ** (1 / 3))
        self.low, self.high = np.asarray(low, float), np.asarray(high, float)

    @classmethod
    def of(cls, shape, task, scale, centre=(0, 0, 0)):
        """The whole grid of a case.

        Args:
            shape: voxels (H, W, D).
            task: a `Task`, for spacing and typical shape.
            scale: voxels along each axis, as a share of the task's; one number or three.
            centre: mm of the anatomy at the grid's centre.
        """
        step = np.asarray(task.spacing_mm) / scale
        axes = [
            c + (np.arange(n) - (n - 1) / 2) * edge
            for n, edge, c in zip(shape, step, centre, strict=True)
        ]
        # A case may be larger than is typical.
        reach = 0.6 * np.asarray(task.shape) * task.spacing_mm
        return cls(axes, step, centre - reach, centre + reach, tuple(slice(0, n) for n in shape))

    def window(self, low, high):
        """The part of this grid between two corners in mm, with a voxel's margin; may be empty."""
        axes, box = [], []
        for axis, a, b, edge, old in zip(self._axes, low, high, self.step, self.box, strict=True):
            start, stop = np.searchsorted(axis, (a - edge, b + edge))
            axes.append(axis[start:stop])
            box.append(slice(old.start + int(start), old.start + int(stop)))
        return Grid(axes, self.step, low, high, tuple(box))

    def within(self, other):
        """Where this window lies in a larger one, three slices."""
        return tuple(
            slice(own.start - o.start, own.stop - o.start)
            for own, o in zip(self.box, other.box, strict=True)
        )

    def field(self, draws, length, shared=0.8):
        """A smooth random field of mean 0 and variance 1, float32.

        A sum of Gaussian bumps of standard deviation `length` on a lattice of that step, which
        depends on the region in mm alone: another scale or shape samples the same field.
        """
        lattices = [
            np.arange(low - 2 * length, high + 3 * length, length)
            for low, high in zip(self.low, self.high, strict=True)
        ]
        field = draws.normal([len(lattice) for lattice in lattices], shared).astype(np.float32)
        for axis, lattice in zip(self._axes, lattices, strict=True):
            bumps = np.exp(-0.5 * ((axis[:, None] - lattice) / length) ** 2)
            bumps /= np.sqrt((bumps**2).sum(axis=1, keepdims=True))
            # The first axis is summed away and comes back as the last: after three, as before.
            field = np.tensordot(field, bumps.astype(np.float32), axes=(0, 1))
        return field

    def soft(self, distance):
        """Share of a voxel inside, from the signed distance (mm, negative inside)."""
        distance = np.asarray(distance, np.float32)
        return np.clip(np.float32(0.5) - distance / np.float32(self.voxel), 0, 1)

    def ball(self, centre, radii):
        """Distance from the centre in units of the radii (1 on the ellipsoid), float32."""
        squares = (
            ((axis - np.float32(c)) / np.float32(r)) ** 2
            for axis, c, r in zip((self.x, self.y, self.z), centre, radii, strict=True)
        )
        x, y, z = squares
        return np.sqrt(x + y + z)

    def blob(self, draws, centre, radii, rough=0.08, grain=0.6, vary=1.0):
        """An ellipsoid whose place, size and surface vary between subjects.

        It is never so small that it could slip between the centres of the voxels.

        Args:
            draws: of the case.
            centre, radii: typical, in mm.
            rough: standard deviation of the surface, as a share of the radius.
            grain: wavelength of the surface's bumps, as a share of the radius.
            vary: how much place and size vary: 1 is 12 % of the radius and 10 %.

        Returns:
            (window, distance on it).
        """
        radii = np.asarray(radii, float)
        centre = centre + vary * 0.12 * radii * draws.normal(3)
        radii = np.maximum(radii * np.exp(vary * 0.1 * draws.normal(3)), 0.9 * self.step)
        window = self.window(centre - (1.2 + 2 * rough) * radii, centre + (1.2 + 2 * rough) * radii)
        distance = window.ball(centre, radii) - 1
        if rough:
            distance += np.float32(rough) * window.field(draws, grain * radii.mean())
        return window, distance * np.float32(radii.min())

    def tubes(self, segments, margin=0.0):
        """The union of straight pieces of tube with round ends.

        Args:
            segments: list of (start, end, radius at the start, radius at the end), in mm. A
                radius below 0.75 of a voxel's edge in the plane is raised to it, so that a thin
                tube is no string of dots; what is thinner than 0.4 of it is left out.
            margin: mm around the tubes within which the distance is wanted.

        Returns:
            (window, distance on it); `FAR` beyond the margin.
        """
        starts, ends, first, last = (
            np.asarray(part, float) for part in zip(*segments, strict=True)
        )
        edge = self.step[:2].max()
        kept = np.maximum(first, last) >= min(0.4 * edge, np.maximum(first, last).max())
        starts, ends = starts[kept], ends[kept]
        first, last = (np.maximum(part[kept], 0.75 * edge) for part in (first, last))
        reach = (np.maximum(first, last) + margin + self.voxel)[:, None]
        lows, highs = np.minimum(starts, ends) - reach, np.maximum(starts, ends) + reach
        window = self.window(lows.min(0), highs.max(0))
        distance = np.full(window.shape, FAR)
        # All segments' boxes at once: a tree has hundreds of them.
        found = [
            (np.searchsorted(axis, low - edge), np.searchsorted(axis, high + edge))
            for axis, edge, low, high in zip(window._axes, self.step, lows.T, highs.T, strict=True)
        ]
        boxes, along = np.array(found).transpose(2, 0, 1), ends - starts
        mesh = [axis.ravel() for axis in (window.x, window.y, window.z)]
        for n in np.flatnonzero((boxes[:, :, 0] < boxes[:, :, 1]).all(axis=1)):
            box = tuple(slice(low, high) for low, high in boxes[n])
            near = zip(mesh, box, starts[n].astype(np.float32), strict=True)
            x, y, z = np.ix_(*(axis[part] - start for axis, part, start in near))
            a, b, c = along[n].astype(np.float32)
            t = np.clip((x * a + (y * b + z * c)) / max(a * a + b * b + c * c, 1e-6), 0, 1)
            away = np.sqrt((x - t * a) ** 2 + (y - t * b) ** 2 + (z - t * c) ** 2)
            away -= np.float32(first[n]) + t * np.float32(last[n] - first[n])
            np.minimum(distance[box], away, out=distance[box])
        return window, distance


@dataclass(frozen=True)
class Layer:
    """What is painted over everything that came before.

    Attributes:
        grid: the whole grid or a window.
        distance: signed, mm, broadcasts to the grid's shape.
        values: one a channel: a number or an array that broadcasts; MRI in shares of full
            brightness, CT in Hounsfield units.
        label: label value inside; None leaves the labels as they are.
    """

    grid: Grid
    distance: np.ndarray
    values: tuple
    label: int | None = 0

    def paint(self, channels, label):
        """Paint into channels and label (whole arrays of the case), in place."""
        if 0 in self.grid.shape:
            return
        mask, box = self.grid.soft(self.distance), self.grid.box
        for channel, value in zip(channels, self.values, strict=True):
            view = channel[box]
            view += mask * (value - view)
        if self.label is not None:
            label[box][np.broadcast_to(mask > 0.5, self.grid.shape)] = self.label


def curve(points, count):
    """`count` points (count, 3) along a smooth curve through some points in mm."""
    points = np.asarray(points, float)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    along = np.concatenate([[0], np.cumsum(steps)])
    spline = make_interp_spline(along, points, k=min(3, len(points) - 1))
    return spline(np.linspace(0, along[-1], count))


def chain(points, radii):
    """Segments for `Grid.tubes` along points (n, 3); radii: n numbers or one."""
    radii = np.broadcast_to(radii, len(points))
    return list(zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True))


def branches(draws, root, ways, radius, thinnest, rooms):
    """Vessel trees by bifurcation, as segments for `Grid.tubes`.

    At a fork the cubes of the children's radii add up to the parent's (Murray, PNAS 12, 1926).

    Args:
        draws: of the case.
        root: where they start, mm.
        ways: where they go at first, a vector each.
        radius: at the root, mm.
        thinnest: the radius at which they end, mm.
        rooms: ellipsoids (centre, radii), mm: a branch that leaves them all ends.
    """

    def inside(points):
        return np.any([(((points - c) / r) ** 2).sum(-1) < 1 for c, r in rooms], axis=0)

    segments = []
    heading = _unit(np.array(ways, float))
    start = np.tile(np.asarray(root, float), (len(heading), 1))
    size = np.full(len(heading), float(radius))
    while len(size):
        for _ in range(2):  # a bend in the middle
            heading = _unit(heading + 0.18 * draws.directions(len(size)))
            end = start + heading * (size * draws.uniform(2.4, 3.4, len(size)))[:, None]
            segments += zip(start, end, size, 0.95 * size, strict=True)
            on = inside(end)
            start, heading, size = end[on], heading[on], 0.95 * size[on]
        share = draws.uniform(0.35, 0.65, len(size))
        side = _unit(np.cross(heading, draws.directions(len(size))))
        children = []
        for part, sign in ((share, 1), (1 - share, -1)):
            # The thinner one turns away more.
            turn = np.deg2rad(draws.uniform(25, 40, len(size)) * (1.5 - part))[:, None]
            child = size * part ** (1 / 3)
            way = np.cos(turn) * heading + sign * np.sin(turn) * side
            on = child >= thinnest
            children.append((start[on], way[on], child[on]))
        start, heading, size = (np.concatenate(both) for both in zip(*children, strict=True))
    return segments


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
