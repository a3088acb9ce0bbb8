# SPDX-License-Identifier: Apache-2.0
"""Checks of this machine outside its GPUs: shared memory, file limits, free disk, Ray's ports."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from verl_p2r.plugin import shm_usage
from verl_p2r.plugin.doctor.finding import Finding
from verl_p2r.sizes import GIB

LOW_SHM = 2 * GIB  # free bytes below which Ray and vLLM may not start
LOW_FILES = 8192  # open files below which Ray warns
LOW_DISK = 10 * GIB  # free bytes
FULL_DISK = 0.95  # share in use above which Ray stops creating objects on disk
SHOWN = 8  # leftover segments that are named
RAY_PORTS = {6379: "--port", 8265: "--dashboard-port", 10001: "--ray-client-server-port"}  # of `ray start --head`


@dataclass(frozen=True)
class Disk:
    """A folder that a run fills.

    Args:
        use: what is written there.
        folder: the folder; it may not exist yet.
        free: free bytes of its file system.
        total: all bytes of its file system.
        setting: what chooses another folder.
    """

    use: str
    folder: Path
    free: int
    total: int
    setting: str


@dataclass(frozen=True)
class Host:
    """What the checks of a machine need to know.

    Args:
        shm_free: free bytes of shared memory; None on a system without it.
        shm_total: all bytes of it.
        leftovers: segments of shared memory that no process uses, with their bytes.
        open_files: how many files a process may open.
        most_open_files: how far a user may raise that limit.
        disks: folders that a run fills.
        listening: port on which some program listens → its name; empty when another user's.
        addresses: addresses of this machine.
        ray_address: the cluster that `ray.init()` would join because a file or RAY_ADDRESS names it; empty for none.
        ray_address_file: that file; None when RAY_ADDRESS names the cluster, or nothing does.
    """

    shm_free: int | None
    shm_total: int
    open_files: int
    most_open_files: int
    disks: tuple[Disk, ...]
    leftovers: Mapping[Path, int] = field(default_factory=dict)
    listening: Mapping[int, str] = field(default_factory=dict)
    addresses: frozenset[str] = frozenset({"127.0.0.1"})
    ray_address: str = ""
    ray_address_file: Path | None = None


def collect() -> Host:
    """Look at this machine."""
    there = shm_usage.FOLDER.is_dir()  # only on Linux
    free, total = shm_usage.free_and_total() if there else (None, 0)
    soft, hard = (
        limit if limit != resource.RLIM_INFINITY else 2**31 for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    address, file = ray_address()
    return Host(
        shm_free=free,
        shm_total=total,
        leftovers=shm_usage.leftovers() if there else {},
        open_files=soft,
        most_open_files=hard,
        disks=(
            disk_of("checkpoints", Path.cwd(), "trainer.default_local_dir"),
            disk_of("Ray's logs and spilled objects", ray_folder(), "RAY_TMPDIR"),
            disk_of("models and data of the Hub", _hub_folder(), "HF_HOME"),
        ),
        listening=listening(),
        addresses=frozenset(each.address for card in psutil.net_if_addrs().values() for each in card),
        ray_address=address,
        ray_address_file=file,
    )


def disk_of(use: str, folder: Path, setting: str) -> Disk:
    """Measure the file system of a folder, which may not exist yet.

    Args:
        use: what is written there.
        folder: the folder.
        setting: what chooses another folder.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    usage = shutil.disk_usage(existing)
    return Disk(use, folder, usage.free, usage.total, setting)


