# SPDX-License-Identifier: Apache-2.0
"""An RL dataset of your own: the package's, with a system message in front of every prompt.

OUT=outputs/my_dataset bash examples/quickstart/rl.sh data.custom_cls.path="$PWD/examples/extend/my_dataset.py" \
      data.custom_cls.name=WithSystemMessage
"""

from typing import Any

from verl_p2r.plugin.datasets.rl_dataset import P2RDataset

SYSTEM = "You watch videos closely. Say what you see before you reason."


class WithSystemMessage(P2RDataset):
    """Screening, token counts and training all build messages here, so all of them see the new one."""

    def _build_messages(self, example: dict[str, Any], key: str) -> list[dict[str, Any]]:
        return [{"role": "system", "content": SYSTEM}, *super()._build_messages(example, key)]
