"""The OpenAPI document tells the truth, and a thousand requests made from it, most of them wrong, leave nothing behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from serving import ROOT, Server

DOCUMENT = ROOT / "src" / "server" / "web" / "openapi.json"
ROUTES = ROOT / "src" / "server" / "routes.cpp"


def test_it_is_served_and_names_every_route(server):
    status, served = server.request("/openapi.json")
    assert status == 200
    assert served == json.loads(DOCUMENT.read_text())
    offered = set(re.findall(r'\.method = "(\w+)", \.path = "([^"]+)"', ROUTES.read_text()))
    pages = {("GET", path) for path in ("/", "/app.js", "/style.css")}
    described = {(method.upper(), path.replace("{name}", ""))
                 for path, methods in served["paths"].items() for method in methods}
    assert described == offered - pages


def test_schemathesis_finds_no_fault(tmp_path):
    with Server("--context", "48", "--no-log") as server:  # short answers: most requests set no limit
        find_no_fault(server, tmp_path)


def find_no_fault(server, folder):
    handles = Path(f"/proc/{server.process.pid}/fd")
    threads = Path(f"/proc/{server.process.pid}/task")
    before = len(os.listdir(handles)), len(os.listdir(threads))
    # A schema cannot say everything that is wrong (an end before a beginning), so that a refusal of what it allows is
    # no fault; answers must be of a kind that the document names, and what it forbids must be refused.
    got = subprocess.run(
        [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
         server.url + "/openapi.json", "--max-examples", "3", "--phases", "examples,coverage,fuzzing", "--seed", "7",
         "--exclude-checks", "positive_data_acceptance", "--request-timeout", "60", "--no-color"],
        capture_output=True, text=True, timeout=120, cwd=folder)
    assert got.returncode == 0, got.stdout[-6000:]
    (generated,) = re.findall(r"(\d+) generated", got.stdout)
    assert int(generated) >= 1000
    server.wait_idle()
    after = len(os.listdir(handles)), len(os.listdir(threads))
    assert after[1] == before[1] and after[0] <= before[0] + 1