def _hub_folder() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def ray_folder() -> Path:
    """Return the folder in which Ray keeps its sessions."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"


def ray_address() -> tuple[str, Path | None]:
    """Return the address of the cluster that `ray.init()` would join, and the file that names it."""
    if address := os.environ.get("RAY_ADDRESS", ""):
        return address, None
    file = ray_folder() / "ray_current_cluster"
    return (file.read_text().strip(), file) if file.is_file() else ("", None)


def listening() -> dict[int, str]:
    """Return port → program of everything that listens on this machine."""
    programs: dict[int, str] = {}
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS tells root alone
        return {}
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN:
            programs[connection.laddr.port] = _name(connection.pid) or programs.get(connection.laddr.port, "")
    return programs


def _name(pid: int | None) -> str:
    try:
        return psutil.Process(pid).name() if pid else ""
    except psutil.Error:  # it ended meanwhile, or is another user's
        return ""


def check_host(host: Host) -> Iterator[Finding]:
    """Check shared memory, file limits, disks and Ray's ports; all findings are warnings.

    Args:
        host: facts about this machine.
    """
    yield from check_shared_memory(host)
    yield from check_open_files(host)
    for disk in host.disks:
        yield from check_disk(disk)
    yield from check_ray(host)


def check_shared_memory(host: Host) -> Iterator[Finding]:
    """Check that enough shared memory is free, and name segments that no process uses any more."""
    if host.shm_free is None:
        return
    amount = f"{host.shm_free / GIB:.1f} of {host.shm_total / GIB:.1f} GiB free"
    remedy = (
        "Ray, NCCL and vLLM need more: start the container with --ipc=host or a larger --shm-size, or end the programs "
        "that fill it"
    )
    low = host.shm_free < LOW_SHM
    yield Finding(f"shared memory {shm_usage.FOLDER}", amount, remedy if low else "", fatal=False)
    if found := host.leftovers:
        names = " ".join(map(str, list(found)[:SHOWN]))
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        yield Finding(
            "shared memory left over",
            f"{len(found)} segments, {sum(found.values()) / GIB:.2f} GiB",
            f"no process of yours here uses them; unless another container does: rm {names}{more}",
            fatal=False,
        )


def check_open_files(host: Host) -> Iterator[Finding]:
    """Check how many files a process may open: Ray opens several for each worker and connection."""
    remedy = ""
    if host.most_open_files < LOW_FILES:
        remedy = (
            "Ray opens more: start the container with --ulimit nofile=65535:65535, or raise the limit in "
            "/etc/security/limits.conf"
        )
    elif host.open_files < LOW_FILES:
        remedy = f"Ray opens more: ulimit -n {min(host.most_open_files, 65535)}"
    yield Finding("open files", f"at most {host.open_files}", remedy, fatal=False)


def check_disk(disk: Disk) -> Iterator[Finding]:
    """Check that a disk has room."""
    remedy = ""
    if disk.free < LOW_DISK or disk.total - disk.free > FULL_DISK * disk.total:
        remedy = (
            f"free some space, or choose another disk with {disk.setting}: a run needs at least {LOW_DISK // GIB} GiB, "
            f"and Ray stops at {FULL_DISK:.0%} in use"
        )
    amount = f"{disk.free / GIB:.0f} of {disk.total / GIB:.0f} GiB free in {disk.folder}"
    yield Finding(f"disk: {disk.use}", amount, remedy, fatal=False)


def check_ray(host: Host) -> Iterator[Finding]:
    """Check that a run starts its own Ray, or joins one that runs."""
    if host.ray_address_file is not None:
        address, _, port = host.ray_address.rpartition(":")
        if address in host.addresses and port.isdecimal() and int(port) not in host.listening:
            yield Finding(
                "Ray",
                f"{host.ray_address_file} names {host.ray_address}, where nothing listens here",
                f"a cluster ended without `ray stop`, and runs would try to join it: rm {host.ray_address_file}",
                fatal=False,
            )
            return
    if host.ray_address:
        yield Finding("Ray", f"runs join the cluster at {host.ray_address}")
    elif "gcs_server" in host.listening.values():
        yield Finding("Ray", "another run's Ray is here; a new run starts its own")
    else:
        yield from _check_ports(host)


def _check_ports(host: Host) -> Iterator[Finding]:
    taken = [port for port in RAY_PORTS if port in host.listening]
    for port in taken:
        found = f"{host.listening[port] or 'a program of another user'} listens there"
        remedy = f"end it, or start Ray on another port: ray start --head {RAY_PORTS[port]}=PORT"
        yield Finding(f"Ray's port {port}", found, remedy, fatal=False)
    if not taken:
        yield Finding("Ray's ports", f"{', '.join(map(str, RAY_PORTS))} are free")
