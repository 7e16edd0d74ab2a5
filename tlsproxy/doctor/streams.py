"""Does what an application streams come piece by piece? On a path that the command line names, judged by the times."""

from __future__ import annotations

from tlsproxy.doctor.asking import Answer, conversation, in_url
from tlsproxy.doctor.facts import Facts
from tlsproxy.doctor.findings import Report
from tlsproxy.doctor.subject import Subject

CHECK = "streaming"
LONGEST = 6.0
"""Seconds that a stream is watched."""
APART = 0.15
"""Seconds between two pieces that were not sent at once."""
_LONG_WAIT = 1.0
_PIECES = 64


async def examine(subject: Subject, facts: Facts) -> Report:
    report = Report(subject.about)
    path = subject.asked.stream
    if not path:
        report.unknown(CHECK, "not tried: name a path that streams for a second or more (--stream PATH)")
        return report
    fields = {**subject.fields(), "Accept": "text/event-stream, */*"}
    async with conversation(subject.address) as talk:
        answer = await talk.ask(subject.target(path), subject.host, fields, timeout=LONGEST, most_pieces=_PIECES)
    judge(report, subject, answer)
    return report


def judge(report: Report, subject: Subject, answer: Answer) -> None:
    path, times = subject.asked.stream, [when for when, _ in answer.pieces]
    if answer.status != 200:
        report.unknown(CHECK, f"{path} answers {answer.status}")
    elif times and times[-1] - times[0] >= APART:
        report.ok(CHECK, f"{path} comes in {len(times)} pieces over {times[-1] - times[0]:.1f} s")
    elif times and times[0] - answer.head_after >= APART:
        report.ok(CHECK, f"{path}: the answer begins {times[0] - answer.head_after:.1f} s before its first piece")
    elif answer.is_whole and answer.head_after >= _LONG_WAIT:
        report.bad(
            CHECK,
            f"{path}: nothing for {answer.head_after:.1f} s, then everything at once: the application collects it "
            "(a middleware that reads the answer, or a return instead of StreamingResponse)",
            fix=_watch(subject, path),
        )
    else:
        report.unknown(CHECK, f"{path}: {len(times)} pieces within a moment; too short to tell")


def _watch(subject: Subject, path: str) -> str:
    address = subject.address
    unix = f"--unix-socket {address.path} " if address.path else ""
    place = "localhost" if address.path else address.bind
    return f"curl -N {unix}-H 'Host: {in_url(subject.host)}' 'http://{place}{subject.target(path)}'"
