"""The site is built from docs/, README and docstrings without a warning, and hangs together."""

import re
import subprocess
import sys
from html import unescape
from urllib.parse import unquote

import pytest
from runs import ROOT, environment

pytest.importorskip("mkdocstrings")
pytest.importorskip("material")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"],
        cwd=ROOT,
        env=environment() | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_link_leads_to_a_page_and_a_place_on_it(site):
    pages = {path: path.read_text() for path in site.rglob("*.html") if path.name != "404.html"}
    places = {path: set(re.findall(r' id="([^"]+)"', text)) for path, text in pages.items()}
    assert len(pages) > 25
    for path, text in pages.items():
        for link in re.findall(r'<(?:a|img|link|script)[^>]* (?:href|src)="([^"]*)"', text):
            if re.match(r"\w+:", link):
                continue
            name, _, place = unquote(unescape(link)).partition("#")
            target = (path.parent / name).resolve() if name not in ("", ".") else path
            assert target.exists(), f"{path.name}: {link}"
            if place and target in places:
                assert place in places[target] | {"__skip"}, f"{path.name}: {link}"


def test_it_asks_no_other_host_for_anything(site):
    for path in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)[^>]*>", path.read_text()):
            if 'rel="canonical"' not in tag:
                assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), f"{path.name}: {tag}"


def test_the_api_has_what_the_package_offers_with_its_arguments(site):
    for page, names in {
        "raa": ["raa.raa", "raa.RAA", "raa.raa_relu"],
        "arr": ["arr.init", "arr.update", "arr.lookup", "arr.loss", "arr.Centroids"],
        "nnx": ["nnx.RAA", "nnx.record"],
        "models": ["models.create", "models.registry", "models.vit.ViT", "models.resnet.ResNet"],
        "weights": ["torch_weights.from_torch", "torch_weights.to_torch", "runtime.hub.fetch"],
    }.items():
        text = (site / "api" / f"{page}.html").read_text()
        for name in names:
            assert f'id="dnrt_jax.{name}"' in text, name
    text = (site / "api" / "arr.html").read_text()
    assert re.search(r"momentum.*?weight of a new sample", text, re.DOTALL)


def test_the_home_page_has_the_figure_and_the_example(site):
    text = (site / "index.html").read_text()
    assert 'src="figures/idea.png"' in text
    assert "value_and_grad" in text
