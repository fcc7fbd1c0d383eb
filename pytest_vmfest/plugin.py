"""The pytest plugin: options, hooks, and the fixtures by name. Nothing heavy is imported here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vmfest import verdict
from pytest_vmfest.config import OPTIONS, load_settings
from pytest_vmfest.errors import (
    ConfigurationError,
    DestroyError,
    DriverUnavailableError,
    GroupStartError,
    ImageError,
    StartError,
    StoreError,
    VmfestError,
)
from pytest_vmfest.factories import machine_group
from pytest_vmfest.fixtures import (
    ARTIFACTS,
    CONTROLLER,
    RUN,
    SETTINGS,
    _vm_default_image,
    run_of,
    vm_group,
    vm_image,
    vm_instance,
    vm_server,
)
from pytest_vmfest.markers import MARKER_HELP, marked_request, parametrize_images
from pytest_vmfest.processes import Process
from pytest_vmfest.signals import end_by

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from _pytest.terminal import TerminalReporter

    from pytest_vmfest.alarms import Alarm
    from pytest_vmfest.look import Look
    from pytest_vmfest.run import Run
    from pytest_vmfest.watchdog import Watchdog

RESTORE_SIGNALS: pytest.StashKey[Callable[[], None]] = pytest.StashKey()

# What our own fixtures raise; other errors may come from a user's fixture, whose lines have to be shown.
_OUR_TROUBLE = (
    StartError,
    GroupStartError,
    DestroyError,
    ConfigurationError,
    StoreError,
    ImageError,
    DriverUnavailableError,
)
_TIMELINE: pytest.StashKey[str] = pytest.StashKey()
_WORKER_ARTIFACTS = "vmfest_artifacts"
_NEWS = "vmfest_news"
"""An attribute of reports from xdist's workers."""
# Whatever uses machines uses one of these, fixtures of the factories included.
_OWN_FIXTURES = {"vm_server", "vm_image", "_vm_default_image"}

