# SPDX-License-Identifier: Apache-2.0
"""The rollouts of a prompt stay on one rank: verl balances single rows, which would tear them apart."""

from typing import Any

from transfer_queue import KVBatchMeta
from verl.utils.seqlen_balancing import log_seqlen_unbalance

from verl_p2r.prefix.balance import balanced_order


def keep_groups_together(batch: KVBatchMeta, ranks: int, prefix: str = "global_seqlen") -> dict[str, Any]:
    """Reorder a batch so that each rank's share holds whole groups and about equal work.

    Args:
        batch: as verl balanced it; its rows divide by `ranks`. Reordered in place.
        ranks: of data parallelism.
        prefix: of the metrics' names.

    Returns:
        verl's metrics of how even the ranks' tokens are, in this order.
    """
    prompts = [tag["prompt_len"] for tag in batch.tags]
    responses = [tag["seq_len"] - tag["prompt_len"] for tag in batch.tags]
    uids = [key.rsplit("_", 2)[0] for key in batch.keys]
    order, _ = balanced_order(uids, prompts, responses, ranks)
    lengths = [tag["seq_len"] for tag in batch.tags]
    share = len(order) // ranks
    shares = [order[rank * share : (rank + 1) * share] for rank in range(ranks)]
    batch.reorder(order)
    return log_seqlen_unbalance(seqlen_list=lengths, partitions=shares, prefix=prefix)
