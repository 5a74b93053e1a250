"""What hands know from ollama, llama.cpp, LM Studio, mlx-lm and hf, and what is ours instead.

A table: another program's option or command, and what to do here.
"""

from __future__ import annotations

ALIASES = {"ls": "list", "show": "inspect"}  # commands that are ours by another name; `run` is chat, or generate

_PLACING = "experts are placed one by one as they fit and are used; --vram 8GiB and --ram 16GiB bound each memory"
_OFFLOAD = "what fits goes to the GPU by itself; --vram 8GiB bounds it, --device cpu leaves the GPU out"
_MAPPING = "weights are read as --io says (auto, direct, buffered) and stay within --ram; nothing is mapped or locked"
_KV = "the KV cache is as the model computes; a shorter --context makes it smaller"
_BATCH = "a prompt is read in pieces that fit the memory; nothing need be set"
_ONE_GPU = "one GPU is used; --device cuda:1 names it, and `moe-local batch --ray auto` uses several"
_DRAFT = "there is no second model; --prefetch predicts experts, which are read ahead"
_GRAMMAR = "`moe-local serve` keeps answers to a JSON schema (response_format); here, ask for JSON in the prompt"
_PENALTY = "use --repetition-penalty 1.1"
_SAMPLERS = "use --temp, --top-p, --top-k, --min-p and --repetition-penalty"
_ADAPTERS = "adapters are not read; name a model that has them merged in"
_CODE = "no code of a checkpoint is ever run"
_FORMAT = "a format is chosen by packing: `moe-local pack MODEL --format int4`"
_QUIET = "what is piped is the answer alone; --json has the figures, and at a terminal they follow an answer"
_HUB = "a hub's model is named as MODEL: `moe-local chat owner/name:Q4_K_M`"
_SERVER = "use `moe-local serve MODEL`"
_LOADED = "nothing stays loaded between commands, but while `moe-local serve` runs"
_TOKEN = "set HF_TOKEN, or use `hf auth login`"
_THINK = "use --think on|off|low|medium|high"
_TEMPLATE = "a model with a chat template is asked by it; --raw goes without, --chat-template FILE gives another"

OPTIONS = {
    # llama.cpp
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers"), _OFFLOAD),
    **dict.fromkeys(("-ncmoe", "--n-cpu-moe", "-cmoe", "--cpu-moe", "-ot", "--override-tensor"), _PLACING),
    **dict.fromkeys(("-fit", "--fit", "-fitt", "--fit-target", "-fitc", "--fit-ctx"), _PLACING),
    **dict.fromkeys(("--mlock", "--mmap", "--no-mmap", "-dio", "--direct-io", "-lm", "--load-mode"), _MAPPING),
    **dict.fromkeys(("-fa", "--flash-attn"), "attention is chosen for the device; nothing need be set"),
    **dict.fromkeys(("-ctk", "--cache-type-k", "-ctv", "--cache-type-v", "-nkvo", "--no-kv-offload"), _KV),
    **dict.fromkeys(("-b", "--batch-size", "-ub", "--ubatch-size"), _BATCH),
    **dict.fromkeys(("-tb", "--threads-batch"), "use --threads, for prompts and answers"),
    **dict.fromkeys(("-sm", "--split-mode", "-ts", "--tensor-split", "-mg", "--main-gpu", "-dev"), _ONE_GPU),
    "--list-devices": "`moe-local doctor` lists them",
    "--numa": "use numactl around the command",
    **dict.fromkeys(("--predict", "--n-predict"), "use -n, or --max-tokens"),
    **dict.fromkeys(("-sys", "--system-prompt"), "use --system"),
    "-s": "use --seed",
    **dict.fromkeys(("--repeat-penalty", "--presence-penalty", "--frequency-penalty", "--repeat-last-n"), _PENALTY),
    **dict.fromkeys(("--mirostat", "--samplers", "--typical", "--typical-p", "--xtc-probability"), _SAMPLERS),
    **dict.fromkeys(("--grammar", "--grammar-file", "-j", "--json-schema"), _GRAMMAR),
    "--ignore-eos": "`moe-local bench` writes on past the end of an answer",
    **dict.fromkeys(("-r", "--reverse-prompt"), "use --stop"),
    **dict.fromkeys(("-cnv", "--conversation", "-i", "--interactive"), "use `moe-local chat`"),
    **dict.fromkeys(("-no-cnv", "--no-conversation"), "use `moe-local generate --raw`"),
    **dict.fromkeys(("-st", "--single-turn"), "use `moe-local generate`"),
    "--jinja": _TEMPLATE,
    "--chat-template-file": "use --chat-template FILE",
    "--chat-template-kwargs": "use --template-var NAME=VALUE",
    **dict.fromkeys(("-rea", "--reasoning", "--reasoning-budget", "--reasoning-format"), _THINK),
    **dict.fromkeys(("--lora", "--lora-scaled", "--control-vector"), _ADAPTERS),
    **dict.fromkeys(("-md", "--model-draft", "--draft", "--draft-max"), _DRAFT),
    **dict.fromkeys(("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url"), _HUB),
    **dict.fromkeys(("-hft", "--hf-token"), _TOKEN),
    **dict.fromkeys(("--host", "--port"), _SERVER),
    "--offline": "set HF_HUB_OFFLINE=1",
    **dict.fromkeys(("-v", "--verbose", "--log-disable", "--no-perf", "--perf"), _QUIET),
    **dict.fromkeys(("-e", "--escape"), "the shell writes them: $'two\\nlines'"),
    **dict.fromkeys(("--rope-scaling", "--rope-scale", "--rope-freq-base"), "the model's configuration says it"),
    "--no-warmup": "nothing is warmed up; --warm begins with the experts that the last run ended with",
    # ollama
    "--keepalive": _LOADED,
    "--nowordwrap": "what is piped is not wrapped",
    "--hidethinking": "use --think off, or --fold in a chat",
    "--insecure": "HF_ENDPOINT names another hub",
    "--modelfile": "--system, --temp and the like are options of a command",
    # LM Studio
    "--gpu": _OFFLOAD,
    "--context-length": "use --context",
    "--ttl": _LOADED,
    "--identifier": "a model is named by its path, its hub id or the beginning of one",
    "--estimate-only": "use `moe-local inspect MODEL`",
    "--stats": _QUIET,
    # mlx-lm
    "--max-kv-size": "use --context",
    **dict.fromkeys(("--kv-bits", "--kv-group-size", "--quantized-kv-start"), _KV),
    "--ignore-chat-template": "use --raw",
    "--use-default-chat-template": _TEMPLATE,
    "--adapter-path": _ADAPTERS,
    "--trust-remote-code": _CODE,
    **dict.fromkeys(("--draft-model", "--num-draft-tokens"), _DRAFT),
    "--prompt-cache-file": "/save and /load keep a conversation in a chat",
    "--extra-eos-token": "use --stop",
    "--prefill-step-size": _BATCH,
    **dict.fromkeys(("-q", "--quantize", "--q-bits", "--q-group-size", "--hf-path", "--mlx-path"), _FORMAT),
    # hf and transformers
    **dict.fromkeys(("--local-dir", "--cache-dir"), "downloads lie in the Hugging Face cache; HF_HOME moves it"),
    **dict.fromkeys(("--include", "--exclude"), "what running the model takes is downloaded; :QUANT chooses a GGUF"),
    "--token": _TOKEN,
    **dict.fromkeys(("--load-in-4bit", "--load-in-8bit"), _FORMAT),
    "--device-map": _PLACING,
    "--torch-dtype": "use --dtype",
}

