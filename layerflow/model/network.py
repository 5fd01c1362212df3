"""What the networks of all bases have: their layout, and adapters that are saved beside them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from diffusers import ModelMixin
from torch import Tensor

from layerflow.clip import BLENDED
from layerflow.layer_set import LayerSet, layer_set
from layerflow.model import adapters
from layerflow.model.adapter_files import check_adapters, name_adapters, saved_adapters
from layerflow.model.layers import Layout, OfficialTask, native_layout


class LayeredNetwork(ModelMixin):
    """Comes before diffusers' class among the parents of a base's transformer.

    Its ``__init__`` sets ``official`` (None but for released configurations), ``layer_embedding``
    (``LayerEmbedding``) and ``motion_gate`` (``adapters.MotionGate``). Its configuration has
    ``mode``, ``task`` (where ``mode`` is official), ``layers`` (name of their set),
    ``num_text_tokens``, ``num_prompts`` (one for each layer of the set in colour),
    ``positions``, ``latent_frames`` (of one layer), ``sample_height`` and ``sample_width`` (usual
    latent size), ``in_channels`` and ``num_layers``.

    block_list: name of the list of repeated blocks, as ``Base.blocks``.
    """

    block_list: ClassVar[str]
    official: OfficialTask | None
    motion_gate: adapters.MotionGate

    @property
    def patch_side(self) -> int:
        """Latent pixels of a token's side."""
        return int(self.config.patch_size)

    @property
    def text_width(self) -> int:
        """Width of one token of text, as the text encoder gives it."""
        return int(self.config.text_embed_dim)

    @property
    def layer_set(self) -> LayerSet:
        """The layers that this model has."""
        return layer_set(
            self.official.layout.of if self.official else self.config.get("layers", "rgba")
        )

    def layout(
        self, num_frames: int | None = None, layers: tuple[str, ...] | None = None
    ) -> Layout:
        """How layers lie on ``num_frames`` latent frames (None: the configuration's own number).

        layers: those of a sample that has not all of the set's; None: all. ValueError for a number
        or for layers that this model cannot have.
        """
        config = self.config
        if self.official is not None:
            layout = self.official.layout
            if num_frames not in (None, layout.num_frames):
                raise ValueError(
                    f"{config.task} has {layout.num_frames} latent frames, not {num_frames}"
                )
            return layout
        own = (BLENDED,) if config.num_prompts == 1 else self.layer_set.layers
        layers = own if layers is None else layers
        total = config.latent_frames * len(layers) if num_frames is None else num_frames
        return native_layout(total, layers, config.positions == "shared", self.layer_set.name)

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """PEFT's ``add_adapter``; adapters stay active together, nothing becomes trainable."""
        with self._adapters_changing(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two are meant
            super().add_adapter(adapter_config, adapter_name)

    def load_lora_adapter(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' ``load_lora_adapter``; the same promises as ``add_adapter``, no pickles."""
        kwargs.setdefault("use_safetensors", True)
        with self._adapters_changing():
            super().load_lora_adapter(*args, **kwargs)

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """diffusers' ``set_adapter``, without its side effect on what is trainable."""
        with adapters.trainable_kept(self):
            super().set_adapter(adapter_name)

    def set_adapters(self, adapter_names: list[str] | str, weights: Any = None) -> None:
        """diffusers' ``set_adapters``, without its side effect on what is trainable."""
        with adapters.trainable_kept(self):
            super().set_adapters(adapter_names, weights)

    @contextmanager
    def _adapters_changing(self) -> Iterator[None]:
        with adapters.trainable_kept(self):
            yield
        if names := list(getattr(self, "peft_config", {})):
            self.set_adapter(names)
        adapters.gate_motion(self)

    def save_pretrained(
        self, save_directory: Any, *, instead: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """diffusers' ``save_pretrained``; adapters go to ``adapters/NAME`` inside the folder.

        The main weights are those without adapters, under plain names. instead: tensors to write
        for weights of these names, which the network holds otherwise than they are stored.
        """
        plain = {**adapters.base_state_dict(self), **(instead or {})}
        self.__dict__["state_dict"] = lambda *_args, **_kwargs: plain
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            del self.__dict__["state_dict"]
        names = sorted(getattr(self, "peft_config", {}))
        for name in names:
            adapters.save_adapter(self, name, Path(save_directory) / "adapters" / name)
        name_adapters(save_directory, names)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """diffusers' ``from_pretrained``; adapters saved beside the weights come with them."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        folder = Path(pretrained_model_name_or_path) / (kwargs.get("subfolder") or "")
        found = saved_adapters(folder)
        check_adapters(folder, found)
        for name, file in reversed(found.items()):
            adapters.load_adapter(model, name, file)
        return loaded
