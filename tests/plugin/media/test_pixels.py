# SPDX-License-Identifier: Apache-2.0
"""Pixels in Ray's object store: read on another node, bounded in bytes, absent from what is pickled."""

import pickle
import sys

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from verl.utils.model import extract_multi_modal_inputs

from verl_p2r.plugin.media.media_cache import Source
from verl_p2r.plugin.media.pixels import WORKER_PREFIX, PixelStore, Recipe, SharedInputs, load

pytestmark = pytest.mark.slow  # for the start of Ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def recipe(name: str) -> Recipe:
    return Recipe(("What moves?",), (), (Source("video", f'{{"video": "{name}"}}', 14),))


def made_of(name: str) -> torch.Tensor:
    return torch.full((16, 1176), float(len(name)))


class Producer:
    """In the place of the agent loop worker."""

    def __init__(self, max_bytes: int):
        self.store = PixelStore(max_bytes)

    def put(self, name: str) -> None:
        self.store.put(recipe(name), {"pixel_values_videos": made_of(name)})

    def pixels(self, wanted: Recipe) -> list:
        return [self.store.get(wanted)]

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def two_nodes():
    """A Ray cluster of two nodes, each with its own object store."""
    memory = 100 * 1024**2
    head = {"num_cpus": 2, "object_store_memory": memory, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, resources={"other": 1}, object_store_memory=memory)
    ray.init(address=cluster.address, namespace="verl_p2r_tests")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def producer(two_nodes):
    name = f"{WORKER_PREFIX}0"
    actor = ray.remote(Producer).options(name=name, resources={"other": 0.1}).remote(3 * made_of("").nbytes)
    yield actor
    ray.kill(actor)
    load.cache_clear()


def shared(name: str) -> SharedInputs:
    small = {"video_grid_thw": torch.tensor([[1, 4, 4]])}
    return SharedInputs(small, ("pixel_values_videos",), recipe(name), f"{WORKER_PREFIX}0")


def test_pixels_are_read_on_another_node(producer):
    ray.get(producer.put.remote("a"))
    assert ray.get(producer.node.remote()) != ray.get_runtime_context().get_node_id()
    rows = pickle.loads(pickle.dumps([shared("a"), shared("a"), {}]))  # as through TransferQueue; {} is a padding row
    inputs = extract_multi_modal_inputs(rows)
    assert torch.equal(inputs["pixel_values_videos"], torch.cat([made_of("a")] * 2))
    assert torch.equal(inputs["video_grid_thw"], torch.tensor([[1, 4, 4]] * 2))


def test_pickled_shared_pixels_are_small_and_load_nothing(two_nodes):
    row = shared("never made")
    assert len(pickle.dumps(row)) < 2000 < made_of("").nbytes
    assert "pixel_values_videos" in row
    assert "image_grid_thw" not in row
    assert list(row) == ["video_grid_thw", "pixel_values_videos"]
    assert row.get("image_grid_thw") is None
    assert row != shared("never made")
    row["second_per_grid_ts"] = torch.ones(1)
    assert row.pop("second_per_grid_ts").item() == 1
    assert len(row) == 2


def test_least_recently_used_pixels_are_evicted_first(producer):
    for name in ("a", "ab", "abc", "abcd"):
        ray.get(producer.put.remote(name))
    kept = [ray.get(producer.pixels.remote(recipe(name))) for name in ("a", "ab", "abc", "abcd")]
    assert [reference is not None for [reference] in kept] == [False, True, True, True]
    assert torch.equal(shared("abcd")["pixel_values_videos"], made_of("abcd"))


def test_pixels_above_store_limit_are_refused_with_remedy():
    with pytest.raises(ValueError, match=r"75264 bytes.*data\.p2r\.media_cache\.pixels_gib.*fewer or smaller frames"):
        PixelStore(1000).put(recipe("a"), {"pixel_values_videos": made_of("a")})


def test_missing_agent_loop_worker_is_named_in_error(two_nodes):
    with pytest.raises(RuntimeError, match="agent_loop_worker_0, and no agent loop worker is alive"):
        shared("never made")["pixel_values_videos"]