COMMANDS = {
    # ollama
    **dict.fromkeys(("server", "start"), _SERVER),
    **dict.fromkeys(("load", "unload"), _LOADED),
    "create": "give --system, --temp and the like to `moe-local chat`; `moe-local pack` makes a model smaller",
    **dict.fromkeys(("cp", "import"), "a model is run where it lies: `moe-local chat PATH`"),
    **dict.fromkeys(("push", "upload", "clone"), "nothing is published from here; `hf upload` does it"),
    **dict.fromkeys(("signin", "signout", "login", "logout", "auth", "whoami"), _TOKEN),
    "launch": _SERVER,
    # LM Studio
    **dict.fromkeys(("get", "download"), "use `moe-local pull MODEL`"),
    **dict.fromkeys(("status", "version", "env", "runtime"), "use `moe-local doctor`"),
    **dict.fromkeys(("log", "logs"), "failures are told where they happen; --debug says from where"),
    # llama.cpp and mlx-lm
    **dict.fromkeys(("cli", "completion", "complete"), "use `moe-local chat` or `moe-local generate`"),
    **dict.fromkeys(("quantize", "quantise", "convert"), _FORMAT),
    **dict.fromkeys(("perplexity", "evaluate"), "use `moe-local eval MODEL --text FILE`"),
    "benchmark": "use `moe-local bench MODEL`",
    **dict.fromkeys(("lora", "finetune", "fuse"), "models are run here and not trained"),
    **dict.fromkeys(("manage", "cache", "scan", "prune"), "use `moe-local list` and `moe-local rm NAME`"),
    # what people try
    **dict.fromkeys(("remove", "delete", "uninstall"), "use `moe-local rm NAME`"),
    **dict.fromkeys(("info", "stores"), "use `moe-local list`, or `moe-local inspect MODEL`"),
    **dict.fromkeys(("search", "find"), "find one on huggingface.co, then `moe-local pull owner/name`"),
    **dict.fromkeys(("ask", "prompt", "complete-text"), 'use `moe-local generate MODEL "prompt"`'),
    **dict.fromkeys(("update", "upgrade"), "use pip install -U moe-local"),
}
