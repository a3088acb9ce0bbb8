# SPDX-License-Identifier: Apache-2.0
"""`verl-p2r plan`: its tokens are the real processor's on the quickstart's rows, and every script can be planned."""

import shutil
from dataclasses import replace
from statistics import median

import make_data
import pytest
from example_scripts import CASES, SMALL_CARDS, START, call
from omegaconf import OmegaConf
from qwen_vl_utils import process_vision_info
from typer.testing import CliRunner
from verl.trainer.ppo.utils import create_rl_dataset
from verl.trainer.sft_trainer import create_sft_dataset
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_p2r.media.plan import VisionSpec
from verl_p2r.planner import GPUS, PHASES, Assumed, SecondAnswers, count, faults, memory, step_time, total
from verl_p2r.plugin.cli import app
from verl_p2r.plugin.plan import from_config
from verl_p2r.plugin.plan.from_config import Options, plan_of
from verl_p2r.plugin.plan.launches import launch_of, read
from verl_p2r.plugin.plan.report import amount
from verl_p2r.plugin.plan.tokens import samples
from verl_p2r.settings import P2RSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The quickstart's data, few of them."""
    folder = tmp_path_factory.mktemp("quickstart") / "data"
    sizes = ["--sft-videos=4", "--rows-per-video=3", "--sft-val=1", "--rl=9", "--val=1"]
    make_data.make(make_data.parse_args([str(folder), *sizes]))
    return folder


@pytest.fixture
def rl(data, tiny_model):
    """The quickstart's RL, as `launch(*overrides)`."""
    files = [f"data.{split}_files={data}/rl_{split}.parquet" for split in ("train", "val")]
    sizes = ["data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    sizes += ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"]
    sizes += ["actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4"]
    sizes += ["actor_rollout_ref.rollout.max_model_len=3000", "data.max_prompt_length=1000"]

    def launch(*overrides: str):
        paths = [*files, *sizes, f"actor_rollout_ref.model.path={tiny_model}", *overrides]
        return launch_of("p2r_ppo_cpu", paths)

    return launch


@pytest.fixture
def sft(data, tiny_model):
    """The quickstart's SFT."""
    paths = [f"data.train_files={data}/sft_train.parquet", f"model.path={tiny_model}"]
    return launch_of("p2r_sft_cpu", paths)


def test_planned_prompt_tokens_equal_processor_tokens(rl, data, processor):
    launch, spec = rl(), VisionSpec.from_processor(processor)
    files = [f"{data}/rl_train.parquet"]
    counted = [count(s, spec, processor.tokenizer) for s in samples(launch, files, processor, -1)]
    dataset = create_rl_dataset(files, launch.config.data, processor.tokenizer, processor)
    assert len(counted) == len(dataset) == 9
    for (tokens, media), row in zip(counted, dataset, strict=True):
        messages = row["raw_prompt"]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images, videos = process_vision_info(messages, image_patch_size=14, return_video_metadata=True)
        inputs = build_multimodal_processor_inputs(processor, text=[text], images=images, videos=videos)
        ids = list(inputs["input_ids"][0])
        assert tokens == len(ids)
        assert media == ids.count(processor.tokenizer.convert_tokens_to_ids("<|video_pad|>"))


def test_planned_sft_tokens_equal_trained_tokens(sft, data, processor):
    files = [f"{data}/sft_train.parquet"]
    spec = VisionSpec.from_processor(processor)
    counted = [count(s, spec, processor.tokenizer)[0] for s in samples(sft, files, processor, -1)]
    dataset = create_sft_dataset(files, sft.config.data, processor.tokenizer, processor)
    assert counted == [len(dataset[i]["input_ids"]) for i in range(len(dataset))]
    assert len(counted) == 12


def test_plan_uses_token_counts_of_data_rows(rl, sft, data, processor):
    launch = rl()
    plan = plan_of(launch, Options())
    files, spec = [f"{data}/rl_train.parquet"], VisionSpec.from_processor(processor)
    counted = [count(s, spec, processor.tokenizer) for s in samples(launch, files, processor, -1)]
    lines = {line.name: line.value for line in plan.tokens}
    assert lines["prompt, median"] == median(tokens for tokens, _ in counted)
    assert lines["prompt, most"] == max(tokens for tokens, _ in counted)
    assert plan.job.lengths.prompt == lines["prompt, median"]
    assert plan.job.shape.params == sum(p.numel() for p in _model(launch).parameters())
    assert plan_of(rl(), Options(rows=0)).job.lengths.text > 200  # an estimate from the template, nothing is counted
    of_sft = plan_of(sft, Options())
    assert of_sft.job.steps == 12 // 16  # one epoch of whole batches
    assert of_sft.job.rollout is None
    whole = [count(s, spec, processor.tokenizer)[0] for s in samples(sft, _files(sft), processor, -1)]
    assert of_sft.job.lengths.row == median(whole)


