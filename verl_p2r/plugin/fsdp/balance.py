# SPDX-License-Identifier: Apache-2.0
"""Keep the rollouts of a prompt on one rank: verl balances single rows, which would separate them."""

from typing import Any

from transfer_queue import KVBatchMeta
from verl.utils.seqlen_balancing import log_seqlen_unbalance

from verl_p2r.prefix.balance import balanced_order


def keep_groups_together(batch: KVBatchMeta, ranks: int, prefix: str = "global_seqlen") -> dict[str, Any]:
    """Reorder a batch so that each rank gets whole groups and about the same work.

    Args:
        batch: as verl balanced it; the number of its rows is a multiple of `ranks`. Changed in place.
        ranks: number of data-parallel ranks.
        prefix: beginning of the metrics' names.

    Returns:
        verl's metrics of how evenly tokens are distributed over ranks, for the new order.
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
