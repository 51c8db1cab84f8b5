"""TensorBoard, in a browser, shows what `DensityLog` wrote of real runs.

Needs Chromium and playwright: `make browser` installs them. Screenshots are
left in `runs/screenshots`.
"""

import contextlib
import io
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCREENSHOTS = ROOT / "runs" / "screenshots"
CHROMIUM = shutil.which("chromium")
SECONDS = 60  # To wait for a server, or a page.
SETTINGS = [
    *("--dataset=digits", "--network=resnet8", "--epochs=3", "--interval=1"),
    *("--threshold=0.25", "--learning_rate_drops=100"),
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api",
        reason="playwright is not installed: make browser",
    )
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: make browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    """Address of a TensorBoard of two runs, dense and shrinking."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("dense", "prunetrain"):
        subprocess.run(
            [
                *(sys.executable, str(ROOT / "apps" / "train_cifar.py")),
                *(f"--method={method}", f"--workdir={folder / method}"),
                *SETTINGS,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tensorboard.main", "--logdir", folder),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address).close()
                break
            time.sleep(0.2)
        else:
            pytest.fail("TensorBoard does not answer.")
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def tab(browser, server):
    """Opens a tab of the dashboard; takes a picture of it at the end."""
    page = browser.new_page(viewport={"width": 1500, "height": 1400})
    page.set_default_timeout(1000 * SECONDS)
    opened = []

    def open_tab(name):
        opened.append(name)
        page.goto(f"{server}/#{name}")
        page.reload()
        return page

    yield open_tab
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{opened[-1]}.png")
    page.close()


def test_custom_scalars_have_a_curve_of_each_run_in_each_chart(tab):
    page = tab("custom_scalars")
    groups = ("all layers", "8x8", "4x4", "2x2", "vectors")
    titles = [
        *(f"Channels left / first: {group}" for group in groups),
        *("Training FLOPs of an epoch / dense", "Parameters"),
        *("Seconds of an epoch", "Batch size", "Learning rate"),
    ]
    for title in titles:
        page.get_by_text(title, exact=True).first.wait_for()
    charts = page.locator("vz-line-chart2")
    assert charts.count() == len(titles)
    for i in range(len(titles)):
        lines = charts.nth(i).locator("path.line")
        lines.nth(3).wait_for(state="attached")  # Two runs, and the zeros.
        points = [lines.nth(n).get_attribute("d") for n in range(lines.count())]
        drawn = [path for path in points if path and path.count("L") >= 2]
        assert len(drawn) >= 4, f"chart {i}: {points}"
        assert not any("NaN" in path for path in drawn)


def test_images_have_the_heat_map_of_each_run(tab):
    import PIL.Image

    page = tab("images")
    page.get_by_text("channels_of_layers").first.wait_for()
    pictures = page.locator("tf-image-loader img")
    pictures.nth(1).wait_for()
    for i in range(2):
        address = pictures.nth(i).evaluate("image => image.src")
        with urllib.request.urlopen(address) as response:
            picture = PIL.Image.open(io.BytesIO(response.read()))
        assert picture.width == 800
        shades = picture.convert("RGB").getcolors(2**24)
        assert len(shades) > 50  # Not an empty one.


def test_hparams_have_a_row_of_each_run(tab):
    page = tab("hparams")
    page.get_by_text("PruneTrainCallb").first.wait_for()
    page.get_by_text("dense", exact=True).first.wait_for()
    for run in ("dense/tensor", "prunetrain/t"):
        page.get_by_text(re.compile(f"^ *{run}")).first.wait_for()
    for name in (
        *("algorithm", "penalty_ratio", "interval", "threshold"),
        "learning_rate",
        *("final/val_accuracy", "final/density", "final/parameters"),
    ):
        page.get_by_text(name, exact=True).first.wait_for()


def test_texts_tell_of_each_reconfiguration(tab):
    page = tab("text")
    page.get_by_text("channels before").first.wait_for()
    page.get_by_text("stage1_block0_conv1").first.wait_for()


def test_histograms_say_what_they_are_of(tab):
    page = tab("histograms")
    page.get_by_text("log10_of_magnitude_over_threshold").first.wait_for()
    page.locator(
        "histogram-component, vz-histogram-timeseries"
    ).first.wait_for()
