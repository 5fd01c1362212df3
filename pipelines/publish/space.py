"""``publish --push-space``: the page of ``layerflow view`` as a static Space beside the dataset.

The Space holds one HTML file, which makes no request, and a card. It is as private as the dataset,
and shows the corpus as it was published; with ``--purge-history`` it keeps no earlier page.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml

from pipelines.publish.calls import hub_api
from pipelines.publish.card import read_metadata
from pipelines.publish.files import PublishPlan, looked_at
from pipelines.publish.repository import Repository
from pipelines.view.page import write_report

CLIPS = 48
MARK = "layerflow-page"
TITLE = 60


def push_space(plan: PublishPlan, work: Path, *, purge: bool) -> list[str]:
    """Push the page; returns a line that says where it is.

    Raises ValueError where there is a Space of this name that this command did not make, or a
    public one although the clips may not be passed on.
    """
    from huggingface_hub import CommitOperationAdd

    options = plan.options
    with tempfile.TemporaryDirectory(dir=_made(work)) as place:
        space = Repository(hub_api(), options.repo_id, Path(place) / "held", kind="space")
        info = space.info()
        if info is not None:
            _refuse(space, plan, private=bool(info.private), head=info.sha)
        with looked_at(plan, CLIPS) as seen:
            page = Path(place) / "index.html"
            write_report(Path(seen.corpus.address), page, limit=CLIPS, workers=plan.workers)
        if info is None:
            space.call("create_repo", private=options.private, space_sdk="static", exist_ok=True)
        operations = [
            CommitOperationAdd("index.html", page),
            CommitOperationAdd("README.md", readme(plan).encode()),
        ]
        space.call("create_commit", operations, commit_message=f"{len(plan.corpus)} clips")
        if purge and len(space.call("list_repo_commits")) > 1:
            space.call("super_squash_history", commit_message="the present page")
    return [f"page: {space.api.endpoint}/spaces/{options.repo_id}"]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _refuse(space: Repository, plan: PublishPlan, *, private: bool, head: str) -> None:
    name = plan.options.repo_id
    text = space.text("README.md", head)
    if text is not None and MARK not in read_metadata(text).get("tags", ()):
        raise ValueError(f"the Space {name} holds something else; publish under another name")
    if plan.licences.forbidding and not private:
        raise ValueError(f"the Space {name} is public, but clips forbid redistribution")


def readme(plan: PublishPlan) -> str:
    """The card of the Space, with the settings that the Hub reads."""
    name = plan.options.repo_id
    about = {
        "title": name.partition("/")[2][:TITLE],
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        "datasets": [name],
        "tags": [MARK],
    }
    text = f"Some clips of the dataset [{name}](https://huggingface.co/datasets/{name})."
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n\n{text}\n"
