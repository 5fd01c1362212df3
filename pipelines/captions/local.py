"""A captioner in this process: any image-text-to-text model of transformers, by local path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.mine import Captions
from pipelines.captions.request import CaptionError, Request


class VlmCaptioner:
    """Greedy answers of a model folder with weights (safetensors) and a processor.

    ``options.model``: the folder; nothing is downloaded, and no code of the folder is run. The
    processor must have a chat template. Raises ValueError for a folder that does not load.
    """

    licence = "as the weights"

    def __init__(self, options: Captions) -> None:
        path = options.model
        if not path or not Path(path).is_dir():
            raise ValueError(f"captions: no model folder {path}; for an endpoint give its url too")
        self.name = Path(path).name
        self._path, self._options = path, options
        self._processor: Any = None
        self._model: Any = None

    def check(self) -> None:
        """Load what is small: the process that plans a job need not hold the weights."""
        self._processor = self._processor or _load_processor(self._path)
        if not any(Path(self._path).glob("*.safetensors")):
            raise ValueError(f"captions: {self._path} holds no *.safetensors weights")

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """See ``Captioner``. Requests go through the network one by one: their sizes differ."""
        if self._model is None:
            self.check()
            self._model = _load_model(self._path, self._options.device)
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> str:
        import torch
        from PIL import Image

        pictures: list[dict[str, Any]] = [
            {"type": "image", "image": Image.fromarray(picture)} for picture in request.pictures
        ]
        content = [*pictures, {"type": "text", "text": request.text}]
        try:
            inputs = self._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self._options.device)
            with torch.inference_mode():
                found = self._model.generate(
                    **inputs, max_new_tokens=self._options.max_tokens, do_sample=False
                )
        except (RuntimeError, ValueError, IndexError) as error:
            raise CaptionError(f"{self.name}: {type(error).__name__}: {error}") from error
        new = found[:, inputs["input_ids"].shape[1] :]
        return str(self._processor.batch_decode(new, skip_special_tokens=True)[0])


def _load_processor(path: str) -> Any:
    from layerflow.compat import ensure_torchvision

    ensure_torchvision()
    from transformers import AutoProcessor

    processor = _loaded(AutoProcessor, "processor", path)
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(f"captions: the processor in {path} has no chat template")
    return processor


def _load_model(path: str, device: str) -> Any:
    from transformers import AutoModelForImageTextToText

    options = {"use_safetensors": True, "dtype": "auto"}
    return _loaded(AutoModelForImageTextToText, "model", path, **options).to(device).eval()


def _loaded(kind: Any, what: str, path: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(path, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"captions: the {what} in {path} does not load: {error}") from error
