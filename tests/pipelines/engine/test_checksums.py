"""Sums of bytes and files, and what has another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.engine.checksums import SHA256, XXH3, bytes_sum, has_sum

EMPTY = {  # as the authors of the two publish them
    SHA256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    XXH3: "99aa06d3014798d86001c324468d497f",
}


@pytest.mark.parametrize("kind", EMPTY)
def test_sums_are_those_of_the_standard(kind: str) -> None:
    assert bytes_sum(b"", kind) == f"{kind}:{EMPTY[kind]}"


@pytest.mark.parametrize("kind", EMPTY)
def test_a_file_and_its_bytes_have_one_sum_and_changed_ones_another(
    kind: str, tmp_path: Path
) -> None:
    data, path = bytes(range(256)) * 4096, tmp_path / "file"
    path.write_bytes(data)
    told = bytes_sum(data, kind)
    assert has_sum(data, told) and has_sum(path, told)
    path.write_bytes(data[:-1] + b"x")
    assert not has_sum(path, told)
    assert not has_sum(data[:-1], told)


@pytest.mark.parametrize("told", ["", "md5:0", "xxh3", "xxh3:", EMPTY[SHA256]])
def test_what_is_no_sum_is_that_of_nothing(told: str) -> None:
    assert not has_sum(b"", told)


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        has_sum(tmp_path / "file", bytes_sum(b""))
