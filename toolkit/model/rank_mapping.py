"""Which rank holds what: tensor parallel groups inside pipeline stages, numbered as in TensorRT-LLM.

The tensor parallel rank changes fastest: with tp=2, pp=4 the groups are [0,1][2,3][4,5][6,7] and the pipelines
[0,2,4,6][1,3,5,7]. Source: TensorRT-LLM 1.2 mapping.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RankMapping:
    """The shape of a group of ranks: `tp` ranks share each layer, and `pp` stages divide the layers.

    Its ranks are on `nodes` nodes, in order: each node has whole stages. What a rank holds does not depend on that.
    """

    tp: int = 1
    pp: int = 1
    nodes: int = field(default=1, compare=False)

    @property
    def world_size(self) -> int:
        return self.tp * self.pp

    @property
    def ranks(self) -> range:
        return range(self.world_size)

    @property
    def ranks_per_node(self) -> int:
        return self.world_size // self.nodes

    @property
    def of_a_node(self) -> RankMapping:
        """The mapping of the ranks of one node alone."""
        return RankMapping(self.tp, self.pp // self.nodes)

    def ranks_on(self, node: int) -> range:
        """The ranks on a node, counted from 0."""
        return range(node * self.ranks_per_node, (node + 1) * self.ranks_per_node)

    def crosses_nodes(self, stage: int) -> bool:
        """Whether the stage after this one is on another node."""
        return (stage + 1) % (self.pp // self.nodes) == 0 and stage < self.pp - 1

    def tp_rank(self, rank: int) -> int:
        return rank % self.tp

    def pp_rank(self, rank: int) -> int:
        return rank // self.tp

    def tp_group(self, stage: int) -> range:
        """The ranks of pipeline stage `stage`."""
        return range(stage * self.tp, (stage + 1) * self.tp)

    def is_first_stage(self, rank: int) -> bool:
        return self.pp_rank(rank) == 0

    def is_last_stage(self, rank: int) -> bool:
        return self.pp_rank(rank) == self.pp - 1

    def layers(self, num_layers: int, stage: int) -> range:
        """The global layer indices of a stage. The first stages take the remainder (torch.tensor_split)."""
        size, extra = divmod(num_layers, self.pp)
        start = stage * size + min(stage, extra)
        return range(start, start + size + (stage < extra))
