# SPDX-License-Identifier: Apache-2.0
"""A model and tasks for lmms-eval 0.7: verl_p2r's frames, template and answers, and lmms-eval's scores."""

from typing import Any


def manifest() -> Any:
    """Describe the model `p2r`; lmms-eval calls this by its entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="p2r", simple_class_path="lmms_p2r.model.P2R")
