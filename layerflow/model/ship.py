"""Ship the model's code with a pipeline folder, so that it opens where this package is not.

``DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)`` runs one file for the pipeline
and one in the folder of each component of ours; diffusers brings no further files. Each is made
from this package's source: the class and the definitions that it needs, nothing else.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import layerflow
from layerflow.model.adapter_files import GATED_WEIGHTS, saved_adapters
from layerflow.model.base import base_of

PIPELINE = "layerflow_pipeline"
COMPONENTS = {"transformer": "layerflow_transformer", "vae": "layerflow_autoencoder"}
"""Part -> the file that is shipped for it, where its class is ours."""

HEADER = '''"""{name} of the LayerFlow toolkit {version}, as one file for diffusers.

Made from the package's source by `layerflow.model.ship`; change that, not this. Needs {libraries},
and peft for adapters. Licence: Apache-2.0.
"""

from __future__ import annotations

'''


def ship_code(folder: Path) -> None:
    """Write the code files into a pipeline folder, and their names into its ``model_index.json``.

    Adapters get a name under which diffusers brings them from the Hub. This package opens the
    folder as before, with its own code.
    """
    pipeline, path = base_of(folder).pipeline, folder / "model_index.json"
    index = json.loads(path.read_text())
    (folder / f"{PIPELINE}.py").write_text(bundle(pipeline.__module__, pipeline.__name__))
    index["_class_name"] = [PIPELINE, pipeline.__name__]
    for part, said in index.items():
        if isinstance(said, list) and len(said) == 2 and said[1] in pipeline.own_modules:
            file = COMPONENTS[part]
            code = bundle(pipeline.own_modules[said[1]], said[1])
            (folder / part / f"{file}.py").write_text(code)
            index[part] = [file, said[1]]
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    for adapter in saved_adapters(folder / "transformer").values():
        copy = adapter.with_name(GATED_WEIGHTS)  # a download by diffusers brings this name only
        if not copy.exists():
            shutil.copyfile(adapter, copy)


@cache
def bundle(module: str, name: str) -> str:
    """ModuleSource of one file that defines a class of this package, on public libraries alone.

    ValueError where that cannot be: two things of one name, or an import inside a function.
    """
    reached: dict[tuple[str, str], None] = {}
    imports: dict[str, str] = {}
    _reach(module, name, reached, imports)
    texts: dict[str, str] = {}
    for owner in _in_order({owner for owner, _ in reached}):
        source = _read(owner)
        for node in source.tree.body:
            own = [n for part, n in reached if part == owner and source.defined.get(n) is node]
            for each in own:
                text = source.text(node)
                if texts.setdefault(each, text) != text or each in imports:
                    raise ValueError(f"{each} means two things in the code of {name}; rename one")
    body = list(dict.fromkeys(texts.values()))
    roots = {statement.split()[1].split(".")[0] for statement in imports.values()}
    libraries = ", ".join(sorted(roots - set(sys.stdlib_module_names)))
    head = HEADER.format(name=name, version=layerflow.__version__, libraries=libraries)
    return head + "\n".join(sorted(imports.values())) + "\n\n\n" + "\n\n\n".join(body) + "\n"


@dataclass
class ModuleSource:
    """One module of the package: what it defines, and what it imports under which name."""

    lines: list[str]
    tree: ast.Module
    defined: dict[str, ast.stmt] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    """Name -> the statement that imports it from a library."""
    inside: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Name -> the module of ours that it comes from and its name there; None: the module."""

    def text(self, node: ast.stmt) -> str:
        """The node's source, with names of our modules taken away: ``text.prefixed`` is
        ``prefixed``."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        lines = self.lines[first - 1 : node.end_lineno]
        dotted = [
            (part.value.lineno - first, part.value.col_offset, part.value.end_col_offset)
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute) and self.module_of(part.value) is not None
        ]
        for line, start, end in sorted(dotted, reverse=True):
            raw = lines[line].encode()  # offsets are in bytes
            lines[line] = (raw[:start] + raw[(end or start) + 1 :]).decode()
        return "\n".join(lines)

    def module_of(self, value: ast.expr) -> str | None:
        """The module of ours that an expression names, if it does."""
        if not isinstance(value, ast.Name):
            return None
        module, name = self.inside.get(value.id, ("", ""))
        return module if name is None else None


@cache
def _read(module: str) -> ModuleSource:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    source = ModuleSource(text.splitlines(), ast.parse(text))
    for node in source.tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            source.defined[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            each = [t for target in targets for t in getattr(target, "elts", [target])]
            source.defined |= {t.id: node for t in each if isinstance(t, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "layerflow":
            for alias in node.names:
                whole = _is_module(f"{node.module}.{alias.name}")
                where = f"{node.module}.{alias.name}" if whole else str(node.module)
                source.inside[alias.asname or alias.name] = (where, None if whole else alias.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and (
            getattr(node, "module", "") != "__future__"
        ):
            for alias in node.names:
                alone = type(node)(**{**vars(node), "names": [alias]})
                source.outside[alias.asname or alias.name.split(".")[0]] = ast.unparse(alone)
    return source


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False


def _reach(
    module: str, name: str, reached: dict[tuple[str, str], None], imports: dict[str, str]
) -> None:
    """Collect what a name of a module needs: definitions of ours, and imports of libraries."""
    source = _read(module)
    if name in source.inside:
        where, there = source.inside[name]
        if there is not None:
            _reach(where, there, reached, imports)
    elif name in source.outside:
        if imports.setdefault(name, source.outside[name]) != source.outside[name]:
            raise ValueError(f"{name} is imported as two things; rename one ({module})")
    elif name in source.defined and (module, name) not in reached:
        reached[module, name] = None
        for part in ast.walk(source.defined[name]):
            if isinstance(part, ast.ImportFrom) and (part.module or "").startswith("layerflow"):
                raise ValueError(f"{module}.{name} imports {part.module} inside: it cannot ship")
            if isinstance(part, ast.Name):
                _reach(module, part.id, reached, imports)
            elif isinstance(part, ast.Attribute):
                owner = source.module_of(part.value)
                if owner is not None:
                    _reach(owner, part.attr, reached, imports)


def _in_order(modules: set[str]) -> list[str]:
    """Modules so that each comes after those that it imports."""
    done: list[str] = []

    def add(module: str) -> None:
        if module not in done:
            for where in sorted({where for where, _ in _read(module).inside.values()}):
                add(where)
            done.append(module)

    for module in sorted(modules):
        add(module)
    return [module for module in done if module in modules]
