"""A node: a machine that a test can talk to."""

from __future__ import annotations

import re
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import (
    CommandError,
    CommandTimeoutError,
    ConnectionLostError,
    HostKeyError,
    MachineGoneError,
    RemoteError,
    VmfestError,
    WaitTimeoutError,
)
from pytest_vmfest.journal import Journal
from pytest_vmfest.link import BREAKS_OFF, Link
from pytest_vmfest.openssh import ssh_words
from pytest_vmfest.remote import ENCODING, ENCODING_ERRORS, CommandResult
from pytest_vmfest.shell import command_text, compose
from pytest_vmfest.waiting import Deadline, wait_for
from pytest_vmfest.warm import mending

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from pytest_vmfest.guest import Introduction
    from pytest_vmfest.instance import Instance
    from pytest_vmfest.remote import Remote
    from pytest_vmfest.specs import ImageModel

# In there a guest has its machine's name, until it boots anew: the folder is in memory.
_NAME_FILE = "/run/vmfest/instance"
_NAME_MARK = "vmfest machine "
_VERIFY_S = 20.0
# For asking or setting the clock of a guest that may not answer at all.
_CLOCK_S = 5.0
_CLOCK_READINGS = 2
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


class Node:
    """A running machine, reached by SSH, that a test has for itself.

    Attributes: ``name`` is its host name; ``role`` its part in a group; ``instance`` the machine under it.

    >>> from pytest_vmfest import Server
    >>> with Server(driver="fake").launch(image="tiny") as node:
    ...     node.check_output("uname -s")
    'Linux'

    The connection is made anew by itself after a reboot, a revert or a broken line. Calls from several
    threads are allowed. Without ``timeout_s`` a call waits as long as the connection lives.
    """

    def __init__(
        self, instance: Instance, introduction: Introduction, *, role: str, connect_timeout_s: float
    ) -> None:
        """Wrap a machine; `Server.launch`, the fixtures and the factories do that."""
        self.instance = instance
        self.name = introduction.hostname
        self.role = role
        self.timings: dict[str, float] = {}
        """Seconds that each phase took, in turn: clone, boot, ssh, network, init_script.

        A node that resumed from a template has ``resume`` for ``boot``, with VirtualBox ``address`` if it got
        addresses of its own then, and first ``template`` if it has made that, or ``shared`` if it has waited
        for others who did. Before all is ``failed_start``, if other
        machines did not come up. Empty if another process has started it.
        """
        self.began = 0.0
        """When the first of these phases began, in seconds since the epoch."""
        self.journal = Journal()
        """The last commands that were run by `run` and what is made of it; never their standard input."""
        self.introduction = introduction
        self._connect_timeout_s = connect_timeout_s
        self._link = Link(instance)

    def __repr__(self) -> str:
        """``<Node db-0 of tiny>``."""
        return f"<Node {self.name} of {self.image.name}>"

    def __enter__(self) -> Node:
        """Return the node itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Destroy the node's machine."""
        self.destroy()

    # --- who it is ---------------------------------------------------------------------------------

    @property
    def image(self) -> ImageModel:
        """The image model that the machine was cloned from."""
        return self.instance.image

    @property
    def user(self) -> str:
        """The user that commands run as when none is named."""
        return self.image.login.username

    @property
    def host(self) -> str:
        """Where this host reaches the node's SSH, together with `port`."""
        return self.instance.endpoint().host

    @property
    def port(self) -> int:
        """The TCP port on `host` that leads to the node's SSH; another one after the machine was off."""
        return self.instance.endpoint().port

    @property
    def ip(self) -> str:
        """The address under which the other nodes of its group reach it; without a group, `host`."""
        nics = self.introduction.nics
        return nics[0].address if nics else self.host

    @property
    def ssh_command(self) -> str:
        """A command to paste into a terminal of this host; it verifies the host key when that is known."""
        return shlex.join(ssh_words(self.instance.endpoint(), self.image.login))

    # --- commands ----------------------------------------------------------------------------------

    def run(
        self,
        cmd: str | Sequence[str],
        *,
        check: bool = False,
        timeout_s: float | None = None,
        input: str | bytes | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> CommandResult:
        """Run a command and return its result, whatever its exit status.

        ``cmd`` is a shell string, or an argument list that is then quoted. ``user`` runs it as another user
        (by su from root, else by sudo), ``env`` adds variables, ``cwd`` is its working directory, ``input``
        its standard input. With ``check``, an exit status other than 0 raises `CommandError`.

        Raises `CommandTimeoutError` after ``timeout_s`` seconds (with the output until then; the command
        itself may go on in the guest), `ConnectionLostError` when the connection breaks meanwhile, and
        `WaitTimeoutError` when it had to be made anew first and that took too long.
        """
        __tracebackhide__ = True
        with self.journal.noting(command_text(cmd)) as noted:
            return noted(
                self._run(cmd, check=check, timeout_s=timeout_s, input=input, user=user, env=env, cwd=cwd)
            )

    def _run(
        self,
        cmd: str | Sequence[str],
        *,
        check: bool = False,
        timeout_s: float | None = None,
        input: str | bytes | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> CommandResult:
        """`run`, not noted in the journal."""
        __tracebackhide__ = True
        text = command_text(cmd)
        script = compose(cmd, self.image.login, user=user, env=env, cwd=cwd)
        data = input.encode(ENCODING) if isinstance(input, str) else input
        if script.input_prefix:
            data = script.input_prefix + (data or b"")
        deadline = Deadline(timeout_s)
        try:
            with self._using(deadline) as remote:
                done = remote.execute(script.text, input=data, deadline=deadline)
        except CommandTimeoutError as error:
            raise CommandTimeoutError(
                f"{self.name}: {text!r} did not end within {deadline.timeout_s:g} s"
                + _output(error.stdout, error.stderr),
                command=text,
                timeout_s=error.timeout_s,
                stdout=error.stdout,
                stderr=error.stderr,
            ) from None
        except BREAKS_OFF as error:
            # How the connection was closed for it, by us, explains nothing.
            raise error.with_traceback(None) from None
        result = CommandResult(
            text,
            done.exit_status,
            done.stdout.decode(ENCODING, ENCODING_ERRORS),
            done.stderr.decode(ENCODING, ENCODING_ERRORS),
            deadline.elapsed_s,
        )
        if check and not result.ok:
            raise CommandError(
                f"{self.name}: {text!r} exited with {result.exit_status}"
                + _output(result.stdout, result.stderr),
                result=result,
            )
        return result

    def check_output(
        self,
        cmd: str | Sequence[str],
        *,
        timeout_s: float | None = None,
        input: str | bytes | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> str:
        """Run a command that must succeed (else `CommandError`); return its stdout, stripped."""
        __tracebackhide__ = True
        result = self.run(cmd, check=True, timeout_s=timeout_s, input=input, user=user, env=env, cwd=cwd)
        return result.stdout.strip()

    def wait_until(
        self, cmd: str | Sequence[str], *, timeout_s: float = 60.0, user: str | None = None
    ) -> CommandResult:
        """Run a command until it exits with 0; `WaitTimeoutError` tells what it said last."""
        __tracebackhide__ = True
        deadline = Deadline(timeout_s)
        last: list[str] = []

        def succeeds() -> CommandResult | None:
            try:
                result = self.run(cmd, timeout_s=max(1.0, deadline.remaining_s), user=user)
            except (CommandTimeoutError, WaitTimeoutError) as error:
                last[:] = [str(error)]
                return None
            last[:] = [f"it exited with {result.exit_status}{_output(result.stdout, result.stderr)}"]
            return result if result.ok else None

        what = f"{self.name}: {command_text(cmd)!r} to succeed"
        try:
            found = wait_for(succeeds, deadline, what=what, interval_s=0.2)
        except WaitTimeoutError as error:
            raise WaitTimeoutError(f"{error.message}; {last[0]}") from None
        assert found is not None
        return found

    # --- files -------------------------------------------------------------------------------------

    def put(self, local: str | os.PathLike[str], remote: str, *, timeout_s: float | None = None) -> None:
        """Copy a file or folder of this host into the guest, byte for byte, folders with all in them."""
        deadline = Deadline(timeout_s)
        with self._using(deadline) as connection:
            connection.put(Path(local), remote, deadline)

    def get(self, remote: str, local: str | os.PathLike[str], *, timeout_s: float | None = None) -> None:
        """Copy a file or folder of the guest to this host, byte for byte, folders with all in them."""
        deadline = Deadline(timeout_s)
        with self._using(deadline) as connection:
            connection.get(remote, Path(local), deadline)

    def read_text(self, path: str, *, timeout_s: float | None = None) -> str:
        """The content of a text file (UTF-8)."""
        deadline = Deadline(timeout_s)
        with self._using(deadline) as connection:
            return connection.read_bytes(path, deadline).decode(ENCODING, ENCODING_ERRORS)

    def write_text(self, path: str, text: str, *, timeout_s: float | None = None) -> None:
        """Create or replace a text file (UTF-8)."""
        deadline = Deadline(timeout_s)
        with self._using(deadline) as connection:
            connection.write_bytes(path, text.encode(ENCODING, ENCODING_ERRORS), deadline)

    # --- the machine under it ----------------------------------------------------------------------

    def forward(self, guest_port: int) -> tuple[str, int]:
        """Open a way to a TCP port of the node; returns the host and port to connect to from here."""
        endpoint = self.instance.forward(guest_port)
        return endpoint.host, endpoint.port

    def reboot(self, *, timeout_s: float | None = None) -> None:
        """Restart the guest from inside and wait until it answers again, as the same node."""
        deadline = Deadline(self._connect_timeout_s if timeout_s is None else timeout_s)
        before = self._run(_BOOT_ID, check=True, timeout_s=deadline.remaining_s).stdout
        with suppress(ConnectionLostError, CommandTimeoutError):
            self._as_root("reboot", deadline.at_most(10))
        trouble: list[RemoteError] = []

        def is_back() -> bool:
            self._link.drop()
            try:
                with self._link.using(deadline) as remote:
                    now = remote.execute(_BOOT_ID, input=None, deadline=deadline).stdout.decode()
            except MachineGoneError:
                raise
            except RemoteError as error:
                # A guest that shuts down breaks connections and refuses logins.
                trouble[:] = [error]
                return False
            return now not in ("", before)

        what = f"{self.name} to come back from its reboot"
        try:
            wait_for(is_back, deadline, what=what, interval_s=0.3)
        except WaitTimeoutError as error:
            last = f"; last: {trouble[0]}" if trouble else ""
            raise WaitTimeoutError(f"{error.message}{last}") from None
        self.introduce(deadline)

    def pause(self) -> None:
        """Halt the virtual CPU; commands on a connection that stands wait until `resume`."""
        self.instance.pause()

    def resume(self) -> None:
        """Let a paused node go on."""
        self.instance.resume()

    def snapshot(self, name: str) -> None:
        """Keep disk and memory under ``name``.

        The guest stands still meanwhile. If there is a connection, its clock is set forward by that time
        then; where that does not work, as the guest does not answer or takes no program, it stays late.
        """
        wrong_s = None
        if self._link.is_up and self.instance.state is MachineState.RUNNING:
            # Any guest can be kept. Who talks to it next is told what is wrong with it.
            with suppress(VmfestError):
                wrong_s = self._lateness_s()
        self.instance.snapshot(name)
        if wrong_s is not None:
            with suppress(VmfestError):
                run = self._runner(Deadline(_CLOCK_S))
                mending.set_clock(run, wrong_s, readings=_CLOCK_READINGS)

    def revert(self, name: str) -> None:
        """Go back to the snapshot ``name``, memory included; a running guest's clock is set right again."""
        self._link.drop()
        self.instance.revert(name)
        if self.instance.state is MachineState.RUNNING:
            deadline = Deadline(self._connect_timeout_s)
            # Connecting may take seconds, by which the guest's clock would be late.
            self._link.remote(deadline, is_new=True)
            late_s = self.instance.driver.lateness_s(self.instance.name)
            began = time.time()
            now = mending.clock_of(self._mend(mending.wake_script(late_s), late_s, deadline))
            ended = time.time()
            # It may have been wrong when the snapshot was taken; and QEMU's emulated time stamp counter does
            # not go back with a snapshot, so that guests who tell the time by that are early.
            if late_s is not None and now is not None and not began <= now <= ended:
                self._as_root(mending.mend_command(ended - now), deadline)

    def console(self) -> str:
        """All that the guest wrote to its first serial port."""
        return self.instance.console()

    def expect_console(self, pattern: str) -> None:
        """Allow the console to say what would make the running test fail: lines that match ``pattern``.

        That is a regular expression, searched in each line; it holds until the test's end.

        >>> node.expect_console("Kernel panic")  # doctest: +SKIP
        """
        self.instance.expect_console(pattern)

    def screenshot(self, path: str | os.PathLike[str]) -> None:
        """Write the screen to ``path`` as PNG."""
        self.instance.screenshot(Path(path))

    def send_keys(self, *inputs: str | float) -> None:
        """Type on the keyboard: text, chords such as ``"<ctrl+alt+f2>"``, pauses in seconds."""
        self.instance.send_keys(*inputs)

    def destroy(self) -> None:
        """Remove every trace of the machine, and close the connection."""
        # In this order: whoever still waits for the machine in another thread then gives up at once.
        try:
            self.instance.destroy()
        finally:
            self._link.drop()

    # --- for the launcher and the plugin ---------------------------------------------------------------

    def connect(
        self, deadline: Deadline, *, watch: Callable[[], None], on_stage: Callable[[str], None]
    ) -> None:
        """Wait for the first connection; see `Link.remote`."""
        self._link.remote(deadline, watch=watch, on_stage=on_stage)

    def watch_with(self, look: Callable[[bool], None]) -> None:
        """Call ``look``, as `Link.watch`, while commands and transfers run; it may break them off."""
        self._link.watch = look

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that stands, as far as is known without asking the guest."""
        return self._link.is_up

    def disconnect(self) -> None:
        """Close the connection: a command or transfer that runs on it ends with `ConnectionLostError`."""
        self._link.drop()

    def introduce(self, deadline: Deadline, *, was: Sequence[str] | None = None) -> None:
        """Give the guest its host name, its private addresses and the names of its group.

        One that was resumed from a template is made itself first; ``was`` are the addresses then that its
        private NICs have from there.
        """
        text = self.introduction.script(was or ())
        late_s: float | None = 0.0
        if was is not None:
            late_s = self.instance.driver.lateness_s(self.instance.name)
            text = mending.script(late_s) + "\n" + text
        folder = _NAME_FILE.rpartition("/")[0]
        text += (
            f"\n[ -d {folder} ] || mkdir -p {folder}\necho {_NAME_MARK}{self.instance.name} > {_NAME_FILE}"
        )
        self._mend(text, late_s, deadline)
        self._link.verify = self._verify

    def _mend(self, script: str, late_s: float | None, deadline: Deadline) -> bytes:
        """Run a script for a guest that was ``late_s`` late; None: its clock is set by this host's then."""
        told = self._as_root(script, deadline)
        if late_s is None:
            mending.set_clock(self._runner(deadline))
        return told

    def _verify(self, remote: Remote, deadline: Deadline) -> None:
        """Refuse a guest that is another machine's; one that has booted anew knows no name."""
        soon = deadline.at_most(_VERIFY_S)
        told = remote.execute(f"cat {_NAME_FILE}", input=None, deadline=soon).stdout.decode(errors="replace")
        found = re.search(rf"^{_NAME_MARK}(\S+)$", told, re.MULTILINE)
        if found and found[1] != self.instance.name:
            raise HostKeyError(
                f"{self.name}: another machine, {found[1]}, answers at {self.instance.endpoint()}",
                hint="has its port been given to another one meanwhile?",
            )

    def run_script(self, text: str, deadline: Deadline, *, input: bytes | None = None) -> bytes:
        """Run shell text as root and return what it wrote; `CommandError` unless it succeeds."""
        return self._as_root(text, deadline, input)

    def _as_root(self, text: str, deadline: Deadline, input: bytes | None = None) -> bytes:
        done = self._run(text, user="root", check=True, timeout_s=deadline.timeout(), input=input)
        return done.stdout.encode(ENCODING, ENCODING_ERRORS)

    def _lateness_s(self) -> float | None:
        deadline = Deadline(_CLOCK_S)
        late_s = mending.lateness_s(self._runner(deadline), _CLOCK_READINGS)
        if late_s is None:  # it has booted, not resumed
            self._as_root(mending.bring_script(), deadline, mending.program())
            late_s = mending.lateness_s(self._runner(deadline), _CLOCK_READINGS)
        return late_s

    def _runner(self, deadline: Deadline) -> Callable[[str], bytes]:
        return lambda command: self._as_root(command, deadline)

    def _using(self, deadline: Deadline) -> AbstractContextManager[Remote]:
        return self._link.using(deadline.at_most(self._connect_timeout_s))


def _output(stdout: str, stderr: str, limit: int = 4000) -> str:
    """Both streams for an error message, each cut to its last ``limit`` characters."""
    parts = []
    for name, text in (("stdout", stdout), ("stderr", stderr)):
        if text := text.rstrip():
            cut = f" (last {limit} of {len(text)} characters)" if len(text) > limit else ""
            parts.append(f"\n  {name}{cut}:\n" + "\n".join(f"    {x}" for x in text[-limit:].splitlines()))
    return "".join(parts) or " (no output)"
