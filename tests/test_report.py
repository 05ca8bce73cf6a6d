"""The report: of two runs, in a real browser; and its quantities."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image
from runs import ROOT, arguments, environment, here

from dnrt_jax.config import default, replaced
from dnrt_jax.report import __main__ as program
from dnrt_jax.report import figures, page
from dnrt_jax.report.responses import Responses, spread
from dnrt_jax.report.results import Results, means
from dnrt_jax.runtime.errors import UserError

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FIGURES = [
    "curves",
    "training",
    "spread",
    "shifts",
    "activated",
    "aggregated",
    "per_class",
    "confusion",
]


@pytest.fixture(scope="module")
def runs(finished, tmp_path_factory):
    """The folders of two runs on digits."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--config.train.steps=3", "--config.train.eval_steps=1"]
    flags += ["--config.optim.warmup_steps=1", "--config.model.act=gelu", "--config.arr.weight=0"]
    assert here(*arguments(folder / "gelu" / "0", *flags)).returncode == 0
    shutil.copytree(finished[0], folder / "raa+arr" / "0")
    return sorted(folder.glob("*/*"))


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    paper = ROOT / "results" / "paper" / "fig3.json"
    argv = [*map(str, runs), f"--out={out}", f"--paper={paper}", "--count=200"]
    done = subprocess.run(
        [sys.executable, "-m", "dnrt_jax.report", *argv],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_six_runs_fill_a_page_of_less_than_5_mb(runs, tmp_path):
    for name in "abcd":
        shutil.copytree(runs[0], tmp_path / name)
    six = [*runs, *(tmp_path / name for name in "abcd")]
    assert program.main([*map(str, six), f"--out={tmp_path}/out"]) == 0
    assert (tmp_path / "out" / "report.html").stat().st_size < 5e6


def test_the_page_is_whole(report, runs):
    page = (report / "report.html").read_text()
    assert page.count("<img") == len(FIGURES)
    assert page.count("<tr>") == 1 + len(runs)
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # nothing from elsewhere
    assert "arr.weight=0.0, model.act=gelu" in page


def test_every_figure_is_there_as_png_and_svg(report):
    for name in FIGURES:
        with Image.open(report / f"{name}.png") as image:
            assert (image.width, image.height > 200) == (1265, True)
        assert "</svg>" in (report / f"{name}.svg").read_text()


def browse(tmp_path, *arguments):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    flags += "--disable-background-networking --disable-component-update --disable-sync "
    flags += f"--user-data-dir={tmp_path}/profile --window-size=1280,6000 --enable-logging=stderr"
    call = [BROWSER, *flags.split(), "--virtual-time-budget=10000", *arguments]
    return subprocess.run(call, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_it_opens_in_a_browser_with_every_figure_visible(report, tmp_path):
    page = (report / "report.html").read_text()
    check = "document.body.dataset.shown = [...document.images].map(x => x.naturalWidth)"
    check += ";document.body.dataset.width = document.documentElement.scrollWidth"
    script = f"<script>onload = () => {{{check}}}</script></html>"
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</html>", script))
    dom = browse(tmp_path, "--dump-dom", probed.as_uri())
    assert "CONSOLE" not in dom.stderr
    shown = re.search(r'data-shown="([\d,]+)"', dom.stdout)
    assert shown, dom.stderr
    assert shown[1] == ",".join(["1265"] * len(FIGURES))
    width = re.search(r'data-width="(\d+)"', dom.stdout)
    assert width
    assert int(width[1]) <= 1280  # nothing to scroll sideways


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_screenshot_of_it_is_full_of_figures(report, tmp_path):
    page = (report / "report.html").as_uri()
    assert browse(tmp_path, f"--screenshot={tmp_path}/page.png", page).returncode == 0
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("L"))
    drawn = (pixels < 250).mean(1)  # by line of the page
    assert (drawn > 0.2).sum() > 1000


def test_what_the_figures_show_is_what_was_recorded(runs):
    records = {"a": [{"step": 1, "test/acc": 0.25}, {"step": 4, "test/acc": 0.5}]}
    accuracy = figures.curves(records, {"a": 8}).axes[2].lines[0]  # half of the run is over
    np.testing.assert_allclose(accuracy.get_xydata(), [[0.125, 25], [0.5, 50]])
    table = np.array([[3, 1], [0, 0]])
    texts = [text.get_text() for text in figures.per_class({"a": table}, ("x", "y")).axes[0].texts]
    assert texts == ["75", "0"]


def test_what_was_recorded_once_is_a_point_that_is_seen():
    once, twice = ([{"step": s, "test/acc": 0.5} for s in steps] for steps in ((4,), (2, 4)))
    lines = figures.curves({"a": once, "b": twice}, {"a": 4, "b": 4}).axes[2].lines
    assert [line.get_marker() for line in lines] == [".", "None"]
    probed = [{**record, "test/responses/blocks_0/probe": 0.1} for record in once]
    drawn = figures.over_training({"a": probed})
    assert drawn.axes[2].lines[0].get_marker() == "."


def test_the_axis_of_one_layer_has_one_whole_number():
    found = Responses(np.arange(4) % 2, {"blocks_0": np.eye(4)}, {}, {})
    axes = figures.spreads({"a": found}).axes[0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low < tick < high] == [1]


def test_the_colour_of_the_violins_tells_arr_whatever_the_runs_are_called():
    layers = {"blocks_0/mlp": np.random.default_rng(0).random((4, 2))}
    plain = Responses(np.zeros(4), {}, layers, {})
    drawn = figures.activated({"parrot": plain, "b": plain._replace(with_arr=True)})
    colours = [axes.collections[0].get_facecolor()[0] for axes in drawn.axes]
    np.testing.assert_allclose(colours, [to_rgba("C0", 0.75), to_rgba("C1", 0.75)])


def test_the_table_names_every_seed_of_a_set():
    config = default()
    rows = [{"step": 1, "epoch": 1.0, "test/acc": 0.5, "test/loss_ce": 1.0}]
    seeds = [replaced(config, {"seed": seed}) for seed in (3, 4)]
    results = {"set": Results.of([rows, rows], "acc"), "run": Results.of([rows], "acc")}
    text = page.table({"set": seeds, "run": [config]}, results)
    assert "<td>seed=3,4</td>" in text
    assert f"<td>seed={config.seed}</td>" in text


def test_a_layer_whose_class_means_are_one_has_no_spread_to_show():
    record = {"step": 1, "test/responses/blocks_0/norm": 0.5, "test/responses/blocks_0/probe": 0.1}
    drawn = figures.over_training({"a": [record]})
    assert [len(axes.lines[0].get_xdata()) for axes in drawn.axes] == [1, 0, 1]


def test_a_set_is_its_mean_with_a_band_of_one_deviation():
    rows = [
        {"step": 1, "test/acc": 0.25, "deviation/test/acc": 0.05},
        {"step": 4, "test/acc": 0.5, "deviation/test/acc": 0.1},
    ]
    (band,) = figures.curves({"a": rows}, {"a": 4}).axes[2].collections
    points = band.get_paths()[0].vertices
    for share, low, high in ((0.25, 20, 30), (1, 40, 60)):
        at = points[np.isclose(points[:, 0], share), 1]
        assert (at.min(), at.max()) == pytest.approx((low, high))


def test_the_results_of_a_set_are_those_of_each_run_at_its_own_end():
    def rows(*accuracies, every):
        steps = enumerate(accuracies, 1)
        return [{"step": every * i, "epoch": 1.0, "test/acc": acc} for i, acc in steps]

    longer, shorter = rows(0.1, 0.8, 0.6, every=10), rows(0.2, 0.4, every=10)
    found = Results.of([longer, shorter], "acc")
    assert (found.last["test/acc"], found.best["test/acc"]) == (0.5, pytest.approx(0.6))
    assert (found.best_steps, found.steps) == ([20, 20], [30, 20])
    assert [record["step"] for record in means([longer, shorter])] == [10, 20]


def test_what_was_best_on_the_validation_split_is_the_best():
    records = [
        {"step": 1, "epoch": 1.0, "test/acc": 0.5, "valid/acc": 0.9},
        {"step": 2, "epoch": 2.0, "test/acc": 0.6, "valid/acc": 0.8},
    ]
    assert Results.of([records], "acc").best["test/acc"] == 0.5


def test_classes_without_an_image_are_not_drawn():
    layers = {"blocks_0": np.random.default_rng(0).random((4, 50))}
    found = Responses(np.array([1, 1, 3, 3]), layers, {}, {})
    figure = figures.aggregated({"run": found}, ("a", "b", "c", "d"))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["run: b", "run: d"]
    assert (
        figures.aggregated({"run": found, "other": found._replace(labels=np.zeros(4))}, "abcd")
        is None
    )


@pytest.mark.slow
def test_the_folder_of_a_set_stands_for_its_runs(tmp_path):
    flags = ["--config.train.steps=3", "--config.train.eval_steps=1"]
    flags += ["--config.optim.warmup_steps=1", "--seeds=0,1"]
    assert here(*arguments(tmp_path / "set", *flags)).returncode == 0
    assert program.main([str(tmp_path / "set"), f"--out={tmp_path}/out", "--count=100"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<tr>") == 2  # the head, and one row
    assert re.search(r"\d\.\d{3} ± \d\.\d{3}", page)  # of the cross-entropy


def test_spread_within_and_between_classes():
    x = np.array([[0.0, 0], [2, 0], [10, 0], [12, 0]])
    within, between = spread(x, np.array([3, 3, 5, 5]))
    assert within == pytest.approx(np.sqrt(0.5))  # 1 in one of two channels
    assert between == pytest.approx(np.sqrt(12.5))


def test_the_papers_three_blocks_are_chosen():
    assert figures._three(12) == [1, 4, 10]
    assert figures._three(4) == [0, 1, 3]
    layers = {f"blocks_{i}/mlp": np.ones((4, 50)) for i in range(12)}
    figure = figures.activated({"run": Responses(np.zeros(4), {}, layers, {})})
    assert [axes.get_title() for axes in figure.axes] == [f"run: blocks_{i}" for i in (1, 4, 10)]


def test_names_are_short_and_different(tmp_path):
    assert program._names([tmp_path / "a" / "s0", tmp_path / "b" / "s0"]) == ["a/s0", "b/s0"]
    assert program._names([tmp_path / "a"]) == ["a"]
    with pytest.raises(UserError, match="named twice"):
        program._names([tmp_path / "a", tmp_path / "a"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: (run / "config.json").write_text("{"), "not the config of a run"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "no checkpoint yet"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n'), "evaluated"),
    ],
)
def test_what_is_no_run_is_answered_in_one_line(runs, tmp_path, capsys, change, words):
    shutil.copytree(runs[0], tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(SystemExit):
        program.main([str(tmp_path / "run"), f"--out={tmp_path}/out"])
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert (words in err, err.count("\n")) == (True, 1)
    assert not (tmp_path / "out").exists()
