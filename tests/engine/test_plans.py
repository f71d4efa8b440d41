"""Plans without annotation, on scans whose groups of slices are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch import nn

from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.plans import BLIND_PLANS, PLANS, plan_slices
from sliceprop.engine.plans.clustering import Clusters, cluster, draw_evenly
from sliceprop.engine.plans.perceptual import alexnet_levels, filter_levels, network_levels, perceptual_distances
from sliceprop.engine.plans.ssim import ssim_matrix
from sliceprop.engine.plans.weights import read_alexnet, read_linear
from sliceprop.errors import FileError, InputError, ShapeError

SIZES = (4, 9, 17)
GROUPS = np.repeat(range(3), SIZES)
"""Group of each slice of `scan`."""


def scan(*, noise: float = 0.02) -> np.ndarray:
    """30 slices `(S, H, W)` in [0, 1] of three very different textures."""
    rng = np.random.default_rng(0)
    textures = np.stack([ndimage.gaussian_filter(rng.normal(size=(40, 48)), sigma) for sigma in (1, 3, 8)])
    textures /= np.abs(textures).max(axis=(1, 2), keepdims=True)
    slices = 0.5 + 0.4 * textures[GROUPS] + noise * rng.normal(size=(len(GROUPS), 40, 48))
    return np.clip(slices, 0, 1).astype(np.float32)


@pytest.mark.parametrize("plan", sorted(set(PLANS) - set(BLIND_PLANS)))
def test_as_many_slices_come_from_every_group(plan: str) -> None:
    for seed in range(5):
        chosen = plan_slices(scan(), 3, plan, seed=seed)
        assert sorted(GROUPS[chosen]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("plan", "n", "expected"),
    [
        ("centres", 1, [14]),
        ("centres", 3, [4, 14, 24]),
        ("centres", 5, [2, 8, 14, 20, 26]),
        ("keep_n", 3, [0, 10, 20]),
        ("keep_n", 4, [0, 7, 14, 21]),
        ("keep_n", 29, list(range(29))),
    ],
)
def test_places_that_do_not_depend_on_the_scan(plan: str, n: int, expected: list[int]) -> None:
    assert plan_slices(scan(), n, plan) == expected


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("n", [1, 2, 15, 16, 23, 29])
def test_plans_are_ascending_distinct_and_complete(plan: str, n: int) -> None:
    chosen = plan_slices(scan(), n, plan)
    assert len(chosen) == n
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(range(30))
    assert all(type(s) is int for s in chosen)


@pytest.mark.parametrize("plan", sorted(set(PLANS) - {"centres", "keep_n"}))
def test_seeds_repeat_and_differ(plan: str) -> None:
    plans = [tuple(plan_slices(scan(), 5, plan, seed=seed)) for seed in (0, 1, 2, 3, 0, 2**63 - 1)]
    assert plans[0] == plans[4]
    assert len(set(plans)) > 2


@pytest.mark.parametrize("plan", PLANS)
def test_a_range_is_kept_to_and_what_lies_outside_does_not_matter(plan: str) -> None:
    slices = scan()
    chosen = plan_slices(slices, 6, plan, first=4, last=20)
    assert len(chosen) == 6 and min(chosen) >= 4 and max(chosen) <= 20
    slices[:4], slices[21:] = 0, 1
    assert plan_slices(slices, 6, plan, first=4, last=20) == chosen
    assert plan_slices(slices, 3, plan, first=7, last=9) == [7, 8, 9]


@pytest.mark.parametrize("plan", PLANS)
def test_a_single_slice_and_more_slices_than_there_are(plan: str) -> None:
    assert plan_slices(scan()[:1], 1, plan) == [0]
    assert plan_slices(scan()[:6], 6, plan) == plan_slices(scan()[:6], 60, plan) == list(range(6))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_slices_are_drawn_without_a_warning(plan: str, value: float, recwarn: pytest.WarningsRecorder) -> None:
    assert len(set(plan_slices(np.full((20, 5, 9), value, np.float32), 16, plan))) == 16
    assert not recwarn.list


@pytest.mark.parametrize("plan", PLANS)
def test_the_scan_stays_as_it_is_and_its_layout_does_not_matter(plan: str) -> None:
    slices = scan()
    before, flipped = slices.copy(), np.asfortranarray(slices)[:, ::-1]
    chosen = plan_slices(np.ascontiguousarray(flipped), 5, plan)
    assert plan_slices(flipped, 5, plan) == chosen
    np.testing.assert_array_equal(slices, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "at least 1, not 0"),
        ({"n": -3}, "at least 1, not -3"),
        ({"plan": "kmean"}, "unknown plan 'kmean'.*kmeans"),
        ({"seed": -1}, "seed must lie in"),
        ({"first": -1}, "slices -1 to 29"),
        ({"first": 9, "last": 8}, "slices 9 to 8"),
        ({"last": 30}, r"do not all lie in 0\.\.29"),
        ({"plan": "perceptual", "linear_weights": Path("alex.pth")}, "give both files"),
    ],
)
def test_unusable_requests_say_what_to_do(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_slices(scan(), **({"n": 3, "plan": "kmeans"} | arguments))


@pytest.mark.parametrize("shape", [(4, 5), (0, 4, 4), (2, 3, 0)])
def test_no_slices(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="slices must be"):
        plan_slices(np.zeros(shape, np.float32), 1, "ssim")


def test_histograms_see_intensities_and_flattened_slices_see_places() -> None:
    """A bright square left or right has one histogram; a dim one on the left has another, but nearly the same place."""
    slices = np.zeros((12, 16, 16), np.float32)
    slices[:4, 4:12, :8], slices[4:8, 4:12, 8:], slices[8:, 4:12, :8] = 0.9, 0.9, 0.7
    for seed in range(8):
        by_histogram, by_place = (plan_slices(slices, 2, plan, seed=seed) for plan in ("histogram", "kmeans"))
        assert by_histogram[0] < 8 <= by_histogram[1]
        assert len({4 <= s < 8 for s in by_place}) == 2


def test_clusters_are_the_same_in_few_coordinates_as_in_many() -> None:
    from sklearn.cluster import KMeans

    profiles = scan(noise=0.2).reshape(30, -1)
    found = cluster(profiles, 3, np.random.default_rng(0)).members
    expected = KMeans(3, n_init=10, random_state=0).fit_predict(profiles)
    assert len(set(zip(found, expected, strict=True))) == len(set(found)) == 3


def test_a_cluster_that_is_too_small_borrows_from_the_most_similar_one() -> None:
    """Three slices each are wanted: A has one, and B, the nearest, can spare one only; so C gives one as well."""
    members = np.array([0] + [1] * 4 + [2] * 6 + [3] * 9)
    clusters = Clusters(members, np.array([[0.0], [1.0], [3.0], [9.0]]))
    for seed in range(10):
        chosen = draw_evenly(clusters, 12, np.random.default_rng(seed))
        assert len(set(chosen)) == 12
        assert np.bincount(members[chosen]).tolist() == [1, 4, 4, 3]


def test_nobody_lends_before_having_drawn_its_own_share() -> None:
    members = np.array([0] + [1] * 2 + [2] * 9)
    clusters = Clusters(members, np.array([[0.0], [1.0], [9.0]]))
    chosen = draw_evenly(clusters, 9, np.random.default_rng(0))
    assert np.bincount(members[chosen]).tolist() == [1, 2, 6]


def test_what_does_not_divide_evenly_goes_to_the_largest_clusters() -> None:
    members = np.repeat([0, 1, 2], [5, 9, 7])
    clusters = Clusters(members, np.arange(3.0)[:, None])
    drawn = [draw_evenly(clusters, 5, np.random.default_rng(seed)) for seed in range(60)]
    assert all(np.bincount(members[chosen]).tolist() == [1, 2, 2] for chosen in drawn)
    assert set(np.concatenate(drawn)) == set(range(21))


def test_structural_similarity_is_that_of_the_formula() -> None:
    first, second = (ndimage.gaussian_filter(texture, 1) for texture in np.random.default_rng(0).random((2, 30, 25)))

    def mean(image: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(image, 7)[3:-3, 3:-3]

    mu, nu = mean(first), mean(second)
    var = mean(first**2) - mu**2 + mean(second**2) - nu**2
    cov = mean(first * second) - mu * nu
    expected = (2 * mu * nu + 1e-4) * (2 * cov + 9e-4) / ((mu**2 + nu**2 + 1e-4) * (var + 9e-4))
    matrix = ssim_matrix(np.stack([first, second]).astype(np.float32), stride_px=1)
    np.testing.assert_allclose(matrix, [[1, expected.mean()], [expected.mean(), 1]], atol=1e-4)


def test_structural_similarity_of_constant_slices_and_of_tiny_and_large_ones() -> None:
    matrix = ssim_matrix(np.full((2, 3, 400), [[[0.2]], [[0.6]]], np.float32))
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    np.testing.assert_allclose(matrix, [[1, expected], [expected, 1]], atol=1e-4)


def test_an_inverted_slice_is_unlike_the_slice() -> None:
    texture = np.random.default_rng(0).random((20, 20))
    assert ssim_matrix(np.stack([texture, 1 - texture]).astype(np.float32))[0, 1] < -0.5


def alexnet(seed: int = 0) -> nn.Sequential:
    """AlexNet's convolutional part, laid out and numbered as in torchvision, with weights that mean nothing."""
    torch.manual_seed(seed)
    features = nn.Sequential(
        *(nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, kernel_size=5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, kernel_size=3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, kernel_size=3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )
    return features.eval()


def state(network: nn.Sequential) -> dict[str, torch.Tensor]:
    """With a layer of the classifier, as the published file has it."""
    return {f"features.{name}": t for name, t in network.state_dict().items()} | {"classifier.6.bias": torch.zeros(9)}


def linear(seed: int = 0) -> dict[str, torch.Tensor]:
    """LPIPS' linear layers with random weights."""
    generator = torch.Generator().manual_seed(seed)
    channels = (64, 192, 384, 256, 256)
    return {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1, generator=generator) for i, n in enumerate(channels)}


