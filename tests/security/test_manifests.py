"""Attacks by a manifest: each is refused in a moment, with an error that fits a screen.

No test asserts a time: without the limits the bombs would not end within a test run, or would not
fit into memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from layerflow.cli.data import _assignments
from manifests import yaml_file
from manifests.common import Strict, check, load
from manifests.demo import DemoManifest
from manifests.mine import MineOptions
from manifests.schema import BuildManifest
from manifests.train import TrainManifest
from manifests.yaml_file import MAX_BYTES, SCREEN_LINES, SCREEN_WIDTH, on_screen, parse_yaml
from pipelines.publish.card import read_metadata

JOB = "jobs:\n- job: mine\n  inputs: [a.mp4]\n  out: o\n  size: 480x720\n"


def bomb(levels: int, head: str, again: str) -> str:
    """Each level holds the one before it nine times."""
    lines = [f"l0: &l0 {head}"]
    for i in range(1, levels):
        body = ", ".join([f"*l{i - 1}"] * 9)
        lines.append(f"l{i}: &l{i} {again.format(body)}")
    return "\n".join(lines) + f"\njobs: [*l{levels - 1}]\n"


ATTACKS: dict[str, tuple[str | bytes, str]] = {
    "billion laughs, lists": (bomb(10, "[x]", "[{}]"), "aliases written out"),
    "billion laughs, mappings": (bomb(9, "{k: v}", "{{a: [{}]}}"), "aliases written out"),
    "billion laughs, merge keys": (bomb(9, "{k: v}", "{{<<: [{}]}}"), "aliases written out"),
    "billion laughs, one merge key each": (
        "a0: &a0 {k: v}\n"
        + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 28)),
        "aliases written out",
    ),
    "quadratic blow-up by one long text": (
        f"big: &big {'y' * 50_000}\njobs: [{', '.join(['*big'] * 100)}]",
        "characters",
    ),
    "recursive list": ("jobs: &a [*a]", "stands inside of what it names"),
    "recursive mapping": ("&top\njobs: []\nmore: {deep: {er: *top}}", "stands inside of"),
    "recursive merge": ("jobs: &a {<<: *a}", "stands inside of what it names"),
    "an alias of nothing": ("jobs: *nobody", "undefined alias"),
    "deep lists": ("jobs: " + "[" * 20_000, "levels deep"),
    "deep mappings": ("{a: " * 5_000, "levels deep"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(400)), "levels deep"),
    "deep by aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 100)),
        "levels deep",
    ),
    "many values": ("jobs: [" + "a," * 200_000 + "]", "more than 100000 values"),
    "a huge scalar": ("jobs: " + "x" * 900_000, "jobs: Input should be a valid list"),
    "a huge number": (f"{JOB}  frames: {'9' * 10_000}", "a number of more than 64 characters"),
    "a huge hexadecimal number": (f"{JOB}  frames: 0x{'f' * 9_000}", "a number of more than 64"),
    "a number in base 60": (f"{JOB}  fps: 1{':1' * 90_000}", "a number of more than 64"),
    "a key twice": (JOB + "  out: elsewhere\n", "the key 'out' comes twice"),
    "a key twice, quoted": (JOB + "  'out': elsewhere\n", "the key 'out' comes twice"),
    "a key of absurd length": (f"? {'k' * 100_000}\n: 1\n{JOB}", "unknown key"),
    "many unknown keys": (JOB + "".join(f"k{i}: 1\n" for i in range(5_000)), "more lines"),
    "a list as key": ("? [a, b]\n: 1\n", "unhashable key"),
    "python object": ("jobs: !!python/object:os.system {}", "could not determine a constructor"),
    "python call": ("!!python/object/apply:os.system ['true']", "could not determine a construct"),
    "a tag of absurd length": (f"jobs: !{'t' * 100_000} x", "not YAML that can be read"),
    "an empty number": (f"{JOB}  frames: !!int ''", "a value is wrong"),
    "no truth value": (f"{JOB}  frames: !!bool maybe", "a value is wrong"),
    "no time": (f"{JOB}  licence: !!timestamp never", "a value is wrong"),
    "no date": (f"{JOB}  licence: 2001-99-99", "month must be in 1..12"),
    "binary": (bytes(range(256)), "cannot be read"),
    "text of two bytes a letter": (JOB.encode("utf-16"), "cannot be read"),
    "NUL": (b"jobs: \0\n", "not YAML"),
    "terminal control": (JOB + '  "\\e[2Jx": 1\n', r"\x1b[2Jx: unknown key"),
    "two documents": (JOB + "---\n" + JOB, "expected a single document"),
    "100 MB": (b"", "larger than"),
    "empty": ("", "a manifest is a mapping"),
    "a number": ("17", "a manifest is a mapping"),
    "wrong types": ("jobs: {mine: []}", "jobs: Input should be a valid list"),
    "wrong types inside": (JOB + "  frames: {a: [1, 2]}\n", "frames: Input should be a valid"),
    "a size of the wrong type": (JOB.replace("480x720", "[[1], {a: 2}]"), "both sides of a size"),
    "keys that are no text": ("1: 2\nnull: 3\n" + JOB, "Keys should be strings"),
}
"""Name -> manifest, and what its refusal says."""


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as refused:
        read()
    said = str(refused.value)
    lines = said.split("\n")
    assert len(lines) <= SCREEN_LINES + 1 and max(map(len, lines)) <= SCREEN_WIDTH
    assert all(c.isprintable() for line in lines for c in line)
    return said


def write(folder: Path, name: str) -> Path:
    path = folder / "manifest.yaml"
    content = ATTACKS[name][0]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if name == "100 MB":
        with path.open("wb") as file:
            file.truncate(100 << 20)  # no block of it is on the disk
    return path


@pytest.mark.parametrize("name", ATTACKS)
def test_a_corpus_manifest_that_attacks_is_refused_on_one_screen(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name)
    said = refusal(lambda: load(path, BuildManifest))
    assert ATTACKS[name][1] in said and "manifest.yaml" in said


@pytest.mark.parametrize("model", [TrainManifest, DemoManifest], ids=["train", "demo"])
@pytest.mark.parametrize(
    "name",
    [
        "billion laughs, merge keys",
        "recursive mapping",
        "deep lists",
        "a number in base 60",
        "many unknown keys",
        "100 MB",
        "binary",
        "empty",
    ],
)
def test_every_other_manifest_is_read_by_the_same_limits(
    name: str, model: type[Strict], tmp_path: Path
) -> None:
    assert refusal(lambda: load(write(tmp_path, name), model))


def test_values_on_the_command_line_and_cards_of_a_repository_are_limited_too() -> None:
    assert "--set objects" in refusal(lambda: _assignments([f"objects={'[' * 9_000}"], "--set"))
    assert _assignments(["objects=1,2", "shutter=0"], "--set") == {"objects": [1, 2], "shutter": 0}
    as_yaml = ["speed=[0.0, 0.02]", "of={a: 1, b: 2}", 'name="x, y"']
    found = {"speed": [0.0, 0.02], "of": {"a": 1, "b": 2}, "name": "x, y"}
    assert _assignments(as_yaml, "--set") == found
    laughs = bomb(10, "[x]", "[{}]")
    assert read_metadata(f"---\n{laughs}---\ntext") == {}
    assert read_metadata("---\ntags: [a]\n---\ntext") == {"tags": ["a"]}


def test_a_recorded_job_of_nonsense_is_an_error_on_one_screen() -> None:
    nonsense = {"inputs": [[]] * 10_000, "out": {"a": "b" * 10**6}, "size": "9" * 10**6}
    said = refusal(lambda: check(nonsense, MineOptions, "the recorded job"))
    assert "the recorded job: inputs[0]: Input should be a valid string" in said


def test_modest_aliases_merge_keys_and_long_lists_are_read() -> None:
    said = parse_yaml(
        "base: &base {size: 480x720, fps: 8}\n"
        "one: {<<: *base, fps: 24}\n"
        "two: [*base, *base]\n"
        "1: first\n'2': second\n",
        "here",
    )
    assert said["one"] == {"size": "480x720", "fps": 24}
    assert said["two"] == [{"size": "480x720", "fps": 8}] * 2
    many = "\n".join(f"- clips/{i:05}.mp4" for i in range(20_000))
    assert len(many) < MAX_BYTES and len(parse_yaml(many, "here")) == 20_000


def test_the_ready_manifests_are_within_the_limits() -> None:
    folder = Path(inspect.getfile(yaml_file)).parent
    found = sorted(folder.glob("*.yaml"))
    assert len(found) >= 6
    for path in found:
        load(path, DemoManifest if path.name == "demo.yaml" else TrainManifest)


def test_a_command_cuts_every_error_to_a_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from layerflow.cli import main

    def fails() -> None:
        raise ValueError("\n".join(["x" * 10_000] * 1000))

    monkeypatch.setattr(main, "build_app", lambda: fails)
    with pytest.raises(SystemExit) as stopped:
        main.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "and 980 more lines" in said
    assert len(said) < (SCREEN_LINES + 2) * (main.ERROR_WIDTH + 1)
    assert on_screen(["short"]) == "short"
