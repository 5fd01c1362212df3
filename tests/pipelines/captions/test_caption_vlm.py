"""A local vision-language model with random weights, through transformers' auto classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.mine import Captions
from pipelines.captions.captioner import caption_clip, make_captioner, show
from pipelines.captions.request import Request
from pipelines.inputs.prompts import TEMPLATE
from tests.support.captions import clip_layers


def make_vlm(folder: Path) -> Path:
    """A random LLaVA of a few thousand weights with its processor, saved as transformers does."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "a", "dog", "runs", "over", "grass"]
    base = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", additional_special_tokens=["<image>"],
    )  # fmt: skip
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default",
        chat_template=template, num_additional_image_tokens=1,
    )  # fmt: skip
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                **sizes, num_hidden_layers=2, image_size=16, patch_size=8
            ),
            text_config=LlamaConfig(
                **sizes, num_hidden_layers=1, vocab_size=len(words), pad_token_id=0,
                bos_token_id=1, eos_token_id=2,
            ),
            image_token_index=4, vision_feature_layer=-1,
        )
    )  # fmt: skip
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_local_model_of_transformers_answers(tmp_path: Path) -> None:
    from layerflow.compat import ensure_torchvision

    ensure_torchvision()
    options = Captions(model=str(make_vlm(tmp_path / "vlm")), frames=2, max_tokens=16, retries=0)
    captioner = make_captioner(options)
    captioner.check()
    assert captioner.name == "vlm"
    pictures = show(clip_layers(), "blended", 2, 32)
    first, again = captioner.answer([Request(pictures, "a dog"), Request(pictures, "a dog")])
    assert first == again and set(first.split()) <= {"a", "dog", "runs", "over", "grass"}
    prompts, flags = caption_clip(options, clip_layers(), TEMPLATE)
    assert set(prompts) == set(TEMPLATE) and 0 <= flags["prompt_flags"] <= 3
    with pytest.raises(ValueError, match="no model folder"):
        make_captioner(Captions(model=str(tmp_path / "absent")))
    (tmp_path / "junk").mkdir()
    with pytest.raises(ValueError, match="does not load"):
        make_captioner(Captions(model=str(tmp_path / "junk"))).check()