@torch.no_grad()
def lpips(network: nn.Sequential, first: np.ndarray, second: np.ndarray, weights: dict | None) -> float:
    """The distance of two slices as the paper writes it, layer by layer."""
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[:, :, None, None]
    pair = torch.from_numpy(np.stack([first, second]))[:, None] * 2 - 1
    x, total, level = (pair.expand(-1, 3, -1, -1) - shift) / scale, 0.0, 0
    for layer in network:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            unit = x / x.square().sum(dim=1, keepdim=True).sqrt()
            difference = (unit[0] - unit[1]).square()
            if weights is not None:
                difference = difference * weights[f"lin{level}.model.1.weight"][0]
            total += float(difference.sum(dim=0).mean())
            level += 1
    return total


@pytest.mark.parametrize("weighted", [False, True])
def test_lpips_is_that_of_the_paper(tmp_path: Path, weighted: bool) -> None:
    network, slices = alexnet(), np.random.default_rng(0).random((3, 70, 83), np.float32)
    torch.save(state(network), tmp_path / "alexnet.pth")
    torch.save(linear(), tmp_path / "alex.pth")
    weights = read_linear(tmp_path / "alex.pth") if weighted else None
    levels = alexnet_levels(torch.from_numpy(slices)[:, None], read_alexnet(tmp_path / "alexnet.pth"), weights)
    found = perceptual_distances(levels)
    for a in range(3):
        for b in range(3):
            expected = lpips(network, slices[a], slices[b], linear() if weighted else None)
            assert found[a, b] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def distances(kind: str, slices: np.ndarray) -> np.ndarray:
    images = torch.from_numpy(slices)[:, None]
    if kind == "alexnet":
        return perceptual_distances(alexnet_levels(images, state(alexnet())))
    torch.manual_seed(0)
    return perceptual_distances(
        filter_levels(images) if kind == "filters" else network_levels(images, RegistrationNet())
    )


