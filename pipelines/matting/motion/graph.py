"""A clip as a graph of superpixels, and the diffusion of foreground evidence over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree
from skimage.segmentation import slic

from pipelines.vision.evidence import Matches


@dataclass(frozen=True)
class Graph:
    """Superpixels of all frames and the weighted links between them.

    ``labels``: int32 [T, h, w], numbered through the clip; per superpixel: ``area`` in pixels,
    ``lab`` [N, 3], ``centre`` [N, 2] (x, y), ``frame`` [N], ``border`` (pixels on the frame's edge,
    the lower one at 0.4, over the root of the area). Links: ``first``/``second`` [E], ``weight``
    [E]; ``spatial`` marks those between touching superpixels of one frame, ``temporal`` those along
    the flow.
    """

    labels: np.ndarray
    area: np.ndarray
    lab: np.ndarray
    centre: np.ndarray
    frame: np.ndarray
    border: np.ndarray
    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray
    spatial: np.ndarray
    temporal: np.ndarray

    def mean(self, field: np.ndarray) -> np.ndarray:
        """The mean of a [T, h, w] field in every superpixel, float64 [N]."""
        total = np.bincount(self.labels.ravel(), field.ravel(), minlength=len(self.area))
        return total / self.area

    def paint(self, values: np.ndarray) -> np.ndarray:
        """Values per superpixel [N], numbers or bool -> float32 field [T, h, w]."""
        return values.astype(np.float32)[self.labels]


def build_graph(lab: np.ndarray, matches: list[Matches], segments: int) -> Graph:
    """Superpixels (SLIC) of float32 Lab frames [T, h, w, 3] and their links.

    Links: touching superpixels of a frame (contrast), superpixels that the flow carries into each
    other, and each one's nearest in colour and place over the whole clip.
    """
    labels = _superpixels(lab, segments)
    count = int(labels.max()) + 1
    flat = labels.ravel()
    area = np.bincount(flat, minlength=count).astype(np.float64)
    mean = np.stack([np.bincount(flat, lab[..., i].ravel(), count) / area for i in range(3)], -1)
    frames, height, width = labels.shape
    y, x = np.mgrid[:height, :width]
    centre = np.stack(
        [np.bincount(flat, np.broadcast_to(c, labels.shape).ravel(), count) / area for c in (x, y)],
        axis=-1,
    )
    frame = np.zeros(count, np.int64)
    for t in range(frames):
        frame[labels[t].min() : labels[t].max() + 1] = t
    edge = np.zeros((height, width))
    edge[-1] = 0.4  # subjects are often cut off below
    edge[0] = edge[:, 0] = edge[:, -1] = 1
    on_edge = np.broadcast_to(edge, labels.shape).ravel()
    border = np.bincount(flat, on_edge, minlength=count) / np.sqrt(area)
    links = [
        _spatial_links(labels, mean, area),
        _temporal_links(labels, matches, mean, area),
        _similar_links(mean, centre, frame, np.hypot(height, width)),
    ]
    kind = np.repeat([0, 1, 2], [len(link[0]) for link in links])
    first, second, weight = (np.concatenate([link[i] for link in links]) for i in range(3))
    return Graph(
        labels, area, mean, centre, frame, border, first, second, weight, kind == 0, kind == 1
    )


def diffuse(graph: Graph, foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Spread evidence over the graph: the minimiser p of

    sum_i f_i (p_i - 1)^2 + b_i p_i^2 + sum_ij w_ij (p_i - p_j)^2,

    a symmetric positive definite system, solved by conjugate gradients. ``foreground`` and
    ``background``: weights >= 0, [N]. Returns float64 [N] in [0, 1].
    """
    count = len(graph.area)
    rows = np.concatenate([graph.first, graph.second])
    columns = np.concatenate([graph.second, graph.first])
    weights = np.concatenate([graph.weight, graph.weight])
    links = sparse.coo_matrix((weights, (rows, columns)), shape=(count, count)).tocsr()
    degree = np.asarray(links.sum(1)).ravel()
    diagonal = degree + foreground + background + 1e-6
    system = sparse.diags(diagonal) - links
    inverse = sparse.diags(1 / diagonal)
    start = foreground / (foreground + background + 1e-6)
    solution, _ = cg(system, foreground, x0=start, rtol=1e-4, maxiter=300, M=inverse)
    return np.clip(solution, 0, 1)