__all__ = ["_vm_default_image", "vm_group", "vm_image", "vm_instance", "vm_server"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Derive command line and ini keys from the declared options."""
    group = parser.getgroup("vmfest", "disposable virtual machines (pytest-vmfest)")
    for option in OPTIONS:
        names = f"{option.help} [ini: {option.ini}, environment: {option.variable}]"
        how: dict[str, Any] = {"action": "store_true"} if option.is_flag else {"metavar": option.metavar}
        if option.repeatable:
            how["action"] = "append"
        group.addoption(option.flag, dest=option.ini, default=None, help=names.replace("%", "%%"), **how)
        kind: Any = "linelist" if option.is_pattern else "args" if option.repeatable else "string"
        parser.addini(option.ini, f"{option.help} [see {option.flag}]", type=kind, default=None)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings once, and see to it that signals end the session in order."""
    config.addinivalue_line("markers", MARKER_HELP)
    try:
        settings = load_settings(command_line=config.getoption, ini=config.getini)
    except ConfigurationError as error:
        raise pytest.UsageError(f"vmfest: {error}") from None
    config.stash[SETTINGS] = settings
    config.stash[RESTORE_SIGNALS] = end_by(_leave)
    if hasattr(config, "workerinput"):
        config.stash[CONTROLLER] = Process.of(os.getppid())  # asked now: later it may have ended
        config.pluginmanager.register(_WorkerReports(config), "vmfest-worker")
    else:
        config.pluginmanager.register(_Reports(config), "vmfest-reports")


def pytest_sessionstart(session: pytest.Session) -> None:
    """See to it that there is a place for artifacts before anything fails; workers use the controller's."""
    config = session.config
    folder = config.stash[SETTINGS].artifacts
    if folder is None or _runs_no_test(config):
        return
    if worker := getattr(config, "workerinput", None):
        config.stash[ARTIFACTS] = Path(worker[_WORKER_ARTIFACTS])
        return
    from pytest_vmfest.artifacts import begin_run

    try:
        config.stash[ARTIFACTS] = begin_run(folder)
    except OSError as error:
        raise pytest.UsageError(f"vmfest: --vm-artifacts: cannot write to {folder}: {error}") from None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the xdist controller: tell a worker where the artifacts go."""
    if folder := node.config.stash.get(ARTIFACTS, None):
        node.workerinput[_WORKER_ARTIFACTS] = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let go of the hypervisors, and of the signals."""
    try:
        _close_run(config)
    finally:
        if restore := config.stash.get(RESTORE_SIGNALS, None):
            restore()


def _close_run(config: pytest.Config) -> None:
    """Destroy what an interrupted teardown has left; tell what cannot be destroyed."""
    if run := config.stash.get(RUN, None):
        try:
            run.close()
        except VmfestError as error:
            from pytest_vmfest.report import line_writer

            line_writer(config)(str(error))


def _leave(number: int) -> None:
    """End the session in order: by itself pytest would die of the signal without any teardown."""
    pytest.exit(f"ended by {signal.Signals(number).name}", returncode=128 + number)


def pytest_report_header(config: pytest.Config) -> str:
    """Say what was configured; what it comes to is told once tests are known that need it."""
    settings = config.stash[SETTINGS]
    return f"vmfest: driver {settings.driver}, accel {settings.accel}, image {', '.join(settings.image)}"


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """Say which driver, version and accelerator the collected tests will run on, if any needs one."""
    if _runs_no_test(config):
        return None
    if not any(_uses_machines(item) for item in items):
        return None
    try:
        server = run_of(config).server()
        return f"vmfest: {server.describe()}, store {server.home}"
    except VmfestError as error:
        return f"vmfest: {error.message}"


def _runs_no_test(config: pytest.Config) -> bool:
    return bool(config.getoption("collectonly", False) or config.getoption("setupplan", False))


def _uses_machines(test: pytest.Item | pytest.Metafunc) -> bool:
    return not _OWN_FIXTURES.isdisjoint(_fixtures(test))


def _fixtures(test: pytest.Item | pytest.Metafunc) -> list[str]:
    return getattr(test, "fixturenames", [])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Check the test's marker, and run the test on each of its images."""
    settings = metafunc.config.stash[SETTINGS]
    if metafunc.definition.get_closest_marker("vm") is None and not _uses_machines(metafunc):
        return
    try:
        request = marked_request(metafunc.definition, settings)
    except ConfigurationError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    if "vm_group" in metafunc.fixturenames and request.nodes is None:
        raise pytest.Collector.CollectError(
            f"{metafunc.definition.nodeid}: vm_group is used, but the vm marker does not say how many nodes\n"
            "  say @pytest.mark.vm(nodes=2), or by role: nodes={'db': 1, 'web': 2}"
        )
    if "vm_image" in metafunc.fixturenames:
        parametrize_images(metafunc, "vm_image", request.images or settings.image)
    if "_vm_default_image" in metafunc.fixturenames and not request.images:
        parametrize_images(metafunc, "_vm_default_image", settings.image)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Make machines of a wider scope pristine again, where their fixture asks for it."""
    if run := item.config.stash.get(RUN, None):
        run.begin(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test, or warn, when the console of a machine that it uses tells of trouble."""
    watchdog = _watchdog(item.config)
    if watchdog and watchdog.breaks_off:
        _judge(item, watchdog.alarms)
    try:
        result = yield
    finally:
        watchdog = _watchdog(item.config)  # the test may be the first to use a machine
        alarms = watchdog.end() if watchdog else []
    _judge(item, alarms)
    return result


def _watchdog(config: pytest.Config) -> Watchdog | None:
    run = config.stash.get(RUN, None)
    return run.watchdog if run else None


def _judge(item: pytest.Item, alarms: list[Alarm]) -> None:
    if alarms:
        from pytest_vmfest import telling

        telling.judge(item, alarms, fatal=item.config.stash[SETTINGS].console_watch == "fail")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whose test failed; tell of its machines; show trouble of the infrastructure without frames."""
    made = yield
    run = item.config.stash.get(RUN, None)
    if run:
        _note_times(run, item, made)
    error = call.excinfo.value if call.excinfo else None
    looks: list[Look] = []
    if run and made.failed:
        from pytest_vmfest import telling

        for holding in run.holdings_of(item):
            holding.failed = True
        looks = telling.tell(run, item, made, error)
    verdict.judge(made, error, looks)
    if (
        call.when != "call"
        and call.excinfo is not None
        and isinstance(call.excinfo.value, _OUR_TROUBLE)
        and not item.config.getoption("fulltrace", False)
    ):
        made.longrepr = call.excinfo.getrepr(style="value", chain=False)
    return made


def _note_times(run: Run, item: pytest.Item, made: pytest.TestReport) -> None:
    """Note how long a part of a test took; what was noted meanwhile becomes properties of the test."""
    run.times.add_part(
        item.nodeid,
        made.when or "",
        made.start,
        made.duration,
        failed=made.failed,
        concerned=_uses_machines(item) and not made.skipped,
    )
    fresh = run.times.untold_properties()
    item.user_properties += fresh
    made.user_properties += fresh


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """Tell trouble of the infrastructure as an error, also in the middle of a test."""
    return ("error", "E", "ERROR") if verdict.is_error(report) else None


class _WorkerReports:
    """In an xdist worker: reports bring the controller what it will tell at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See `report.news`."""
        if run := self._config.stash.get(RUN, None):
            from pytest_vmfest.report import news

            setattr(report, _NEWS, news(run))


class _Reports:
    """Where reports are told: take what they bring, and let each tell of a failing test's machines, once."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None]:
        """See `report.news`, `telling.told_in_the_failure` and `verdict.told_in_junit`.

        A failed try that is followed by another is a "rerun".
        """
        if news := vars(report).pop(_NEWS, None):
            from pytest_vmfest.report import from_worker_output

            from_worker_output(run_of(self._config), news)
        if report.outcome not in ("failed", "rerun"):
            return (yield)
        from pytest_vmfest import telling

        with telling.told_in_the_failure(report):
            yield
        if verdict.is_error(report):
            verdict.told_in_junit(self._config, report)


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """Tell durations, machines that are still there, and where the timeline is."""
    if run := config.stash.get(RUN, None):
        from pytest_vmfest import report

        report.show_durations(run, terminalreporter)
        report.show_kept(run, terminalreporter)
    if told := config.stash.get(_TIMELINE, None):
        terminalreporter.write_line(f"vmfest: {told}")


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """After all teardowns: leave nothing, and in a worker hand over what the controller is to tell."""
    try:
        yield
    finally:
        _close_run(session.config)
        run = session.config.stash.get(RUN, None)
        output = getattr(session.config, "workeroutput", None)
        if run is not None and output is not None:
            from pytest_vmfest import report

            output[report.WORKER_KEY] = report.to_worker_output(run)
        _end_artifacts(session.config)
        _write_timeline(session.config)


def _write_timeline(config: pytest.Config) -> None:
    """Draw the run, also one that used no machine: no file of a run before shall pass for this one's."""
    path = config.stash[SETTINGS].timeline
    if path is None or hasattr(config, "workerinput") or _runs_no_test(config):
        return
    from pytest_vmfest.timeline import write_timeline

    run = config.stash.get(RUN, None)
    try:
        write_timeline(path, run.times.phases if run else [], ended=time.time())
    except OSError as error:
        config.stash[_TIMELINE] = f"--vm-timeline: cannot write {path}: {error.strerror or error}"
    else:
        config.stash[_TIMELINE] = f"timeline: {path}"


def _end_artifacts(config: pytest.Config) -> None:
    folder = config.stash.get(ARTIFACTS, None)
    if folder is not None and not hasattr(config, "workerinput"):
        from pytest_vmfest.artifacts import end_run

        end_run(folder)


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> Generator[None, int, int]:
    """For ``-n auto``: no more workers than machines of the configured size have room at once."""
    found = yield
    from pytest_vmfest.memory import limit_mib
    from pytest_vmfest.specs import hardware_model

    try:
        settings = load_settings(command_line=config.getoption, ini=config.getini)
    except ConfigurationError:
        return found  # it will be told when the session begins
    return max(1, min(found, limit_mib() // hardware_model(settings.hardware or "micro").memory_mib))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For xdist's ``--dist loadgroup``: tests that use one machine of a wider scope go to the same worker."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        group = machine_group(item)
        if group and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """In the xdist controller: take over what a worker sent."""
    if output := getattr(node, "workeroutput", {}):
        from pytest_vmfest import report

        if report.WORKER_KEY in output:
            report.from_worker_output(run_of(node.config), output[report.WORKER_KEY])