@pytest.mark.parametrize("kind", ["alexnet", "network", "filters"])
@pytest.mark.parametrize("shape", [(24, 9), (70, 90), (40, 300)])
def test_distance_is_zero_for_equal_slices_and_grows_with_change(kind: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    texture, change = (ndimage.gaussian_filter(rng.random(shape), 1.5) for _ in range(2))
    slices = np.stack([texture, texture, *((1 - share) * texture + share * change for share in (0.2, 0.5, 1))])
    found = distances(kind, slices.astype(np.float32))
    np.testing.assert_allclose(found, found.T, atol=1e-9)
    np.testing.assert_allclose(found[0, :2], 0, atol=1e-9)
    assert (np.diff(found[0, 1:]) > 1e-6).all()


def test_filters_do_not_take_weak_noise_for_structure() -> None:
    rng = np.random.default_rng(0)
    structure = 0.5 + 0.4 * ndimage.gaussian_filter(rng.normal(size=(2, 64, 64)), (0, 2, 2)) * 7
    noise = 0.5 + 0.003 * rng.normal(size=(2, 64, 64))
    among_structures, among_noises = (
        distances("filters", np.clip(pair, 0, 1).astype(np.float32))[0, 1] for pair in (structure, noise)
    )
    assert among_noises < 0.05 * among_structures


def test_the_files_decide_and_without_them_the_network(tmp_path: Path) -> None:
    torch.save(state(alexnet()), tmp_path / "alexnet.pth")
    save_file(state(alexnet()), tmp_path / "alexnet.safetensors")
    torch.save(linear(), tmp_path / "alex.pth")
    torch.manual_seed(0)
    network = RegistrationNet()
    with torch.no_grad():
        for block in network.down:
            block[0].bias.fill_(1e9)  # blind: every slice looks the same to it

    def plans(**arguments: object) -> list[list[int]]:
        return [plan_slices(scan(), 3, "perceptual", seed=seed, **arguments) for seed in range(6)]

    files = {"perceptual_weights": tmp_path / "alexnet.pth", "linear_weights": tmp_path / "alex.pth"}
    assert plans(**files) == plans(**files, network=network)
    assert plans(**files | {"perceptual_weights": tmp_path / "alexnet.safetensors"}) == plans(**files)
    assert all(sorted(GROUPS[chosen]) == [0, 1, 2] for chosen in plans(**files))
    assert not all(sorted(GROUPS[chosen]) == [0, 1, 2] for chosen in plans(network=network))


def test_files_that_are_not_the_weights(tmp_path: Path) -> None:
    good, lin = state(alexnet()), linear()
    contents = {
        "empty.pth": {},
        "other.pth": good | {"features.3.weight": torch.zeros(192, 64, 3, 3)},
        "nan.pth": good | {"features.0.bias": torch.full((64,), torch.nan)},
        "list.pth": [1, 2],
        "negative.pth": lin | {"lin2.model.1.weight": -lin["lin2.model.1.weight"]},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(FileError, match="no such file"):
        plan_slices(scan(), 3, "perceptual", perceptual_weights=tmp_path / "missing.pth")
    for name in ("empty.pth", "other.pth", "nan.pth", "list.pth", "text.pth", "text.safetensors"):
        with pytest.raises(InputError, match=f"{name}.*AlexNet"):
            read_alexnet(tmp_path / name)
    with pytest.raises(InputError, match="negative"):
        read_linear(tmp_path / "negative.pth")
