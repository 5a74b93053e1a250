from collections.abc import Sequence

class Machine:
    def __init__(self, threads: int, processor: str | None = None) -> None: ...
    @property
    def processor(self) -> str: ...
    @property
    def threads(self) -> int: ...

class Projection:
    def __init__(
        self,
        kind: str,
        out: int,
        width: int,
        group: int,
        scale_rows: int,
        scale_columns: int,
        places: Sequence[Sequence[int]],
        bias_offset: int,
        bias_type: int,
        size: int,
    ) -> None: ...

class ExpertLayout:
    def __init__(
        self,
        up: Projection,
        down: Projection,
        activation: str,
        gated: bool,
        interleaved: bool,
        alpha: float,
        limit: float,
        size: int,
    ) -> None: ...

class Routing:
    def __init__(self, address: int, bytes: int, tokens: int, choices: int, experts: int) -> None: ...
    @property
    def chosen(self) -> list[int]: ...

def run_experts(
    machine: Machine,
    layout: ExpertLayout,
    routing: Routing,
    exact: bool,
    chosen: Sequence[int],
    records: Sequence[int],
    record_bytes: int,
    x: int,
    x_bytes: int,
    x_type: int,
    outputs: int,
    outputs_bytes: int,
    outputs_type: int,
) -> None: ...
def sum_choices(
    machine: Machine,
    routing: Routing,
    columns: int,
    outputs: int,
    outputs_bytes: int,
    weights: int,
    weights_bytes: int,
    weights_type: int,
    out: int,
    out_bytes: int,
    type: int,
) -> None: ...
def multiply_dense(
    machine: Machine,
    kind: str,
    out: int,
    width: int,
    group: int,
    scale_rows: int,
    scale_columns: int,
    exact: bool,
    matrix: int,
    matrix_bytes: int,
    scales: int,
    scales_bytes: int,
    whole: int,
    whole_bytes: int,
    bias: int,
    bias_bytes: int,
    rows: int,
    x: int,
    x_bytes: int,
    y: int,
    y_bytes: int,
    type: int,
) -> None: ...
def team_kind() -> str: ...
