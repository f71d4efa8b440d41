"""Scans of sessions go when they are over, whatever became of the server that took them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("monailabel")

from sliceprop.server.sessions import ScanSessions

LONG_AGO = 1_000_000_000


def add(sessions: ScanSessions, folder: Path, name: str, expiry: int = 0) -> Path:
    scan = folder / name
    scan.write_bytes(b"scan")
    sessions.add_session(str(scan), expiry, session_id=name)
    return Path(sessions.store_path) / name


def made_long_ago(folder: Path) -> None:
    for file in (*folder.iterdir(), folder):
        os.utime(file, (LONG_AGO, LONG_AGO))


def left(folder: Path) -> list[str]:
    return sorted(session.name for session in folder.iterdir())


def test_sessions_of_a_server_that_has_ended_are_removed_when_they_are_over(tmp_path: Path) -> None:
    store = tmp_path / "sessions"
    before = ScanSessions(str(store), 3600)
    made_long_ago(add(before, tmp_path, "old"))
    add(before, tmp_path, "new")
    after = ScanSessions(str(store), 3600)
    assert after, "MONAI Label cleans up only if the sessions it knows are true"
    assert after.remove_expired() == 1 and left(store) == ["new"]
    assert after.get_session("old") is None and after.get_session("new") is not None


@pytest.mark.parametrize("about", [None, "", "[]", "{", '{"expiry": "x"}', '{"image": 3}', "\xff"])
def test_a_session_that_is_not_whole_is_removed_when_it_is_old(tmp_path: Path, about: str | None) -> None:
    store = tmp_path / "sessions"
    sessions = ScanSessions(str(store), 3600)
    made_long_ago(add(sessions, tmp_path, "old"))
    for name in ("being_made", "broken"):
        (store / name).mkdir()
        (store / name / "scan").write_bytes(b"scan")
        if about is not None:
            (store / name / "meta.info").write_text(about, "latin-1")
    made_long_ago(store / "broken")
    assert sessions.remove_expired() == 2 and left(store) == ["being_made"]


def test_a_client_may_want_its_session_to_end_sooner_but_not_later(tmp_path: Path) -> None:
    store, minutes_ago = tmp_path / "sessions", time.time() - 600
    sessions = ScanSessions(str(store), 3600)
    for name, expiry in (("sooner", 60), ("later", 7200)):
        for file in (*(folder := add(sessions, tmp_path, name, expiry)).iterdir(), folder):
            os.utime(file, (minutes_ago, minutes_ago))
    assert sessions.remove_expired() == 1 and left(store) == ["later"]
    made_long_ago(store / "later")
    assert sessions.remove_expired() == 1


def test_without_a_folder_there_is_nothing_to_remove(tmp_path: Path) -> None:
    assert ScanSessions(str(tmp_path / "none"), 3600).remove_expired() == 0
