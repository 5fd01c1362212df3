"""Filling background over a whole clip by a network for video: Wan 2.1 VACE, by local path.

It sees all frames with their holes and makes what is behind these move as the rest does. What
another frame showed stays as it is; what is new differs from clip to clip, and not from run to run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from layerflow.documents import read_json
from pipelines.engine.staging import InfrastructureError
from pipelines.vision.inpaint import Hole
from pipelines.vision.numerics import single_thread

PARTS = {"transformer": "WanVACETransformer3DModel", "vae": "AutoencoderKLWan"}
"""Folders with a network of diffusers, and its class."""
SCHEDULERS = ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
STEPS = 30
_AREA, _FRAMES = 480 * 832, 81  # pixels and frames that the network was made for
_OVERLAP = 5  # frames of the part before that the next one starts from: two latent frames
_GREY = 128  # what its training shows in place of what is to be made
_WORDS = 512  # tokens of a prompt


class WanVaceInpainter:
    """Fills the holes of a clip by one answer of Wan 2.1 VACE, without words.

    ``weights``: a folder of diffusers' ``WanVACEPipeline``, all weights as safetensors. ``device``:
    a torch device, on which network and autoencoder lie; the text encoder is only asked once, on
    the CPU, for a prompt that says nothing. ``steps``: of sampling, without guidance.

    Larger clips are scaled to the network's 480x832 pixels; sides are filled up to its multiples
    (16) and frames to 4k + 1, by mirrored ones. A clip of more than 81 frames goes in parts, of
    which each starts from the last five frames of the one before. The noise is seeded by what the
    network is shown. Everything is checked at once, weights by their names and shapes; they are
    loaded when a hole comes; what goes wrong then stops the job. Raises ValueError for another
    folder, and for a device that is not there.
    """

    name = "wan-vace"
    licence = "as the weights folder: Wan 2.1 VACE is Apache-2.0"
    video = True

    def __init__(self, weights: str | Path, device: str = "cpu", steps: int = STEPS) -> None:
        self._folder, self._device, self._steps = Path(weights), device, steps
        _check(self._folder, device)
        self._pipe: Any = None
        self._words: Any = None

    def __call__(self, holes: Sequence[Hole]) -> list[np.ndarray]:
        """See ``Inpainter``."""
        filled = np.stack([hole.picture for hole in holes])
        todo = np.stack([hole.where for hole in holes])
        for part in _parts(len(filled)):
            where = todo[part]
            if where.any():
                filled[part][where] = self._answer(filled[part], where)[where]
                todo[part] = False
        return list(filled)

    def _answer(self, frames: np.ndarray, where: np.ndarray) -> np.ndarray:
        """What the network makes of uint8 [T, H, W, 3] with holes bool [T, H, W], as the frames."""
        count, height, width = where.shape
        self._load()
        step = int(
            self._pipe.vae_scale_factor_spatial * self._pipe.transformer.config.patch_size[1]
        )
        later = int(self._pipe.vae_scale_factor_temporal)
        factor = min(1.0, (_AREA / (height * width)) ** 0.5)
        wide, tall = (max(1, round(side * factor)) for side in (width, height))
        shown = _scaled(frames, wide, tall)
        asked = _scaled(where.astype(np.float32), wide, tall) > 0
        shown[asked] = _GREY
        fill = ((0, (1 - count) % later), (0, -tall % step), (0, -wide % step))
        shown = np.pad(shown, (*fill, (0, 0)), mode="symmetric")
        asked = np.pad(asked, fill, mode="symmetric")
        made = self._sample(shown, asked)[:count, :tall, :wide]
        return _scaled(np.ascontiguousarray(made), width, height)

    def _sample(self, shown: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """uint8 [T, h, w, 3] and bool [T, h, w] of fitting sizes -> uint8 [T, h, w, 3]."""
        import torch
        from PIL import Image

        content = hashlib.sha256(shown.tobytes() + np.packbits(asked).tobytes()).digest()
        masks = asked.astype(np.uint8) * np.uint8(255)
        with single_thread(), torch.inference_mode():
            made = self._pipe(
                video=[Image.fromarray(frame) for frame in shown],
                mask=[Image.fromarray(mask) for mask in masks],
                prompt_embeds=self._words,
                num_frames=asked.shape[0],
                height=asked.shape[1],
                width=asked.shape[2],
                num_inference_steps=self._steps,
                guidance_scale=1.0,
                generator=torch.Generator("cpu").manual_seed(int.from_bytes(content[:6], "big")),
                output_type="np",
            ).frames[0]
        return np.rint(np.clip(made, 0, 1) * 255).astype(np.uint8)

    def _load(self) -> None:
        if self._pipe is not None:
            return
        try:
            self._words = _silent(self._folder).to(self._device)
            self._pipe = _pipeline(self._folder, self._device)
        except Exception as error:
            text = f"{self._folder} does not load as Wan VACE on {self._device}: {error}"
            raise InfrastructureError(text) from error
        self._pipe.set_progress_bar_config(disable=True)


def _parts(count: int) -> Iterator[slice]:
    """The frames that go through the network together."""
    first = 0
    while first + _FRAMES < count:
        yield slice(first, first + _FRAMES)
        first += _FRAMES - _OVERLAP
    yield slice(first, count)


def _scaled(stack: np.ndarray, width: int, height: int) -> np.ndarray:
    """[T, h, w, ...] with each frame resized; a copy."""
    if stack.shape[1:3] == (height, width):
        return stack.copy()
    shrink = height * width < stack.shape[1] * stack.shape[2]
    how = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, (width, height), interpolation=how) for frame in stack])


def _silent(folder: Path) -> Any:
    """The embedding of a prompt that says nothing, [1, 512, D]: the end token's, then zeros."""
    from torch.nn.functional import pad
    from transformers import AutoTokenizer, UMT5EncoderModel

    from layerflow.model.wan.parts import encode_texts

    local = {"local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", **local)
    encoder = UMT5EncoderModel.from_pretrained(
        folder / "text_encoder", **local, use_safetensors=True
    ).eval()
    said = encode_texts(tokenizer, encoder, [" "], 8)  # an empty text would be zeros there
    return pad(said, (0, 0, 0, _WORDS - said.shape[1]))