def _files(launch):
    return [launch.config.data.train_files]


def _model(launch):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(launch.config.actor_rollout_ref.model.path)


def test_unusable_data_rows_are_a_plan_warning(rl, data, tmp_path):
    shutil.copy(data / "rl_train.parquet", tmp_path / "broken.parquet")
    launch = rl(f"data.train_files={tmp_path}/broken.parquet", "data.max_prompt_length=50")
    assert any(
        fault.startswith("data: 9 of 9 rows rejected (over-long 9)") for fault in plan_of(launch, Options()).faults
    )


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """`plans(case)`: its plan."""
    folder = tmp_path_factory.mktemp("run")

    def make(case):
        done, command = call(case.script, case.env, folder)
        assert done.returncode == 0, done.stderr
        return plan_of(read(command), Options(case.gpu, case.model))

    return make


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_script_can_be_planned(case, plans):
    plan = plans(case)
    phase = "update"
    used, whole = total(memory(plan.job, Assumed()), phase), plan.job.gpu.memory
    assert 0.1 * whole < used < 1.1 * whole
    assert {line.name for line in step_time(plan.job, Assumed())} >= {"update", "a step"}
    unexpected = [f for f in faults(plan.job, Assumed()) if not f.startswith(("GPU memory: update", "prompt:"))]
    assert plan.faults + unexpected == []


@pytest.mark.parametrize("case", SMALL_CARDS, ids=str)
def test_a_recipe_for_a_small_card_fits_in_each_phase(case, plans):
    job = plans(case).job
    lines = memory(job, Assumed())
    for phase in PHASES if job.rollout else ("update",):
        assert total(lines, phase) < job.gpu.memory, (phase, lines)
    assert not list(faults(job, Assumed()))
    assert (job.engine.gpus, job.engine.lora_rank, job.engine.param_bytes) == (1, 64, 4)


def test_plan_uses_settings_of_each_script(plans):
    by_script = {case.script: case for case in CASES}
    lora = plans(by_script["pa_grpo_7b_lora.sh"]).job
    assert (lora.engine.lora_rank, lora.engine.lora_vision, lora.engine.param_offload) == (64, False, True)
    assert (lora.rollout.share, lora.engine.tokens, lora.prompts, lora.samples, lora.steps) == (0.45, 8192, 16, 8, 500)
    large = plans(by_script["pa_grpo_32b.sh"]).job
    assert (large.engine.ulysses_size, large.rollout.tensor, large.engine.fsdp_size, large.engine.gpus) == (
        4,
        4,
        16,
        16,
    )
    assert (large.engine.param_bytes, large.engine.compute_bytes, large.engine.optimizer_offload) == (4, 2, True)
    apart = plans(by_script["pa_grpo_7b_separate_async.sh"]).job
    assert (apart.rollout.apart, apart.rollout.gpus, apart.engine.gpus, apart.engine.mini_batches) == (True, 1, 7, 4)
    judged = plans(by_script["pa_grpo_7b_judge_external.sh"]).job.judge
    assert (judged.calls, judged.in_flight) == (448, 8 * 8)
    baseline = next(case for case in CASES if case.env.get("ABLATION") == "grpo")
    assert plans(baseline).job.judge is None
    assert plans(baseline).job.second_answers is None


def test_every_model_judge_is_called_and_the_slowest_one_counts():
    sizes = {"data": {"train_batch_size": 4}, "actor_rollout_ref": {"rollout": {"n": 3}}, "reward": {"num_workers": 2}}

    def judging(name, **kwargs):
        settings = P2RSettings.from_mapping({"judge": {"name": name, "kwargs": kwargs}})
        return from_config._judge(OmegaConf.create(sizes), settings)

    one, two = ({"name": "openai", "kwargs": {"model": "m", "concurrency": most}} for most in (8, 4))
    both = judging("all", members={"facts": {"name": "facts"}, "one": one, "two": two})
    assert (both.calls, both.in_flight) == (2 * 12, 2 * 4 * 2)  # as long as 12 calls, 4 × 2 at a time
    assert judging("self", compare_with=two).calls == 12
    assert judging("self") is judging("facts") is None
    assert judging("any", members={"facts": {"name": "facts"}, "self": {"name": "self"}}) is None


@pytest.mark.parametrize("gpu", ["A100", "H100"])
def test_second_answers_take_at_most_15_percent_of_sampling_at_the_papers_lengths(plans, gpu):
    """They would take more without a prefix cache or with thinking."""
    job = plans(next(case for case in CASES if case.script == "pa_grpo_7b_self.sh")).job
    assert job.judge is None
    # The middle of the band of 128 to 320 tokens; a short answer.
    assert job.second_answers == SecondAnswers(observation=224, answer=8)
    seconds = {line.name: line.value for line in step_time(replace(job, gpu=GPUS[gpu]), Assumed())}
    assert 0 < seconds["second answers"] <= 0.15 * (seconds["generate"] + seconds["prefill"])


