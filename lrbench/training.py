"""One run: a model, a seed, some epochs; stopped anywhere and taken up again, it ends bit for bit in the same place.

(With three processes or more, in the same place up to rounding: the order in which gradients are summed may differ.)

Pixels are divided by 255 and nothing is subtracted, because the mean changes the ranks; nothing is augmented. Adam,
cross entropy. A seed fixes the initial weights, the order of the data and dropout, whatever is compressed, so that
runs with one seed form a pair. All randomness of an epoch derives from (seed, epoch), and compressors draw from
generators of their own: a checkpoint needs no generator's state.

Over several processes a step takes the mean gradient of all their images: see :mod:`lrbench.distributed`.
"""

import hashlib
import io
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrbench import distributed
from lrbench.compressors import NonFiniteBlockError, compressor_class, get_compressor
from lrbench.conv import Path as CompressionPath
from lrbench.conv import compressed_layers, wrap
from lrbench.datasets import Dataset, to_float
from lrbench.environment import code_hash
from lrbench.files import DamagedFileError, read_sealed, set_aside, write_sealed
from lrbench.foreign import structure_of
from lrbench.models import build_model
from lrbench.policy import Policy

__all__ = [
    "Config",
    "Evaluation",
    "Trained",
    "evaluate",
    "make_model",
    "make_optimizer",
    "prepare_torch",
    "train",
    "training_step",
]


