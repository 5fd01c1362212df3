"""Inpainters: only the hole changes, crops are batched, and a made LaMa does as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.vision.inpaint import Hole, LamaInpainter, OpenCvInpainter, make_inpainter
from pipelines.vision.plate import clean_plate
from tests.support.inpainters import MeanOfTheRest
from tests.support.matting_clips import moving_disc, texture


class Halved(torch.nn.Module):
    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return image[:, :, ::2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lama") / "made.pt"
    torch.jit.script(MeanOfTheRest()).save(str(path))
    return path


def hole(seed: int, top: int, left: int, size: int, flat: int | None = None) -> Hole:
    picture = texture(90, 130, seed, (120, 100, 80))
    if flat is not None:
        picture[:] = flat
    where = np.zeros((90, 130), bool)
    where[top : top + size, left : left + size] = True
    picture[where] = 255
    window = (slice(max(0, top - 8), top + size + 8), slice(max(0, left - 8), left + size + 8))
    return Hole(picture, where, window)


def test_only_the_hole_changes_and_batches_change_nothing(weights: Path) -> None:
    holes = [hole(k, 5 * k, 9 * k, 12 + 3 * k) for k in range(10)]
    for inpainter in (OpenCvInpainter(), LamaInpainter(weights)):
        together = inpainter(holes)
        for one, picture in zip(holes, together, strict=True):
            assert np.array_equal(picture[~one.where], one.picture[~one.where])
            assert picture[one.where].mean() < 200 < one.picture[one.where].mean()
    flat = [hole(0, 3, 3, 20, flat=70), hole(0, 60, 100, 30, flat=70), hole(0, 0, 0, 89, flat=70)]
    for picture in LamaInpainter(weights)(flat):
        assert (picture == 70).all()


def test_a_clean_plate_takes_the_network_for_what_was_never_seen(weights: Path) -> None:
    clip = moving_disc(count=6, pan=0.0, speed=0.0, radius=20, noise=0.0)
    plate = clean_plate(clip.frames, clip.alpha, inpainter=make_inpainter("lama", str(weights)))
    assert plate.kind == "inpainted" and plate.unseen_fraction == 1.0
    deep = clip.alpha[0] > 0.99
    assert np.ptp(plate.background[:, deep].reshape(-1, 3), axis=0).max() <= 2  # one colour
    assert np.array_equal(plate.background[~plate.hole], clip.frames[~plate.hole])
    assert make_inpainter("lama", str(weights)) is make_inpainter("lama", str(weights))


def test_wrong_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"not TorchScript")
    with pytest.raises(ValueError, match=r"junk\.pt is not a TorchScript file"):
        make_inpainter("lama", str(tmp_path / "junk.pt"))
    with pytest.raises(ValueError, match="not found"):
        make_inpainter("lama", str(tmp_path / "absent.pt"))
    torch.jit.script(Halved()).save(str(tmp_path / "halved.pt"))
    with pytest.raises(ValueError, match="the inpainter gave"):
        make_inpainter("lama", str(tmp_path / "halved.pt"))([hole(0, 5, 5, 12)])