def _pipeline(folder: Path, device: str) -> Any:
    """The pipeline without its text encoder. The network is in bf16 on a GPU, else in fp32."""
    import diffusers
    import torch

    local = {"local_files_only": True, "use_safetensors": True}
    half = torch.bfloat16 if device.startswith("cuda") else torch.float32
    network, vae = (
        getattr(diffusers, name).from_pretrained(folder / part, torch_dtype=dtype, **local)
        for (part, name), dtype in zip(PARTS.items(), (half, torch.float32), strict=True)
    )
    scheduler = getattr(diffusers, _scheduler(folder)).from_pretrained(
        folder / "scheduler", local_files_only=True
    )
    return diffusers.WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval().to(device),
        scheduler=scheduler,
        transformer=network.eval().to(device),
    )


def _check(folder: Path, device: str) -> None:
    """Raises ValueError for a folder or device that cannot work; loads no weights."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"inpainter 'wan-vace' cannot use the device {device}: {error}") from error
    if not folder.is_dir():
        raise ValueError(f"weights of the inpainter 'wan-vace' not found: {folder} is no folder")
    kind = read_json(folder / "model_index.json").get("_class_name")
    if kind != "WanVACEPipeline":
        raise ValueError(f"{folder} holds a {kind}, not a WanVACEPipeline")
    _scheduler(folder)
    for part, name in PARTS.items():
        _check_part(folder / part, name)
    if not _tensors(folder / "text_encoder") or not (folder / "tokenizer").is_dir():
        raise ValueError(
            f"{folder} has no text encoder with weights as safetensors, or no tokenizer"
        )


def _scheduler(folder: Path) -> str:
    name = read_json(folder / "scheduler" / "scheduler_config.json").get("_class_name")
    if name not in SCHEDULERS:
        raise ValueError(f"{folder} samples by {name!r}, not by one of {', '.join(SCHEDULERS)}")
    return str(name)


def _check_part(folder: Path, name: str) -> None:
    """Whether the weights of a network are those that its configuration asks for, by shape."""
    import diffusers
    import torch

    kind = getattr(diffusers, name)
    found = read_json(folder / "config.json")
    if found.get("_class_name") != name:
        raise ValueError(f"{folder} holds a {found.get('_class_name')}, not a {name}")
    try:
        with torch.device("meta"):
            wanted = kind.from_config(found).state_dict()
    except Exception as error:
        raise ValueError(f"{folder / 'config.json'} makes no {name}: {error}") from error
    there = _tensors(folder)
    lacking = [key for key, tensor in wanted.items() if there.get(key) != tuple(tensor.shape)]
    if lacking:
        raise ValueError(
            f"{folder} lacks {len(lacking)} of {len(wanted)} weights as safetensors, {lacking[0]}"
        )


def _tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what lies in a folder's safetensors, by their headers."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in list(file.keys()):
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not whole: {error}") from error
    return shapes
