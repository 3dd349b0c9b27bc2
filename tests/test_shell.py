"""The commands at a terminal and in a log: help, versions, exit statuses, how much is said."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import lrbench
from lrbench import ablate, catalogue, cli
from lrbench.shell import is_loud
from lrbench.store import read_runs

COMMANDS = ["", *cli.COMMANDS]

SMALL = ["--dataset", "photos", "--train-size", "20", "--test-size", "20", "--widths", "4", "4", "4", "--epochs", "2"]
SMALL += ["--batch-size", "20", "--threads", "1", "--timed-steps", "0", "--peak-processes", "0"]
SMALL += ["--compressors", "svd", "--masks", "000000", "--seeds", "0", "1"]

BAR = """
import sys
from lrbench.shell import progress
with progress(3, "epoch") as bar:
    for run in range(3):
        bar.update(1)
        bar.refresh()
        bar.write(f"run {run} is done", file=sys.stdout)
"""


def run(out: Path, *more: str) -> int:
    return cli.main(["ablate", *SMALL, *more, "--out", str(out)])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_shows_examples_and_exit_statuses(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: {' '.join(['lrbench', *command.split()])} ")
    assert max(map(len, lines)) <= 80
    assert len(lines) <= {"": 24, "ablate": 48}.get(command, 32)
    examples = lines[lines.index("examples:") + 1 : lines.index("", lines.index("examples:"))]
    assert examples
    assert all(line.startswith("  lrbench ") for line in examples)
    assert any(line.startswith("exit status: 0 done; 1 ") for line in lines)


@pytest.mark.parametrize(
    ("module", "inner", "arguments"),
    [
        ("lrbench.report", "write_report", ["report", "DIR"]),
        ("lrbench.plan", "_plan", ["plan", "paper", "--input", "1,3,32,32"]),
        ("lrbench.sizes", "measure_sizes", ["sizes"]),
        ("lrbench.compressors", "list_compressors", ["list"]),
    ],
)
def test_an_interrupt_ends_a_command_with_a_word_and_its_status(
    module: str, inner: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{module}.{inner}", interrupted)
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_what_cannot_be_written_is_told_from_what_cannot_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    inside = str(tmp_path / "file" / "out")
    small = ["--compressors", "input", "--eps", "0.1"]
    assert cli.main(["sizes", *small, "--out", inside]) == 1
    assert cli.main(["plan", "paper", "--input", "1,3,32,32", "--out", inside]) == 1
    assert cli.main(["report", str(tmp_path)]) == 2
    monkeypatch.setattr(
        "lrbench.report.write_report", lambda folder: (_ for _ in ()).throw(OSError("the disk is full"))
    )
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "the disk is full" in capsys.readouterr().err


def test_version_and_what_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["ablate", "--version"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"lrbench {lrbench.__version__}\n"
    with pytest.raises(SystemExit) as ended:
        cli.main(["ablation"])
    assert ended.value.code == 2
    assert "ablate" in capsys.readouterr().err
    assert cli.main([]) == 2
    assert "usage: lrbench COMMAND" in capsys.readouterr().err


def test_the_module_and_the_command_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "lrbench", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: lrbench COMMAND")


def test_compressors_are_listed_with_method_and_promise(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(rows) == ["name", *lrbench.list_compressors()]
    assert "every block within eps  The best approximation of each block" in rows["svd"]
    assert "exact " in rows["none"]
    assert "the batch within eps " in rows["hosvd"]
    assert "none " in rows["aca-estimate"]
    assert all(len(row.split("  ")) > 2 and row.rstrip()[-1].isalnum() | (row[-1] in ".),:") for row in rows.values())
    assert catalogue.main(["*aca*"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == lrbench.list_compressors("*aca*")
    assert catalogue.main(["nothing*"]) == 2
    error = capsys.readouterr().err
    assert "'nothing*'" in error
    assert error.count("\n") == 1


def test_a_log_holds_a_line_for_each_run_and_no_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\r" not in captured.out
    lines = captured.out.splitlines()
    assert [line.partition(":")[0] for line in lines if "test accuracy" in line] == [
        "000000 plain, seed 0",
        "000000 plain, seed 1",
    ]
    assert lines[-1] == f"report: {tmp_path / 'report.html'}"


def test_quiet_says_what_went_wrong_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert {record["status"] for record in read_runs(tmp_path)} == {"finished"}
    assert run(tmp_path, "--quiet", "--eps", "2") == 2
    out, error = capsys.readouterr()
    assert (out, "(0, 1]" in error) == ("", True)
    assert run(tmp_path) == 0
    assert "done already" in capsys.readouterr().out, "what was quiet once is not for ever"


def test_verbose_says_of_each_run_its_epochs_and_what_was_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--verbose") == 0
    out = capsys.readouterr().out
    assert out.count("  epoch 2: train loss ") == 2
    assert out.count("  no step: the command asked for no timing") == 2
    assert not is_loud(), "that was for one command"


def test_verbose_gives_the_traceback_of_a_failure() -> None:
    record = {"epochs": [], "reason": "x", "traceback": "Traceback:\n  File\nValueError: x\n"}
    assert ablate.details(record) == ["  Traceback:", "    File", "  ValueError: x"]


def test_a_bar_is_drawn_on_a_terminal_alone_and_swallows_no_line() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(lrbench.__file__).parents[1])}
    piped = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, env=environment, timeout=60)
    assert piped.stdout == "run 0 is done\nrun 1 is done\nrun 2 is done\n"
    assert piped.stderr == ""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", BAR], stdout=its, stderr=its, env=environment)
    os.close(its)
    drawn = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # its end is closed
            break
        if not part:
            break
        drawn += part
    os.close(ours)
    assert process.wait(60) == 0
    assert "3/3" in drawn.decode()
    shown = [line.rpartition("\r")[2] for line in drawn.decode().split("\r\n")]
    assert [line for line in shown if line.startswith("run")] == [f"run {run} is done" for run in range(3)]
