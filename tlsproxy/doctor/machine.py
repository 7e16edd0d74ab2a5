"""What is asked about the machine: configuration, running proxy, store, clock, and who listens.

Knows the answers of `house`; judges. Rule: a file that this user may not read is no fault of the file.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from datetime import UTC, datetime
from functools import partial

from tlsproxy import __version__
from tlsproxy.doctor.authorities import clock_offsets
from tlsproxy.doctor.facts import in_thread
from tlsproxy.doctor.findings import MACHINE, Report, counted
from tlsproxy.doctor.house import House
from tlsproxy.errors import StoreError
from tlsproxy.store.sources import ROOT_NAME

CONFIGURATION, PROXY, STORE, CLOCK = "configuration", "proxy", "store", "clock"
MOST_OFF = 60.0
"""Seconds that a clock may be wrong. Certificates begin to be valid an hour before they are issued."""

_OURS_ALONE = ("may not", "permission denied", "can't be read by")
_SUDO = "Run this as the user that runs the proxy (with sudo, if that is root)."
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


async def examine_configuration(house: House) -> Report:
    report = Report(MACHINE)
    problems = [each for each in house.inspection.problems if each.key != "store.url"]
    command = f"tlsproxy check{house.config}"
    for problem in problems:
        if any(word in problem.message.lower() for word in _OURS_ALONE):
            report.unknown(CONFIGURATION, f"{problem}. {_SUDO}", fix=f"sudo {command}")
        else:
            report.bad(CONFIGURATION, str(problem), fix=command)
    if not problems:
        warnings = [each for each in house.inspection.warnings if not each.startswith("store.url: ")]
        told = f"{house.loaded.path or 'options and environment'}: nothing is wrong"
        if warnings:
            told = f"{house.loaded.path or 'options and environment'}: it works, and there is something to say"
        report.ok(CONFIGURATION, told, details=warnings)
    return report


async def examine_proxy(house: House) -> Report:
    report = Report(MACHINE)
    running = await house.running()
    if not running.is_there:
        fix = "" if running.is_hidden else f"tlsproxy run{house.config}"
        report.unknown(PROXY, running.why, fix=fix)
        return report
    status = running.status
    workers = status.get("workers") or []
    version = str(status.get("version"))
    text = f"runs: version {version}, pid {status.get('pid')}, {counted(len(workers), 'worker')}"
    text += f", since {status.get('started')}"
    if version != __version__:
        report.bad(PROXY, f"{text}; this command is version {__version__}", fix="tlsproxy admin upgrade")
    elif workers:
        report.ok(PROXY, text, details=map(str, status.get("listeners") or ()))
    else:
        report.bad(PROXY, f"{text}: no worker is ready", fix="tlsproxy admin status")
    return report


async def examine_store(house: House) -> Report:
    report = Report(MACHINE)
    url = house.settings.store.url
    problem = next((each.message for each in house.inspection.problems if each.key == "store.url"), "")
    warning = next((each for each in house.inspection.warnings if each.startswith("store.url: ")), "")
    check = f"tlsproxy check{house.config}"
    if problem:
        is_ours = any(word in problem.lower() for word in _OURS_ALONE)
        if is_ours:
            report.unknown(STORE, f"{problem} {_SUDO}", fix=f"sudo {check}")
        else:
            report.bad(STORE, problem, fix=check)
        return report
    try:
        store = await house.store()
        names = await in_thread(store.list)
    except StoreError as error:
        if isinstance(error.__cause__, PermissionError):
            report.unknown(STORE, f"{error} {_SUDO}", fix=f"sudo tlsproxy doctor{house.config}")
        else:
            report.bad(STORE, str(error), fix=check)
        return report
    if warning:
        report.unknown(STORE, warning.removeprefix("store.url: "))
    else:
        report.ok(STORE, f"{url}: holds {_contents(names)}, readable")
    return report


def _contents(names: Collection[str]) -> str:
    """Name what is counted: the root is no certificate of a site, and `admin certs list` does not show it."""
    certificates = counted(sum(name != ROOT_NAME for name in names), "certificate")
    return f"{certificates} and the root of the internal CA" if ROOT_NAME in names else certificates


async def examine_clock(house: House) -> Report:
    """Compare with the dates that CAs send, else ask the kernel whether somebody keeps the clock right."""
    report = Report(MACHINE)
    offsets = await clock_offsets(house)
    now = datetime.now(UTC)
    if offsets:
        name, offset = min(offsets, key=lambda each: abs(each[1]))
        if abs(offset) > MOST_OFF:
            ahead = "ahead" if offset > 0 else "behind"
            text = f"{abs(offset):.0f} s {ahead} of {name}: certificates look expired, or not valid yet"
            report.bad(CLOCK, text, fix="timedatectl set-ntp true")
        else:
            report.ok(CLOCK, f"{now:%Y-%m-%d %H:%M:%S} UTC, as {name} has it")
    elif await in_thread(partial(_is_synchronised)):
        report.ok(CLOCK, f"{now:%Y-%m-%d %H:%M:%S} UTC; the kernel says that it is synchronised")
    else:
        text = f"{now:%Y-%m-%d %H:%M:%S} UTC; nobody to compare with, and the kernel does not know of synchronisation"
        report.unknown(CLOCK, text, fix="timedatectl status")
    return report


def _is_synchronised() -> bool:
    """Ask adjtimex(2) without changing anything (modes = 0, the first field)."""
    try:
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return False
    return 0 <= state < _TIME_ERROR