def test_a_second_answer_that_thinks_is_as_long_as_its_limit_allows():
    options = ("p2r/judge=self", "algorithm.p2r.judge.second_answer.think=True")
    done = run("p2r_ppo", RL[0], *options)
    assert "generate × 64 / " in done.output
    done = run("p2r_ppo", RL[0], *options, "algorithm.p2r.judge.second_answer.max_tokens=1024")
    assert "generate × 424 / " in done.output  # the middle of the band of 320 to 512 tokens, and a short answer


RL = ["actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct", "--no-formulas"]


def run(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})


def test_plan_command_prints_all_parts_and_formulas():
    done = run("p2r_ppo", RL[0], "p2r/judge=openai", "algorithm.p2r.judge.kwargs.model=judge", "--gpu", "H200")
    assert done.exit_code == 0, done.output
    for text in (
        "8.292 G parameters",
        "Tokens of a row",
        "Memory of a GPU, GiB of 139.8",
        "4 B × 8.292 G / 8",
        "Memory of a node",
        "Moved in a step",
        "56 prompts × 8, at most",
        "Time of a step",
        "Assumed, not measured: 35% of 989 T operations/s",
    ):
        assert text in done.output
    short = run("p2r_ppo", *RL)
    assert "4 B × 8.292 G / 8" not in short.output
    assert "weights" in short.output


def test_plan_uses_environment_of_script(tmp_path):
    _, command = call("pa_grpo_7b.sh", {**START, "BATCH": "24"}, tmp_path, "actor_rollout_ref.rollout.n=4")
    done = run("--model", "Qwen2.5-VL-7B", "--", *command)
    assert done.exit_code == 0, done.output
    assert "a step has 24 prompts × 4 responses" in done.output
    assert not list(tmp_path.iterdir())


WRONG = {
    "memory": (["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=65536"], "GPU memory: update takes"),
    "patches": (["data.image_patch_size=16"], "data.image_patch_size is 16, but the model's patches have 14"),
    "batches": (
        ["actor_rollout_ref.actor.ppo_mini_batch_size=40"],
        "not a multiple of actor.ppo_mini_batch_size=40",
    ),
    "lengths": (["data.max_response_length=800"], "no room for responses at the upper end"),
}


@pytest.mark.parametrize(("overrides", "what"), WRONG.values(), ids=list(WRONG))
def test_strict_plan_exits_1_on_fault(overrides, what):
    done = run("p2r_ppo", *RL, *overrides, "--strict")
    assert done.exit_code == 1
    assert what in done.output


def test_plan_with_warning_only_exits_0():
    done = run("p2r_ppo", *RL, "data.image_patch_size=16")
    assert done.exit_code == 0
    assert "warn data.image_patch_size" in done.output


def test_strict_plan_exits_0_without_faults():
    good = ["actor_rollout_ref.rollout.max_model_len=6144", "actor_rollout_ref.rollout.tensor_model_parallel_size=1"]
    done = run("p2r_ppo", *RL, *good, "--strict")
    assert done.exit_code == 0, done.output


UNREADABLE = {
    "gpu": (["p2r_ppo", RL[0], "--gpu", "T4"], "--gpu is 'T4': give one of A100-40GB"),
    "model": (
        ["p2r_ppo", "actor_rollout_ref.model.path=nowhere"],
        "a published model of the same shape with --model",
    ),
    "named": (["p2r_ppo", "--model", "nowhere"], "nowhere is neither a folder with a config.json"),
    "key": (["p2r_ppo", "data.train_batch=3"], "Could not override 'data.train_batch'"),
    "config": (["p2r_pro"], "p2r_pro"),
    "command": (["--", "python", "train.py"], "python train.py: does not start verl with"),
    "script": (["--", "a b.sh", "x=1"], "LAUNCH='verl-p2r plan --' bash 'a b.sh' x=1"),
    "shell": (["--", "bash", "a.sh"], "LAUNCH='verl-p2r plan --' bash a.sh"),
    "engine": (["p2r_ppo", RL[0], "actor_rollout_ref.actor.strategy=fsdp_turbo"], "only fsdp and fsdp2"),
    "megatron": (["p2r_ppo", RL[0], "model_engine=megatron"], "actor.strategy is 'megatron': only fsdp and fsdp2"),
    "its config": (["p2r_ppo", RL[0], "actor_rollout_ref.actor.fsdp_config.strategy=ddp"], "ddp not supported"),
    "static": (
        ["p2r_ppo", RL[0], "actor_rollout_ref.actor.use_dynamic_bsz=False"],
        "rollout.log_prob_micro_batch_size_per_gpu is null: give a whole number of at least 1",
    ),
    "zero": (["p2r_ppo", RL[0], "data.train_batch_size=0"], "data.train_batch_size is 0: give"),
    "null": (["p2r_sft", "model.path=null"], "model.path is null: give a folder or a published name"),
    "dtype": (["p2r_ppo", RL[0], "actor_rollout_ref.rollout.dtype=auto"], "rollout.dtype is 'auto': give one of fp32"),
}


