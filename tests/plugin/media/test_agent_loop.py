# SPDX-License-Identifier: Apache-2.0
"""Our agent loop worker against verl's, as Ray actors over a real TransferQueue: the same rows, without the pixels."""

import asyncio
import contextlib
import copy
import sys
import time
import uuid
from types import SimpleNamespace

import pytest
import ray
import torch
import transfer_queue as tq
from cpu_config import make_config
from transfer_queue.utils.serial_utils import encode
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ
from verl.utils import tensordict_utils as tu
from verl.utils.model import extract_multi_modal_inputs
from verl.workers.rollout.replica import TokenOutput

from verl_p2r.media.decode import install_reader
from verl_p2r.plugin.media import pixels
from verl_p2r.plugin.media.agent_loop import P2RAgentLoopWorker

pytestmark = pytest.mark.slow  # for the start of Ray and of two workers
ROLLOUTS = 3
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Server:
    """In the place of verl's client: answers at once, and shows what it was sent."""

    async def generate(self, request_id, *, prompt_ids, video_data=None, image_data=None, **kwargs) -> TokenOutput:
        sent = {"video_data": video_data, "mm_processor_output": kwargs.get("mm_processor_output")}
        extra = {"sent": sent, "global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
        return TokenOutput(token_ids=[300, 301], log_probs=[-0.5, -0.25], extra_fields=extra)


class Counting:
    """A mixin that counts what a worker does."""

    def count(self) -> None:
        from verl_p2r.media import decode

        install_reader()  # for the stock worker: both decode alike
        self.counts = {"decodes": 0, "processed": 0, "on the event loop": 0}
        read, video_processor = decode._decode, self.processor.video_processor
        call = type(video_processor).__call__

        def counted_read(*args):
            self.counts["decodes"] += 1
            return read(*args)

        def counted_call(*args, **kwargs):
            self.counts["processed"] += 1
            with contextlib.suppress(RuntimeError):  # there is none in a thread
                asyncio.get_running_loop()
                self.counts["on the event loop"] += 1
            return call(*args, **kwargs)

        decode._decode = counted_read
        type(video_processor).__call__ = counted_call

    def counted(self) -> dict[str, int]:
        return self.counts

    def forget(self) -> None:
        """As if other prompts had pushed everything out."""
        self._pixels._kept.clear()
        self._media._done.clear()


class OurWorker(P2RAgentLoopWorker, Counting):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.count()

    def refuse_placeholders(self, ids: list[int], mask: list[int]) -> None:
        self._refuse_placeholders(SimpleNamespace(response_ids=ids, response_mask=mask))

    def kept(self, recipe: pixels.Recipe) -> bool:
        return self._pixels.get(recipe) is not None


class StockWorker(AgentLoopWorkerTQ.__ray_actor_class__, Counting):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.count()


@pytest.fixture(scope="module")
def config(tiny_model):
    return make_config(
        f"actor_rollout_ref.model.path={tiny_model}",
        f"actor_rollout_ref.rollout.n={ROLLOUTS}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent",
        "data.max_prompt_length=512",
        "data.max_response_length=16",
    )


@pytest.fixture(scope="module")
def workers(queue, config):
    """Our worker and verl's."""
    stock = copy.deepcopy(config)
    stock.data.custom_cls.path = None
    return {
        "ours": ray.remote(OurWorker).options(name=f"{pixels.WORKER_PREFIX}ours").remote(config, Server(), None, None),
        "stock": ray.remote(StockWorker).remote(stock, Server(), None, None),
    }


def video_prompt(clip, **rules) -> list[dict]:
    video = {"type": "video", "video": str(clip), "resized_height": 112, "resized_width": 112, **rules}
    return [{"role": "user", "content": [video, {"type": "text", "text": "What moves?"}]}]


def image_prompt(*paths) -> list[dict]:
    images = [{"type": "image", "image": str(path)} for path in paths]
    return [{"role": "user", "content": [*images, {"type": "text", "text": "What is it?"}]}]


def roll_out(worker, *prompts: list[dict], validate: bool = False) -> tuple[list, list[str]]:
    """Let a worker roll out prompts; give its rows in TransferQueue, session by session, and their keys."""
    uids = [uuid.uuid4().hex for _ in prompts]
    columns = {"uid": uids, "raw_prompt": list(prompts), "index": list(range(len(prompts)))}
    batch = tu.get_tensordict(columns, {"global_steps": 1, "validate": validate})
    partition = "val" if validate else "train"
    ray.get(worker.generate_sequences.remote(batch))
    deadline = time.monotonic() + 60
    while True:
        tags = tq.kv_list(partition_id=partition).get(partition, {})
        if all(tags.get(uid, {}).get("status") in ("finished", "failure") for uid in uids):
            break
        assert time.monotonic() < deadline, f"the worker does not finish: {tags}"
        time.sleep(0.05)
    assert all(tags[uid]["status"] == "finished" for uid in uids)
    keys = sorted(key for key in tags if "_" in key and key.split("_")[0] in uids)
    return tq.kv_batch_get(keys=keys, partition_id=partition), keys


def column(rows, name: str) -> list:
    return [getattr(entry, "data", entry) for entry in rows.get(name)]


def inputs_of(rows) -> list:
    return column(rows, "multi_modal_inputs")


@pytest.mark.parametrize("media", ["video", "two clips", "image", "image and video", "text"])
def test_agent_loop_rows_equal_verl_rows_without_pixels(workers, clips, make_image, media):
    prompt = {
        "video": video_prompt(clips["quick"], fps=2.0),
        "two clips": video_prompt(clips["slow"], nframes=4) + video_prompt(clips["odd"], nframes=6),
        "image": image_prompt(make_image(56, 84), make_image(112, 112)),
        "image and video": image_prompt(make_image(56, 84)) + video_prompt(clips["film"], nframes=4),
        "text": [{"role": "user", "content": "What is left?"}],
    }[media]
    (ours, _), (stock, _) = roll_out(workers["ours"], prompt), roll_out(workers["stock"], prompt)
    assert len(ours) == len(stock) == ROLLOUTS
    assert set(ours.keys()) == set(stock.keys())
    for field in ("prompts", "responses", "response_mask", "input_ids", "loss_mask", "rollout_log_probs"):
        for a, b in zip(ours[field].unbind(), stock[field].unbind(), strict=True):
            assert torch.equal(a, b), field
    for a, b in zip(inputs_of(ours), inputs_of(stock), strict=True):
        assert set(a) == set(b)
        assert len(a) == len(b)
        assert all(torch.equal(a[name], b[name]) for name in b)
    engine = [extract_multi_modal_inputs(inputs_of(rows)) for rows in (ours, stock)]
    assert engine[0].keys() == engine[1].keys()
    assert all(torch.equal(engine[0][name], engine[1][name]) for name in engine[1])


@pytest.fixture
def make_image(tmp_path):
    from PIL import Image

    def make(height: int, width: int) -> str:
        path = tmp_path / f"{height}x{width}.png"
        Image.effect_noise((width, height), 64).convert("RGB").save(path)
        return str(path)

    return make


def test_prompt_is_decoded_and_processed_once_for_all_rollouts(workers, make_clip):
    counts = {}
    for name, worker in workers.items():
        before = ray.get(worker.counted.remote())
        roll_out(worker, video_prompt(make_clip(8, 4), fps=4.0))
        after = ray.get(worker.counted.remote())
        counts[name] = {key: after[key] - before[key] for key in after}
    assert counts["ours"] == {"decodes": 1, "processed": 1, "on the event loop": 0}
    # Three times a rollout, and two of them on the event loop, with a reward worker.
    assert counts["stock"] == {"decodes": ROLLOUTS, "processed": 2 * ROLLOUTS, "on the event loop": ROLLOUTS}


def test_pixels_never_enter_transfer_queue(workers, make_clip):
    clip = make_clip(16, 4, side=224)
    prompt = video_prompt(clip, nframes=16, resized_height=224, resized_width=224)
    sizes = {}
    for name, worker in workers.items():
        rows, _ = roll_out(worker, prompt)
        rows.pop("extra_fields")  # holds what our server was sent
        sizes[name] = sum(len(bytes(part)) for part in encode({key: tu.get(rows, key) for key in sorted(rows.keys())}))
        assert name == "stock" or column(rows, "mm_processor_output") == [None] * ROLLOUTS
    pixels_of_one = inputs_of(rows)[0]["pixel_values_videos"].nbytes
    assert sizes["stock"] > 2 * ROLLOUTS * pixels_of_one > 100 * sizes["ours"]


def test_server_receives_uint8_frames_with_timestamps(workers, clips):
    rows, _ = roll_out(workers["ours"], video_prompt(clips["quick"], fps=2.0))
    sent = column(rows, "extra_fields")[0]["sent"]
    [(frames, metadata)] = sent["video_data"]
    assert frames.dtype == torch.uint8
    assert frames.shape == (4, 3, 112, 112)
    assert metadata["fps"] == 4
    assert metadata["frames_indices"] == [0, 2, 5, 7]
    assert sent["mm_processor_output"] is None


def test_evicted_pixels_are_recomputed(workers, clips):
    rows, _ = roll_out(workers["ours"], video_prompt(clips["odd"], nframes=6))
    first = inputs_of(rows)[0]["pixel_values_videos"].clone()
    pixels.load.cache_clear()
    ray.get(workers["ours"].forget.remote())
    assert torch.equal(inputs_of(rows)[0]["pixel_values_videos"], first)


def test_another_worker_recomputes_pixels_of_dead_worker(workers, clips, config):
    """As after a resume: TransferQueue's checkpoint names workers of the run before."""
    name = f"{pixels.WORKER_PREFIX}{uuid.uuid4().hex}"
    mortal = ray.remote(OurWorker).options(name=name).remote(config, Server(), None, None)
    rows, _ = roll_out(mortal, video_prompt(clips["long"], nframes=12))
    first = inputs_of(rows)[0]["pixel_values_videos"].clone()
    pixels.load.cache_clear()
    ray.kill(mortal)
    with pytest.raises(ValueError, match=name):
        for _ in range(100):  # Ray takes a moment to notice
            ray.get_actor(name)
            time.sleep(0.05)
    assert torch.equal(inputs_of(rows)[0]["pixel_values_videos"], first)


def test_validation_keeps_no_pixels(workers, clips):
    rows, _ = roll_out(workers["ours"], video_prompt(clips["slow"], nframes=8), validate=True)
    assert ray.get(workers["ours"].kept.remote(inputs_of(rows)[0]._recipe)) is False


def test_rollout_that_generates_placeholder_is_refused(workers, processor):
    """Not one whose tools returned an image: their tokens are not the model's."""
    video, image = processor.video_token_id, processor.image_token_id
    ray.get(workers["ours"].refuse_placeholders.remote([300, video, image, 301], [1, 0, 0, 1]))
    with pytest.raises(ValueError, match=rf"placeholders \[{video}\]"):
        ray.get(workers["ours"].refuse_placeholders.remote([300, video, image, 301], [1, 1, 0, 1]))
