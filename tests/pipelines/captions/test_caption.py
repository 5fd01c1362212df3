"""Captions: what is asked, checks of prompts, an endpoint that fails at times, a local model."""

from __future__ import annotations

import base64
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from manifests.mine import Captions, MineOptions
from pipelines.captions import endpoint as caption_http
from pipelines.captions.captioner import caption_clip, make_captioner, show
from pipelines.captions.checks import clean_prompt, find_problems, subject_nouns
from pipelines.captions.endpoint import EndpointCaptioner
from pipelines.captions.request import Request
from pipelines.inputs.prompts import TEMPLATE
from tests.support.captions import GOOD, clip_layers, good_reply, layer_of


def test_three_layers_are_asked_for_with_pictures_of_each(endpoint: Any) -> None:
    server = endpoint(good_reply)
    options = Captions(model="m", url=server.url, frames=3, side=36)
    prompts, flags = caption_clip(options, clip_layers(), TEMPLATE)
    assert prompts == GOOD and flags == {"prompt_flags": 0.0}
    asked = {layer_of(body["messages"][0]["content"][-1]["text"]): body for body in server.seen}
    assert set(asked) == {"name", *GOOD}
    assert all(body["model"] == "m" and body["temperature"] == 0 for body in server.seen)
    for layer, middle, corner in (("foreground", 255, 128), ("background", 40, 40)):
        pictures = asked[layer]["messages"][0]["content"][:-1]
        assert len(pictures) == 3
        url = pictures[0]["image_url"]["url"]
        data = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"), validate=True)
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (24, 36, 3)
        assert abs(int(picture[12, 18, 0]) - middle) < 8 and abs(int(picture[1, 1, 0]) - corner) < 8
    text = asked["background"]["messages"][0]["content"][-1]["text"]
    assert "no dog in it" in text
    assert server.keys == [None] * 4


def test_given_prompts_are_kept_and_nothing_is_asked_for_them(endpoint: Any) -> None:
    server = endpoint(good_reply)
    options = Captions(model="m", url=server.url)
    given = {**TEMPLATE, "foreground": "my own words", "background": "mine too"}
    prompts, _ = caption_clip(options, clip_layers(), given)
    assert prompts == {**given, "blended": GOOD["blended"]} and len(server.seen) == 1
    assert caption_clip(options, clip_layers(), prompts) == (prompts, {"prompt_flags": 0.0})
    assert len(server.seen) == 1
    assert caption_clip(None, clip_layers(), TEMPLATE) == (TEMPLATE, {})


def test_a_bad_prompt_is_asked_again_with_what_was_wrong(endpoint: Any) -> None:
    def reply(text: str, number: int) -> str:
        layer = layer_of(text)
        if layer == "background" and "What is wrong" not in text:
            return "A lawn on which two dogs play."
        return str(good_reply(text, number))

    server = endpoint(reply)
    prompts, flags = caption_clip(Captions(model="m", url=server.url), clip_layers(), TEMPLATE)
    assert prompts == GOOD and flags["prompt_flags"] == 0
    again = server.seen[-1]["messages"][0]["content"][-1]["text"]
    assert "it names the subject ('dogs')" in again and "two dogs play" in again
    assert len(server.seen) == 5


def test_a_prompt_that_stays_bad_is_flagged(endpoint: Any) -> None:
    def reply(text: str, number: int) -> str:
        layer = layer_of(text)
        return "A watermark." if layer == "blended" else "" if layer == "foreground" else "dog"

    server = endpoint(reply)
    options = Captions(model="m", url=server.url, retries=1)
    prompts, flags = caption_clip(options, clip_layers(), TEMPLATE)
    assert flags == {"prompt_flags": 3.0}
    assert prompts["blended"] == "A watermark." and prompts["foreground"] == TEMPLATE["foreground"]
    assert len(server.seen) == 1 + 2 * 3


def test_busy_servers_are_tried_again_and_requests_run_together(endpoint: Any) -> None:
    failures = [429, 503, b"not json", b'{"choices": []}', 500]
    lock = threading.Lock()
    meet = threading.Barrier(3, timeout=10)

    def reply(text: str, number: int) -> Any:
        with lock:
            if failures:
                return failures.pop()
        meet.wait()
        return "here it is"

    server = endpoint(reply)
    options = Captions(model="m", url=server.url, concurrency=3, attempts=7)
    captioner = EndpointCaptioner(options, first_wait=0.01)
    picture = (np.zeros((8, 8, 3), np.uint8),)
    answers = captioner.answer([Request(picture, str(k)) for k in range(3)])
    assert answers == ["here it is"] * 3 and len(server.seen) == 8 and server.most == 3


