"""What happens at an MoE layer: route, fetch, multiply, sum. Start reading in `layer.py`."""
