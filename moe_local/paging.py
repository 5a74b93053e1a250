"""A model's experts while it runs: the tiers they are in, who multiplies by them, and what is read ahead."""

from __future__ import annotations

from transformers import PreTrainedModel

from moe_local.checkpoint.architecture import experts_modules
from moe_local.errors import MoeLocalError
from moe_local.experts.cache import ExpertCache
from moe_local.experts.in_step import InStep
from moe_local.experts.layer import ExpertLayer, Paged
from moe_local.experts.misses import ZERO_COPY
from moe_local.experts.next_router import next_routers
from moe_local.experts.prefetch import Prefetcher
from moe_local.experts.routing import RoutingHook
from moe_local.kernels.expert import ExpertKernel
from moe_local.memory.files import FileReader
from moe_local.memory.pages import free_caches
from moe_local.planning.plan_load import LoadPlan
from moe_local.planning.tiers import make_cache, miss_policy, uploads_ahead, with_budgets
from moe_local.prediction import PREDICTORS


class PagedExperts:
    """Connects a model's experts modules with an expert cache, which can be another one later."""

    def __init__(self, load_plan: LoadPlan, model: PreTrainedModel, cache: ExpertCache) -> None:
        self.load_plan = load_plan
        self._model: PreTrainedModel | None = model
        self._misses = miss_policy(load_plan)
        self._tap: RoutingHook | None = None
        self.in_step = InStep()
        self._run_over(cache)

    @property
    def model(self) -> PreTrainedModel:
        """Raises MoeLocalError once it is closed."""
        if self._model is None:
            raise MoeLocalError("this engine is closed", remedy="load the model again")
        return self._model

    def _run_over(self, cache: ExpertCache) -> None:
        exact, below = self.load_plan.exact, cache.host_slab
        self.cache = cache
        read = below if below is not None and below.is_pinned and self._misses_are(ZERO_COPY) else None
        self._kernels = [ExpertKernel(cache.slab, exact=exact, below=read)]
        if below is not None:
            self._kernels.append(ExpertKernel(below, exact=exact))
        self._prefetcher = self._make_prefetcher()
        self.tap(self._tap)

    def _misses_are(self, way: str) -> bool:
        return self.load_plan.options.misses == way

    def _make_prefetcher(self) -> Prefetcher | None:
        """None where it was not asked for, or there is nothing to bring nearer that is not where it is used."""
        plan, predictor = self.load_plan.plan, self.load_plan.options.prefetch
        needs = plan.needs
        in_ram = plan.share < 1 and uploads_ahead(self.load_plan) and not self._misses_are(ZERO_COPY)
        if predictor == "off" or not (plan.left_on_disk or in_ram):
            return None
        routers = next_routers(self.model, self.load_plan.catalog)
        made = PREDICTORS.named(predictor)(routers, needs.experts)
        return Prefetcher(made, needs.experts, needs.top_k, self.cache.counters)

    def tap(self, tap: RoutingHook | None) -> None:
        """From now on shows `tap` the routing of every forward pass, over whatever cache; see `RoutingHook`."""
        self._tap = tap
        kernel, in_ram = self._kernels[0], self._kernels[1] if len(self._kernels) > 1 else None
        for path, module in experts_modules(self.model).items():
            layer = self.load_plan.catalog.layer_of[path]
            held = self.load_plan.catalog.layers[layer]
            assert isinstance(module, ExpertLayer)
            paged = Paged(
                self.cache,
                self.in_step,
                kernel,
                layer,
                held.experts,
                held.kinds,
                tap,
                self._prefetcher,
                in_ram,
                self._misses,
            )
            module.connect(paged)

    @property
    def doubts(self) -> tuple[str, ...]:
        """For the user: what is not as it was asked for."""
        modules = [module for module in experts_modules(self.model).values() if isinstance(module, ExpertLayer)]
        if self._misses is not None and not any(module.beside for module in modules):
            return ("the CPU has no kernels for this model's experts: what the device lacks is uploaded",)
        if not self._misses_are(ZERO_COPY) or self.load_plan.plan.share == 1:
            return ()
        if not any(module.from_table is not None and module.from_table.reads_ram for module in modules):
            return ("experts cannot be read in RAM from here: what the device lacks is uploaded",)
        if not (lacking := self.load_plan.plan.left_on_disk):
            return ()
        return (f"RAM lacks room for all experts of {lacking} of {len(modules)} layers: theirs are uploaded",)

    def use(self, cache: ExpertCache) -> None:
        """Runs over another cache of the same checkpoint from now on; the former one is closed."""
        self.cache.close()
        self._run_over(cache)

    def resize(self, files: FileReader, ram: int | None, vram: int | None) -> None:
        """Other budgets, in bytes; what is worth most is brought in again, from RAM and `files`.

        The host tier stays, unless it is to hold more or less now. Raises as `with_budgets`; goes on with the former
        budgets where memory cannot be had.
        """
        former, resized = self.load_plan, with_budgets(self.load_plan, ram, vram)
        totals = self.cache.snapshot()
        host, best = self.cache.hand_over(resized.plan.device_slots)
        for kernel in self._kernels:
            kernel.close()
        if host is not None and resized.plan.below != former.plan.below:
            host.slab.close()
            host = None
        free_caches(former.accelerator)
        try:
            self.load_plan = resized
            self.use(make_cache(resized, files, host=host))
        except BaseException:
            self.load_plan = former
            self.use(make_cache(former, files, host=host))
            raise
        finally:
            vars(self.cache.counters).update(vars(totals))
        for layer, experts in enumerate(best):
            if self._misses_are(ZERO_COPY):
                self.cache.fill(layer)
            self.cache.warm(layer, experts)

    def close(self) -> None:
        """Frees the tiers and everything that reads them."""
        for kernel in self._kernels:
            kernel.close()
        self.cache.close()
        self._model = self._prefetcher = self._tap = None
