"""The bar of a run: what it says, and that no terminal is too narrow for it."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from leoclr.cli.training.monitoring.progress_line import ProgressLine, StepReading, duration, rate_in_words


def drawn(width: int, knn: float | None = 0.4567) -> list[str]:
    """The lines of a terminal of some width after one reading in the middle of a run."""
    out = io.StringIO()
    line = ProgressLine(0, 2000, 100, True, Console(file=out, force_terminal=True, width=width))
    line.scored(knn)
    line._printed = 0.0  # a bar is drawn ten times a second at most
    line.show(StepReading(1050, 7.12345, 5123.4, 0.017))
    line.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    lines = [text.rstrip() for text in re.split(r"[\r\n]+", plain) if text.strip()]
    return list(dict.fromkeys(lines))  # the last state is drawn once more as the bar goes


@pytest.mark.parametrize("width", [24, 40, 60, 80, 120, 200])
def test_the_bar_fits_the_terminal_in_one_line(width: int) -> None:
    lines = drawn(width)
    assert len(lines) == 1 and len(lines[0]) < width
    assert "52%" in lines[0]


def test_a_wide_terminal_shows_all_of_it() -> None:
    (line,) = drawn(140)
    for words in ("52%", "epoch 11/20", "loss 7.1235", "k-NN 45.7%", "5,123 images/s", "waiting for data 2%", "left"):
        assert words in line
    assert "k-NN" not in drawn(140, knn=None)[0]


def test_eighty_columns_have_room_for_percent_epoch_loss_and_time() -> None:
    (line,) = drawn(80)
    for words in ("52%", "epoch 11/20", "loss 7.1235", "left"):
        assert words in line


def test_a_log_gets_plain_lines_and_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(0, 20, 10, visible=True)
    line.show(StepReading(10, 1.0, 100.0, 0.0))  # too early for a second line
    line.show(StepReading(20, 0.5, 100.0, 0.25))
    line.close()
    (text,) = capsys.readouterr().err.splitlines()
    assert text.startswith("epoch 2/2  step 20/20  loss 0.5000  0 s left") and "waiting for data 25%" in text
    hidden = ProgressLine(0, 20, 10, visible=False)
    hidden.show(StepReading(20, 0.5, 100.0, 0.25))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(12, "12 s"), (430, "7 min 10 s"), (7500, "2 h 05 min"), (273600, "3 d 4 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("rate", "words"), [(0.163, "0.16"), (9.4, "9.4"), (16.2, "16"), (5123.4, "5,123")])
def test_slow_rates_keep_two_digits(rate: float, words: str) -> None:
    assert rate_in_words(rate) == words
