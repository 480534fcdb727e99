"""Every page of the documentation is built and linked, and all its references exist."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from jobmetrics import families
from jobmetrics.families import BUILT_IN, HISTOGRAM
from tests.unit.documents import DOCS, OTHERS, PAGES, ROOT, anchors, blocks, code_words, links, name_of
from tests.unit.rows import each_row
from tools.docs_reference import anchor

EVERYWHERE = (*PAGES, *OTHERS)

METRIC = re.compile(r"(?<![\w./])((?:jobs|jobmetrics)_[a-z0-9_]*)(\*?)")
KNOWN = {family.name for family in BUILT_IN} | {
    f"{family.name}{suffix}"
    for family in BUILT_IN
    if family.type == HISTOGRAM
    for suffix in ("_bucket", "_sum", "_count")
}
NOT_METRICS = {"jobmetrics_registry"}  # the fixture


def recorded_names() -> set[str]:
    """The names that recording rules make; the part between their colons looks like a metric."""
    found = set()
    for path in (ROOT / "rules").glob("*.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            found |= {rule["record"] for rule in group["rules"] if "record" in rule}
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning fails the build."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    cache = tmp_path_factory.mktemp("doctrees")
    done = subprocess.run(
        [*command, "-d", str(cache), str(DOCS), str(target)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_every_page_is_built_and_linked_from_the_first(site: Path) -> None:
    first = (site / "index.html").read_text()
    pages = [page.relative_to(DOCS) for page in PAGES if not page.stem.endswith("-measured")]
    for page in pages:
        assert (site / page).with_suffix(".html").exists(), page
        if page.name != "index.md" and page.parent == Path():
            assert f'href="{page.with_suffix(".html")}"' in first, page


PUBLIC_MODULES = (
    "jobmetrics",
    *(
        f"jobmetrics.{name}"
        for name in ("celery", "rq", "exporter", "testing", "integration", "collector_api", "families", "conformance")
    ),
)


def test_the_api_page_has_every_public_name(site: Path) -> None:
    page = (DOCS / "api.md").read_text()
    listed = re.findall(r"^\.\. auto(?:class|function|exception|data):: (\S+)$", page, re.MULTILINE)
    names = [f"{module}.{name}" for module in PUBLIC_MODULES for name in importlib.import_module(module).__all__]
    assert sorted(listed) == sorted(names)
    constants = re.findall(r"^\| `(JOBS\w*)` \| `(\w+)` \|$", page, re.MULTILINE)
    public = {name: value for name, value in vars(families).items() if name.startswith("JOBS")}
    assert dict(constants) == {name: family.name for name, family in public.items()}
    html = (site / "api.html").read_text()
    assert [name for name in names if f'id="{name}"' not in html] == []
    errors = [name for name in vars(importlib.import_module("jobmetrics.errors")) if name.endswith("Error")]
    assert [name for name in errors if name not in html] == []


@each_row(PAGES, name_of)
def test_examples_import_public_names_only(page: Path) -> None:
    code = [ast.parse(block.text) for block in blocks(page) if block.language == "python"]
    for each in (node for tree in code for node in ast.walk(tree)):
        if isinstance(each, ast.ImportFrom) and (each.module or "").partition(".")[0] == "jobmetrics":
            module = str(each.module)
            assert module in (*PUBLIC_MODULES, "jobmetrics.errors"), f"{page.name} imports from {module}"
            known = vars(importlib.import_module(module))
            public = {*known.get("__all__", known), *(name for name in known if name.startswith("JOBS"))}
            for name in each.names:
                assert name.name in public or f"{module}.{name.name}" in PUBLIC_MODULES, f"{page.name}: {name.name}"


def test_references_are_in_the_site(site: Path) -> None:
    text = (site / "metrics.html").read_text()
    assert [family.name for family in BUILT_IN if f'id="{anchor(family.name)}"' not in text] == []
    assert "JOBMETRICS_MAX_SERIES" in (site / "configuration.html").read_text()
    assert "--web-config" in (site / "commands.html").read_text()


@each_row(EVERYWHERE, name_of)
def test_links_have_targets(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        file, _, part = unquote(link).partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), f"{name_of(page)} links to {link}"
        assert target.is_relative_to(ROOT), link
        if part:
            assert part in anchors(target), f"{name_of(page)} links to {link}"


@each_row(EVERYWHERE, name_of)
def test_named_files_exist(page: Path) -> None:
    top = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for word in code_words(page):
        if re.fullmatch(rf"({top})/[\w./-]+", word):
            assert (ROOT / word).exists(), f"{name_of(page)} names {word}"


def test_each_invariant_names_its_tests_and_its_mutation() -> None:
    page = (DOCS / "architecture.md").read_text()
    named = {int(number): test for number, test in re.findall(r"^\| (\d+) \| .* \| `(.*)` \|$", page, re.MULTILINE)}
    assert list(named) == list(range(1, 14))
    folder = ROOT / "tests" / "multiprocess"
    first_lines = {path.name: path.read_text().partition("\n")[0] for path in folder.glob("test_*.py")}
    in_tests = {
        name: int(found[1]) for name, line in first_lines.items() if (found := re.match(r'"""Invariant (\d+):', line))
    }
    assert in_tests == {test: number for number, test in named.items() if "/" not in test}
    for test in named.values():
        assert "/" in test or (ROOT / "tests" / "mutations" / f"{test[len('test_') : -len('.py')]}.patch").is_file()
        assert (ROOT / test if "/" in test else folder / test).is_file()


@each_row(EVERYWHERE, name_of)
def test_named_metrics_exist(page: Path) -> None:
    texts = code_words(page) + [block.text for block in blocks(page) if block.language == "promql"]
    rules = "|".join(map(re.escape, sorted(recorded_names(), reverse=True))) or r"(?!)"
    for text in texts:
        for name, star in METRIC.findall(re.sub(rules, "", text)):
            if star or name.endswith("_"):
                assert any(known.startswith(name) for known in KNOWN), f"{name_of(page)} names {name}{star}"
            else:
                assert name in KNOWN | NOT_METRICS, f"{name_of(page)} names {name}"
