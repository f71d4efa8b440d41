"""Methods by name, with settings: `METHOD[:FIELD=VALUE,...]`; ours, the classical ones, and peers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sliceprop.config import LEARNED_METHODS, METHODS, PREDICTORS, PredictorConfig, PropagateConfig, TrainConfig
from sliceprop.errors import InputError

CLASSICAL = ("nearest", "shape", "contour")
"""What users have today: in a tenth of a second, without looking at the image."""

PEERS_FOLDER = Path(__file__).parent / "peers"
PEERS = tuple(sorted(path.parent.name for path in PEERS_FOLDER.glob("*/peer.py")))


@dataclass(frozen=True)
class Method:
    """A method with its settings.

    Attributes:
        name: as it was given, settings included; how results are told apart.
        kind: the method without its settings.
        train: settings of learning, None where nothing is learnt before the propagation.
        propagate: settings of the propagation, None for a peer.
        peer: settings of a peer, as text.
    """

    name: str
    kind: str
    train: TrainConfig | None = None
    propagate: PropagateConfig | None = None
    peer: dict[str, str] = field(default_factory=dict)

    @property
    def is_peer(self) -> bool:
        """Whether it runs with a Python of its own."""
        return self.propagate is None

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, plain values."""
        if self.propagate is None:
            return dict(self.peer)
        plain = asdict(self.propagate)
        predictor = plain.pop("predictor")
        return plain | (asdict(self.train) if self.train else {}) | (predictor if self.kind in PREDICTORS else {})


def parse(name: str) -> Method:
    """Read `registration:fusion=distance,similarity=mse`; the fields are those of the package's configurations.

    A peer takes what its `peer.py` knows, and checks it itself.

    Raises:
        InputError: an unknown method or setting, or a value that a configuration refuses.
    """
    kind, _, text = name.partition(":")
    given = dict(_pair(pair) for pair in text.split(",") if pair)
    if kind in PEERS:
        return Method(name, kind, peer=given)
    if kind not in (*METHODS, *PREDICTORS):
        raise InputError(f"unknown method {kind!r}, choose from {', '.join((*METHODS, *PREDICTORS, *PEERS))}")
    unknown = given.keys() - {name for stage in _stages(kind) for name in _settings(stage)}
    if unknown:
        raise InputError(f"{name}: {kind} has no setting {', '.join(sorted(unknown))}")
    configured = {stage: _configured(stage, given) for stage in _stages(kind)}
    predictor = {"predictor": configured[PredictorConfig]} if kind in PREDICTORS else {}
    propagate = replace(configured[PropagateConfig], method=kind, **predictor)
    return Method(name, kind, configured.get(TrainConfig), propagate)


def kind_of(name: str) -> str:
    """The method without its settings."""
    return name.partition(":")[0]


def rank(name: str) -> tuple[int, str]:
    """Order of methods in tables and plots: classical ones, peers, overfitted networks, ours, `auto` itself last."""
    order = (*CLASSICAL, *PEERS, *PREDICTORS, *(m for m in METHODS if m not in (*CLASSICAL, "auto")), "auto")
    return order.index(kind_of(name)) + (name == "auto"), name


def together(methods: Iterable[Method]) -> list[list[Method]]:
    """Methods in groups that share a process: those that learn with equal settings, every other one alone."""
    groups: dict[Any, list[Method]] = {}
    for method in methods:
        groups.setdefault(method.train or method.name, []).append(method)
    return list(groups.values())


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{text!r}: give settings as FIELD=VALUE")
    return key, value


def _stages(kind: str) -> tuple[type[Any], ...]:
    """The configurations that a method looks at."""
    if kind in LEARNED_METHODS:
        return TrainConfig, PropagateConfig
    return (PropagateConfig, PredictorConfig) if kind in PREDICTORS else (PropagateConfig,)


def _settings(stage: type[Any]) -> dict[str, type[Any]]:
    """Names and types of the plain fields of a configuration, all but the method itself."""
    return {f.name: type(f.default) for f in fields(stage) if f.default is not MISSING and f.name != "method"}


def _configured(stage: type[Any], given: dict[str, str]) -> Any:
    return stage(**{name: kind(given[name]) for name, kind in _settings(stage).items() if name in given})
