"""What stands in a node's log, which holds all starts of a job."""

import re

import pytest

from cmdist.train import telling


def test_each_start_begins_with_its_date_node_job_and_number(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    places = {"SLURMD_NODENAME": "node3", "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "2"}
    for name, value in (places | {"RANK": "8", "WORLD_SIZE": "16", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    telling.head("s3://bucket/runs/a")
    line = r"---- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d node3, job 77, start 2: ranks from 8 on of 16, s3://bucket/runs/a\n"
    assert re.fullmatch(line, capsys.readouterr().out)
    monkeypatch.setenv("LOCAL_RANK", "1")
    telling.head("s3://bucket/runs/a")
    assert capsys.readouterr().out == ""  # once for a node
