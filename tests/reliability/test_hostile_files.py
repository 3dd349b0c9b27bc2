"""Files from outside carry numbers and words, never code that is run."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import config, photos

from lrbench import cli, training
from lrbench.files import write_sealed


class Touch:
    """Creates a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def touched(tmp_path: Path) -> Path:
    file = tmp_path / "touched"
    pickle.loads(pickle.dumps(Touch(file)))
    assert file.exists(), "the payload would do its work"
    file.unlink()
    return file


def test_a_checkpoint_with_code_in_it_is_set_aside(tmp_path: Path, touched: Path) -> None:
    small, checkpoint, payload = config(epochs=1), tmp_path / "run.pt", tmp_path / "payload.pt"
    torch.save({"made_by": Touch(touched)}, payload)
    write_sealed(checkpoint, payload.read_bytes())
    with pytest.warns(UserWarning, match="its run begins anew"):
        trained = training.train(small, photos(), checkpoint)
    assert len(trained.history) == 1
    assert not touched.exists()


@pytest.mark.parametrize("option", ["--measure images.pt", "--measure images.npy", "--weights images.pt"])
def test_images_and_weights_with_code_in_them_are_refused(
    option: str, tmp_path: Path, touched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save([Touch(touched)], tmp_path / "images.pt")
    np.save(tmp_path / "images.npy", np.array([Touch(touched)], object), allow_pickle=True)
    torch.save(torch.rand(1, 3, 32, 32), tmp_path / "honest.pt")
    arguments = ["plan", "paper", "--input", "1,3,32,32", *option.split()]
    if "--weights" in option:
        arguments += ["--measure", "honest.pt"]
    assert cli.main(arguments) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not touched.exists()