def parts_of(graph: Graph, inside: np.ndarray) -> np.ndarray:
    """Connected parts, through space and along the flow, of the superpixels ``inside``, bool [N].

    Returns int [N]: the part's number, -1 outside.
    """
    use = inside[graph.first] & inside[graph.second]
    use &= graph.spatial | (graph.temporal & (graph.weight > 0.3))
    count = len(graph.area)
    links = sparse.coo_matrix(
        (np.ones(int(use.sum())), (graph.first[use], graph.second[use])), (count, count)
    )
    _, part = connected_components(links, directed=False)
    return np.where(inside, part, -1)


def _superpixels(lab: np.ndarray, segments: int) -> np.ndarray:
    labels = np.zeros(lab.shape[:3], np.int32)
    offset = 0
    for t, frame in enumerate(lab):
        # SLIC rescales its input to [0, 1], so the usual compactness of 10 Lab units goes with it.
        compactness = 10 / max(1.0, float(frame.max() - frame.min()))
        found = slic(
            frame,
            segments,
            compactness=compactness,
            max_num_iter=5,
            convert2lab=False,
            start_label=0,
        )
        _, dense = np.unique(found, return_inverse=True)
        labels[t] = dense.reshape(found.shape) + offset
        offset = int(labels[t].max()) + 1
    return labels


Links = tuple[np.ndarray, np.ndarray, np.ndarray]


def _pairs(first: np.ndarray, second: np.ndarray, count: int) -> Links:
    """Unique unordered pairs of different labels and how often each occurs."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    differ = low != high
    key, number = np.unique(low[differ].astype(np.int64) * count + high[differ], return_counts=True)
    return key // count, key % count, number.astype(np.float64)


def _colour_affinity(
    lab: np.ndarray, first: np.ndarray, second: np.ndarray, scale: float
) -> np.ndarray:
    distance = ((lab[first] - lab[second]) ** 2).sum(1)
    return np.exp(-distance / (2 * scale**2))


def _spatial_links(labels: np.ndarray, lab: np.ndarray, area: np.ndarray) -> Links:
    ends = (
        (labels[:, :, :-1], labels[:, :, 1:]),
        (labels[:, :-1], labels[:, 1:]),
    )
    first = np.concatenate([a.ravel() for a, _ in ends])
    second = np.concatenate([b.ravel() for _, b in ends])
    i, j, length = _pairs(first, second, len(area))
    contrast = np.sqrt(((lab[i] - lab[j]) ** 2).sum(1))
    scale = max(3.0, float(np.mean(contrast)))
    weight = _colour_affinity(lab, i, j, scale) * length / np.sqrt(np.minimum(area[i], area[j]))
    return i, j, weight + 1e-3


def _temporal_links(
    labels: np.ndarray, matches: list[Matches], lab: np.ndarray, area: np.ndarray
) -> Links:
    height, width = labels.shape[1:]
    first, second = [], []
    for m in matches:
        if m.target != m.source + 1:
            continue
        at = np.rint(m.position[::2, ::2]).astype(np.int64)
        x, y = at[..., 0], at[..., 1]
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        first.append(labels[m.source][::2, ::2][inside])
        second.append(labels[m.target][y[inside], x[inside]])
    if not first:
        empty = np.zeros(0, np.int64)
        return empty, empty, np.zeros(0)
    i, j, overlap = _pairs(np.concatenate(first), np.concatenate(second), len(area))
    share = 4 * overlap / np.minimum(area[i], area[j])
    keep = share > 0.1
    i, j, share = i[keep], j[keep], share[keep]
    return i, j, 2 * np.minimum(share, 1) * _colour_affinity(lab, i, j, 12.0)


def _similar_links(
    lab: np.ndarray, centre: np.ndarray, frame: np.ndarray, diagonal: float
) -> Links:
    features = np.concatenate([lab / 8, centre * (12 / diagonal)], axis=1)
    neighbours = min(9, len(lab))
    distance, index = cKDTree(features).query(features, k=neighbours)
    source = np.repeat(np.arange(len(lab)), neighbours - 1)
    target, near = index[:, 1:].ravel(), distance[:, 1:].ravel()
    return source, target, 0.25 * np.exp(-(near**2) / 2)