def test_slow_servers_and_refusals_end_as_flags(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_http, "MAX_WAIT", 0.01)
    stop = threading.Event()
    for reply, tries in ((lambda t, n: 400, 1), (lambda t, n: 302, 1), (lambda t, n: 503, 3)):
        server = endpoint(reply)
        options = Captions(model="m", url=server.url, attempts=3)
        assert caption_clip(options, clip_layers(), TEMPLATE) == (TEMPLATE, {"prompt_flags": 3.0})
        assert len(server.seen) == tries
    slow = endpoint(lambda text, number: stop.wait(5) or "late")
    options = Captions(model="m", url=slow.url, attempts=2, timeout=0.2)
    assert caption_clip(options, clip_layers(), TEMPLATE)[1] == {"prompt_flags": 3.0}
    stop.set()
    assert len(slow.seen) == 2


def test_the_key_comes_from_the_environment_and_is_nowhere_else(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = endpoint(good_reply)
    options = Captions(model="m", url=server.url, key_env="LAYERFLOW_TEST_KEY")
    captioner = make_captioner(options)
    with pytest.raises(ValueError, match="LAYERFLOW_TEST_KEY"):
        captioner.check()
    monkeypatch.setenv("LAYERFLOW_TEST_KEY", "wrong")
    with pytest.raises(ValueError, match="refused the key") as refused:
        captioner.check()
    assert "wrong" not in str(refused.value)
    monkeypatch.setenv("LAYERFLOW_TEST_KEY", "sesame")
    captioner.check()
    caption_clip(options, clip_layers(), TEMPLATE)
    assert server.keys[-4:] == ["Bearer sesame"] * 4
    assert "sesame" not in repr(vars(captioner)) and "sesame" not in options.model_dump_json()
    silent = Captions(model="m", url="http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match="does not answer"):
        make_captioner(silent).check()


def test_recipes_know_the_model_but_not_where_it_ran() -> None:
    about = {"inputs": ["x"], "out": "o", "size": "96x128"}
    captions = {"model": "/models/tiny-vlm", "timeout": 5, "device": "cuda"}
    said = MineOptions.model_validate({**about, "captions": captions}).model_dump(mode="json")
    assert said["captions"] == {
        "model": "tiny-vlm", "frames": 4, "side": 512, "max_tokens": 200, "retries": 2,
    }  # fmt: skip
    for url in ("ftp://x/v1", "http://user:pw@x/v1", "http://x/v1?key=1"):
        with pytest.raises(ValidationError, match="without user, password or query"):
            Captions(model="m", url=url)


def test_a_manifest_keeps_what_recipes_leave_out(tmp_path: Path) -> None:
    from manifests.common import load
    from manifests.schema import BuildManifest

    (tmp_path / "m.yaml").write_text(
        "jobs: [{job: mine, inputs: [v], out: o, size: 96x128, device: cuda, "
        "captions: {model: m, url: 'http://x/v1', key_env: KEY}}]"
    )
    options = load(tmp_path / "m.yaml", BuildManifest).jobs[0]
    assert isinstance(options, MineOptions) and options.captions is not None
    assert (options.device, options.captions.url) == ("cuda", "http://x/v1")
    assert options.captions.key_env == "KEY" and options.size == (96, 128)
    alone = MineOptions(inputs=["v"], out="o", size="96x128", captions={"model": "m"})
    assert options.model_dump(mode="json") == alone.model_dump(mode="json")  # and so the recipe


@pytest.mark.parametrize(
    ("layer", "text", "problem"),
    [
        ("foreground", "A dog on a black background.", "behind the subject"),
        ("foreground", "A dog against a plain, dark backdrop.", "behind the subject"),
        ("foreground", "A dog, cut out.", "behind the subject"),
        ("background", "A lawn without any dogs.", "names the subject ('dogs')"),
        ("background", "A man walks by.", None),
        ("blended", "The image shows a dog.", "'image'"),
        ("blended", "A dog and a Bilibili watermark.", "Bilibili"),
        ("blended", "I'm sorry, I cannot see it.", "speaks of you"),
        ("blended", "A dog near a window frame.", None),
        ("blended", "dog " * 300, "too long"),
        ("blended", "", "empty"),
        ("foreground", "A dog in a black coat runs.", None),
    ],
)
def test_problems_are_named(layer: str, text: str, problem: str | None) -> None:
    found = find_problems(layer, text, frozenset({"dog"}))
    assert (problem is None and not found) or (problem is not None and problem in found[0])


def test_subjects_and_answers_are_tidied() -> None:
    assert subject_nouns("Two brown dogs and a rider on a horse.") == {"dog", "rider"}
    assert subject_nouns("the women") == {"woman"} and subject_nouns("") == frozenset()
    assert find_problems("background", "People sit there.", frozenset({"woman"}))
    assert find_problems("background", "Boxes and foxes.", frozenset({"fox"}))
    assert clean_prompt('  **Foreground:** "A dog\n runs."  ') == "A dog runs."
    assert clean_prompt('"A dog\n runs."') == "A dog runs."
    assert clean_prompt("1, the lawn") == "the lawn"


def test_shown_moments_span_the_clip() -> None:
    layers = clip_layers()
    layers["blended"] = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(40, 1).repeat(
        60, 2
    ).repeat(3, 3)  # fmt: skip
    assert [int(p.mean()) for p in show(layers, "blended", 3, 512)] == [0, 2, 5]
    assert len(show(layers, "blended", 32, 512)) == 6
