"""Fit the refinement network that comes with the package, on a folder of volumes with dense references.

Every volume is annotated sparsely many times, at random numbers of slices in random places, along its own axis and,
where its voxels are nearly cubic, along the others. The network learns which pixels near carried borders belong to the
label. Besides the network of all volumes, one is fitted without each volume (and those of the same patient): the
accuracy of a volume is always measured with the network that has not seen it.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

import common
from cases import Case, load
from layouts import LAYOUTS, Source, sources
from refinements import FOLDS
from sliceprop.engine.appearance import Appearance
from sliceprop.engine.extent import possible_slices, supported_slices
from sliceprop.engine.interpolation import sources as nearest_known
from sliceprop.engine.propagation import Carrier
from sliceprop.engine.refinement import BASE, Question, RefinementNet, Refiner, log_odds
from sliceprop.engine.registration import SliceTransforms, crop, register
from sliceprop.labels import sparse_labels
from sliceprop.pretrained import save_refinement
from sliceprop.roi import region_of_interest

SHIPPED = Path(__file__).parents[1] / "lib" / "sliceprop" / "refinement.safetensors"

CUBIC = 1.5
"""Largest ratio of voxel sides at which slices along another axis look like a scan."""

FEWEST, MOST = 2, 8
"""Annotated slices; few are drawn more often, for there the network has most to say."""

SLICES_PER_CASE = 10
"""Slices without annotation that are looked at: neighbours say nearly the same."""

BEYOND = 3
"""Slices past the labelled range that are looked at too."""

PIXELS_PER_VOLUME = 40_000
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 6, 2048, 5e-3, 1e-2

TRUST = 0.7
"""Weight of the correction: a network fitted on few volumes is too sure of itself on another one. Leaving volumes out,
0.5 and 0.7 were better than 1."""

REGISTRATION_S = 60.0

Pixels = dict[str, torch.Tensor]
"""`features` `(n, FEATURES)`, `inside` `(n,)` in {0, 1}, `weight` `(n,)`: every label on every slice counts the same
up to the square root of its size."""


def collect(source: Source, n_cases: int) -> Pixels:
    """Pixels of one volume, from `n_cases` sparse annotations along its own axis and half as many along others."""
    random = np.random.default_rng(zlib.crc32(source.name.encode()))
    own = load(source)
    ratio = max(own.spacing) / min(own.spacing)
    others = sorted({0, 1, 2} - {own.slice_axis}) if ratio < CUBIC else []
    turned = [_collect_axis(load(source, str(axis)), n_cases // 2, random) for axis in others]
    parts = [_collect_axis(own, n_cases, random), *turned]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def fit(volumes: Sequence[Pixels], seed: int = 0) -> RefinementNet:
    """A network learnt from the pixels of some volumes."""
    pixels = {name: torch.cat([volume[name] for volume in volumes]) for name in volumes[0]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RefinementNet()
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
        n_steps = EPOCHS * -(-len(pixels["inside"]) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=n_steps, pct_start=0.1)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(pixels["inside"])).split(BATCH):
                features, inside, weight = (pixels[name][batch] for name in ("features", "inside", "weight"))
                answer = log_odds(features[:, BASE]) + network(features)
                loss = functional.binary_cross_entropy_with_logits(answer, inside, weight=weight)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    network.trust = TRUST
    return network


def _collect_axis(case: Case, n_cases: int, random: np.random.Generator) -> Pixels:
    study = case.study(case.labelled_range)
    reference = np.ascontiguousarray(study.volume.to_canonical(case.reference))
    roi = region_of_interest(sparse_labels(reference))
    images, reference = crop(study.volume.slices, roi), np.ascontiguousarray(reference[roi.window])
    transforms = SliceTransforms(register(images, budget_s=REGISTRATION_S).velocity, *images.shape[-2:])
    found: list[Pixels] = []
    for _ in range(n_cases):
        annotated = _annotated_slices(*case.labelled_range, random)
        found += _questions(reference, images, transforms, annotated, case.labelled_range, random)
    pixels = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    kept = random.permutation(len(pixels["inside"]))[:PIXELS_PER_VOLUME]
    kept_pixels = {name: values[kept] for name, values in pixels.items()}
    return kept_pixels | {"weight": kept_pixels["weight"] / kept_pixels["weight"].mean()}


def _questions(
    reference: NDArray[np.int32],
    images: torch.Tensor,
    transforms: SliceTransforms,
    annotated: list[int],
    labelled_range: tuple[int, int],
    random: np.random.Generator,
) -> Iterator[Pixels]:
    """Pixels in question on some slices of one sparse annotation, with the truth."""
    sparse = np.zeros_like(reference)
    sparse[annotated] = reference[annotated]
    annotation = sparse_labels(sparse, annotated_slices=annotated)
    moving, still = Carrier(annotation, images, transforms), Carrier(annotation, images, None)
    supported = supported_slices(moving, annotation.known, "auto")
    possible = possible_slices(moving, annotation.known, supported, "auto")
    refiner = Refiner(moving, still, Appearance(moving), RefinementNet())
    below, above = nearest_known(annotation.known)
    first, last = max(0, labelled_range[0] - BEYOND), min(len(reference) - 1, labelled_range[1] + BEYOND)
    free = sorted(set(range(first, last + 1)) - set(annotated))
    for s in random.permutation(free)[:SLICES_PER_CASE].tolist():
        questions = [
            Question(k, low, up, bool(supported[k, s]), moving.scores(k, s, low, up, "sdf"))
            for k in np.flatnonzero(possible[:, s]).tolist()
            for low, up in [(int(below[k, s]), int(above[k, s]))]
        ]
        for question, one in zip(questions, refiner.evidence(s, questions), strict=True):
            if len(one.features):
                inside = torch.from_numpy(reference[s] == annotation.values[question.k])[moving.windows[question.k]]
                weight = torch.full((len(one.features),), len(one.features) ** -0.5)
                yield {"features": one.features, "inside": inside[one.band].float(), "weight": weight}


def _annotated_slices(first: int, last: int, random: np.random.Generator) -> list[int]:
    """A user's choice: evenly spread, in the middles of bins, or anywhere; give or take a slice."""
    counts = np.arange(FEWEST, MOST + 1)
    count = min(int(random.choice(counts, p=(1 / counts) / (1 / counts).sum())), max(FEWEST, (last - first + 1) // 2))
    spread = np.linspace(first, last, count)
    middles = first - 0.5 + (np.arange(count) + 0.5) * (last - first + 1) / count
    anywhere = random.uniform(first, last, count)
    where = [spread, middles, anywhere][random.choice(3, p=[0.35, 0.4, 0.25])] + random.integers(-1, 2, count)
    return sorted({int(s) for s in np.clip(np.round(where), first, last)})


def main() -> None:
    """Collect what is not in the cache, fit, write the networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_argument(parser)
    parser.add_argument("--layout", choices=LAYOUTS, default="measuring")
    parser.add_argument("--cases", type=int, default=14, help="sparse annotations per volume; default %(default)s")
    parser.add_argument("--same-patient", nargs="+", default=[], help="volumes to leave out together, a,b c,d")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the pixels of each volume")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--folds", type=Path, default=FOLDS, help="folder for the networks that leave a volume out")
    arguments = parser.parse_args()
    pixels: dict[str, Pixels] = {}
    for source in sources(arguments.layout, arguments.data):
        pixels[source.name] = _cached(arguments.cache / f"{source.name}.pt", source, arguments.cases)
        print(source.name, len(pixels[source.name]["inside"]), flush=True)
    about: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "machine": common.machine()}
    save_refinement(arguments.out, fit(list(pixels.values())), about | {"volumes": sorted(pixels)})
    groups = [set(group.split(",")) for group in arguments.same_patient]
    arguments.folds.mkdir(parents=True, exist_ok=True)
    for name in pixels:
        left_out = {name}.union(*(group for group in groups if name in group))
        others = sorted(pixels.keys() - left_out)
        network = fit([pixels[other] for other in others])
        save_refinement(arguments.folds / f"{name}.safetensors", network, about | {"volumes": others})
        print(f"without {', '.join(sorted(left_out))}", flush=True)


def _cached(path: Path, source: Source, n_cases: int) -> Pixels:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(collect(source, n_cases), path)
    pixels: Pixels = torch.load(path, weights_only=True)
    return pixels


if __name__ == "__main__":
    main()