@dataclass(frozen=True)
class Config:
    """All that determines the result of a run, on one kind of machine.

    Attributes
    ----------
    dataset, data_sha256 : str
        Name and content of the data.
    train_size, test_size : int
        How many images, from the beginning of each part.
    model : str
        A name that :func:`lrbench.models.build_model` takes; of a model of others ``structure`` hashes what it is.
    widths : tuple of int
        The model's widths.
    epochs, batch_size : int
        The last batch of an epoch may be smaller. Where there are several processes, each takes that many images.
    learning_rate : float
        Of Adam.
    seed : int
        Of initial weights, data order and dropout.
    mask : str
        A bit for each convolution.
    compressor : str or None
        None where the mask has no one.
    compressor_version : int or None
        Of the compressor's algorithm.
    eps, path : float or None, str or None
        None where they do not matter.
    device : str
        Where the run computes.
    threads : int
        Of the CPU; sums are ordered by it.
    policy : str or None
        What is done to each layer, as :meth:`lrbench.Policy.identity` writes it. ``compressor`` is its name then, the
        mask has a bit for each layer that it names, and version, eps and path are None.
    structure : str or None
        Of a model of others: :func:`lrbench.foreign.structure_of`. None for a model of our own.
    files : tuple of str
        Where compressors are that come from files, for a process that does not know them; no part of the identity, for
        the compressor's name says what was in the file.
    processes : int
        That train together.
    """

    dataset: str
    data_sha256: str
    train_size: int
    test_size: int
    model: str
    widths: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    mask: str
    compressor: str | None
    compressor_version: int | None
    eps: float | None
    path: CompressionPath | None
    device: str
    threads: int
    policy: str | None = None
    structure: str | None = None
    files: tuple[str, ...] = field(default=(), compare=False)
    processes: int = 1

    def to_json(self) -> dict[str, Any]:
        """Give the configuration as plain JSON types; what was added later is left out where it changes nothing."""
        given = {**asdict(self), "widths": list(self.widths)}
        del given["files"]
        for name in ("policy", "structure"):
            if given[name] is None:
                del given[name]
        if self.processes == 1:
            del given["processes"]
        return given

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "Config":
        """Read what :meth:`to_json` gave."""
        return cls(**{**given, "widths": tuple(given["widths"])})

    @property
    def plain(self) -> bool:
        """Whether the model is the plain one: a policy may change it where the mask has no one."""
        return self.policy is None and "1" not in self.mask


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, accuracy in 0..1, and the predicted class of every image, (N,) int64, on the CPU."""

    loss: float
    accuracy: float
    predictions: Tensor


@dataclass
class Trained:
    """What training left.

    Attributes
    ----------
    model : torch.nn.Module
        Wrapped as the configuration says.
    history : list of dict
        An entry per finished epoch: epoch (from 1), train_loss, train_accuracy, test_loss, test_accuracy, seconds.
    divergence : str or None
        Where and how training diverged, if it did.
    earlier_seconds : float
        What the epochs took that came from a checkpoint.
    """

    model: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)
    divergence: str | None = None
    earlier_seconds: float = 0.0


class _DivergenceError(ArithmeticError):
    """Training left the finite numbers."""


def train(
    config: Config,
    data: Dataset,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> Trained:
    """Train from the beginning, or from a checkpoint of the same run if there is one.

    Parameters
    ----------
    config
        The run.
    data
        At least ``train_size`` and ``test_size`` images.
    checkpoint
        A file that is written after each epoch, atomically, and read if it is there; one that is damaged, or of
        another configuration or version, is named in a warning, set aside and written anew.
    on_epoch
        Called with the number of each epoch when it is finished.

    Returns
    -------
    Trained
        Divergence, of the loss or of a block that is to be compressed, ends training and is recorded.

    Raises
    ------
    ValueError
        If there are not as many processes as the configuration says, or a layer's guarantee spans the batch, of which
        each of several processes has a part.
    """
    if config.processes != distributed.count():
        raise ValueError(
            f"the run is one of {config.processes} processes, and there are {distributed.count()}: "
            f"start it with torchrun --nproc-per-node {config.processes}"
        )
    images, labels = data.train_images[: config.train_size], data.train_labels[: config.train_size]
    test_images, test_labels = data.test_images[: config.test_size], data.test_labels[: config.test_size]
    with distributed.together():
        trained, optimizer = _begin(config, len(data.classes))
    if checkpoint is not None and not _load_checkpoint(checkpoint, config, trained, optimizer):
        trained, optimizer = _begin(config, len(data.classes))
    model = trained.model
    with distributed.replica(model) as replica:
        for epoch in range(len(trained.history) + 1, config.epochs + 1):
            start = time.perf_counter()
            try:
                loss, accuracy = _train_epoch(replica, optimizer, images, labels, config, epoch)
                test = distributed.by_first(evaluate, model, test_images, test_labels, config)
                if not math.isfinite(test.loss):
                    raise _DivergenceError(f"the test loss became {test.loss}")
            except (_DivergenceError, NonFiniteBlockError) as error:
                trained.divergence = f"epoch {epoch}: {error}"
                break
            trained.history.append(
                {
                    "epoch": epoch,
                    "train_loss": loss,
                    "train_accuracy": accuracy,
                    "test_loss": test.loss,
                    "test_accuracy": test.accuracy,
                    "seconds": time.perf_counter() - start,
                }
            )
            if checkpoint is not None:
                _save_checkpoint(checkpoint, config, trained, optimizer)
            on_epoch(epoch)
    return trained


def _begin(config: Config, classes: int) -> tuple[Trained, torch.optim.Optimizer]:
    model = make_model(config, classes)
    _refuse_batch_guarantees(model, config)
    return Trained(model), make_optimizer(model, config)


def prepare_torch(config: Config) -> None:
    """Set what a run's arithmetic depends on: threads, and on a GPU full float32 and repeatable algorithms."""
    torch.set_num_threads(config.threads)
    if config.device.startswith("cuda"):
        # In TensorFloat-32 native convolutions would be further from W·D than many a tolerance.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def make_model(config: Config, classes: int) -> nn.Module:
    """Build the model of a run, its weights drawn from the seed alone, and wrap it."""
    for place in config.files:
        compressor_class(place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_derived(config.seed, "weights"))
        model = build_model(config.model, config.widths, classes)
    if config.structure is not None and structure_of(model) != config.structure:
        raise ValueError(f"{config.model} has changed since the command began: start it again")
    model.to(config.device)
    if config.structure is None and not config.device.startswith("cuda"):
        # A CPU convolves quicker in this format. Others' models are left as they are: they may rely on their strides.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.policy is not None:
        wrap(model, Policy.from_identity(config.policy))
    elif config.compressor is not None and config.path is not None:
        options = {} if config.eps is None else {"eps": config.eps}
        wrap(model, config.mask, get_compressor(config.compressor, **options), path=config.path)
    return model


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Adam, over all parameters."""
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Take one step on a batch, whose gradient may have a weight; return its mean loss and its logits, detached."""
    optimizer.zero_grad(set_to_none=True)
    logits = model(x)
    loss = F.cross_entropy(logits, y)
    loss.backward(torch.full_like(loss, weight))
    optimizer.step()
    return loss.detach(), logits.detach()


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, config: Config, exact: bool = False) -> Evaluation:
    """Evaluate on uint8 images, in evaluation mode.

    Parameters
    ----------
    model, images, labels, config
        What to evaluate on what; the batch size is the training's.
    exact
        Convolve exactly; otherwise wrapped layers act as in training.
    """
    layers = compressed_layers(model).values()
    before = [layer.exact_eval for layer in layers]
    training = model.training
    model.eval()
    total, predictions = 0.0, []
    try:
        for layer in layers:
            layer.exact_eval = exact
        for start in range(0, len(images), config.batch_size):
            part = slice(start, start + config.batch_size)
            logits = model(to_float(images[part].to(config.device)))
            total += F.cross_entropy(logits, labels[part].to(config.device), reduction="sum").item()
            predictions.append(logits.argmax(1).cpu())
    finally:
        model.train(training)
        for layer, value in zip(layers, before, strict=True):
            layer.exact_eval = value
    predicted = torch.cat(predictions)
    return Evaluation(total / len(images), (predicted == labels).double().mean().item(), predicted)


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, config: Config, epoch: int
) -> tuple[float, float]:
    """Train on every image once; return mean loss and accuracy, as met on the way."""
    generator = torch.Generator("cpu").manual_seed(_derived(config.seed, "order", epoch))
    order = torch.randperm(len(images), generator=generator, device="cpu")
    device = torch.device(config.device)
    total, correct = 0.0, 0
    model.train()
    others = [rank] if (rank := distributed.rank()) else []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_derived(config.seed, "dropout", epoch, *others))
        for step, batch in enumerate(order.split(config.batch_size * config.processes), start=1):
            part, own = distributed.share(batch)
            x, y = to_float(images[part].to(device)), labels[part].to(device)
            # The mean over processes of their weighted means is the mean over the batch.
            loss, logits = training_step(model, optimizer, x, y, own * config.processes / len(batch))
            right = int((logits.argmax(1) == y)[:own].sum())
            loss_sum, right_sum = distributed.totals(loss.item() * own, right)
            if not math.isfinite(loss_sum):
                raise _DivergenceError(f"the loss became {loss_sum} in step {step}")
            total += loss_sum
            correct += int(right_sum)
    return total / len(images), correct / len(images)


