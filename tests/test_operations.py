"""docs/operations.md and the folder `deploy`: the commands run, and every name in a file is one that the server has."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from medvllm.engine.model_runner import ModelRegistry
from tests.support import tiny, warm
from tests.support.console import command
from tests.support.serving import serving

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "operations.md").read_text()
OPTIONS = set(re.findall(r"`(--[a-z-]+)", (ROOT / "docs" / "cli.md").read_text()))


def test_the_commands_of_the_page_run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup has the keys and the history; an alias that is protected moves to the version that was approved."""
    for seed, name in enumerate(("tagger", "new-tagger")):
        tiny.bert_token_classifier(home / name, ["O", "B-X", "I-X"], seed=seed)
    monkeypatch.chdir(home)
    for words in (
        "register clinic-ner --path ./tagger --type clinical --task ner",
        "lock clinic-ner",
        "baseline record clinic-ner",
        "alias set clinic-ner production 1 --reason approved",
        "alias protect clinic-ner production",
        "key add pacs",
    ):
        done = command(monkeypatch, *words.split())
        assert done.code == 0, (words, done.err)
    (home / "bin").mkdir()
    (home / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{warm.program(tmp_path).parent}:{home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("MEDVLLM_HOME", str(home / "medvllm"))
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    run = subprocess.run(["bash", "-euc", commands], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert [key["name"] for key in json.loads(command(monkeypatch, "key", "list", "--json").out)] == ["pacs"]
    assert "clinic-ner\tproduction\t2\tprotected" in command(monkeypatch, "alias", "list").out
    assert "clinic-ner" in (home / "catalog-backup.toml").read_text()


def test_the_dashboard_and_the_alerts_ask_for_what_the_server_has(registry: ModelRegistry) -> None:
    """Each metric and each of its labels. The page names the same metrics."""
    with serving(registry) as http:
        text = http.get("/metrics").text
        assert http.get("/nosuch").status_code == 404
        text += http.get("/metrics").text
    known = {family.name for family in text_string_to_metric_families(text)}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    alerts = yaml.safe_load((DEPLOY / "medvllm-alerts.yml").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    assert len({panel["title"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) > 8
    for each in (*asked, PAGE, dashboard["templating"]["list"][1]["query"]):
        for name in re.findall(r"\b(?:medvllm|process)_[a-z_]+\b", each):
            assert {name, re.sub(r"_(total|bucket)$", "", name)} & known, (name, each)
    labels = {*re.findall(r"(\w+)=\"", text), "le", "instance", "job"}
    groups = [found for each in asked for found in re.findall(r" by \((.*?)\)", each)]
    used = {label.strip() for group in groups for label in group.split(",")}
    used |= {label for each in asked for label in re.findall(r"(\w+)=~?\"", each)}
    labels |= {"model", "device", "kind", "reason"}  # of what is in memory
    assert used <= labels, used - labels
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert (DEPLOY / scrape["rule_files"][0]).is_file() and scrape["scrape_configs"][0]["job_name"] == "medvllm"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_service(tmp_path: Path) -> None:
    """It starts a command that there is, and ends it later than the server ends by itself."""
    from medvllm.server.running import DRAIN_S

    unit = (DEPLOY / "medvllm.service").read_text()
    start = shlex.split(re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0])
    assert start[1:] == ["serve"]
    (tmp_path / "medvllm.service").write_text(unit.replace(start[0], "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "medvllm.service")], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    stop = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(stop[0]) > DRAIN_S


def test_the_options_of_the_page_exist() -> None:
    """Those after `medvllm`, also in the unit's drop-in and in the image."""
    for line in PAGE.splitlines():
        if "medvllm serve" in line or line.startswith("medvllm "):
            options = set(re.findall(r"(?<=\s)(--[a-z-]+)", line))
            assert options <= OPTIONS, options - OPTIONS


def test_the_image_copies_what_it_installs() -> None:
    """All files that the build needs, the extras that the project has, and a command that exists."""
    lines = (DEPLOY / "Containerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = [each for found in re.findall(r"^COPY ((?!--).*)$", lines, re.MULTILINE) for each in found.split()[:-1]]
    assert all((ROOT / each).exists() for each in copied)
    needed = {"pyproject.toml", "constraints.txt", "medvllm", project["project"]["readme"]}
    assert needed <= set(copied)
    extras = re.findall(r"\"\.\[(.*?)\]\"", lines)[0].split(",")
    assert set(extras) <= set(project["project"]["optional-dependencies"]) and "serve" in extras
    begun = json.loads(re.findall(r"^CMD (\[.*\])$", lines, re.MULTILINE)[-1])
    assert begun == ["serve", "--host", "0.0.0.0"]
