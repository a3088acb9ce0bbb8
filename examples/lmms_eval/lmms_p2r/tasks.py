# SPDX-License-Identifier: Apache-2.0
"""Writes tasks for lmms-eval that include its own, and change only the question's wording and which text is scored.

python -m lmms_p2r.tasks FOLDER
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

ANSWER = r"(?s)<answer>\s*(.+?)\s*</answer>|\A(?!.*<(?:observation|think|answer)>)(.+)\Z"
"""The first answer block of a reply, or all of a reply without any of our tags."""

_PLAIN = {"multi-choice": "", "yes_no": "\nAnswer yes or no.", "caption_matching": "", "captioning": ""}
_MVBENCH = (
    *("action_antonym", "action_count", "action_localization", "action_prediction", "action_sequence"),
    *("character_order", "counterfactual_inference", "egocentric_navigation", "episodic_reasoning"),
    *("fine_grained_action", "fine_grained_pose", "moving_attribute", "moving_count", "moving_direction"),
    *("object_existence", "object_interaction", "object_shuffle", "scene_transition", "state_change"),
    "unexpected_action",
)
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    # A blank text replaces "answer with the letter directly"; lmms-eval takes an empty one for a missing one.
    "vsibench": ("vsibench/vsibench.yaml", {"pre_prompt": " ", "mca_post_prompt": " ", "na_post_prompt": " "}),
    "videomme": ("videomme/videomme.yaml", {"format": "qwen3_vl", "pre_prompt": "", "post_prompt": ""}),
    "mmvu_val": ("mmvu/mmvu_val.yaml", {}),
    "video_mmmu_perception": ("videommmu/perception.yaml", {}),
    "video_mmmu_comprehension": ("videommmu/comprehension.yaml", {}),
    "video_mmmu_adaptation": ("videommmu/adaptation.yaml", {}),
    "tempcompass_multi_choice": ("tempcompass/tempcompass_mc.yaml", {"pre_prompt": "", "post_prompt": _PLAIN}),
    "tempcompass_yes_no": ("tempcompass/tempcompass_yes_no.yaml", {"pre_prompt": "", "post_prompt": _PLAIN}),
    "tempcompass_caption_matching": (
        "tempcompass/tempcompass_caption_matching.yaml",
        {"pre_prompt": "", "post_prompt": _PLAIN},
    ),
    **{f"mvbench_{task}": (f"mvbench/mvbench_{task}.yaml", {"sub_task": task, "post_prompt": ""}) for task in _MVBENCH},
}
"""Task of lmms-eval → its file, and the texts of its prompt that are replaced."""


def write_tasks(folder: Path) -> list[str]:
    """Write a YAML file for each task; its name is that of lmms-eval's with `p2r_` in front.

    Args:
        folder: for lmms-eval's `--include_path`.

    Returns:
        The names of the tasks.

    Raises:
        ValueError: lmms-eval is not installed, or lacks one of the tasks.
    """
    package = find_spec("lmms_eval")
    if package is None or not package.submodule_search_locations:
        raise ValueError("lmms-eval is not installed in this environment: pip install lmms-eval==0.7.3")
    own = Path(package.submodule_search_locations[0]) / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    for task, (file, texts) in TASKS.items():
        if not (own / file).is_file():
            raise ValueError(f"{own / file} is missing: these tasks are made for lmms-eval 0.7")
        (folder / f"p2r_{task}.yaml").write_text(_task(task, own / file, texts), encoding="utf-8")
    return [f"p2r_{task}" for task in TASKS]


def _task(task: str, official: Path, texts: dict[str, Any]) -> str:
    config: dict[str, Any] = {"include": str(official), "task": f"p2r_{task}", "reasoning_tags": "none"}
    answer = {"function": "regex", "regex_pattern": ANSWER, "fallback": ""}
    config["filter_list"] = [{"name": "answer", "filter": [answer, {"function": "take_first"}]}]
    if texts:
        config["lmms_eval_specific_kwargs"] = {"default": texts}
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    if task == "mmvu_val":  # its prompt asks for the letter at once; this function writes the question without that
        text += "lmms_eval_specific_kwargs: null\n"
        text += "doc_to_text: !function lmms_eval.tasks.mmvu.utils.construct_question_prompt\n"
    return text


if __name__ == "__main__":
    print(",".join(write_tasks(Path(sys.argv[1]))))