def _refuse_batch_guarantees(model: nn.Module, config: Config) -> None:
    spanning = {
        layer.compressor.name for layer in compressed_layers(model).values() if layer.compressor.guarantee == "batch"
    }
    if config.processes > 1 and spanning:
        raise ValueError(
            f"the guarantee of {', '.join(sorted(spanning))} spans the batch, of which each of "
            f"{config.processes} processes has a part: use another compressor, or one process"
        )


def _derived(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _save_checkpoint(path: Path, config: Config, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
    """Write what a run is taken up from; of the compressors there is a state for each process."""
    compressors = distributed.gathered(
        {name: layer.compressor.state_dict() for name, layer in compressed_layers(trained.model).items()}
    )
    state = {
        "made_by": _maker(config),
        "model": trained.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "compressors": compressors[0],
        "other_compressors": compressors[1:],
        "history": trained.history,
    }
    distributed.by_first(_write_checkpoint, path, state)


def _write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_sealed(path, buffer.getbuffer())


def _read_checkpoint(path: Path) -> bytes | None:
    return bytes(read_sealed(path)) if path.exists() else None


def _load_checkpoint(path: Path, config: Config, trained: Trained, optimizer: torch.optim.Optimizer) -> bool:
    """Take up a checkpoint, if there is one; False if it was set aside, and then what is given may be half changed."""
    try:
        content = distributed.by_first(_read_checkpoint, path)
        if content is None:
            return True
        with distributed.together():
            _take_up(content, config, trained, optimizer)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes torch raise
        reason = str(error).partition("\n")[0]
        kind = "corrupt" if isinstance(error, DamagedFileError) else "outdated"
        aside = distributed.by_first(set_aside, path, kind)
        warnings.warn(f"{path} is kept as {aside.name}, and its run begins anew: {reason}", stacklevel=3)
        return False
    return True


def _take_up(content: bytes, config: Config, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
    state = torch.load(io.BytesIO(content), weights_only=True, map_location=config.device)
    if state["made_by"] != _maker(config):
        raise ValueError("it was made by another version")
    trained.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    compressors = [state["compressors"], *state.get("other_compressors", [])][distributed.rank()]
    for name, layer in compressed_layers(trained.model).items():
        layer.compressor.load_state_dict(compressors[name])
    trained.history = list(state["history"])
    trained.earlier_seconds = float(sum(entry["seconds"] for entry in trained.history))


def _maker(config: Config) -> dict[str, Any]:
    """What must agree for a run to be taken up exactly."""
    return {"config": config.to_json(), "torch": str(torch.__version__), "lrbench": code_hash()}
