# SPDX-License-Identifier: Apache-2.0
"""The checks of shared memory, file limits, disks and Ray's ports, on made-up machines and on this one."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from verl_p2r.plugin.doctor import host
from verl_p2r.plugin.doctor.host import Disk, Host, check_host

GIB = 2**30
DISK = Disk("checkpoints", Path("/run"), 500 * GIB, 1000 * GIB, "trainer.default_local_dir")
SOUND = Host(
    shm_free=60 * GIB,
    shm_total=64 * GIB,
    open_files=65536,
    most_open_files=2**20,
    disks=(DISK,),
    listening={22: "sshd"},
    addresses=frozenset({"127.0.0.1", "10.0.0.5"}),
)
STALE = Path("/tmp/ray/ray_current_cluster")
LEFT = {Path(f"/dev/shm/psm_{n}"): 1 << 28 for n in range(10)}


def test_a_sound_machine_is_clean():
    findings = list(check_host(SOUND))
    assert [finding for finding in findings if finding.remedy] == []
    shown = {finding.what: finding.found for finding in findings}
    assert shown["shared memory /dev/shm"] == "60.0 of 64.0 GiB free"
    assert shown["open files"] == "at most 65536"
    assert shown["disk: checkpoints"] == "500 of 1000 GiB free in /run"
    assert shown["Ray's ports"] == "6379, 8265, 10001 are free"


FAULTS = {
    "docker's shared memory": (
        replace(SOUND, shm_free=GIB // 16, shm_total=GIB // 16),
        "shared memory /dev/shm",
        "0.1 of 0.1 GiB free",
        "--shm-size",
    ),
    "segments left over": (
        replace(SOUND, leftovers=LEFT),
        "shared memory left over",
        "10 segments, 2.50 GiB",
        "rm /dev/shm/psm_0 /dev/shm/psm_1",
    ),
    "few open files": (replace(SOUND, open_files=1024), "open files", "at most 1024", "ulimit -n 65535"),
    "few open files by force": (
        replace(SOUND, open_files=1024, most_open_files=4096),
        "open files",
        "at most 1024",
        "--ulimit nofile=65535:65535",
    ),
    "little disk": (
        replace(SOUND, disks=(replace(DISK, free=GIB),)),
        "disk: checkpoints",
        "1 of 1000 GiB free in /run",
        "another disk with trainer.default_local_dir",
    ),
    "disk that Ray finds full": (
        replace(SOUND, disks=(replace(DISK, free=40 * GIB),)),
        "disk: checkpoints",
        "40 of 1000 GiB free",
        "Ray stops at 95% in use",
    ),
    "port of Ray taken": (
        replace(SOUND, listening={6379: "redis-server"}),
        "Ray's port 6379",
        "redis-server listens there",
        "ray start --head --port=PORT",
    ),
    "port taken by another user": (
        replace(SOUND, listening={8265: ""}),
        "Ray's port 8265",
        "a program of another user",
        "--dashboard-port=PORT",
    ),
    "Ray that has ended": (
        replace(SOUND, ray_address="10.0.0.5:6379", ray_address_file=STALE),
        "Ray",
        "names 10.0.0.5:6379, where nothing listens",
        f"rm {STALE}",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_the_one_that_is_reported(fault):
    facts, what, found, remedy = FAULTS[fault]
    (finding,) = [finding for finding in check_host(facts) if finding.remedy]
    assert (finding.what, finding.fatal) == (what, False)
    assert found in finding.found
    assert remedy in finding.remedy


def test_only_some_of_many_segments_are_named():
    remedy = next(f.remedy for f in check_host(replace(SOUND, leftovers=LEFT)) if f.what == "shared memory left over")
    assert remedy.endswith("/dev/shm/psm_7 and 2 more")


@pytest.mark.parametrize(
    "changes",
    [
        {"ray_address": "10.0.0.5:6379", "ray_address_file": STALE, "listening": {6379: "gcs_server", 8265: "python3"}},
        {"ray_address": "10.0.0.9:6379", "ray_address_file": STALE},  # the head is another node
        {"ray_address": "10.0.0.9:6379"},  # RAY_ADDRESS
    ],
)
def test_a_ray_that_runs_is_named_and_joined(changes):
    findings = list(check_host(replace(SOUND, **changes)))
    assert not any(finding.remedy for finding in findings)
    assert findings[-1].found == f"runs join the cluster at {changes['ray_address']}"


def test_the_ports_of_another_runs_ray_are_not_a_fault():
    findings = list(check_host(replace(SOUND, listening={6379: "gcs_server", 8265: "python3", 10001: "python3"})))
    assert not any(finding.remedy for finding in findings)
    assert findings[-1].found == "another run's Ray is here; a new run starts its own"


def test_a_system_without_shared_memory_is_not_asked_for_it():
    assert not any("shared memory" in f.what for f in check_host(replace(SOUND, shm_free=None, shm_total=0)))


def test_facts_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6399\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        facts = host.collect()
        assert facts.listening[server.getsockname()[1]] == psutil.Process(os.getpid()).name()
    assert (facts.ray_address, facts.ray_address_file) == (
        "127.0.0.1:6399",
        tmp_path / "ray" / "ray_current_cluster",
    )
    assert 0 < facts.open_files <= facts.most_open_files
    assert {disk.use for disk in facts.disks} == {
        "checkpoints",
        "Ray's logs and spilled objects",
        "models and data of the Hub",
    }
    assert all(0 < disk.free <= disk.total for disk in facts.disks)
    monkeypatch.setenv("RAY_ADDRESS", "10.1.1.1:6379")
    assert host.ray_address() == ("10.1.1.1:6379", None)


def test_a_folder_that_does_not_exist_yet_is_measured_where_it_will_be(tmp_path):
    disk = host.disk_of("checkpoints", tmp_path / "a" / "b", "a setting")
    assert disk.folder == tmp_path / "a" / "b"
    assert disk.total == host.disk_of("checkpoints", tmp_path, "a setting").total
