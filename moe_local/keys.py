"""What an expert is called."""

Key = tuple[int, int]  # (layer, expert): the layer's place among the MoE layers, not among all
