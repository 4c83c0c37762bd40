"""Take the pictures of docs/ from a finished `make demo`, with Debian's Chromium: the report in light and dark,
MLflow's comparison page.

.venv/bin/python docs/screenshots.py [runs/digits]
"""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from PIL import Image

from cmdist.system.distributed import free_port
from cmdist.tracking import mlflow as tracking

DOCS = Path(__file__).parent
RUNS = ("edm", "cd", "sct", "mean_flow")


def main(root: Path) -> None:
    """All pictures."""
    report = root / "comparison" / "report.html"
    shoot(report.as_uri(), DOCS / "report-light.png", 1280, 1500)
    shoot(report.as_uri(), DOCS / "report-dark.png", 1280, 1500, dark=True)
    uri, port = f"sqlite:///{root}/mlflow.db", free_port()
    known = {run["name"]: run["id"] for run in tracking.runs(uri, "digits") if run["parent"] is None}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(
        [*command, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        experiment = wait_for(f"http://127.0.0.1:{port}")
        runs = urllib.parse.quote(json.dumps([known[name] for name in RUNS if name in known]))
        page = f"http://127.0.0.1:{port}/#/compare-runs?runs={runs}&experiments={urllib.parse.quote(json.dumps([experiment]))}"
        shoot(page, DOCS / "mlflow-compare.png", 1800, 1250, seconds=30)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(url: str) -> str:
    """The id of the experiment 'digits', once the server answers."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(
                f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=digits"
            ) as answer:
                return str(json.load(answer)["experiment"]["experiment_id"])
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def shoot(url: str, out: Path, width: int, height: int, dark: bool = False, seconds: float = 4) -> None:
    """A picture of a page."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ]
        command += [
            f"--window-size={width},{height}",
            f"--virtual-time-budget={seconds * 1000:.0f}",
            f"--screenshot={folder}/page.png",
        ]
        command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", url]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        picture = Image.open(f"{folder}/page.png").convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    out.write_bytes(buffer.getvalue())
    print(f"{out}: {len(buffer.getvalue()) / 1000:.0f} KB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits").absolute())
