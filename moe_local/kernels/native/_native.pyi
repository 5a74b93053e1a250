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

class Rotary:
    def __init__(
        self, pairs_in: int, pairs_out: int, pairs_angles: int, rounds: bool, last: bool, size: int, /
    ) -> None: ...

class Router:
    def __init__(
        self,
        choices: int,
        scoring: int,
        group_score: int,
        groups: int,
        groups_kept: int,
        sorted: bool,
        normalises: bool,
        epsilon: float,
        scale: float,
        rounds: bool,
        /,
    ) -> None: ...

def rms_norm(
    machine: Machine,
    rounding: int,
    eps: float,
    rows: int,
    columns: int,
    type: int,
    x: int,
    x_bytes: int,
    weight: int,
    weight_bytes: int,
    out: int,
    out_bytes: int,
    /,
) -> None: ...
def rotate(
    machine: Machine,
    rotary: Rotary,
    batch: int,
    first: int,
    second: int,
    columns: int,
    by_first: bool,
    x: int,
    x_bytes: int,
    type: int,
    angles: int,
    cos: int,
    cos_bytes: int,
    sin: int,
    sin_bytes: int,
    angles_type: int,
    out: int,
    out_bytes: int,
    /,
) -> None: ...
def attend_one(
    machine: Machine,
    batch: int,
    heads: int,
    kv_heads: int,
    length: int,
    size: int,
    value_size: int,
    scale: float,
    query: int,
    query_bytes: int,
    key: int,
    key_bytes: int,
    key_batch: int,
    key_head: int,
    key_step: int,
    value: int,
    value_bytes: int,
    value_batch: int,
    value_head: int,
    value_step: int,
    mask: int,
    mask_bytes: int,
    mask_type: int,
    mask_batch: int,
    mask_head: int,
    sinks: int,
    sinks_bytes: int,
    out: int,
    out_bytes: int,
    /,
) -> None: ...
def append(
    parts: int, room: int, at: int, row_bytes: int, source: int, source_bytes: int, target: int, target_bytes: int, /
) -> None: ...
def choose_experts(
    machine: Machine,
    router: Router,
    tokens: int,
    columns: int,
    experts: int,
    x: int,
    x_bytes: int,
    x_type: int,
    weight: int,
    weight_bytes: int,
    weight_type: int,
    logits_bias: int,
    logits_bias_bytes: int,
    bias: int,
    bias_bytes: int,
    logits: int,
    logits_bytes: int,
    logits_type: int,
    weights: int,
    weights_bytes: int,
    weights_type: int,
    index: int,
    index_bytes: int,
    /,
) -> None: ...

class Program:
    def __init__(self) -> None: ...
    def bind(self, keys: int, values: int, room: int) -> bool: ...
    def run(self, later: int, keys: int, values: int, room: int) -> None: ...
    @property
    def unfit(self) -> str: ...
    def __len__(self) -> int: ...

def record(program: Program | None) -> None: ...
def add(
    count: int,
    type: int,
    one: int,
    one_bytes: int,
    other: int,
    other_bytes: int,
    out: int,
    out_bytes: int,
) -> None: ...