@pytest.mark.parametrize(("arguments", "what"), UNREADABLE.values(), ids=list(UNREADABLE))
def test_unreadable_plan_arguments_exit_2_with_reason(arguments, what):
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert what in done.output


def test_plan_amounts_are_formatted_with_units():
    amounts = [(3 * 2**30, "B"), (5 * 2**20, "B"), (1024.4, "tokens"), (0.25, "s"), (147.3, "s")]
    assert [amount(*one) for one in amounts] == ["3.0 GiB", "5.0 MiB", "1,024 tokens", "0.2 s", "147 s"]


def test_plan_refuses_command_that_does_not_start_verl():
    for command in (["python", "train.py"], ["python", "-m", "verl.trainer.main_ppo"]):
        with pytest.raises(ValueError, match="does not start verl"):
            read(command)


@pytest.mark.parametrize("config", ["p2r_ppo", "p2r_ppo_cpu"])
def test_plan_reads_freeze_vision_tower(config):
    model = [
        "actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    ]
    whole = plan_of(launch_of(config, model), Options(rows=0)).job
    frozen = plan_of(
        launch_of(config, [*model, "actor_rollout_ref.actor.freeze_vision_tower=True"]), Options(rows=0)
    ).job
    assert whole.trained - frozen.trained == frozen.shape.vision_params
    sft = launch_of("p2r_sft", ["model.path=Qwen/Qwen2.5-VL-7B-Instruct", "engine.freeze_vision_tower=True"])
    assert plan_of(sft, Options(rows=0)).job.trained == frozen.trained


def test_plan_reads_and_compares_shared_prefix_and_vision_features():
    model = ["actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct"]
    frozen = "actor_rollout_ref.actor.freeze_vision_tower=True"
    on = plan_of(launch_of("p2r_ppo", [*model, frozen, "trainer.p2r.shared_prefix=True"]), Options(rows=0)).job
    assert (on.engine.shares_prefix, on.engine.features) == (True, 2 * 2**30)
    off = plan_of(launch_of("p2r_ppo", [*model, "trainer.p2r.vision_features_gib=0"]), Options(rows=0)).job
    assert (off.engine.shares_prefix, off.engine.features) == (False, 0)
    shown = CliRunner().invoke(app, ["plan", "p2r_ppo", *model, "--rows", "0"], env={"COLUMNS": "200"}).output
    table = shown.split("With and without trainer.p2r.shared_prefix")[1]
    [whole, shared] = [line for line in table.splitlines() if line.startswith((" whole rows", " shared prefix"))]
    assert whole.rstrip().endswith("this launch")
    assert not shared.rstrip().endswith("this launch")
    seconds = [float(line.split()[2]) for line in (whole, shared)]
    assert seconds[1] < 0.7 * seconds[0]
    narrow = CliRunner().invoke(app, ["plan", "p2r_ppo", *model, "--rows", "0"], env={"COLUMNS": "60"}).output
    assert narrow == shown  # not a terminal: no line is folded


def test_plan_says_shared_prefix_is_unavailable_with_ulysses():
    cut = [
        "actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct",
        "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2",
    ]
    shown = CliRunner().invoke(app, ["plan", "p2r_ppo", *cut, "--rows", "0"], env={"COLUMNS": "200"}).output
    assert "The shared prefix is not built for ulysses_sequence_parallel_size > 1." in " ".join(shown.split())
    assert not [line for line in shown.splitlines() if line.startswith(" shared prefix ")]


@pytest.mark.parametrize(
    ("model", "override", "fault"),
    [
        ("Qwen/Qwen3.5-9B", "data.shuffle=True", "shared_prefix does not work with linear-attention"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "actor_rollout_ref.actor.shuffle=True", "shared_prefix with actor.shuffle"),
    ],
)
def test_plan_names_what_a_run_with_the_shared_prefix_refuses(model, override, fault):
    config = [f"actor_rollout_ref.model.path={model}", "data.image_patch_size=16", override]
    on = plan_of(launch_of("p2r_ppo", [*config, "trainer.p2r.shared_prefix=True"]), Options(rows=0))
    assert [text for text in on.faults if text.startswith(fault)]
    off = plan_of(launch_of("p2r_ppo", [*config, "trainer.p2r.shared_prefix=False"]), Options(rows=0))
    assert not [text for text in off.faults if "shared_prefix" in text]
