"""The object's own colour at soft edges of a still, from the picture and its matte alone.

Solves for both layers at once: F and B minimise the sum over soft pixels of
``|a F + (1 - a) B - I|^2`` plus, over neighbours i, j, ``w (|F_i - F_j|^2 + |B_i - B_j|^2)`` with
``w = e + |a_i - a_j|``: colours may change anywhere but along the matte's own edge (Levin,
Lischinski and Weiss 2008, equation 19). Nearly opaque pixels hold F, nearly empty ones B.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import U8
from pipelines.vision.colour import estimate_foreground

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
SMOOTH = 1e-4  # e
DATA = 1.0  # weight of the compositing equation
EMPTY, OPAQUE = 4, 251  # alpha beyond which a pixel is not solved for
MAX_SOFT = 2_000_000  # pixels; beyond that the first estimate has to do
ITERATIONS = 120
TOLERANCE = 1.0  # levels, the largest step left


def own_colour(picture: U8, alpha: U8) -> U8:
    """Straight foreground colour uint8 ``[H, W, 3]`` of a picture and its matte ``[H, W]``.

    Soft pixels are solved for, everything else is the smooth first estimate.
    """
    guess = estimate_foreground(picture, alpha)
    soft = (alpha > EMPTY) & (alpha < OPAQUE)
    count = int(np.count_nonzero(soft))
    if not 0 < count <= MAX_SOFT:
        return guess
    system = _System(picture, alpha, soft, guess)
    start = np.concatenate([guess[soft], picture[soft]]).astype(np.float64)
    solved = system.solve(start)[:count]
    out = guess.copy()
    out[soft] = np.clip(np.rint(solved), 0, 255).astype(np.uint8)
    return out


class _System:
    """The normal equations over soft pixels: unknowns are all F, then all B; ``[2 n, 3]``."""

    def __init__(self, picture: U8, alpha: U8, soft: NDArray[np.bool_], guess: U8) -> None:
        from scipy import sparse

        count = int(np.count_nonzero(soft))
        a = alpha.astype(np.float64) / 255.0
        index = np.full(alpha.shape, -1, np.int64)
        index[soft] = np.arange(count)
        inside = a[soft]
        rows: list[I64] = []
        columns: list[I64] = []
        values: list[F64] = []
        diagonal = np.zeros(2 * count)
        fixed = np.zeros((2 * count, 3))
        for here, there in _neighbours(alpha.shape):
            for p, q in ((here, there), (there, here)):
                i, j = index[p], index[q]
                weight = SMOOTH + np.abs(a[p] - a[q])
                both = (i >= 0) & (j >= 0)
                for offset in (0, count):
                    rows.append(i[both] + offset)
                    columns.append(j[both] + offset)
                    values.append(-weight[both])
                    np.add.at(diagonal, i[both] + offset, weight[both])
                for offset, layer, known in ((0, guess, a[q] > 0.5), (count, picture, a[q] < 0.5)):
                    edge = (i >= 0) & (j < 0) & known
                    np.add.at(diagonal, i[edge] + offset, weight[edge])
                    np.add.at(fixed, i[edge] + offset, weight[edge, None] * layer[q][edge])
        observed = picture[soft].astype(np.float64)
        share = np.concatenate([inside, 1 - inside])
        diagonal += DATA * share**2
        fixed += DATA * share[:, None] * np.concatenate([observed, observed])
        cross = DATA * inside * (1 - inside)
        first, second = np.arange(count), np.arange(count) + count
        rows += [first, second, np.arange(2 * count)]
        columns += [second, first, np.arange(2 * count)]
        values += [cross, cross, diagonal]
        shape = (2 * count, 2 * count)
        entries = (np.concatenate(rows), np.concatenate(columns))
        self._matrix = sparse.csr_matrix((np.concatenate(values), entries), shape)
        self._fixed = fixed
        # F and B of one pixel hang together: precondition by the inverse of their 2 x 2 blocks.
        front, back = diagonal[:count, None], diagonal[count:, None]
        determinant = np.maximum(front * back - cross[:, None] ** 2, 1e-12)
        self._block = (back / determinant, front / determinant, cross[:, None] / determinant)

    def _preconditioned(self, residual: F64) -> F64:
        first, second = np.split(residual, 2)
        front, back, cross = self._block
        return np.concatenate([front * first - cross * second, back * second - cross * first])

    def solve(self, x: F64) -> F64:
        """Preconditioned conjugate gradients, all three channels side by side."""
        residual = self._fixed - self._matrix @ x
        scaled = self._preconditioned(residual)
        step = scaled.copy()
        rho = (residual * scaled).sum(0)
        for _ in range(ITERATIONS):
            if np.abs(scaled).max() < TOLERANCE:
                break
            image = self._matrix @ step
            size = rho / np.maximum((step * image).sum(0), 1e-30)
            x = x + size * step
            residual -= size * image
            scaled = self._preconditioned(residual)
            before, rho = rho, (residual * scaled).sum(0)
            step = scaled + rho / np.maximum(before, 1e-30) * step
        return x


def _neighbours(shape: tuple[int, ...]) -> tuple[tuple[tuple[slice, slice], ...], ...]:
    """Index pairs of horizontal and vertical neighbours."""
    every = slice(None)
    return (
        ((every, slice(0, shape[1] - 1)), (every, slice(1, shape[1]))),
        ((slice(0, shape[0] - 1), every), (slice(1, shape[0]), every)),
    )
